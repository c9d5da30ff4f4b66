"""`explain`: what became of an order or an entry, and why, from every server that knows something of it.

A server that does not answer leaves its part open; the rest is told all the same.
"""

import argparse
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

import msgspec

from streams.connection import call
from streams.entry import ENTRY_ID, Entry, EntryId
from streams.look import (
    Delivery,
    delivery,
    entries_between,
    entry_of,
    last_delivered,
    pending_ids,
    stream_state,
)
from worker.errors import BadUsage, NoAnswer, PostgresRefused
from worker.ledger import queries
from worker.operate.command import (
    Servers,
    now_ms,
    run,
    schema_checked,
    servers_told,
    streams_of,
)
from worker.operate.dead_letters import changed
from worker.operate.explain_report import (
    Answer,
    Listed,
    Original,
    print_answer,
    sentence,
    sentence_now,
    sentence_unrecorded,
)
from worker.operate.output import print_json, printable
from worker.order import HASH_TAG, Malformed, canonical, parse
from worker.points import time_ns

SQL = queries("operate")
LISTED_MAX = 10  #: entries of one content, or of one order id, that are listed
LOOKED_THROUGH_MAX = 200_000  #: entries of a stream that are looked through for an order id

T = TypeVar("T")
Row = dict[str, Any]


class Place(NamedTuple):
    """Where an entry is in Redis: itself, where it is in its stream; who holds it; both in words."""

    entry: Entry | None
    held: Delivery | None
    state: str


class Question(msgspec.Struct, frozen=True):
    """What is asked about: an entry, an order id, or the fields of an order."""

    entry_id: str | None = None
    order_id: str | None = None
    fields: list[str] | None = None


def run_explain(options: argparse.Namespace) -> int:
    """Explain what was asked. 0 where it is known, 1 where it is not or cannot be said."""
    return run(lambda servers: _run(servers, options))


async def _run(servers: Servers, options: argparse.Namespace) -> int:
    question = _question(options)
    found = await explain(servers, streams_of(servers.settings, options.stream), question)
    if options.json:
        print_json(found)
    else:
        print_answer(found)
    return 0 if found.known else 1


def _question(options: argparse.Namespace) -> Question:
    assigned = [word.partition("=") for word in options.what if "=" in word]
    words = [word for word in options.what if "=" not in word]
    pairs = [*options.field, *((name, value) for name, _, value in assigned)]
    fields = ["payload", options.payload] if options.payload is not None else []
    fields += [word for pair in pairs for word in pair]
    given = len(words) + bool(fields) + (options.order_id is not None)
    if given != 1 or (options.payload is not None and pairs):
        raise BadUsage(
            "explain takes one of these: an entry id, an order id, fields as name=value, or --payload; "
            "see `python -m worker explain --help`"
        )
    if fields:
        return Question(fields=fields)
    order_id = words[0] if words else str(options.order_id)
    if not (0 < len(order_id) <= 128 and order_id.isprintable()):
        raise BadUsage("an order id is 1 to 128 printable characters")
    return Question(order_id if words and ENTRY_ID.fullmatch(order_id) else None, order_id)


async def explain(servers: Servers, streams: Sequence[str], question: Question) -> Answer:
    """What is known of an entry, an order id or an order's fields.

    :param streams: where to look for an entry that is not on record, or for an entry id
    """
    look = _Look(servers, streams)
    await look.ask("Postgres", lambda: schema_checked(servers))
    if question.fields is not None:
        await look.at_fields(question.fields)
    else:
        await look.at_entry(question)
    look.found.window_ms = servers.settings.dedupe_window_ms
    return look.found


