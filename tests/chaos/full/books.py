"""The books of a long run: sums over what was sent, against the same sums over what is on record.

At ten million entries neither side can be held in memory as a whole, so sets are compared by how many there
are and by sums over their ids that pair each entry id with its order id.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, cast

from anyio import to_thread

from tests.isolation import Place

PRIME = 1_000_003
SLICE_MS = 60_000

SUMS = f"""
SELECT count(*) AS entries, coalesce(sum(ms), 0) AS ms, coalesce(sum(seq), 0) AS seq,
       coalesce(sum(number * ((ms + seq) % {PRIME})), 0) AS pairs, min(ms) AS first_ms, max(ms) AS last_ms
FROM (
    SELECT split_part(entry_id, '-', 1)::bigint AS ms, split_part(entry_id, '-', 2)::bigint AS seq,
           split_part(order_id, '-', 2)::bigint AS number
    FROM outcomes
) AS ids
"""
COUNTS = """
SELECT (SELECT count(*) FROM orders) AS accepted, (SELECT count(*) FROM duplicates) AS duplicates,
       (SELECT count(*) FROM rejections) AS rejections, (SELECT count(*) FROM point_backlog) AS owed
"""
#: One entry with two outcomes.
DOUBLED = "SELECT entry_id FROM outcomes GROUP BY stream, entry_id HAVING count(*) > 1 LIMIT 5"
#: One content accepted twice within its window.  $1 the window in seconds
TWICE = """
SELECT encode(a.content_hash, 'hex') AS content FROM orders b JOIN orders a
    ON a.content_hash = b.content_hash AND a.generation < b.generation
WHERE b.generation > 0 AND abs(extract(epoch FROM b.entry_at - a.entry_at)) <= $1 LIMIT 5
"""


class Kind(Enum):
    """What an entry should become."""

    NEW = "accepted"
    REPEAT = "duplicate"
    BAD = "rejected"


class Item(NamedTuple):
    """An order with the number in its order id."""

    number: int
    kind: Kind
    order: Mapping[str, str]


@dataclass(slots=True)
class Books:
    """What the producer sent.

    :ivar accepted, duplicates, rejections: how many entries should end as what
    :ivar unsure: by entry id, those whose reply was lost: they are in the stream, or not
    :ivar unsure_ever: how many those were
    """

    accepted: int = 0
    duplicates: int = 0
    rejections: int = 0
    entries: int = 0
    ms: int = 0
    seq: int = 0
    pairs: int = 0
    unsure: dict[str, Item] = field(default_factory=dict[str, Item])
    unsure_ever: int = 0

    def note(self, entry_id: str, item: Item) -> None:
        """Enter what Redis took."""
        match item.kind:
            case Kind.NEW:
                self.accepted += 1
            case Kind.REPEAT:
                self.duplicates += 1
            case Kind.BAD:
                self.rejections += 1
        ms, seq = map(int, entry_id.split("-"))
        self.entries += 1
        self.ms += ms
        self.seq += seq
        self.pairs += item.number * ((ms + seq) % PRIME)

    def doubt(self, entry_id: str, item: Item) -> None:
        """Enter what Redis took, or did not."""
        self.unsure[entry_id] = item
        self.unsure_ever += 1

    async def find_unsure(self, place: Place) -> None:
        """Enter those of the unsure ones that are on record. Each was sent again: it is a repeat of that."""
        sql = "SELECT entry_id FROM outcomes WHERE entry_id = ANY($1)"
        for row in await place.fetch(sql, list(self.unsure)):
            item = self.unsure.pop(row["entry_id"])
            kind = Kind.BAD if item.kind is Kind.BAD else Kind.REPEAT
            self.note(row["entry_id"], item._replace(kind=kind))


async def unbalanced(place: Place, books: Books) -> list[str]:
    """A sentence for each thing in which what is on record differs from the books."""
    await books.find_unsure(place)
    [sums] = await place.fetch(SUMS)
    [counts] = await place.fetch(COUNTS)
    window_s = place.settings.dedupe_window_ms / 1000
    doubled, twice = await place.fetch(DOUBLED), await place.fetch(TWICE, window_s)
    expected = {name: getattr(books, name) for name in ("entries", "ms", "seq", "pairs")}
    outcomes = (books.accepted, books.duplicates, books.rejections)
    found = (counts["accepted"], counts["duplicates"], counts["rejections"])
    wrong = [
        f"{name}: {sums[name]} on record, {value} sent"
        for name, value in expected.items()
        if sums[name] != value
    ]
    if found != outcomes:
        wrong.append(f"accepted, duplicates, rejections: {found}, should be {outcomes}")
    if counts["owed"]:
        wrong.append(f"{counts['owed']} points owed")
    if doubled or twice:
        wrong.append(f"two outcomes of {doubled}, accepted twice {twice}")
    letters = await place.command("XLEN", f"{{{place.stream}}}:dead")
    if letters != books.rejections:
        wrong.append(f"{letters} dead letters, {books.rejections} rejections")
    points = await _points(place, sums["first_ms"] or 0, sums["last_ms"] or 0)
    if points != found:
        wrong.append(f"points: {points}, should be {found}")
    return wrong


async def _points(place: Place, first_ms: int, last_ms: int) -> tuple[int, int, int]:
    """How many points there are of each outcome, counted in slices that InfluxDB can answer in time."""
    counts = Counter[str]()
    for from_ms in range(first_ms, last_ms + 1, SLICE_MS):
        span = f"time >= {from_ms}ms AND time < {from_ms + SLICE_MS}ms"
        sql = f"SELECT count(entry_id) AS points FROM orders WHERE {span} GROUP BY outcome"
        for row in await to_thread.run_sync(place.influx.query, sql, place.bucket):
            counts[str(row["outcome"])] += cast("int", row["points"])
    return counts["accepted"], counts["duplicate"], counts["rejected"]
