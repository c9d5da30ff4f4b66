"""The ways in which a wrong worker may be caught, each a small test that fails for it.

They differ in what they make a worker go through, or in who judges it: the check against the producers'
journal, the product's own audit, or somebody who looks at the servers between any two calls.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from random import SystemRandom
from typing import Any

import anyio
import asyncpg
from redis import exceptions
from redis.asyncio import Redis

from streams import producer
from streams.producer import Producer, PublishFailed
from tests.chaos.faulty_io import Call, Failures, Fault, FaultyIO, Point, unwatched
from tests.chaos.proxy import Cut, Direction, Proxy
from tests.chaos.scenarios import (
    FOR_PAIRS,
    FORGOTTEN,
    MISLED,
    POISONED,
    POISONED_ID,
    RANDOM,
    SCENARIOS,
    Stage,
)
from tests.chaos.sweep import NONE, Run, Stages, lived, points_of
from tests.interleaved import interleave
from tests.isolation import Place
from tests.orders import order, orders
from tests.record import (
    Entries,
    Tally,
    audit_of,
    check,
    check_points,
    leave_points_in_hand,
    record_given_up,
    settled,
)

SETTLED_S_MAX = 10.0
DEADLY = (Fault.DIE_BEFORE, Fault.DIE_AFTER)
ONE_BY_ONE = {"WORKER_BATCH_SIZE": "1"}
SETTLEMENT = "redis settle.lua"
POINTS = "influxdb write"
REFUSE_POISON = "ALTER TABLE orders ADD CONSTRAINT no_poison CHECK (order_id <> 'poison')"
TAKE_POISON = "ALTER TABLE orders DROP CONSTRAINT no_poison"
SLOW_INSERTS = """
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_sleep(0.15); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION slowly()
"""
QUICK_INSERTS = "DROP TRIGGER slow ON orders; DROP FUNCTION slowly()"

PUBLISHED = 10
REPLIES_BYTES = 40  #: of the answers to them, that come through

Technique = Callable[[Stages], Awaitable[object]]


# --- runs that are checked against the journal ---


async def sound_runs(on: Stages) -> None:
    """Nothing goes wrong, in a busy stream and in a new one."""
    await _all(on, map(Run, SCENARIOS))


async def redis_forgot(on: Stages) -> None:
    """Redis has lost the group and the claims, or what it says of claims is wrong."""
    await _all(on, map(Run, (MISLED, FORGOTTEN)))


async def redis_forgot_all(on: Stages) -> None:
    """A worker dies between its commit and its points, and Redis forgets all that it had."""
    async with on.taken() as stage:
        for fault in DEADLY:
            await check_points(await _forgotten(stage, fault))


async def _forgotten(stage: Stage, fault: Fault) -> Place:
    place, sent = await stage.set(FOR_PAIRS)
    await lived(place, FaultyIO(place.settings, {Point(POINTS, 0): fault}))
    recorded = await place.fetch("SELECT FROM outcomes WHERE stream = $1", place.stream)
    assert len(recorded) == len(sent)
    await place.command("FLUSHDB")
    await leave_points_in_hand(place)
    await _lives(place)
    return place


async def chance(on: Stages) -> None:
    """Orders by chance, many of them repeats; the rows of each batch lie in the order of their hashes."""
    async with on.taken() as stage:
        await on.run_on(stage, Run(RANDOM))
        rows = await stage.place.fetch(
            "SELECT content_hash, recorded_at FROM orders WHERE generation = 0 ORDER BY ctid"
        )
    batches: dict[Any, list[bytes]] = {}
    for row in rows:
        batches.setdefault(row["recorded_at"], []).append(row["content_hash"])
    assert list(batches.values()) == [sorted(hashes) for hashes in batches.values()]


async def single_faults(on: Stages) -> None:
    """One call goes wrong, the first of each kind, with an entry in each batch."""
    kinds = {point.name: point for point in await points_of(on, FOR_PAIRS, ONE_BY_ONE)}
    first = [Point(name, 0) for name in kinds]
    faults = (Fault.DIE_BEFORE, Fault.DIE_AFTER, Fault.LOSE_REPLY, Fault.ERROR)
    await _all(
        on,
        (Run(FOR_PAIRS, [{point: fault}], ONE_BY_ONE) for fault in faults for point in first),
    )


async def pairs_of_faults(on: Stages) -> None:
    """InfluxDB refuses the first points, or a read's reply is lost, and then the worker dies somewhere."""
    points = await points_of(on, FOR_PAIRS, ONE_BY_ONE)
    firsts = {
        Point(POINTS, 0): Fault.ERROR,
        Point("redis XREADGROUP new", 0): Fault.LOSE_REPLY,
    }
    await _all(
        on,
        (
            Run(FOR_PAIRS, [{first: fault, Point(name, 1): Fault.DIE_AFTER}], ONE_BY_ONE)
            for first, fault in firsts.items()
            for name in dict.fromkeys(point.name for point in points)
        ),
    )


