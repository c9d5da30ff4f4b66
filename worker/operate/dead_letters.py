"""`dead-letters`: list, show, replay and purge what was rejected."""

import argparse
import base64
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import msgspec

from streams.dead_letters import DeadLetters, Letter, Replay, TooManyFields
from streams.entry import EntryId
from worker.errors import BadUsage
from worker.ledger import queries
from worker.operate.command import (
    Servers,
    instant,
    moment_ms,
    now_ms,
    run,
    schema_checked,
    streams_of,
)
from worker.operate.output import print_json, print_line, print_sheet, print_table, printable
from worker.order import Malformed, Order, parse

SQL = queries("operate")
SHOWN_MAX = 400  #: characters of a value that `show` prints
REMOVED_AT_ONCE = 1000
NONE_CHOSEN = "No dead letters of that choice."


def run_dead_letters(options: argparse.Namespace) -> int:
    """Do what `options.action` says. 1 where a letter that was named is not there, or is left alone."""
    return run(lambda servers: _ACTIONS[options.action](servers, options))


@dataclass(frozen=True, slots=True)
class Choice:
    """Which letters are meant: those named, or else all that pass the filters."""

    streams: tuple[str, ...]
    ids: tuple[str, ...]
    codes: frozenset[str]
    symbol: str | None
    since_ms: int | None
    until_ms: int | None
    limit: int | None

    @property
    def is_all(self) -> bool:
        """Whether nothing was chosen."""
        return not (self.ids or self.codes or self.symbol or self.since_ms or self.until_ms)

    def has(self, letter: Letter) -> bool:
        """Whether the filters let a letter pass, its time apart."""
        return (not self.codes or letter.code in self.codes) and (
            self.symbol is None or parse(letter.fields or None).symbol == self.symbol
        )


class Chosen(msgspec.Struct, frozen=True):
    """A letter, or None for an entry that was named and has none."""

    letters: DeadLetters
    entry_id: str
    letter: Letter | None


def _choice(servers: Servers, options: argparse.Namespace, *, careful: bool = False) -> Choice:
    for text in options.ids:
        if not _is_entry_id(text):
            raise BadUsage(f"an entry id reads 1767225600000-3, not {text!a}")
    now = now_ms()
    choice = Choice(
        streams_of(servers.settings, options.stream),
        tuple(dict.fromkeys(options.ids)),
        frozenset(options.code),
        options.symbol,
        moment_ms("--since", options.since, now),
        moment_ms("--until", options.until, now),
        options.limit,
    )
    if careful and choice.is_all and not options.all:
        raise BadUsage("say which letters: entry ids, a filter such as --code, or --all")
    return choice


def _is_entry_id(text: str) -> bool:
    try:
        return str(EntryId.parse(text)) == text
    except ValueError:
        return False


async def _chosen(servers: Servers, choice: Choice) -> AsyncGenerator[Chosen]:
    count = 0
    found = _named(servers, choice) if choice.ids else _filtered(servers, choice)
    async for chosen in found:
        yield chosen
        count += 1
        if count == choice.limit:
            return


async def _named(servers: Servers, choice: Choice) -> AsyncGenerator[Chosen]:
    boxes = [DeadLetters(servers.redis, stream) for stream in choice.streams]
    for id_ in choice.ids:
        found = [(box, await box.letter(id_)) for box in boxes]
        there = [(box, letter) for box, letter in found if letter and choice.has(letter)]
        for box, letter in there or [(boxes[0], None)]:
            yield Chosen(box, id_, letter)


async def _filtered(servers: Servers, choice: Choice) -> AsyncGenerator[Chosen]:
    for stream in choice.streams:
        box = DeadLetters(servers.redis, stream)
        async for letter in box.letters(since_ms=choice.since_ms, until_ms=choice.until_ms):
            if choice.has(letter):
                yield Chosen(box, letter.entry_id, letter)


# --- list and show ---


async def _list(servers: Servers, options: argparse.Namespace) -> int:
    choice = _choice(servers, options)
    found = [chosen async for chosen in _chosen(servers, choice) if chosen.letter]
    told = [await _told(chosen.letters, chosen.letter) for chosen in found if chosen.letter]
    if options.json:
        print_json(told)
    elif not told:
        print_line("No dead letters." if choice.is_all else NONE_CHOSEN)
    else:
        headings = ("entry", "stream", "set aside", "code", "symbol", "order id", "sent again as")
        print_table(headings, [_row(item) for item in told])
        if len(told) == choice.limit:
            print_line(f"There may be more: --limit shows more than {choice.limit}.")
    return 0


