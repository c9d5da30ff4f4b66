"""The proxy does what it says, before a server that answers each line in capitals."""

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from tests.chaos.proxy import (
    HOST,
    Cut,
    Delay,
    Direction,
    DropReplies,
    Fault,
    Flight,
    Hang,
    Proxy,
    Refuse,
    Reset,
    Sound,
    Trickle,
)

pytestmark = pytest.mark.anyio

LINE, ANSWER = b"one order\n", b"ONE ORDER\n"
NOTHING_S = 0.1  #: seconds after which nothing is taken to come
TICK_S = 0.001  #: of uvloop's clock; the difference of two readings is a hair off, too
BROKEN = (anyio.BrokenResourceError, ConnectionError)


class Capitals:
    """Answers in capitals, and keeps what it was sent."""

    def __init__(self) -> None:
        self.heard_on: list[bytearray] = []  #: each connection; there is no order among them
        self.ends: list[type[Exception]] = []
        self.over = anyio.Event()  #: set at the first end

    @property
    def heard(self) -> bytes:
        """What came on all connections."""
        return b"".join(self.heard_on)

    async def answer(self, stream: SocketStream) -> None:
        """Serve one connection."""
        self.heard_on.append(all_heard := bytearray())
        async with stream:
            try:
                while True:
                    heard = await stream.receive()
                    all_heard += heard
                    await stream.send(heard.upper())
            except (anyio.EndOfStream, anyio.BrokenResourceError) as end:
                self.ends.append(type(end))
                self.over.set()


@asynccontextmanager
async def before_capitals() -> AsyncGenerator[tuple[Proxy, Capitals]]:
    server = Capitals()
    async with (
        await anyio.create_tcp_listener(local_host=HOST) as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, server.answer)
        port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - no Django here
        async with Proxy.before(f"tcp://user:word@{HOST}:{port}/path", record=True) as proxy:
            with anyio.fail_after(20):
                yield proxy, server
        tasks.cancel_scope.cancel()


async def connected(proxy: Proxy) -> SocketStream:
    return await anyio.connect_tcp(
        HOST, int(proxy.url.partition("@")[2].split("/")[0].split(":")[1])
    )


async def answered(stream: SocketStream, size: int = len(ANSWER)) -> bytes:
    """What comes, up to a size or the end."""
    got = b""
    with suppress(anyio.EndOfStream):
        while len(got) < size:
            got += await stream.receive(size - len(got))
    return got


async def is_silent(stream: SocketStream) -> bool:
    """Whether nothing comes within a moment."""
    with anyio.move_on_after(NOTHING_S):
        await stream.receive()
        return False
    return True


async def test_what_is_sound_passes_and_is_counted_both_ways() -> None:
    async with before_capitals() as (proxy, server):
        for _ in range(2):
            async with await connected(proxy) as stream:
                await stream.send(LINE)
                assert await answered(stream) == ANSWER
        await proxy.quiet()
        assert server.ends == [anyio.EndOfStream] * 2
        assert proxy.attempts == 2
        assert proxy.passed == {Direction.TO_SERVER: 20, Direction.TO_CLIENT: 20}
        assert proxy.flights == [
            Flight(number, *flight)
            for number in (0, 1)
            for flight in ((Direction.TO_SERVER, LINE), (Direction.TO_CLIENT, ANSWER))
        ]


async def test_the_url_is_the_servers_but_for_the_address() -> None:
    async with before_capitals() as (proxy, _):
        assert proxy.url.startswith(f"tcp://user:word@{HOST}:")
        assert proxy.url.endswith("/path")


async def test_refused_is_refused_and_accepted_again_at_the_same_port() -> None:
    async with before_capitals() as (proxy, server):
        async with await connected(proxy) as standing:
            await standing.send(LINE)
            await answered(standing)
            await proxy.inflict(Refuse())
            with pytest.raises(BROKEN):
                await standing.receive()
        for _ in range(3):
            with pytest.raises(OSError, match="attempts failed"):
                await connected(proxy)
        await proxy.inflict(Sound())
        async with await connected(proxy) as stream:
            await stream.send(LINE)
            assert await answered(stream) == ANSWER
        assert proxy.attempts == 2
        assert server.heard == LINE * 2


async def test_a_reset_ends_what_stands_and_what_comes() -> None:
    async with before_capitals() as (proxy, server):
        async with await connected(proxy) as standing:
            await standing.send(LINE)
            await answered(standing)
            await proxy.inflict(Reset())
            with pytest.raises(BROKEN):
                await standing.receive()
        with pytest.raises(BROKEN):
            async with await connected(proxy) as stream:
                await stream.receive()
        await proxy.quiet()
        assert proxy.attempts == 2
        assert server.heard == LINE


