"""What may stand between a worker and a server: a pooler that ignores settings, TLS, who hides its end."""

import ssl
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import anyio
import trustme
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSStream

NAME = "localhost"
WITH_TLS = {"redis": "rediss", "http": "https", "postgresql": "postgresql"}
#: A client of Postgres asks for TLS first. Source: PostgreSQL manual, "Message Formats", SSLRequest.
ASKS_FOR_TLS = bytes.fromhex("0000000804d2162f")
KEPT = (b"user", b"database")
GONE = (
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.EndOfStream,
    anyio.IncompleteRead,
    ssl.SSLError,
)


@asynccontextmanager
async def pooler(url: str) -> AsyncGenerator[str]:
    """A pooler before Postgres that keeps to itself what a client asks of its session; gives its URL.

    PgBouncer does so with what its `ignore_startup_parameters` names; else it refuses the client.
    """
    async with _relayed(url, first=_without_settings) as netloc:
        yield urlsplit(url)._replace(netloc=netloc, query="sslmode=disable").geturl()


@asynccontextmanager
async def encrypted(url: str, authority: trustme.CA) -> AsyncGenerator[str]:
    """TLS before a server that has none, with a certificate by that authority; gives its URL."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(NAME).configure_cert(context)
    async with _relayed(url, context) as netloc:
        parts = urlsplit(url)
        yield parts._replace(scheme=WITH_TLS[parts.scheme], netloc=netloc).geturl()


@asynccontextmanager
async def half_open(url: str) -> AsyncGenerator[tuple[str, anyio.Event]]:
    """Somebody who keeps a connection that the server has ended; gives his URL.

    And an event, set when all that the server said has been passed on.
    """
    hung_up = anyio.Event()
    async with _relayed(url, ends=hung_up.set) as netloc:
        yield urlsplit(url)._replace(netloc=netloc).geturl(), hung_up


def _without_settings(startup: bytes) -> bytes:
    """A client's first message. Source: PostgreSQL manual, "Message Formats", StartupMessage."""
    words = startup[8:].split(b"\0")
    pairs = zip(words[::2], words[1::2], strict=False)
    body = b"".join(b"%b\0%b\0" % pair for pair in pairs if pair[0] in KEPT) + b"\0"
    return struct.pack("!I", 8 + len(body)) + startup[4:8] + body


@asynccontextmanager
async def _relayed(
    url: str,
    context: ssl.SSLContext | None = None,
    first: Callable[[bytes], bytes] = bytes,
    ends: Callable[[], None] | None = None,
) -> AsyncGenerator[str]:
    """Stand before the server of a URL while the block runs; gives login and address for such a URL.

    :param context: to speak TLS with clients
    :param first: what the server gets of a client's first message
    :param ends: called when the server has hung up; the client is told of it where this is not given
    """
    server = urlsplit(url)

    async def carry(client: ByteStream) -> None:
        to = await anyio.connect_tcp(server.hostname or NAME, server.port or 0)
        async with client, to, anyio.create_task_group() as pumps:
            over = pumps.cancel_scope.cancel
            pumps.start_soon(_pump, to, client, bytes, ends or over)
            await _pump(client, to, first, over)

    async def secured(client: ByteStream) -> None:
        async with client:
            try:
                if server.scheme == "postgresql":
                    buffered = BufferedByteReceiveStream(client)
                    assert await buffered.receive_exactly(len(ASKS_FOR_TLS)) == ASKS_FOR_TLS
                    await client.send(b"S")
                tls = await TLSStream.wrap(client, ssl_context=context, standard_compatible=False)
            except GONE:  # a client that does not trust us
                return
            await carry(tls)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - not Django's
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, secured if context else carry)
        login, at, _ = server.netloc.rpartition("@")
        yield f"{login}{at}{NAME}:{port}"
        tasks.cancel_scope.cancel()


async def _pump(
    source: ByteStream,
    sink: ByteStream,
    first: Callable[[bytes], bytes],
    over: Callable[[], object],
) -> None:
    """Pass everything on until either side is gone; then it is over."""
    with suppress(*GONE):
        await sink.send(first(await source.receive()))
        async for data in source:
            await sink.send(data)
    over()
