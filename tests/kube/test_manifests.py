"""Objects from a directory of files, which is followed: what is read of it, and what is told of what cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from ipvs_proxy.kube.documents import ParseError
from ipvs_proxy.kube.manifests import ManifestsError, follow_manifests, parse
from ipvs_proxy.kube.objects import EndpointSlice, Service
from tests.support.manifests import Recorder, endpoint_slice, following, node, service, write

INTERVAL = 0.01


async def test_objects_of_all_files_and_documents_are_handed_on(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", service("one"), endpoint_slice("one-x"), node("here"))
    write(tmp_path, "b.yml", service("two", "shop"))
    write(tmp_path, "c.json", service("three"))
    write(tmp_path, "d.txt", service("four"))
    write(tmp_path, ".e.yaml", service("five"))
    async with following(tmp_path) as follower:
        assert set(follower.sink.objects) == {
            ("Service", "default/one"),
            ("EndpointSlice", "default/one-x"),
            ("Node", "here"),
            ("Service", "shop/two"),
            ("Service", "default/three"),
        }
        two = follower.sink.objects["Service", "shop/two"]
        assert isinstance(two, Service)
        assert two.spec.cluster_ip == "10.0.0.1"


async def test_an_empty_directory_syncs_all_kinds(tmp_path: Path) -> None:
    async with following(tmp_path) as follower:
        assert sorted(follower.sink.kinds_synced) == ["EndpointSlice", "Node", "Service"]
        await follower.passes(2)
        assert len(follower.sink.kinds_synced) == 3
        assert follower.sink.changes == []


@pytest.mark.parametrize(
    "document",
    [
        {"apiVersion": "v1", "kind": "List", "items": [service("one"), service("two")]},
        {
            "apiVersion": "v1",
            "kind": "ServiceList",
            "items": [{k: v for k, v in service(n).items() if k in ("metadata", "spec")} for n in ("one", "two")],
        },
        {"kind": "List", "items": [{"kind": "List", "items": [service("one")]}, service("two"), None, "x"]},
    ],
)
@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
async def test_lists_are_unfolded(tmp_path: Path, name: str, document: dict[str, Any]) -> None:
    write(tmp_path, name, document)
    async with following(tmp_path) as follower:
        assert follower.sink.names == {"default/one", "default/two"}


async def test_what_kubectl_prints_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        """\
apiVersion: v1
items:
- apiVersion: v1
  kind: Service
  metadata:
    creationTimestamp: "2026-01-01T00:00:00Z"
    name: quoted
    namespace: default
    resourceVersion: "17"
  spec: {clusterIP: 10.0.0.1}
- apiVersion: v1
  kind: Service
  metadata:
    creationTimestamp: 2026-01-01T00:00:00Z
    name: plain
  spec: {clusterIP: 10.0.0.2}
kind: List
metadata:
  resourceVersion: ""
