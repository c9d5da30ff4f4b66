"""Whatever is sent, an order or a rejection comes of it, in bounded time and memory.

ORDERGATE_FUZZ_INPUTS says how many entries are made by chance, ORDERGATE_FUZZ_SEED which.
"""

import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz import corpus
from tests.fuzz.bulk import run
from tests.fuzz.judge import Judge, check_memory
from tests.fuzz.mutator import Fields
from tests.fuzz.strategies import entries
from worker.order import Malformed

INPUTS = int(os.environ.get("ORDERGATE_FUZZ_INPUTS") or 100_000)
SEED = os.environ.get("ORDERGATE_FUZZ_SEED")


def test_every_entry_of_the_corpus_is_judged_right() -> None:
    judge = Judge()
    for fields in corpus.load():
        judge.judge(fields)
        check_memory(fields)
    assert judge.verdicts["order"] > 50
    assert len(judge.verdicts) > 30  # codes


def test_the_corpus_is_small_and_in_its_one_form() -> None:
    found = corpus.load()
    assert 200 < len(found) < 1_000
    assert corpus.PATH.stat().st_size < 300_000
    assert all(len(fields) % 2 == 0 for fields in found)


@pytest.mark.long
def test_entries_made_by_chance_are_judged_right(told: Callable[[str], None]) -> None:
    judged = run(INPUTS, int(SEED) if SEED else None)
    told(f"{judged}")
    assert judged.inputs == INPUTS
    assert judged.verdicts["order"] > INPUTS / 5
    assert len(judged.verdicts) > 30


JUDGE = Judge()  #: one for all examples, so that equal contents meet


@settings(
    max_examples=2_000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(entries())
@pytest.mark.long
def test_entries_made_by_hypothesis_are_judged_right(fields: Fields) -> None:
    JUDGE.judge(fields)


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"a", b"a\xffb\xffc", b"payload\xff{}", bytes(range(256))]
)
def test_any_bytes_are_an_entry(data: bytes) -> None:
    fields = corpus.from_bytes(data)
    assert len(fields) % 2 == 0
    assert corpus.to_bytes(fields).rstrip(b"\xff") == data.rstrip(b"\xff")
    assert isinstance(Judge().judge(fields), Malformed)
