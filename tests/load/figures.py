"""Figures of several rounds: medians with their ranges, ratios within a round, and tables of them."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

Rounds = dict[str, list[float]]  #: by measure, one value for each round


class Spread(NamedTuple):
    """One figure of all rounds."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        """The median, and the range in brackets where there is one."""
        if self.lowest == self.highest:
            return number(self.median)
        return f"{number(self.median)} ({number(self.lowest)} to {number(self.highest)})"


def spread(values: Sequence[float]) -> Spread:
    """The figure that several rounds gave."""
    return Spread(statistics.median(values), min(values), max(values))


def number(value: float) -> str:
    """A number with about three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def add(rounds: Rounds, figures: Mapping[str, float]) -> None:
    """Add one round's figures."""
    for name, value in figures.items():
        rounds.setdefault(name, []).append(value)


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round, for what a noisy neighbour slows it slows for both."""
    return [a / b for a, b in zip(above, below, strict=True)]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so many of them do not exceed; `values` sorted."""
    return values[min(len(values) - 1, max(0, -int(-share * len(values) // 1) - 1))]


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as the pages have it."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def dumped(results: object) -> str:
    """Results as JSON, for programs."""
    return json.dumps(results, indent=1, ensure_ascii=False)
