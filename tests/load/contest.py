"""The contest: programs that drain the same backlog, in turn, several rounds, on the same servers.

What is compared is a ratio within a round. Every run is checked before its figures count: each content
once in `orders`, the stream read to its end, nothing pending, and a row for each repeat and a point for
each entry where the contestant's design has such.
"""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.load.contestants import CONTESTANTS, EXPERT, FLOOR, ORDERGATE, Contestant
from tests.load.drain import Failed, drained
from tests.load.figures import Rounds, add, ratios
from tests.load.ground import Ground
from tests.load.loads import Load, quantity_sum

SCHEMA = Path(__file__).with_name("contestants") / "schema.sql"
RECORD = "SELECT count(*), count(DISTINCT quantity), coalesce(sum(quantity), 0)::text FROM orders"
COMPARED = ((ORDERGATE, FLOOR), (ORDERGATE, EXPERT), (EXPERT, FLOOR))


@dataclass(frozen=True)
class Knobs:
    """What a batch is, for all who have batches."""

    batch_size: int = 1000
    in_flight: int = 4

    @property
    def variables(self) -> dict[str, str]:
        """The same as the worker's variables."""
        return {
            "WORKER_BATCH_SIZE": str(self.batch_size),
            "WORKER_BATCHES_IN_FLIGHT": str(self.in_flight),
        }


@dataclass
class Contest:
    """The figures of each contestant, by its name, and why some have none."""

    figures: dict[str, Rounds] = field(default_factory=dict[str, Rounds])
    failed: dict[str, str] = field(default_factory=dict[str, str])

    def ratios(self) -> dict[str, list[float]]:
        """How many times as fast one is as another, round by round."""
        found: dict[str, list[float]] = {}
        for above, below in COMPARED:
            if {above, below} <= self.figures.keys():
                rates = [self.figures[name]["orders/s"] for name in (above, below)]
                found[f"{above} / {below}"] = ratios(*rates)
        return found


async def contest(
    ground: Ground, names: Sequence[str], load: Load, knobs: Knobs, rounds: int
) -> Contest:
    """Run all rounds, after one small run of each that is not counted."""
    result = Contest()
    chosen = [CONTESTANTS[name] for name in names if _is_here(CONTESTANTS[name], result)]
    for turn in range(rounds + 1):
        for contestant in chosen:
            if contestant.name not in result.failed:
                await _run(ground, contestant, load, knobs, result, turn)
    return result


async def _run(
    ground: Ground, contestant: Contestant, load: Load, knobs: Knobs, result: Contest, turn: int
) -> None:
    part = load.part(contestant.share * (1 if turn else 0.1))
    try:
        figures = await run(ground, contestant, part, knobs)
    except Failed as failure:
        result.failed[contestant.name] = str(failure)
        result.figures.pop(contestant.name, None)
        print(f"{contestant.name}: no figure: {failure}", file=sys.stderr)
        return
    if turn:
        add(result.figures.setdefault(contestant.name, {}), figures)
        print(f"{turn} {contestant.name:<24}{figures['orders/s']:>9,.0f}/s", file=sys.stderr)


async def run(ground: Ground, contestant: Contestant, load: Load, knobs: Knobs) -> dict[str, float]:
    """Publish a load, let one contestant drain it, check what it did.

    :raises Failed: it lost or doubled an order, or did not finish
    """
    await ground.clean()
    if contestant.name == ORDERGATE:
        await ground.migrate()
    else:
        await ground.execute(SCHEMA.read_text())
    await ground.publish(load)
    variables = {**knobs.variables, **ground.influx_variables}
    found = await drained(ground, [contestant.command], load.entries, variables)
    await _check(ground, contestant, load)
    return found.figures


async def _check(ground: Ground, contestant: Contestant, load: Load) -> None:
    await _check_orders(ground, load)
    if contestant.records_duplicates:
        [count] = await ground.row("SELECT count(*) FROM duplicates")
        if count != load.repeats:
            raise Failed(f"{load.repeats} repeats, {count} duplicates on record")
    if contestant.writes_points and not ground.influx:
        with ground.points.open("rb") as file:
            ours = (line for line in file if line.startswith(b"orders,"))
            count = len({line.rpartition(b" ")[2] for line in ours})
        if count != load.entries:
            raise Failed(f"{load.entries} entries, {count} points")


async def _check_orders(ground: Ground, load: Load) -> None:
    """No two orders have the same quantity: so many, and this sum, are just the right ones."""
    count, distinct, total = await ground.row(RECORD)
    units = int(str(total).replace(".", "")) if "." in str(total) else int(total) * 10**8
    if (count, distinct, units) != (load.orders, load.orders, quantity_sum(load.orders)):
        raise Failed(f"{load.orders} orders, on record {count}, {distinct} of them distinct")


def _is_here(contestant: Contestant, result: Contest) -> bool:
    if contestant.needs and not importlib.util.find_spec(contestant.needs):
        result.failed[contestant.name] = f"{contestant.needs} is not installed: use `make bench`"
        return False
    return True
