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


def test_what_is_missing_as_a_whole_is_counted_and_members_and_other_faults_are_listed() -> None:
    sets = [ChangeState("add", "sets", f"KUBE-{number:02}") for number in range(12)]
    chains = [ChangeState("set", "rules", f"IPv4 nat: chain KUBE-{number:02} is missing") for number in range(11)]
    few = [ChangeState("set", "rules", f"IPv6 nat: chain KUBE-{number} is missing") for number in range(2)]
    others = [
        ChangeState("add", "sets", "KUBE-03 10.96.0.1,tcp:80"),
        ChangeState("set", "rules", "IPv4 nat: chain KUBE-90 differs"),
    ]
    assert changes_text(Differences(1, [*sets, *chains, *few, *others])) == (
        "+  sets   12 sets (-o json names them)\n"
        "+  sets   KUBE-03 10.96.0.1,tcp:80\n"
        "~  rules  IPv4: 11 chains and jumps that are missing (-o json names them)\n"
        "~  rules  IPv4 nat: chain KUBE-90 differs\n"
        "~  rules  IPv6 nat: chain KUBE-0 is missing\n"
        "~  rules  IPv6 nat: chain KUBE-1 is missing\n"
        "13 to add, 14 to change, 0 to delete, for 1 Service\n"
    )
