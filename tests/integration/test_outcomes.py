"""What becomes of orders and their repeats: in Redis, in Postgres and in InfluxDB."""

import anyio
import pytest

from scripts.replay.synthetic import synthetic_orders
from tests.isolation import Place
from tests.orders import ids, order, orders
from tests.record import Tally, check, forge_claim, settled
from tests.workers import Workers, drain, working

pytestmark = pytest.mark.anyio

FIFTY_AND_TWENTY = list(synthetic_orders(50, 20, seed=7))
EXPECTED = Tally(accepted=50, duplicates=20)


async def publish_at_once(place: Place, producers: int) -> None:
    """Publish the fifty and the twenty by several producers, in any order."""
    async with anyio.create_task_group() as tasks:
        for n in range(producers):
            tasks.start_soon(place.publish, FIFTY_AND_TWENTY[n::producers])


@pytest.mark.parametrize("producers", [1, 5])
async def test_one_worker_accepts_each_content_once(place: Place, producers: int) -> None:
    await publish_at_once(place, producers)
    await drain(place)
    assert await check(place) == EXPECTED
    assert len(await place.points()) == 70


@pytest.mark.parametrize("batch_size", [1, 7])
async def test_four_workers_accept_each_content_once(place: Place, batch_size: int) -> None:
    place = place.having(WORKER_BATCH_SIZE=str(batch_size))
    await publish_at_once(place, 5)
    await drain(place, workers=4)
    assert await check(place, in_order=False) == EXPECTED
    assert len(await place.points()) == 70


@pytest.mark.parametrize("count", [1, 4])
async def test_worker_processes_accept_each_content_once(
    place: Place, workers: Workers, count: int
) -> None:
    started = [await workers.start(place, "--drain", WORKER_BATCH_SIZE="3") for _ in range(count)]
    await publish_at_once(place, 5)
    started.append(await workers.start(place, "--drain"))  # the others may have found no entry yet
    assert [await worker.ended() for worker in started] == [0] * len(started)
    assert await check(place, in_order=False) == EXPECTED


async def test_orders_are_taken_in_as_they_come(place: Place) -> None:
    async with working(place):
        for part in range(0, 70, 10):
            await place.publish(FIFTY_AND_TWENTY[part : part + 10])
            await settled(place)
    assert await check(place) == EXPECTED


async def test_of_twins_in_one_batch_the_first_wins(place: Place) -> None:
    await place.publish([order(1), order(1), order(2), order(1)])
    await drain(place)
    assert await check(place) == Tally(accepted=2, duplicates=2)


async def test_twins_further_apart_than_the_window_in_one_batch_are_generations(
    place: Place,
) -> None:
    place = place.having(WORKER_DEDUPE_WINDOW="60s")
    at = ids(0, 1, 60_001, 60_002, 120_001, 120_002, 180_003)
    await place.publish([order(1) for _ in at], at)
    await drain(place)
    assert await check(place) == Tally(accepted=4, duplicates=3)
    rows = await place.fetch("SELECT entry_id, generation FROM orders ORDER BY generation")
    assert [(row["entry_id"], row["generation"]) for row in rows] == [
        (at[0], 0),
        (at[2], 1),
        (at[5], 2),
        (at[6], 3),
    ]


async def test_the_same_order_id_with_other_content_is_another_order(place: Place) -> None:
    await place.publish([order(n, order_id="A-17") for n in range(5)])
    await drain(place)
    assert await check(place) == Tally(accepted=5)


async def test_other_order_ids_with_the_same_content_are_duplicates(place: Place) -> None:
    await place.publish([order(1, order_id=f"A-{n}") for n in range(5)])
    await drain(place)
    assert await check(place) == Tally(accepted=1, duplicates=4)
    rows = await place.fetch("SELECT order_id FROM duplicates ORDER BY order_id")
    assert [row["order_id"] for row in rows] == ["A-1", "A-2", "A-3", "A-4"]


@pytest.mark.parametrize(
    "field", ["client_order_id", "timestamp", "ts", "sent_at", "trace_id", "traceparent"]
)
async def test_a_changed_envelope_field_leaves_a_duplicate_that_keeps_its_own(
    place: Place, field: str
) -> None:
    await place.publish([order(1), order(1, **{field: "1"}), order(1, **{field: "2"})])
    await drain(place)
    assert await check(place) == Tally(accepted=1, duplicates=2)
    rows = await place.fetch(f"SELECT extra ->> '{field}' AS it FROM duplicates ORDER BY entry_id")
    assert [row["it"] for row in rows] == ["1", "2"]


