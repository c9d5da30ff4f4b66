"""From `XADD` to commit: at steady rates, and for bursts. Each order counts from when it was due.

The commit's instant is when its confirmation is with the worker, which a stopwatch within it notes (see
`watched`). Beside it a bare loop that reads one entry, inserts one row and commits, with the same clock.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
from anyio import to_thread

from scripts.replay.synthetic import synthetic_orders
from tests.load.contest import SCHEMA, Knobs
from tests.load.drain import ROOT, Failed
from tests.load.figures import markdown, number, percentile, spread
from tests.load.ground import STREAM, Ground, ground
from tests.load.offering import Offered, offer, packed
from tests.load.plot import curves
from tests.load.sections import Section, machine

WARM_UP_S = 2.0  #: of each run that does not count
SETTLE_S_MAX = 20.0  #: to commit the rest once all is sent; whoever needs longer falls behind
STOP_S = 2.0  #: seconds after which a program is told once more to stop
SEED = 2
ORDERGATE, BARE = "Ordergate", "bare loop"
MODULES = {ORDERGATE: "tests.load.watched", BARE: "tests.load.contestants.bare"}
WATCHED = {ORDERGATE: ["record"], BARE: list[str]()}  #: nothing but the commits


@dataclass(frozen=True)
class Latency:
    """What one run at one rate gave, milliseconds; `fell_behind` where not all was committed in time."""

    name: str
    rate: int
    p50: float
    p99: float
    p999: float
    sender_p99: float
    fell_behind: bool


def options(parser: argparse.ArgumentParser) -> None:
    """What is offered."""
    parser.add_argument("--rates", type=int, nargs="+", default=[100, 1_000, 5_000])
    parser.add_argument("--seconds", type=float, default=60, help="for which each is offered")
    parser.add_argument("--bursts", type=int, default=20)
    parser.add_argument("--burst", type=int, default=2_000, help="orders in one instant")
    parser.add_argument("--in-flight", type=int, default=Knobs.in_flight)


async def measure(chosen: argparse.Namespace) -> list[Section]:
    """Offer each rate to both, in turn, then bursts to Ordergate."""
    variables = Knobs(in_flight=chosen.in_flight).variables
    async with ground() as place:
        found = [
            await _steady(place, name, rate, chosen.seconds, variables)
            for rate in chosen.rates
            for name in (ORDERGATE, BARE)
        ]
        bursts = await _bursts(place, chosen.bursts, chosen.burst, variables)
        return [_section(found, bursts, chosen, await machine(place))]


async def _steady(
    place: Ground, name: str, rate: int, seconds: float, variables: dict[str, str]
) -> Latency:
    count = round(rate * (seconds + WARM_UP_S))
    commands = packed(synthetic_orders(count, 0, SEED))
    async with _reading(place, name, variables) as times:
        start = monotonic() + 0.1
        dues = [start + number / rate for number in range(count)]
        offered = await to_thread.run_sync(offer, place.redis_url, commands, dues)
        done = await _committed(place, offered[-1].entry_id)
    counted = [it for it in offered if it.due >= start + WARM_UP_S]
    known = sorted((times[it.entry_id] - it.due) * 1e3 for it in counted if it.entry_id in times)
    if done and len(known) < len(counted):
        raise Failed(f"{name} at {rate}/s: {len(counted) - len(known)} orders not committed")
    late = sorted(it.late_s * 1e3 for it in counted)
    p50, p99, p999 = (percentile(known, share) for share in (0.5, 0.99, 0.999))
    print(f"{name} at {rate}/s: {p50:.2f} {p99:.2f} {p999:.2f} ms", file=sys.stderr)
    return Latency(name, rate, p50, p99, p999, percentile(late, 0.99), not done)


async def _bursts(place: Ground, count: int, size: int, variables: dict[str, str]) -> list[float]:
    """For each burst, milliseconds until the last of its orders was committed."""
    orders = synthetic_orders((count + 1) * size, 0, SEED)
    commands = packed(orders)
    bursts: list[list[Offered]] = []
    async with _reading(place, ORDERGATE, variables) as times:
        for first in range(0, len(commands), size):
            dues = [monotonic() + 0.5] * size
            part = commands[first : first + size]
            bursts.append(await to_thread.run_sync(offer, place.redis_url, part, dues))
            if not await _committed(place, bursts[-1][-1].entry_id):
                raise Failed("a burst was not committed")
    warm = bursts[1:]
    return [max((times[it.entry_id] - it.due) * 1e3 for it in burst) for burst in warm]


@asynccontextmanager
async def _reading(
    place: Ground, name: str, variables: dict[str, str]
) -> AsyncGenerator[dict[str, float]]:
    """A program that waits for entries; gives when each was committed, filled in once it has ended."""
    times: dict[str, float] = {}
    await place.clean()
    await (place.migrate() if name == ORDERGATE else place.execute(SCHEMA.read_text()))
    await place.publish([])
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "watched.json"
        command = [sys.executable, "-m", MODULES[name], str(path), *WATCHED[name]]
        process = await anyio.open_process(
            command, cwd=ROOT, env={**place.variables, **variables}, stdout=None, stderr=None,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            await _until_reading(place)
            yield times
        finally:
            # More than once: `asyncio.wait_for` of Python 3.11 may swallow a cancellation.
            while process.returncode is None:
                process.terminate()
                with anyio.move_on_after(STOP_S):
                    await process.wait()
        found: dict[str, Any] = json.loads(path.read_text())
        times.update({id_: at for at, ids in found["commits"] for id_ in ids})


async def _until_reading(place: Ground) -> None:
    with anyio.fail_after(30):
        while not (await place.command("INFO", "clients"))["blocked_clients"]:  # noqa: ASYNC110
            await anyio.sleep(0.02)


async def _committed(place: Ground, last: str) -> bool:
    """Wait until all is acknowledged; says whether it was in time."""
    with anyio.move_on_after(SETTLE_S_MAX):
        while True:
            [group] = await place.command("XINFO", "GROUPS", STREAM)
            found = dict(zip(group[::2], group[1::2], strict=True))
            if found["last-delivered-id"] == last and not found["pending"]:
                return True
            await anyio.sleep(0.02)
    return False


def _section(
    found: Sequence[Latency], bursts: list[float], chosen: argparse.Namespace, where: dict[str, str]
) -> Section:
    results = {
        "machine": where,
        "seconds": chosen.seconds,
        "steady, ms": [asdict(it) for it in found],
        "bursts, ms": bursts,
    }
    said = f"{chosen.seconds:g} seconds of each rate, in milliseconds from the instant an order was due. "
    said += f"{'; '.join(where.values())}.\n\n"
    burst = f"\nBursts of {chosen.burst:,} orders in one instant, {chosen.bursts} of them, until the last "
    burst += f"is committed: {spread(bursts)} ms.\n"
    return Section("latency", results, said + _table(found) + burst, {"latency": _plot(found)})


def _table(found: Sequence[Latency]) -> str:
    heads = ("offered", "", "p50", "p99", "p99.9", "sender late, p99")
    return markdown(heads, [_row(it) for it in found])


def _row(it: Latency) -> list[str]:
    if it.fell_behind:
        return [f"{it.rate:,}/s", it.name, "falls behind", "", "", number(it.sender_p99)]
    values = (it.p50, it.p99, it.p999, it.sender_p99)
    return [f"{it.rate:,}/s", it.name, *map(number, values)]


def _plot(found: Sequence[Latency]) -> str:
    lines: dict[str, list[tuple[float, float]]] = {}
    for it in found:
        if not it.fell_behind:
            for name, value in (("p50", it.p50), ("p99", it.p99), ("p99.9", it.p999)):
                lines.setdefault(f"{it.name}, {name}", []).append((it.rate, value))
    return curves("XADD to commit", "orders/s offered", "ms", lines, log_x=True, log_y=True)
