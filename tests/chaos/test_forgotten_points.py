"""A worker dies between its commit and its write of points; the entries come again, if Redis has them."""

import signal

import anyio
import pytest
from aiohttp import web

from tests.chaos.influx_front import InfluxFront, Lines, Write, passing
from tests.isolation import Place
from tests.orders import orders
from tests.record import check_points, leave_points_in_hand, points_paid, until
from tests.workers import Workers, drain

pytestmark = pytest.mark.anyio

COUNT = 20


@pytest.mark.parametrize("forgets", [False, True])
async def test_points_of_a_dead_worker_are_written_after_all(
    place: Place, workers: Workers, *, forgets: bool
) -> None:
    async with InfluxFront(place.influx) as front:
        patient = place.having(
            INFLUXDB_URL=front.url,
            WORKER_CONSUMER="one",
            WORKER_POINTS_TIMEOUT="20s",
            WORKER_TAKEOVER_AFTER="60s",
        )
        front.answer = silent
        worker = await workers.start(patient)
        await place.publish(orders(range(COUNT)))
        await until(lambda: recorded(place))
        worker.signal(signal.SIGKILL)
        await worker.ended()
        if forgets:
            await place.command("FLUSHDB")
        await leave_points_in_hand(place)
        front.answer = passing
        await drain(patient)
    await points_paid(place)
    await check_points(place)


async def silent(_lines: Lines, _write: Write) -> web.Response:
    """Never answer, and store nothing."""
    await anyio.sleep_forever()
    raise AssertionError


async def recorded(place: Place) -> bool:
    rows = await place.fetch("SELECT FROM orders")
    return len(rows) == COUNT
