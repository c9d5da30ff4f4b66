"""The contest's options, its table and its plot."""

import argparse

from tests.load.contest import Contest, Knobs, contest
from tests.load.contestants import CONTESTANTS, FLOOR
from tests.load.figures import markdown, spread
from tests.load.ground import ground
from tests.load.loads import DUPLICATES_SHARE, Load
from tests.load.plot import bars
from tests.load.sections import Section, machine

MEASURES = ("orders/s", "worker µs", "Redis µs", "Postgres µs", "WAL bytes", "peak MiB")
HEADS = (
    "", "orders/s", "worker µs", "Redis µs", "Postgres µs", "WAL bytes", "worker's memory, MiB",
)  # fmt: skip


def options(parser: argparse.ArgumentParser) -> None:
    """What the contest takes."""
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument(
        "--duplicates", type=float, default=DUPLICATES_SHARE, help="which share of them"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=Knobs.batch_size)
    parser.add_argument("--in-flight", type=int, default=Knobs.in_flight, help="batches at once")
    parser.add_argument(
        "--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="contestants"
    )
    parser.add_argument("--influxdb", action="store_true", help="points to a real InfluxDB")


async def measure(chosen: argparse.Namespace) -> list[Section]:
    """Run the contest."""
    load = Load.of(chosen.entries, chosen.duplicates)
    knobs = Knobs(chosen.batch_size, chosen.in_flight)
    async with ground(influx=chosen.influxdb) as place:
        found = await contest(place, chosen.only, load, knobs, chosen.rounds)
        return [_section(found, load, chosen.rounds, await machine(place))]


def _section(found: Contest, load: Load, rounds: int, where: dict[str, str]) -> Section:
    results = {
        "machine": where,
        "entries": load.entries,
        "repeats": load.repeats,
        "figures": found.figures,
        "ratios": found.ratios(),
        "without figures": found.failed,
    }
    said = f"{load.entries:,} entries, {load.repeats:,} of them repeats, {rounds} rounds: "
    said += f"median (range). {'; '.join(where.values())}.\n\n"
    rates = {name: spread(rounds["orders/s"]) for name, rounds in found.figures.items()}
    plot = {"contest": bars("orders/s, median and range", rates)} if rates else {}
    return Section("contest", results, said + _table(found) + "\n" + _ratios(found), plot)


def _table(found: Contest) -> str:
    rows = [
        [name, *(_cell(name, measure, rounds[measure]) for measure in MEASURES)]
        for name, rounds in found.figures.items()
    ]
    failed = [[name, f"no figure: {why}"] + [""] * 5 for name, why in found.failed.items()]
    return markdown(HEADS, rows + failed)


def _cell(name: str, measure: str, values: list[float]) -> str:
    """A figure; the floor's memory is that of all its bytes, made before, and says nothing."""
    return "" if (name, measure) == (FLOOR, "peak MiB") else str(spread(values))


def _ratios(found: Contest) -> str:
    rows = [[name, str(spread(values))] for name, values in found.ratios().items()]
    return markdown(("ratio within a round", "median (range)"), rows) if rows else ""
