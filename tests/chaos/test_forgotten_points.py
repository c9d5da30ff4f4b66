"""A worker dies between its commit and its write of points; the entries come again, if Redis has them.

Whoever pays for it pays to the end.
"""

import signal

import anyio
import pytest
from aiohttp import web

from tests.chaos.influx_front import InfluxFront, Lines, Write, passing
from tests.isolation import Place
from tests.orders import orders
from tests.record import (
    check_points,
    leave_points_in_hand,
    points_paid,
    record_given_up,
    until,
)
from tests.workers import Workers, drain

pytestmark = pytest.mark.anyio

COUNT = 20
#: Noting that a point is owed takes longer than a worker that finds nothing to read.
SLOW_NOTES = """
CREATE SEQUENCE notes_begun;
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM nextval('notes_begun'), pg_sleep(1);
    RETURN NEW;
END $$;
CREATE TRIGGER slowly BEFORE INSERT ON point_backlog FOR EACH ROW EXECUTE FUNCTION slowly();
"""


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


async def test_a_payment_under_way_is_over_before_a_drained_worker_ends(place: Place) -> None:
    [sent] = await place.publish(orders(range(1)))
    await record_given_up(place, sent)
    await leave_points_in_hand(place)
    await place.postgres.execute(SLOW_NOTES)
    await drain(place)
    assert not await place.fetch("SELECT FROM point_backlog")
    [begun] = await place.fetch("SELECT last_value FROM notes_begun")
    assert begun["last_value"] == 1  # and not cancelled, and begun anew
    await check_points(place)


async def silent(_lines: Lines, _write: Write) -> web.Response:
    """Never answer, and store nothing."""
    await anyio.sleep_forever()
    raise AssertionError


async def recorded(place: Place) -> bool:
    rows = await place.fetch("SELECT FROM orders")
    return len(rows) == COUNT
