"""What is known of a server: when it is tried again, and how often that is said. On a clock that skips."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import pytest
from structlog.testing import capture_logs

from streams.connection import RedisUnavailable
from worker.dependency import (
    PAUSE_S_MAX,
    PAUSE_S_MIN,
    RETRY_AFTER_S_MAX,
    Dependency,
    State,
)
from worker.errors import InfluxUnavailable

T = TypeVar("T")


class SkippingSelector(selectors.DefaultSelector):
    """Where the event loop would wait for a timer, lets the time pass at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing will ever happen"
        self.now += timeout
        return super().select(0)


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock needs no time."""

    def __init__(self) -> None:
        self._skipping = SkippingSelector()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now


def skipping(main: Callable[[], Awaitable[T]]) -> T:
    """Run on a clock that skips whatever is waited for."""
    return anyio.run(main, backend_options={"loop_factory": SkippingLoop})


class Away(Exception):
    """The server is away."""


def longest(failures: int) -> float:
    """The longest pause after so many failures in a row, in seconds."""
    return min(PAUSE_S_MAX, PAUSE_S_MIN * 2 ** min(failures, 16))


def test_a_server_is_taken_to_be_up_before_the_first_attempt() -> None:
    async def main() -> None:
        server = Dependency("redis")
        assert server.up
        assert server.due

    skipping(main)


@pytest.mark.parametrize("failures", [1, 2, 3, 6, 7, 8, 50, 2000])
def test_a_pause_doubles_with_each_failure_up_to_5_seconds(failures: int) -> None:
    async def main() -> float:
        server = Dependency("redis")
        for _ in range(failures):
            server.failed(Away())
        assert not server.up
        before = anyio.current_time()
        await server.pause()
        assert server.due
        return anyio.current_time() - before

    for _ in range(20):
        assert longest(failures) / 2 <= skipping(main) <= longest(failures)


def test_pauses_differ_from_worker_to_worker() -> None:
    async def main() -> float:
        server = Dependency("redis")
        server.failed(Away())
        before = anyio.current_time()
        await server.pause()
        return anyio.current_time() - before

    assert len({skipping(main) for _ in range(20)}) > 10


def test_a_server_that_failed_is_due_when_the_pause_is_over_and_not_before() -> None:
    async def main() -> None:
        server = Dependency("redis")
        server.failed(Away())
        assert not server.due
        await anyio.sleep(longest(1) * 0.49)
        assert not server.due
        await anyio.sleep(longest(1) * 0.52)
        assert server.due
        assert not server.up

    skipping(main)


def test_a_server_that_works_again_is_up_and_starts_with_a_short_pause() -> None:
    async def main() -> None:
        server = Dependency("redis")
        for _ in range(9):
            server.failed(Away())
        server.worked()
        assert server.up
        assert server.due
        server.failed(Away())
        before = anyio.current_time()
        await server.pause()
        assert anyio.current_time() - before <= longest(1)

    skipping(main)


def test_one_event_says_that_a_server_is_lost_and_one_that_it_is_back() -> None:
    async def main() -> None:
        server = Dependency("influxdb")
        server.worked()
        for _ in range(3):
            server.failed(Away("503 busy"))
            await server.pause()
        server.worked()
        server.worked()

    with capture_logs() as logs:
        skipping(main)
    assert [(event["event"], event["dependency"]) for event in logs] == [
        ("dependency.lost", "influxdb"),
        ("dependency.recovered", "influxdb"),
    ]
    assert logs[0]["error"] == "503 busy"
    assert sum(map(longest, (1, 2, 3))) / 2 <= logs[1]["down_s"] <= sum(map(longest, (1, 2, 3)))


def test_to_insist_is_to_repeat_until_it_works() -> None:
    async def main() -> tuple[int, float, bool]:
        server, attempts = Dependency("postgres"), iter(range(1, 1000))

        async def attempt() -> int:
            number = next(attempts)
            if number < 100:
                raise Away
            return number

        result = await server.insist(attempt, Away)
        return result, anyio.current_time(), server.up

    result, waited_s, up = skipping(main)
    assert (result, up) == (100, True)
    assert sum(map(longest, range(1, 100))) / 2 <= waited_s <= sum(map(longest, range(1, 100)))


def test_only_what_passes_is_waited_out() -> None:
    async def main() -> None:
        async def attempt() -> None:
            raise ValueError("a bug")

        await Dependency("postgres").insist(attempt, Away)

    with pytest.raises(ValueError, match="a bug"):
        skipping(main)


def test_insisting_can_be_cancelled() -> None:
    async def main() -> float:
        async def attempt() -> None:
            raise Away

        with anyio.move_on_after(60):
            await Dependency("postgres").insist(attempt, Away)
        return anyio.current_time()

    assert skipping(main) == pytest.approx(60)


def test_a_server_that_refuses_is_degraded_and_one_that_is_silent_is_down() -> None:
    async def main() -> list[State]:
        server = Dependency("redis")
        states = [server.state]
        for error in (
            RedisUnavailable("READONLY", answered=True),
            RedisUnavailable("no answer"),
            RedisUnavailable("OOM", answered=True),
        ):
            server.failed(error)
            states.append(server.state)
        server.worked()
        return [*states, server.state]

    with capture_logs() as logs:
        states = skipping(main)
    assert states == [State.UP, State.DEGRADED, State.DOWN, State.DEGRADED, State.UP]
    assert [log["state"] for log in logs if log["event"] == "dependency.lost"] == ["degraded"]


@pytest.mark.parametrize("asked_s", [30.0, 3600.0])
def test_a_server_is_left_alone_as_long_as_it_asks_within_a_bound(asked_s: float) -> None:
    async def main() -> float:
        server = Dependency("influxdb")
        server.failed(InfluxUnavailable("429", answered=True, retry_after_s=asked_s))
        await server.pause()
        return anyio.current_time()

    assert skipping(main) == pytest.approx(min(asked_s, RETRY_AFTER_S_MAX))


def test_whoever_waits_is_told_before_each_wait() -> None:
    async def main() -> list[float]:
        told: list[float] = []

        async def attempt() -> None:
            if len(told) < 3:
                raise Away

        async def waiting() -> None:
            told.append(anyio.current_time())

        await Dependency("postgres").insist(attempt, Away, waiting)
        return told

    told = skipping(main)
    assert len(told) == 3
    assert told[0] == 0


def test_who_repeats_an_attempt_is_known_until_it_works_or_is_given_up() -> None:
    async def main() -> None:
        server = Dependency("postgres")
        refusals = [Away(), Away()]

        async def attempt() -> None:
            if refusals:
                raise refusals.pop()

        async def again() -> None:
            assert server.is_insisted_on

        assert not server.is_insisted_on
        await server.insist(attempt, Away, again)
        assert not server.is_insisted_on
        refusals[:] = [Away()] * 1000
        with anyio.move_on_after(60):
            await server.insist(attempt, Away, again)
        assert not server.is_insisted_on

    skipping(main)
