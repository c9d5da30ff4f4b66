"""A guard against getting slower: ratios to the floor of the same run, held against the committed ones.

A ratio carries from one machine to another where a rate does not. Orders/s are beside the floor's; CPU, of
the worker, the servers and each of the worker's stages, is beside what the floor takes of all three, so that
what became slower is named. CPU tells more than speed on a machine that does other things too.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.load.contest import Knobs, run
from tests.load.contestants import CONTESTANTS, ORDERGATE, Contestant
from tests.load.figures import Rounds, Spread, add, dumped, markdown, spread
from tests.load.ground import Ground, ground
from tests.load.loads import Load
from tests.load.sections import Section

COMMITTED = Path(__file__).with_name("guard.json")
SPEED, CPU = "orders/s", "CPU of all three"
CLEARLY = 0.07  #: what lies outside of both ranges by less than that is noise all the same


def options(parser: argparse.ArgumentParser) -> None:
    """How long to look, and whether to commit to what is found."""
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--accept", action="store_true", help="write tests/load/guard.json")


async def measure(chosen: argparse.Namespace) -> list[Section]:
    """Measure and compare. :raises SystemExit: clearly slower than what is committed"""
    found: Rounds = {}
    async with ground() as place:
        for number in range(chosen.rounds + 1):
            figures = await _round(place, Load.of(chosen.entries))
            if number:
                add(found, figures)
                print(f"{number} {figures[SPEED]:.3f} of the floor", file=sys.stderr)
    now = {name: spread(values) for name, values in found.items()}
    if chosen.accept:
        COMMITTED.write_text(dumped({name: list(value) for name, value in now.items()}) + "\n")
    before = committed()
    table = _table(now, before)
    if slower := verdict(now, before):
        print(table)
        raise SystemExit(f"clearly worse: {', '.join(slower)}")
    return [Section("guard", {name: list(value) for name, value in now.items()}, table)]


async def _round(place: Ground, load: Load) -> dict[str, float]:
    """One round: the floor, the worker, and the worker with stopwatches, which slow it a little."""
    floor = await run(place, CONTESTANTS["floor"], load, Knobs())
    plain = await run(place, CONTESTANTS["ordergate"], load, Knobs())
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "watched.json"
        watched = Contestant(ORDERGATE, ("tests.load.watched", str(path), "all", "--drain"))
        await run(place, watched, load, Knobs())
        seen: dict[str, Any] = json.loads(path.read_text())
    costs = {**_costs(plain), **_stages(seen, load.entries)}
    unit = sum(_costs(floor).values())
    return {
        SPEED: plain["orders/s"] / floor["orders/s"],
        CPU: sum(_costs(plain).values()) / unit,
        **{name: cost / unit for name, cost in costs.items()},
    }


def _costs(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: figures[name] for name in ("worker µs", "Redis µs", "Postgres µs")}


def _stages(seen: Mapping[str, Any], entries: int) -> dict[str, float]:
    """The worker's CPU for an order in each stage, and what is left for the event loop, microseconds."""
    busy = {name: stage["busy_s"] for name, stage in seen["stages"].items()}
    busy["rest"] = seen["cpu_s"] - sum(busy.values())
    return {f"… {name}": value / entries * 1e6 for name, value in busy.items()}


def committed() -> dict[str, Spread]:
    """The figures of the last commit that accepted any."""
    return {name: Spread(*values) for name, values in json.loads(COMMITTED.read_text()).items()}


def verdict(now: Mapping[str, Spread], before: Mapping[str, Spread]) -> list[str]:
    """What is clearly worse, the parts of it included; nothing where neither speed nor CPU is."""
    slower = now[SPEED].highest < before[SPEED].lowest and _apart(before[SPEED], now[SPEED])
    if not (slower or _more(now[CPU], before[CPU])):
        return []
    parts = [name for name in now if name != SPEED and _more(now[name], before.get(name))]
    return [SPEED, *parts] if slower else parts


def _more(now: Spread, before: Spread | None) -> bool:
    return before is None or (now.lowest > before.highest and _apart(now, before))


def _apart(more: Spread, less: Spread) -> bool:
    return more.median > less.median * (1 + CLEARLY)


def _table(now: Mapping[str, Spread], before: Mapping[str, Spread]) -> str:
    rows = [[name, str(before.get(name, "")), str(value)] for name, value in now.items()]
    return markdown(("beside the floor", "committed", "now"), rows)
