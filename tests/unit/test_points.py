"""Points: each line, read back by a parser of the line protocol, says what was meant and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.entry import Entry
from tests.line_protocol import Parsed, parse_lines
from tests.unit import PRICES, flat, payload, priced, valid
from worker.order import Malformed
from worker.outcome import Accepted, Duplicate, Kept, Outcome, Rejected
from worker.points import Point, has_own_time, line, lines, points, time_ns

INT64_MAX = 2**63 - 1


def read(point: Point) -> Parsed:
    [parsed] = parse_lines(line(point))
    return parsed


# --- what a line says ---

ENTRY_ID = "1767225600000-3"
ENTRY = Entry("orders", ENTRY_ID, flat())


def test_the_line_of_an_accepted_order() -> None:
    [point] = points([Accepted(ENTRY, valid(flat()), 0)])
    assert line(point) == (
        "orders,outcome=accepted,side=buy,stream=orders,symbol=BTCUSDT,type=limit "
        'entry_id="1767225600000-3",order_id="A-17",quantity=0.12345678,generation=0i,price=45678.12 '
        "1767225600000000003"
    )


def test_the_line_of_a_duplicate_names_its_original() -> None:
    [point] = points([Duplicate(ENTRY, valid(flat(order_id="B")), 2, "1767225599000-7")])
    assert read(point) == (
        "orders",
        {"outcome": "duplicate", "side": "buy", "stream": "orders", "symbol": "BTCUSDT", "type": "limit"},
        {
            "entry_id": ENTRY_ID,
            "order_id": "B",
            "quantity": 0.12345678,
            "generation": 2,
            "price": 45678.12,
            "original_entry_id": "1767225599000-7",
        },
        1767225600000000003,
    )  # fmt: skip


def test_the_line_of_a_rejection_has_its_code() -> None:
    [point] = points([Rejected(ENTRY, Malformed("side_invalid", "a sentence", "A-17", "BTCUSDT"))])
    assert read(point) == (
        "orders",
        {"code": "side_invalid", "outcome": "rejected", "stream": "orders"},
        {"entry_id": ENTRY_ID, "order_id": "A-17"},
        1767225600000000003,
    )


def test_the_line_of_a_rejection_without_order_id() -> None:
    [point] = points([Rejected(ENTRY, Malformed("trimmed", "a sentence"))])
    assert read(point).fields == {"entry_id": ENTRY_ID}


@pytest.mark.parametrize("kind", PRICES)
def test_a_point_has_the_prices_of_its_type(kind: str) -> None:
    [point] = points([Accepted(ENTRY, valid(flat(priced(kind))), 0)])
    given_prices = {name: value for name, value in read(point).fields.items() if "price" in name}
    assert given_prices == dict.fromkeys(PRICES[kind], 101.5)


@pytest.mark.parametrize(
    ("sent", "meant"),
    [("-37.63", -37.63), ("0", 0), ("-0", 0), ("1e18", 1e18), ("1e-18", 1e-18), ("1.50", 1.5)],
)
def test_a_price_of_any_size_is_a_number_of_the_line_protocol(sent: str, meant: float) -> None:
    [point] = points([Accepted(ENTRY, valid(flat(price=sent)), 0)])
    assert read(point).fields["price"] == meant
    assert "e" not in line(point).split("price=")[1]


def test_an_outcome_that_was_kept_has_no_point_of_its_own() -> None:
    kept: list[Outcome] = [Kept(ENTRY), Accepted(ENTRY, valid(flat()), 0), Kept(ENTRY)]
    assert len(points(kept)) == 1


@pytest.mark.parametrize("redelivered", [False, True])
def test_a_redelivered_outcome_has_the_same_point(redelivered: bool) -> None:
    order, malformed = valid(flat()), Malformed("trimmed", "a sentence")
    told = points(
        [
            Accepted(ENTRY, order, 1, redelivered),
            Duplicate(ENTRY, order, 1, "1-0", redelivered),
            Rejected(ENTRY, malformed, redelivered),
        ]
    )
    assert told == points(
        [
            Accepted(ENTRY, order, 1),
            Duplicate(ENTRY, order, 1, "1-0"),
            Rejected(ENTRY, malformed),
        ]
    )


def test_the_point_of_a_row_is_the_same_as_that_of_the_batch() -> None:
    """A row tells of the accepted original what a duplicate told of itself; amounts are equal, not alike."""
    original = valid(flat(quantity="1.00", price="2.50"))
    repeat = valid(payload(order_id="B", quantity=1, price="25e-1", side="BUY"))
    rejected = Malformed("side_invalid", "a sentence", "C", "BTCUSDT")
    outcomes = [
        Accepted(ENTRY, original, 3),
        Duplicate(ENTRY, repeat, 3, ENTRY_ID),
        Rejected(ENTRY, rejected),
    ]
    original_row = ("BTCUSDT", "buy", "limit", "1.00", "2.50", None, 3)
    from_rows = [
        Point("orders", ENTRY_ID, "accepted", "A-17", *original_row),
        Point("orders", ENTRY_ID, "duplicate", "B", *original_row, ENTRY_ID),
        Point("orders", ENTRY_ID, "rejected", "C", code="side_invalid"),
    ]
    assert list(map(read, points(outcomes))) == list(map(read, from_rows))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
NASTY = st.text(" ,=\"\\'\n\t\r{}:é\u2028\0x", min_size=1) | TEXT
AMOUNTS = st.decimals(-(10**18), 10**18, places=9).map(lambda value: f"{value:f}")
IDS = st.builds("{}-{}".format, st.integers(0, 9_000_000_000_000), st.integers(0, 999_999))


@given(
    stream=NASTY,
    entry_id=IDS,
    order_id=NASTY,
    original_id=st.none() | IDS,
    amounts=st.tuples(AMOUNTS, st.none() | AMOUNTS, st.none() | AMOUNTS),
    generation=st.integers(0, 2**31 - 1),
)
def test_a_line_reads_back_as_just_the_tags_and_fields_that_were_meant(
    stream: str,
    entry_id: str,
    order_id: str,
    original_id: str | None,
    amounts: tuple[str, str | None, str | None],
    generation: int,
) -> None:
    quantity, price, stop_price = amounts
    point = Point(
        stream,
        entry_id,
        "duplicate" if original_id else "accepted",
        order_id,
        "BTC/USDT:1",
        "sell_short",
        "stop_limit",
        quantity,
        price,
        stop_price,
        generation,
        original_id,
    )
    meant: dict[str, str | int | float | None] = {
        "entry_id": entry_id,
        "order_id": order_id,
        "quantity": float(quantity),
        "price": None if price is None else float(price),
        "stop_price": None if stop_price is None else float(stop_price),
        "generation": generation,
        "original_entry_id": original_id,
    }
    parsed = read(point)
    assert parsed.measurement == "orders"
    assert parsed.tags == {
        "outcome": point.outcome,
        "side": "sell_short",
        "stream": stream.replace("\n", " ").replace("\\", "/"),  # neither can be written
        "symbol": "BTC/USDT:1",
        "type": "stop_limit",
    }
    assert parsed.fields == {name: value for name, value in meant.items() if value is not None}
    assert isinstance(parsed.fields["quantity"], float)
    assert parsed.time_ns == time_ns(entry_id)


@given(st.lists(st.tuples(NASTY, NASTY), max_size=4))
def test_no_stream_and_no_order_id_can_add_a_tag_a_field_or_a_line(
    names: list[tuple[str, str]],
) -> None:
    told = [Point(stream, ENTRY_ID, "rejected", order_id, code="x_y") for stream, order_id in names]
    parsed = parse_lines(lines(told).decode())
    assert [(found.tags.keys(), found.fields) for found in parsed] == [
        ({"code", "outcome", "stream"}, {"entry_id": ENTRY_ID, "order_id": order_id})
        for _, order_id in names
    ]


def test_no_points_are_no_lines() -> None:
    assert lines([]) == b""


# --- times ---

ANY_ID = st.builds(
    "{}-{}".format,
    st.integers(0, 2**64 - 1) | st.integers(0, 9_300_000_000_000),
    st.integers(0, 2**64 - 1) | st.integers(0, 2_000_000),
)


@given(ANY_ID)
def test_an_id_has_a_time_of_its_own_before_2262_and_below_a_million_in_its_millisecond(
    entry_id: str,
) -> None:
    ms, seq = map(int, entry_id.split("-"))
    assert has_own_time(entry_id) == (ms < 9_223_372_036_854 and seq < 1_000_000)


@pytest.mark.parametrize(
    ("entry_id", "own"),
    [
        ("0-1", True),
        ("1767225600000-0", True),
        ("1767225600000-999999", True),
        ("1767225600000-1000000", False),  # else it would meet 1767225600001-0
        ("9223372036853-999999", True),
        ("9223372036854-0", False),
        ("8999999999999-999999", True),
        ("89999999999999-0", False),
        ("9-999999", True),
        (f"{2**64 - 1}-{2**64 - 1}", False),
    ],
)
def test_the_edges_of_times(entry_id: str, own: bool) -> None:
    ms, seq = map(int, entry_id.split("-"))
    assert has_own_time(entry_id) == own
    assert (time_ns(entry_id) == ms * 10**6 + seq) == own


@given(IDS)
def test_the_time_of_a_point_is_its_entrys_with_the_sequence_as_nanoseconds(entry_id: str) -> None:
    ms, seq = map(int, entry_id.split("-"))
    assert time_ns(entry_id) == ms * 10**6 + seq


@given(st.lists(ANY_ID, unique=True, max_size=20))
def test_each_entry_of_a_stream_has_a_time_of_its_own_that_influxdb_can_tell(
    ids: list[str],
) -> None:
    times = [time_ns(entry_id) for entry_id in ids]
    assert len(set(times)) == len(ids)
    assert all(0 <= time <= INT64_MAX - 1 for time in times)


@given(ANY_ID.filter(lambda entry_id: not has_own_time(entry_id)))
def test_an_id_without_a_time_of_its_own_has_one_in_the_last_days_of_influxdb(
    entry_id: str,
) -> None:
    assert INT64_MAX - 2**48 <= time_ns(entry_id) <= INT64_MAX - 1
    assert time_ns(entry_id) == time_ns(entry_id)
