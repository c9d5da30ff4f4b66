"""Ten million entries made by chance, each an order or a rejection, in bounded time and memory.

ORDERGATE_FUZZ_INPUTS sets how many, ORDERGATE_FUZZ_SEED which. One takes about 300 µs of a processor, and all
processors are used: half an hour on two.
"""

import os
from collections.abc import Callable

from tests.fuzz.bulk import run

INPUTS = int(os.environ.get("ORDERGATE_FUZZ_INPUTS") or 10_000_000)
SEED = os.environ.get("ORDERGATE_FUZZ_SEED")


def test_ten_million_entries_made_by_chance_are_judged_right(
    told: Callable[[str], None],
) -> None:
    judged = run(INPUTS, int(SEED) if SEED else None)
    told(str(judged))
    assert judged.inputs == INPUTS
    assert judged.verdicts["order"] > INPUTS / 5
