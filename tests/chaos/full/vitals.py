"""How a worker and its servers are doing, sampled; and whether something grew that should not."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

from tests.isolation import Place

MIB = 1024 * 1024
PAGE = os.sysconf("SC_PAGE_SIZE")

TABLES = """
SELECT c.relname AS name, pg_total_relation_size(c.oid) AS bytes FROM pg_class c
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'
"""
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ordergate'"
OWED = "SELECT count(*) FROM (SELECT FROM point_backlog LIMIT 1000000) AS owed"


@dataclass(slots=True, frozen=True)
class Sample:
    """One look at everything, so many seconds after the start."""

    at_s: float
    pid: int
    sent: int
    entries_per_s: float
    worker_rss_mib: float
    worker_fds: int
    postgres_connections: int
    redis_mib: float
    redis_clients: int
    stream_entries: int
    claims: int
    points_owed: int
    orders_mib: float
    duplicates_mib: float
    rejections_mib: float
    point_backlog_mib: float


SAMPLES_MIN = 4  #: of a quarter
#: What must be flat: the factor and the margin by which the last quarter may exceed the second.
#: The claims follow the rate of orders, Redis' memory the claims; points are owed while InfluxDB is away.
FLAT: Mapping[str, tuple[float, float]] = {
    "worker_rss_mib": (1.05, 4),
    "worker_fds": (1, 4),
    "postgres_connections": (1, 3),
    "redis_clients": (1, 4),
    "redis_mib": (1.3, 16),
    "stream_entries": (1.3, 50_000),
    "claims": (1.3, 20_000),
    "points_owed": (1, 60_000),
    "point_backlog_mib": (1.5, 32),
}


async def look(place: Place, pid: int, at_s: float, sent: int, before: Sample | None) -> Sample:
    """Take a sample. :raises ProcessLookupError, FileNotFoundError: the worker is gone"""
    rss_mib, fds = _process(pid)
    info = await cast("Any", place.redis.info())
    tables = {row["name"]: row["bytes"] / MIB for row in await place.fetch(TABLES)}
    [connections], [owed] = await place.fetch(CONNECTIONS), await place.fetch(OWED)
    return Sample(
        at_s=round(at_s, 1),
        pid=pid,
        sent=sent,
        entries_per_s=round((sent - before.sent) / (at_s - before.at_s), 1) if before else 0,
        worker_rss_mib=rss_mib,
        worker_fds=fds,
        postgres_connections=connections["count"],
        redis_mib=info["used_memory"] / MIB,
        redis_clients=info["connected_clients"],
        stream_entries=await place.command("XLEN", place.stream),
        claims=await place.command("DBSIZE"),
        points_owed=owed["count"],
        orders_mib=tables["orders"],
        duplicates_mib=tables["duplicates"],
        rejections_mib=tables["rejections"],
        point_backlog_mib=tables["point_backlog"],
    )


def _process(pid: int) -> tuple[float, int]:
    """A process' resident memory in MiB, and how many file descriptors it has open."""
    directory = Path(f"/proc/{pid}")
    pages = int((directory / "statm").read_text(encoding="ascii").split()[1])
    if not pages:  # it has ended, and nobody has asked for its exit code yet
        raise ProcessLookupError
    return pages * PAGE / MIB, len(list((directory / "fd").iterdir()))


def growing(samples: Sequence[Sample], *, since_s: float) -> list[str]:
    """A sentence for each figure that the last quarter of one worker's life has higher than the second.

    :param since_s: when that worker started
    """
    found = quarters(samples, since_s=since_s)
    if not found:
        return ["too few samples of the last worker"]
    return [
        f"{name} grew from {found[name][1]:,.0f} to {found[name][3]:,.0f}"
        for name, (factor, margin) in FLAT.items()
        if found[name][3] > found[name][1] * factor + margin
    ]


def quarters(samples: Sequence[Sample], *, since_s: float) -> dict[str, list[float]]:
    """The median of each figure that must be flat, for each quarter of one worker's life.

    :param since_s: when that worker started
    :returns: nothing where there are too few samples
    """
    life = [asdict(sample) for sample in samples if sample.at_s > since_s]
    size = len(life) // 4
    if size < SAMPLES_MIN:
        return {}
    parts = [life[number * size : (number + 1) * size] for number in range(4)]
    return {
        name: [round(median(sample[name] for sample in part), 1) for part in parts] for name in FLAT
    }


def curves(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Each figure over time."""
    rows = [asdict(sample) for sample in samples]
    names = [name for name in rows[0] if name not in ("at_s", "pid")]
    return {name.replace("_", " "): [row[name] for row in rows] for name in names}
