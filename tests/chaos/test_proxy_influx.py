"""InfluxDB refuses writes in each way it has: orders go on, and each outcome has one point at last."""

import anyio
import pytest

from tests.chaos.proxy import Hang, Proxy
from tests.isolation import Place
from worker.errors import InfluxUnavailable
from worker.influx import InfluxSink

pytestmark = pytest.mark.anyio


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
