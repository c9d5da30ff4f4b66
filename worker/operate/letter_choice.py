"""Which dead letters are meant: those named, or those that filters let pass."""

import argparse
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import msgspec

from streams.dead_letters import DeadLetters, Letter
from streams.entry import EntryId
from worker.errors import BadUsage
from worker.operate.command import Servers, moment_ms, now_ms, streams_of
from worker.order import parse

NONE_CHOSEN = "No dead letters of that choice."


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


def choice_of(servers: Servers, options: argparse.Namespace, *, careful: bool = False) -> Choice:
    """What the command line says.

    :param careful: where nothing is chosen, `--all` must say so
    :raises BadUsage: a word of it is wrong
    """
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


async def chosen_letters(servers: Servers, choice: Choice) -> AsyncGenerator[Chosen]:
    """The letters meant, `limit` of them at most; those named in the order given, others the oldest first."""
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
