"""A pooler before Postgres that keeps to itself what a client asks of its session.

PgBouncer does so with what its `ignore_startup_parameters` names; else it refuses the client.
"""

import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import anyio
from anyio.abc import ByteStream, SocketAttribute

HOST = "127.0.0.1"
KEPT = (b"user", b"database")


@asynccontextmanager
async def pooler(url: str) -> AsyncGenerator[str]:
    """Stand before the server of a URL while the block runs; gives the URL that leads through the pooler."""
    server = urlsplit(url)

    async def carry(client: ByteStream) -> None:
        async with client, await anyio.connect_tcp(server.hostname or HOST, server.port or 0) as to:
            await to.send(_without_settings(await client.receive()))
            async with anyio.create_task_group() as pumps:
                pumps.start_soon(_pump, to, client)
                await _pump(client, to)
                pumps.cancel_scope.cancel()

    listener = await anyio.create_tcp_listener(local_host=HOST)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, carry)
        address = f"{HOST}:{listener.extra(SocketAttribute.local_port)}"  # noqa: S610 - not Django's
        login, _, _ = server.netloc.rpartition("@")
        yield server._replace(netloc=f"{login}@{address}", query="sslmode=disable").geturl()
        tasks.cancel_scope.cancel()


def _without_settings(startup: bytes) -> bytes:
    """A client's first message. Source: PostgreSQL manual, "Message Formats", StartupMessage."""
    words = startup[8:].split(b"\0")
    pairs = zip(words[::2], words[1::2], strict=False)
    body = b"".join(b"%b\0%b\0" % pair for pair in pairs if pair[0] in KEPT) + b"\0"
    return struct.pack("!I", 8 + len(body)) + startup[4:8] + body


async def _pump(source: ByteStream, sink: ByteStream) -> None:
    try:
        async for data in source:
            await sink.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):  # either side is gone
        await sink.aclose()
