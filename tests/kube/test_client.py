from __future__ import annotations

import asyncio
import base64
import gzip
import os
import select
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from kubernetes_asyncio.config import incluster_config

from ipvs_proxy import __version__
from ipvs_proxy.kube import client as client_module
from ipvs_proxy.kube.client import ConnectError, connect
from ipvs_proxy.kube.peers import Peer
from lab.certificates import make_authority
from tests.support.api_client import connected, fetch, server_tls, serving, write_kubeconfig


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    make_authority(directory, "first")
    make_authority(directory, "second")
    return directory


async def test_a_request_carries_the_token_the_query_and_the_headers(tmp_path: Path) -> None:
    async with serving() as server:
        path = write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{server.port}/prefix/", {"token": "secret"})
        async with connected(path) as client:
            assert await fetch(client, labelSelector="!a/b,c=d e") == b"hello"
    request = server.requests[0]
    assert request.path == "/prefix/api/v1/services"
    assert dict(request.query) == {"labelSelector": "!a/b,c=d e"}
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers["Accept"] == "application/json;drop=metadata.managedFields, application/json;q=0.9"
    assert request.headers["Accept-Encoding"] == "gzip"
    assert request.headers["User-Agent"] == f"ipvs-proxy/{__version__}"


async def test_the_answer_comes_whatever_its_status(tmp_path: Path) -> None:
    async def gone(_: web.Request) -> web.StreamResponse:
        return web.Response(status=410, text="gone", headers={"Retry-After": "7"})

    async with serving() as server, connected(master=f"http://127.0.0.1:{server.port}") as client:
        server.answer = gone
        async with client.get("/x", {}, inactivity=5) as response:
            assert (response.status, response.headers["retry-after"]) == (410, "7")
            assert await response.read(1000) == b"gone"


