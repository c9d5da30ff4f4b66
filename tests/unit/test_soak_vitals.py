"""What the soak calls growth, on samples made up."""

from dataclasses import replace

import pytest

from tests.chaos.full.vitals import FLAT, Sample, growing

LEVEL = Sample(
    at_s=0, pid=1, sent=0, entries_per_s=1_000, worker_rss_mib=90, worker_fds=28,
    postgres_connections=3, redis_mib=20, redis_clients=8, stream_entries=10_000, claims=60_000,
    points_owed=0, orders_mib=1, duplicates_mib=1, rejections_mib=1, point_backlog_mib=1,
)  # fmt: skip
SECONDS = range(1, 101)


def test_level_figures_do_not_grow() -> None:
    assert growing([replace(LEVEL, at_s=s) for s in SECONDS], since_s=0) == []


def test_tables_of_outcomes_may_grow() -> None:
    samples = [replace(LEVEL, at_s=s, orders_mib=s, duplicates_mib=s) for s in SECONDS]
    assert growing(samples, since_s=0) == []


@pytest.mark.parametrize("name", FLAT)
def test_a_figure_that_grows_is_named(name: str) -> None:
    margin = FLAT[name][1]
    level = getattr(LEVEL, name) + margin
    samples = [replace(LEVEL, at_s=s, **{name: level * (1 + s / 10)}) for s in SECONDS]
    [found] = growing(samples, since_s=0)
    assert found.startswith(f"{name} grew")


def test_what_an_earlier_worker_held_does_not_count() -> None:
    leaking = [replace(LEVEL, at_s=s, worker_rss_mib=1_000 + 50 * s) for s in SECONDS]
    level = [replace(LEVEL, at_s=100 + s) for s in SECONDS]
    assert growing(leaking + level, since_s=100) == []


def test_too_few_samples_say_nothing() -> None:
    assert growing([replace(LEVEL, at_s=s) for s in range(1, 10)], since_s=0) != []
