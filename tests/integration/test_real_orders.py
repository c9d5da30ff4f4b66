"""A venue's real orders, where its file lies beside the checkout: every digit and every outcome."""

import csv
import gzip
import signal
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from scripts.replay.publishing import IdsOfTimes
from tests.isolation import Place
from tests.record import Tally, check, everything, until
from tests.workers import Workers, drain

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "orders_bitstamp.csv.gz"
FIELDS = ("order_id", "symbol", "side", "type", "quantity", "price")
NOTIONAL = Decimal("63703598.7172055189")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not FILE.exists(), reason=f"the real orders are not here: no {FILE.name}"),
]


def rows() -> list[dict[str, str]]:
    with gzip.open(FILE, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def real_orders() -> list[dict[str, str]]:
    return [{name: row[name] for name in FIELDS} for row in rows()]


def event_ids() -> list[str]:
    """Entry ids from the orders' own times."""
    ids, epoch = IdsOfTimes(), datetime(1970, 1, 1, tzinfo=UTC)
    times = (datetime.fromisoformat(row["time"]) for row in rows())
    return [ids.next((at - epoch) // timedelta(milliseconds=1)) for at in times]


@pytest.mark.long
async def test_every_real_order_has_its_outcome_and_every_digit(
    place: Place, workers: Workers
) -> None:
    """`check` compares each row with its entry; this adds what the file itself sums up to."""
    await place.publish(real_orders())
    for kills in range(1, 4):
        worker = await workers.start(place, WORKER_CONSUMER="killed", WORKER_BATCH_SIZE="500")
        await until(lambda more=kills * 4_000: recorded(place, more), within_s=60)
        worker.signal(signal.SIGKILL)
        await worker.ended()
    await drain(place.having(WORKER_CONSUMER="killed"))
    assert await check(place, in_order=False) == Tally(18_547, 6_347)
    sums, *_ = await place.fetch(
        "SELECT (SELECT sum(notional) FROM orders) + (SELECT sum(o.notional) FROM duplicates d"
        " JOIN orders o USING (content_hash, generation)) AS notional"
    )
    assert sums["notional"] == NOTIONAL
    assert len(await place.points()) == 24_894


async def recorded(place: Place, count: int) -> bool:
    row, *_ = await place.fetch("SELECT count(*) AS n FROM outcomes")
    return row["n"] >= count


@pytest.mark.long
async def test_real_orders_at_their_own_times_with_a_window_and_again(place: Place) -> None:
    place = place.having(WORKER_DEDUPE_WINDOW="60s")
    sent, at = real_orders(), event_ids()
    await place.publish(sent, at)
    await drain(place)
    assert await check(place, claims=False) == Tally(22_408, 2_486)  # old claims may have expired
    before = await everything(place)
    await place.redis.flushdb()
    await place.publish(sent, at)
    await drain(place)
    assert await everything(place) == before
