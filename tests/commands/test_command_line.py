"""The commands that show, as a user runs them, against a server that answers as the agent does."""

from __future__ import annotations

import json

import msgspec
import pytest
import yaml
from click.testing import CliRunner

from ipvs_proxy.cli import main
from ipvs_proxy.commands import ask
from ipvs_proxy.state.documents import DrainState, Happening
from tests.support.answering_agent import NODE, NOW, ROUTE, SERVICE, agent, run


def test_status_fits_one_screen() -> None:
    with agent(state=NODE) as (address, asked):
        done = run("status", "--agent", address)
    assert (done.exit_code, asked) == (0, ["/state?limit=0"])
    assert done.output == (
        "agent      ipvs-proxy 0.1.0 on node-a, up 5h, healthy\n"
        "scheduler  rr (IPv4, IPv6)\n"
        "services   2 Services, 0 conflicts\n"
        "kernel     4 virtual servers, 12 real servers\n"
        "           1 drain, 2 addresses on kube-ipvs0\n"
        "foreign    1 virtual server of others: 192.0.2.9:80/TCP\n"
        "\n"
        "Last changes\n"
        "AGO    TOOK  WRITES  SERVICES\n"
        "30s  1.2 ms       2  shop/web and 1 more\n"
        "\n"
        "Last repairs\n"
        "AGO  TABLE  COUNT  FOUND\n"
        "7m   ipvs       1  10.96.0.10:80/TCP\n"
    )


def test_status_says_that_changes_are_not_seen() -> None:
    state = msgspec.structs.replace(NODE, api_failures=["Service for 90 s: HTTP 401: Unauthorized"])
    with agent(state=state) as (address, _):
        text = run("status", "--agent", address).output
    assert "\nAPI server  CHANGES ARE NOT SEEN: nothing is heard of Service for 90 s: HTTP 401: Unauthorized\n" in text


def test_status_names_drains_and_what_the_kernel_refuses() -> None:
    state = msgspec.structs.replace(
        NODE,
        changes=[],
        repairs=[Happening(NOW, "sets", 300, ["a", "b"], total=300)],
        foreign_virtual_servers=[],
        waiting=2,
        refused=["fd00::1 on kube-ipvs0", "KUBE-CLUSTER-IP 10.96.0.10,tcp:80"],
        drains=[
            DrainState("10.96.0.10:80/TCP", "10.244.0.1:8080", 200.0, 3400.0, 12),
            DrainState("10.96.0.10:80/TCP", "10.244.0.2:8080", 5.0),
        ],
    )
    with agent(state=state) as (address, _):
        text = run("status", "--agent", address).output
    assert text.partition("\nwaiting")[2] == (
        "    2 objects that the kernel refuses, tried again: fd00::1 on kube-ipvs0 and 1 more\n"
        "\n"
        "Drains\n"
        "FOR  LEFT  CONNECTIONS  REAL SERVER      OF\n"
        "3m   56m            12  10.244.0.1:8080  10.96.0.10:80/TCP\n"
        "5s   -               -  10.244.0.2:8080  10.96.0.10:80/TCP\n"
        "\n"
        "Last repairs\n"
        "AGO  TABLE  COUNT  FOUND\n"
        "0s   sets     300  a and 299 more\n"
    )


def test_services_are_a_table_and_tell_what_is_not_served() -> None:
    with agent(state=NODE) as (address, asked):
        done = run("services", "shop/", "--limit", "7", "--agent", address)
    assert asked == ["/state?search=shop%2F&limit=7"]
    assert done.output == (
        "SERVICE      ADDRESS        PORTS      SCHEDULER  ENDPOINTS  CONN/S  IN/S  OUT/S  STATE\n"
        "shop/web     10.96.0.10 +1  80/TCP +1  wrr             3 +1      12  1.5M   2.0k  ok\n"
        "shop/broken  10.96.0.11     80/TCP     -                  0       0     0      0  invalid-cluster-ip\n"
    )


