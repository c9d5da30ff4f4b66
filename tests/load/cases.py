"""The cases of growth: what varies, one thing at a time, all else as in the contest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from tests.load.loads import DUPLICATES_SHARE, Load


class Points(Enum):
    """Where points go: a file, InfluxDB, or an address where nobody listens."""

    FILE = "file"
    INFLUXDB = "InfluxDB"
    NOWHERE = "nowhere"


@dataclass(frozen=True)
class Case:
    """One point of one series.

    :ivar series: what varies
    :ivar x: its value
    :ivar rows: orders on record before the start
    :ivar points: where they go
    """

    series: str
    x: float
    load: Load
    workers: int = 1
    rows: int = 0
    points: Points = Points.FILE


BACKLOG, ROWS, WORKERS = "entries in the backlog", "orders on record before", "workers"
SHARE, FIELDS, STORM = "duplicates, %", "fields in an entry", "times the same orders are sent"
INFLUXDB = "InfluxDB reachable"


def cases(
    backlogs: Sequence[int], rows: Sequence[int], entries: int, storm: int, only: Sequence[str]
) -> Iterator[Case]:
    """Every case of the series asked for.

    :param entries: of every load but the backlogs
    :param storm: how often a twentieth of them is sent
    """
    load = Load.of(entries)
    every = [
        *(Case(BACKLOG, size, Load.of(size)) for size in backlogs),
        *(Case(ROWS, size, load, rows=size) for size in rows),
        *(Case(WORKERS, count, load, workers=count) for count in (1, 2, 4)),
        *(
            Case(SHARE, round(share * 100, 1), Load.of(entries, share))
            for share in (0, DUPLICATES_SHARE, 0.5, 0.9)
        ),
        *(Case(FIELDS, count, Load.of(entries, fields=count)) for count in (8, 64)),
        *(Case(STORM, times, Load(entries // 20, 0, times=times)) for times in (1, storm)),
        Case(INFLUXDB, 1, load, points=Points.INFLUXDB),
        Case(INFLUXDB, 0, load, points=Points.NOWHERE),
    ]
    return (case for case in every if case.series in only)
