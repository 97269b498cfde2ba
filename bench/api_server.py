"""An API server on loopback with a fixed cluster: streaming lists, bookmarks, and watches that stay open.

``python -m bench.api_server PORT SERVICES ENDPOINTS [CERTIFICATE KEY]`` prints ``ready`` when it listens, over TLS with
a certificate. Everything is made before that, so that a request costs the server no more than writing bytes.

What reaches the agent is cut as Go's server cuts it: each event is a chunk, as it is flushed, and what fills the buffer
of a connection is written. The server has the lowest priority: an agent that asks for it is woken for every piece, as
when they come from another machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from collections.abc import Iterable

from bench.cluster import objects
from bench.managed import Json

#: Bytes written at once, which with TLS are one record: net/http's buffer of a connection.
RECORD = 4096
PATHS = {"Service": "/api/v1/services", "EndpointSlice": "/endpointslices", "Node": "/api/v1/nodes"}
_VERSIONS = {"Service": "v1", "EndpointSlice": "discovery.k8s.io/v1", "Node": "v1"}
_BOOKMARK = {
    "metadata": {"resourceVersion": "1000000", "annotations": {"k8s.io/initial-events-end": "true"}},
}


def streams(items: Iterable[Json]) -> dict[str, bytes]:
    """Return the body of each kind's streaming list: an ADDED event for each object, then the bookmark."""
    found: dict[str, list[str]] = {kind: [] for kind in PATHS}
    for item in items:
        found[item["kind"]].append(json.dumps({"type": "ADDED", "object": item}, separators=(",", ":")))
    for kind, lines in found.items():
        bookmark = {"kind": kind, "apiVersion": _VERSIONS[kind], **_BOOKMARK}
        lines.append(json.dumps({"type": "BOOKMARK", "object": bookmark}))
    return {kind: "".join(line + "\n" for line in lines).encode() for kind, lines in found.items()}


def chunked(body: bytes) -> bytes:
    """Return a body as HTTP transfers it in chunks: each line is one."""
    return b"".join(b"%x\r\n%s\r\n" % (len(line), line) for line in body.splitlines(keepends=True))


async def serve(port: int, bodies: dict[str, bytes], tls: ssl.SSLContext | None = None) -> None:
    """Answer for ever."""
    for_ever = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ", 2)[1].decode()
                kind = next((kind for kind, part in PATHS.items() if part in path), None)
                if kind is None:
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")
                    continue
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
                await _write(writer, memoryview(bodies[kind] if "sendInitialEvents" in path else b""))
                await for_ever.wait()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, ssl=tls)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.serve_forever()


async def _write(writer: asyncio.StreamWriter, body: memoryview) -> None:
    for start in range(0, len(body), RECORD):
        writer.write(bytes(body[start : start + RECORD]))
        await writer.drain()


def certified(certificate: str, key: str) -> ssl.SSLContext:
    """Return the settings of a server that shows a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


if __name__ == "__main__":
    PORT, SERVICES, ENDPOINTS = map(int, sys.argv[1:4])
    TLS = certified(*sys.argv[4:6]) if len(sys.argv) > 4 else None
    BODIES = {kind: chunked(body) for kind, body in streams(objects(SERVICES, ENDPOINTS)).items()}
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    asyncio.run(serve(PORT, BODIES, TLS))
