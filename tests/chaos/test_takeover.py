"""What dead workers held is taken over in the time that the setting says, while orders go on."""

import signal

import anyio
import pytest

from tests.isolation import Place
from tests.orders import orders
from tests.record import Tally, check, settled, until
from tests.workers import Workers, impatient

pytestmark = pytest.mark.anyio

TAKEOVER_S = 3.1  #: of impatient workers
TAKEOVER_LATE_S_MAX = 10.0


async def test_entries_of_dead_workers_are_settled_within_the_takeover_time_and_ten_seconds(
    place: Place, workers: Workers
) -> None:
    place = impatient(place).having(WORKER_BATCH_SIZE="50")
    dead = [await workers.start(place, WORKER_CONSUMER=f"dead-{n}") for n in range(2)]
    for worker in dead:
        await worker.logged("worker.ready")
    async with place.orders_locked():
        await place.publish(orders(range(100)))
        await until(lambda: all_read(place))
        heir = await workers.start(place, WORKER_CONSUMER="heir")
        await heir.logged("worker.ready")
        for worker in dead:
            worker.signal(signal.SIGKILL)
            await worker.ended()
        killed_at = anyio.current_time()
        await place.publish(orders(range(50, 150)))
    await settled(place, within_s=TAKEOVER_S + TAKEOVER_LATE_S_MAX)
    took_s = anyio.current_time() - killed_at
    assert took_s <= TAKEOVER_S + TAKEOVER_LATE_S_MAX
    assert "entries.taken_over" in heir.log
    assert await check(place, in_order=False) == Tally(150, 50)


async def all_read(place: Place) -> bool:
    return await place.pending() == 100
