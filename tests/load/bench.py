"""Measure Ordergate on servers of its own: a backlog drained, orders one by one, and what tests cost.

    make bench ARGS='--orders 100000 --duplicates 28600 --rounds 5'

Each round has fresh servers and checks every outcome before its figures count. Figures of a shared
machine are noisy: medians with their range, to be compared within one run only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import anyio
from rich.console import Console
from rich.table import Table

from scripts.replay.synthetic import synthetic_orders
from streams.producer import Producer, connect
from tests.load.infrastructure_bench import Figure, infrastructure_figures
from worker.embedded import EmbeddedServices, embedded_services
from worker.run import ledger_of
from worker.settings import load

CHUNK = 10_000
COUNTS = "SELECT outcome, count(*) FROM outcomes GROUP BY outcome"
TIMES = """
SELECT extract(epoch FROM min(recorded_at))::float8, extract(epoch FROM max(recorded_at))::float8
FROM outcomes
"""
COMMITTED = "SELECT true FROM orders WHERE stream = 'orders' AND entry_id = $1"
READY_S_MAX = 30.0
DRAIN_S_MAX = 600.0


def main() -> int:
    """Run all rounds and print the table. Exits 1 where an outcome is wrong."""
    options = _options()
    figures: dict[tuple[str, str], list[float]] = {}
    for number in range(1, options.rounds + 1):
        print(f"round {number} of {options.rounds} …", file=sys.stderr)
        for name, unit, value in _round(options):
            figures.setdefault((name, unit), []).append(value)
    if options.json:
        print(json.dumps([{"name": n, "unit": u, "rounds": v} for (n, u), v in figures.items()]))
    else:
        _print(figures)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--orders", type=int, default=71_400)
    parser.add_argument("--duplicates", type=int, default=28_600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--singles", type=int, default=300, help="orders sent one by one")
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--in-flight", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _round(options: argparse.Namespace) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="ordergate-bench-") as directory:
        with embedded_services(Path(directory) / "backlog") as services:
            figures = anyio.run(_backlog, services, options)
        with embedded_services(Path(directory) / "singles") as services:
            figures += anyio.run(_one_by_one, services, options)
    return figures + infrastructure_figures()


async def _backlog(services: EmbeddedServices, options: argparse.Namespace) -> list[Figure]:
    """Publish everything, then let one worker drain it."""
    environment = _environment(services, options)
    await anyio.run_process([sys.executable, "-m", "worker", "migrate"], env=environment)
    await _publish(services, options)
    before = getrusage(RUSAGE_CHILDREN)
    await anyio.run_process(
        [sys.executable, "-m", "worker", "--drain"], env=environment, stderr=None, check=True
    )
    after = getrusage(RUSAGE_CHILDREN)
    total = options.orders + options.duplicates
    first, last = await _check(services, options.orders, options.duplicates)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [
        Figure("backlog drained", "orders/s", total / (last - first)),
        Figure("worker CPU, start included", "µs/order", cpu_s / total * 1e6),
        Figure("worker memory, peak", "MiB", after.ru_maxrss / 1024),
    ]


async def _publish(services: EmbeddedServices, options: argparse.Namespace) -> None:
    redis = connect(services.redis_url)
    try:
        orders = synthetic_orders(options.orders, options.duplicates, seed=1)
        while chunk := list(islice(orders, CHUNK)):
            await Producer(redis, "orders").publish(chunk)
    finally:
        await redis.aclose()


async def _check(services: EmbeddedServices, orders: int, duplicates: int) -> tuple[float, float]:
    """Make sure that every outcome is right; gives when the first and the last was recorded."""
    chosen = load({"DATABASE_URL": services.database_url})
    async with ledger_of(chosen) as ledger, ledger.connection() as connection:
        found: dict[str, int] = dict(await connection.fetch(COUNTS))
        first, last = await connection.fetchrow(TIMES) or (0.0, 0.0)
    expected = {"accepted": orders, "duplicate": duplicates}
    if found != {name: count for name, count in expected.items() if count}:
        raise SystemExit(f"expected {expected}, found {found}: no figure")
    return first, last


async def _one_by_one(services: EmbeddedServices, options: argparse.Namespace) -> list[Figure]:
    """Send orders one at a time to a waiting worker, each once the one before is committed."""
    environment = _environment(services, options)
    await anyio.run_process([sys.executable, "-m", "worker", "migrate"], env=environment)
    redis = connect(services.redis_url)
    chosen = load({"DATABASE_URL": services.database_url})
    latencies: list[float] = []
    try:
        async with ledger_of(chosen) as ledger, ledger.connection() as database:
            with _worker(environment):
                producer = Producer(redis, "orders")
                for order in synthetic_orders(options.singles + 20, 0, seed=2):
                    sent = time.perf_counter()
                    [entry_id] = await producer.publish([order])
                    with anyio.fail_after(READY_S_MAX):
                        while not await database.fetchval(COMMITTED, entry_id):
                            pass
                    latencies.append((time.perf_counter() - sent) * 1000)
    finally:
        await redis.aclose()
    steady = sorted(latencies[20:])  # the first wait for the worker to start
    return [
        Figure("XADD to commit seen, p50", "ms", statistics.median(steady)),
        Figure("XADD to commit seen, p99", "ms", steady[int(len(steady) * 0.99)]),
    ]


@contextmanager
def _worker(environment: dict[str, str]) -> Generator[None]:
    process = subprocess.Popen([sys.executable, "-m", "worker"], env=environment)
    try:
        yield
    finally:
        process.terminate()
        process.wait(READY_S_MAX)


def _environment(services: EmbeddedServices, options: argparse.Namespace) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "REDIS_URL": services.redis_url,
        "DATABASE_URL": services.database_url,
        "INFLUXDB_URL": services.points_url,
        "WORKER_BATCH_SIZE": str(options.batch_size),
        "WORKER_BATCHES_IN_FLIGHT": str(options.in_flight),
        "WORKER_LOG_LEVEL": "warning",
    }


def _print(figures: dict[tuple[str, str], list[float]]) -> None:
    table = Table("figure", "unit", "median", "lowest", "highest")
    for (name, unit), values in figures.items():
        numbers: Sequence[float] = (statistics.median(values), min(values), max(values))
        table.add_row(name, unit, *(f"{number:,.1f}" for number in numbers))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
