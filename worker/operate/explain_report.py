"""What is known of an entry, an order id or an order's fields, and how that is told."""

from collections.abc import Sequence

import msgspec

from streams.entry import EntryId
from streams.look import Delivery
from worker.operate.command import human, instant
from worker.operate.output import print_line, print_sheet, print_table, printable


class Listed(msgspec.Struct, frozen=True):
    """An entry on record, in a list."""

    stream: str
    entry_id: str
    outcome: str
    order_id: str | None
    generation: int | None


class Original(msgspec.Struct, frozen=True):
    """The accepted order beside an entry, and how long before it (negative: after it)."""

    stream: str
    entry_id: str
    order_id: str
    apart_ms: int


class Answer(msgspec.Struct):
    """Everything that is known. What is None is not so, or could not be asked: see `unanswered`."""

    answer: str = ""
    known: bool = False
    stream: str | None = None
    entry_id: str | None = None
    order_id: str | None = None
    outcome: str | None = None
    generation: int | None = None
    code: str | None = None
    reason: str | None = None
    recorded_at: str | None = None
    window_ms: int = 0
    canonical: str | None = None
    content_hash: str | None = None
    original: Original | None = None
    same_entry_id: list[Listed] = []
    same_content: list[Listed] = []
    same_content_count: int = 0
    same_order_id: list[Listed] = []
    same_order_id_count: int = 0
    claim: str | None = None
    claim_expires_ms: int | None = None
    claim_says: str | None = None
    point: str | None = None
    in_redis: str | None = None
    pending: Delivery | None = None
    replays: list[str] = []
    unanswered: dict[str, str] = {}


# --- sentences ---


def sentence(found: Answer, window_ms: int) -> str:
    """What became of an entry on record; of the newest, where its id was given more than once."""
    others = [
        f" Under the same id {printable(other.order_id or 'an entry')} is on record, {other.outcome}: Redis "
        "gave the id to two entries, or one entry was counted twice."
        for other in found.same_entry_id
    ]
    return "".join([_outcome(found, window_ms), *others])


def _outcome(found: Answer, window_ms: int) -> str:
    order = f"order {printable(found.order_id or '')}"
    original, window = found.original, human(window_ms)
    if found.outcome == "rejected":
        return f"Rejected, {found.code}: {printable(found.reason or '')}."
    if found.outcome == "accepted":
        if original:
            return (
                f"Accepted: the equal {_named(original)} lies {human(abs(original.apart_ms))} away, "
                f"outside of the window (now {window}). This is generation {found.generation} of it."
            )
        return f"Accepted: {order} is the first of its content."
    if original is None:
        asked = (
            "its original cannot be looked up"
            if found.unanswered
            else "its original is gone: run audit"
        )
        return f"Duplicate: {order} repeats another; {asked}."
    when = "before" if original.apart_ms >= 0 else "after"
    return (
        f"Duplicate: {order} has the same content as {_named(original)}, accepted "
        f"{human(abs(original.apart_ms))} {when} it; the window is {window}."
    )


def _named(original: Original) -> str:
    return f"order {printable(original.order_id)} (entry {original.entry_id})"


def sentence_unrecorded(found: Answer) -> str:
    """What can be said of an entry that no outcome is on record of."""
    if "Postgres" in found.unanswered:
        known = "Postgres does not answer, so its outcome cannot be said"
    else:
        known = "Not on record yet"
    if found.pending:
        held = found.pending
        return (
            f"{known}: it is pending with {printable(held.consumer)} since {human(held.idle_ms)}, "
            f"delivered {held.deliveries:,} times."
        )
    if found.in_redis == "unread":
        return f"{known}: no worker has read it."
    if found.in_redis == "acknowledged" and "Postgres" not in found.unanswered:
        return "Acknowledged, and without an outcome on record: that must not be. Run audit."
    return f"{known}."


def sentence_now(original: Original | None, window_ms: int) -> str:
    """What an order would be, were it sent now.

    :param original: the newest accepted order of its content, and how long ago it was
    """
    if original is None:
        return "Sent now it would be a new order: none of this content is on record."
    ago = human(max(0, original.apart_ms))
    if original.apart_ms <= window_ms:
        return (
            f"Sent now it would be a duplicate of {_named(original)}, accepted {ago} ago; the window is "
            f"{human(window_ms)}."
        )
    return (
        f"Sent now it would be a new order: the equal {_named(original)} was accepted {ago} ago, outside of "
        f"the window of {human(window_ms)}."
    )


# --- on paper ---


def print_answer(found: Answer) -> None:
    """Tell it all."""
    print_line(found.answer)
    print_line()
    outcome = f"{found.outcome}, recorded {found.recorded_at}" if found.outcome else ""
    generation = f", generation {found.generation}" if found.generation else ""
    print_sheet(
        [
            ("entry", _placed(found.stream, found.entry_id)),
            ("order id", printable(found.order_id or "")),
            ("outcome", outcome + generation),
            ("original", _original(found.original)),
            ("in Redis", found.in_redis or ""),
            ("content", printable(found.canonical or "", 2000)),
            ("hash", found.content_hash or ""),
            ("claim", _claim(found)),
            ("point", printable(found.point or "", 500)),
            ("replay", "\n".join(found.replays)),
            *(("unanswered", printable(text, 300)) for text in found.unanswered.values()),
        ]
    )
    _print_listed("content", found.same_content, found.same_content_count)
    if found.same_order_id_count > 1:
        _print_listed("order id", found.same_order_id, found.same_order_id_count)


def _placed(stream: str | None, entry_id: str | None) -> str:
    if not (stream and entry_id):
        return ""
    return f"{stream} {entry_id}, {instant(EntryId.parse(entry_id).ms)}"


def _original(original: Original | None) -> str:
    if original is None:
        return ""
    when = "before" if original.apart_ms >= 0 else "after"
    placed = _placed(original.stream, original.entry_id)
    return f"{placed}: order {printable(original.order_id)}, {human(abs(original.apart_ms))} {when}"


def _claim(found: Answer) -> str:
    expires = found.claim_expires_ms or 0
    lives = f", expires in {human(expires)}" if expires > 0 else ""
    value = f"{printable(found.claim, 100)}{lives}: " if found.claim else ""
    return value + (found.claim_says or "")


def _print_listed(of_one: str, listed: Sequence[Listed], count: int) -> None:
    if not listed:
        return
    newest = f", the newest {len(listed)} of {count:,}" if count > len(listed) else f": {count}"
    print_line()
    print_line(f"entries with this {of_one}{newest}")
    first_ms = EntryId.parse(listed[0].entry_id).ms
    rows = [
        (
            item.entry_id,
            item.stream,
            item.outcome,
            printable(item.order_id or ""),
            f"+{human(max(0, EntryId.parse(item.entry_id).ms - first_ms))}",
        )
        for item in listed
    ]
    print_table(("entry", "stream", "outcome", "order id", "after the first"), rows)