@dataclass
class _Look:
    """One look at all servers. A server that does not answer is asked once."""

    servers: Servers
    streams: Sequence[str]
    found: Answer = field(default_factory=Answer)

    async def ask(self, server: str, question: Callable[[], Awaitable[T]]) -> T | None:
        """What a server says; None, and a note, where it does not answer."""
        if server in self.found.unanswered:
            return None
        try:
            with servers_told():
                return await question()
        except (NoAnswer, PostgresRefused) as error:
            self.found.unanswered[server] = str(error)
            return None

    async def rows(self, name: str, *arguments: object) -> list[Row]:
        """The rows of a query; none where Postgres does not answer."""

        async def fetch() -> list[Row]:
            async with self.servers.ledger.connection() as connection:
                return [dict(row) for row in await connection.fetch(SQL[name], *arguments)]

        return await self.ask("Postgres", fetch) or []

    # --- which entry ---

    async def at_entry(self, question: Question) -> None:
        """Explain an entry, or the newest one of an order id."""
        row: Row | None = None
        if question.entry_id:
            asked = self.streams, question.entry_id, None, None, LISTED_MAX
            rows = await self.rows("outcomes_where", *asked)
            row = rows[0] if rows else None
            self.found.same_entry_id = [
                _listed(r) for r in rows[1:] if r["stream"] == rows[0]["stream"]
            ]
            if row is None and await self._in_streams(question.entry_id):
                return
        if row is None and question.order_id is not None:
            row = await self._newest_of(question.order_id)
        if row:
            await self._at_row(row)
        elif question.order_id is None or not await self._by_order_id(question.order_id):
            self._unknown(question)

    async def _newest_of(self, order_id: str) -> Row | None:
        rows = await self.rows("outcomes_where", None, None, order_id, None, LISTED_MAX)
        if not rows:
            return None
        self.found.same_order_id = [_listed(row) for row in reversed(rows)]
        self.found.same_order_id_count = rows[0]["total"]
        return rows[0]

    async def _in_streams(self, entry_id: str) -> bool:
        """Explain an entry that is in a stream and not on record. Says whether there is one."""
        for stream in self.streams:
            entry = await self.ask(
                "Redis", lambda stream=stream: entry_of(self.servers.redis, stream, entry_id)
            )
            if entry:
                await self._at_unrecorded(entry)
                return True
        return False

    async def _by_order_id(self, order_id: str) -> bool:
        for stream in self.streams:
            entry = await self.ask("Redis", lambda stream=stream: self._unsettled(stream, order_id))
            if entry:
                await self._at_unrecorded(entry)
                return True
        return False

    async def _unsettled(self, stream: str, order_id: str) -> Entry | None:
        """The first entry with this order id among those pending or unread: others are on record."""
        redis, group = self.servers.redis, self.servers.settings.group
        state = await stream_state(redis, stream)
        if not state:
            return None
        first = await last_delivered(redis, stream, group)
        async for pending in pending_ids(redis, stream, group):
            first = pending
            break
        looked = 0
        async for entries in entries_between(redis, stream, first, state.last):
            for entry in entries:
                likely = any(order_id in word for word in entry.fields or ())
                if likely and parse(entry.fields).order_id == order_id:
                    return entry
            looked += len(entries)
            if looked >= LOOKED_THROUGH_MAX:
                break
        return None

    def _unknown(self, question: Question) -> None:
        what = f"entry {question.entry_id}, or order id" if question.entry_id else "order id"
        found, streams = self.found, ", ".join(self.streams)
        if found.unanswered:
            found.answer = (
                f"Cannot be said: not every server answers ({', '.join(found.unanswered)})."
            )
            return
        found.answer = (
            f"Unknown: no {what} {printable(question.order_id or '')} is on record in schema "
            f"{self.servers.settings.database_schema}, nor waiting in {streams}."
        )

    # --- one entry ---

    async def _at_row(self, row: Row) -> None:
        found = self.found
        found.known = True
        found.stream, found.entry_id, found.outcome = row["stream"], row["entry_id"], row["outcome"]
        found.order_id, found.code, found.reason = row["order_id"], row["code"], row["reason"]
        found.generation = row["generation"]
        found.recorded_at = row["recorded_at"].isoformat()
        entry = await self._in_redis(row["stream"], row["entry_id"])
        if row["content_hash"]:
            await self._at_content(row["content_hash"], row["stream"], entry and entry.fields)
            await self._beside(row)
        await self._at_point(row)
        await self._at_replays()
        found.answer = sentence(found, self.servers.settings.dedupe_window_ms)

    async def _at_unrecorded(self, entry: Entry) -> None:
        found = self.found
        found.stream, found.entry_id = entry.stream, entry.id
        await self._in_redis(entry.stream, entry.id)
        parsed = parse(entry.fields, self.servers.settings.envelope_fields)
        found.order_id = parsed.order_id
        if isinstance(parsed, Malformed):
            found.code, found.reason = parsed.code, parsed.reason
        else:
            await self._at_content(parsed.content_hash, entry.stream, entry.fields)
        await self._at_replays()
        found.known = "Postgres" not in found.unanswered and found.in_redis != "acknowledged"
        found.answer = sentence_unrecorded(found)

    async def _in_redis(self, stream: str, entry_id: str) -> Entry | None:
        """Where the entry is in Redis, noted; and the entry, where it still is in its stream."""
        there = await self._place(stream, entry_id)
        if there is None:
            return None
        entry, self.found.pending, self.found.in_redis = there
        return entry

    async def _place(self, stream: str, entry_id: str) -> Place | None:
        redis, group = self.servers.redis, self.servers.settings.group

        async def look() -> Place:
            entry = await entry_of(redis, stream, entry_id)
            position = await last_delivered(redis, stream, group)
            held = await delivery(redis, stream, group, entry_id)
            unread = position is None or EntryId.parse(entry_id) > position
            state = "pending" if held else "unread" if entry and unread else "acknowledged"
            return Place(entry, held, state if entry or held else "not in the stream any more")

        return await self.ask("Redis", look)

    async def _beside(self, row: Row) -> None:
        """The order that a duplicate repeats; of a later generation, the one before it."""
        repeat = row["outcome"] == "duplicate"
        generation = row["generation"] - (0 if repeat else 1)
        if generation < 0:
            return
        for order in await self.rows("order_of", row["content_hash"], generation):
            apart = EntryId.parse(row["entry_id"]).ms - EntryId.parse(order["entry_id"]).ms
            self.found.original = Original(
                order["stream"], order["entry_id"], order["order_id"], apart
            )

    async def _at_point(self, row: Row) -> None:
        at = time_ns(row["entry_id"])

        async def outcomes() -> list[str]:
            pages = self.servers.points.between(row["stream"], at, at)
            return [point.outcome async for page in pages for point in page]

        there = await self.ask("InfluxDB", outcomes)
        owed = await self.rows("point_owed", row["stream"], row["entry_id"])
        if owed:
            refusal = owed[0]["refusal"]
            self.found.point = f"refused: {refusal}" if refusal else "owed, to be written"
        elif there is not None:
            wrong = f"wrong: it tells of the outcome {', '.join(there)}" if there else "missing"
            self.found.point = "found" if there == [row["outcome"]] else wrong

    async def _at_replays(self) -> None:
        stream, entry_id = self.found.stream, self.found.entry_id
        for row in await self.rows("replays_about", stream, entry_id):
            changes = f", with {', '.join(row['changed'])} changed" if row["changed"] else ""
            ours = row["entry_id"] == entry_id
            told = (
                f"is {row['origin_id']} sent again" if ours else f"sent again as {row['entry_id']}"
            )
            self.found.replays.append(printable(told + changes))

    # --- one content ---

    async def at_fields(self, fields: list[str]) -> None:
        """Explain what the fields of an order would be. An order id is not needed: it is no content."""
        envelope = self.servers.settings.envelope_fields
        parsed = parse(fields, envelope)
        if isinstance(parsed, Malformed) and parsed.code == "order_id_missing":
            fields = changed(fields, [("order_id", "-")], [])
            parsed = parse(fields, envelope)
        found = self.found
        if isinstance(parsed, Malformed):
            found.code, found.reason, found.known = parsed.code, parsed.reason, True
            found.answer = (
                f"No order: it would be rejected, {parsed.code}: {printable(parsed.reason)}."
            )
            return
        await self._at_content(parsed.content_hash, self.streams[0], fields)
        rows = await self.rows("outcomes_where", None, None, None, parsed.content_hash, LISTED_MAX)
        found.known = bool(rows)
        if "Postgres" in found.unanswered:
            found.answer = "Cannot be said: Postgres does not answer."
            return
        newest = max((row["generation"] for row in rows), default=0)
        for order in await self.rows("order_of", parsed.content_hash, newest):
            apart = now_ms() - EntryId.parse(order["entry_id"]).ms
            found.original = Original(order["stream"], order["entry_id"], order["order_id"], apart)
        found.answer = sentence_now(found.original, self.servers.settings.dedupe_window_ms)

    async def _at_content(
        self, content_hash: bytes, stream: str, fields: Sequence[str] | None
    ) -> None:
        found = self.found
        found.content_hash = content_hash.hex()
        rows = await self.rows("outcomes_where", None, None, None, content_hash, LISTED_MAX)
        found.same_content = [_listed(row) for row in reversed(rows)]
        found.same_content_count = rows[0]["total"] if rows else 0
        texts = [fields] if fields else []
        if rows and not fields:  # the entry has left the stream: from the order on record
            orders = await self.rows("order_of", content_hash, rows[0]["generation"])
            texts = [_fields_of(order) for order in orders]
        for text in texts:
            found.canonical = _canonical(text, self.servers.settings.envelope_fields, content_hash)
        await self._at_claim(content_hash, stream)

    async def _at_claim(self, content_hash: bytes, stream: str) -> None:
        key = f"idempotency:order:{{{stream}}}:{content_hash.hex()}"
        claims, found = self.servers.claims, self.found
        kind = await self.ask("Redis (claims)", lambda: call(claims, "TYPE", key))
        if kind != "string":
            there = (
                None
                if kind is None
                else "none"
                if kind == "none"
                else f"a {kind}, which is no claim"
            )
            found.claim_says = there
            return
        found.claim = await self.ask("Redis (claims)", lambda: call(claims, "GET", key))
        found.claim_expires_ms = await self.ask("Redis (claims)", lambda: call(claims, "PTTL", key))
        entry_id = found.claim or ""
        if not ENTRY_ID.fullmatch(entry_id):
            found.claim_says = "names no entry, which says nothing"
            return
        # First Redis: what is in nobody's hand by then has its outcome on record.
        named = await self._place(stream, entry_id)
        outcomes = await self._outcomes_of(stream, entry_id, content_hash)
        if "accepted" in outcomes:
            found.claim_says = "agrees"
        elif outcomes:
            found.claim_says = f"names an entry on record as {outcomes[0]}"
        elif named and "Postgres" not in found.unanswered:
            in_hand = named.state in ("pending", "unread")
            found.claim_says = (
                "held until the outcome of that entry is on record"
                if in_hand
                else "contradicts Postgres, which has no such entry"
            )

    async def _outcomes_of(self, stream: str, entry_id: str, content_hash: bytes) -> list[str]:
        """What is on record of the entry that claimed a content, which may be of another stream."""
        return [
            row["outcome"]
            for row in await self.rows("outcomes_where", None, entry_id, None, None, LISTED_MAX)
            if row["content_hash"] == content_hash
            or (row["content_hash"] is None and row["stream"] == stream)
        ]


def _listed(row: Row) -> Listed:
    names = ("stream", "entry_id", "outcome", "order_id", "generation")
    return Listed(*(row[name] for name in names))


def _fields_of(order: Row) -> list[str]:
    """An order on record as the payload that it might have been."""
    extra = msgspec.json.decode(order["extra"] or "{}", type=dict[str, msgspec.Raw])
    names = ("order_id", "account", "symbol", "side", "type", "quantity", "price", "stop_price")
    model = {name: order[name] for name in (*names, "time_in_force")}
    expires = order["expire_at"]
    model["expire_time"] = expires.isoformat() if expires else None
    return ["payload", msgspec.json.encode({**extra, **model}).decode()]


def _canonical(fields: Sequence[str], envelope: frozenset[str], content_hash: bytes) -> str | None:
    """The canonical content; None where it is not what was hashed: the envelope was another then."""
    try:
        content = canonical(fields, envelope)
    except ValueError:
        return None
    return content.decode() if sha256(HASH_TAG + content).digest() == content_hash else None
