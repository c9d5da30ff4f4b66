"""The table of decisions: what to do with an entry, given what it parsed to and what Redis remembers.

Pure. `Insert` and `Repeat` both end at the unique constraint in Postgres, which alone decides; `Repeat`
only says that looking for the original first is likely to save an insert.
"""

from enum import Enum

import msgspec

from streams.entry import Entry
from worker.order import Malformed, Order


class Hint(Enum):
    """What Redis says of a content hash that it does not know to be stored."""

    WON = "won"  #: the claim is this worker's, now or since a reply that was lost
    HELD = "held"  #: claimed by another worker, which may be dead
    UNKNOWN = "unknown"  #: Redis did not answer


class Stored(msgspec.Struct, frozen=True, gc=False):
    """Redis says that Postgres holds the content, under the entry id of the accepted original."""

    original: str

    @property
    def original_ms(self) -> int:
        """The original's own time, milliseconds since 1970."""
        return int(self.original.partition("-")[0])


Claim = Hint | Stored


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


def decide(entry: Entry, parsed: Order | Malformed, claim: Claim, window_ms: int) -> Decision:
    """Decide on one entry.

    An entry that meets its own claim goes the way of an insert too: it is redelivered, and Postgres finds
    its row. So does an order whose original lies outside the window: it may be the next generation.
    """
    if not isinstance(parsed, Order):
        return Reject(entry, parsed)
    if (
        isinstance(claim, Stored)
        and claim.original != entry.id
        and abs(entry.ms - claim.original_ms) <= window_ms
    ):
        return Repeat(entry, parsed)
    return Insert(entry, parsed)
