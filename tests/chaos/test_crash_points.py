"""Each I/O call of a worker goes wrong in each way, one at a time; the outcomes stay right.

The sweep finds the calls by itself: they are those of a run in which nothing goes wrong, in each scenario. It
fails where a kind of call exists, by the sources, that no scenario makes, and where it could not get to one.
All pairs of calls are in `full/`; a sample of them is here.
"""

import os
import random
from collections import Counter
from collections.abc import Callable

import pytest

from tests.chaos.call_kinds import call_kinds
from tests.chaos.faulty_io import Fault
from tests.chaos.pairs import random_pair
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.sweep import Run, Stages, points_of, stages
from tests.isolation import Place
from tests.servers import Servers

pytestmark = pytest.mark.anyio

#: Kinds of call that no run makes in which nothing goes wrong, and why.
ONLY_AFTER_A_FAULT = {"postgres ROLLBACK": "a transaction ends so where a call in it went wrong"}
PAIRS = 40


async def test_the_scenarios_make_every_kind_of_call_there_is(
    clean_servers: Servers, place: Place, told: Callable[[str], None]
) -> None:
    commands = await place.command("COMMAND")
    words = frozenset(str(name).upper() for name in commands)
    there_are = call_kinds(words)
    async with stages(clean_servers, 1) as on:
        points = [point for scenario in SCENARIOS for point in await points_of(on, scenario)]
    made = {point.name for point in points}
    assert there_are - made <= ONLY_AFTER_A_FAULT.keys()
    assert {kind.removeprefix("claims ") for kind in made} <= call_kinds(words, apart=())
    told(f"{len(points)} I/O calls of {len(made)} kinds in {len(SCENARIOS)} scenarios")


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.long
async def test_each_call_may_go_wrong(
    clean_servers: Servers, told: Callable[[str], None], fault: Fault
) -> None:
    reached: Counter[str] = Counter()
    tried: set[str] = set()

    async with stages(clean_servers) as on:

        async def make(run: Run) -> None:
            first, *_ = await on.run(run)
            [point] = run.lives[0]
            tried.add(point.name)
            reached[point.name] += first.reached

        await on.each(await single_faults(on, fault), make)
    missed = {name for name in tried if not reached[name]} - ONLY_AFTER_A_FAULT.keys()
    assert not missed, f"no run got to {missed}"
    told(f"{fault.value}: at {reached.total()} calls of {len(reached)} kinds")


async def single_faults(on: Stages, fault: Fault) -> list[Run]:
    """A run for each call of each scenario, in which that one goes wrong."""
    return [
        Run(scenario, [{point: fault}])
        for scenario in SCENARIOS
        for point in await points_of(on, scenario)
    ]


@pytest.mark.long
async def test_two_calls_may_go_wrong_one_after_the_other(
    clean_servers: Servers, told: Callable[[str], None]
) -> None:
    """A sample of the ordered pairs. ORDERGATE_CHAOS_PAIRS says how many, ORDERGATE_CHAOS_SEED which."""
    seed = int(os.environ.get("ORDERGATE_CHAOS_SEED") or random.SystemRandom().randrange(10**9))
    chance = random.Random(seed)  # noqa: S311 - to be repeated
    reached = Counter[bool]()

    async with stages(clean_servers) as on:
        points = {it: await points_of(on, it) for it in SCENARIOS}

        async def make(run: Run) -> None:
            try:
                lives = await on.run(run)
            except BaseException as error:
                error.add_note(f"ORDERGATE_CHAOS_SEED={seed}")
                raise
            reached[all(life.reached for life in lives)] += 1

        def sampled() -> list[Run]:
            count = int(os.environ.get("ORDERGATE_CHAOS_PAIRS") or PAIRS)
            return [random_pair(chance, points) for _ in range(count)]

        await on.each(sampled(), make)
    told(f"seed {seed}: {reached.total()} pairs of faults, both met in {reached[True]}")