async def _show(servers: Servers, options: argparse.Namespace) -> int:
    seen, missing = 0, False
    documents: list[Told] = []
    async for chosen in _chosen(servers, _choice(servers, options, careful=True)):
        seen += 1
        if chosen.letter is None:
            missing = True
            print(f"ordergate: entry {chosen.entry_id} has no dead letter", file=sys.stderr)
        elif options.raw:
            sys.stdout.buffer.writelines(word + b"\n" for word in chosen.letter.raw_fields)
        else:
            documents.append(await _told(chosen.letters, chosen.letter))
            if not options.json:
                _print_letter(documents.pop())
    if options.json:
        print_json(documents)
    elif not (seen or options.raw):
        print_line(NONE_CHOSEN)
    return 1 if missing else 0


class Told(msgspec.Struct, frozen=True):
    """What is told of a letter. `fields` is safe to show, `fields_base64` is exact."""

    stream: str
    entry_id: str
    letter_id: str
    set_aside_at: str
    code: str
    reason: str
    order_id: str | None
    symbol: str | None
    replayed_as: list[str]
    fields: list[tuple[str, str]]
    fields_base64: list[str]


async def _told(box: DeadLetters, letter: Letter) -> Told:
    parsed = parse(letter.fields or None)
    replays = await box.replays_of([letter.entry_id])
    shown = [printable(word) for word in letter.fields]
    return Told(
        box.stream,
        letter.entry_id,
        letter.id,
        instant(EntryId.parse(letter.id).ms),
        letter.code,
        letter.reason,
        parsed.order_id,
        parsed.symbol,
        replays.get(letter.entry_id, []),
        list(zip(shown[::2], shown[1::2], strict=False)),
        [base64.b64encode(word).decode() for word in letter.raw_fields],
    )


def _row(told: Told) -> tuple[str, ...]:
    return (
        told.entry_id,
        told.stream,
        told.set_aside_at.partition(".")[0],
        printable(told.code),
        told.symbol or "",
        told.order_id or "",
        " ".join(told.replayed_as),
    )


def _print_letter(told: Told) -> None:
    print_sheet(
        [
            ("entry", f"{told.stream} {told.entry_id}"),
            ("set aside", f"{told.set_aside_at}, letter {told.letter_id}"),
            ("code", printable(told.code)),
            ("reason", printable(told.reason)),
            ("sent again as", " ".join(told.replayed_as)),
            ("fields", f"{len(told.fields):,}"),
        ]
    )
    for name, value in told.fields:
        print_line(f"  {printable(name, SHOWN_MAX)} = {printable(value, SHOWN_MAX)}")
    print_line()


# --- replay ---


class Sent(msgspec.Struct, frozen=True):
    """What was done about one letter."""

    stream: str
    entry_id: str
    replayed_as: str | None
    before: list[str]
    says: str


async def _replay(servers: Servers, options: argparse.Namespace) -> int:
    choice = _choice(servers, options, careful=True)
    await schema_checked(servers)  # that a letter was sent again must be on record
    documents: list[Sent] = []
    count, left = 0, False
    async for chosen in _chosen(servers, choice):
        sent = await _sent(servers, options, chosen)
        count, left = count + 1, left or not sent.replayed_as
        if options.json:
            documents.append(sent)
        else:
            print_line(f"{sent.stream} {sent.entry_id}: {sent.says}")
    if options.json:
        print_json(documents)
    elif not count:
        print_line(NONE_CHOSEN)
    return 1 if choice.ids and left and not options.dry_run else 0


class _LeftAlone(Exception):
    """Why a letter is not sent, and what it was sent again as before."""

    def __init__(self, reason: str, before: Sequence[str] = ()) -> None:
        super().__init__(f"left alone: {reason}")
        self.before = list(before)


async def _sent(servers: Servers, options: argparse.Namespace, chosen: Chosen) -> Sent:
    """Send a letter again, or say why it is left alone."""
    stream, id_ = chosen.letters.stream, chosen.entry_id
    try:
        fields = _fields_to_send(chosen.letter, options)
        outlook = _outlook(parse(fields, servers.settings.envelope_fields))
        if options.dry_run:
            before = (await chosen.letters.replays_of([id_])).get(id_, [])
            _check_first(before, options)
            return Sent(stream, id_, None, before, f"would be sent; {outlook}: {_shown(fields)}")
        replay = await _sent_again(servers, options, chosen, fields)
        says = f"sent again as {replay.entry_id}; {outlook}"
        return Sent(stream, id_, replay.entry_id, replay.before, says)
    except _LeftAlone as reason:
        return Sent(stream, id_, None, reason.before, str(reason))


def _fields_to_send(letter: Letter | None, options: argparse.Namespace) -> list[str]:
    if letter is None:
        raise _LeftAlone("it has no dead letter")
    try:
        fields = changed(letter.fields, options.set, options.unset)
    except ValueError as error:
        raise _LeftAlone(str(error)) from None
    if not fields:
        raise _LeftAlone("it has no fields; --set gives it some")
    return fields


