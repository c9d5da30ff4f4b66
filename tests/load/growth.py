"""How speed changes as the work grows: backlogs, tables, workers, duplicates, fields, storms.

Cases of all series follow one another within a round, so that what slows the machine slows them all.
Each is checked: every entry has its outcome, no point is missing, and no dead row is left by repeats.
"""

import argparse
import sys
from collections.abc import Sequence

from tests.load import cases as these
from tests.load.cases import Case, Points, cases
from tests.load.contest import Knobs
from tests.load.drain import Failed, drained
from tests.load.figures import Rounds, add, markdown, spread
from tests.load.ground import STREAM, Ground, ground
from tests.load.plot import curves
from tests.load.sections import Section, machine

SERIES = {
    "backlog": these.BACKLOG,
    "rows": these.ROWS,
    "workers": these.WORKERS,
    "duplicates": these.SHARE,
    "fields": these.FIELDS,
    "storm": these.STORM,
    "influxdb": these.INFLUXDB,
}
#: Nobody listens there: a connection is refused at once.
NOWHERE = {"INFLUXDB_URL": "http://127.0.0.1:9"}
LOGARITHMIC = {these.BACKLOG}
MEASURES = ("orders/s", "worker µs", "Redis µs", "Postgres µs", "WAL bytes", "peak MiB")
#: Orders of another stream, as many as asked for, with hashes that lie all over the index.
PREFILL = """
INSERT INTO orders (content_hash, generation, stream, entry_id, entry_at, order_id, account, symbol, side,
    type, quantity, price, time_in_force, recorded_at)
SELECT sha256(n::text::bytea), 0, 'before', 1700000000000 + n || '-0',
    timestamptz '2023-11-14' + n * interval '1 millisecond', 'P-' || n, 'desk-' || n % 64, 'BTCUSDT', 'buy',
    'limit', 1 + n / 1e8, 65000 + n % 1000, 'gtc', now()
FROM generate_series(1, $1::bigint) n
"""
OUTCOMES = """
SELECT (SELECT count(*) FROM orders WHERE stream = $1), (SELECT count(*) FROM duplicates WHERE stream = $1)
"""
DEAD = (
    "SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables WHERE relname = ANY ($1)"
)


def options(parser: argparse.ArgumentParser) -> None:
    """How far it grows."""
    parser.add_argument("--only", nargs="+", choices=SERIES, default=list(SERIES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backlogs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 100_000, 1_000_000])
    parser.add_argument(
        "--entries", type=int, default=100_000, help="where the backlog is the same"
    )
    parser.add_argument("--storm", type=int, default=50, help="repeats of the same orders")
    parser.add_argument("--batch-size", type=int, default=Knobs.batch_size)
    parser.add_argument("--in-flight", type=int, default=Knobs.in_flight)


async def measure(chosen: argparse.Namespace) -> list[Section]:
    """Run every case in every round."""
    names = [SERIES[name] for name in chosen.only]
    every = list(cases(chosen.backlogs, chosen.rows, chosen.entries, chosen.storm, names))
    knobs = Knobs(chosen.batch_size, chosen.in_flight)
    found: dict[Case, Rounds] = {}
    async with ground(influx=these.INFLUXDB in names) as place:
        for number in range(1, chosen.rounds + 1):
            for case in every:
                figures = await _run(place, case, knobs)
                add(found.setdefault(case, {}), figures)
                rate = f"{figures['orders/s']:>9,.0f}/s"
                print(f"{number} {case.series:<32}{case.x:>10,g}{rate}", file=sys.stderr)
        return [_section(found, names, chosen.rounds, await machine(place))]


async def _run(place: Ground, case: Case, knobs: Knobs) -> dict[str, float]:
    await place.clean()
    await place.migrate()
    await place.execute(PREFILL, case.rows)
    await place.execute("VACUUM ANALYZE")
    await place.execute("CHECKPOINT")
    await place.publish(case.load)
    variables = {**knobs.variables, **_points(place, case)}
    commands = [("worker", "--drain")] * case.workers
    found = await drained(place, commands, case.load.entries, variables)
    await _check(place, case)
    return found.figures


def _points(place: Ground, case: Case) -> dict[str, str]:
    return {Points.FILE: {}, Points.INFLUXDB: place.influx_variables, Points.NOWHERE: NOWHERE}[
        case.points
    ]


async def _check(place: Ground, case: Case) -> None:
    expected, found = (case.load.orders, case.load.repeats), await place.row(OUTCOMES, STREAM)
    if found != expected:
        raise Failed(f"{case.series} {case.x:g}: orders, duplicates {found}, not {expected}")
    [owed] = await place.row("SELECT count(*) FROM point_backlog")
    if case.points is Points.NOWHERE and owed != case.load.entries:
        raise Failed(f"{case.series} {case.x:g}: {owed} points owed of {case.load.entries}")
    await place.execute("SELECT pg_stat_force_next_flush()")
    [dead] = await place.row(DEAD, ["orders", "duplicates", "rejections"])
    if dead and case.workers == 1:  # two workers with one content may both begin to insert it
        raise Failed(f"{case.series} {case.x:g}: {dead} dead rows")


def _section(
    found: dict[Case, Rounds], names: Sequence[str], rounds: int, where: dict[str, str]
) -> Section:
    results = {
        "machine": where,
        "series": {
            name: {f"{c.x:g}": figures for c, figures in found.items() if c.series == name}
            for name in names
        },
    }
    how_often = "One round" if rounds == 1 else f"{rounds} rounds, median (range)"
    said = f"{how_often}; figures in µs and bytes are per entry. "
    said += f"{'; '.join(where.values())}.\n"
    plots: dict[str, str] = {}
    for word, name in SERIES.items():
        cases = {case: figures for case, figures in found.items() if case.series == name}
        if cases:
            said += f"\n{_table(name, cases)}"
            plots[f"growth-{word}"] = _plot(name, cases)
    return Section("growth", results, said, plots)


def _table(name: str, cases: dict[Case, Rounds]) -> str:
    first = next(iter(cases.values()))["orders/s"]
    rows = [
        [f"{case.x:,g}", *(str(spread(figures[it])) for it in MEASURES), _beside(figures, first)]
        for case, figures in cases.items()
    ]
    return markdown((name, *MEASURES, "speed beside the first"), rows)


def _beside(figures: Rounds, first: list[float]) -> str:
    return str(spread([a / b for a, b in zip(figures["orders/s"], first, strict=True)]))


def _plot(name: str, cases: dict[Case, Rounds]) -> str:
    curve = [(case.x, spread(figures["orders/s"]).median) for case, figures in cases.items()]
    return curves(name, name, "orders/s", {"": sorted(curve)}, log_x=name in LOGARITHMIC)
