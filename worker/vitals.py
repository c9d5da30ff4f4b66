"""What a worker notes of its own doing, for whoever looks at it: counts, and how long things took.

Plain numbers in memory, noted once for a batch: no lock, no library and no I/O, so that noting costs an
order next to nothing and can never wait for anybody who reads. They begin anew with the process.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, perf_counter, time

from worker.dependency import Dependency
from worker.settings import Settings

#: The steps of a batch that are timed. `record` begins when it is the batch's turn at Postgres.
STAGES = ("parse", "claim", "decide", "wait", "record", "emit", "settle")

#: What an entry may count as. `redelivered`: it was on record before. `kept`, `left`: see `outcome.Kept`.
WORDS: tuple[str, ...] = ("accepted", "duplicate", "rejected", "redelivered", "kept", "left")

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ENTRIES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Histogram:
    """Counts of values up to each bound and, last, above all of them; and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def note(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """The value that this share of the counted ones does not exceed, interpolated within its bounds.

    :param counts: as of a histogram, or the difference between two moments of one
    :returns: None where nothing was counted; the last bound for whatever lies above it
    """
    rank = share * sum(counts)
    if not rank:
        return None
    below, lower = 0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and below + count >= rank:
            return lower + (bound - lower) * (rank - below) / count
        below, lower = below + count, bound
    return bounds[-1]


class Laps:
    """The stages of one batch, timed one after the other."""

    __slots__ = ("_last", "seconds")

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, stage: str) -> None:
        """The stage is over; the next one begins."""
        now = perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


class StreamVitals:
    """What a worker did with one stream's entries.

    :ivar outcomes: entries by what they count as, see `WORDS`
    :ivar rejections: rejected entries by code
    :ivar latency: seconds from the id of each batch's oldest entry to its acknowledgement; Redis' clock
        to ours
    :ivar taken_over: entries that a quiet consumer had left
    :ivar read_at: when reading last worked, on the monotonic clock, entries or none; None before the first
    """

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = dict.fromkeys(WORDS, 0)
        self.rejections: dict[str, int] = {}
        self.batches = Histogram(ENTRIES)
        self.stages = {stage: Histogram(SECONDS) for stage in STAGES}
        self.latency = Histogram(SECONDS)
        self.taken_over = 0
        self.read_at: float | None = None

    def read(self) -> None:
        """Note that reading worked."""
        self.read_at = monotonic()

    def settled(
        self, oldest_ms: int, counts: Mapping[str, int], codes: Mapping[str, int], laps: Laps
    ) -> None:
        """Note a batch that is acknowledged.

        :param oldest_ms: milliseconds since 1970 of its oldest entry's id
        :param codes: of its rejected entries
        """
        for word, count in counts.items():
            self.outcomes[word] += count
        for code, count in codes.items():
            self.rejections[code] = self.rejections.get(code, 0) + count
        for stage, seconds in laps.seconds.items():
            self.stages[stage].note(seconds)
        self.batches.note(sum(counts.values()))
        self.latency.note(max(0.0, time() - oldest_ms / 1000))


@dataclass
class Vitals:
    """What one worker is, knows of its servers, and did with each stream."""

    settings: Settings
    dependencies: Sequence[Dependency]
    streams: Mapping[str, StreamVitals]
    started_at: float = field(default_factory=time)  #: seconds since 1970
    stopping: bool = False

    @classmethod
    def of(cls, settings: Settings, dependencies: Sequence[Dependency]) -> "Vitals":
        """Those of a worker that has done nothing yet."""
        return cls(settings, dependencies, {stream: StreamVitals() for stream in settings.streams})
