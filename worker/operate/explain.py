"""`explain`: what became of an order or an entry, and why, from every server that knows something of it.

A server that does not answer leaves its part open; the rest is told all the same.
"""

import argparse
from collections.abc import Sequence

import msgspec

from streams.entry import ENTRY_ID, Entry, EntryId
from streams.look import (
    entries_between,
    entry_of,
    last_delivered,
    pending_ids,
    stream_state,
)
from worker.errors import BadUsage
from worker.operate.command import (
    Servers,
    run,
    schema_checked,
    streams_of,
)
from worker.operate.explain_content import explain_content, explain_fields
from worker.operate.explain_look import LISTED_MAX, Look, Row, listed
from worker.operate.explain_report import (
    Answer,
    Original,
    print_answer,
    sentence,
    sentence_unrecorded,
)
from worker.operate.output import print_json, printable
from worker.order import Malformed, parse
from worker.points import time_ns

LOOKED_THROUGH_MAX = 200_000  #: entries of a stream that are looked through for an order id


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
    look = Look(servers, streams)
    await look.ask("Postgres", lambda: schema_checked(servers))
    if question.fields is not None:
        await explain_fields(look, question.fields)
    else:
        await _at_entry(look, question)
    look.found.window_ms = servers.settings.dedupe_window_ms
    return look.found


# --- which entry ---


async def _at_entry(look: Look, question: Question) -> None:
    """Explain an entry, or the newest one of an order id."""
    row: Row | None = None
    if question.entry_id:
        asked = look.streams, question.entry_id, None, None, LISTED_MAX
        rows = await look.rows("outcomes_where", *asked)
        row = rows[0] if rows else None
        look.found.same_entry_id = [listed(r) for r in rows[1:] if r["stream"] == rows[0]["stream"]]
        if row is None and await _in_streams(look, question.entry_id):
            return
    if row is None and question.order_id is not None:
        row = await _newest_of(look, question.order_id)
    if row:
        await _at_row(look, row)
    elif question.order_id is None or not await _by_order_id(look, question.order_id):
        _unknown(look, question)


async def _newest_of(look: Look, order_id: str) -> Row | None:
    rows = await look.rows("outcomes_where", None, None, order_id, None, LISTED_MAX)
    if not rows:
        return None
    look.found.same_order_id = [listed(row) for row in reversed(rows)]
    look.found.same_order_id_count = rows[0]["total"]
    return rows[0]


async def _in_streams(look: Look, entry_id: str) -> bool:
    """Explain an entry that is in a stream and not on record. Says whether there is one."""
    for stream in look.streams:
        entry = await look.ask(
            "Redis", lambda stream=stream: entry_of(look.servers.redis, stream, entry_id)
        )
        if entry:
            await _at_unrecorded(look, entry)
            return True
    return False


async def _by_order_id(look: Look, order_id: str) -> bool:
    for stream in look.streams:
        entry = await look.ask("Redis", lambda stream=stream: _unsettled(look, stream, order_id))
        if entry:
            await _at_unrecorded(look, entry)
            return True
    return False


async def _unsettled(look: Look, stream: str, order_id: str) -> Entry | None:
    """The first entry with this order id among those pending or unread: others are on record."""
    redis, group = look.servers.redis, look.servers.settings.group
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


def _unknown(look: Look, question: Question) -> None:
    what = f"entry {question.entry_id}, or order id" if question.entry_id else "order id"
    found, streams = look.found, ", ".join(look.streams)
    if found.unanswered:
        found.answer = f"Cannot be said: not every server answers ({', '.join(found.unanswered)})."
        return
    found.answer = (
        f"Unknown: no {what} {printable(question.order_id or '')} is on record in schema "
        f"{look.servers.settings.database_schema}, nor waiting in {streams}."
    )


# --- one entry ---


async def _at_row(look: Look, row: Row) -> None:
    found = look.found
    found.known = True
    found.stream, found.entry_id, found.outcome = row["stream"], row["entry_id"], row["outcome"]
    found.order_id, found.code, found.reason = row["order_id"], row["code"], row["reason"]
    found.generation = row["generation"]
    found.recorded_at = row["recorded_at"].isoformat()
    entry = await _in_redis(look, row["stream"], row["entry_id"])
    if row["content_hash"]:
        await explain_content(look, row["content_hash"], row["stream"], entry and entry.fields)
        await _beside(look, row)
    await _at_point(look, row)
    await _at_replays(look)
    found.answer = sentence(found, look.servers.settings.dedupe_window_ms)


async def _at_unrecorded(look: Look, entry: Entry) -> None:
    found = look.found
    found.stream, found.entry_id = entry.stream, entry.id
    await _in_redis(look, entry.stream, entry.id)
    parsed = parse(entry.fields, look.servers.settings.envelope_fields)
    found.order_id = parsed.order_id
    if isinstance(parsed, Malformed):
        found.code, found.reason = parsed.code, parsed.reason
    else:
        await explain_content(look, parsed.content_hash, entry.stream, entry.fields)
    await _at_replays(look)
    found.known = "Postgres" not in found.unanswered and found.in_redis != "acknowledged"
    found.answer = sentence_unrecorded(found)


async def _in_redis(look: Look, stream: str, entry_id: str) -> Entry | None:
    """Where the entry is in Redis, noted; and the entry, where it still is in its stream."""
    there = await look.place_of(stream, entry_id)
    if there is None:
        return None
    entry, look.found.pending, look.found.in_redis = there
    return entry


async def _beside(look: Look, row: Row) -> None:
    """The order that a duplicate repeats; of a later generation, the one before it."""
    repeat = row["outcome"] == "duplicate"
    generation = row["generation"] - (0 if repeat else 1)
    if generation < 0:
        return
    for order in await look.rows("order_of", row["content_hash"], generation):
        apart = EntryId.parse(row["entry_id"]).ms - EntryId.parse(order["entry_id"]).ms
        look.found.original = Original(order["stream"], order["entry_id"], order["order_id"], apart)


async def _at_point(look: Look, row: Row) -> None:
    at = time_ns(row["entry_id"])

    async def outcomes() -> list[str]:
        pages = look.servers.points.between(row["stream"], at, at)
        return [point.outcome async for page in pages for point in page]

    there = await look.ask("InfluxDB", outcomes)
    owed = await look.rows("point_owed", row["stream"], row["entry_id"])
    if owed:
        refusal = owed[0]["refusal"]
        look.found.point = f"refused: {refusal}" if refusal else "owed, to be written"
    elif there is not None:
        wrong = f"wrong: it tells of the outcome {', '.join(there)}" if there else "missing"
        look.found.point = "found" if there == [row["outcome"]] else wrong


async def _at_replays(look: Look) -> None:
    stream, entry_id = look.found.stream, look.found.entry_id
    for row in await look.rows("replays_about", stream, entry_id):
        changes = f", with {', '.join(row['changed'])} changed" if row["changed"] else ""
        ours = row["entry_id"] == entry_id
        told = f"is {row['origin_id']} sent again" if ours else f"sent again as {row['entry_id']}"
        look.found.replays.append(printable(told + changes))
