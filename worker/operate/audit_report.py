"""What an audit has found in a stream, and how that is told."""

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from streams.entry import EntryId
from worker.operate.command import instant
from worker.operate.output import print_line, print_sheet, print_table, printable

#: Each kind of difference: what it means, and what can be done.
KINDS = {
    "outcome_missing": "acknowledged, no outcome on record: a row was deleted, or an acknowledgement came "
    "too early; `explain` shows the fields, publish them again if the order is wanted",
    "two_outcomes": "more than one outcome: Redis gave the id to two entries, or one entry was counted twice",
    "accepted_twice": "within the window as it is set now: was it shorter then? Else a defect; report it",
    "original_missing": "a duplicate of an order that is gone: put that back",
    "point_missing": "no point and none owed; --repair notes it as owed",
    "point_differs": "the point tells of another outcome than Postgres: delete it in InfluxDB",
    "point_without_outcome": "a point of an entry that is not on record: its row was deleted",
    "claim_contradicts": "a claim names an order that is not on record; --repair corrects or removes it",
    "entries_lost": "left the stream without an outcome: trimmed unread, or rows deleted since (--since: "
    "what is younger)",
}


class Span(NamedTuple):
    """The entries that are audited, by their own time, milliseconds since 1970."""

    since_ms: int | None
    until_ms: int | None

    @property
    def is_whole(self) -> bool:
        """Whether it has no bound."""
        return self == (None, None)

    def has(self, id_: EntryId) -> bool:
        """Whether an entry lies in it."""
        return (self.since_ms or 0) <= id_.ms and (self.until_ms is None or id_.ms < self.until_ms)

    def __str__(self) -> str:
        if self.is_whole:
            return "all entries"
        since = "" if self.since_ms is None else f" from {instant(self.since_ms)}"
        until = "" if self.until_ms is None else f" before {instant(self.until_ms)}"
        return f"entries{since}{until}"


class Example(msgspec.Struct, frozen=True):
    """One difference: whose, and what is there."""

    what: str
    detail: str


@dataclass
class Difference:
    """All of one kind: how many, how many of them are mended, and some of them."""

    count: int = 0
    mended: int = 0
    examples: list[Example] = field(default_factory=list[Example])


@dataclass
class Report:
    """What was found in one stream."""

    stream: str
    limit: int
    read: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    pending: int = 0
    unread: int = 0
    trimmed: int = 0
    lost: str = ""
    points: int = 0
    points_owed: int = 0
    points_refused: int = 0
    claims: int = 0
    unchecked: dict[str, str] = field(default_factory=dict[str, str])
    differences: dict[str, Difference] = field(default_factory=dict[str, Difference])

    def differs(self, kind: str, what: str, detail: str, count: int = 1) -> None:
        """Count a difference, and keep it where there is room."""
        found = self.differences.setdefault(kind, Difference())
        found.count += count
        if len(found.examples) < self.limit:
            found.examples.append(Example(what, detail))

    @property
    def balanced(self) -> bool:
        """Whether everything was looked at, and nothing differs that is not mended."""
        left = any(found.count > found.mended for found in self.differences.values())
        return not (left or self.unchecked)

    def print(self, span: str) -> None:
        """Tell it all.

        :param span: which entries were audited, in words
        """
        entries = (
            f"{self.read:,} read = {self.accepted:,} accepted + {self.duplicates:,} duplicates + "
            f"{self.rejected:,} rejected + {self.pending:,} pending"
        )
        total = self.accepted + self.duplicates + self.rejected + self.pending
        if total != self.read:
            entries = entries.replace(" = ", " ≠ ") + f" = {total:,}"
        points = (
            f"{self.points:,} found, {self.points_owed:,} owed, {self.points_refused:,} refused"
        )
        print_sheet(
            [
                ("stream", f"{self.stream}, {span}"),
                ("entries", entries),
                (
                    "",
                    f"{self.unread:,} more wait to be read; {self.trimmed:,} of those read have left",
                ),
                ("lost", self.lost),
                ("points", self._unless_unchecked("points", points)),
                ("claims", self._unless_unchecked("claims", f"{self.claims:,} looked at")),
            ]
        )
        for kind, found in self.differences.items():
            mended = f", {found.mended:,} mended" if found.mended else ""
            print_line()
            print_line(f"{kind}: {found.count:,}{mended}. {KINDS[kind]}")
            print_table(
                ("what", "detail"), [(example.what, example.detail) for example in found.examples]
            )
            if found.count > len(found.examples) == self.limit:
                print_line(f"… and {found.count - len(found.examples):,} more (--limit)")
        print_line()
        print_line(f"stream {self.stream}: {self._verdict()}")

    def _unless_unchecked(self, what: str, told: str) -> str:
        reason = self.unchecked.get(what)
        return f"not checked: {printable(reason, 300)}" if reason else told

    def _verdict(self) -> str:
        left = sum(found.count - found.mended for found in self.differences.values())
        if left:
            return f"{left:,} differences"
        if self.unchecked:
            return f"not proved: {', '.join(self.unchecked)} not checked"
        return "balanced"
