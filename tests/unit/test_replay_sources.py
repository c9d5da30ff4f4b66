"""Where replayed orders come from, their entry ids, and what the reference expects of them."""

import bz2
import csv
import gzip
import itertools
import json
import lzma
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from scripts.replay.order_file import OrderFile
from scripts.replay.publishing import EntryIds, IdsOfTimes
from scripts.replay.reference import Figures, Reference, content_of, content_on_record
from scripts.replay.source import Item
from scripts.replay.synthetic import Synthetic, synthetic_orders
from scripts.replay.tables import BadSource
from worker.order import ENVELOPE_FIELDS, Malformed, Order, parse

BITSTAMP = Path(__file__).parents[3] / "shared" / "data" / "orders_bitstamp.csv.gz"
DAY_MS = 86_400_000
ROWS = """\
id,symbol,side,type,quantity,price,time,desk
7,BTCUSD,buy,limit,1.10000000,236.47,2015-05-01T00:00:04.518Z,a
8,BTCUSD,sell,limit,0.1,236.50,2015-05-01T00:00:04.518Z,
9,BTCUSD,sell,market,2,,2015-05-01T02:00:05+02:00,b
"""


def content(order: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(item for item in order.items() if item[0] != "order_id")


# --- synthetic orders ---


@pytest.mark.parametrize(
    ("orders", "duplicates"), [(50, 20), (1, 20), (1, 0), (1000, 1), (10, 990), (3000, 2999)]
)
def test_synthetic_orders_have_so_many_contents_and_as_many_ids_as_orders(
    orders: int, duplicates: int
) -> None:
    made = list(synthetic_orders(orders, duplicates, seed=1))
    assert len(made) == orders + duplicates
    assert len({content(order) for order in made}) == orders
    assert len({order["order_id"] for order in made}) == len(made)


def test_duplicates_are_spread_evenly_and_follow_their_originals() -> None:
    seen: set[object] = set()
    repeats: list[int] = []
    for place, order in enumerate(synthetic_orders(1000, 250, seed=5)):
        if content(order) in seen:
            repeats.append(place)
        seen.add(content(order))
    assert len(repeats) == 250
    assert all(4 <= after - before <= 6 for before, after in itertools.pairwise(repeats))


def test_the_seed_alone_decides_what_is_made() -> None:
    first, again, other = (list(synthetic_orders(100, 30, seed)) for seed in (1, 1, 2))
    assert first == again
    assert not {content(order) for order in first} & {content(order) for order in other}


def test_the_first_orders_do_not_depend_on_how_many_follow() -> None:
    short = list(synthetic_orders(100, 0, seed=1))
    assert list(itertools.islice(synthetic_orders(10_000_000, 0, seed=1), 100)) == short


def test_synthetic_orders_are_valid_and_of_every_type() -> None:
    parsed = [parse(_flat(order)) for order in synthetic_orders(2000, 0, seed=3)]
    orders = [order for order in parsed if isinstance(order, Order)]
    assert len(orders) == 2000
    assert len({order.type for order in orders}) == 7
    assert len({order.content_hash for order in orders}) == 2000


@pytest.mark.parametrize(
    ("orders", "duplicates"), [(0, 1), (0, 0), (-1, 0), (5, -1), (2**32 + 1, 0)]
)
def test_impossible_numbers_of_orders_are_refused(orders: int, duplicates: int) -> None:
    with pytest.raises(ValueError, match="cannot make"):
        synthetic_orders(orders, duplicates, seed=1)


# --- files ---


def _flat(order: Mapping[str, str]) -> list[str]:
    return [word for pair in order.items() for word in pair]


def _file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def _orders(
    path: Path, mapping: dict[str, str] | None = None, keep: tuple[str, ...] = ()
) -> list[dict[str, str]]:
    return [item.order for item in OrderFile(path, mapping or {}, keep, timed=False)]


EXPECTED = [
    {"order_id": "7", "symbol": "BTCUSD", "side": "buy", "type": "limit",
     "quantity": "1.10000000", "price": "236.47"},
    {"order_id": "8", "symbol": "BTCUSD", "side": "sell", "type": "limit",
     "quantity": "0.1", "price": "236.50"},
    {"order_id": "9", "symbol": "BTCUSD", "side": "sell", "type": "market", "quantity": "2"},
]  # fmt: skip


def test_mapped_and_known_columns_are_sent_as_they_are_and_empty_ones_not(tmp_path: Path) -> None:
    assert _orders(_file(tmp_path, "day.csv", ROWS), {"order_id": "id"}) == EXPECTED


def test_other_columns_are_named_and_not_sent(tmp_path: Path) -> None:
    path = _file(tmp_path, "day.csv", ROWS)
    assert OrderFile(path, {"order_id": "id"}, (), timed=False).left_out == ["time", "desk"]
    assert OrderFile(path, {"order_id": "id"}, ["desk"], timed=True).left_out == []


def test_a_kept_column_is_sent_under_its_own_name(tmp_path: Path) -> None:
    orders = _orders(_file(tmp_path, "day.csv", ROWS), {"order_id": "id"}, ("desk",))
    assert [order.get("desk") for order in orders] == ["a", None, "b"]


def test_a_mapped_field_leaves_the_column_of_its_own_name_out(tmp_path: Path) -> None:
    text = "order_id,symbol,side,type,quantity,price,px\n1,A,buy,limit,1,5,6\n"
    path = _file(tmp_path, "a.csv", text)
    assert _orders(path, {"price": "px"})[0]["price"] == "6"
    assert OrderFile(path, {"price": "px"}, (), timed=False).left_out == ["price"]


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".GZ", gzip.compress),
    ],
)
def test_compressed_files_are_read_by_their_suffix(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"day.csv{suffix}"
    path.write_bytes(compress(ROWS.encode()))
    assert _orders(path, {"order_id": "id"}) == EXPECTED


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson"])
def test_numbers_in_json_keep_their_text(tmp_path: Path, suffix: str) -> None:
    line = (
        '{"order_id": 17, "symbol": "A", "side": "buy", "type": "limit", "quantity": 0.10000000, '
        '"price": 123456789012345678901234567.8, "account": null, "post_only": true}\n\n'
    )
    path = _file(tmp_path, f"day.{suffix}", line)
    (order,) = _orders(path, keep=("post_only",))
    assert (order["order_id"], order["quantity"], order["post_only"]) == (
        "17",
        "0.10000000",
        "true",
    )
    assert order["price"] == "123456789012345678901234567.8"
    assert "account" not in order


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert len(_orders(_file(tmp_path, "day.csv", "\ufeff" + ROWS), {"order_id": "id"})) == 3


def test_a_limit_sends_the_first_orders_and_reads_no_further(tmp_path: Path) -> None:
    path = _file(tmp_path, "day.csv", ROWS + "10,too few cells")
    file = OrderFile(path, {"order_id": "id"}, (), timed=True, limit=2)
    assert (len(file), str(file)) == (2, "day.csv, its first 2 orders")
    assert [item.order["order_id"] for item in file] == ["7", "8"]


def test_a_limit_beyond_the_end_is_none(tmp_path: Path) -> None:
    path = _file(tmp_path, "day.csv", ROWS)
    assert len(OrderFile(path, {"order_id": "id"}, (), timed=True, limit=99)) == 3


def test_a_file_can_be_read_again_and_knows_its_length(tmp_path: Path) -> None:
    file = OrderFile(_file(tmp_path, "day.csv", ROWS), {"order_id": "id"}, (), timed=True)
    assert len(file) == 3
    assert list(file) == list(file)


HEAD = "order_id,symbol,side,type,quantity,time\n"
ROW = "1,A,buy,market,1,2015-05-01T00:00:01Z\n"
JSON_ROW = '{"order_id": "1", "symbol": "A", "side": "buy", "type": "market", "quantity": "1"'


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.csv", "", "holds no orders"),
        ("a.csv", HEAD, "holds no orders"),
        ("a.csv", ROWS, "no column 'order_id'.*--map order_id=COLUMN"),
        ("a.csv", HEAD + "1,A,buy\n", "line 2 has 3 cells, its header 6"),
        ("a.csv", "order_id,order_id\n", "two columns named 'order_id'"),
        ("a.csv", HEAD + '1,A,"buy\n', "is not CSV"),
        ("a.csv", HEAD + ",,,,,2015-05-01T00:00:01Z\n", "line 2 has no field of an order"),
        ("a.csv", HEAD + "1,A,buy,market,1,\n", "line 2 has no 'time'; give --map time=COLUMN"),
        ("a.csv", HEAD + "1,A,buy,market,1,noon\n", "line 2: 'noon' is not a time in ISO 8601"),
        ("a.csv", HEAD + "1,A,buy,market,1,1969-01-01\n", "line 2: 1969-01-01 is not after 1970"),
        ("a.csv", HEAD + ROW + "2,A,buy,market,1,2015-05-01T00:00:00.999Z\n",
         "line 3: 2015-05-01T00:00:00.999Z is earlier than the row before"),
        ("a.jsonl", JSON_ROW + "\n", "line 1 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("a.jsonl", JSON_ROW + ', "price": [1]}\n', "line 1: price is neither text nor a number"),
        ("a.jsonl", JSON_ROW + ', "account": "\\ud800"}\n', "line 1 holds half of a surrogate"),
        ("a.csv.gz", ROWS, "a.csv.gz: "),
        ("a.csv.xz", ROWS, "is damaged"),
        ("a.parquet", ROWS, "not .csv, .jsonl or .ndjson"),
        ("a.gz", ROWS, "not .csv, .jsonl or .ndjson"),
        ("csv", ROWS, "not .csv, .jsonl or .ndjson"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_the_place(
    tmp_path: Path, name: str, text: str, complaint: str
) -> None:
    with pytest.raises(BadSource, match=complaint):
        OrderFile(_file(tmp_path, name, text), {}, (), timed=True)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadSource, match=r"none\.csv: No such file"):
        OrderFile(tmp_path / "none.csv", {}, (), timed=False)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "day.csv.gz"
    path.write_bytes(gzip.compress(ROWS.encode() * 50)[:-20])
    with pytest.raises(BadSource, match="is damaged"):
        OrderFile(path, {"order_id": "id"}, (), timed=False)


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "day.csv"
    path.write_bytes(ROWS.replace(",b", ",\xff").encode("latin-1"))
    with pytest.raises(BadSource, match="is not UTF-8"):
        OrderFile(path, {"order_id": "id"}, (), timed=False)


@pytest.mark.parametrize("mapping", [{"order_id": "id", "account": "acct"}, {"order_id": "no"}])
def test_a_mapping_to_a_column_that_is_not_there_is_refused(
    tmp_path: Path, mapping: dict[str, str]
) -> None:
    with pytest.raises(BadSource, match="no column"):
        OrderFile(_file(tmp_path, "day.csv", ROWS), mapping, (), timed=False)


def test_a_kept_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSource, match="no column 'dsk'"):
        OrderFile(_file(tmp_path, "day.csv", ROWS), {"order_id": "id"}, ["dsk"], timed=False)


# --- entry ids ---


def test_times_are_milliseconds_with_or_without_an_offset(tmp_path: Path) -> None:
    times = ["2015-05-01", "2015-05-01T02:00:00.0019+02:00", "2015-05-01T00:00:00.999999999Z"]
    rows = "".join(f"1,A,buy,market,1,{time}\n" for time in times)
    file = OrderFile(_file(tmp_path, "a.csv", HEAD + rows), {}, (), timed=True)
    midnight = 1_430_438_400_000
    assert [item.at_ms for item in file] == [midnight, midnight + 1, midnight + 999]
    assert file.first_ms == midnight


def test_orders_of_one_millisecond_get_a_growing_sequence() -> None:
    ids = IdsOfTimes()
    made = [ids.next(at_ms) for at_ms in (5, 5, 5, 6, 9, 9)]
    assert made == ["5-0", "5-1", "5-2", "6-0", "9-0", "9-1"]


def test_entry_ids_are_kept_as_they_came() -> None:
    ids = EntryIds()
    ids.extend(["1767225600000-3", "1767225600000-4"])
    assert [str(entry_id) for entry_id in ids] == ["1767225600000-3", "1767225600000-4"]
    assert ids[1].seq == 4
    assert len(ids) == 2


# --- what is expected ---


def _figures(items: list[tuple[dict[str, str], int]], window_ms: int = DAY_MS) -> Figures:
    reference = Reference(window_ms, ENVELOPE_FIELDS, {})
    for order, at_ms in items:
        reference.add(order, at_ms)
    return reference.figures


def test_synthetic_duplicates_are_expected_to_be_duplicates() -> None:
    items = [(item.order, 1) for item in Synthetic(500, 200, 1)]
    assert _figures(items) == Figures(accepted=500, duplicates=200, rejected=0)


def test_the_window_is_counted_from_the_accepted_original() -> None:
    order = EXPECTED[0]
    at_ms = [0, 1000, 1001, 2001, 2002]  # repeat, new original, its repeat, new again
    assert _figures([(order, ms) for ms in at_ms], window_ms=1000) == Figures(3, 2, 0)


def test_orders_accepted_elsewhere_are_repeated_within_the_window() -> None:
    elsewhere = {content_of(EXPECTED[0], ENVELOPE_FIELDS): [5000]}
    reference = Reference(1000, ENVELOPE_FIELDS, elsewhere)
    for at_ms in (3999, 4000, 6000, 6001):
        reference.add(EXPECTED[0], at_ms)
    assert reference.figures == Figures(accepted=2, duplicates=2, rejected=0)


BASE = {
    "order_id": "1",
    "symbol": "A",
    "side": "buy",
    "type": "limit",
    "quantity": "1",
    "price": "2",
}


@pytest.mark.parametrize(
    "change",
    [
        {"order_id": "2"}, {"quantity": "1.000"}, {"price": "0.2e1"}, {"side": "BUY"}, {"account": ""},
        {"time_in_force": "GTC"}, {"sent_at": "now"}, {"client_order_id": "x"},
    ],
)  # fmt: skip
def test_these_are_the_same_content(change: dict[str, str]) -> None:
    assert content_of(BASE | change, ENVELOPE_FIELDS) == content_of(BASE, ENVELOPE_FIELDS)


@pytest.mark.parametrize(
    "change", [{"price": "-2"}, {"account": "a"}, {"nonce": "1"}, {"nonce": ""}, {"symbol": "a"}]
)
def test_these_are_other_content(change: dict[str, str]) -> None:
    assert content_of(BASE | change, ENVELOPE_FIELDS) != content_of(BASE, ENVELOPE_FIELDS)


VALUES = {
    "order_id": ("", "x" * 128, "x" * 129, "a\u00a0b", "é"),
    "account": ("", "x" * 65, "e\u0301", "a\tb", 'q"\\'),
    "symbol": ("", "x" * 33, "A B", "a/b:c"),
    "side": ("", "Sell", "hold", "buy "),
    "type": ("", "MARKET", "stop", "stop_limit", "trailing_stop", "mar\u212aet"),
    "quantity": ("", "0", "-1", "1.", ".5", "+1", "1e-18", "1e-19", "1e18", "1e19", "1e5000", "NaN",
                 "1_0", "\u0661", "0.123456789012345678901234567", "12345678901234567890123456789"),
    "price": ("", "0", "-0.00", "1e400", "0e18", "0e19", "0e-46", "1e00000", "x"),
    "stop_price": ("", "1", "x"),
    "time_in_force": ("", "day", "gtd", "x"),
    "expire_time": ("", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00", "20260101T000000Z", "x"),
    "note": ("", "é", "a\x00b", "x" * 70_000),
}  # fmt: skip


def test_the_reference_and_the_worker_agree_on_what_is_valid_and_what_is_equal() -> None:
    """They share no code, so one of them is wrong where this fails."""
    theirs: dict[bytes, bytes] = {}
    ours: dict[bytes, bytes] = {}
    singles = [{name: value} for name, values in VALUES.items() for value in values]
    for first, second in itertools.product(singles, repeat=2):
        order = BASE | first | second
        parsed = parse(_flat(order))
        try:
            digest = content_of(order, ENVELOPE_FIELDS)
        except ValueError:
            assert isinstance(parsed, Malformed), order
        else:
            assert isinstance(parsed, Order), (order, parsed)
            assert theirs.setdefault(digest, parsed.content_hash) == parsed.content_hash, order
            assert ours.setdefault(parsed.content_hash, digest) == digest, order


def test_a_row_on_record_has_the_content_of_the_order_it_was() -> None:
    order = BASE | {
        "type": "STOP_LIMIT", "stop_price": "1.50", "time_in_force": "gtd", "account": "e\u0301",
        "expire_time": "2026-01-01T02:00:00+02:00", "note": "é", "sent_at": "now",
    }  # fmt: skip
    row: dict[str, object] = {
        "symbol": "A", "side": "buy", "type": "stop_limit", "account": "e\u0301", "time_in_force": "gtd",
        "quantity": Decimal("1.0"), "price": Decimal(2), "stop_price": Decimal("1.5"),
        "expire_at": datetime(2026, 1, 1, tzinfo=UTC),
        "extra": json.dumps({"note": "é", "sent_at": "then"}),
    }  # fmt: skip
    assert content_on_record(row, ENVELOPE_FIELDS) == content_of(order, ENVELOPE_FIELDS)


@pytest.fixture(scope="module")
def bitstamp() -> list[Item]:
    if not BITSTAMP.exists():
        pytest.skip(f"the recorded orders are not at {BITSTAMP}")
    return list(OrderFile(BITSTAMP, {}, (), timed=True))


@pytest.mark.parametrize(
    ("window_ms", "duplicates"),
    [(1000, 40), (60_000, 2486), (600_000, 4749), (3_600_000, 5850), (DAY_MS, 6347)],
)
def test_recorded_orders_repeat_as_often_as_is_known(
    bitstamp: list[Item], window_ms: int, duplicates: int
) -> None:
    figures = _figures([(item.order, item.at_ms) for item in bitstamp], window_ms)
    assert figures == Figures(24_894 - duplicates, duplicates, 0)


def test_recorded_orders_come_through_exactly(bitstamp: list[Item]) -> None:
    notional = sum(Decimal(i.order["quantity"]) * Decimal(i.order["price"]) for i in bitstamp)
    assert notional == Decimal("63703598.7172055189")
    with gzip.open(BITSTAMP, "rt", newline="") as file:
        for row, item in zip(csv.DictReader(file), bitstamp, strict=True):
            assert item.order == {name: row[name] for name in item.order}
            assert set(row) - set(item.order) == {"seq", "time"}
