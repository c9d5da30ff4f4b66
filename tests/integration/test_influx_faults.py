"""InfluxDB away or refusing: orders flow on, and in the end each outcome has exactly one point."""

from collections.abc import Callable

import anyio
import pytest
from anyio import to_thread
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync

from scripts.replay.synthetic import synthetic_orders
from tests.influxdb_server import InfluxServer
from tests.isolation import Place, isolated
from tests.orders import T0_MS, ids, order
from tests.record import Tally, check, check_points, is_settled, points_paid, settled, until
from tests.servers import Servers
from tests.workers import Workers, drain, impatient, working

pytestmark = pytest.mark.anyio

TRAFFIC = [*synthetic_orders(200, 60, seed=13), {"side": "hold"}]
EXPECTED = Tally(200, 60, 1)
Step = Callable[[InfluxServer], None]

FAULTS = {
    "stopped": (InfluxServer.stop, InfluxServer.start),
    "killed": (InfluxServer.kill, InfluxServer.start),
    "hung": (InfluxServer.pause, InfluxServer.resume),
}
faults = pytest.mark.parametrize(("down", "up"), FAULTS.values(), ids=FAULTS)


@faults
async def test_orders_flow_while_influxdb_is_away_and_their_points_follow(
    clean_servers: Servers, own_influx: InfluxServer, down: Step, up: Step
) -> None:
    async with isolated(clean_servers, influx=own_influx, WORKER_BATCH_SIZE="20") as place:
        await place.publish(TRAFFIC[:100])
        async with working(place.having(WORKER_POINTS_TIMEOUT="500ms")) as events:
            await settled(place)
            await to_thread.run_sync(down, own_influx)
            await place.publish(TRAFFIC[100:])
            with anyio.fail_after(15):  # none of the batches waits for longer than its one write
                await until(lambda: is_settled(place))
            owed = await place.fetch("SELECT FROM point_backlog WHERE refusal IS NULL")
            assert len(owed) >= len(TRAFFIC) - 100
            assert len(events.of("dependency.lost", dependency="influxdb")) == 1
            await to_thread.run_sync(up, own_influx)
            await points_paid(place)
        assert await check(place) == EXPECTED


async def test_points_owed_by_a_worker_that_is_gone_are_paid_by_the_next(
    clean_servers: Servers, own_influx: InfluxServer
) -> None:
    async with isolated(clean_servers, influx=own_influx) as place:
        await to_thread.run_sync(own_influx.stop)
        await place.publish(TRAFFIC)
        await drain(place)
        assert len(await place.fetch("SELECT FROM point_backlog")) == len(TRAFFIC)
        await to_thread.run_sync(own_influx.start)
        await drain(place, workers=2)
        await points_paid(place)
        assert await check(place) == EXPECTED


async def test_a_worker_process_drains_without_influxdb(
    clean_servers: Servers, own_influx: InfluxServer, workers: Workers
) -> None:
    async with isolated(clean_servers, influx=own_influx) as place:
        await to_thread.run_sync(own_influx.pause)
        await place.publish(TRAFFIC)
        worker = await workers.start(impatient(place), "--drain")
        assert await worker.ended(within_s=20) == 0
        assert await is_settled(place)
        assert await place.redis.xinfo_consumers(place.stream, place.settings.group) == []
        await to_thread.run_sync(own_influx.resume)
        await drain(place)
        assert await check(place) == EXPECTED


async def test_what_one_slow_write_left_owed_is_paid_before_a_worker_ends(
    clean_servers: Servers, own_influx: InfluxServer, workers: Workers
) -> None:
    async with isolated(clean_servers, influx=own_influx) as place:
        await place.publish(TRAFFIC)
        await to_thread.run_sync(own_influx.pause)
        worker = await workers.start(impatient(place), "--drain")
        await worker.logged("dependency.lost")
        await to_thread.run_sync(own_influx.resume)
        assert await worker.ended() == 0
        assert await check(place) == EXPECTED


@pytest.mark.parametrize("wrong", [{"INFLUXDB_TOKEN": "wrong"}, {"INFLUXDB_BUCKET": "unknown"}])
async def test_points_that_the_operator_must_make_room_for_wait_in_the_backlog(
    place: Place, wrong: dict[str, str]
) -> None:
    await place.publish(TRAFFIC)
    async with working(place.having(**wrong)) as events:
        await events.wait_for("dependency.lost", dependency="influxdb")
        await until(lambda: is_settled(place))
    assert len(await place.fetch("SELECT FROM point_backlog WHERE refusal IS NULL")) == len(TRAFFIC)
    await drain(place)
    await points_paid(place)
    assert await check(place) == EXPECTED


async def write(place: Place, line: str) -> None:
    influx = place.influx
    async with InfluxDBClientAsync(influx.url, influx.token, influx.org) as client:
        await client.write_api().write(place.bucket, record=line)


@pytest.mark.parametrize("stops", [1, 30])
async def test_a_refused_point_is_parked_with_its_answer_and_does_not_hold_up_others(
    place: Place, stops: int
) -> None:
    """A field of another type than before is refused, here the stop price of some orders."""
    sent = [
        order(n, type="stop", price="", stop_price="1")
        if n % 3 == 0 and n < 3 * stops
        else order(n)
        for n in range(100)
    ]
    await write(place, f'orders,outcome=x stop_price="text" {T0_MS}000000')
    at = await place.publish(sent, ids(*range(1, 101)))
    refused = frozenset(
        id_ for id_, fields in zip(at, sent, strict=True) if fields["type"] == "stop"
    )
    async with working(place):
        await settled(place)
    rows = await place.fetch("SELECT entry_id, refusal FROM point_backlog")
    assert {row["entry_id"] for row in rows} == refused
    assert len(refused) == stops
    for row in rows:
        assert "field type conflict" in row["refusal"]
    assert await check(place, refused_points=refused) == Tally(100)


async def test_refused_points_are_not_offered_again_and_later_ones_are_written(
    place: Place,
) -> None:
    await write(place, f'orders,outcome=x quantity="text" {T0_MS}000000')
    first, last = ids(5, 40 * 86_400_000)  # another shard, whose field types are its own
    async with working(place):
        await place.publish([order(1)], [first])
        await settled(place)
        await place.publish([order(2)], [last])
        await settled(place)
    await check_points(place, refused=frozenset([first]))
    rows = await place.fetch("SELECT entry_id FROM point_backlog WHERE refusal IS NOT NULL")
    assert [row["entry_id"] for row in rows] == [first]


async def test_points_written_again_are_the_same_points(place: Place) -> None:
    await place.publish(TRAFFIC)
    await drain(place)
    await place.postgres.execute(
        "INSERT INTO point_backlog (stream, entry_id) SELECT stream, entry_id FROM outcomes"
    )
    await drain(place)
    await points_paid(place)
    assert await check(place) == EXPECTED
