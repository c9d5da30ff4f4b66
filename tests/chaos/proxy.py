"""A TCP proxy between a worker and one server, which does to connections what networks and servers do.

    async with Proxy.before("redis://127.0.0.1:6379/3") as redis:
        worker = place.having(REDIS_URL=redis.url)
        await redis.inflict(DropReplies())

Faults may change at any time, for all connections or for one, by its number. What passes is counted, so that
a run without faults tells how long each conversation is, and another may be cut after any of its bytes.
"""

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple
from urllib.parse import urlsplit

import anyio
from anyio import lowlevel
from anyio.abc import TaskGroup

HOST = "127.0.0.1"
CHUNK = 65_536
RESET_AT_CLOSE = struct.pack("ii", 1, 0)  #: SO_LINGER on, no seconds: closing sends RST and not FIN


class Direction(Enum):
    """Which way bytes go."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


@dataclass(frozen=True, slots=True)
class Sound:
    """Nothing is wrong."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nobody listens: new connections are refused, and those that stand are reset. For all alone."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Connections that stand are reset now, new ones as soon as they are accepted."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Connections are accepted, and whatever is sent on them, in either direction, is swallowed.

    A connection on which something was swallowed stays dumb that way: TCP has no holes.
    """


@dataclass(frozen=True, slots=True)
class DropReplies:
    """Requests reach the server, its answers vanish; all later ones of a connection too, as with `Hang`."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Each piece of an answer comes so many seconds late."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Trickle:
    """Answers dribble: so many bytes at a time, with a pause of so many seconds after each."""

    size: int
    pause_s: float


@dataclass(frozen=True, slots=True)
class Cut:
    """Once so many bytes in all have gone that way, the connection that carried the last of them ends.

    Both ends see an orderly end, after which nothing passes: what was sent before it arrives for certain.
    With `reset` both see RST, which may overtake bytes. It happens once; other connections go on.
    """

    direction: Direction
    after: int
    reset: bool = False


Fault = Sound | Refuse | Reset | Hang | DropReplies | Delay | Trickle | Cut


class Flight(NamedTuple):
    """Bytes that came in one piece, on which connection and which way."""

    connection: int
    direction: Direction
    data: bytes


@dataclass(eq=False)
class _Link:
    """One connection: its two sockets and what becomes of it."""

    number: int
    client: socket.socket
    server: socket.socket
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    over: anyio.Event = field(default_factory=anyio.Event)
    dumb: set[Direction] = field(
        default_factory=set[Direction]
    )  #: nothing passes that way any more

    def ends(self, direction: Direction) -> tuple[socket.socket, socket.socket]:
        """Where bytes of that direction come from, and where they go."""
        if direction is Direction.TO_SERVER:
            return self.client, self.server
        return self.server, self.client

    def reset(self) -> None:
        """End it with RST on both sides."""
        self.dumb |= set(Direction)
        _reset_at_close(self.client)
        _reset_at_close(self.server)
        self.scope.cancel()

    def end(self) -> None:
        """Tell both sides that nothing more comes; what they still send is read and thrown away."""
        self.dumb |= set(Direction)
        for side in (self.server, self.client):
            _no_more(side)


