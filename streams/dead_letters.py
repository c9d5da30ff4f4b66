"""Dead letters: entries that were set aside, to be looked at, sent again, and removed.

A letter is an entry of the stream `{<stream>}:dead`: `entry_id`, `code`, `reason`, then the fields of the
entry it was. Two hashes stand beside it: `:index`, from entry id to letter id, and `:replayed`, from entry id
to the ids under which the entry was sent again. Reading makes none of them.
"""

import struct
from collections.abc import AsyncGenerator, Sequence
from importlib.resources import files
from typing import NamedTuple, cast

import msgspec
from redis.asyncio import Redis

from streams.connection import call, redis_errors
from streams.entry import EntryId

LUA = files("streams") / "lua"
READ_AT_ONCE = 100  #: letters; one may hold megabytes
REMOVED_AT_ONCE = 1000
PACKED_ABOVE = 4000  #: names and values; longer letters are packed, see the script that writes them
WORDS_MAX = 4000  #: names and values that a script can send again


def dead_letters_of(stream: str) -> str:
    """The stream that keeps the rejected entries of `stream`, in the same hash slot."""
    return f"{{{stream}}}:dead"


class Letter(msgspec.Struct, frozen=True, gc=False):
    """One dead letter. `fields` holds the entry's names and values in turn, as it was sent.

    Text is decoded with `surrogateescape`; `raw_fields` gives the bytes that were sent.
    """

    id: str
    entry_id: str
    code: str
    reason: str
    fields: list[str]

    @property
    def raw_fields(self) -> list[bytes]:
        """The fields as the bytes the producer sent."""
        return [text.encode(errors="surrogateescape") for text in self.fields]


class TooManyFields(Exception):
    """An entry that no script can add: Lua passes some thousand words to a command."""


class Replay(NamedTuple):
    """What came of sending a letter again.

    :ivar entry_id: the new entry; None where nothing was sent
    :ivar before: the entries it was sent again as before, oldest first
    :ivar gone: the letter is not there any more
    """

    entry_id: str | None
    before: list[str]
    gone: bool


class DeadLetters:
    """The dead letters of one stream. Every method raises `RedisUnavailable`; calling again is safe."""

    def __init__(self, redis: Redis, stream: str) -> None:
        self.stream, self._redis = stream, redis
        self._key = dead_letters_of(stream)
        self._index, self._replayed = f"{self._key}:index", f"{self._key}:replayed"
        self._replay = redis.register_script((LUA / "replay_letter.lua").read_text())
        self._remove = redis.register_script((LUA / "remove_letters.lua").read_text())

    async def letters(
        self, *, since_ms: int | None = None, until_ms: int | None = None
    ) -> AsyncGenerator[Letter]:
        """All letters that there are now, oldest first, in bounded memory.

        :param since_ms: set aside at this millisecond since 1970 or later
        :param until_ms: set aside before this one
        """
        first = "-" if since_ms is None else str(since_ms)
        # None that come meanwhile: what is sent again may be rejected again.
        newest = await call(self._redis, "XREVRANGE", self._key, "+", "-", "COUNT", 1)
        if not newest:
            return
        last = newest[0][0] if until_ms is None else str(EntryId(until_ms, 0).before())
        while True:
            found = await call(self._redis, "XRANGE", self._key, first, last, "COUNT", READ_AT_ONCE)
            for id_, words in found:
                yield _letter(id_, words)
            if len(found) < READ_AT_ONCE:
                return
            first = f"({found[-1][0]}"

    async def letter(self, entry_id: str) -> Letter | None:
        """The letter of an entry; None where there is none, or none any more."""
        id_ = await call(self._redis, "HGET", self._index, entry_id)
        if id_ is None:
            return None
        found: list[tuple[str, list[str]]] = await call(self._redis, "XRANGE", self._key, id_, id_)
        return _letter(*found[0]) if found else None

    async def replays_of(self, entry_ids: Sequence[str]) -> dict[str, list[str]]:
        """The entries that each of these was sent again as, oldest first; those that were, only."""
        if not entry_ids:
            return {}
        found = await call(self._redis, "HMGET", self._replayed, *entry_ids)
        return {id_: ids.split() for id_, ids in zip(entry_ids, found, strict=True) if ids}

    async def replay(self, letter: Letter, fields: Sequence[str], *, again: bool) -> Replay:
        """Add an entry with these fields to the stream, and note of which letter it comes, in one step.

        A letter that was sent again before is left alone, unless `again`.

        :raises TooManyFields: more than a script can send
        """
        if len(fields) > WORDS_MAX:
            raise TooManyFields(
                f"an entry of more than {WORDS_MAX // 2} fields cannot be sent again"
            )
        words = [text.encode(errors="surrogateescape") for text in fields]
        async with redis_errors(self._redis):
            entry_id, before, gone = await self._replay(
                keys=[self.stream, self._key, self._replayed],
                args=[letter.entry_id, letter.id, int(again), *words],
            )
        return Replay(entry_id or None, before.split(), bool(gone))

    async def remove(self, letters: Sequence[tuple[str, str]]) -> int:
        """Remove letters, each given as its id and its entry's; says how many were there.

        That they were sent again stays known.
        """
        removed = 0
        for start in range(0, len(letters), REMOVED_AT_ONCE):
            words = [word for pair in letters[start : start + REMOVED_AT_ONCE] for word in pair]
            async with redis_errors(self._redis):
                removed += cast(
                    "int", await self._remove(keys=[self._key, self._index], args=words)
                )
        return removed


def _letter(id_: str, words: Sequence[str]) -> Letter:
    _, entry_id, _, code, _, reason, *fields = words
    return Letter(id_, entry_id, code, reason, _unpacked(fields))


def _unpacked(fields: list[str]) -> list[str]:
    """The fields of a letter, unpacked where they are. A field of the entry's own may be named so, too."""
    if len(fields) != 2 or fields[0] != "packed":
        return fields
    try:
        return _words(fields[1].encode(errors="surrogateescape"))
    except (struct.error, ValueError, IndexError):
        return fields


def _words(data: bytes) -> list[str]:
    """The strings of a MessagePack array, of any bytes: msgspec takes UTF-8 only.

    :raises ValueError, IndexError, struct.error: it is not such an array, or a short one
    Source: https://github.com/msgpack/msgpack/blob/master/spec.md
    """
    count, at = _sized(data, 0, {0xDC: ">H", 0xDD: ">I"})
    if count <= PACKED_ABOVE:
        raise ValueError(count)
    words: list[str] = []
    for _ in range(count):
        size, at = _sized(data, at, {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"})
        words.append(data[at : at + size].decode(errors="surrogateescape"))
        at += size
    if at != len(data):
        raise ValueError(at)
    return words


def _sized(data: bytes, at: int, forms: dict[int, str]) -> tuple[int, int]:
    """The size that the header at `at` gives, and where what it announces begins."""
    kind = data[at]
    if 0xA0 <= kind <= 0xBF:
        return kind & 0x1F, at + 1
    if kind not in forms:
        raise ValueError(kind)
    (size,) = struct.unpack_from(forms[kind], data, at + 1)
    return size, at + 1 + struct.calcsize(forms[kind])
