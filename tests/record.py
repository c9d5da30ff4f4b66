"""What must be on record when a stream is settled: the promises of the contract, checked as a whole.

The expectation comes from what producers sent, by the plain reading of the rules in
`scripts.replay.reference`, which shares no code with the worker. Where a test keeps a journal of what it
sent, Redis is not asked: an entry that it lost or made up is noticed too.
"""

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from hashlib import sha256
from typing import Any, NamedTuple, cast

import anyio
import asyncpg
from redis.exceptions import RedisError

from scripts.replay.reference import content_of
from streams.connection import connect
from streams.entry import Entry
from tests.isolation import Place
from tests.orders import parsed
from worker.batch import GIVEN_UP
from worker.decide import Reject
from worker.ledger import Rules
from worker.operate.audit import Audit
from worker.operate.audit_report import Report, Span
from worker.operate.command import Servers
from worker.operate.point_reader import reader_of
from worker.order import READING
from worker.run import ledger_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INFLUX_NS_MAX = 2**63 - 2
#: `InternalClientError` is what asyncpg says of a connection that was cut within a statement, at times.
AWAY = (
    RedisError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)

Row = dict[str, Any]
Entries = Mapping[str, Sequence[bytes]]  #: by entry id, names and values in turn


class Expected(NamedTuple):
    """What an entry should end as. `original` is the entry id of the order that a duplicate repeats."""

    outcome: str
    generation: int | None = None
    original: str | None = None


class Tally(NamedTuple):
    """How many entries ended as what."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0


def named(words: Sequence[bytes]) -> dict[str, str]:
    """An entry's fields by name. :raises ValueError: not UTF-8, or a name twice"""
    texts = [word.decode() for word in words]
    fields = dict(zip(texts[::2], texts[1::2], strict=True))
    if 2 * len(fields) < len(words):
        raise ValueError("a name is given twice")
    return fields


@dataclass
class Reference:
    """What entries should become, read in the order given."""

    window_ms: int
    envelope: frozenset[str]
    accepted: dict[bytes, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, entry_id: str, words: Sequence[bytes]) -> Expected:
        """Take the next entry, its names and values in turn."""
        try:
            content = content_of(named(words), self.envelope)
        except ValueError:
            return Expected("rejected")
        accepted = self.accepted[content]
        near = [id_ for id_ in accepted if abs(_ms(id_) - _ms(entry_id)) <= self.window_ms]
        if not near:
            accepted.append(entry_id)
            return Expected("accepted", len(accepted) - 1)
        before = [id_ for id_ in near if _ms(id_) <= _ms(entry_id)]
        original = max(before, key=_ms) if before else min(near, key=_ms)
        return Expected("duplicate", accepted.index(original), original)


async def until(
    condition: Callable[[], Awaitable[object]], *, within_s: float = 30, every_s: float = 0.02
) -> None:
    """Wait until something is so; a server that is away is waited for. :raises TimeoutError: it is not"""
    with anyio.fail_after(within_s):
        while not await _holds(condition):  # noqa: ASYNC110 - servers send no events
            await anyio.sleep(every_s)


async def _holds(condition: Callable[[], Awaitable[object]]) -> bool:
    try:
        return bool(await condition())
    except AWAY:
        return False


async def recording(place: Place, count: int) -> bool:
    """Whether so many requests that record a batch wait for a lock on `orders`, see `Place.orders_locked`."""
    rows = await place.fetch(
        "SELECT FROM pg_locks l JOIN pg_stat_activity USING (pid) WHERE NOT l.granted"
        " AND l.relation = to_regclass('orders') AND query LIKE '%record_outcomes%'"
    )
    return len(rows) == count


async def record_given_up(place: Place, entry_id: str) -> None:
    """Record an entry as one that has ended its workers too often, as somebody who dies then."""
    settings = place.settings
    words = (await read_entries(place))[entry_id]
    entry = Entry(place.stream, entry_id, [word.decode() for word in words])
    rules = Rules(settings.dedupe_window_ms, settings.envelope_fields, READING)
    async with ledger_of(settings) as ledger:
        await ledger.record(
            place.stream, [Reject(entry, GIVEN_UP)], rules=rules, owe_points=False, read_after=None
        )


async def settled(place: Place, *, within_s: float = 30) -> None:
    """Wait until every entry is read and acknowledged, and no point is owed but refused ones."""
    await until(lambda: is_settled(place), within_s=within_s)
    await points_paid(place, within_s=within_s)


