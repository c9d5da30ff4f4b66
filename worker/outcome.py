"""Outcomes: what became of an entry. Pure values, between the ledger that knows and the points that tell.

Each has a `word` for its kind, and says whether it is `final`, so that the entry is done with, and whether it
is `redelivered`: on record before, and nothing counted again.
"""

from typing import ClassVar

import msgspec

from streams.entry import Entry
from worker.order import Malformed, Order


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """An order in `orders`."""

    word: ClassVar[str] = "accepted"
    final: ClassVar[bool] = True
    entry: Entry
    order: Order
    generation: int
    redelivered: bool = False


class Duplicate(msgspec.Struct, frozen=True, gc=False):
    """A repeat in `duplicates`, beside the order that it repeats: that one's generation and entry id."""

    word: ClassVar[str] = "duplicate"
    final: ClassVar[bool] = True
    entry: Entry
    order: Order
    generation: int
    original_id: str
    redelivered: bool = False


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """An entry in `rejections`: no order, one that Postgres refuses to store, or one that was given up."""

    word: ClassVar[str] = "rejected"
    final: ClassVar[bool] = True
    entry: Entry
    malformed: Malformed
    redelivered: bool = False


class Kept(msgspec.Struct, frozen=True, gc=False):
    """Another outcome stands under the entry's id, and stays.

    The id was given twice by a Redis that lost its data, and this entry repeats an accepted order or is
    none: no order is lost by it, for an order may share its id. Or it is the very entry, accepted or
    suppressed before: by other rules of what is content, or by a worker that lived when this one gave it up.

    `final`: false where the outcome is that the entry was trimmed, recorded by another worker after this one
    had read it, or so it may be. It stays pending: if it still has its fields when it is read once more, it
    is a later entry of that id.
    """

    word: ClassVar[str] = "kept"
    redelivered: ClassVar[bool] = False
    entry: Entry
    final: bool = True


Outcome = Accepted | Duplicate | Rejected | Kept
