"""Entries that end their workers are found, tried alone and at last rejected; no other entry ever is."""

import signal

import pytest

from tests.isolation import Place
from tests.orders import order, orders
from tests.record import Tally, check, dead_letters, everything, settled, until
from tests.workers import Workers, drain, impatient, working
from worker.intake import SUSPECT_FROM

pytestmark = pytest.mark.anyio

LIMIT = 3


async def hold(place: Place, consumer: str, deliveries: int) -> None:
    """Let a consumer hold all entries, as if each had been delivered so often."""
    await place.command("XGROUP", "CREATE", place.stream, place.settings.group, "0", "MKSTREAM")
    words = ("XREADGROUP", "GROUP", place.settings.group, consumer, "STREAMS", place.stream, ">")
    [[_, entries]] = await place.command(*words)
    ids = [entry[0] for entry in entries]
    claim = ("XCLAIM", place.stream, place.settings.group, consumer, 0, *ids)
    await place.command(*claim, "RETRYCOUNT", deliveries, "JUSTID")


def attempts_key(place: Place) -> str:
    return f"{{{place.stream}}}:attempts:{place.settings.group}"


async def attempts(place: Place) -> dict[str, str]:
    return await place.command("HGETALL", attempts_key(place))


async def test_an_entry_that_ends_its_workers_is_rejected_and_the_others_are_not(
    place: Place, workers: Workers
) -> None:
    poison = order(100, symbol="POISON")
    await place.publish([*orders(range(20)), poison, *orders(range(20, 40))])
    variables = {**place.variables, "WORKER_CONSUMER": "one", "WORKER_DELIVERY_LIMIT": str(LIMIT)}
    for _ in range(SUSPECT_FROM - 1 + LIMIT):
        worker = await workers.run(variables, "--drain", module="tests.killed_at_poison")
        assert await worker.ended() == -signal.SIGKILL
    worker = await workers.run(variables, "--drain", module="tests.killed_at_poison")
    assert await worker.ended() == 0
    rows = await everything(place)
    assert len(rows["orders"]) == 40
    [rejection] = rows["rejections"]
    assert rejection["code"] == "delivery_limit"
    sent = [word.encode() for pair in poison.items() for word in pair]
    assert rejection["fields"] == sent
    [letter] = await dead_letters(place)
    assert letter[b"symbol"] == b"POISON"
    assert len(rows["points"]) == 41
    assert await place.pending() == 0
    assert "entry.given_up" in worker.log
    assert await attempts(place) == {}


async def test_who_gives_up_an_entry_that_is_on_record_says_nothing_of_it(place: Place) -> None:
    place = place.having(WORKER_CONSUMER="one", WORKER_DELIVERY_LIMIT=str(LIMIT))
    [entry_id] = await place.publish(orders(range(1)))
    await drain(place)
    await place.command("XGROUP", "DESTROY", place.stream, place.settings.group)
    await hold(place, "one", SUSPECT_FROM)
    await place.command("HSET", attempts_key(place), entry_id, LIMIT)
    async with working(place) as events:
        await settled(place)
    assert events.of("entries.kept_earlier_outcome")
    assert not events.of("entry.given_up")
    assert await check(place) == Tally(1)


async def test_an_entry_that_is_delivered_often_and_harms_nobody_is_accepted(place: Place) -> None:
    await place.publish(orders(range(30)))
    await hold(place, "one", 50)
    await drain(place.having(WORKER_CONSUMER="one"))
    assert await check(place) == Tally(30)
    assert await attempts(place) == {}


async def test_a_suspect_that_another_worker_left_is_taken_over_and_accepted(place: Place) -> None:
    await place.publish([*orders(range(5)), order(2)])
    await hold(place, "dead", 50)
    await drain(impatient(place))
    assert await check(place) == Tally(5, 1)


async def test_waiting_for_a_server_is_no_attempt(place: Place, workers: Workers) -> None:
    place = impatient(place).having(WORKER_CONSUMER="one", WORKER_DELIVERY_LIMIT="1")
    await place.publish(orders(range(3)))
    await hold(place, "one", 50)
    async with place.orders_locked():
        for _ in range(3):
            worker = await workers.start(place)
            await worker.logged("dependency.lost")
            await until(lambda: no_attempt(place))
            worker.signal(signal.SIGKILL)
            await worker.ended()
    await drain(place)
    assert await check(place) == Tally(3)


async def no_attempt(place: Place) -> bool:
    return await attempts(place) == {}
