"""A front before the real InfluxDB that treats some writes as a troubled server does."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Self

import anyio
from aiohttp import ClientError, ClientSession, ClientTimeout, web

from tests.influxdb_server import HOST, InfluxServer

SLOW_S = 0.8  #: longer than impatient workers wait for one write
FORWARD_S_MAX = 5.0

Lines = Sequence[bytes]
Write = Callable[[Lines], Awaitable[web.Response]]  #: pass lines on; gives InfluxDB's own answer
Answer = Callable[[Lines, Write], Awaitable[web.Response]]


class Cut(Exception):
    """The connection is closed, and no answer given."""


async def passing(lines: Lines, write: Write) -> web.Response:
    """Nothing in between."""
    return await write(lines)


def refusing(status: int, **headers: str) -> Answer:
    """Answer with a status, and store nothing."""

    async def answer(_lines: Lines, _write: Write) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response({"message": "not now"}, status=status, headers=named)

    return answer


async def slow(lines: Lines, write: Write) -> web.Response:
    """Store the lines, and answer when nobody waits any more."""
    stored = await write(lines)
    await anyio.sleep(SLOW_S)
    return stored


async def unreachable(_lines: Lines, _write: Write) -> web.Response:
    """Close the connection at once."""
    raise Cut


async def losing_replies(lines: Lines, write: Write) -> web.Response:
    """Store the lines, and close the connection."""
    await write(lines)
    raise Cut


async def storing_half(lines: Lines, write: Write) -> web.Response:
    """Store every second line, then fail."""
    await write(lines[::2])
    return web.json_response({"message": "partial write"}, status=500)


async def too_large(lines: Lines, write: Write) -> web.Response:
    """Take no more than a line at once."""
    if len(lines) == 1:
        return await write(lines)
    return web.json_response({"message": "request entity too large"}, status=413)


async def blaming_a_line(lines: Lines, write: Write) -> web.Response:
    """Store every second line and call the request malformed, until a line comes alone."""
    if len(lines) == 1:
        return await write(lines)
    await write(lines[::2])
    return web.json_response({"message": "partial write: unable to parse"}, status=400)


TROUBLES: Mapping[str, Answer] = {
    "unreachable": unreachable,
    "401": refusing(401),
    "404": refusing(404),
    "413": too_large,
    "429": refusing(429, Retry_After="1"),
    "500": refusing(500),
    "503": refusing(503, Retry_After="1"),
    "slow": slow,
    "reply lost": losing_replies,
    "partial write, 500": storing_half,
    "partial write, 400": blaming_a_line,
}


class InfluxFront:
    """Listens while entered. :ivar answer: how writes are treated just now"""

    def __init__(self, influx: InfluxServer) -> None:
        self._influx = influx
        self._session = ClientSession(timeout=ClientTimeout(total=FORWARD_S_MAX))
        self.answer: Answer = passing
        self.statuses: Counter[str] = Counter()  #: how often it answered what
        self.url = ""

    async def __aenter__(self) -> Self:
        application = web.Application(client_max_size=2**30)
        application.router.add_post("/api/v2/write", self._write)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, 0).start()
        self.url = f"http://{HOST}:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self._runner.cleanup()
            await self._session.close()

    async def _write(self, request: web.Request) -> web.Response:
        async def write(lines: Lines) -> web.Response:
            url = f"{self._influx.url}/api/v2/write"
            token = {"Authorization": request.headers["Authorization"]}
            async with self._session.post(
                url, params=request.query, data=b"\n".join(lines), headers=token
            ) as reply:
                return web.Response(status=reply.status, body=await reply.read())

        try:
            response = await self.answer((await request.read()).splitlines(), write)
        except (Cut, ClientError, OSError):  # TimeoutError is one
            self.statuses["none"] += 1
            if request.transport:
                request.transport.abort()
            return web.Response(status=502)  # nobody gets it
        self.statuses[str(response.status)] += 1
        return response
