"""Worker processes that are killed, halted and told to stop, and replaced each time."""

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import anyio

from tests.isolation import Place
from tests.workers import WorkerProcess, Workers

AT_WORK = 0.9  #: how often one at work is chosen
READY_S_MAX = 1.0  #: seconds to wait for one that is
#: Seconds from SIGTERM to the end, whatever is away: the worker's own bounds, and as much for a busy machine.
STOP_S_MAX = 60.0


@dataclass(slots=True, eq=False)
class Member:
    """One process; `busy` while something is being done to it."""

    name: str
    process: WorkerProcess
    busy: bool = False


class Crew:
    """A number of workers, always.

    :param place_of: where the worker of that number works
    """

    def __init__(
        self, workers: Workers, chance: Random, size: int, place_of: Callable[[int], Place]
    ) -> None:
        self._workers, self._chance, self._size, self._place_of = workers, chance, size, place_of
        self._members: list[Member] = []
        self._all: list[WorkerProcess] = []
        self.killed_at_work = 0  #: rather than while it started

    async def fill(self) -> None:
        """Start as many as are missing, each under a name of its own."""
        while len(self._members) < self._size:
            await self._start(f"worker-{len(self._all)}")

    async def kill(self) -> None:
        """SIGKILL one. Its successor has its name as often as not, and finds its entries at once then."""
        with anyio.move_on_after(READY_S_MAX):
            while not self._at_work():  # noqa: ASYNC110 - their logs send no events
                await anyio.sleep(0.05)
        member = self._pick()
        self.killed_at_work += member in self._at_work()
        member.process.signal(signal.SIGKILL)
        await member.process.ended()
        self._members.remove(member)
        await self._start(
            member.name if self._chance.random() < 0.5 else f"worker-{len(self._all)}"
        )

    async def halt(self, for_s: float) -> None:
        """SIGSTOP one for so long, then let it go on where it was: what it held is others' by then."""
        member = self._pick()
        member.busy = True
        member.process.signal(signal.SIGSTOP)
        await anyio.sleep(for_s)
        member.process.signal(signal.SIGCONT)
        member.busy = False

    async def stop(self) -> None:
        """SIGTERM one. :raises AssertionError: it does not end well, or not in time"""
        member = self._pick()
        self._members.remove(member)
        member.process.signal(signal.SIGTERM)
        await self._start(f"worker-{len(self._all)}")
        await self._ended_well(member)

    async def stop_all(self) -> None:
        """SIGTERM every one. :raises AssertionError: as `stop`"""
        members, self._members = self._members, []
        for member in members:
            member.process.signal(signal.SIGTERM)
        for member in members:
            await self._ended_well(member)

    def check(self) -> None:
        """:raises AssertionError: one has ended by itself"""
        for member in self._members:
            assert member.process.running, (
                f"a worker ended by itself:\n{member.process.log_tail(30)}"
            )

    def logged(self) -> Iterator[dict[str, Any]]:
        """Every event that any of them has logged."""
        for process in self._all:
            for line in process.log.splitlines():
                if line.startswith("{") and line.endswith(
                    "}"
                ):  # a killed one may leave half a line
                    yield json.loads(line)

    def tally(self) -> Counter[str]:
        """How many entries went through batches, by what became of them, and were taken over."""
        counts: Counter[str] = Counter()
        for event in self.logged():
            if event["event"] == "batch.settled":
                kinds = ("accepted", "duplicate", "rejected", "redelivered", "kept")
                counts.update({kind: event.get(kind, 0) for kind in kinds})
            elif event["event"] == "entries.taken_over":
                counts["taken over"] += event["entries"]
        return counts

    def alarms(self) -> Counter[str]:
        """What workers logged as a warning or an error, and how often."""
        return Counter(e["event"] for e in self.logged() if e["level"] in ("warning", "error"))

    def losses(self) -> Counter[str]:
        """Why workers took a server to be away: how often, by server and the start of the error."""
        lost = (event for event in self.logged() if event["event"] == "dependency.lost")
        return Counter(f"{event['dependency']}: {event['error'].split()[0]}" for event in lost)

    def _pick(self) -> Member:
        """One by chance: most of the time one at work, if there is any, else one that may be starting."""
        free = [member for member in self._members if not member.busy]
        at_work = [member for member in self._at_work() if self._chance.random() < AT_WORK]
        return self._chance.choice(at_work or free)

    def _at_work(self) -> list[Member]:
        return [m for m in self._members if not m.busy and "worker.ready" in m.process.log]

    async def _start(self, name: str) -> None:
        place = self._place_of(len(self._all))
        variables = {**place.variables, "WORKER_CONSUMER": name}
        process = await self._workers.run(variables)
        self._all.append(process)
        self._members.append(Member(name, process))

    async def _ended_well(self, member: Member) -> None:
        code = await member.process.ended(within_s=STOP_S_MAX)
        imports = not member.process.log  # Python itself ends there: nothing is held yet
        assert code == 0 or (imports and code == -signal.SIGTERM), (
            f"exit code {code} after SIGTERM:\n{member.process.log_tail(30)}"
        )
