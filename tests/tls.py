"""TLS before a server that has none, with certificates of an authority of its own."""

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import anyio
import trustme
from anyio.abc import AnyByteStream, ByteStream, SocketAttribute
from anyio.streams.tls import TLSListener

SCHEMES = {"redis": "rediss", "http": "https"}
NAME = "localhost"
GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, ssl.SSLError)


@asynccontextmanager
async def encrypted(url: str, authority: trustme.CA) -> AsyncGenerator[str]:
    """Stand before the server of a URL while the block runs; gives the URL that leads there by TLS."""
    server = urlsplit(url)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(NAME).configure_cert(context)

    async def carry(client: ByteStream) -> None:
        to = await anyio.connect_tcp(server.hostname or NAME, server.port or 0)
        async with client, to, anyio.create_task_group() as pumps:
            pumps.start_soon(_pump, to, client, pumps.cancel_scope)
            await _pump(client, to, pumps.cancel_scope)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as plain:
        listener = _Listener(plain, context, standard_compatible=False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, carry)
            login, at, _ = server.netloc.rpartition("@")
            port = plain.extra(SocketAttribute.local_port)  # noqa: S610 - not Django's
            netloc = f"{login}{at}{NAME}:{port}"
            yield server._replace(scheme=SCHEMES[server.scheme], netloc=netloc).geturl()
            tasks.cancel_scope.cancel()


class _Listener(TLSListener):
    @staticmethod
    async def handle_handshake_error(exc: BaseException, stream: AnyByteStream) -> None:
        """Let a client go that does not trust us."""


async def _pump(source: ByteStream, sink: ByteStream, scope: anyio.CancelScope) -> None:
    """Pass everything on until either side is gone; then the connection is over."""
    with suppress(*GONE):
        async for data in source:
            await sink.send(data)
    scope.cancel()