def _check_first(before: Sequence[str], options: argparse.Namespace) -> None:
    if before and not options.again:
        told = f"it was sent again before, as {' '.join(before)} (--again sends it once more)"
        raise _LeftAlone(told, before)


async def _sent_again(
    servers: Servers, options: argparse.Namespace, chosen: Chosen, fields: Sequence[str]
) -> Replay:
    """Send it, and put on record which letter its entries come from.

    A command that ended between Redis and Postgres is caught up with by the next one.
    """
    assert chosen.letter  # noqa: S101 - it has fields
    try:
        replay = await chosen.letters.replay(chosen.letter, fields, again=options.again)
    except TooManyFields as error:
        raise _LeftAlone(str(error)) from None
    names = {name for name, _ in options.set} | set(options.unset)
    new = [replay.entry_id] if replay.entry_id else []
    async with servers.ledger.connection() as connection:
        for ids, changes in ((replay.before, []), (new, sorted(names))):
            await connection.execute(
                SQL["note_replays"], chosen.letters.stream, ids, chosen.entry_id, changes
            )
    if replay.gone:
        raise _LeftAlone("its letter was removed just now", replay.before)
    _check_first([] if replay.entry_id else replay.before, options)
    return replay


def changed(
    fields: Sequence[str], set_: Sequence[tuple[str, str]], unset: Sequence[str]
) -> list[str]:
    """An entry's names and values with some set, and some left out; those of a payload within it.

    :raises ValueError: it is a payload, and no JSON object
    """
    if not (set_ or unset):
        return list(fields)
    if fields[:1] == ["payload"] and not any(name == "payload" for name, _ in set_):
        return ["payload", _changed_payload(fields[1], set_, unset), *fields[2:]]
    gone = {*unset}
    values = dict(set_)
    words: list[str] = []
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        if name not in gone:
            words += (name, values.pop(name, value))
            gone |= {name} & dict(set_).keys()  # a name that was given twice is given once now
    return words + [word for pair in values.items() for word in pair if pair[0] not in gone]


def _changed_payload(text: str, set_: Sequence[tuple[str, str]], unset: Sequence[str]) -> str:
    """A payload with members set, as text, or left out; the others keep their very characters."""
    try:
        data = text.encode(errors="surrogateescape")
        members = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError:
        raise ValueError("its payload is no JSON object; --set payload=… gives another") from None
    members |= {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in set_}
    kept = {name: value for name, value in members.items() if name not in unset}
    return msgspec.json.encode(kept).decode(errors="surrogateescape")


def _outlook(parsed: Order | Malformed) -> str:
    if isinstance(parsed, Malformed):
        return f"it will be rejected again, {parsed.code}: {printable(parsed.reason)}"
    return f"order {printable(parsed.order_id)}, content {parsed.content_hash.hex()}"


def _shown(fields: Sequence[str]) -> str:
    pairs = zip(fields[:40:2], fields[1:40:2], strict=False)
    return " ".join(f"{printable(name, 80)}={printable(value, 80)}" for name, value in pairs)


# --- purge ---


async def _purge(servers: Servers, options: argparse.Namespace) -> int:
    choice = _choice(servers, options, careful=True)
    count, missing = 0, 0
    async for chosen in _chosen(servers, choice):
        count += chosen.letter is not None
        missing += chosen.letter is None
    removed = 0
    if count and (options.yes or _agreed(count)):
        removed = await _removed(servers, choice, count)
    if options.json:
        print_json({"removed": removed, "missing": missing})
    else:
        print_line(
            f"removed {removed:,} of {count:,} dead letters; their rejections stay on record"
        )
        if missing:
            print_line(f"{missing:,} of the entries named have no dead letter")
    return 1 if missing or removed < count else 0


def _agreed(count: int) -> bool:
    if not sys.stdin.isatty():
        raise BadUsage(f"this would remove {count:,} dead letters for good: add --yes")
    try:
        return input(f"Remove {count:,} dead letters for good? [y/N] ").strip().lower() == "y"
    except EOFError:
        return False


async def _removed(servers: Servers, choice: Choice, count: int) -> int:
    """Remove what was counted, and none that came since."""
    removed = 0
    some: dict[str, list[tuple[str, str]]] = {}
    async for chosen in _chosen(servers, choice):
        if chosen.letter and count:
            count -= 1
            batch = some.setdefault(chosen.letters.stream, [])
            batch.append((chosen.letter.id, chosen.letter.entry_id))
            if len(batch) == REMOVED_AT_ONCE:
                removed += await chosen.letters.remove(batch)
                batch.clear()
    for stream, batch in some.items():
        removed += await DeadLetters(servers.redis, stream).remove(batch)
    return removed


_ACTIONS = {"list": _list, "show": _show, "replay": _replay, "purge": _purge}
