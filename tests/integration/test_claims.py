"""Claims are hints: whatever they say, and whoever left them, outcomes are right."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from streams.connection import call, connect
from streams.entry import Entry, entries
from tests.isolation import Place
from tests.orders import ids, order, orders, parsed
from tests.record import Tally, check, claim_key, forge_claim, recording, settled, until
from tests.servers import RedisServer
from tests.workers import drain, working
from worker.claims import Claims
from worker.decide import Claim
from worker.outcome import Accepted

pytestmark = pytest.mark.anyio


def content_hash(fields: dict[str, str]) -> bytes:
    return parsed(fields).content_hash


async def test_a_claim_left_by_a_dead_worker_does_not_lose_the_order(place: Place) -> None:
    await forge_claim(place, order(1), "0123456789abcdef")
    await place.publish([order(1), order(1), order(2)])
    await drain(place)
    assert await check(place) == Tally(2, 1)


@pytest.mark.parametrize("value", ["1-1", "1767225600000-0"])
async def test_an_order_whose_claim_names_an_entry_that_postgres_lacks_is_accepted(
    place: Place, value: str
) -> None:
    at = ids(5_000, 6_000, 7_000)
    await forge_claim(place, order(1), value)
    await place.publish([order(1), order(1), order(2)], at)
    await drain(place)
    assert await check(place) == Tally(2, 1)


async def test_a_claim_that_names_the_wrong_original_does_not_mislead(place: Place) -> None:
    at = ids(0, 1_000, 2_000, 3_000)
    await place.publish([order(1), order(2)], at[:2])
    await drain(place)
    await forge_claim(place, order(2), at[0])
    await forge_claim(place, order(1), at[2])
    await place.publish([order(1), order(2)], at[2:])
    await drain(place)
    assert await check(place) == Tally(2, 2)


@pytest.mark.parametrize(
    "value",
    [b"", b"stored", b"stored ", b"stored x", b"stored 1-2-3", b"held", b"x" * 1000, b"\xff\0"],
)
async def test_a_claim_that_is_garbage_does_not_mislead(place: Place, value: bytes) -> None:
    await forge_claim(place, order(1), value)
    await place.publish([order(1), order(1)])
    await drain(place)
    assert await check(place) == Tally(1, 1)


async def test_a_claim_of_the_wrong_kind_does_not_stop_the_worker(place: Place) -> None:
    key = claim_key(place, content_hash(order(1)))
    await place.command("HSET", key, "a", "b")
    await place.publish([order(1), order(2), order(1)])
    await drain(place)
    assert await check(place, claims=False) == Tally(2, 1)


@pytest.mark.parametrize(("count", "claimed"), [(1, 0), (2, 2)])
async def test_a_single_entry_is_claimed_once_it_is_on_record_and_several_before(
    place: Place, count: int, claimed: int
) -> None:
    await place.publish(orders(range(count)))
    async with anyio.create_task_group() as tasks, place.orders_locked():
        tasks.start_soon(drain, place)
        await until(lambda: recording(place, 1))
        assert len(await place.command("KEYS", "idempotency:order:*")) == claimed
    assert await check(place) == Tally(count)


@asynccontextmanager
async def claiming(place: Place) -> AsyncGenerator[Claims]:
    settings = place.settings
    claims = Claims(
        settings.redis_address,
        settings.claims_address,
        place.stream,
        settings.group,
        window_ms=60_000,
        timeout_ms=2_000,
    )
    yield claims
    await claims.aclose()


async def read(place: Place, sent: Sequence[dict[str, str]], at: Sequence[str]) -> list[Entry]:
    """Publish orders; their entries, delivered and pending."""
    await place.publish(sent, at)
    group = place.settings.group
    await place.command("XGROUP", "CREATE", place.stream, group, "0")
    words = "XREADGROUP", "GROUP", group, "reader", "STREAMS", place.stream, ">"
    [[_, found]] = await place.command(*words)
    return entries(place.stream, found)


async def test_an_entry_knows_its_claim_whichever_worker_asks_again_for_it(place: Place) -> None:
    at = ids(0, 1_000)
    hashes = [content_hash(order(1)), content_hash(order(2))]
    won = {content: Claim(id_, False) for content, id_ in zip(hashes, at, strict=True)}
    async with claiming(place) as first, claiming(place) as second:
        assert await first.claim(at, hashes) == won
        assert await first.claim(at, hashes) == won
        assert await second.claim(at, hashes) == won


async def test_a_claim_is_held_while_its_entry_is_pending_and_stored_then(place: Place) -> None:
    sent = [order(1), order(2), order(1)]
    first, second, repeat = await read(place, sent, ids(0, 1_000, 2_000))
    orders = [Accepted(first, parsed(sent[0]), 0), Accepted(second, parsed(sent[1]), 0)]
    content, hashes = content_hash(order(1)), [content_hash(fields) for fields in sent[:2]]
    async with claiming(place) as one, claiming(place) as other:
        await one.claim([first.id, second.id], hashes)
        assert await other.claim([repeat.id], [content]) == {content: Claim(first.id, False)}
        await one.settle(orders[1:])
        assert await other.claim([repeat.id], [content]) == {content: Claim(first.id, False)}
        await one.settle(orders[:1])
        assert await other.claim([repeat.id], [content]) == {content: Claim(first.id, True)}


@pytest.mark.parametrize("claimed_by", [0, 1_000], ids=["an earlier entry", "an entry in hand"])
async def test_a_claim_that_is_thought_stored_and_is_not_loses_no_order(
    place: Place, claimed_by: int
) -> None:
    """The entry that it names was never recorded, and is not pending either; or is pending."""
    await place.publish([order(1), order(2)], ids(1_000, 2_000))
    [claim_id] = ids(claimed_by)
    await forge_claim(place, order(2), claim_id)
    await drain(place)
    assert await check(place) == Tally(2, 0)


async def test_claims_on_a_redis_of_their_own_are_taken_for_held(
    place: Place, own_redis: RedisServer
) -> None:
    place = place.having(DEDUPE_REDIS_URL=own_redis.url)
    [first] = await read(place, [order(1)], ids(0))
    content = content_hash(order(1))
    async with claiming(place) as claims:
        await claims.claim([first.id], [content])
        await claims.settle([Accepted(first, parsed(order(1)), 0)])
        assert await claims.claim(["9-9"], [content]) == {content: Claim(first.id, False)}


async def test_a_redis_of_the_claims_need_let_a_worker_at_nothing_else(
    place: Place, own_redis: RedisServer
) -> None:
    async with connect(own_redis.url, timeout_ms=5_000) as admin:
        rules = "on", ">pw", "~idempotency:*", "+@all"
        await call(admin, "ACL", "SETUSER", "claims", *rules)
    await forge_claim(place.having(DEDUPE_REDIS_URL=own_redis.url), order(1), "nobody")
    place = place.having(DEDUPE_REDIS_URL=own_redis.url.replace("://", "://claims:pw@"))
    async with working(place) as events:
        await place.publish([order(1), order(2), order(1)])
        await settled(place)
    assert await check(place) == Tally(2, 1)
    assert not events.of("dependency.lost")
    assert not events.of("claims.not_corrected")


async def test_a_claim_is_written_once_where_its_entry_becomes_the_order(place: Place) -> None:
    """Settling corrects only what Postgres contradicts."""
    await place.publish([order(1), order(2)])
    await drain(place)
    await place.forget_claims()
    await place.publish([order(1), order(3)])
    before = await writes(place)
    await drain(place)
    assert await writes(place) - before == 3  # two claimed, one corrected
    assert await check(place, claims=False) == Tally(3, 1)


async def writes(place: Place) -> int:
    """How often Redis has set a key."""
    told = await place.redis.info("commandstats")
    return told["cmdstat_set"]["calls"]
