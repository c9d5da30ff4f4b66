"""An entry of a stream, and its id."""

import re
from typing import Any, NamedTuple

import msgspec

ENTRY_ID = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)  #: how an id is written


class EntryId(NamedTuple):
    """Milliseconds since 1970 and a sequence number, both unsigned 64 bit; ordered as Redis orders them.

    Source: https://redis.io/docs/latest/develop/data-types/streams/#entry-ids
    """

    ms: int
    seq: int

    @classmethod
    def parse(cls, text: str) -> "EntryId":
        """Read `1767225600000-3`. :raises ValueError: it is not of that form"""
        ms, _, seq = text.partition("-")
        return cls(int(ms), int(seq))

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    def before(self) -> "EntryId":
        """The greatest id below this one; `0-0` has none and stays."""
        if self.seq:
            return EntryId(self.ms, self.seq - 1)
        return EntryId(self.ms - 1, 2**64 - 1) if self.ms else self


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry as read. `fields` holds names and values in turn, or None where it was trimmed away.

    Text is decoded with `surrogateescape`; `raw_fields` gives the bytes that were sent. `deliveries`: how
    often it was given to a consumer, this time included; 1 where that was not asked for.
    """

    stream: str
    id: str
    fields: list[str] | None
    deliveries: int = 1

    @property
    def ms(self) -> int:
        """The entry's own time, milliseconds since 1970."""
        return int(self.id.partition("-")[0])

    @property
    def raw_fields(self) -> list[bytes]:
        """The fields as the bytes the producer sent; empty where the entry was trimmed away."""
        return [text.encode(errors="surrogateescape") for text in self.fields or ()]


def entries(stream: str, reply: list[Any]) -> list[Entry]:
    """The entries of a raw `[[id, [name, value, …]], …]` reply; one that was trimmed has no fields."""
    return [Entry(stream, id_, fields or None) for id_, fields in reply]