async def _all(on: Stages, runs: Iterator[Run]) -> None:
    async def make(run: Run) -> None:
        await on.run(run)

    await on.each(runs, make)


async def a_row_is_refused(on: Stages) -> None:
    """Postgres refuses one row of a batch."""
    async with on.taken() as stage, _poisoned(stage) as (place, sent):
        await _lives(place)
        refused = frozenset({POISONED_ID})
        assert await check(place, sent=sent, refused_rows=refused) == Tally(5, 0, 1)


@asynccontextmanager
async def _poisoned(stage: Stage) -> AsyncGenerator[tuple[Place, Entries]]:
    place, sent = await stage.set(POISONED, retention=False)
    await place.postgres.execute(REFUSE_POISON)
    try:
        yield place, sent
    finally:
        await stage.clear(place)
        await place.postgres.execute(TAKE_POISON)


# --- others that judge ---


async def audit(on: Stages) -> None:
    """The product's own audit, after runs in which Redis was wrong, a row was refused, and a worker died."""
    async with on.taken() as stage:
        dies = {Point(SETTLEMENT, 0): Fault.DIE_AFTER}
        for scenario, faults in ((MISLED, NONE), (RANDOM, NONE), (FOR_PAIRS, dies)):
            place, _ = await stage.set(scenario, retention=False)
            await _lives(place, faults)
            await _audited(place)
        await _audited(await _forgotten(stage, Fault.DIE_BEFORE))
        async with _poisoned(stage) as (place, _):
            await _lives(place)
            await _audited(place)


async def _lives(place: Place, *faults: Mapping[Point, Fault]) -> None:
    for each in (*faults, NONE):
        await lived(place, FaultyIO(place.settings, each))
    await settled(place, within_s=SETTLED_S_MAX)


async def _audited(place: Place) -> None:
    found = await audit_of(place)
    assert found.balanced, found.differences


class Looker(FaultyIO):
    """Looks, between any two calls of a worker, for what may be so at no moment.

    :ivar seen: what was
    """

    def __init__(self, place: Place, faults: Mapping[Point, Fault], *, full: bool = False) -> None:
        super().__init__(place.settings, faults)
        self._place, self._full = place, full
        self._looking = anyio.Lock()
        self.seen: list[str] = []

    async def call(self, name: str, call: Call, late: Call | None, failures: Failures) -> Any:  # noqa: ANN401
        """See `FaultyIO.call`. With `full`, Redis has no memory for a settlement."""
        with unwatched():
            await self._look()
            if name == POINTS:
                await self._look_for_points()
        full = self._full and name == SETTLEMENT
        if full:
            await self._have_memory(1)
        try:
            return await super().call(name, call, late, failures)
        finally:
            with anyio.CancelScope(shield=True), unwatched():
                if full:
                    await self._have_memory(0)
                if name == SETTLEMENT:
                    await self._look()
                    await self._look_for_points()

    async def _have_memory(self, bytes_max: int) -> None:
        with unwatched():
            await self._place.command("CONFIG", "SET", "maxmemory", bytes_max)

    async def _look(self) -> None:
        async with self._looking:
            done = await self._acknowledged()
            for what, query in NEVER.items():
                if rows := await self._place.fetch(query, self._place.stream, done):
                    self.seen.append(f"{what}: {[tuple(row.values()) for row in rows]}")
            letters = await self._place.command("HKEYS", f"{{{self._place.stream}}}:dead:index")
            rejected = await self._place.fetch(REJECTED, self._place.stream, done)
            if missing := {row["entry_id"] for row in rejected} - set(letters):
                self.seen.append(f"acknowledged without a dead letter: {missing}")

    async def _look_for_points(self) -> None:
        recorded = await self._place.fetch(RECORDED, self._place.stream)
        owed = await self._place.fetch(OWED, self._place.stream)
        written = await self._place.points()
        done = {row["entry_id"] for row in recorded}
        if missing := done - {row["entry_id"] for row in (*owed, *written)}:
            self.seen.append(f"on record, its point neither written, in hand nor owed: {missing}")

    async def _acknowledged(self) -> list[str]:
        """The entries that were read and are pending no more."""
        place = self._place
        try:
            groups: list[list[Any]] = await place.command("XINFO", "GROUPS", place.stream)
            words = groups[0]
            last = dict(zip(words[::2], words[1::2], strict=True))["last-delivered-id"]
            pending = await place.command(
                "XPENDING", place.stream, place.settings.group, "-", "+", 1000
            )
        except (exceptions.ResponseError, IndexError):  # no stream, or no group
            return []
        read = [entry_id for entry_id, _ in await place.command("XRANGE", place.stream, "-", last)]
        held = {row[0] for row in pending}
        return [entry_id for entry_id in read if entry_id not in held]


