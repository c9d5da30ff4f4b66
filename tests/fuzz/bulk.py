"""Many entries made by chance and judged: `python -m tests.fuzz.bulk [COUNT [SEED]]`, on every core.

What fails is repeated by its seed and its number alone: each chunk begins anew.
"""

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from time import perf_counter
from typing import NamedTuple

from tests.fuzz import corpus
from tests.fuzz.judge import Judge, check_memory, size_of
from tests.fuzz.mutator import mutated

#: Entries that follow from one seed, and whose contents are compared with one another.
CHUNK = 10_000
TELL_EVERY_S = 30
MEMORY_EVERY = 100  #: of how many entries the memory of one is measured; of large ones always
LARGE_BYTES = 4_096


class Run(NamedTuple):
    """What was judged."""

    seed: int
    inputs: int
    verdicts: Counter[str]
    longest_s: float
    largest: int  #: bytes that one entry took at most
    duration_s: float

    def __str__(self) -> str:
        codes = len(self.verdicts) - ("order" in self.verdicts)
        return (
            f"{self.inputs:,} entries from seed {self.seed}: {self.verdicts['order']:,} orders, the others "
            f"rejected with {codes} codes; at most {self.longest_s * 1000:.1f} ms and {self.largest:,} bytes "
            f"for one; {self.duration_s:.0f} s"
        )


def judge_chunk(seed: int, number: int, count: int) -> tuple[Counter[str], float, int]:
    """Judge so many entries of one chunk. :raises AssertionError: with the entry in a note"""
    chance = random.Random(f"{seed}/{number}")  # noqa: S311 - to be repeated
    entries, judge, largest = corpus.load(), Judge(), 0
    for n in range(count):
        fields = mutated(chance, entries)
        try:
            judge.judge(fields)
            if n % MEMORY_EVERY == 0 or size_of(fields) > LARGE_BYTES:
                largest = max(largest, check_memory(fields))
        except BaseException as error:
            error.add_note(f"seed {seed}, chunk {number}, entry {n}: {json.dumps(fields)[:8_000]}")
            raise
    return judge.verdicts, judge.longest_s, largest


def run(
    count: int, seed: int | None = None, tell: Callable[[str], object] = lambda _line: None
) -> Run:
    """Judge so many entries, from a seed of its own if none is given.

    :param tell: called with a line about how far it is, now and then
    """
    seed = random.SystemRandom().randrange(10**9) if seed is None else seed
    begun = told = perf_counter()
    sizes = [min(CHUNK, count - first) for first in range(0, count, CHUNK)]
    so_far = Run(seed, 0, Counter(), 0, 0, 0)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        chunks = pool.map(partial(judge_chunk, seed), range(len(sizes)), sizes)
        for verdicts, longest_s, largest in chunks:
            now = perf_counter()
            so_far = Run(
                seed,
                so_far.inputs + verdicts.total(),
                so_far.verdicts + verdicts,
                max(so_far.longest_s, longest_s),
                max(so_far.largest, largest),
                now - begun,
            )
            if now - told > TELL_EVERY_S:
                told = now
                tell(str(so_far))
    return so_far


def main() -> None:
    """The command line."""
    judged = run(*map(int, sys.argv[1:3]), tell=partial(print, flush=True))
    print(judged)
    print(*(f"  {n:10,}  {code}" for code, n in judged.verdicts.most_common()), sep="\n")


if __name__ == "__main__":
    main()
