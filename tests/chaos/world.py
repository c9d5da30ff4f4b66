"""One stream and its servers from the beginning, with books of its own on what was published.

What is expected follows from the producer's own journal, never from Redis, which may have lost it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import anyio
from anyio import to_thread

from tests.chaos.faulty_io import Died, Fault, FaultyIO, Point, wrapped_libraries
from tests.isolation import Place
from tests.record import (
    Expected,
    Reference,
    Row,
    check_points,
    dead_letters,
    forge_claim,
    is_settled,
    leave_points_in_hand,
    points_in_hand_told,
    points_paid,
    read_entries,
    record_given_up,
)
from worker.service import serve
from worker.settings import Settings

RUN_S_MAX = 60
TABLES = ("points_in_hand", "point_backlog", "duplicates", "orders", "rejections", "rules")
GIVEN_UP = Expected("rejected")
IDLE_MS = 3_600_000  #: longer than any takeover time
Fields = Mapping[str, str]


@dataclass(frozen=True)
class OldRedis:
    """Every key of a database as it was, with its time to live, and what the stream then held or had held."""

    keys: Mapping[str, tuple[int, bytes]]
    known: frozenset[str]


NEW_REDIS = OldRedis({}, frozenset())


@dataclass
class World:
    """Changed by a test one step at a time. Ids go up; the test gives them.

    :ivar journal: what was published, by entry id
    :ivar lost: of those, what Redis lost before it was on record
    :ivar in_order: one worker after the other read the stream from end to end
    :ivar letters: Redis has all dead letters it ever had
    :ivar given_up: what somebody gave up before anybody had recorded it
    :ivar settings: those of the workers, each from an instant on by Postgres' clock
    """

    place: Place
    consumer: str = "one"
    journal: dict[str, Fields] = field(default_factory=dict[str, Fields])
    lost: set[str] = field(default_factory=set[str])
    in_order: bool = True
    letters: bool = True
    given_up: set[str] = field(default_factory=set[str])
    settings: list[tuple[datetime, Settings]] = field(
        default_factory=list[tuple[datetime, Settings]]
    )

    def __post_init__(self) -> None:
        self.settings.append((datetime.min.replace(tzinfo=UTC), self.place.settings))

    # --- what producers do ---

    async def publish(self, entry_id: str, fields: Fields) -> None:
        """Publish an entry and note it."""
        words = [word for pair in fields.items() for word in pair]
        await self.place.command("XADD", self.place.stream, entry_id, *words)
        self.journal[entry_id] = fields

    # --- what happens to Redis ---

    async def photograph(self) -> OldRedis:
        """Keep all that Redis holds now."""
        keys: dict[str, tuple[int, bytes]] = {}
        for key in sorted(await self.place.command("KEYS", "*")):
            dumped: str | None = await self.place.command("DUMP", key)
            ttl_ms: int = await self.place.command("PTTL", key)
            if dumped is not None:
                keys[key] = (max(0, ttl_ms), dumped.encode(errors="surrogateescape"))
        return OldRedis(keys, frozenset(self.journal) - self.lost)

    async def bring_back(self, old: OldRedis) -> None:
        """Redis goes back in time: what it was told since is gone, and what nobody had read with it."""
        recorded = await self.recorded()
        self.lost = self.journal.keys() - recorded - old.known
        self.letters = self.in_order = False
        await self.place.command("FLUSHDB")
        for key, (ttl_ms, dumped) in old.keys.items():
            await self.place.command("RESTORE", key, ttl_ms, dumped)

    async def lose_claims(self) -> None:
        """Forget every other claim."""
        keys = sorted(await self.place.command("KEYS", "idempotency:order:*"))[::2]
        if keys:
            await self.place.command("DEL", *keys)

    async def forge_claim(self, fields: Fields, value: str) -> None:
        """Let Redis remember of a content what never was so."""
        await forge_claim(self.place, fields, value)

    async def lose_group(self) -> None:
        """Remove the group with all that it knows."""
        if await self._group():
            await self.place.command("XGROUP", "DESTROY", *self._names)

    async def redeliver(self) -> None:
        """Set the group back, so that everything in the stream is read again."""
        if await self._group():
            await self.place.command("XGROUP", "SETID", *self._names, "0")

    async def read_and_die(self, count: int) -> None:
        """A worker of another name reads some entries and is never seen again."""
        if not await self._group():
            return
        words = ("GROUP", self.place.settings.group, f"dead-{uuid4().hex[:4]}", "COUNT", count)
        await self.place.command("XREADGROUP", *words, "STREAMS", self.place.stream, ">")
        self.in_order = False  # its entries are taken over after those that a worker holds itself

    async def trim(self) -> None:
        """Remove from the stream what is acknowledged, up to the first entry that is not."""
        group = await self._group()
        if not group:
            return
        pending = await self._pending()
        ms, seq = group["last-delivered-id"].split("-")
        first = pending[0][0] if pending else f"{ms}-{int(seq) + 1}"
        await self.place.command("XTRIM", self.place.stream, "MINID", first)

    # --- what workers do ---

    async def stop_half_way(self, at: Point, fault: Fault) -> bool:
        """Run a worker until all is drained or the fault ends it; says whether it came to the fault."""
        self.in_order = False
        io = FaultyIO(self.place.settings, {at: fault})
        await self._run(io)
        await io.overdue()
        return io.reached

    async def drain(self) -> Sequence[Point]:
        """Run a worker until all is read and acknowledged; gives its I/O calls."""
        io = FaultyIO(self.place.settings)
        await self._run(io)
        return io.calls

    async def change_settings(self, **variables: str) -> None:
        """Workers have other settings from now on."""
        self.place = self.place.having(**variables)
        [row] = await self.place.fetch("SELECT clock_timestamp() AS at")
        self.settings.append((row["at"], self.place.settings))

    async def give_up(self, entry_id: str) -> None:
        """A worker gives an entry up that it holds, and dies; whoever was first with it is right."""
        if entry_id not in await read_entries(self.place):
            return
        if entry_id not in await self.recorded():
            self.given_up.add(entry_id)
            self.in_order = False
        await record_given_up(self.place, entry_id)

    async def _run(self, io: FaultyIO) -> None:
        for entry_id, owner, *_ in await self._pending():  # else a takeover waits for seconds
            words = (*self._names, owner, 0, entry_id, "IDLE", IDLE_MS, "JUSTID")
            await self.place.command("XCLAIM", *words)
        await leave_points_in_hand(self.place)
        with anyio.fail_after(RUN_S_MAX), wrapped_libraries(), io.watching():
            try:
                await serve(self.place.having(WORKER_CONSUMER=self.consumer).settings, drain=True)
            except BaseExceptionGroup as group:
                if group.split(Died)[1] is not None:
                    raise
            except Died:
                pass

    # --- what must be so ---

    async def check(self) -> None:
        """I1 to I5, after a drain."""
        assert await is_settled(self.place)
        await points_in_hand_told(self.place)
        await points_paid(self.place)
        rows = await self.place.fetch(OUTCOMES)
        found = {row["entry_id"]: row for row in rows}
        assert len(found) == len(rows), "two outcomes of one entry"
        assert found.keys() == self.journal.keys() - self.lost
        self._check_outcomes(rows)
        self._check_contents(found)
        await self._check_letters(found)
        await check_points(self.place)
        await self.check_acknowledged()

    def _check_outcomes(self, rows: Sequence[Row]) -> None:
        """What each became follows from the order in which they were recorded."""
        reference = Reference(0, frozenset())
        expected: dict[str, Expected] = {}
        for row in sorted(rows, key=lambda row: (row["recorded_at"], _id(row["entry_id"]))):
            entry_id: str = row["entry_id"]
            words = [word.encode() for pair in self.journal[entry_id].items() for word in pair]
            settings = self._settings_of(row)
            reference.window_ms = settings.dedupe_window_ms
            reference.envelope = settings.envelope_fields | {"order_id"}
            given_up = entry_id in self.given_up
            expected[entry_id] = GIVEN_UP if given_up else reference.add(entry_id, words)
        in_order = list(expected) == sorted(expected, key=_id)
        assert in_order or not self.in_order, f"recorded in another order: {list(expected)}"
        actual = {row["entry_id"]: (row["outcome"], row["generation"]) for row in rows}
        if (
            not in_order
        ):  # where an entry lies between two accepted ones, either may be its original
            expected = {
                entry_id: replace_original(it, actual[entry_id][1])
                for entry_id, it in expected.items()
            }
        assert actual == {
            entry_id: (it.outcome, it.generation) for entry_id, it in expected.items()
        }
        self._check_originals(rows)

    def _settings_of(self, row: Row) -> Settings:
        """Those that workers had when it was recorded."""
        return [settings for since, settings in self.settings if since <= row["recorded_at"]][-1]

    def _check_originals(self, rows: Sequence[Row]) -> None:
        """Each duplicate's original is an accepted order of its content within the window."""
        accepted = {
            (row["content_hash"], row["generation"]): row
            for row in rows
            if row["outcome"] == "accepted"
        }
        for row in rows:
            if row["outcome"] == "duplicate":
                original = accepted[row["content_hash"], row["generation"]]
                assert original["entry_id"] == row["original_entry_id"]
                apart = abs(_id(row["entry_id"])[0] - _id(original["entry_id"])[0])
                assert apart <= self._settings_of(row).dedupe_window_ms

    def _check_contents(self, found: Mapping[str, Row]) -> None:
        for entry_id, row in found.items():
            sent = self.journal[entry_id]
            if row["outcome"] == "rejected":
                assert row["fields"] == [w.encode() for pair in sent.items() for w in pair]
                continue
            assert row["order_id"] == sent["order_id"]
            for name in ("quantity", "price"):
                assert row[name] == Decimal(sent[name])
            assert row["side"] == sent["side"].lower()

    async def _check_letters(self, found: Mapping[str, Row]) -> None:
        letters = [letter[b"entry_id"].decode() for letter in await dead_letters(self.place)]
        assert len(set(letters)) == len(letters)
        rejected = {entry_id for entry_id, row in found.items() if row["outcome"] == "rejected"}
        assert set(letters) == rejected if self.letters else set(letters) <= rejected

    async def check_acknowledged(self) -> None:
        """What the group has delivered and does not hold as pending is on record."""
        group = await self._group()
        if not group:
            return
        pending = {entry_id for entry_id, *_ in await self._pending()}
        last = group["last-delivered-id"]
        entries = await self.place.command("XRANGE", self.place.stream, "-", last)
        acknowledged = {entry_id for entry_id, _ in entries} - pending
        assert acknowledged <= await self.recorded(), "acknowledged and not on record"

    async def recorded(self) -> set[str]:
        """The ids of all entries on record."""
        return {row["entry_id"] for row in await self.place.fetch("SELECT entry_id FROM outcomes")}

    # --- what Redis says ---

    @property
    def _names(self) -> tuple[str, str]:
        return self.place.stream, self.place.settings.group

    async def _group(self) -> dict[str, Any] | None:
        if not await self.place.command("EXISTS", self.place.stream):
            return None
        groups = await self.place.command("XINFO", "GROUPS", self.place.stream)
        return dict(zip(groups[0][::2], groups[0][1::2], strict=True)) if groups else None

    async def _pending(self) -> list[list[Any]]:
        if not await self._group():
            return []
        return await self.place.command("XPENDING", *self._names, "-", "+", 1_000)