async def is_settled(place: Place) -> bool:
    """Whether the group has read the stream to its end and nothing is pending."""
    groups: list[list[Any]] = await place.command("XINFO", "GROUPS", place.stream)
    found = [dict(zip(group[::2], group[1::2], strict=True)) for group in groups]
    delivered = {group["name"]: group["last-delivered-id"] for group in found}
    last = await place.command("XREVRANGE", place.stream, "+", "-", "COUNT", 1)
    position = delivered.get(place.settings.group, "0-0")
    return (not last or _id(position) >= _id(last[0][0])) and await place.pending() == 0


async def points_paid(place: Place, *, within_s: float = 30) -> None:
    """Wait until no point is owed but refused ones."""

    async def paid() -> bool:
        owed = await place.fetch("SELECT FROM point_backlog WHERE refusal IS NULL LIMIT 1")
        return not owed

    await until(paid, within_s=within_s)


async def points_in_hand_told(place: Place, *, within_s: float = 60) -> None:
    """Wait until of every batch's points it is told that they are written, or owed by a worker's heirs."""

    async def told() -> bool:
        return not await place.fetch("SELECT FROM points_in_hand LIMIT 1")

    await until(told, within_s=within_s)


async def leave_points_in_hand(place: Place) -> None:
    """Whoever has points in hand now is dead, and was so for long."""
    await place.postgres.execute("UPDATE points_in_hand SET noted_at = noted_at - interval '1 day'")


async def check(
    place: Place,
    *,
    in_order: bool = True,
    claims: bool = True,
    refused_points: frozenset[str] = frozenset(),
    refused_rows: frozenset[str] = frozenset(),
    sent: Entries | None = None,
) -> Tally:
    """Assert everything that must hold once the stream is settled; gives how many ended as what.

    :param in_order: one worker read the stream, so each outcome follows from the entries' order; with
        several, which of equal orders was first is theirs to settle, and how many is not
    :param claims: the claims of all that is on record must be in Redis, with their time to live
    :param refused_points: entries whose points InfluxDB has refused for good
    :param refused_rows: entries that are orders by the rules, and whose rows Postgres refuses
    :param sent: the producers' journal, under the ids that `XADD` replied; an entry that was trimmed
        before it was read has no words. Without it, the stream's own entries are taken for it
    """
    assert await is_settled(place)
    entries = await read_entries(place) if sent is None else sent
    tally = await check_entries(
        place,
        entries,
        in_order=in_order,
        refused_points=refused_points,
        refused_rows=refused_rows,
    )
    if claims:
        await _check_claims(place)
    return tally


async def check_entries(
    place: Place,
    entries: Entries,
    *,
    in_order: bool = False,
    refused_points: frozenset[str] = frozenset(),
    refused_rows: frozenset[str] = frozenset(),
    letters_lost_to: str = "0-0",
) -> Tally:
    """Assert all that Postgres, the points and the dead letters must say of entries, whoever tells of them.

    :param letters_lost_to: Redis lost what it had: up to this entry, dead letters may be missing
    """
    outcomes = await place.fetch("SELECT * FROM outcomes WHERE stream = $1", place.stream)
    tally = _check_outcomes(place, entries, outcomes, refused_rows, in_order=in_order)
    await _check_orders(place, entries)
    await _check_rejections(place, entries, letters_lost_to)
    await check_points(place, refused_points)
    return tally


def as_sent(ids: Sequence[str], orders: Sequence[Mapping[str, str]]) -> Entries:
    """The journal of what was published: the orders' names and values under the ids given for them."""
    words = ([word.encode() for pair in order.items() for word in pair] for order in orders)
    return dict(zip(ids, words, strict=True))


async def read_entries(place: Place) -> Entries:
    """All entries of the place's stream."""
    return dict(await _raw_entries(place, place.stream))


async def dead_letters(place: Place) -> list[dict[bytes, bytes]]:
    """The dead letters of the place's stream, fields by name."""
    letters = await _raw_entries(place, f"{{{place.stream}}}:dead")
    return [dict(zip(words[::2], words[1::2], strict=True)) for _, words in letters]


