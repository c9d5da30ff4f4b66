"""Entries that come again: each keeps its outcome, nothing is counted twice and nothing changes."""

import signal
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress

import anyio
import pytest
from redis.exceptions import ResponseError

from scripts.replay.synthetic import synthetic_orders
from tests.isolation import Place
from tests.orders import ids, order
from tests.record import (
    Tally,
    audit_of,
    check,
    dead_letters,
    everything,
    read_entries,
    record_given_up,
    settled,
    until,
)
from tests.workers import Workers, drain, impatient, working
from worker import batch, forms
from worker import order as order_module
from worker.order import READING

pytestmark = pytest.mark.anyio

MALFORMED = {"order_id": "A-1", "side": "hold"}
TRAFFIC = [*synthetic_orders(60, 25, seed=3), MALFORMED]
EXPECTED = Tally(60, 25, 1)
Loss = Callable[[Place], Awaitable[object]]


async def group_set_back(place: Place) -> None:
    await place.redis.xgroup_setid(place.stream, place.settings.group, "0")


async def claims_flushed(place: Place) -> None:
    await place.forget_claims()
    await group_set_back(place)


async def group_destroyed(place: Place) -> None:
    await place.redis.xgroup_destroy(place.stream, place.settings.group)


async def redis_emptied_and_entries_published_again(place: Place) -> None:
    entries = await read_entries(place)
    await place.redis.flushdb()
    for entry_id, words in entries.items():
        await place.command("XADD", place.stream, entry_id, *words)


LOSSES = [
    group_set_back,
    claims_flushed,
    group_destroyed,
    redis_emptied_and_entries_published_again,
]


@pytest.mark.parametrize("lose", LOSSES)
async def test_acknowledged_entries_that_come_again_change_nothing(
    place: Place, lose: Loss
) -> None:
    await place.publish(TRAFFIC)
    await drain(place)
    before = await everything(place)
    for _ in range(2):
        await lose(place)
        await drain(place.having(WORKER_BATCH_SIZE="17"), workers=2)
        assert await everything(place) == before
    await place.publish([order(1)])
    await drain(place)
    assert len(await place.fetch("SELECT FROM outcomes")) == len(TRAFFIC) + 1


@pytest.mark.parametrize("lose", LOSSES)
async def test_a_running_worker_that_loses_redis_state_changes_nothing(
    place: Place, lose: Loss
) -> None:
    await place.publish(TRAFFIC)
    async with working(place):
        await settled(place)
        before = await everything(place)
        await lose(place)
        await place.publish([order(1)])
        await settled(place)
    after = await everything(place)
    assert after["duplicates"] == before["duplicates"]
    assert after["rejections"] == before["rejections"]
    assert [row for row in after["orders"] if row in before["orders"]] == before["orders"]
    assert len(after["orders"]) == len(before["orders"]) + 1
    assert len(after["points"]) == len(before["points"]) + 1


async def test_a_rejection_that_comes_again_has_one_dead_letter(place: Place) -> None:
    await place.publish([MALFORMED])
    await drain(place)
    await group_set_back(place)
    await drain(place)
    assert len(await dead_letters(place)) == 1


@pytest.mark.parametrize("lose", LOSSES)
async def test_an_entry_that_was_given_up_stays_rejected(place: Place, lose: Loss) -> None:
    sent = await place.publish([order(1), order(2), order(2), order(3)])
    await record_given_up(place, sent[1])
    await drain(place)
    before = await everything(place)
    assert {row["entry_id"] for row in before["orders"]} == {sent[0], sent[2], sent[3]}
    for size in ("1", "4"):
        await lose(place)
        await drain(place.having(WORKER_BATCH_SIZE=size))
        assert await everything(place) == before
        [letter] = await dead_letters(place)
        assert letter[b"code"] == b"delivery_limit"
        assert (await audit_of(place)).differences == {}


@pytest.mark.parametrize("numbers", [range(2, 3), range(2, 4)])
async def test_an_id_of_a_rejection_given_again_to_an_order_keeps_both(
    place: Place, numbers: range
) -> None:
    at = ids(0, 1)
    await place.publish([order(0), order(1)], at)
    await record_given_up(place, at[0])
    await drain(place)
    await place.redis.flushdb()
    await place.publish([order(n) for n in numbers], at[: len(numbers)])
    await drain(place)
    assert len(await place.fetch("SELECT FROM rejections")) == 1
    rows = await place.fetch("SELECT entry_id FROM orders ORDER BY quantity")
    assert [row["entry_id"] for row in rows] == [at[1], *at[: len(numbers)]]


