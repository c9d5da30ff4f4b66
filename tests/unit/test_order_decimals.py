"""Decimals: which texts are valid, and that each is kept and compared exactly."""

import signal
import tracemalloc
from collections.abc import Generator
from contextlib import contextmanager
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit import flat, payload_of, valid
from worker.order import Malformed, canonical, parse

DIGITS_28 = "1234567890.123456789012345678"

#: as sent, as stored, as canonical content has it
PRICES = [
    ("1", "1", "1"),
    ("1.0", "1.0", "1"),
    ("1.00", "1.00", "1"),
    ("100", "100", "100"),
    ("100.00", "100.00", "100"),
    ("0.10", "0.10", "0.1"),
    (".5", "0.5", "0.5"),
    ("5.", "5", "5"),
    ("+1", "1", "1"),
    ("+.5", "0.5", "0.5"),
    ("007", "7", "7"),
    ("00.70", "0.70", "0.7"),
    ("-1.50", "-1.50", "-1.5"),
    ("-007", "-7", "-7"),
    ("-.5", "-0.5", "-0.5"),
    ("1e3", "1000", "1000"),
    ("1E3", "1000", "1000"),
    ("1e+3", "1000", "1000"),
    ("1e-3", "0.001", "0.001"),
    ("1.50e1", "15.0", "15"),
    ("1.5e3", "1500", "1500"),
    ("1500e-2", "15.00", "15"),
    (".5e1", "5", "5"),
    ("5.e1", "50", "50"),
    ("1e0", "1", "1"),
    ("1e-0", "1", "1"),
    ("1e003", "1000", "1000"),
    ("1e-00000000000000000003", "0.001", "0.001"),
    ("0", "0", "0"),
    ("00", "0", "0"),
    ("0.000", "0.000", "0"),
    (".0", "0.0", "0"),
    ("0e5", "0", "0"),
    ("0e-3", "0.000", "0"),
    (DIGITS_28, DIGITS_28, DIGITS_28),
    (f"-{DIGITS_28}", f"-{DIGITS_28}", f"-{DIGITS_28}"),
    (f"000{DIGITS_28}", DIGITS_28, DIGITS_28),
    ("1e-18", "0.000000000000000001", "0.000000000000000001"),
    ("-0.000000000000000001", "-0.000000000000000001", "-0.000000000000000001"),
    ("0.1234567890123456789", "0.1234567890123456789", "0.1234567890123456789"),
    ("1.0e-18", "0.0000000000000000010", "0.000000000000000001"),
    ("1e18", "1000000000000000000", "1000000000000000000"),
    ("-1e18", "-1000000000000000000", "-1000000000000000000"),
    ("0.1e19", "1000000000000000000", "1000000000000000000"),
    ("1000000000000000000.00", "1000000000000000000.00", "1000000000000000000"),
    ("999999999999999999.9999999999", "999999999999999999.9999999999", "999999999999999999.9999999999"),
    (f"1.{'0' * 27}", f"1.{'0' * 27}", "1"),
    (f"1.{'0' * 27}e-18", f"0.{'0' * 17}1{'0' * 27}", "0.000000000000000001"),
]  # fmt: skip

NO_DECIMALS = [
    *("abc", "ten", "1,5", "1,000", "1_000", "1 000", " 1", "1 ", "\u00a01", "1\u2009", "0x10", "$1", "1%"),
    *(".", "+", "-", "--1", "+-1", "1-", "1+", "1.2.3", "..1", "1..", "e5", ".e5", "1e", "1e+", "1e+-5"),
    *("1e1.5", "1e 5", "1E", "1ee5", "1d5", "1f", "1L", "1j", "1/2", "½", "²", "1\u066b5"),
    *("NaN", "nan", "sNaN", "NaN123", "Infinity", "-Infinity", "inf", "+inf", "∞", "null", "None", "true"),
    *("\u2212\u0031", "\uff0b1", "\uff11", "\u0661\u0662", "1\u0663", "1.\u0665", "1e\uff15", "१२३"),
]  # fmt: skip

OUT_OF_RANGE = [
    "1" * 29,
    f"{DIGITS_28}9",
    f"{DIGITS_28}0",  # a trailing zero is a digit that would have to be kept
    f"1.{'0' * 28}",
    "1e-19",
    "-1e-19",
    "9.999999999999999999999999999e-19",
    "0.000000000000000000999",
    "0.0000000000000000009",
    "12345678901.123456789012345678",  # 29 digits
    "1e19",
    "1000000000000000001",
    "-1000000000000000001",
    "1000000000000000000.000000001",
    "1.000000000000000000000000001e18",
    "10e18",
    "1e9999",
    "1e-9999",
    "1e10000",
    "1E+1000000",
    "1E-1000000",
    "-1E+1000000",
    "1e99999999999999999999",
    "1e-99999999999999999999",
    "0e1000000",
    "0e-1000000",
]


@pytest.mark.parametrize(("sent", "stored", "_content"), PRICES)
def test_a_price_is_stored_exactly_with_the_trailing_zeros_it_came_with(
    sent: str, stored: str, _content: str
) -> None:
    assert valid(flat(price=sent)).price == stored


@pytest.mark.parametrize(("sent", "_stored", "content"), PRICES)
def test_the_content_of_a_price_is_plain_without_trailing_zeros(
    sent: str, _stored: str, content: str
) -> None:
    assert f'"price":"{content}",'.encode() in canonical(flat(price=sent))


