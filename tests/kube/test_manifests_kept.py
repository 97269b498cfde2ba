"""What an accident of the file system must not remove, and what a deliberate removal looks like."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ipvs_proxy.kube import documents, manifests
from ipvs_proxy.kube.documents import ParseError, parse, parse_yaml
from tests.support.hostile_files import BOMB, make_huge, make_pipe, make_socket
from tests.support.manifests import Follower, endpoint_slice, following, service, write

EMPTY_LIST = {"apiVersion": "v1", "kind": "List", "items": []}
NAMES = [f"s{number}" for number in range(20)]
ALL = {f"default/{name}" for name in NAMES}


def fill(directory: Path, names: list[str] = NAMES) -> None:
    for name in names:
        write(directory, f"{name}.yaml", service(name))


def empty(directory: Path, keep: int = 0) -> None:
    for path in sorted(directory.iterdir())[keep:]:
        path.unlink()


async def kept(follower: Follower, expected: set[str] = ALL) -> list[dict[str, Any]]:
    """Look five times; everything must be there each time. Return what was logged."""
    with capture_logs() as logs:
        for _ in range(5):
            assert await follower.passes() == expected
    return [dict(entry) for entry in logs]


async def test_an_unmount_keeps_everything_and_is_told_once(tmp_path: Path) -> None:
    directory = tmp_path / "manifests"
    directory.mkdir()
    fill(directory)
    async with following(directory) as follower:
        directory.rename(tmp_path / "mounted")
        directory.mkdir()
        [told] = await kept(follower)
        assert (told["event"], told["objects"], told["more_files"]) == ("manifests_kept", 20, 15)
        assert "kind: List, items: []" in told["remedy"]
        directory.rmdir()
        (tmp_path / "mounted").rename(directory)
        assert await kept(follower) == []
        (directory / "s3.yaml").unlink()
        assert await follower.passes() == ALL - {"default/s3"}


async def test_the_last_file_that_goes_keeps_its_objects_however_few(tmp_path: Path) -> None:
    fill(tmp_path, ["one"])
    async with following(tmp_path) as follower:
        empty(tmp_path)
        assert [line["event"] for line in await kept(follower, {"default/one"})] == ["manifests_kept"]


async def test_most_files_that_go_at_once_are_kept_and_others_are_followed_meanwhile(tmp_path: Path) -> None:
    fill(tmp_path)
    async with following(tmp_path) as follower:
        empty(tmp_path, keep=8)
        await kept(follower)
        write(tmp_path, "new.yaml", service("new"))
        assert await follower.passes() == {*ALL, "default/new"}


async def test_half_of_the_files_may_go_at_once(tmp_path: Path) -> None:
    fill(tmp_path)
    async with following(tmp_path) as follower:
        empty(tmp_path, keep=10)
        assert len(await follower.passes()) == 10
        empty(tmp_path, keep=1)
        assert len(await follower.passes()) == 1


@pytest.mark.parametrize("first", [True, False])
async def test_an_empty_list_says_that_a_removal_is_meant(tmp_path: Path, first: bool) -> None:
    fill(tmp_path)
    async with following(tmp_path) as follower:
        if first:
            write(tmp_path, "removed.json", EMPTY_LIST)
            assert await follower.passes() == ALL
        for name in NAMES:
            (tmp_path / f"{name}.yaml").unlink()
        if not first:
            await kept(follower)
            write(tmp_path, "removed.json", EMPTY_LIST)
        assert await follower.passes() == set()


async def test_the_slices_alone_count_too(tmp_path: Path) -> None:
    write(tmp_path, "services.yaml", *[service(name) for name in NAMES])
    write(tmp_path, "slices.yaml", *[endpoint_slice(f"{name}-x") for name in NAMES])
    async with following(tmp_path) as follower:
        (tmp_path / "slices.yaml").unlink()
        assert len(await follower.passes(3)) == 40


@pytest.mark.parametrize("content", ["", "\n", "# nothing\n", "---\n"])
@pytest.mark.parametrize("name", ["all.yaml", "all.json"])
@pytest.mark.parametrize("by_rename", [True, False])
async def test_a_file_that_is_cut_to_nothing_keeps_its_objects(
    tmp_path: Path, name: str, content: str, by_rename: bool
) -> None:
    write(tmp_path, name, {"kind": "List", "items": [service(name) for name in NAMES]})
    async with following(tmp_path) as follower:
        scratch = tmp_path / (".scratch" if by_rename else name)
        scratch.write_text(content)
        scratch.replace(tmp_path / name)
        assert [line["event"] for line in await kept(follower)] in (["manifest_empty"], ["manifest_unparsable"])
        write(tmp_path, name, EMPTY_LIST)
        assert await follower.passes() == set()


async def test_a_file_that_shrinks_in_place_keeps_what_is_served(tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    write(tmp_path, "all.yaml", *[service(name) for name in NAMES])
    whole = path.read_text()
    async with following(tmp_path) as follower:
        path.write_text("---\n".join(whole.split("---\n")[:5]))  # parses
        assert [line["event"] for line in await kept(follower)] == ["manifests_kept"]
        path.write_text(whole)
        assert await kept(follower) == []
        path.write_text("---\n".join(whole.split("---\n")[:19]))
        assert await follower.passes(2) == ALL - {"default/s19"}


async def test_a_file_replaced_by_rename_is_taken_at_its_word_when_it_rested(tmp_path: Path) -> None:
    write(tmp_path, "all.yaml", *[service(name) for name in NAMES])
    async with following(tmp_path) as follower:
        write(tmp_path, "all.yaml", service("s0"), service("new"))
        assert await follower.passes() == ALL
        assert await follower.passes() == {"default/s0", "default/new"}
        write(tmp_path, "all.yaml", service("new"))
        assert await follower.passes() == {"default/new"}


async def test_a_file_written_anew_under_its_name_is_not_met_in_the_middle(tmp_path: Path) -> None:
    """Some editors move the old file away and write a new one in its place."""
    path = tmp_path / "all.yaml"
    write(tmp_path, "all.yaml", *[service(name) for name in NAMES])
    whole = path.read_text()
    async with following(tmp_path) as follower:
        path.rename(tmp_path / "all.yaml~")
        path.write_text(whole[:300])
        assert await follower.passes() == ALL
        path.write_text(whole)
        await kept(follower)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_pipe, "it is a pipe, not a file"),
        (make_socket, "No such device or address"),
        (Path.mkdir, "it is a directory, not a file"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
        (lambda path: path.symlink_to("/proc/self/mem"), "Input/output error"),
        (make_huge, "it is larger than 32 MiB"),
    ],
    ids=["pipe", "socket", "directory", "loop", "dangling", "device", "unreadable", "huge"],
)
async def test_what_cannot_be_read_keeps_what_the_file_held_and_is_told_once(
    tmp_path: Path, make: Any, reason: str
) -> None:
    write(tmp_path, "a.yaml", service("one"))
    write(tmp_path, "b.yaml", service("two"))
    async with following(tmp_path) as follower:
        (tmp_path / "a.yaml").unlink()
        make(tmp_path / "a.yaml")
        lines = await kept(follower, {"default/one", "default/two"})
        assert [(line["event"], line["error"]) for line in lines] == [("manifest_unreadable", reason)]
        write(tmp_path, "b.yaml", service("three"))
        assert await follower.passes() == {"default/one", "default/three"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.yaml", "kind: !!bool maybe", "'maybe' is no bool"),
        ("a.yaml", 'a: !!int ""', "'' is no int"),
        ("a.yaml", 'a: !!float ""', "'' is no float"),
        ("a.yaml", "a: !!timestamp x", "'x' is no timestamp"),
        ("a.yaml", "a: !!float 1:1:1.5", "numbers in base 60 are not read"),
        ("a.yaml", BOMB, "its aliases stand for more than 1,000,000 values and characters"),
        ("a.yaml", "".join(f"%TAG !{n}! x:\n" for n in range(20_000)) + "---\na: 1", "more than 100 times %TAG"),
        ("a.yaml", "a: " + "[" * 101 + "]" * 101, "nested too deeply: 100 levels are read"),
        ("a.json", '{"a":' * 2000 + "0" + "}" * 2000, "nested too deeply: 100 levels are read"),
        (
            "a.json",
            '{"apiVersion": "v1", "kind": "Service", "metadata": ' + '{"a":' * 100 + "0" + "}" * 101,
            "nested too deeply: 100 levels are read",
        ),
        ("a.json", '{"kind": "List", "items": [' * 101 + "]}" * 101, "nested too deeply: 100 levels are read"),
        ("a.json", "[]", "it holds something that is no object of the API"),
        ("a.yaml", "apiV", "it holds something that is no object of the API"),
        ("a.json", '{"a": 1' + "0" * 5000 + "}", "Exceeds the limit"),
    ],
)
async def test_a_document_that_cannot_be_read_keeps_what_the_file_held(
    tmp_path: Path, name: str, content: str, reason: str
) -> None:
    write(tmp_path, name, service("one"))
    async with following(tmp_path) as follower:
        (tmp_path / ".new").write_text(content)
        (tmp_path / ".new").replace(tmp_path / name)
        [line] = await kept(follower, {"default/one"})
        assert line["event"] == "manifest_unparsable"
        assert line["error"].startswith(reason)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("line_end", ["\n", "\r", "\x85", "\u2028"])
def test_directives_are_bounded_in_every_encoding(encoding: str, line_end: str) -> None:
    text = "".join(f"%TAG !{number}! x:{line_end}" for number in range(101)) + "---\na: 1\n"
    with pytest.raises(ParseError, match="more than 100 times %TAG"):
        parse(("\ufeff" + text).encode(encoding), is_json=False)
    with pytest.raises(ParseError, match="more than 100 times %TAG"):
        parse_yaml(text)


SURROGATE = json.loads('"\\ud800"')


@pytest.mark.parametrize(
    "bad",
    [
        {"\ud800": 1},
        {"metadata": {"name": "one", "creationTimestamp": SURROGATE}},
        {"metadata": {"name": f"one{SURROGATE}"}},
        {"metadata": {"name": "one", "annotations": {SURROGATE: ""}}},
        {"spec": {"clusterIP": SURROGATE}},
        {"spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80, "protocol": SURROGATE}]}},
    ],
    ids=str,
)
async def test_an_object_whose_text_is_not_utf8_is_refused_alone(tmp_path: Path, bad: dict[str, Any]) -> None:
    write(tmp_path, "a.json", service("one"))
    async with following(tmp_path) as follower:
        objects = [service("one", clusterIP="10.9.9.9") | bad, service("two")]
        write(tmp_path, "a.json", {"kind": "List", "items": objects})
        assert "default/two" in await follower.passes()
        [(kind, key, error)] = follower.sink.skips
        assert kind == "Service"
        assert (key + error).encode()
        if key == "default/one":
            assert follower.sink.objects["Service", key].spec.cluster_ip == "10.0.0.1"  # type: ignore[union-attr]


async def test_a_file_that_takes_long_does_not_keep_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def read(path: Path) -> bytes:
        if path.name == "long.yaml":
            assert go_on.wait(30)
        return documents.read_file(path)

    monkeypatch.setattr(manifests, "read_file", read)
    write(tmp_path, "a.yaml", service("one"))
    async with following(tmp_path, interval=0.05) as follower:
        write(tmp_path, "long.yaml", service("long"))
        assert await follower.passes() == {"default/one"}
        write(tmp_path, "b.yaml", service("two"))
        assert await follower.passes() == {"default/one", "default/two"}
        go_on.set()
        while "default/long" not in follower.sink.names:
            await follower.passes()


async def test_what_looks_meant_and_is_not_used_is_told_once(tmp_path: Path) -> None:
    endpoints = {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "one"}}
    old = {"apiVersion": "discovery.k8s.io/v1beta1", "kind": "EndpointSlice", "metadata": {"name": "one"}}
    small = {"apiVersion": "v1", "kind": "service", "metadata": {"name": "one"}}
    with capture_logs() as logs:
        write(tmp_path, "a.yaml", endpoints, endpoints, old, small, {"kind": "Pod"}, service("one"))
        async with following(tmp_path) as follower:
            write(tmp_path, "a.yaml", endpoints, old, small, service("two"))
            assert await follower.passes() == {"default/two"}
    assert [(line["event"], line["kind"]) for line in logs] == [
        ("manifest_object_ignored", "Endpoints"),
        ("manifest_object_ignored", "EndpointSlice"),
        ("manifest_object_ignored", "service"),
    ]
    assert "EndpointSlice" in logs[0]["remedy"]


async def test_null_is_absent_and_the_defaults_of_the_api_apply(tmp_path: Path) -> None:
    write(
        tmp_path,
        "a.yaml",
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "one", "namespace": None, "labels": None, "creationTimestamp": None},
            "spec": {
                "type": None,
                "clusterIP": "10.0.0.1",
                "ports": [{"name": None, "port": 80, "nodePort": None, "protocol": None}],
            },
            "status": {"loadBalancer": None},
        },
        endpoint_slice("one-x") | {"ports": [{"port": 8080}, {"name": None, "protocol": None, "port": 8081}]},
    )
    async with following(tmp_path) as follower:
        assert follower.sink.skips == []
        found = follower.sink.objects["Service", "default/one"]
        piece = follower.sink.objects["EndpointSlice", "default/one-x"]
    assert found.spec.type == "ClusterIP"  # type: ignore[union-attr]
    [port] = found.spec.ports  # type: ignore[union-attr]
    assert (port.name, port.port, port.node_port, port.protocol) == ("", 80, 0, "TCP")
    assert [(port.name, port.port, port.protocol) for port in piece.ports] == [  # type: ignore[union-attr]
        ("", 8080, "TCP"),
        ("", 8081, "TCP"),
    ]
