"""Each I/O call of a worker goes wrong in each way, one at a time; the outcomes stay right.

The sweep finds the calls by itself: they are those of a run in which nothing goes wrong. It fails where a
kind of call exists that it could not get to.
"""

import os
import random
from collections import Counter
from contextlib import AsyncExitStack

import anyio
import pytest

from tests.chaos.faulty_io import Died, Fault, FaultyIO, Point
from tests.isolation import Place, isolated
from tests.record import Tally, check
from tests.servers import Servers
from tests.workers import drain, impatient
from worker.service import serve

pytestmark = pytest.mark.anyio

T0 = 1_767_225_600_000
WINDOW_MS = 60_000
ORDER = {
    "account": "alpha",
    "symbol": "BTCUSDT",
    "side": "buy",
    "type": "limit",
    "price": "45678.12",
}
EARLIER = [ORDER | {"order_id": f"E-{n}", "quantity": str(n)} for n in (1, 2)]
MIXED = [
    ORDER | {"order_id": "M-1", "quantity": "11"},  # new
    ORDER | {"order_id": "M-2", "quantity": "11.0"},  # its twin
    ORDER | {"order_id": "M-3", "quantity": "1"},  # repeats an earlier one
    ORDER | {"order_id": "M-4", "quantity": "NaN"},  # none
    ORDER | {"order_id": "M-5", "quantity": "12"},
    {"payload": "{"},
    ORDER | {"order_id": "M-6", "quantity": "2"},  # outside the window: the next generation
    ORDER | {"order_id": "M-7", "quantity": "2"},  # and a repeat of that
]
TIMES = (1, 2, 3, 4, 5, 6, WINDOW_MS + 2_000, WINDOW_MS + 2_001)
EXPECTED = Tally(accepted=5, duplicates=3, rejected=2)
KINDS_MIN = 10  #: kinds of calls; fewer cannot be all of them
RUN_S_MAX = 30


async def prepared(servers: Servers, stack: AsyncExitStack) -> Place:
    """A place where two orders are on record and come again, and a mixed batch is new."""
    place = await stack.enter_async_context(isolated(servers))
    place = impatient(place).having(WORKER_CONSUMER="one", WORKER_DEDUPE_WINDOW=f"{WINDOW_MS}ms")
    await place.publish(EARLIER, [f"{T0}-0", f"{T0}-1"])
    await drain(place)
    await place.redis.xgroup_setid(place.stream, place.settings.group, "0")
    await place.publish(MIXED, [f"{T0 + ms}-0" for ms in TIMES])
    return place


async def run(servers: Servers, *faults: tuple[Point, Fault]) -> list[bool]:
    """One run for each fault, then one without; says of each whether the run got to its point."""
    async with AsyncExitStack() as stack:
        place = await prepared(servers, stack)
        reached: list[bool] = []
        for at, fault in faults:
            io = FaultyIO(place.settings, at, fault)
            with anyio.fail_after(RUN_S_MAX), io.installed():
                await until_it_ends_or_dies(place)
            await io.overdue()
            reached.append(io.reached)
        await drain(place, within_s=RUN_S_MAX)
        assert await check(place) == EXPECTED
        return reached


async def until_it_ends_or_dies(place: Place) -> None:
    try:
        await serve(place.settings, drain=True)
    except BaseExceptionGroup as group:
        if group.split(Died)[1] is not None:
            raise
    except Died:
        pass


async def points_of_a_run(servers: Servers) -> list[Point]:
    """The calls of a run in which nothing goes wrong."""
    async with AsyncExitStack() as stack:
        place = await prepared(servers, stack)
        io = FaultyIO(place.settings)
        with io.installed():
            await serve(place.settings, drain=True)
        assert await check(place) == EXPECTED
        return io.calls


@pytest.mark.parametrize("fault", Fault)
async def test_each_call_may_go_wrong(
    clean_servers: Servers, capsys: pytest.CaptureFixture[str], fault: Fault
) -> None:
    points = await points_of_a_run(clean_servers)
    assert len({point.name for point in points}) >= KINDS_MIN
    reached: Counter[str] = Counter()
    for point in points:
        try:
            [there] = await run(clean_servers, (point, fault))
        except BaseException as error:
            error.add_note(f"{fault.value}: {point}")
            raise
        reached[point.name] += there
    missed = {point.name for point in points if not reached[point.name]}
    assert not missed, f"no run got to {missed}"
    with capsys.disabled():
        print(f"\n{fault.value}: at {reached.total()} calls of {len(reached)} kinds")


async def test_two_calls_may_go_wrong_one_after_the_other(clean_servers: Servers) -> None:
    """A sample of the ordered pairs. ORDERGATE_CHAOS_PAIRS says how many, ORDERGATE_CHAOS_SEED which."""
    seed = int(os.environ.get("ORDERGATE_CHAOS_SEED") or random.SystemRandom().randrange(10**9))
    chance = random.Random(seed)  # noqa: S311 - to be repeated
    points = await points_of_a_run(clean_servers)
    for _ in range(int(os.environ.get("ORDERGATE_CHAOS_PAIRS") or 10)):
        pair = [(chance.choice(points), chance.choice(list(Fault))) for _ in range(2)]
        try:
            await run(clean_servers, *pair)
        except BaseException as error:
            error.add_note(f"ORDERGATE_CHAOS_SEED={seed}: {pair}")
            raise
