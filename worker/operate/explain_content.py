"""What `explain` tells of a content: who sent it, its canonical text, and whom its claim names."""

from collections.abc import Sequence
from hashlib import sha256

import msgspec

from streams.connection import call
from streams.entry import ENTRY_ID, EntryId
from worker.operate.command import now_ms
from worker.operate.explain_look import LISTED_MAX, Look, Row, listed
from worker.operate.explain_report import Original, sentence_now
from worker.operate.output import printable
from worker.operate.replay_letters import changed
from worker.order import HASH_TAG, Malformed, canonical, parse


async def explain_fields(look: Look, fields: list[str]) -> None:
    """Explain what the fields of an order would be. An order id is not needed: it is no content."""
    envelope = look.servers.settings.envelope_fields
    parsed = parse(fields, envelope)
    if isinstance(parsed, Malformed) and parsed.code == "order_id_missing":
        fields = changed(fields, [("order_id", "-")], [])
        parsed = parse(fields, envelope)
    found = look.found
    if isinstance(parsed, Malformed):
        found.code, found.reason, found.known = parsed.code, parsed.reason, True
        found.answer = f"No order: it would be rejected, {parsed.code}: {printable(parsed.reason)}."
        return
    await explain_content(look, parsed.content_hash, look.streams[0], fields)
    rows = await look.rows("outcomes_where", None, None, None, parsed.content_hash, LISTED_MAX)
    found.known = bool(rows)
    if "Postgres" in found.unanswered:
        found.answer = "Cannot be said: Postgres does not answer."
        return
    newest = max((row["generation"] for row in rows), default=0)
    for order in await look.rows("order_of", parsed.content_hash, newest):
        apart = now_ms() - EntryId.parse(order["entry_id"]).ms
        found.original = Original(order["stream"], order["entry_id"], order["order_id"], apart)
    found.answer = sentence_now(found.original, look.servers.settings.dedupe_window_ms)


async def explain_content(
    look: Look, content_hash: bytes, stream: str, fields: Sequence[str] | None
) -> None:
    """Note what is known of a content: who sent it, its canonical text, its claim."""
    found = look.found
    found.content_hash = content_hash.hex()
    rows = await look.rows("outcomes_where", None, None, None, content_hash, LISTED_MAX)
    found.same_content = [listed(row) for row in reversed(rows)]
    found.same_content_count = rows[0]["total"] if rows else 0
    texts = [fields] if fields else []
    if rows and not fields:  # the entry has left the stream: from the order on record
        orders = await look.rows("order_of", content_hash, rows[0]["generation"])
        texts = [_fields_of(order) for order in orders]
    for text in texts:
        found.canonical = _canonical(text, look.servers.settings.envelope_fields, content_hash)
    await _at_claim(look, content_hash, stream)


async def _at_claim(look: Look, content_hash: bytes, stream: str) -> None:
    key = f"idempotency:order:{{{stream}}}:{content_hash.hex()}"
    claims, found = look.servers.claims, look.found
    kind = await look.ask("Redis (claims)", lambda: call(claims, "TYPE", key))
    if kind != "string":
        there = (
            None if kind is None else "none" if kind == "none" else f"a {kind}, which is no claim"
        )
        found.claim_says = there
        return
    found.claim = await look.ask("Redis (claims)", lambda: call(claims, "GET", key))
    found.claim_expires_ms = await look.ask("Redis (claims)", lambda: call(claims, "PTTL", key))
    entry_id = found.claim or ""
    if not ENTRY_ID.fullmatch(entry_id):
        found.claim_says = "names no entry, which says nothing"
        return
    # First Redis: what is in nobody's hand by then has its outcome on record.
    named = await look.place_of(stream, entry_id)
    outcomes = await _outcomes_of(look, stream, entry_id, content_hash)
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


async def _outcomes_of(look: Look, stream: str, entry_id: str, content_hash: bytes) -> list[str]:
    """What is on record of the entry that claimed a content, which may be of another stream."""
    return [
        row["outcome"]
        for row in await look.rows("outcomes_where", None, entry_id, None, None, LISTED_MAX)
        if row["content_hash"] == content_hash
        or (row["content_hash"] is None and row["stream"] == stream)
    ]


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
