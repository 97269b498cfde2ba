"""An API server on loopback with a fixed cluster: streaming lists, bookmarks, and watches that stay open.

``python -m bench.api_server PORT SERVICES ENDPOINTS`` prints ``ready`` when it listens. Everything is made before that,
so that a request costs the server no more than writing bytes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable
from typing import Any

from bench.cluster import objects

PIECE = 64 * 1024
PATHS = {"Service": "/api/v1/services", "EndpointSlice": "/endpointslices", "Node": "/api/v1/nodes"}
_VERSIONS = {"Service": "v1", "EndpointSlice": "discovery.k8s.io/v1", "Node": "v1"}
_BOOKMARK = {
    "metadata": {"resourceVersion": "1000000", "annotations": {"k8s.io/initial-events-end": "true"}},
}


def streams(items: Iterable[dict[str, Any]]) -> dict[str, bytes]:
    """Return the body of each kind's streaming list: an ADDED event for each object, then the bookmark."""
    found: dict[str, list[str]] = {kind: [] for kind in PATHS}
    for item in items:
        found[item["kind"]].append(json.dumps({"type": "ADDED", "object": item}, separators=(",", ":")))
    for kind, lines in found.items():
        bookmark = {"kind": kind, "apiVersion": _VERSIONS[kind], **_BOOKMARK}
        lines.append(json.dumps({"type": "BOOKMARK", "object": bookmark}))
    return {kind: "".join(line + "\n" for line in lines).encode() for kind, lines in found.items()}


async def serve(port: int, bodies: dict[str, bytes]) -> None:
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
                body = bodies[kind] if "sendInitialEvents" in path else b""
                for start in range(0, len(body), PIECE):
                    piece = body[start : start + PIECE]
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    await writer.drain()
                await for_ever.wait()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    PORT, SERVICES, ENDPOINTS = map(int, sys.argv[1:4])
    asyncio.run(serve(PORT, streams(objects(SERVICES, ENDPOINTS))))
