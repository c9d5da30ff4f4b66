"""Workers that record the same contents, or the same entries, at once. ORDERGATE_TEST_SEED repeats a run."""

import os
from functools import partial
from random import SystemRandom

import anyio
import pytest

from tests.interleaved import BEHIND_THE_LOOK, interleave
from tests.isolation import Place
from tests.orders import T0_MS, ids, order
from tests.record import Tally, check, until
from tests.workers import drain

pytestmark = pytest.mark.anyio

ROUNDS = 4
SEED = "ORDERGATE_TEST_SEED"

KEY = 7  #: of an advisory lock
WAITS = f"SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = {KEY} AND NOT granted"
BEGUN = "SELECT FROM orders WHERE generation > 0"


async def test_of_two_workers_that_meet_a_window_that_has_ended_one_begins_the_next(
    place: Place,
) -> None:
    place = place.having(WORKER_DEDUPE_WINDOW="60s", WORKER_BATCHES_IN_FLIGHT="1")
    at = ids(0, 100_000, 100_012)
    await place.publish([order(1)], at[:1])
    await drain(place)
    wait = f"PERFORM pg_advisory_xact_lock({KEY}) WHERE p_at = to_timestamp({T0_MS // 1000 + 100})"
    await place.postgres.execute(BEHIND_THE_LOOK.format(statement=wait))

    async def holds(query: str) -> bool:
        return bool(await place.fetch(query))

    async with place.connected() as lock, anyio.create_task_group() as tasks:
        await lock.execute(f"SELECT pg_advisory_lock({KEY})")
        for entry_id, name, then in zip(at[1:], ("one", "two"), (WAITS, BEGUN), strict=True):
            await place.publish([order(1)], [entry_id])
            tasks.start_soon(drain, place.having(WORKER_CONSUMER=name))
            await until(partial(holds, then))
        await lock.execute(f"SELECT pg_advisory_unlock({KEY})")
    assert await check(place, in_order=False) == Tally(accepted=2, duplicates=1)


async def test_entries_that_several_workers_record_at_once_have_one_outcome_each(
    place: Place,
) -> None:
    await interleave(place, os.environ.get(SEED) or str(SystemRandom().getrandbits(32)), ROUNDS)