async def test_a_group_destroyed_under_load_loses_no_order(place: Place) -> None:
    place = place.having(WORKER_BATCH_SIZE="5")
    async with working(place):
        for part in range(0, 80, 8):
            await place.publish(TRAFFIC[part : part + 8])
            await group_destroyed(place)
        await place.publish(TRAFFIC[80:])
        await settled(place)
    assert await check(place) == EXPECTED


async def test_a_stream_deleted_under_a_running_worker_is_read_when_it_is_back(
    place: Place,
) -> None:
    async with working(place):
        await place.publish([order(1)])
        await settled(place)
        await place.redis.delete(place.stream)
        await place.publish([order(2)])
        await settled(place)
    assert len(await place.fetch("SELECT FROM orders")) == 2


async def read_and_leave(place: Place, consumer: str, count: int) -> list[str]:
    """Read entries as a consumer that dies before it acknowledges any."""
    group = place.settings.group
    with suppress(ResponseError):  # it is there
        await place.redis.xgroup_create(place.stream, group, "0", mkstream=True)
    reply = await place.command(
        "XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", place.stream, ">"
    )
    return [entry[0] for entry in reply[0][1]]


async def test_a_worker_of_the_same_name_begins_with_what_it_left(place: Place) -> None:
    await place.publish(TRAFFIC)
    left = await read_and_leave(place, "drain-0", 30)
    await drain(place, within_s=10)  # and does not wait until they are idle for long enough
    assert len(left) == 30
    assert await check(place) == EXPECTED


async def test_a_dead_consumers_entries_are_taken_over_while_new_ones_keep_coming(
    place: Place,
) -> None:
    await place.publish(TRAFFIC[:40])
    await read_and_leave(place, "dead", 40)
    async with working(impatient(place)):
        sent = 40
        with anyio.fail_after(10):  # idle time, a quarter of it until the next look, and the batch
            while len(await place.fetch("SELECT FROM outcomes")) < max(sent, 41):
                if sent < len(TRAFFIC):
                    await place.publish(TRAFFIC[sent : sent + 1])
                    sent += 1
                await anyio.sleep(0.02)
        await place.publish(TRAFFIC[sent:])
        await settled(place)
    assert (await check(place, in_order=False)).rejected == 1


async def test_a_draining_worker_waits_for_what_a_dead_consumer_holds(place: Place) -> None:
    await place.publish(TRAFFIC)
    await read_and_leave(place, "dead", 30)
    await drain(impatient(place), workers=2)
    assert await check(place, in_order=False) == EXPECTED


async def test_what_a_live_worker_holds_is_not_taken_over(place: Place) -> None:
    """The bound of its calls is below the idle time, and settings that break this are refused."""
    await place.publish(TRAFFIC)
    held = await read_and_leave(place, "alive", 30)
    async with working(impatient(place)):
        await until(lambda: others_on_record(place, held))
        assert not await place.fetch("SELECT FROM outcomes WHERE entry_id = ANY($1)", held)


async def others_on_record(place: Place, held: list[str]) -> bool:
    rows = await place.fetch("SELECT FROM outcomes WHERE entry_id <> ALL($1)", held)
    return len(rows) == len(TRAFFIC) - len(held)


@pytest.mark.parametrize("consumer", ["drain-0", "dead"])
@pytest.mark.parametrize("how", ["trimmed", "deleted"])
async def test_a_pending_entry_that_is_gone_from_the_stream_is_rejected_as_trimmed(
    place: Place, consumer: str, how: str
) -> None:
    place = impatient(place)
    sent = await place.publish([order(n) for n in range(6)])
    await read_and_leave(place, consumer, 3)
    if how == "trimmed":
        await place.command("XTRIM", place.stream, "MINID", sent[2])
    else:
        await place.redis.xdel(place.stream, sent[0], sent[1])
    await drain(place)
    rows = await place.fetch("SELECT entry_id, outcome, code FROM outcomes ORDER BY entry_id")
    assert [(row["entry_id"], row["outcome"], row["code"]) for row in rows] == [
        *((id_, "rejected", "trimmed") for id_ in sent[:2]),
        *((id_, "accepted", None) for id_ in sent[2:]),
    ]
    assert len(await dead_letters(place)) == 2


