"""A run of faults: workers under load, each of their servers and they themselves treated badly, all at once.

Which faults come when follows from a seed; what they meet does not, for the processes are real. Each kind of
fault of a server comes before any of that server comes again.
"""

import os
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import anyio
from anyio import to_thread

from tests.chaos.crew import Crew
from tests.chaos.influx_faults import influx_faults
from tests.chaos.journal import Journal, Load
from tests.chaos.postgres_faults import POSTGRES_FAULTS
from tests.chaos.redis_faults import CLAIMS_FAULTS, REDIS_FAULTS
from tests.chaos.scene import Scene, scene
from tests.chaos.watcher import Watcher
from tests.record import Tally, check_entries, points_in_hand_told, points_paid, settled
from tests.servers import Servers
from tests.workers import Workers

WORKERS = (
    6  #: each lives for some seconds, of which starting takes one or, on a busy machine, three
)
RATE = 150.0  #: orders a second, about, while everything works
SETTLE_S_MAX = 120.0  #: seconds until all is settled once the faults are over
TAKEOVER_S = 3.1  #: of impatient workers
AWAY_S_MAX = 120.0  #: InfluxDB's longest outage, and in shorter runs a seventh of the run
BREATH_S = (0.3, 2.0)  #: between two faults of a server
KILLS_EVERY_S = (0.1, 0.7)  #: between two faults of workers

Step = Callable[[], Awaitable[None]]


def seed_of_run() -> int:
    """ORDERGATE_CHAOS_SEED, or one by chance."""
    return int(os.environ.get("ORDERGATE_CHAOS_SEED") or random.SystemRandom().randrange(10**9))


def chance_of(seed: int, what: str) -> Random:
    """Chance for one of the things that go on at once: each its own, or they would depend on their order."""
    return Random(f"{seed} {what}")  # noqa: S311 - to be repeated


@dataclass(frozen=True, slots=True)
class Length:
    """How long a run is: so many seconds, and on a busy machine up to half as long again for the kills."""

    seconds: float
    kills_min: int = 0

    def over(self, elapsed_s: float, kills: int) -> bool:
        """Whether it is over."""
        enough = kills >= self.kills_min or elapsed_s >= 1.5 * self.seconds
        return elapsed_s >= self.seconds and enough

    @property
    def away_s(self) -> float:
        """InfluxDB's longest outage."""
        return min(AWAY_S_MAX, self.seconds / 7)


@dataclass(slots=True)
class Report:
    """What a run was, for its reader."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter[str])
    skipped: list[str] = field(default_factory=list[str])
    figures: dict[str, object] = field(default_factory=dict[str, object])
    losses: Counter[str] = field(default_factory=Counter[str])

    def __str__(self) -> str:
        lines = [f"ORDERGATE_CHAOS_SEED={self.seed}: {self.faults.total()} faults"]
        lines += [f"  {count:5} {name}" for name, count in sorted(self.faults.items())]
        lines += [f"      - {name}" for name in self.skipped]
        lines += [f"  {name}: {value}" for name, value in self.figures.items()]
        lines += ["  servers taken to be away, and how often:"]
        lines += [f"  {count:5} {name}" for name, count in sorted(self.losses.items())]
        return "\n".join(lines)


async def ordeal_reported(
    servers: Servers,
    disk: Path | None,
    workers: Workers,
    told: Callable[[str], None],
    length: Length,
) -> Report:
    """Run and print what was done, where it fails, too."""
    report = Report(seed_of_run())
    try:
        await ordeal(servers, disk, workers, report, length)
    except BaseException as error:
        error.add_note(str(report))
        raise
    told(str(report))
    return report


async def ordeal(
    servers: Servers, disk: Path | None, workers: Workers, report: Report, length: Length
) -> None:
    """Run, let everything settle, and check all that must hold.

    :param report: filled in
    :raises AssertionError: something does not hold
    """
    seed = report.seed
    journal = Journal()
    load_of = partial(Load, journal=journal, chance=chance_of(seed, "load"), rate=RATE)
    async with scene(servers, disk, journal, load_of) as stage:
        crew = Crew(workers, chance_of(seed, "crew"), WORKERS, stage.place_of)
        watcher = Watcher(stage.place, journal, stage.load)
        await crew.fill()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watcher.run, name="watcher")
            async with _loaded(stage.load):
                await _faults(stage, crew, report, length)
            await settled(stage.place, within_s=SETTLE_S_MAX)
            await points_in_hand_told(stage.place, within_s=SETTLE_S_MAX)
            await points_paid(stage.place, within_s=SETTLE_S_MAX)
            crew.check()
            await crew.stop_all()
            tasks.cancel_scope.cancel()
        tally = await _check(stage)
        report.losses = crew.losses()
        report.figures = await _figures(stage, watcher, crew, tally)


@asynccontextmanager
async def _loaded(load: Load) -> AsyncGenerator[None]:
    """Publish while the block runs, and until all is in that was sent."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(load.run, name="load")
        yield
        load.end()


