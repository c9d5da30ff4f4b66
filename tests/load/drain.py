"""Let a program drain what is published, and see from outside how long it takes and what it costs.

The clock runs from the first entry that the group has delivered until it has read the stream to its end
and nothing is pending. So starting Python counts for nobody, and acknowledging counts for everybody.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import anyio

from tests.load.ground import GROUP, STREAM, Ground, Used, peak_mib, process_of

LOOK_S = 0.01  #: between two looks at the group
START_S_MAX = 120.0  #: the floor builds every byte before it reads
END_S_MAX = 30.0  #: for a program that ends by itself
ROOT = Path(__file__).resolve().parents[2]


class Failed(Exception):
    """A contestant ended early, stood still, or has a wrong record: it gets no figure."""


class Position(NamedTuple):
    """How far the group is."""

    last: str
    pending: int


@dataclass
class Drained:
    """What draining so many entries took."""

    entries: int
    seconds: float
    worker_s: float
    servers: Used
    peak_mib: float
    wal_bytes: int

    @property
    def figures(self) -> dict[str, float]:
        """By what a table says of them."""
        return {
            "orders/s": self.entries / self.seconds,
            "worker µs": self.worker_s / self.entries * 1e6,
            "Redis µs": self.servers.redis_s / self.entries * 1e6,
            "Postgres µs": self.servers.postgres_s / self.entries * 1e6,
            "WAL bytes": self.wal_bytes / self.entries,
            "peak MiB": self.peak_mib,
        }


async def drained(
    ground: Ground,
    commands: Sequence[Sequence[str]],
    entries: int,
    variables: dict[str, str] | None = None,
    *,
    still_s_max: float = 60,
) -> Drained:
    """Run the programs until the stream is read and settled.

    :param still_s_max: seconds without progress before they are given up
    :raises Failed: one ended before the end, or nothing moved for so long
    """
    last: str = (await ground.command("XREVRANGE", STREAM, "+", "-", "COUNT", 1))[0][0]
    environment = {**ground.variables, **(variables or {})}
    with tempfile.TemporaryFile() as output:
        watch = _Watch(ground, output, last, still_s_max)
        return await watch.run(commands, environment, entries)


class _Watch:
    def __init__(self, ground: Ground, output: IO[bytes], last: str, still_s_max: float) -> None:
        self._ground, self._output = ground, output
        self._last, self._still_s_max = last, still_s_max
        self._processes: list[subprocess.Popen[bytes]] = []
        self._peaks: dict[int, float] = {}

    async def run(
        self, commands: Sequence[Sequence[str]], environment: dict[str, str], entries: int
    ) -> Drained:
        self._processes = [
            self._started(command, {**environment, "WORKER_CONSUMER": f"worker-{number}"})
            for number, command in enumerate(commands)
        ]
        try:
            found = await self._measure(entries)
            for process, command in zip(self._processes, commands, strict=True):
                if "--drain" in command:
                    process.wait(END_S_MAX)
            return found
        finally:
            for process in self._processes:
                process.terminate()
                process.wait()

    def _started(
        self, command: Sequence[str], environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment,
            cwd=ROOT,
            stdout=self._output,
            stderr=self._output,
        )

    async def _measure(self, entries: int) -> Drained:
        await self._until(lambda position: position.last != "0-0", START_S_MAX)
        started, worker_s, used, wal = (
            time.perf_counter(), self._worker_s(), self._ground.used(), await self._wal(),
        )  # fmt: skip
        await self._until(lambda it: it.last == self._last and not it.pending, self._still_s_max)
        seconds = time.perf_counter() - started
        worker_s, now = self._worker_s() - worker_s, self._ground.used()
        return Drained(
            entries,
            seconds,
            worker_s,
            Used(now.redis_s - used.redis_s, now.postgres_s - used.postgres_s),
            max(self._peaks.values()),
            await self._wal() - wal,
        )

    async def _until(self, condition: Callable[[Position], bool], still_s_max: float) -> None:
        before, moved_at = await self._position(), time.monotonic()
        while not condition(position := await self._position()):
            if position != before:
                before, moved_at = position, time.monotonic()
            if time.monotonic() - moved_at > still_s_max:
                raise Failed(f"stands still at {position}: {self._said()}")
            if any(_failed(process.pid) for process in self._processes):
                raise Failed(f"ended early: {self._said()}")
            for process in self._processes:
                peak = peak_mib(process.pid)
                self._peaks[process.pid] = max(peak, self._peaks.get(process.pid, 0))
            await anyio.sleep(LOOK_S)

    async def _position(self) -> Position:
        [group] = await self._ground.command("XINFO", "GROUPS", STREAM)
        found = dict(zip(group[::2], group[1::2], strict=True))
        assert found["name"] == GROUP
        return Position(found["last-delivered-id"], found["pending"])

    def _worker_s(self) -> float:
        """CPU of the programs so far; one that has ended keeps its own until it is waited for."""
        found = [process_of(process.pid) for process in self._processes]
        return sum(process.own_s for process in found if process)

    async def _wal(self) -> int:
        [bytes_] = await self._ground.row("SELECT pg_current_wal_lsn() - '0/0'")
        return int(bytes_)

    def _said(self) -> str:
        self._output.seek(0)
        return self._output.read()[-400:].decode(errors="replace")


def _failed(pid: int) -> bool:
    """Whether a child has ended with an error. It is not waited for: its times would be gone."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return ended is not None and ended.si_status != 0
