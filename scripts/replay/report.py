"""What a replay says at its end, for people and for machines."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from scripts.replay.following import Expected
from scripts.replay.outcomes import Summary
from streams.entry import EntryId


@dataclass(frozen=True, slots=True)
class Published:
    """What went into the stream."""

    stream: str
    entries: int
    first: EntryId
    last: EntryId
    seconds: float

    def as_text(self) -> str:
        """One line."""
        rate = self.entries / self.seconds
        return (
            f"{self.entries:,} entries in stream {self.stream}, {self.first} to {self.last}, "
            f"published in {self.seconds:.2f} s: {rate:,.0f}/s"
        )

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "stream": self.stream,
            "entries": self.entries,
            "first_entry_id": str(self.first),
            "last_entry_id": str(self.last),
            "published_seconds": round(self.seconds, 3),
            "published_per_second": round(self.entries / self.seconds, 1),
        }


@dataclass(frozen=True, slots=True)
class Compared:
    """What became of the entries, beside what should have.

    :ivar event_time: the entry ids are the orders' own times
    :ivar quiet_s_max: the wait ended early where nothing was recorded for so long
    """

    entries: int
    expected: Expected
    found: Summary
    event_time: bool
    quiet_s_max: float

    @property
    def as_expected(self) -> bool:
        """Whether each outcome was found as often as expected."""
        return self.expected.figures == self.found.figures

    @property
    def per_second(self) -> float | None:
        """Outcomes recorded in a second, from the start of publishing to the last of them."""
        return self.found.recorded_now / self.found.seconds if self.found.seconds else None

    def as_text(self) -> str:
        """A few lines."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        expected, found = asdict(self.expected.figures), asdict(self.found.figures)
        yield f"{'':12}{'expected':>12}{'found':>12}"
        for outcome in expected:
            differs = "" if expected[outcome] == found[outcome] else "  differs"
            yield f"{outcome:12}{expected[outcome]:>12,}{found[outcome]:>12,}{differs}"
        if missing := self.entries - self.found.recorded:
            yield self._missing_text(missing)
        if self.expected.repeats:
            yield f"{self.expected.repeats:,} of the duplicates repeat orders from before this run"
        if before := self.found.recorded - self.found.recorded_now:
            yield f"{before:,} of the entries were on record before this run"
        if self.per_second:
            yield f"orders per second: {self.per_second:,.0f}, from first publishing to last outcome"
        yield f"latency: {self._latencies_text()}"

    def _missing_text(self, missing: int) -> str:
        if missing < 0:
            return f"there are {-missing:,} outcomes too many: some entries have two"
        return (
            f"gave up: {missing:,} entries have no outcome, and none was recorded for "
            f"{self.quiet_s_max:g} s; is a worker reading this stream?"
        )

    def _latencies_text(self) -> str:
        if self.latencies_ms is None:
            return f"not measured, {self.latencies_omitted}"
        return ", ".join(f"{name} {value:,.1f} ms" for name, value in self.latencies_ms.items())

    @property
    def latencies_omitted(self) -> str | None:
        """Why there are no latencies; None where there are."""
        if self.event_time:
            return "entry ids are the orders' own times"
        return None if self.found.latencies_ms else "nothing was recorded during this run"

    @property
    def latencies_ms(self) -> dict[str, float] | None:
        """Percentiles of the milliseconds from entry id to recorded_at."""
        if self.latencies_omitted or self.found.latencies_ms is None:
            return None
        return dict(zip(("p50", "p95", "p99", "max"), self.found.latencies_ms, strict=True))

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "as_expected": self.as_expected,
            "expected": asdict(self.expected.figures),
            "found": asdict(self.found.figures),
            "repeats_of_earlier_orders": self.expected.repeats,
            "recorded_before": self.found.recorded - self.found.recorded_now,
            "per_second": self.per_second,
            "latency_ms": self.latencies_ms,
            "latency_omitted": self.latencies_omitted,
        }


def as_json(published: Published, compared: Compared | None) -> str:
    """One JSON object, with or without the comparison; latencies are milliseconds."""
    return json.dumps(published.as_dict() | (compared.as_dict() if compared else {}))