def test_documents_come_as_json_and_yaml() -> None:
    with agent(state=NODE, state_services_shop_web=SERVICE, state_route=ROUTE) as (address, _):
        assert json.loads(run("status", "-o", "json", "--agent", address).output)["serviceCount"] == 2
        assert yaml.safe_load(run("services", "-o", "yaml", "--agent", address).output)[0]["name"] == "web"
        assert json.loads(run("explain", "shop/web", "-o", "json", "--agent", address).output)["inSync"] is True
        question = ("explain", "--from", "10.244.0.1", "10.96.0.10:80", "-o", "yaml", "--agent", address)
        assert yaml.safe_load(run(*question).output)["verdict"] == "balanced"


def test_service_can_be_named_by_its_address_and_port() -> None:
    with agent(state_services_shop_web=SERVICE, state_route=ROUTE) as (address, asked):
        done = run("explain", "10.96.0.10:80", "--agent", address)
    assert asked == [
        "/state/route?client=10.96.0.10&address=10.96.0.10&port=80&protocol=TCP",
        "/state/services/shop/web",
    ]
    assert done.output.startswith("shop/web (ClusterIP): as it should be\n")


def test_name_that_is_not_there_brings_a_hint_and_status_1() -> None:
    with agent(state=NODE) as (address, _):
        done = run("explain", "web", "--agent", address)
    assert (done.exit_code, done.output) == (
        1,
        "ipvs-proxy: error: there is no such thing; did you mean shop/web, shop/broken?\n",
    )


def test_agent_that_is_not_there_and_other_servers_are_told_in_one_line() -> None:
    done = run("status", "--agent", "127.0.0.1:1")
    assert done.exit_code == 1
    assert done.output.startswith("ipvs-proxy: error: no agent answers at 127.0.0.1:1 (")
    assert done.output.count("\n") == 1
    with agent(state=b"<html>") as (address, _):
        done = run("status", "--agent", address)
    assert done.output.startswith(f"ipvs-proxy: error: what answers at {address} is not an agent of this version")
    done = run("services", "--agent", "nonsense")
    assert done.output == "ipvs-proxy: error: 'nonsense' is not IP:port\n"


def test_agent_beside_a_kube_proxy_is_found_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with agent() as (kube_proxy, asked), agent(state=NODE) as (beside, _):
        monkeypatch.setattr(ask, "DEFAULT_ADDRESS", kube_proxy)
        monkeypatch.setattr(ask, "ADDRESS_BESIDE", beside)
        assert run("status").output.startswith("agent")
        assert asked == ["/state?limit=0"], "asked once, and it has no such page"
        monkeypatch.setattr(ask, "DEFAULT_ADDRESS", beside)
        monkeypatch.setattr(ask, "ADDRESS_BESIDE", kube_proxy)
        assert run("status").output.startswith("agent")
    with agent() as (first, _), agent() as (second, _):
        monkeypatch.setattr(ask, "DEFAULT_ADDRESS", first)
        monkeypatch.setattr(ask, "ADDRESS_BESIDE", second)
        assert "no such thing" in run("status").output


def test_target_that_is_none_is_refused_where_a_way_is_asked_for() -> None:
    done = run("explain", "--from", "10.0.0.1", "web")
    assert done.exit_code == 1
    assert "'web' is not an address and port such as 10.96.0.1:443 or [fd00::1]:53/UDP" in done.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(shell: str) -> None:
    assert "_IPVS_PROXY_COMPLETE" in run("completion", shell).output


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("ipvs-proxy ex", {"explain"}),
        ("ipvs-proxy d", {"debug-bundle", "diff", "doctor"}),
        ("ipvs-proxy explain --fr", {"--from"}),
        ("ipvs-proxy run --ipvs-sch", {"--ipvs-scheduler"}),
        ("ipvs-proxy plan --off", {"--offline"}),
        ("ipvs-proxy status -o j", {"json"}),
    ],
)
def test_words_are_completed(words: str, completed: set[str]) -> None:
    environment = {
        "_IPVS_PROXY_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = CliRunner().invoke(main, [], prog_name="ipvs-proxy", env=environment)
    assert {line.partition(",")[2] for line in done.output.splitlines()} == completed
