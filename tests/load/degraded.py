"""How fast orders flow while InfluxDB is away: python -m tests.load.degraded [--rounds N] [--entries N]

The same backlog is drained with InfluxDB at work, with one that refuses connections, and with one that takes
them and never answers, in turn, several rounds. What counts is the ratio within a round.

The rate is that of the last nine tenths of a run. Before that the worker finds out, once, that nobody
answers: that takes `WORKER_POINTS_TIMEOUT`, and shows in the seconds of the first tenth.
"""

import argparse
import socket
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager

import anyio

from tests.load.drain import Failed
from tests.load.figures import Rounds, add, markdown, ratios, spread
from tests.load.flow import Flow, publish, reading, settled, worker
from tests.load.ground import STREAM, Ground, ground
from tests.load.loads import Load

AT_WORK, FILE, REFUSING, HUNG = "at work", "a file instead", "refusing", "hung"
NOWHERE = "http://127.0.0.1:9"  #: nobody listens there
NOTICED = 0.1  #: of a run; by then the worker knows how InfluxDB is
RUN_S_MAX = 600
RATE, UNTIL_NOTICED = "orders/s", "seconds of the first tenth"
RECORD = """
SELECT (SELECT count(*) FROM orders WHERE stream = $1),
       (SELECT count(*) FROM duplicates WHERE stream = $1),
       (SELECT count(*) FROM point_backlog)
"""


async def measure(rounds: int, entries: int) -> dict[str, Rounds]:
    """Run all rounds, after a small one that is not counted."""
    found: dict[str, Rounds] = {}
    async with ground(influx=True) as place:
        with _nobody_answers() as hung:
            ways: Mapping[str, dict[str, str]] = {
                AT_WORK: place.influx_variables,
                FILE: {},
                REFUSING: {"INFLUXDB_URL": NOWHERE},
                HUNG: {"INFLUXDB_URL": hung},
            }
            for turn in range(rounds + 1):
                load = Load.of(entries if turn else entries // 10)
                for way, variables in ways.items():
                    figures = await _run(place, load, way, variables)
                    print(f"{turn} {way:<16}{figures[RATE]:>9,.0f}/s", file=sys.stderr)
                    if turn:
                        add(found.setdefault(way, {}), figures)
    return found


@contextmanager
def _nobody_answers() -> Generator[str]:
    """An address where connections are accepted, by the kernel alone."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1000)
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


async def _run(place: Ground, load: Load, way: str, variables: dict[str, str]) -> dict[str, float]:
    await place.clean()
    await place.migrate()
    positions = await publish(place, load)
    flow = Flow()
    with worker(place, variables):
        await reading(place)
        await flow.follow(lambda: settled(place, positions), len(positions), RUN_S_MAX)
        owed_max = load.entries if way in (REFUSING, HUNG) else 0
        found = await place.row(RECORD, STREAM)
    if found != (load.orders, load.repeats, owed_max):
        raise Failed(f"{way}: orders, duplicates, points owed {found} of {load}")
    first = load.entries * NOTICED
    return {RATE: flow.rate(NOTICED), UNTIL_NOTICED: first / flow.rate(0.0, NOTICED)}


def table(found: Mapping[str, Rounds]) -> str:
    """Medians and ranges, and each way's rate beside that with InfluxDB at work."""
    rows = [
        [
            way,
            *(str(spread(figures[name])) for name in (RATE, UNTIL_NOTICED)),
            str(spread(ratios(figures[RATE], found[AT_WORK][RATE]))),
            str(spread(ratios(figures[RATE], found[FILE][RATE]))),
        ]
        for way, figures in found.items()
    ]
    heads = ("InfluxDB", RATE, UNTIL_NOTICED, "beside InfluxDB at work", "beside a file")
    return markdown(heads, rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.degraded",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--entries", type=int, default=100_000)
    chosen = parser.parse_args()
    print(table(anyio.run(measure, chosen.rounds, chosen.entries)))


if __name__ == "__main__":
    main()