async def audit_of(place: Place) -> Report:
    """What the product's own audit finds in the place's stream."""
    settings = place.settings
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(connect(settings.redis_address, timeout_ms=10_000))
        ledger = await stack.enter_async_context(ledger_of(settings))
        points = reader_of(settings)
        stack.push_async_callback(points.aclose)
        asked = Servers(settings, redis, redis, ledger, points)
        found = Audit(asked, Span(None, None), Report(place.stream, 5), repair=False)
        await found.run()
    return found.report


async def everything(place: Place) -> dict[str, list[Row]]:
    """Every row of the place's outcomes as it is, times of recording included, and every point."""
    tables = ("orders", "duplicates", "rejections", "point_backlog")
    rows = {
        table: await place.fetch(f"SELECT * FROM {table} ORDER BY stream, entry_id")
        for table in tables
    }
    return {**rows, "points": await place.points()}


async def _raw_entries(place: Place, stream: str) -> list[tuple[str, list[bytes]]]:
    found: list[tuple[str, list[str]]] = await place.command("XRANGE", stream, "-", "+")
    return [
        (id_, [word.encode(errors="surrogateescape") for word in words]) for id_, words in found
    ]


def _check_outcomes(
    place: Place,
    entries: Entries,
    outcomes: Sequence[Row],
    refused: frozenset[str],
    *,
    in_order: bool,
) -> Tally:
    assert sorted(row["entry_id"] for row in outcomes) == sorted(entries)
    found = {row["entry_id"]: row for row in outcomes}
    settings = place.settings
    reference = Reference(settings.dedupe_window_ms, settings.envelope_fields | {"order_id"})
    expected = {
        id_: Expected("rejected") if id_ in refused else reference.add(id_, words)
        for id_, words in entries.items()
    }
    if in_order:
        actual = {i: (found[i]["outcome"], found[i]["original_entry_id"]) for i in entries}
        assert actual == {i: (e.outcome, e.original) for i, e in expected.items()}
    tally = _tally(row["outcome"] for row in outcomes)
    assert sum(tally) == len(entries), "the accounting does not balance"
    assert tally == _tally(e.outcome for e in expected.values())
    _check_originals(found, settings.dedupe_window_ms)
    return tally


def _tally(outcomes: Iterable[str]) -> Tally:
    counts = Counter(outcomes)
    return Tally(counts["accepted"], counts["duplicate"], counts["rejected"])


def _check_originals(found: Mapping[str, Row], window_ms: int) -> None:
    """Each duplicate's original is an accepted order of the same content within the window."""
    for entry_id, row in found.items():
        if row["outcome"] == "duplicate":
            original = found[row["original_entry_id"]]
            assert original["outcome"] == "accepted"
            assert original["content_hash"] == row["content_hash"]
            assert abs(_ms(entry_id) - _ms(row["original_entry_id"])) <= window_ms


async def _check_orders(place: Place, entries: Entries) -> None:
    """Each row of `orders` and `duplicates` says what the entry's fields say, to the last digit."""
    for row in await place.fetch("SELECT * FROM orders"):
        sent = {name: value for name, value in named(entries[row["entry_id"]]).items() if value}
        assert row["entry_at"] == EPOCH + timedelta(milliseconds=_ms(row["entry_id"]))
        for name in ("order_id", "account", "symbol"):
            assert row[name] == sent.get(name)
        for name in ("side", "type"):
            assert row[name] == sent[name].lower()
        for name in ("quantity", "price", "stop_price"):
            assert _digits(row[name]) == _digits(sent.get(name))
        assert row["time_in_force"] == sent.get("time_in_force", "gtc").lower()
        assert row["notional"] == (row["price"] and _product(row["quantity"], row["price"]))
        assert len(row["content_hash"]) == 32
    for row in await place.fetch("SELECT * FROM duplicates"):
        assert row["order_id"] == named(entries[row["entry_id"]])["order_id"]
        assert row["entry_at"] == EPOCH + timedelta(milliseconds=_ms(row["entry_id"]))


def _product(quantity: Decimal, price: Decimal) -> Decimal:
    with localcontext(prec=56):  # twice as many digits as either may have: exact
        return quantity * price


def _digits(number: Decimal | str | None) -> object:
    return None if number is None else f"{Decimal(number):f}"


