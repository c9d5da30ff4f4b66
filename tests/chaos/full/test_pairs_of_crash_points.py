"""Every ordered pair of faults in the life of a small batch, and a large sample of those in a busy stream.

About 24,000 runs of a tenth of a second of CPU each: `make chaos ARGS='-n 2'` gives each core its share.
"""

import os
import random
from collections import Counter

import pytest

from tests.chaos.faulty_io import Fault
from tests.chaos.pairs import random_pair, seconds_of
from tests.chaos.scenarios import FOR_PAIRS, SCENARIOS
from tests.chaos.sweep import NONE, Run, Stages, points_of, stages
from tests.servers import Servers

pytestmark = pytest.mark.anyio

SHARES = 4  #: of each kind's pairs, for pytest-xdist to hand out
SAMPLE = 1_000


async def make_all(on: Stages, runs: list[Run]) -> str:
    """Make runs; says how many, and in how many all faults were met."""
    met = Counter[bool]()

    async def make(run: Run) -> None:
        lives = await on.run(run)
        met[all(life.reached for life in lives)] += 1

    await on.each(runs, make)
    return f"{met.total()} pairs of faults, both met in {met[True]}"


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("fault", Fault)
async def test_any_two_calls_may_go_wrong(
    clean_servers: Servers, capsys: pytest.CaptureFixture[str], fault: Fault, share: int
) -> None:
    async with stages(clean_servers) as on:
        _, idle = await on.run(Run(FOR_PAIRS, [NONE]))
        runs: list[Run] = []
        for point in (await points_of(on, FOR_PAIRS))[share::SHARES]:
            first = Run(FOR_PAIRS, [{point: fault}])
            runs += seconds_of(first, await on.run(first), idle.calls)
        told = await make_all(on, runs)
    with capsys.disabled():
        print(f"\nfirst {fault.value}, share {share}: {told}")


async def test_any_two_calls_may_go_wrong_in_a_busy_stream(
    clean_servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sample. ORDERGATE_CHAOS_PAIRS says how many, ORDERGATE_CHAOS_SEED which."""
    seed = int(os.environ.get("ORDERGATE_CHAOS_SEED") or random.SystemRandom().randrange(10**9))
    count = int(os.environ.get("ORDERGATE_CHAOS_PAIRS") or SAMPLE)
    chance = random.Random(seed)  # noqa: S311 - to be repeated
    with capsys.disabled():
        print(f"\nORDERGATE_CHAOS_SEED={seed}")
    async with stages(clean_servers) as on:
        points = {it: await points_of(on, it) for it in SCENARIOS}
        told = await make_all(on, [random_pair(chance, points) for _ in range(count)])
    with capsys.disabled():
        print(told)