"""
    )
    async with following(tmp_path) as follower:
        assert follower.sink.skips == []
        moments = {thing.metadata.creation_timestamp for thing in follower.sink.objects.values()}
        assert [moment and moment.isoformat() for moment in moments] == ["2026-01-01T00:00:00+00:00"]
        assert follower.sink.names == {"default/quoted", "default/plain"}


@pytest.mark.parametrize(
    "left_out",
    [
        service("x", labels={"service.kubernetes.io/service-proxy-name": "other"}),
        service("x", clusterIP="None"),
        endpoint_slice("x", {"service.kubernetes.io/headless": ""}),
        node("there"),
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}},
        {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "x"}},
    ],
)
async def test_the_selectors_of_the_api_apply(tmp_path: Path, left_out: dict[str, Any]) -> None:
    write(tmp_path, "a.yaml", left_out, service("one"))
    async with following(tmp_path) as follower:
        assert follower.sink.names == {"default/one"}
        assert follower.sink.skips == []


async def test_changes_are_followed(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", service("one"), service("same"))
    async with following(tmp_path) as follower:
        write(tmp_path, "a.yaml", service("one", clusterIP="10.0.0.9"), service("same"))
        write(tmp_path, "b.yaml", service("two"))
        before = len(follower.sink.changes)
        assert await follower.passes() == {"default/one", "default/same", "default/two"}
        one = follower.sink.objects["Service", "default/one"]
        assert isinstance(one, Service)
        assert one.spec.cluster_ip == "10.0.0.9"
        assert len(follower.sink.changes) - before == 2
        (tmp_path / "a.yaml").unlink()
        assert await follower.passes() == {"default/two"}


async def test_an_edited_object_is_followed_although_its_resource_version_stays(tmp_path: Path) -> None:
    first = service("one")
    first["metadata"]["resourceVersion"] = "17"
    second = service("one", clusterIP="10.0.0.9")
    second["metadata"]["resourceVersion"] = "17"
    write(tmp_path, "a.yaml", first)
    async with following(tmp_path) as follower:
        write(tmp_path, "a.yaml", second)
        await follower.passes()
        one = follower.sink.objects["Service", "default/one"]
        assert isinstance(one, Service)
        assert one.spec.cluster_ip == "10.0.0.9"


async def test_the_symlink_swap_of_a_volume_is_followed(tmp_path: Path) -> None:
    for version, name in (("..1", "one"), ("..2", "two")):
        (tmp_path / version).mkdir()
        write(tmp_path / version, "a.yaml", service(name))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    async with following(tmp_path) as follower:
        assert follower.sink.names == {"default/one"}
        (tmp_path / "..new").symlink_to("..2")
        (tmp_path / "..new").replace(tmp_path / "..data")
        assert await follower.passes() == {"default/two"}


async def test_a_file_written_in_place_is_read_when_it_stands_still(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    write(tmp_path, "a.yaml", service("one"), service("two"))
    content = path.read_text()
    async with following(tmp_path) as follower:
        path.write_text("")
        assert len(await follower.passes()) == 2
        path.write_text(content[: content.index("---")])
        assert len(await follower.passes()) == 2
        path.write_text(content + "---\n" + yaml.safe_dump(service("three")))
        assert len(await follower.passes()) == 2
        assert await follower.passes() == {"default/one", "default/two", "default/three"}
        assert all(change.new is not None for change in follower.sink.changes)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.yaml", b"kind: Service\nmetadata: {name: x\n", 3),
        ("a.yaml", b"a: b\n\tc: d\n", 2),
        ("a.yaml", b"a: \xff\xfe", 0),
        ("a.yaml", b"a: \x00", 0),
        ("a.yaml", b"a: *nowhere\n", 1),
        ("a.yaml", b"a: !!python/object:os.system {}\n", 1),
        ("a.json", b'{"kind": "List",\n "items": [', 2),
        ("a.json", b"", 1),
        ("a.json", b"\xff\xfe\xfd", 0),
        ("a.json", b"[" * 100_000, 0),
        ("a.yaml", b"[" * 100_000 + b"]" * 100_000, 0),
        ("a.yaml", b"- " * 100_000, 0),
        ("a.yaml", b"\n".join(b" " * n + b"a:" for n in range(5_000)), 0),
    ],
)
def test_what_does_not_parse_tells_the_line(name: str, content: bytes, line: int) -> None:
    with pytest.raises(ParseError) as caught:
        parse(content, is_json=name.endswith("json"))
    assert caught.value.line == line
    assert str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_broken_file_keeps_its_objects_and_is_told_once_for_each_content(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", service("one"))
    async with following(tmp_path) as follower:
        with capture_logs() as logs:
            for content in ("a: [\n", "a: [\n", "b: [\n"):
                (tmp_path / ".new").write_text(content)
                (tmp_path / ".new").replace(tmp_path / "a.yaml")
                assert await follower.passes(3) == {"default/one"}
        assert [(entry["event"], entry["file"], entry["line"]) for entry in logs] == [
            ("manifest_unparsable", str(tmp_path / "a.yaml"), 2)
        ] * 2
        write(tmp_path, "a.yaml", service("two"))
        assert await follower.passes() == {"default/two"}


async def test_an_unreadable_file_is_told_once_and_read_as_soon_as_it_can_be(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", service("one"))
    async with following(tmp_path) as follower:
        with capture_logs() as logs:
            # Reading it fails with EIO, for root too.
            (tmp_path / ".new").symlink_to("/proc/self/mem")
            (tmp_path / ".new").replace(tmp_path / "a.yaml")
            assert await follower.passes(3) == {"default/one"}
        write(tmp_path, "a.yaml", service("two"))
        assert await follower.passes() == {"default/two"}
    assert [(entry["event"], entry["error"]) for entry in logs] == [("manifest_unreadable", "Input/output error")]


async def test_one_bad_object_does_not_harm_the_others(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", service("one"), service("two"))
    async with following(tmp_path) as follower:
        bad = service("one", ports=[{"port": "http"}])
        write(tmp_path, "a.yaml", bad, service("two", clusterIP="10.0.0.2"), service("three"))
        assert await follower.passes(3) == {"default/one", "default/two", "default/three"}
        [(kind, key, error)] = follower.sink.skips
        assert (kind, key) == ("Service", "default/one")
        assert str(tmp_path / "a.yaml") in error
        one = follower.sink.objects["Service", "default/one"]
        assert isinstance(one, Service)
        assert one.spec.ports is not None


@pytest.mark.parametrize(
    "garbage",
    [
        {"apiVersion": "v1", "kind": "Service"},
        {"apiVersion": "v1", "kind": "Service", "metadata": []},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": 7}},
        {"apiVersion": "v1", "kind": ["Service"]},
        {"apiVersion": "v1", "kind": "List", "items": 3},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x", 1: 2}, "spec": {"ports": 1}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x", "creationTimestamp": "yesterday"}},
        {},
    ],
)
async def test_garbage_does_not_harm_the_others(tmp_path: Path, garbage: dict[Any, Any]) -> None:
    write(tmp_path, "a.yaml", garbage, service("one"))
    async with following(tmp_path) as follower:
        assert follower.sink.names == {"default/one"}


async def test_the_later_file_wins_and_it_is_told_once(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", service("one", clusterIP="10.0.0.1"))
    write(tmp_path, "b.yaml", service("one", clusterIP="10.0.0.2"))
    with capture_logs() as logs:
        async with following(tmp_path) as follower:
            one = follower.sink.objects["Service", "default/one"]
            assert isinstance(one, Service)
            assert one.spec.cluster_ip == "10.0.0.2"
            write(tmp_path, "c.yaml", service("two"))
            await follower.passes()
            (tmp_path / "b.yaml").unlink()
            await follower.passes()
            one = follower.sink.objects["Service", "default/one"]
            assert isinstance(one, Service)
            assert one.spec.cluster_ip == "10.0.0.1"
    assert [entry for entry in logs if entry["event"] == "manifest_object_twice"] == [
        {
            "event": "manifest_object_twice",
            "log_level": "warning",
            "kind": "Service",
            "object": "default/one",
            "used": "b.yaml",
            "ignored": "a.yaml",
        }
    ]


@pytest.mark.parametrize("make", [lambda path: None, Path.touch])
async def test_a_missing_directory_ends_the_start(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x")
    with pytest.raises(ManifestsError, match=r"cannot read the manifests in .*/x: .*directory"):
        await follow_manifests(tmp_path / "x", "here", Recorder())


async def test_a_directory_that_vanishes_keeps_its_objects(tmp_path: Path) -> None:
    directory = tmp_path / "manifests"
    directory.mkdir()
    write(directory, "a.yaml", service("one"))
    async with following(directory) as follower:
        with capture_logs() as logs:
            directory.rename(tmp_path / "elsewhere")
            assert await follower.passes(3) == {"default/one"}
        assert [entry["event"] for entry in logs] == ["manifests_unreadable"]
        directory.mkdir()
        assert await follower.passes(3) == {"default/one"}
        write(directory, "b.yaml", service("two"))
        assert await follower.passes() == {"default/two"}


async def test_the_directory_is_looked_at_again_after_the_interval(tmp_path: Path) -> None:
    sink = Recorder()
    task = asyncio.create_task(follow_manifests(tmp_path, "here", sink, interval=INTERVAL))
    try:
        async with asyncio.timeout(10):
            while not sink.kinds_synced:  # noqa: ASYNC110  another task fills it
                await asyncio.sleep(INTERVAL)
            write(tmp_path, "a.yaml", endpoint_slice("one"))
            while not sink.objects:  # noqa: ASYNC110
                await asyncio.sleep(INTERVAL)
    finally:
        task.cancel()
    assert isinstance(sink.objects["EndpointSlice", "default/one"], EndpointSlice)
