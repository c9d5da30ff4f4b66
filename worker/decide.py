"""The table of decisions: what to do with an entry, given what it parsed to and what Redis remembers.

Pure. `Insert` and `Repeat` both end at the unique constraint in Postgres, which alone decides; `Repeat`
only says that looking for the original first is likely to save an insert.
"""

import msgspec

from streams.entry import Entry
from worker.order import Malformed, Order


class Claim(msgspec.Struct, frozen=True, gc=False):
    """The claim that stands in Redis for a content: *won* by the entry that it names, *held* for any other.

    :ivar entry_id: which claimed it first, or is the original, where Postgres had to say so
    :ivar stored: whether that entry is known to be settled, so that Postgres has its outcome
    """

    entry_id: str
    stored: bool

    @property
    def entry_ms(self) -> int:
        """That entry's own time, milliseconds since 1970."""
        return int(self.entry_id.partition("-")[0])


class Insert(msgspec.Struct, frozen=True, gc=False):
    """Store the order, unless the constraint says that it is there."""

    entry: Entry
    order: Order


class Repeat(msgspec.Struct, frozen=True, gc=False):
    """Record a duplicate beside its original, or store the order where there is none."""

    entry: Entry
    order: Order


class Reject(msgspec.Struct, frozen=True, gc=False):
    """Keep the entry with the reason why it is no order."""

    entry: Entry
    malformed: Malformed


Decision = Insert | Repeat | Reject


def decide(
    entry: Entry, parsed: Order | Malformed, claim: Claim | None, window_ms: int
) -> Decision:
    """Decide on one entry.

    An entry that meets its own claim goes the way of an insert too: it is redelivered, and Postgres finds
    its row. So does an order whose original lies outside the window: it may be the next generation.

    :param claim: None where it is *unknown*: Redis did not answer
    """
    if not isinstance(parsed, Order):
        return Reject(entry, parsed)
    if (
        claim
        and claim.stored
        and claim.entry_id != entry.id
        and abs(entry.ms - claim.entry_ms) <= window_ms
    ):
        return Repeat(entry, parsed)
    return Insert(entry, parsed)
