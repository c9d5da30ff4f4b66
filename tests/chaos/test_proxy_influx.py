"""InfluxDB refuses writes in each way it has: orders go on, and each outcome has one point at last."""

from dataclasses import dataclass, field
from itertools import count, pairwise
from time import monotonic

import anyio
import pytest
from aiohttp import web

from tests.chaos.influx_front import (
    Answer,
    Cut,
    InfluxFront,
    Lines,
    Write,
    passing,
    refusing,
    unreachable,
)
from tests.chaos.proxy import Hang, Proxy
from tests.isolation import Place
from tests.orders import orders
from tests.record import Tally, check, is_settled, settled, until
from tests.workers import impatient, working
from worker.errors import InfluxUnavailable
from worker.influx import InfluxSink

pytestmark = pytest.mark.anyio

ORDERS = 40
BAD = b'"A-bad"'


@dataclass
class FirstSo:
    """Answers so many writes so, whatever they hold. :ivar at: when each write came"""

    count: int
    answer: Answer
    at: list[float] = field(default_factory=list[float])

    async def __call__(self, lines: Lines, write: Write) -> web.Response:
        self.at.append(monotonic())
        return await (self.answer if len(self.at) <= self.count else passing)(lines, write)


async def test_a_write_that_takes_too_long_ends_and_nothing_with_it(place: Place) -> None:
    """Two limits that ended together left a cancellation behind, which ended the task or the worker."""
    async with Proxy.before(place.influx.url) as proxy:
        await proxy.inflict(Hang())
        sink = InfluxSink(
            place.having(INFLUXDB_URL=proxy.url, WORKER_POINTS_TIMEOUT="20ms").settings
        )
        over: list[int] = []

        async def write(number: int) -> None:
            with pytest.raises(InfluxUnavailable):
                await sink.write(b"orders x=1 1")
            await anyio.sleep(0.001)
            over.append(number)

        for number in range(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write, number)
        await sink.aclose()
    assert over == list(range(30))


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 500, 502, 503, 504])
async def test_points_wait_for_an_influxdb_that_says_not_now(place: Place, status: int) -> None:
    async with InfluxFront(place.influx) as front:
        front.answer = FirstSo(3, refusing(status))
        async with working(impatient(place).having(INFLUXDB_URL=front.url)) as events:
            await place.publish(orders(range(ORDERS)))
            await settled(place)
        [lost] = events.of("dependency.lost", dependency="influxdb")
        assert lost["state"] == "degraded"
        assert front.statuses[str(status)] == 3
    assert await check(place) == Tally(ORDERS)


@pytest.mark.parametrize("status", [429, 503])
async def test_influxdb_is_left_alone_for_as_long_as_it_asks(place: Place, status: int) -> None:
    async with InfluxFront(place.influx) as front:
        front.answer = treated = FirstSo(2, refusing(status, Retry_After="2"))
        async with working(impatient(place).having(INFLUXDB_URL=front.url)) as events:
            await place.publish(orders(range(ORDERS)))
            await events.wait_for("dependency.lost", dependency="influxdb")
            await place.publish(orders(range(ORDERS, 2 * ORDERS)))
            await until(lambda: is_settled(place), within_s=10)
            await settled(place)
    assert all(later - earlier >= 2 for earlier, later in pairwise(treated.at[:3]))
    assert await check(place) == Tally(2 * ORDERS)


def blaming(status: int, *, stores: bool) -> Answer:
    """Refuse writes that hold the bad line; of such a write some versions store the other lines."""

    async def answer(lines: Lines, write: Write) -> web.Response:
        good = [line for line in lines if BAD not in line]
        if good == lines:
            return await write(lines)
        if stores and good:
            await write(good)
        return web.json_response({"message": "this line"}, status=status)

    return answer


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("stores", [True, False], ids=["partial", "nothing"])
async def test_a_write_that_is_refused_is_halved_to_the_line_to_blame(
    place: Place, status: int, stores: bool
) -> None:
    sent = orders(range(ORDERS))
    sent[17]["order_id"] = "A-bad"
    async with InfluxFront(place.influx) as front:
        front.answer = blaming(status, stores=stores)
        async with working(place.having(INFLUXDB_URL=front.url)) as events:
            ids = await place.publish(sent)
            await settled(place)
            await place.publish(orders(range(ORDERS, 2 * ORDERS)))
            await settled(place)
        assert front.statuses.total() < 30
    [parked] = await place.fetch("SELECT entry_id, refusal FROM point_backlog")
    assert parked["entry_id"] == ids[17]
    assert parked["refusal"].startswith(str(status))
    [told] = events.of("point.refused")
    assert (told["entry_id"], told["answer"]) == (ids[17], parked["refusal"])
    assert not events.of("dependency.lost")
    assert await check(place, refused_points=frozenset([ids[17]])) == Tally(2 * ORDERS)


async def test_a_write_that_is_too_large_is_halved_until_it_fits(place: Place) -> None:
    async def answer(lines: Lines, write: Write) -> web.Response:
        return await (passing if len(lines) <= 7 else refusing(413))(lines, write)

    async with InfluxFront(place.influx) as front:
        front.answer = answer
        async with working(place.having(INFLUXDB_URL=front.url)):
            await place.publish(orders(range(ORDERS)))
            await settled(place)
    assert await check(place) == Tally(ORDERS)


async def test_points_that_are_all_refused_slowly_are_parked_nevertheless(place: Place) -> None:
    """To halve them all takes longer than Postgres lets a transaction be idle."""

    async def answer(_lines: Lines, _write: Write) -> web.Response:
        await anyio.sleep(0.1)
        return web.json_response({"message": "none of these"}, status=422)

    async with InfluxFront(place.influx) as front:
        front.answer = answer
        async with working(impatient(place).having(INFLUXDB_URL=front.url)) as events:
            ids = await place.publish(orders(range(25)))
            await settled(place)
        assert not events.of("dependency.lost")
    assert await check(place, refused_points=frozenset(ids)) == Tally(25)


async def test_points_of_which_influxdb_takes_a_few_at_a_time_are_paid(place: Place) -> None:
    """As one that is too slow for more."""

    async def answer(lines: Lines, write: Write) -> web.Response:
        return await (passing if len(lines) <= 3 else unreachable)(lines, write)

    async with InfluxFront(place.influx) as front:
        front.answer = answer
        async with working(impatient(place).having(INFLUXDB_URL=front.url)):
            await place.publish(orders(range(ORDERS)))
            await settled(place)
    assert await check(place) == Tally(ORDERS)


async def test_points_paid_before_influxdb_goes_away_again_are_not_owed_again(place: Place) -> None:
    """A refusal makes it a payment of many writes, and one of them always fails."""
    number = count(1)

    async def answer(lines: Lines, write: Write) -> web.Response:
        if not next(number) % 4:
            raise Cut
        return await (passing if len(lines) == 1 else refusing(400))(lines, write)

    async with InfluxFront(place.influx) as front:
        front.answer = answer
        async with working(impatient(place).having(INFLUXDB_URL=front.url)):
            await place.publish(orders(range(20)))
            await settled(place)
    assert await check(place) == Tally(20)