#: What is so at no moment.  $1 stream, $2 acknowledged entries
NEVER = {
    "acknowledged, and not on record": """
        SELECT id FROM unnest($2::text[]) id
        WHERE NOT EXISTS (SELECT FROM outcomes o WHERE o.stream = $1 AND o.entry_id = id)
    """,
    "two outcomes": """
        SELECT entry_id FROM outcomes WHERE stream = $1 AND $2::text[] IS NOT NULL
        GROUP BY entry_id HAVING count(*) > 1
    """,
    "accepted twice within the window": """
        SELECT a.entry_id, b.entry_id FROM orders a JOIN orders b USING (content_hash)
        WHERE a.stream = $1 AND a.generation < b.generation AND $2::text[] IS NOT NULL
            AND b.entry_at - a.entry_at <= interval '60 seconds'
    """,
}
RECORDED = "SELECT entry_id FROM outcomes WHERE stream = $1"
OWED = """
SELECT entry_id FROM point_backlog WHERE stream = $1
UNION ALL SELECT unnest(entry_ids) FROM points_in_hand WHERE stream = $1
"""
REJECTED = "SELECT entry_id FROM rejections WHERE stream = $1 AND entry_id = ANY ($2)"


async def every_moment(on: Stages) -> None:
    """Somebody looks between any two calls: with Redis wrong, servers that refuse, memory that is full."""
    refused = {
        Point(POINTS, 0): Fault.ERROR,
        Point("postgres record_outcomes", 0): Fault.ERROR,
    }
    full = {Point(SETTLEMENT, 0): Fault.DIE_AFTER}
    async with on.taken() as stage:
        for scenario, faults in ((MISLED, NONE), (FOR_PAIRS, refused), (FOR_PAIRS, full)):
            place, _ = await stage.set(scenario)
            place = place.having(**(ONE_BY_ONE if faults is refused else {}))
            looker = Looker(place, faults, full=faults is full)
            await lived(place, looker)
            assert not looker.seen


async def redis_full(on: Stages) -> None:
    """Redis has no memory for a settlement, and the worker dies of something else."""
    async with on.taken() as stage:
        place, sent = await stage.set(FOR_PAIRS)
        await lived(place, Looker(place, {Point(SETTLEMENT, 0): Fault.DIE_AFTER}, full=True))
        await _lives(place)
        # A claim is a hint, and is left out.
        assert await check(place, sent=sent, claims=False) == FOR_PAIRS.expected


async def rivals(on: Stages) -> None:
    """Two batches of the same orders, one the other way round, go in at once and slowly: none is a victim."""
    async with on.taken() as stage:
        place = await stage.empty()
        place = place.having(
            WORKER_STREAMS=f"{place.stream}-a,{place.stream}-b",
            # so that Postgres finds them waiting for each other, after a second, before we give up
            WORKER_POSTGRES_TIMEOUT="5s",
            WORKER_TAKEOVER_AFTER="60s",
        )
        some = orders(range(4))
        for stream, sent in zip(place.settings.streams, (some, some[::-1]), strict=True):
            await Producer(place.redis, stream).publish(sent)
        await place.postgres.execute(SLOW_INSERTS)
        try:
            victims = Victims(place.settings)
            await lived(place, victims)
        finally:
            await place.postgres.execute(QUICK_INSERTS)
        tally = await place.fetch("SELECT outcome FROM outcomes ORDER BY outcome")
        assert [row["outcome"] for row in tally] == ["accepted"] * 4 + ["duplicate"] * 4
        assert not victims.count, "two workers waited for each other"


class Victims(FaultyIO):
    """Counts the statements that Postgres ends because two transactions wait for each other."""

    count = 0

    async def call(self, name: str, call: Call, late: Call | None, failures: Failures) -> Any:  # noqa: ANN401
        """See `FaultyIO.call`."""
        try:
            return await super().call(name, call, late, failures)
        except asyncpg.DeadlockDetectedError:
            self.count += 1
            raise


async def interleavings(on: Stages) -> None:
    """Workers, their settings different in some rounds, record the same entries at once."""
    async with on.taken() as stage:
        await interleave(await stage.empty(), seed=str(SystemRandom().getrandbits(32)), rounds=6)


