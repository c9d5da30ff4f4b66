"""`dead-letters`: list, show, replay and purge what was rejected; see `replay_letters` for the third."""

import argparse
import base64
import sys

import msgspec

from streams.dead_letters import DeadLetters, Letter
from streams.entry import EntryId
from worker.errors import BadUsage
from worker.operate.command import (
    Servers,
    instant,
    run,
)
from worker.operate.letter_choice import NONE_CHOSEN, Choice, choice_of, chosen_letters
from worker.operate.output import print_json, print_line, print_sheet, print_table, printable
from worker.operate.replay_letters import replay
from worker.order import parse

SHOWN_MAX = 400  #: characters of a value that `show` prints
REMOVED_AT_ONCE = 1000


def run_dead_letters(options: argparse.Namespace) -> int:
    """Do what `options.action` says. 1 where a letter that was named is not there, or is left alone."""
    return run(lambda servers: _ACTIONS[options.action](servers, options))


# --- list and show ---


async def _list(servers: Servers, options: argparse.Namespace) -> int:
    choice = choice_of(servers, options)
    found = [chosen async for chosen in chosen_letters(servers, choice) if chosen.letter]
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
    async for chosen in chosen_letters(servers, choice_of(servers, options, careful=True)):
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


# --- purge ---


async def _purge(servers: Servers, options: argparse.Namespace) -> int:
    choice = choice_of(servers, options, careful=True)
    count, missing = 0, 0
    async for chosen in chosen_letters(servers, choice):
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
    async for chosen in chosen_letters(servers, choice):
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


_ACTIONS = {"list": _list, "show": _show, "replay": replay, "purge": _purge}
