"""`dead-letters replay`: send what was rejected again, with some of its fields changed."""

import argparse
from collections.abc import Sequence

import msgspec

from streams.dead_letters import Letter, Replay, TooManyFields
from worker.ledger import queries
from worker.operate.command import Servers, schema_checked
from worker.operate.letter_choice import NONE_CHOSEN, Chosen, choice_of, chosen_letters
from worker.operate.output import print_json, print_line, printable
from worker.order import Malformed, Order, parse

SQL = queries("operate")


class Sent(msgspec.Struct, frozen=True):
    """What was done about one letter."""

    stream: str
    entry_id: str
    replayed_as: str | None
    before: list[str]
    says: str


async def replay(servers: Servers, options: argparse.Namespace) -> int:
    """Send the letters meant again, and say what became of each; 1 where one that was named is left alone."""
    choice = choice_of(servers, options, careful=True)
    await schema_checked(servers)  # that a letter was sent again must be on record
    documents: list[Sent] = []
    count, left = 0, False
    async for chosen in chosen_letters(servers, choice):
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