async def other_rules(on: Stages) -> None:
    """Redis has lost the group, and the worker that reads all again has another envelope."""
    async with on.taken() as stage:
        place = await stage.empty()
        await place.publish([order(1, nonce=nonce) for nonce in ("1", "2", "1")])
        await _lives(place)
        before = await place.fetch(TOLD)
        await place.command("XGROUP", "DESTROY", place.stream, place.settings.group)
        await _lives(place.having(WORKER_ENVELOPE_FIELDS="order_id,nonce"))
        assert await place.fetch(TOLD) == before


async def given_up(on: Stages) -> None:
    """A worker gives an entry up, and dies; another one reads it, and once more when the group is lost."""
    async with on.taken() as stage:
        place = await stage.empty()
        sent = await place.publish(orders(range(3)))
        await record_given_up(place, sent[1])
        for _ in range(2):
            await _lives(place)
            assert [row["outcome"] for row in await place.fetch(TOLD)] == [
                "accepted",
                "rejected",
                "accepted",
            ]
            await _audited(place)
            await place.command("XGROUP", "DESTROY", place.stream, place.settings.group)


TOLD = "SELECT entry_id, outcome, original_entry_id FROM outcomes ORDER BY entry_id, outcome"


# --- producers ---


async def producers_journal(on: Stages) -> None:
    """What a producer was told is what is on record, where a reply is lost and where memory is full."""
    async with on.taken() as stage:
        for publish in (_reply_lost, _memory_full):
            place = await stage.empty()
            told = await publish(place)
            if not await place.command("EXISTS", place.stream):
                await place.command(
                    "XGROUP", "CREATE", place.stream, place.settings.group, "0", "MKSTREAM"
                )
            await _lives(place)
            rows = await place.fetch("SELECT entry_id, order_id FROM outcomes")
            sure = {entry_id for entry_id in told.ids if entry_id}
            refused = told.ids.count(None)
            assert sure <= {row["entry_id"] for row in rows}
            assert len(rows) <= len(sure) + told.unsure
            assert len({row["order_id"] for row in rows}) == len(rows), "an order is there twice"
            assert len(sure) + refused + told.unsure + told.unsent == PUBLISHED


async def commands_counted(on: Stages) -> None:
    """Redis itself tells how many entries there are, and how often it was asked to add one."""
    async with on.taken() as stage:
        for publish in (_reply_lost, _memory_full):
            place = await stage.empty()
            await place.command("CONFIG", "RESETSTAT")
            told = await publish(place)
            length = await place.command("XLEN", place.stream)
            stats: Any = await place.redis.info("commandstats")
            asked = stats.get("cmdstat_xadd", {"calls": 0})["calls"]
            assert asked <= PUBLISHED
            assert length + told.ids.count(None) + told.unsent <= PUBLISHED
            assert length + told.ids.count(None) + told.unsent + told.unsure >= PUBLISHED


async def _reply_lost(place: Place) -> PublishFailed:
    async with (
        Proxy.before(place.settings.redis_address) as proxy,
        producer.connect(proxy.url) as redis,
    ):
        await redis.ping()
        passed = proxy.passed[Direction.TO_CLIENT]
        await proxy.inflict(Cut(Direction.TO_CLIENT, passed + REPLIES_BYTES))
        return await _published(place, redis)


async def _memory_full(place: Place) -> PublishFailed:
    await place.command("CONFIG", "SET", "maxmemory", 1)
    try:
        async with producer.connect(place.settings.redis_address) as redis:
            return await _published(place, redis)
    finally:
        await place.command("CONFIG", "SET", "maxmemory", 0)


async def _published(place: Place, redis: Redis) -> PublishFailed:
    """What a producer believes that became of its orders."""
    try:
        ids = await Producer(redis, place.stream).publish(orders(range(PUBLISHED)))
    except PublishFailed as told:
        return told
    return PublishFailed("", list(ids), 0, 0)


#: Quick ones first.
WORKERS: dict[str, Technique] = {
    "sound runs": sound_runs,
    "Redis forgot": redis_forgot,
    "Redis forgot all": redis_forgot_all,
    "chance": chance,
    "a row refused": a_row_is_refused,
    "other rules": other_rules,
    "given up": given_up,
    "Redis full": redis_full,
    "rivals": rivals,
    "every moment": every_moment,
    "audit": audit,
    "pairs of faults": pairs_of_faults,
    "interleavings": interleavings,
    "single faults": single_faults,
}
PRODUCERS: dict[str, Technique] = {
    "producer's journal": producers_journal,
    "commands counted": commands_counted,
}