@pytest.mark.parametrize(("fault", "heard"), [(Hang(), b""), (DropReplies(), LINE * 2)])
async def test_no_answer_comes_on_a_connection_that_lost_one(fault: Fault, heard: bytes) -> None:
    async with before_capitals() as (proxy, server), await connected(proxy) as stream:
        await proxy.inflict(fault)
        await stream.send(LINE)
        assert await is_silent(stream)
        await proxy.inflict(Sound())
        await stream.send(LINE)
        assert await is_silent(stream)
        assert server.heard == heard
        async with await connected(proxy) as later:
            await later.send(LINE)
            assert await answered(later) == ANSWER


async def test_a_planned_fault_begins_with_the_piece_that_goes_beyond_its_byte() -> None:
    async with before_capitals() as (proxy, server):
        proxy.plan(Reset(), Direction.TO_SERVER, len(LINE))
        async with await connected(proxy) as stream:
            await stream.send(LINE)
            assert await answered(stream) == ANSWER
            assert not proxy.struck.is_set()
            await stream.send(LINE)
            with pytest.raises(BROKEN):
                await stream.receive()
        assert proxy.struck.is_set()
        assert server.heard == LINE


async def test_answers_come_late_and_whole() -> None:
    async with before_capitals() as (proxy, _), await connected(proxy) as stream:
        await proxy.inflict(Delay(3 * NOTHING_S))
        sent_at = anyio.current_time()
        await stream.send(LINE)
        assert await answered(stream) == ANSWER
        assert anyio.current_time() - sent_at >= 3 * NOTHING_S - TICK_S


async def test_answers_come_bit_by_bit_and_whole() -> None:
    async with before_capitals() as (proxy, _), await connected(proxy) as stream:
        await proxy.inflict(Trickle(3, NOTHING_S))
        sent_at = anyio.current_time()
        await stream.send(LINE)
        first = await stream.receive()
        assert len(first) < len(ANSWER)
        assert first + await answered(stream, len(ANSWER) - len(first)) == ANSWER
        assert anyio.current_time() - sent_at >= 3 * NOTHING_S - TICK_S


@pytest.mark.parametrize("after", [0, 1, 9, 10, 11, 20])
async def test_requests_are_cut_after_any_byte_of_all_that_were_sent(after: int) -> None:
    async with before_capitals() as (proxy, server):
        await proxy.inflict(Cut(Direction.TO_SERVER, after))
        async with await connected(proxy) as first, await connected(proxy) as second:
            for stream in (first, second):
                await stream.send(LINE)
                await answered(stream)
            assert proxy.has_cut
            other, cut_after = (second, after) if after <= len(LINE) else (first, after - len(LINE))
            await other.send(LINE)
            assert await answered(other) == ANSWER
        await proxy.quiet()
        assert sorted(server.heard_on) == [LINE[:cut_after], LINE * 2]


@pytest.mark.parametrize("after", [0, 1, 9, 10])
async def test_answers_are_cut_after_any_byte_and_those_before_arrive(after: int) -> None:
    async with before_capitals() as (proxy, server), await connected(proxy) as stream:
        await proxy.inflict(Cut(Direction.TO_CLIENT, after))
        await stream.send(LINE)
        assert await answered(stream, after) == ANSWER[:after]
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        await stream.aclose()
        await proxy.quiet()
        assert (server.heard, server.ends) == (LINE, [anyio.EndOfStream])


async def test_a_cut_may_be_a_reset_for_both_sides() -> None:
    async with before_capitals() as (proxy, server), await connected(proxy) as stream:
        await proxy.inflict(Cut(Direction.TO_CLIENT, 4, reset=True))
        await stream.send(LINE)
        with pytest.raises(BROKEN):
            await to_the_end(stream)
        await server.over.wait()
        assert server.ends == [anyio.BrokenResourceError]


async def to_the_end(stream: SocketStream) -> None:
    while True:
        await stream.receive()


async def test_a_cut_that_is_not_reached_is_none() -> None:
    async with before_capitals() as (proxy, _), await connected(proxy) as stream:
        await proxy.inflict(Cut(Direction.TO_SERVER, len(LINE) + 1))
        await stream.send(LINE)
        assert await answered(stream) == ANSWER
        assert not proxy.has_cut


async def test_one_connection_may_suffer_while_others_do_not() -> None:
    async with before_capitals() as (proxy, _):
        await proxy.inflict(Hang(), connection=1)
        async with await connected(proxy) as first, await connected(proxy) as second:
            for stream in (first, second):
                await stream.send(LINE)
            assert await answered(first) == ANSWER
            assert await is_silent(second)
            await proxy.inflict(Reset(), connection=0)
            with pytest.raises(BROKEN):
                await first.receive()


async def test_a_server_that_is_away_is_a_reset() -> None:
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))
        async with Proxy.before(f"tcp://x@{HOST}:{nobody.getsockname()[1]}") as proxy:
            with pytest.raises(BROKEN):
                async with await connected(proxy) as stream:
                    await stream.receive()