async def _check_rejections(place: Place, entries: Entries, letters_lost_to: str) -> None:
    """Each rejection holds the entry byte for byte, and has one dead letter that does so too."""
    rows = await place.fetch("SELECT * FROM rejections")
    letters = await _raw_entries(place, f"{{{place.stream}}}:dead")
    copies = {words[1].decode(): words for _, words in letters}
    assert len(copies) == len(letters)
    assert copies.keys() <= {row["entry_id"] for row in rows}
    for row in rows:
        fields = entries[row["entry_id"]]
        assert row["fields"] == fields
        if row["entry_id"] not in copies and _id(row["entry_id"]) <= _id(letters_lost_to):
            continue
        head = (b"entry_id", b"code", b"reason")
        values = (row["entry_id"].encode(), row["code"].encode(), row["reason"].encode())
        words = copies[row["entry_id"]]
        assert tuple(words[:6]) == tuple(
            word for pair in zip(head, values, strict=True) for word in pair
        )
        assert words[6:] == fields or words[6] == b"packed"


async def check_points(place: Place, refused: frozenset[str] = frozenset()) -> None:
    """InfluxDB holds one point for each outcome, each value the one in Postgres, and no other point.

    :param refused: entries that have none
    """
    actual: dict[str, dict[str, object]] = {}
    for point in await place.points():
        key = cast("str", point["entry_id"])
        assert key not in actual, f"two points for {key}"
        actual[key] = {name: value for name, value in point.items() if value is not None}
    rows = await place.fetch(POINTS_EXPECTED)
    expected = {row["entry_id"]: _point(row) for row in rows if row["entry_id"] not in refused}
    differing = {
        key: (actual.get(key), expected.get(key))
        for key in actual.keys() | expected.keys()
        if actual.get(key) != expected.get(key)
    }
    assert differing == {}, "points as they are and as they should be"
    parked = await place.fetch("SELECT entry_id FROM point_backlog")
    assert {row["entry_id"] for row in parked} == refused, "points owed, and refused ones"


POINTS_EXPECTED = """
SELECT v.stream, v.entry_id, v.outcome, v.order_id, v.code, v.original_entry_id,
       o.symbol, o.side, o.type, o.quantity, o.price, o.stop_price, o.generation
FROM outcomes v
LEFT JOIN duplicates d ON v.outcome = 'duplicate' AND d.stream = v.stream AND d.entry_id = v.entry_id
LEFT JOIN orders o ON (v.outcome = 'accepted' AND o.stream = v.stream AND o.entry_id = v.entry_id)
    OR (o.content_hash = d.content_hash AND o.generation = d.generation)
"""


def _point(row: Row) -> dict[str, object]:
    values: dict[str, object] = {
        name: float(value) if isinstance(value, Decimal) else value for name, value in row.items()
    }
    return {name: value for name, value in values.items() if value is not None} | {
        "time": _time_ns(row["entry_id"])
    }


def _time_ns(entry_id: str) -> int:
    ms, seq = _id(entry_id)
    ns = ms * 1_000_000 + seq
    if seq < 1_000_000 and ms < INFLUX_NS_MAX // 1_000_000:
        return ns
    return INFLUX_NS_MAX - int.from_bytes(sha256(entry_id.encode()).digest()[:6])


async def _check_claims(place: Place) -> None:
    """Each content on record is claimed in Redis, by one of its orders, for the window at most."""
    rows = await place.fetch("SELECT content_hash, entry_id FROM orders")
    originals: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        originals[claim_key(place, row["content_hash"])].add(row["entry_id"])
    async with connect(place.settings.claims_address, timeout_ms=10_000) as redis:
        for key, values in originals.items():
            assert await redis.get(key) in values
            assert 0 < await redis.ttl(key) <= max(1, place.settings.dedupe_window_ms / 1000)


def claim_key(place: Place, content_hash: bytes) -> str:
    """The name of a content's claim."""
    return f"idempotency:order:{{{place.stream}}}:{content_hash.hex()}"


async def forge_claim(place: Place, fields: Mapping[str, str], value: str | bytes) -> None:
    """Let Redis remember of an order what never was so, as long as it remembers anything."""
    settings = place.settings
    async with connect(settings.claims_address, timeout_ms=10_000) as claims:
        key = claim_key(place, parsed(fields).content_hash)
        await claims.set(key, value, px=settings.dedupe_window_ms)


def _id(entry_id: str) -> tuple[int, int]:
    ms, _, seq = entry_id.partition("-")
    return int(ms), int(seq)


def _ms(entry_id: str) -> int:
    return _id(entry_id)[0]