class Proxy:
    """Stands before one server, on a port of its own of 127.0.0.1. Made by `before`.

    :ivar attempts: connections accepted so far; the next one has this number
    :ivar passed: bytes that have gone each way, over all connections
    :ivar flights: the same bytes, where they are recorded
    :ivar struck: set when what was planned begins
    :ivar has_cut: whether a `Cut` came to its byte
    """

    def __init__(self, url: str, tasks: TaskGroup, holder: socket.socket, *, record: bool) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self._server = (parts.hostname, parts.port)
        self._tasks, self._record = tasks, record
        self._port: int = holder.getsockname()[1]
        userinfo, at, _ = parts.netloc.rpartition("@")
        self.url = parts._replace(netloc=f"{userinfo}{at}{HOST}:{self._port}").geturl()
        self.attempts = 0
        self.passed: Counter[Direction] = Counter()
        self.flights: list[Flight] = []
        self.struck = anyio.Event()
        self.has_cut = False
        self._fault: Fault = Sound()
        self._faults: dict[int, Fault] = {}
        self._planned: tuple[Fault, Direction, int] | None = None
        self._links: dict[int, _Link] = {}
        self._listening = anyio.CancelScope()

    @classmethod
    @asynccontextmanager
    async def before(cls, url: str, *, record: bool = False) -> AsyncGenerator["Proxy"]:
        """Stand before the server of a URL while the block runs; `url` leads through the proxy."""
        with _bound(0) as holder:  # keeps the port ours while nobody listens on it
            async with anyio.create_task_group() as tasks:
                proxy = cls(url, tasks, holder, record=record)
                proxy._listen()
                yield proxy
                tasks.cancel_scope.cancel()

    async def inflict(self, fault: Fault, connection: int | None = None) -> None:
        """From now on this is wrong, with all connections that have no fault of their own, or with one."""
        refused = isinstance(self._fault, Refuse)
        if connection is None:
            self._fault = fault
        else:
            assert not isinstance(fault, Refuse)
            self._faults[connection] = fault
        if isinstance(fault, Refuse):
            self._listening.cancel()
            await lowlevel.checkpoint()  # for the listener to close
        elif refused and connection is None:
            self._listen()
        for link in list(self._links.values()):
            if isinstance(self._fault_of(link), Refuse | Reset):
                link.reset()

    def plan(self, fault: Fault, direction: Direction, after: int) -> None:
        """Inflict it on all connections once more than so many bytes in all would go that way."""
        self._planned = (fault, direction, after)

    async def quiet(self) -> None:
        """Wait until every connection is over, on the server's side too: nothing lands late."""
        for link in list(self._links.values()):
            await link.over.wait()

    def _fault_of(self, link: _Link) -> Fault:
        return self._faults.get(link.number, self._fault)

    def _listen(self) -> None:
        listener = _bound(self._port)
        listener.listen(128)
        self._listening = anyio.CancelScope()
        self._tasks.start_soon(self._accept, listener, self._listening)

    async def _accept(self, listener: socket.socket, scope: anyio.CancelScope) -> None:
        loop = asyncio.get_running_loop()
        with listener, scope:
            while True:
                client, _ = await loop.sock_accept(listener)
                link = self._links[self.attempts] = _Link(self.attempts, client, _socket())
                self.attempts += 1
                self._tasks.start_soon(self._carry, link)

    async def _carry(self, link: _Link) -> None:
        with link.client, link.server, link.scope:
            if await self._is_connected(link):
                async with anyio.create_task_group() as pumps:
                    for direction in Direction:
                        pumps.start_soon(self._pump, link, direction)
        del self._links[link.number]
        link.over.set()

    async def _is_connected(self, link: _Link) -> bool:
        if not isinstance(self._fault_of(link), Reset):
            with suppress(OSError):
                await asyncio.get_running_loop().sock_connect(link.server, self._server)
                return True
        _reset_at_close(link.client)
        return False

    async def _pump(self, link: _Link, direction: Direction) -> None:
        source, sink = link.ends(direction)
        while data := await _received(source):
            await self._follow_plan(direction, len(data))
            if direction not in link.dumb:
                await self._pass(link, direction, data)
        _no_more(sink)

    async def _follow_plan(self, direction: Direction, size: int) -> None:
        match self._planned:
            case (fault, way, after) if way is direction and self.passed[way] + size > after:
                self._planned = None
                await self.inflict(fault)
                self.struck.set()
            case _:
                pass

    async def _pass(self, link: _Link, direction: Direction, data: bytes) -> None:
        """Let bytes through as the connection's fault wants it."""
        answers = direction is Direction.TO_CLIENT
        match self._fault_of(link):
            case Cut() as cut if cut.direction is direction and self._remaining(cut) <= len(data):
                await self._cut(link, cut, data[: max(0, self._remaining(cut))])
            case Hang():
                link.dumb.add(direction)
            case DropReplies() if answers:
                link.dumb.add(direction)
            case Delay(seconds) if answers:
                await anyio.sleep(seconds)
                await self._send(link, direction, data)
            case Trickle(size, pause_s) if answers:
                for at in range(0, len(data), size):
                    await self._send(link, direction, data[at : at + size])
                    await anyio.sleep(pause_s)
            case _:
                await self._send(link, direction, data)

    def _remaining(self, cut: Cut) -> int:
        return cut.after - self.passed[cut.direction]

    async def _cut(self, link: _Link, cut: Cut, last: bytes) -> None:
        self.has_cut = True
        if self._fault is cut:
            self._fault = Sound()
        await self._send(link, cut.direction, last)
        if cut.reset:
            link.reset()
        else:
            link.end()

    async def _send(self, link: _Link, direction: Direction, data: bytes) -> None:
        """Pass bytes on. Where nobody takes them any more they are lost, as they are in a network."""
        self.passed[direction] += len(data)
        if self._record:
            self.flights.append(Flight(link.number, direction, data))
        with suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(link.ends(direction)[1], data)


def _socket() -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    return made


def _bound(port: int) -> socket.socket:
    """A socket at a port, 0 for a free one. Several may be; connections reach the one that listens."""
    bound = _socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((HOST, port))
    return bound


async def _received(source: socket.socket) -> bytes:
    """What comes next; nothing at the end, however it came about."""
    try:
        return await asyncio.get_running_loop().sock_recv(source, CHUNK)
    except OSError:
        return b""


def _no_more(sink: socket.socket) -> None:
    with suppress(OSError):  # it has ended already
        sink.shutdown(socket.SHUT_WR)


def _reset_at_close(side: socket.socket) -> None:
    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
