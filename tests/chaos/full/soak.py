"""Many orders through one worker, with faults going on: nothing grows that should not, and the books balance.

    python -m tests.chaos.full.soak --orders 10000000 --rate 3000 --directory soak

One worker drains what a throttled producer sends, repeats and bad input among it. In the first part of the
run the worker is killed now and then; the last one lives through the rest, while Redis, Postgres and
InfluxDB go away and come back. Samples are written to `soak.csv`, drawn in `soak.svg`, and summed up in
`soak.json`. Exits 1 where a figure is not flat or an outcome is wrong.
"""

import argparse
import csv
import json
import sys
from collections import Counter
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread

from tests.chaos.full.books import unbalanced
from tests.chaos.full.plot import svg
from tests.chaos.full.soaking import Plan, Soak
from tests.chaos.full.vitals import Sample, curves, growing, quarters
from tests.influxdb_server import InfluxServer
from tests.isolation import Place, isolated
from tests.servers import Servers
from tests.workers import Workers


def main() -> int:
    """Run, write the files and say what was found."""
    options = _options()
    directory: Path = options.directory
    directory.mkdir(parents=True, exist_ok=True)
    plan = Plan(options.orders, options.rate, options.minutes * 60, options.window_s, options.seed)
    with Servers({}) as servers:
        wrong = anyio.run(
            partial(soak, servers, directory, plan), backend_options={"use_uvloop": True}
        )
    print("\n".join(wrong) or "flat, and the books balance")
    return 1 if wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--orders", type=int, default=10_000_000, help="entries to publish")
    parser.add_argument("--rate", type=float, default=3_000, help="of them a second")
    parser.add_argument("--minutes", type=float, default=120, help="publish no longer than this")
    parser.add_argument("--window-s", type=int, default=60, help="the dedupe window")
    parser.add_argument("--seed", type=int, default=1, help="of the faults")
    parser.add_argument("--directory", type=Path, default=Path("soak"), help="for what is found")
    return parser.parse_args()


async def soak(servers: Servers, directory: Path, plan: Plan) -> list[str]:
    """Run, and write what was measured to `directory`; gives a sentence for each thing that is wrong."""
    redis, postgres, influx = servers.own_redis(), servers.own_postgres(), servers.own_influx()
    async with (
        isolated(servers, redis_url=redis.url, database_url=postgres.url, influx=influx) as bare,
        Workers(directory) as workers,
    ):
        place = bare.having(
            WORKER_DEDUPE_WINDOW=f"{plan.window_s}s",
            WORKER_RETENTION="5s",
            WORKER_LOG_LEVEL="warning",
            WORKER_CONSUMER="soak",
        )
        await _recovering_soon(place)
        run = Soak(place, workers, redis, postgres, influx, plan)
        try:
            await run.run()
        finally:
            _write_samples(directory, run)
        await _anew(influx)
        wrong = [
            *growing(run.samples, since_s=run.last_start_s),
            *await unbalanced(place, run.books),
        ]
        await _write_summary(directory, place, run, wrong)
    return wrong


async def _recovering_soon(place: Place) -> None:
    """Have Postgres note its state often: a busy machine needs long to recover what it wrote since."""
    for setting in ("max_wal_size = '512MB'", "checkpoint_timeout = '1min'"):
        await place.fetch(f"ALTER SYSTEM SET {setting}")
    await place.fetch("SELECT pg_reload_conf()")


async def _anew(influx: InfluxServer) -> None:
    """Start InfluxDB anew: what 1.6.7 was first sent of several series at once, it finds only then."""
    await to_thread.run_sync(influx.stop)
    await to_thread.run_sync(influx.start)


def _write_samples(directory: Path, run: Soak) -> None:
    rows = [asdict(sample) for sample in run.samples]
    with (directory / "soak.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [column.name for column in fields(Sample)])
        table.writeheader()
        table.writerows(rows)
    title = f"{run.books.entries:,} entries through one worker, {len(run.faults)} faults (grey)"
    seconds = [sample.at_s for sample in run.samples]
    text = svg(title, seconds, curves(run.samples), [at_s for at_s, _ in run.faults])
    (directory / "soak.svg").write_text(text, encoding="utf-8")


async def _write_summary(directory: Path, place: Place, run: Soak, wrong: list[str]) -> None:
    counts = await place.fetch("SELECT outcome, count(*) FROM outcomes GROUP BY outcome")
    summary = {
        "seed": run.plan.seed,
        "sent": run.books.entries,
        "replies_lost": run.books.unsure_ever,
        "seconds": round(run.samples[-1].at_s),
        "faults": dict(sorted(Counter(name for _, name in run.faults).items())),
        "outcomes": {row["outcome"]: row["count"] for row in counts},
        "quarters": quarters(run.samples, since_s=run.last_start_s),
        "wrong": wrong,
    }
    (directory / "soak.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(summary))


if __name__ == "__main__":
    sys.exit(main())