async def test_chunks_arrive_while_the_answer_is_still_going_on() -> None:
    go_on = asyncio.Event()

    async def watch(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one\n")
        await go_on.wait()
        await response.write(b"two\n")
        return response

    async with serving() as server, connected(master=f"http://127.0.0.1:{server.port}") as client:
        server.answer = watch
        async with client.get("/x", {"watch": "1"}, inactivity=5) as response:
            chunks = response.chunks()
            assert await anext(chunks) == b"one\n"
            go_on.set()
            assert b"".join([chunk async for chunk in chunks]) == b"two\n"


async def test_a_compressed_answer_is_decompressed() -> None:
    async def compressed(_: web.Request) -> web.StreamResponse:
        return web.Response(body=gzip.compress(b"x" * 100_000), headers={"Content-Encoding": "gzip"})

    async with serving() as server, connected(master=f"http://127.0.0.1:{server.port}") as client:
        server.answer = compressed
        async with client.get("/x", {}, inactivity=5) as response:
            assert b"".join([chunk async for chunk in response.chunks()]) == b"x" * 100_000


async def test_each_flush_of_a_compressed_watch_is_a_gzip_member_of_its_own() -> None:
    """So do API servers from 1.37 on; aiohttp before 3.14 gives the first member and drops the others."""
    lines = [f"event {number}\n".encode() * 1000 for number in range(3)]

    async def watch(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Encoding": "gzip"})
        await response.prepare(request)
        for line in lines:
            await response.write(gzip.compress(line))
        return response

    async with serving() as server:
        server.answer = watch
        async with (
            connected(master=f"http://127.0.0.1:{server.port}") as client,
            client.get("/api/v1/services", {"watch": "1"}, inactivity=5) as response,
        ):
            assert b"".join([chunk async for chunk in response.chunks()]) == b"".join(lines)


@pytest.mark.parametrize("code", [200, 500])
async def test_of_a_compressed_answer_of_400_megabytes_no_more_is_read_than_is_wanted(code: int) -> None:
    """It takes 400 KB on the wire. The answer comes in pieces, and a refusal is read at its beginning."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(packer.compress(b" " * 2**20) for _ in range(400)) + packer.flush()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=code, body=packed, headers={"Content-Encoding": "gzip"})

    async with serving() as server:
        server.answer = answer
        async with (
            connected(master=f"http://127.0.0.1:{server.port}") as client,
            client.get("/", {}, inactivity=10) as response,
        ):
            tracemalloc.start()
            try:
                size = len(await response.read(2048))
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert size == 2048
    assert peak < 2**24, f"{peak / 2**20:.0f} MiB"


async def test_a_silent_server_ends_the_reading() -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(30)
        return response

    async with serving() as server, connected(master=f"http://127.0.0.1:{server.port}") as client:
        server.answer = silent
        with pytest.raises(TimeoutError):
            async with client.get("/x", {}, inactivity=0.1) as response:
                await response.read(1000)


async def test_a_redirect_is_not_followed() -> None:
    async def redirect(_: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/elsewhere")

    async with serving() as server, connected(master=f"http://127.0.0.1:{server.port}") as client:
        server.answer = redirect
        async with client.get("/x", {}, inactivity=5) as response:
            assert response.status == 302
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("method", "content_type"), [("POST", "application/json"), ("PATCH", "application/merge-patch+json")]
)
async def test_a_write_carries_the_token_and_the_body(tmp_path: Path, method: Any, content_type: str) -> None:
    bodies = []

    async def created(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.read())
        return web.Response(status=201, text="x" * 10_000)

    async with serving() as server:
        server.answer = created
        path = write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{server.port}", {"token": "secret"})
        async with connected(path) as client:
            assert await client.send(method, "/apis/x%2Fy", b'{"a": 1}') == (201, "x" * client_module.MESSAGE_SIZE)
    (request,) = server.requests
    assert (request.method, request.raw_path, bodies) == (method, "/apis/x%2Fy", [b'{"a": 1}'])
    assert request.headers["Content-Type"] == content_type
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers["User-Agent"] == f"ipvs-proxy/{__version__}"


@pytest.mark.parametrize(("statuses", "end"), [((401, 201), 201), ((401, 401), 401), ((403,), 403)])
async def test_a_write_whose_credentials_are_refused_is_tried_once_more_with_new_ones(
    tmp_path: Path, statuses: tuple[int, ...], end: int
) -> None:
    left = list(statuses)

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=left.pop(0))

    async with serving() as server:
        server.answer = answer
        user = write_plugin(tmp_path, '{\\"token\\": \\"token-$n\\"}')
        path = write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{server.port}", user)
        async with connected(path) as client:
            assert (await client.send("POST", "/x", b"{}")).status == end
    assert left == []
    assert [token and token.strip() for token in server.tokens] == [
        f"Bearer token-{number + 1}" for number in range(len(statuses))
    ]


async def test_the_master_overrides_the_server_of_the_kubeconfig(tmp_path: Path) -> None:
    async with serving() as server:
        path = write_kubeconfig(tmp_path / "config", "http://127.0.0.1:1", {"token": "secret"})
        async with connected(path, f"http://127.0.0.1:{server.port}/") as client:
            await fetch(client)
    assert server.tokens == ["Bearer secret"]


def write_plugin(directory: Path, status: str) -> dict[str, Any]:
    """Write an exec plugin that counts its runs in ``runs``."""
    script = directory / "plugin.sh"
    script.write_text(
        "#!/bin/sh\n"
        f"echo run >> {directory}/runs\n"
        f"[ ! -e {directory}/broken ] || {{ echo no luck >&2; exit 3; }}\n"
        f"n=$(wc -l < {directory}/runs)\n"
        'echo "{\\"apiVersion\\": \\"client.authentication.k8s.io/v1\\", \\"kind\\": \\"ExecCredential\\",'
        f' \\"status\\": {status}}}"\n'
    )
    script.chmod(0o755)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script)}}


def runs(directory: Path) -> int:
    return len((directory / "runs").read_text().splitlines())


async def test_an_exec_plugin_gives_the_token_and_is_run_again_only_to_reauthenticate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "CREDENTIALS_AGE", 0.0)
    user = write_plugin(tmp_path, '{\\"token\\": \\"token-$n\\"}')
    async with serving() as server:
        path = write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{server.port}", user)
        async with connected(path) as client:
            await fetch(client)
            await fetch(client)
            await client.reauthenticate()
            await fetch(client)
    assert [token and token.strip() for token in server.tokens] == [
        "Bearer token-1",
        "Bearer token-1",
        "Bearer token-2",
    ]


async def test_an_exec_plugin_is_run_again_when_its_token_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "CREDENTIALS_AGE", 0.0)
    expired = '{\\"token\\": \\"token-$n\\", \\"expirationTimestamp\\": \\"2020-01-01T00:00:00Z\\"}'
    async with serving() as server:
        path = write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{server.port}", write_plugin(tmp_path, expired))
        async with connected(path) as client:
            await fetch(client)
    assert server.tokens == ["Bearer token-2"]


async def test_reauthenticating_at_the_same_time_runs_the_plugin_once(tmp_path: Path) -> None:
    user = write_plugin(tmp_path, '{\\"token\\": \\"token-$n\\"}')
    async with connected(write_kubeconfig(tmp_path / "config", "http://127.0.0.1:1", user)) as client:
        await asyncio.gather(*(client.reauthenticate() for _ in range(3)))
    assert runs(tmp_path) == 2


async def test_a_failing_plugin_keeps_the_old_credentials(tmp_path: Path) -> None:
    user = write_plugin(tmp_path, '{\\"token\\": \\"token-$n\\"}')
    async with serving() as server:
        path = write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{server.port}", user)
        async with connected(path) as client:
            (tmp_path / "broken").touch()
            with pytest.raises(ConnectError, match=r"process returned 3\. no luck"):
                await client.reauthenticate()
            await fetch(client)
    assert server.tokens == ["Bearer token-1"]


@pytest.mark.parametrize("end", ["exec sleep 60", "exit 0"], ids=["it hangs", "its helper hangs"])
async def test_a_plugin_that_hangs_is_given_up_and_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(client_module, "PLUGIN_TIMEOUT", 0.5)
    # Its helper keeps the output open when the plugin itself has ended.
    arguments = ["-c", f"sleep 60 & echo $! >{tmp_path}/helper; echo $$ >{tmp_path}/pid; {end}"]
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": arguments}}
    path = write_kubeconfig(tmp_path / "config", "http://127.0.0.1:1", user)
    with pytest.raises(ConnectError, match=r"credential plugin did not end in 0\.5 s"):
        await connect(kubeconfig=str(path), master="")
    for name in ("pid", "helper"):
        with suppress(ProcessLookupError):
            ended, _, _ = select.select([os.pidfd_open(int((tmp_path / name).read_text()))], [], [], 5)
            assert ended, f"the plugin's process ({name}) still runs"


async def test_a_token_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("old\n")
    async with serving() as server:
        path = write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{server.port}", {"tokenFile": "token"})
        async with connected(path) as client:
            await fetch(client)
            (tmp_path / "token").write_text("new\n")
            await fetch(client)
            monkeypatch.setattr(client_module, "CREDENTIALS_AGE", 0.0)
            await fetch(client)
            path.unlink()
            await fetch(client)
    assert server.tokens == ["Bearer old", "Bearer old", "Bearer new", "Bearer new"]


@pytest.fixture
def pod(certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a pod; the service account is in the directory that is given."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    (tmp_path / "token").write_text("old\n")
    (tmp_path / "ca.crt").write_bytes((certificates / "first.crt").read_bytes())
    defaults = incluster_config.load_incluster_config

    def load(**arguments: Any) -> None:
        defaults(token_filename=str(tmp_path / "token"), cert_filename=str(tmp_path / "ca.crt"), **arguments)

    monkeypatch.setattr("kubernetes_asyncio.config.load_incluster_config", load)
    return tmp_path


async def test_in_a_pod_the_service_account_is_used_and_its_token_rotates(
    pod: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(server_tls(certificates, "first")) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        async with connected() as client:
            await fetch(client)
            (pod / "token").write_text("new\n")
            await client.reauthenticate()
            await fetch(client)
    assert server.tokens == ["Bearer old", "Bearer new"]


async def test_a_new_ca_makes_a_new_session(tmp_path: Path, certificates: Path) -> None:
    (tmp_path / "ca.crt").write_bytes((certificates / "second.crt").read_bytes())
    async with serving(server_tls(certificates, "first")) as server:
        path = write_kubeconfig(
            tmp_path / "config",
            f"https://127.0.0.1:{server.port}",
            {"token": "secret"},
            **{"certificate-authority": "ca.crt"},
        )
        async with connected(path) as client:
            with pytest.raises(OSError, match="certificate verify failed"):
                await fetch(client)
            (tmp_path / "ca.crt").write_bytes((certificates / "first.crt").read_bytes())
            await client.reauthenticate()
            assert await fetch(client) == b"hello"


async def test_a_new_session_ends_the_requests_under_way_as_a_lost_connection_does(tmp_path: Path) -> None:
    async def wait(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    async with serving() as old, serving() as new:
        old.answer = wait
        config = write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{old.port}", {"token": "secret"})
        async with connected(config) as client:
            under_way = [asyncio.create_task(fetch(client)) for _ in range(3)]
            async with asyncio.timeout(10):
                while len(old.requests) < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            write_kubeconfig(config, f"http://127.0.0.1:{new.port}", {"token": "secret"})
            under_way.append(asyncio.create_task(fetch(client)))
            await client.reauthenticate()
            ends = await asyncio.gather(*under_way, return_exceptions=True)
            assert all(isinstance(end, aiohttp.ClientError | bytes) for end in ends), ends
            assert await fetch(client) == b"hello"


async def test_it_is_known_where_connections_lead_before_they_are_there(tmp_path: Path) -> None:
    async with serving() as server:
        there = Peer(bytes((127, 0, 0, 1)), server.port)

        async def answer(request: web.Request) -> web.StreamResponse:
            assert there in client.peers.known()
            return web.Response(text="hello")

        server.answer = answer
        async with connected(master=f"http://localhost:{server.port}") as client:
            assert not client.peers.known()
            client.peers.tried.clear()
            await fetch(client)
            assert client.peers.tried.is_set()
        # The loopback address of the other family may have been tried first.
        assert there in client.peers.known()


@pytest.mark.parametrize("is_bulk", [True, False], ids=["a list", "a watch"])
@pytest.mark.parametrize("encrypted", [True, False], ids=["TLS", "plain"])
async def test_an_answer_that_is_still_coming_ends_when_the_session_is_renewed(
    tmp_path: Path, certificates: Path, is_bulk: bool, encrypted: bool
) -> None:
    tls = server_tls(certificates, "first") if encrypted else None
    scheme = "https" if encrypted else "http"
    authority = {"certificate-authority": str(certificates / "first.crt")} if encrypted else {}
    async with serving(tls) as server, serving(tls) as successor:

        async def begin(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"first")
            await asyncio.sleep(30)
            return response

        server.answer = begin
        path = write_kubeconfig(tmp_path / "config", f"{scheme}://127.0.0.1:{server.port}", {"token": "x"}, **authority)
        async with connected(path) as client, client.get("/api/v1/services", {}, inactivity=20) as response:
            pieces = response.chunks(is_bulk=lambda: is_bulk)
            assert await anext(pieces) == b"first"
            following = asyncio.ensure_future(anext(pieces))
            await asyncio.sleep(0.03)
            url = f"{scheme}://127.0.0.1:{successor.port}"
            write_kubeconfig(path, url, {"token": "x"}, **authority, **{"tls-server-name": "api.example"})
            await client.reauthenticate()
            with pytest.raises((aiohttp.ClientError, ConnectionError)):
                await asyncio.wait_for(following, 5)
            assert await fetch(client) == b"hello"


async def test_a_client_certificate_in_the_kubeconfig_is_used_and_leaves_no_file(
    tmp_path: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    def data(name: str) -> str:
        return base64.b64encode((certificates / name).read_bytes()).decode()

    user = {"client-certificate-data": data("second-leaf.crt"), "client-key-data": data("second-leaf.key")}
    async with serving(server_tls(certificates, "first", client_ca="second")) as server:
        path = write_kubeconfig(
            tmp_path / "config",
            f"https://127.0.0.1:{server.port}",
            user,
            **{"certificate-authority-data": data("first.crt")},
        )
        async with connected(path) as client:
            await fetch(client)
            await client.reauthenticate()
            await fetch(client)
            assert list(scratch.iterdir()) == []
    # The session was kept, and with it the connection.
    assert len(set(server.peers)) == 1


@pytest.mark.parametrize(("name", "trusted"), [("api.example", True), ("other.example", False)])
async def test_the_tls_server_name_is_what_the_certificate_is_checked_for(
    tmp_path: Path, certificates: Path, name: str, trusted: bool
) -> None:
    async with serving(server_tls(certificates, "first")) as server:
        path = write_kubeconfig(
            tmp_path / "config",
            f"https://127.0.0.1:{server.port}",
            {"token": "secret"},
            **{"certificate-authority": str(certificates / "first.crt"), "tls-server-name": name},
        )
        async with connected(path) as client:
            if trusted:
                assert await fetch(client) == b"hello"
            else:
                with pytest.raises(OSError, match="certificate verify failed"):
                    await fetch(client)


async def test_verification_can_be_turned_off(tmp_path: Path, certificates: Path) -> None:
    async with serving(server_tls(certificates, "first")) as server:
        url = f"https://127.0.0.1:{server.port}"
        path = write_kubeconfig(tmp_path / "config", url, {"token": "s"}, **{"insecure-skip-tls-verify": True})
        async with connected(path) as client:
            assert await fetch(client) == b"hello"


async def test_requests_go_through_the_proxy_of_the_kubeconfig(tmp_path: Path) -> None:
    async with serving() as proxy:
        path = write_kubeconfig(
            tmp_path / "config",
            "http://api.example:8080",
            {"token": "s"},
            **{"proxy-url": f"http://127.0.0.1:{proxy.port}"},
        )
        async with connected(path) as client:
            assert await fetch(client) == b"hello"
            assert client.peers.known() == {Peer(bytes((127, 0, 0, 1)), proxy.port)}
    assert proxy.requests[0].headers["Host"] == "api.example:8080"


def mangle(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (Path.unlink, r"No such file or directory; give a readable file with --kubeconfig"),
        (lambda path: path.write_text("a: b\nc: [\n"), r"line 3: not YAML"),
        (lambda path: path.write_text(""), r"no current-context"),
        (lambda path: mangle(path, lambda c: c["contexts"].clear()), r"Expected object with name here"),
        (lambda path: mangle(path, lambda c: c["users"].clear()), r"user of its current-context is not among"),
        (lambda path: mangle(path, lambda c: c["clusters"][0]["cluster"].clear()), r"malformed"),
        (lambda path: mangle(path, lambda c: c["clusters"][0]["cluster"].update({"server": ""})), r"no server"),
        (
            lambda path: mangle(
                path, lambda c: c["clusters"][0]["cluster"].update({"certificate-authority": "no.crt"})
            ),
            r"no\.crt",
        ),
        (
            lambda path: mangle(
                path, lambda c: c["clusters"][0]["cluster"].update({"certificate-authority": "config"})
            ),
            r"not valid PEM",
        ),
        (lambda path: mangle(path, lambda c: c["users"][0].update(user={"tokenFile": "nowhere"})), r"nowhere"),
        (
            lambda path: mangle(
                path, lambda c: c["users"][0].update(user={"exec": {"apiVersion": "v1", "command": "/no/plugin"}})
            ),
            r"/no/plugin",
        ),
    ],
)
async def test_a_bad_kubeconfig_is_told_in_one_line(tmp_path: Path, spoil: Callable[[Path], object], told: str) -> None:
    path = write_kubeconfig(tmp_path / "config", "https://127.0.0.1:1", {"token": "secret"})
    spoil(path)
    with pytest.raises(ConnectError, match=told) as caught:
        await connect(kubeconfig=str(path), master="")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_outside_of_a_pod_the_options_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(
        ConnectError, match=r"no service account of a pod .*--kubeconfig FILE, or --manifests DIRECTORY"
    ):
        await connect(kubeconfig="", master="")


async def test_a_master_without_scheme_is_refused() -> None:
    with pytest.raises(ConnectError, match=r"--master 10\.0\.0\.1:6443 is not a URL; give it as https://HOST:PORT"):
        await connect(kubeconfig="", master="10.0.0.1:6443")


def test_importing_the_module_does_not_import_the_library() -> None:
    code = "import sys, ipvs_proxy.kube.client; sys.exit('kubernetes_asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, timeout=30, check=False).returncode == 0
