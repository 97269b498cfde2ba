"""How differences are written for people."""

from __future__ import annotations

from itertools import permutations

from ipvs_proxy.commands.changes import changes_text
from ipvs_proxy.state.documents import ChangeState, Differences

CHANGES = (
    ChangeState("set", "ipvs", "10.96.0.9:80/TCP -> 10.244.0.9:8080 weight 0"),
    ChangeState("add", "ipvs", "10.96.0.1:80/TCP rr"),
    ChangeState("add", "ipvs", "10.96.0.1:80/TCP -> 10.244.0.1:8080 weight 1"),
    ChangeState("add", "ipvs", "10.96.0.1:80/TCP -> 10.244.0.2:8080 weight 1"),
)
ADDRESS = ChangeState("delete", "addresses", "10.96.0.8 on kube-ipvs0")


def test_text_is_in_one_order_whatever_that_of_the_operations_is() -> None:
    texts = {changes_text(Differences(5, [*changes, ADDRESS])) for changes in permutations(CHANGES)}
    assert texts == {
        "+  ipvs       10.96.0.1:80/TCP rr\n"
        "+  ipvs       10.96.0.1:80/TCP -> 10.244.0.1:8080 weight 1\n"
        "+  ipvs       10.96.0.1:80/TCP -> 10.244.0.2:8080 weight 1\n"
        "~  ipvs       10.96.0.9:80/TCP -> 10.244.0.9:8080 weight 0\n"
        "-  addresses  10.96.0.8 on kube-ipvs0\n"
        "3 to add, 1 to change, 1 to delete, for 5 Services\n"
    }


def test_nothing_to_do_is_one_line() -> None:
    assert changes_text(Differences(1, [])) == "nothing would change: the kernel is as 1 Service wants it\n"