OUTCOMES = """
SELECT v.entry_id, v.outcome, v.order_id, v.original_entry_id, v.content_hash, v.recorded_at,
       coalesce(a.generation, d.generation) AS generation, o.quantity, o.price, o.side, r.fields
FROM outcomes v
LEFT JOIN orders a ON v.outcome = 'accepted' AND a.entry_id = v.entry_id AND a.content_hash = v.content_hash
LEFT JOIN duplicates d ON v.outcome = 'duplicate' AND d.entry_id = v.entry_id
LEFT JOIN rejections r ON v.outcome = 'rejected' AND r.entry_id = v.entry_id
LEFT JOIN orders o ON o.content_hash = v.content_hash
    AND o.generation = coalesce(a.generation, d.generation)
"""


def replace_original(expected: Expected, generation: int | None) -> Expected:
    """The same with another original, where it is a duplicate."""
    return expected._replace(generation=generation) if expected.outcome == "duplicate" else expected


def _id(entry_id: str) -> tuple[int, int]:
    ms, _, seq = entry_id.partition("-")
    return int(ms), int(seq)


async def fresh(place: Place) -> World:
    """An empty world in the place: nothing in its stores but an empty schema. End it with `end`."""
    for table in TABLES:
        await place.fetch(f"DELETE FROM {table}")
    await place.command("FLUSHDB")
    bucket = f"test_{uuid4().hex}"
    await to_thread.run_sync(place.influx.create_bucket, bucket)
    return World(replace(place, variables={**place.variables, "INFLUXDB_BUCKET": bucket}))


async def end(world: World) -> None:
    """Let go of what the world has to itself."""
    await to_thread.run_sync(world.place.influx.drop_bucket, world.place.bucket)
