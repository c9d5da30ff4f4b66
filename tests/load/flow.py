"""A worker at work on a backlog, and how far it is at each moment, seen from outside."""

import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import anyio

from streams.producer import Producer
from tests.load.drain import ROOT, Failed
from tests.load.ground import CHUNK, GROUP, STREAM, Ground

LOOK_S = 0.05  #: between two looks
START_S_MAX = 60.0
END_S_MAX = 30.0  #: for a worker to end after a signal


class Sample(NamedTuple):
    """So much was done by then, by the monotonic clock."""

    at: float
    done: int


@dataclass
class Flow:
    """What was done when, oldest first."""

    samples: list[Sample] = field(default_factory=list[Sample])

    def rate(self, first: float = 0.0, last: float = 1.0) -> float:
        """Done per second between two shares of all that was done at the end."""
        total = self.samples[-1].done
        begin = next(it for it in self.samples if it.done >= first * total)
        end = next(it for it in self.samples if it.done >= last * total)
        return (end.done - begin.done) / (end.at - begin.at)

    async def follow(
        self, progress: Callable[[], Awaitable[int]], total: int, within_s: float
    ) -> None:
        """Look until so much is done. :raises Failed: it was not in time"""
        try:
            with anyio.fail_after(within_s):
                while not self.samples or self.samples[-1].done < total:
                    self.samples.append(Sample(monotonic(), await progress()))
                    await anyio.sleep(LOOK_S)
        except TimeoutError:
            raise Failed(f"{self.samples[-1].done} of {total} done in {within_s} s") from None


Position = tuple[int, int]


async def publish(place: Ground, orders: Iterable[dict[str, str]]) -> list[Position]:
    """Put orders into the stream, and a group before the first of them; gives where each of them is."""
    producer, rest = Producer(place.redis, STREAM), iter(orders)
    ids: list[str] = []
    while chunk := list(islice(rest, CHUNK)):
        ids += await producer.publish(chunk)
    await place.command("XGROUP", "CREATE", STREAM, GROUP, "0", "MKSTREAM")
    return [_position(entry_id) for entry_id in ids]


async def reading(place: Ground) -> None:
    """Wait until the group has read something: how long a worker takes to start counts for nobody."""
    with anyio.fail_after(START_S_MAX):
        while (await _group(place))["last-delivered-id"] == "0-0":  # noqa: ASYNC110 - Redis sends no event
            await anyio.sleep(LOOK_S)


async def settled(place: Ground, positions: Sequence[Position]) -> int:
    """How many of the entries the group has read and acknowledged."""
    group = await _group(place)
    return bisect_right(positions, _position(group["last-delivered-id"])) - group["pending"]


async def _group(place: Ground) -> dict[str, Any]:
    [group] = await place.command("XINFO", "GROUPS", STREAM)
    return dict(zip(group[::2], group[1::2], strict=True))


def _position(entry_id: str) -> Position:
    ms, _, seq = entry_id.partition("-")
    return int(ms), int(seq)


@contextmanager
def worker(place: Ground, variables: dict[str, str]) -> Generator[subprocess.Popen[bytes]]:
    """Run a worker while the block runs. :raises Failed: it ended by itself"""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker"],
            env={**place.variables, **variables},
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )
        try:
            yield process
            ended = process.poll() is not None
        finally:
            process.terminate()
            process.wait(END_S_MAX)
        if ended:
            output.seek(0)
            raise Failed(f"ended early: {output.read()[-400:].decode(errors='replace')}")


def resident_mib(pid: int) -> float:
    """The memory that a process has resident now."""
    status = Path(f"/proc/{pid}/status").read_text()
    [size] = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(size) / 1024
