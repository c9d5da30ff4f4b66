"""The table of decisions."""

import pytest

from streams.entry import Entry
from tests.unit import flat, valid
from worker.decide import Claim, Decision, Insert, Reject, Repeat, decide
from worker.order import Malformed, Order, parse

WINDOW_MS = 86_400_000
NOW = 1767225600000
ORDER = valid(flat())
OWN, OTHER = f"{NOW}-3", f"{NOW}-2"
MALFORMED = parse(flat(quantity="0"))


@pytest.mark.parametrize(
    ("claim", "decision"),
    [
        pytest.param(Claim(OWN, False), Insert, id="won"),
        pytest.param(Claim(OTHER, False), Insert, id="held by another, whose worker may be dead"),
        pytest.param(None, Insert, id="redis did not answer"),
        pytest.param(Claim(f"{NOW}-2", True), Repeat, id="stored in the same millisecond"),
        pytest.param(Claim(f"{NOW}-4", True), Repeat, id="stored, and later in the stream"),
        pytest.param(Claim(f"{NOW - 1}-3", True), Repeat, id="stored a moment ago"),
        pytest.param(Claim(f"{NOW - WINDOW_MS}-0", True), Repeat, id="stored at the window's edge"),
        pytest.param(
            Claim(f"{NOW - WINDOW_MS - 1}-9", True), Insert, id="stored before the window"
        ),
        pytest.param(Claim(f"{NOW + WINDOW_MS}-9", True), Repeat, id="stored at the later edge"),
        pytest.param(Claim(f"{NOW + WINDOW_MS + 1}-0", True), Insert, id="stored after the window"),
        pytest.param(Claim(f"{NOW}-3", True), Insert, id="stored under its own id: redelivered"),
        pytest.param(Claim("0-1", True), Insert, id="stored at the beginning of time"),
        pytest.param(Claim(f"{2**64 - 1}-0", True), Insert, id="stored at its end"),
    ],
)
def test_an_order_is_inserted_unless_its_original_lies_within_the_window(
    claim: Claim | None, decision: type[Decision]
) -> None:
    entry = Entry("orders", f"{NOW}-3", flat())
    decided = decide(entry, ORDER, claim, WINDOW_MS)
    assert type(decided) is decision
    assert decided.entry is entry
    assert getattr(decided, "order", None) is ORDER


@pytest.mark.parametrize(
    "claim", [None, *(Claim(name, stored) for name in (OWN, OTHER) for stored in (False, True))]
)
def test_what_is_no_order_is_rejected_whatever_redis_says(claim: Claim | None) -> None:
    assert isinstance(MALFORMED, Malformed)
    entry = Entry("orders", f"{NOW}-3", flat(quantity="0"))
    assert decide(entry, MALFORMED, claim, WINDOW_MS) == Reject(entry, MALFORMED)


@pytest.mark.parametrize(("distance_ms", "decision"), [(0, Repeat), (1, Repeat), (2, Insert)])
def test_the_window_may_be_a_millisecond(distance_ms: int, decision: type[Decision]) -> None:
    entry = Entry("orders", f"{NOW + distance_ms}-1", flat())
    assert type(decide(entry, ORDER, Claim(f"{NOW}-0", True), 1)) is decision


def test_the_decision_does_not_depend_on_the_order_but_on_its_claim() -> None:
    other = valid(flat(order_id="B", account=None, price="1"))
    entry = Entry("orders", f"{NOW}-3", [])
    for order in (ORDER, other):
        assert isinstance(order, Order)
        assert isinstance(decide(entry, order, Claim(f"{NOW}-0", True), WINDOW_MS), Repeat)
