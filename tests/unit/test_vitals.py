"""What a worker notes of its own doing, and what its points tell of it."""

import pytest

from worker.own_points import Moment, own_line, since
from worker.settings import load
from worker.vitals import Histogram, Laps, StreamVitals, quantile

BOUNDS = (1, 2, 5, 10)


def histogram(*values: float) -> Histogram:
    found = Histogram(BOUNDS)
    for value in values:
        found.note(value)
    return found


def test_a_value_counts_in_the_first_bucket_whose_bound_it_does_not_exceed() -> None:
    found = histogram(0, 1, 1.001, 2, 10, 10.001, 1000)
    assert found.counts == [2, 2, 0, 1, 2]
    assert found.total == pytest.approx(1024.002)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ((), 0.5, None),
        ((1,), 1.0, 1.0),
        ((3, 3, 3, 3), 0.5, 3.5),  # in the middle of the bucket from 2 to 5
        ((1, 1, 1, 7), 0.75, 1.0),
        ((1, 1, 1, 7), 1.0, 10.0),
        ((50,), 0.5, 10.0),  # beyond the last bound nothing is known
    ],
)
def test_a_quantile_is_interpolated_within_its_bucket(
    values: tuple[float, ...], share: float, expected: float | None
) -> None:
    assert quantile(BOUNDS, histogram(*values).counts, share) == expected


def test_a_batch_is_noted_by_outcome_code_and_stage() -> None:
    its, laps = StreamVitals(), Laps()
    laps.lap("parse")
    laps.lap("record")
    its.settled(0, {"accepted": 3, "rejected": 2}, {"side_invalid": 2}, laps)
    its.settled(0, {"accepted": 1}, {}, Laps())
    assert its.outcomes["accepted"] == 4
    assert its.outcomes["duplicate"] == 0
    assert its.rejections == {"side_invalid": 2}
    assert [sum(its.stages[name].counts) for name in ("parse", "record", "emit")] == [1, 1, 0]
    assert its.batches.total == 6
    assert its.latency.counts[-1] == 2  # since 1970


def test_an_entry_of_the_future_has_no_negative_latency() -> None:
    its = StreamVitals()
    its.settled(2**62, {"accepted": 1}, {}, Laps())
    assert its.latency.total == 0


def test_a_point_tells_what_was_done_since_the_one_before() -> None:
    its = StreamVitals()
    its.settled(0, {"accepted": 3}, {}, Laps())
    then = Moment.of(its)
    its.settled(0, {"accepted": 2, "duplicate": 1}, {}, Laps())
    its.taken_over += 4
    values = since(then, Moment.of(its))
    counts = ("accepted", "duplicate", "rejected", "batches", "taken_over")
    assert [values[name] for name in counts] == [2, 1, 0, 1, 4]
    assert since(then, then)["latency_p50_s"] is None


def test_the_line_of_an_own_point_escapes_its_tags_and_leaves_out_what_is_not_known() -> None:
    settings = load({"WORKER_CONSUMER": "a b,c=d", "WORKER_GROUP": "g"})
    line = own_line(settings, "orders", {"accepted": 3, "lag_s": 0.5, "waiting": None}, 17)
    assert line == r"worker,consumer=a\ b\,c\=d,group=g,stream=orders accepted=3i,lag_s=0.500000 17"