@pytest.mark.parametrize(
    "rules",
    [
        {"WORKER_ENVELOPE_FIELDS": "order_id,nonce"},
        {"WORKER_DEDUPE_WINDOW": "1s"},
        {"WORKER_DEDUPE_WINDOW": "48h"},
    ],
    ids=["another envelope", "a shorter window", "a longer window"],
)
async def test_entries_that_come_again_by_other_rules_keep_their_outcomes(
    place: Place, rules: dict[str, str]
) -> None:
    noted = [order(1, nonce=nonce) for nonce in ("1", "2", "1", "2", "1", "3")]
    sent = [*noted, order(2), MALFORMED]
    await place.publish(
        sent, ids(0, 10, 500, 5_000, 90_000_000, 90_000_001, 90_000_002, 90_000_003)
    )
    await drain(place)
    before = await everything(place)
    for renewed in (place.having(**rules), place):
        await group_destroyed(place)
        await drain(renewed.having(WORKER_BATCH_SIZE="3"))
        assert await everything(place) == before
        assert (await audit_of(place)).differences == {}


async def test_entries_that_come_again_to_a_later_version_that_hashes_otherwise_keep_their_outcomes(
    place: Place,
) -> None:
    await place.publish(TRAFFIC)
    await drain(place)
    before = await everything(place)
    with later_version():
        await group_destroyed(place)
        await drain(place.having(WORKER_BATCH_SIZE="9"))
        assert await everything(place) == before


@contextmanager
def later_version() -> Generator[None]:
    """Workers of this process have other content hashes, and say so."""
    tag = order_module.HASH_TAG
    with pytest.MonkeyPatch.context() as patch:
        for module in (order_module, forms):
            patch.setattr(module, "HASH_TAG", b"later\n" + tag)
        patch.setattr(batch, "READING", READING + 1)
        forms.parser.cache_clear()
        yield
    forms.parser.cache_clear()


async def test_new_entries_go_by_the_new_rules(place: Place) -> None:
    await place.publish([order(1, nonce="1"), order(1, nonce="2")])
    await drain(place)
    renewed = place.having(WORKER_ENVELOPE_FIELDS="order_id,nonce")
    sent = await place.publish([order(1, nonce="1"), order(1, nonce="2"), order(1, nonce="3")])
    await drain(renewed)
    rows = await place.fetch("SELECT outcome, original_entry_id FROM outcomes ORDER BY entry_id")
    told = [(row["outcome"], row["original_entry_id"]) for row in rows[2:]]
    assert told == [("accepted", None), ("duplicate", sent[0]), ("duplicate", sent[0])]


async def test_a_trimmed_entry_that_is_on_record_keeps_its_outcome(place: Place) -> None:
    await place.publish([order(1), order(1), order(2), MALFORMED])
    await drain(place)
    before = await everything(place)
    await group_set_back(place)
    await read_and_leave(place, "drain-0", 4)
    await place.command("XTRIM", place.stream, "MAXLEN", 0)
    await drain(place)
    assert await everything(place) == before
    assert len(await dead_letters(place)) == 1


@pytest.mark.parametrize("numbers", [range(2, 3), range(2, 4)])
@pytest.mark.parametrize("rules", [{}, {"WORKER_ENVELOPE_FIELDS": "order_id,nonce"}])
async def test_an_id_given_again_to_another_order_loses_neither(
    place: Place, numbers: range, rules: dict[str, str]
) -> None:
    """A Redis that lost its data gives ids anew; Postgres still holds the first order of that id."""
    at = ids(0, 1)
    await place.publish([order(0), order(1)], at)
    await drain(place)
    await place.redis.flushdb()
    await place.publish([order(n) for n in numbers], at[: len(numbers)])
    await drain(place.having(**rules))
    rows = await place.fetch("SELECT entry_id FROM orders ORDER BY quantity")
    assert [row["entry_id"] for row in rows] == [*at, *at[: len(numbers)]]


async def test_a_killed_worker_process_leaves_all_to_the_next(
    place: Place, workers: Workers
) -> None:
    sent = list(synthetic_orders(3000, 600, seed=11))
    place = place.having(WORKER_BATCH_SIZE="50", WORKER_CONSUMER="same")
    await place.publish(sent)
    for kills in range(1, 5):
        worker = await workers.start(place)
        await until(lambda more=kills * 500: recorded(place, more), every_s=0.005)
        worker.signal(signal.SIGKILL)
        assert await worker.ended() == -9
    await drain(place)
    assert await check(place, in_order=False) == Tally(3000, 600)


async def recorded(place: Place, count: int) -> bool:
    return len(await place.fetch("SELECT FROM outcomes")) >= count
