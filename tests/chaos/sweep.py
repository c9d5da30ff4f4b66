"""Runs of a worker in which chosen I/O calls go wrong, and what must hold after each.

One life of the worker for each set of faults, then one in which nothing goes wrong; then everything is
checked against the producers' journal.
"""

from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, NamedTuple, TypeVar
from unittest.mock import patch

import anyio
import asyncpg

from tests.chaos.faulty_io import Died, Fault, FaultyIO, Point, wrapped_libraries
from tests.chaos.scenarios import Scenario, Stage, stage
from tests.isolation import Place
from tests.record import Entries, check, leave_points_in_hand, settled
from tests.servers import Servers
from worker import dependency, intake
from worker.service import serve

RUN_S_MAX = 30.0
STAGES = 3  #: runs at once: while one waits for a server, another goes on
PAUSE_S_MIN = 0.001  #: between two attempts; what a run waits for shows nothing
BLOCK_MS = 10  #: the same for a read at the end of the stream

Faults = Mapping[Point, Fault]
NONE: Faults = {}
T = TypeVar("T")
IO = TypeVar("IO", bound=FaultyIO)


class Run(NamedTuple):
    """One run: its scenario, the faults of each life but the last, and other settings of the workers."""

    scenario: Scenario
    lives: Sequence[Faults] = ()
    variables: Mapping[str, str] = {}


class Stages:
    """Stages for runs, several at once. :ivar all: taken ones included"""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.all = list(stages)
        self._stages = list(stages)

    @asynccontextmanager
    async def taken(self) -> AsyncGenerator[Stage]:
        """One of them, while the block runs."""
        stage = self._stages.pop()
        try:
            yield stage
        finally:
            self._stages.append(stage)

    async def run(self, run: Run) -> list[FaultyIO]:
        """Make one run, and check what came of it; gives what was seen of each life."""
        async with self.taken() as stage:
            return await self.run_on(stage, run)

    async def run_on(self, stage: Stage, run: Run) -> list[FaultyIO]:
        """The same, on a stage that was taken."""
        try:
            place, sent = await stage.set(run.scenario)
            place = place.having(**run.variables)
            lives = [await _next_life(place, faults) for faults in (*run.lives, NONE)]
            await _pay_points(place)
            await judge(place, run.scenario, sent)
        except BaseException as error:
            error.add_note(f"{run.scenario.name}: {[dict(faults) for faults in run.lives]}")
            raise
        return lives

    async def each(self, runs: Iterable[T], make: Callable[[T], Awaitable[None]]) -> None:
        """Do `make` for each, as many at once as there are stages."""
        todo = iter(runs)

        async def worker() -> None:
            for run in todo:
                await make(run)

        async with anyio.create_task_group() as tasks:
            for _ in self._stages:
                tasks.start_soon(worker)


async def points_of(
    on: Stages, scenario: Scenario, variables: Mapping[str, str] | None = None
) -> list[Point]:
    """The calls of a run in which nothing goes wrong."""
    [life] = await on.run(Run(scenario, (), variables or {}))
    return life.calls


@asynccontextmanager
async def stages(servers: Servers, count: int = STAGES) -> AsyncGenerator[Stages]:
    """Stages on the session's servers; workers on them wait as briefly as may be."""
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(stage(servers)) for _ in range(count)]
        stack.enter_context(wrapped_libraries())
        stack.enter_context(_types_looked_up_once())
        stack.enter_context(patch.object(dependency, "PAUSE_S_MIN", PAUSE_S_MIN))
        stack.enter_context(patch.object(intake, "BLOCK_MS_DRAINING", BLOCK_MS))
        yield Stages(found)


@contextmanager
def _types_looked_up_once() -> Generator[None]:
    """Spare each new connection its look at what `record_outcomes` takes: most of what it costs Postgres."""
    known: dict[frozenset[int], Any] = {}
    look_up: Any = vars(asyncpg.Connection)["_introspect_types"]

    async def introspect(connection: object, type_oids: Iterable[int], timeout: float) -> object:
        key = frozenset(type_oids)
        if key not in known:
            known[key] = await look_up(connection, type_oids, timeout)
        return known[key]

    with patch.object(asyncpg.Connection, "_introspect_types", introspect):
        yield


async def live(place: Place, faults: Faults) -> FaultyIO:
    """One life of a worker: until the stream is drained, or it dies."""
    return await lived(place, FaultyIO(place.settings, faults))


async def _next_life(place: Place, faults: Faults) -> FaultyIO:
    """The same, long after the one before."""
    await leave_points_in_hand(place)
    return await live(place, faults)


async def lived(place: Place, io: IO) -> IO:
    """The same, seen by that one."""
    with anyio.fail_after(RUN_S_MAX):
        with io.watching():
            await _until_it_ends_or_dies(place)
        await io.overdue()
    return io


async def _until_it_ends_or_dies(place: Place) -> None:
    try:
        await serve(place.settings, drain=True)
    except BaseExceptionGroup as group:
        if group.split(Died)[1] is not None:
            raise
    except Died:
        pass


async def _pay_points(place: Place) -> None:
    """Let further workers pay what is owed still.

    A worker that was cut off may hold its debts for a moment, on a connection whose end Postgres has yet
    to notice; one that drains its stream meanwhile leaves them to the next.
    """
    with anyio.fail_after(RUN_S_MAX):
        while await place.fetch(OWED):
            await _next_life(place, NONE)
    assert not await place.fetch(IN_HAND), "nobody writes these points, and nobody owes them"


OWED = "SELECT FROM point_backlog WHERE refusal IS NULL LIMIT 1"
IN_HAND = "SELECT stream, entry_ids FROM points_in_hand"


async def judge(place: Place, scenario: Scenario, sent: Entries) -> None:
    """Assert that everything is as it should be."""
    await settled(place, within_s=RUN_S_MAX)
    tally = await check(
        place,
        claims=not scenario.claims_apart,
        refused_points=scenario.refused_points,
        sent=sent,
    )
    assert scenario.expected in (None, tally)
