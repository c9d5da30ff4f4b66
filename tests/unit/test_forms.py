"""Forms: the quick way gives what `order.parse` gives, for each entry, and takes common orders."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit import GTD, LIMIT, PRICES, flat, payload, priced
from tests.unit.test_content_hash_docs import ORDERS, REJECTED, envelope_of, fields_of, name_of
from tests.unit.test_rejections import REJECTIONS, Case
from worker import forms
from worker.fields import FIELDS_MAX
from worker.forms import CANDIDATES_MAX, FORMS_MAX, SEEN_MIN, Parser
from worker.order import ENVELOPE_FIELDS, Order, parse

EXTRA = {"client_order_id": "c-1", "strategy": "mean reversion 100%", "leg.2-b": "", "ts": "17"}


def learned(fields: list[str], envelope: frozenset[str] = ENVELOPE_FIELDS) -> Parser:
    """A parser that knows the entry's form, if it can be one."""
    parser = Parser(envelope)
    for _ in range(SEEN_MIN):
        parser.parse(fields)
    return parser


def assert_same(fields: list[str], envelope: frozenset[str] = ENVELOPE_FIELDS) -> None:
    assert learned(fields, envelope).parse(fields) == parse(fields, envelope)


COMMON = [
    *(flat(priced(kind)) for kind in PRICES),
    flat(LIMIT, account=None),
    flat(LIMIT, side="SELL", type="Limit", time_in_force="IOC"),
    flat(LIMIT, **EXTRA),
    flat(dict(reversed(LIMIT.items()))),
]


@pytest.mark.parametrize("fields", COMMON)
def test_a_common_order_takes_the_quick_way_and_comes_out_the_same(
    fields: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parser, expected = learned(fields), parse(fields)
    monkeypatch.delattr(forms, "parse")
    assert parser.parse(fields) == expected
    assert isinstance(expected, Order)


@pytest.mark.parametrize("vector", ORDERS + REJECTED, ids=name_of)
def test_a_vector_comes_out_the_same(vector: dict[str, object]) -> None:
    assert_same(fields_of(vector), envelope_of(vector))


@pytest.mark.parametrize("case", REJECTIONS)
def test_what_is_rejected_is_rejected_for_the_same_reason(case: Case) -> None:
    parser = learned(flat(LIMIT))
    for _ in range(SEEN_MIN):
        parser.parse(case.fields)
    assert parser.parse(case.fields) == parse(case.fields)


#: Values at the edges of the rules, for any field.
EDGES = (
    "",
    " ",
    "0",
    "-0",
    "0.0",
    "1",
    "1.0",
    "01",
    "1.",
    ".5",
    "+1",
    "-2.50",
    "1e3",
    "1E-18",
    "100",
    "1.2300",
    "9999999999",
    "10000000000",
    "1234567890.123456789012345678",
    "12345678901.123456789012345678",
    "0.000000000000000001",
    "0.0000000000000000001",
    "1000000000000000000",
    "1000000000000000001",
    "NaN",
    "\u0661",
    "buy",
    "BUY",
    "Sell_Short",
    "sell_short\n",
    "limit",
    "MARKET",
    "trailing_stop",
    "gtc",
    "Day",
    "gtd",
    "\u212a",
    "BTC/USD",
    "BTC USD",
    "a" * 32,
    "a" * 33,
    "a" * 64,
    "a" * 65,
    "a" * 128,
    "a" * 129,
    'say "so"',
    "back\\slash",
    "é",
    "e\u0301",
    "tab\t",
    "line\nfeed",
    "side\nbuy",
    "\x7f",
    "\udc80",
    "%s",
    "%(name)s",
    "{}",
    "a" * 65_000,
)
NAMES = (
    *sorted(GTD),
    "stop_price",
    "ts",
    "note",
    "Zeta",
    "a-b",
    "a.b",
    "a b",
    "a%s",
    'a"',
    "é",
    "",
    "payload",
)
VALUES = st.one_of(
    st.sampled_from(EDGES),
    st.text(max_size=12),
    st.decimals(allow_nan=False, allow_infinity=False, places=8).map(str),
    st.from_regex(r"-?\d{1,20}(\.\d{1,20})?", fullmatch=True),
)


@given(
    base=st.sampled_from([GTD, LIMIT, *(priced(kind) for kind in PRICES)]),
    changes=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4),
    envelope=st.sampled_from([ENVELOPE_FIELDS, frozenset[str](), frozenset({"note", "order_id"})]),
    random=st.randoms(use_true_random=False),
)
def test_any_entry_comes_out_the_same(
    base: dict[str, str], changes: dict[str, str], envelope: frozenset[str], random: Random
) -> None:
    pairs = list({**base, **changes}.items())
    random.shuffle(pairs)
    assert_same([word for pair in pairs for word in pair], envelope)


@pytest.mark.parametrize("name", NAMES)
def test_any_field_with_a_value_at_an_edge_comes_out_the_same(name: str) -> None:
    common = learned(flat(LIMIT, **{name: "1"}))
    for value in EDGES:
        fields = flat(LIMIT, **{name: value})
        assert common.parse(fields) == parse(fields), value


@given(values=st.lists(VALUES, min_size=7, max_size=7))
def test_whatever_values_stand_in_a_known_form_come_out_the_same(values: list[str]) -> None:
    fields = [word for pair in zip(LIMIT, values, strict=True) for word in pair]
    assert KNOWN.parse(fields) == parse(fields)


KNOWN = learned(flat(LIMIT))


def test_names_twice_and_too_many_are_no_form() -> None:
    assert_same([*flat(), "side", "buy"])
    assert_same(flat(LIMIT, **{f"f{n}": "x" for n in range(FIELDS_MAX - len(LIMIT))}))
    assert_same(flat(LIMIT, **{f"f{n}": "x" for n in range(FIELDS_MAX - len(LIMIT) + 1)}))


def test_an_entry_without_fields_and_a_payload_come_out_the_same() -> None:
    assert Parser(ENVELOPE_FIELDS).parse(None) == parse(None)
    assert_same([])
    assert_same(payload())


def test_a_parser_learns_so_many_forms_and_goes_on_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = Parser(ENVELOPE_FIELDS)
    for number in range(CANDIDATES_MAX + 1):  # seen too seldom
        parser.parse(flat(LIMIT, **{f"seldom{number}": "x"}))
    entries = [flat(LIMIT, **{f"form{number}": "x"}) for number in range(FORMS_MAX + 1)]
    for fields in entries:
        for _ in range(SEEN_MIN + 1):
            assert parser.parse(fields) == parse(fields)
    monkeypatch.delattr(forms, "parse")
    for fields in entries[:-1]:
        parser.parse(fields)
    with pytest.raises(NameError):  # the last was not learned
        parser.parse(entries[-1])