@pytest.mark.parametrize(("sent", "stored", "content"), PRICES)
def test_quantities_and_stop_prices_read_as_prices_do(sent: str, stored: str, content: str) -> None:
    stop = flat(type="stop", price=None, stop_price=sent)
    assert valid(stop).stop_price == stored
    assert f'"stop_price":"{content}",'.encode() in canonical(stop)
    if Decimal(sent) > 0:
        assert valid(flat(quantity=sent)).quantity == stored
        assert f'"quantity":"{content}",'.encode() in canonical(flat(quantity=sent))


@pytest.mark.parametrize("zero", ["-0", "-0.00", "-0e3", "+0", "-.0"])
def test_a_zero_has_no_sign(zero: str) -> None:
    assert Decimal(valid(flat(price=zero)).price or "") == 0
    assert valid(flat(price=zero)).content_hash == valid(flat(price="0")).content_hash


@pytest.mark.parametrize("text", NO_DECIMALS, ids=ascii)
@pytest.mark.parametrize("name", ["quantity", "price"])
def test_what_is_no_finite_ascii_decimal_is_invalid(name: str, text: str) -> None:
    rejected = parse(flat(**{name: text}))
    assert isinstance(rejected, Malformed)
    assert rejected.code == f"{name}_invalid"


@pytest.mark.parametrize("text", OUT_OF_RANGE)
@pytest.mark.parametrize("name", ["quantity", "price"])
def test_too_many_digits_and_sizes_outside_the_bounds_are_out_of_range(
    name: str, text: str
) -> None:
    rejected = parse(flat(**{name: text}))
    assert isinstance(rejected, Malformed)
    assert rejected.code == f"{name}_out_of_range"


@st.composite
def decimal_texts(draw: st.DrawFn) -> str:
    """Texts of every notation, on both sides of every bound."""
    whole = draw(st.text("0123456789", max_size=30))
    fraction = draw(st.text("0123456789", min_size=0 if whole else 1, max_size=30))
    zeros = "0" * draw(st.sampled_from([0, 0, 1, 40]))
    point = "." if fraction or draw(st.booleans()) else ""
    power = draw(st.none() | st.integers(-60, 60))
    exponent = (
        ""
        if power is None
        else draw(st.sampled_from("eE")) + f"{power:{draw(st.sampled_from(['d', '+d', '05d']))}}"
    )
    return draw(st.sampled_from(["", "-", "+"])) + zeros + whole + point + fraction + exponent  # fmt: skip


@given(decimal_texts())
def test_a_decimal_is_valid_just_where_digits_and_size_are_within_the_bounds(text: str) -> None:
    value = Decimal(text)
    order = parse(flat(price=text))
    if value and not (
        len(value.as_tuple().digits) <= 28 and Decimal("1e-18") <= abs(value) <= 10**18
    ):
        assert isinstance(order, Malformed)
        assert order.code == "price_out_of_range"
    elif value or -45 <= exponent_of(value) <= 18:
        assert not isinstance(order, Malformed)
        assert Decimal(order.price or "") == value
        assert exponent_of(Decimal(order.price or "")) == min(exponent_of(value), 0)


def exponent_of(value: Decimal) -> int:
    """The power of ten of the last digit."""
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    return exponent


# --- bad input cannot stop or slow the worker ---

HUGE = {
    "an exponent to fill memory": "1E+1000000",
    "one below zero": "1E-1000000",
    "60,000 digits": "1" * 60_000,
    "60,000 digits after the point": "0." + "1" * 60_000,
    "60,000 digits and a letter": "1" * 60_000 + "x",
    "60,000 digits on both sides and a letter": f"{'1' * 30_000}.{'1' * 30_000}x",
    "60,000 digits after the point and a letter": "." + "1" * 60_000 + "x",
    "60,000 zeros": "0" * 60_000,
    "60,000 zeros and a letter": "0" * 60_000 + "x",
    "60,000 zeros and a digit": "0" * 60_000 + "1",
    "60,000 zeros after the point": "0." + "0" * 60_000,
    "60,000 zeros in the exponent": "1e" + "0" * 60_000 + "1",
    "60,000 zeros in the exponent and a letter": "1e-" + "0" * 60_000 + "x",
    "5,000 digits in the exponent": "1e" + "9" * 5_000,
    "60,000 digits in the exponent": "1e" + "9" * 60_000,
    "60,000 digits in the exponent and a letter": "1e" + "9" * 60_000 + "x",
    "60,000 signs": "+" * 60_000,
    "60,000 points": "." * 60_000,
    "60,000 spaces": " " * 60_000,
}
SECONDS_MAX = 1.0  #: of processor time, thousands of times what it takes
MEMORY_MAX = 2_000_000  #: bytes; an entry has 64 KiB


@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("name", ["quantity", "price"])
def test_a_huge_number_takes_no_time_and_no_memory(name: str, text: str) -> None:
    fields = flat(**{name: text})
    with bounded():
        parse(fields)


@pytest.mark.parametrize("field", ["quantity", "note", "trace_id"])
@pytest.mark.parametrize(
    "number",
    [
        "1E+1000000",
        "1" * 60_000,
        f"0.{'1' * 60_000}",
        f"1e{'9' * 60_000}",
        f"1e{'0' * 60_000}1",
        f"[{'9' * 30_000}, 1e-{'9' * 20_000}]",
    ],
    ids=lambda number: number[:12],
)
def test_a_huge_number_in_a_payload_takes_no_time_and_no_memory(field: str, number: str) -> None:
    fields = payload_of(field, number)
    with bounded():
        parse(fields)


@contextmanager
def bounded() -> Generator[None]:
    """End what takes too long; fail what took too much memory."""

    def too_long(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"took more than {SECONDS_MAX} s")

    before = signal.signal(signal.SIGVTALRM, too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS_MAX)
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
