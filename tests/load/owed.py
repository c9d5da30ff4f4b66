"""A million points are owed, and InfluxDB is back: python -m tests.load.owed [--owed N] [--entries N]

In each round the same backlog of orders is drained twice, once with nothing owed and once with so many
points. Reports how fast orders flow in both, how fast the debt is paid, at its begin and at its end too, and
how much memory the worker has at most.
"""

import argparse
import sys
from subprocess import Popen

import anyio
from anyio import to_thread

from tests.load.drain import Failed
from tests.load.figures import Rounds, add, markdown, spread
from tests.load.flow import Flow, publish, reading, resident_mib, settled, worker
from tests.load.ground import BUCKET, Ground, ground, peak_mib
from tests.load.growth import PREFILL
from tests.load.loads import Load

RUN_S_MAX = 1500
LOOK_S = 0.5  #: between two looks at what is owed: to count it is work for Postgres
OWE = "INSERT INTO point_backlog (stream, entry_id) SELECT stream, entry_id FROM orders"
OWED = "SELECT count(*) FROM point_backlog"
POINTS = "SELECT count(order_id) FROM orders"


async def measure(rounds: int, owed: int, entries: int) -> Rounds:
    """Run all rounds."""
    found: Rounds = {}
    async with ground(influx=True) as place:
        assert place.influx
        for _ in range(rounds):
            nothing, much = [await _run(place, it, entries) for it in (0, owed)]
            figures = {
                "orders/s, nothing owed": nothing["orders/s"],
                "orders/s, points owed": much["orders/s"],
                "share of normal speed": much["orders/s"] / nothing["orders/s"],
                "peak MiB, nothing owed": nothing["peak MiB"],
                **{name: value for name, value in much.items() if name != "orders/s"},
            }
            print(figures, file=sys.stderr)
            add(found, figures)
    return found


async def _run(place: Ground, owed: int, entries: int) -> dict[str, float]:
    assert place.influx
    await place.clean()
    await to_thread.run_sync(place.influx.drop_bucket, BUCKET)
    await to_thread.run_sync(place.influx.create_bucket, BUCKET)
    await place.migrate()
    await place.execute(PREFILL, owed)
    await place.execute(OWE)
    await place.execute("VACUUM ANALYZE")
    await place.execute("CHECKPOINT")
    positions = await publish(place, Load.of(entries))
    orders, debt, paid_meanwhile = Flow(), Flow(), 0

    async def paid() -> int:
        await anyio.sleep(LOOK_S)
        return owed - (await place.row(OWED))[0]

    with worker(place, place.influx_variables) as process:
        await reading(place)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(debt.follow, paid, owed, RUN_S_MAX)
            await orders.follow(lambda: settled(place, positions), entries, RUN_S_MAX)
            paid_meanwhile = debt.samples[-1].done if debt.samples else 0
        figures = {"orders/s": orders.rate(), **(_debt(debt, paid_meanwhile) if owed else {})}
        figures |= _memory(process)
    await _check(place, owed + entries)
    return figures


def _debt(debt: Flow, paid_meanwhile: int) -> dict[str, float]:
    return {
        "paid while orders came": paid_meanwhile,
        "paid/s": debt.rate(),
        "paid/s, first tenth": debt.rate(0.0, 0.1),
        "paid/s, last tenth": debt.rate(0.9, 1.0),
    }


def _memory(process: "Popen[bytes]") -> dict[str, float]:
    return {"peak MiB": peak_mib(process.pid), "MiB at the end": resident_mib(process.pid)}


async def _check(place: Ground, points: int) -> None:
    assert place.influx
    [row] = await to_thread.run_sync(place.influx.query, POINTS, BUCKET)
    if row["count"] != points:
        raise Failed(f"{row['count']} points in InfluxDB, not {points}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.owed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--owed", type=int, default=1_000_000)
    parser.add_argument("--entries", type=int, default=200_000)
    chosen = parser.parse_args()
    found = anyio.run(measure, chosen.rounds, chosen.owed, chosen.entries)
    print(markdown(("", "figure"), [[name, str(spread(it))] for name, it in found.items()]))


if __name__ == "__main__":
    main()