@pytest.mark.parametrize(
    "change",
    [
        {"price": "45678.11"},
        {"quantity": "2.25000001"},
        {"side": "sell"},
        {"account": "beta"},
        {"account": ""},
        {"symbol": "BTCUSD"},
        {"type": "market", "price": ""},
        {"time_in_force": "ioc"},
        {"nonce": "1"},
    ],
)
async def test_changed_content_is_another_order(place: Place, change: dict[str, str]) -> None:
    await place.publish([order(1), order(1, **change)])
    await drain(place)
    assert await check(place) == Tally(accepted=2)


async def test_notation_is_not_content(place: Place) -> None:
    await place.publish(
        [
            order(0, quantity="1", price="10"),
            order(0, quantity="1.0", price="1e1"),
            order(0, quantity="1.00", price="10.0", side="BUY", time_in_force="GTC"),
        ]
    )
    place_stream = place.stream
    await place.redis.xadd(
        place_stream,
        {
            "payload": '{"order_id": "A", "account": "alpha", "symbol": "BTCUSDT", "side": "buy",'
            ' "type": "limit", "quantity": 1.000, "price": 10.000}'
        },
    )
    await drain(place)
    rows = await place.fetch("SELECT outcome FROM outcomes ORDER BY entry_id")
    assert sorted(row["outcome"] for row in rows) == ["accepted", *["duplicate"] * 3]


async def test_repeats_read_after_their_originals_are_duplicates(place: Place) -> None:
    for expected in (Tally(3), Tally(3, 3), Tally(3, 6)):
        await place.publish(orders(range(3)))
        await drain(place)
        assert await check(place) == expected


@pytest.mark.parametrize("claims_lost", [False, True])
@pytest.mark.parametrize("in_one_batch", [False, True])
async def test_a_repeat_at_the_edge_of_the_window_is_a_duplicate_and_behind_it_an_order(
    place: Place, *, in_one_batch: bool, claims_lost: bool
) -> None:
    place = place.having(WORKER_DEDUPE_WINDOW="60s")
    for at in (
        [ids(0, 60_000, 60_001, 120_001, 120_002)]
        if in_one_batch
        else [[i] for i in ids(0, 60_000, 60_001, 120_001, 120_002)]
    ):
        await place.publish([order(1) for _ in at], at)
        await drain(place)
        if claims_lost:
            await place.forget_claims()
    assert await check(place, claims=not claims_lost) == Tally(accepted=3, duplicates=2)


async def test_the_window_counts_from_the_accepted_original_and_not_from_repeats(
    place: Place,
) -> None:
    place = place.having(WORKER_DEDUPE_WINDOW="60s")
    at = ids(0, 40_000, 80_000, 100_000)
    for one in at:
        await place.publish([order(1)], [one])
        await drain(place)
    assert await check(place) == Tally(accepted=2, duplicates=2)
    rows = await place.fetch("SELECT entry_id FROM orders ORDER BY generation")
    assert [row["entry_id"] for row in rows] == [at[0], at[2]]


async def test_an_order_before_a_recorded_one_of_its_content_repeats_it_within_the_window(
    place: Place,
) -> None:
    """Two streams' worth of time in one: the later is recorded first, as another worker may do."""
    place = place.having(WORKER_DEDUPE_WINDOW="60s")
    at = ids(0, 30_000, 89_999)
    await place.publish([order(1) for _ in at], at)
    group = place.settings.group
    await place.redis.xgroup_create(place.stream, group, id=at[0])  # the first is skipped
    await drain(place)
    await place.redis.xgroup_setid(place.stream, group, id="0")
    await drain(place)
    rows = await place.fetch("SELECT entry_id, outcome, original_entry_id FROM outcomes ORDER BY 1")
    assert [tuple(row.values()) for row in rows] == [
        (at[0], "duplicate", at[1]),
        (at[1], "accepted", None),
        (at[2], "duplicate", at[1]),
    ]


@pytest.mark.parametrize("expires", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"])
@pytest.mark.parametrize("known", [False, True])
async def test_the_first_and_the_last_instant_are_stored_as_they_are(
    place: Place, expires: str, known: bool
) -> None:
    sent = order(1, time_in_force="gtd", expire_time=expires)
    if known:  # a claim that Postgres knows nothing of leads through the other insert
        await forge_claim(place, sent, ids(0)[0])
    await place.publish([sent], ids(1))
    await drain(place)
    [row] = await place.fetch(
        "SELECT expire_at = $1::text::timestamptz AS same FROM orders", expires
    )
    assert row["same"]
