"""Workers for tests: `python -m worker` as processes, and the same service within this process.

Most processes are forks of one that has loaded the worker already: see `forks`.
"""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

import anyio
import structlog
from anyio.abc import Process
from structlog.typing import EventDict

from tests.forks import ROOT, Fork, Program, fork
from tests.isolation import Place
from tests.servers import Log
from worker.service import serve

END_S_MAX = 60.0  #: seconds; a worker that takes longer hangs
MEASURED = "COVERAGE_PROCESS_CONFIG"  #: is set where coverage is measured
TELL_S_MAX = 5.0  #: seconds for a worker to tell which lines it has executed
PASSED_ON = ("PATH", "HOME", "TMPDIR", MEASURED)  #: of the environment, to a worker


class WorkerProcess:
    """One `python -m worker`, its log and its output in files."""

    def __init__(self, process: Process | Fork, path: Path) -> None:
        self._process, self._path = process, path

    @property
    def log(self) -> str:
        """What it has written to stderr so far."""
        return self._path.with_suffix(".log").read_text(errors="replace")

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._path.with_suffix(".out").read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    def log_tail(self, lines: int) -> str:
        """The last lines of both."""
        return "\n".join((self.output + self.log).splitlines()[-lines:])

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def ended(self, within_s: float = END_S_MAX) -> int:
        """Wait until it ends; gives its exit code. :raises TimeoutError: it did not in time"""
        with anyio.fail_after(within_s):
            return await self._process.wait()

    async def logged(self, event: str, within_s: float = END_S_MAX) -> None:
        """Wait until its log holds a text. :raises TimeoutError: it did not in time"""
        with anyio.fail_after(within_s):
            while event not in self.log:
                assert self.running, f"the worker ended without {event}:\n{self.log_tail(20)}"
                await anyio.sleep(0.01)


class Workers:
    """Starts worker processes, and kills at its end what still runs.

    :param fresh: let each load all it needs by itself, for tests of that; so is it where coverage is measured
    """

    def __init__(self, directory: Path, *, fresh: bool = False) -> None:
        self._directory = directory
        self._begin = _begun if fresh or MEASURED in os.environ else fork
        self._processes: list[tuple[Process | Fork, WorkerProcess]] = []

    @property
    def logs(self) -> list[Log]:
        """The log of each."""
        return [Log(f"worker {n}", it.log_tail) for n, (_, it) in enumerate(self._processes)]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for process, worker in self._processes:
            if worker.running and MEASURED in os.environ:  # one that is killed tells of no line
                process.send_signal(signal.SIGCONT)
                process.terminate()
                with anyio.move_on_after(TELL_S_MAX):
                    await process.wait()
            if worker.running:
                process.kill()
            await process.wait()

    async def start(self, place: Place, *arguments: str, **variables: str) -> WorkerProcess:
        """Start `python -m worker` with these arguments, led to a place by its variables alone.

        :param variables: more of them, over the place's
        """
        number = len(self._processes)
        consumer = {"WORKER_CONSUMER": f"worker-{number}"}
        return await self.run({**consumer, **place.variables, **variables}, *arguments)

    async def run(
        self, variables: dict[str, str], *arguments: str, module: str = "worker"
    ) -> WorkerProcess:
        """Start `python -m worker` with these arguments and variables.

        :param module: another one to run, which makes a worker of another kind
        """
        path = self._directory / f"worker-{len(self._processes)}"
        system = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        program = Program(module, arguments, {**system, **variables})
        with path.with_suffix(".log").open("wb") as log, path.with_suffix(".out").open("wb") as out:
            process = await self._begin(program, out, log)
        worker = WorkerProcess(process, path)
        self._processes.append((process, worker))
        return worker


async def _begun(program: Program, output: IO[bytes], errors: IO[bytes]) -> Process:
    """The same as `fork`, from the beginning."""
    return await anyio.open_process(
        [sys.executable, "-m", program.module, *program.arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        cwd=ROOT,
        env=program.variables,
        start_new_session=True,
    )


def impatient(place: Place) -> Place:
    """The same for workers that wait briefly, and take over after 3.1 s, about the least this allows.

    Shorter bounds than these are exceeded by a busy machine alone.
    """
    return place.having(
        WORKER_REDIS_TIMEOUT="500ms",
        WORKER_POSTGRES_TIMEOUT="1s",
        WORKER_POINTS_TIMEOUT="500ms",
        WORKER_TAKEOVER_AFTER="3100ms",
    )


async def drain(place: Place, *, workers: int = 1, within_s: float = END_S_MAX) -> None:
    """Run so many workers in this process until the stream is drained.

    The first is of the name that the place gives, if any.

    :raises TimeoutError: it was not in time
    """
    names = [f"drain-{n}" for n in range(workers)]
    names[0] = place.variables.get("WORKER_CONSUMER", names[0])
    with anyio.fail_after(within_s):
        async with anyio.create_task_group() as tasks:
            for name in names:
                settings = place.having(WORKER_CONSUMER=name).settings
                tasks.start_soon(partial(serve, settings, drain=True))


class Events:
    """What workers in this process have logged."""

    def __init__(self) -> None:
        self._events: list[Mapping[str, Any]] = []

    def note(self, _logger: object, _name: str, event: EventDict) -> EventDict:
        """Keep an event and pass it on."""
        self._events.append(dict(event))
        return event

    def of(self, event: str, **values: object) -> list[Mapping[str, Any]]:
        """The events of that name with these values, so far."""
        return [it for it in self._events if it.items() >= {"event": event, **values}.items()]

    async def wait_for(self, event: str, within_s: float = 30, **values: object) -> None:
        """Wait for an event, an earlier one included. :raises TimeoutError: none in time"""
        with anyio.fail_after(within_s):
            while not self.of(event, **values):  # noqa: ASYNC110 - one event among many
                await anyio.sleep(0.01)


@asynccontextmanager
async def working(place: Place) -> AsyncGenerator[Events]:
    """Run a worker in this process while the block runs, then cancel it, whatever it holds."""
    with _events_kept() as events:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, place.settings)
            yield events
            tasks.cancel_scope.cancel()


@contextmanager
def _events_kept() -> Generator[Events]:
    events = Events()
    processors = structlog.get_config()["processors"]
    structlog.configure(processors=[events.note, *processors])
    try:
        yield events
    finally:
        structlog.configure(processors=processors)
