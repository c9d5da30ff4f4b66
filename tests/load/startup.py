"""How long `--help`, starting until ready, and stopping an idle worker take."""

import argparse
import subprocess
import sys
from time import perf_counter

import anyio
from anyio import to_thread

from tests.load.drain import ROOT, Failed
from tests.load.figures import Rounds, add, markdown, spread
from tests.load.ground import Ground, ground
from tests.load.sections import Section, machine

WORKER = (sys.executable, "-m", "worker")
HELP, READY, END = "`python -m worker --help`", "started to ready", "SIGTERM to exit, idle"
READY_EVENT = "worker.ready"


def options(parser: argparse.ArgumentParser) -> None:
    """How often."""
    parser.add_argument("--rounds", type=int, default=10)


async def measure(chosen: argparse.Namespace) -> list[Section]:
    """Start and stop a worker some times."""
    found: Rounds = {}
    async with ground() as place:
        await place.clean()
        await place.migrate()
        await place.publish([])
        for _ in range(chosen.rounds + 1):  # the first one fills the disk's cache
            add(found, await _round(place))
        where = await machine(place)
    counted = {name: values[1:] for name, values in found.items()}
    rows = [[name, str(spread(values))] for name, values in counted.items()]
    said = f"{chosen.rounds} rounds, milliseconds. {'; '.join(where.values())}.\n\n"
    results = {"machine": where, "ms": counted}
    return [Section("start", results, said + markdown(("", "ms, median (range)"), rows))]


async def _round(place: Ground) -> dict[str, float]:
    started = perf_counter()
    await anyio.run_process([*WORKER, "--help"], env=place.variables, cwd=ROOT)
    helped = perf_counter() - started
    ready, ended = await to_thread.run_sync(_start_and_stop, place.variables)
    return {HELP: helped * 1e3, READY: ready * 1e3, END: ended * 1e3}


def _start_and_stop(variables: dict[str, str]) -> tuple[float, float]:
    """Seconds until ready, and seconds from SIGTERM to exit."""
    started = perf_counter()
    environment = {**variables, "WORKER_LOG_LEVEL": "info"}
    with subprocess.Popen(WORKER, env=environment, cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.stderr
        while READY_EVENT not in (line := process.stderr.readline().decode()):
            if not line:
                raise Failed("the worker ended before it was ready")
        ready = perf_counter()
        process.terminate()
        process.stderr.read()
        code = process.wait()
    if code != 0:
        raise Failed(f"the worker ended with {code}")
    return ready - started, perf_counter() - ready