async def _faults(stage: Scene, crew: Crew, report: Report, length: Length) -> None:
    began_at = anyio.current_time()

    def over() -> bool:
        kills = report.faults["worker: SIGKILL"]
        return length.over(anyio.current_time() - began_at, kills)

    async def inflict(faults: Mapping[str, Step], breath_s: tuple[float, float], who: str) -> None:
        chance = chance_of(report.seed, who)
        for name in _deck(list(faults), chance):
            if over():
                return
            report.faults[f"{who}: {name}"] += 1
            await faults[name]()
            await anyio.sleep(chance.uniform(*breath_s))

    async with anyio.create_task_group() as tasks:
        for who, faults in _server_faults(stage, report, length).items():
            tasks.start_soon(inflict, faults, BREATH_S, who, name=who)
        tasks.start_soon(_trouble_workers, crew, report, over, name="workers")


def _deck(names: list[str], chance: Random) -> Iterator[str]:
    """Every name once, in any order, again and again."""
    while True:
        yield from chance.sample(names, len(names))


def _server_faults(stage: Scene, report: Report, length: Length) -> dict[str, dict[str, Step]]:
    """The faults of each server, by its name."""
    postgres = dict(POSTGRES_FAULTS)
    if stage.disk is None:
        del postgres["disk full"]
        report.skipped.append(
            "postgres: disk full: needs a small file system, which root may mount"
        )

    def of(
        who: str, faults: Mapping[str, Callable[..., Awaitable[None]]], *what: object
    ) -> dict[str, Step]:
        chance = chance_of(report.seed, f"{who} faults")
        return {name: partial(fault, *what, chance) for name, fault in faults.items()}

    return {
        "redis": of("redis", REDIS_FAULTS, stage, stage.redis),
        "claims": of("claims", CLAIMS_FAULTS, stage, stage.elsewhere),
        "postgres": of("postgres", postgres, stage),
        "influxdb": of("influxdb", influx_faults(length.away_s), stage.influx, stage.front),
    }


async def _trouble_workers(crew: Crew, report: Report, over: Callable[[], bool]) -> None:
    """SIGKILL most of the time; SIGSTOP and SIGTERM now and then, beside the next ones."""
    chance = chance_of(report.seed, "workers")
    async with anyio.create_task_group() as tasks:
        while not over():
            crew.check()
            kind = chance.random()
            if kind < 0.05:
                report.faults["worker: SIGSTOP for longer than the takeover time"] += 1
                tasks.start_soon(crew.halt, TAKEOVER_S + chance.uniform(0.5, 3))
            elif kind < 0.12:
                report.faults["worker: SIGTERM"] += 1
                tasks.start_soon(crew.stop)
            else:
                report.faults["worker: SIGKILL"] += 1
                await crew.kill()
            await anyio.sleep(chance.uniform(*KILLS_EVERY_S))


async def _check(stage: Scene) -> Tally:
    """The journal against what is on record, the points and the dead letters.

    InfluxDB starts anew for it: what 1.6.7 was first sent of several series at once, it has and does not
    find until then. See `InfluxServer`.
    """
    place, journal = stage.place, stage.journal
    await to_thread.run_sync(stage.influx.stop)
    await to_thread.run_sync(stage.influx.start)
    found = {row["entry_id"] for row in await place.fetch("SELECT entry_id FROM outcomes")}
    return await check_entries(
        place,
        journal.entries(found),
        letters_lost_to=journal.last_forgotten,
    )


async def _figures(stage: Scene, watcher: Watcher, crew: Crew, tally: Tally) -> dict[str, object]:
    points = len(await stage.place.points())
    return {
        "XADDs in the journal": len(stage.journal),
        "of them with a lost reply": stage.journal.unsure,
        "lost by Redis before they were read, and sent again": stage.journal.lost,
        "lost by Redis before they were seen acknowledged": len(stage.journal.forgotten),
        "on record": tally,
        "of them without a point": sum(tally) - points,
        "through batches": dict(crew.tally()),
        "warnings and errors": dict(crew.alarms()),
        "claims evicted": stage.evicted,
        "answers to writes of points": dict(stage.front.statuses),
        "workers killed at work": crew.killed_at_work,
        "looks of the watcher": watcher.looks,
    }
