"""An order as JSON: the same order as in flat fields, numbers exact."""

import json
import tracemalloc
from decimal import Decimal

import pytest

from tests.unit import (
    DEPTH_MAX,
    GTD,
    LIMIT,
    PRICES,
    flat,
    payload,
    payload_of,
    payload_text,
    priced,
    valid,
)
from worker.order import canonical, parse


@pytest.mark.parametrize("kind", PRICES)
def test_a_payload_is_the_same_order_as_flat_fields(kind: str) -> None:
    order = priced(kind)
    assert valid(payload(order)) == valid(flat(order))


def test_extra_fields_of_text_are_the_same_in_both_forms() -> None:
    order = {**GTD, "strategy": 'mean "reversion" \\ é', "": "", "trace_id": "1"}
    assert valid(payload(order)) == valid(flat(order))


@pytest.mark.parametrize(
    "number",
    [
        "0.1",
        "0.12345678",
        "0.30000000000000004",
        "1234567890.123456789012345678",
        "0.1000000000000000055511151231",
        "9007199254740993",
        "1.10",
        "1e3",
        "1.50E-3",
        "100",
    ],
)
def test_a_number_is_read_from_its_text_and_never_through_a_float(number: str) -> None:
    assert Decimal(valid(payload_of("quantity", number)).quantity) == Decimal(number)
    assert valid(payload_of("quantity", number)) == valid(flat(quantity=number))
    assert valid(payload_of("price", f"-{number}")) == valid(flat(price=f"-{number}"))


def test_a_price_is_the_same_as_text_and_as_number() -> None:
    hashes = {
        valid(payload_of("price", text)).content_hash for text in ('"1.00"', "1.00", "1", "10e-1")
    }
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "indented",
    [
        json.dumps(LIMIT, indent=4),
        json.dumps(LIMIT, indent="\t"),
        json.dumps(LIMIT, indent=1).replace("\n", "\r\n"),
        f" \n {json.dumps(LIMIT)} \n",
        json.dumps(LIMIT, separators=(",", ":")),
    ],
)
def test_json_may_be_indented(indented: str) -> None:
    assert valid(["payload", indented]) == valid(flat())


def test_escapes_are_what_they_stand_for() -> None:
    fields = payload_text(r'"note": "\u00e9\"\\\/\ud83d\udcc8"')
    assert valid(fields) == valid(flat(note='é"\\/\U0001f4c8'))


def test_extra_fields_are_kept_as_sent_with_the_text_of_their_numbers() -> None:
    members = '"b": [1.50, -0, 1E+5, true, false, null, "1.50"], "a": {"y": 1, "x": {}}, "ts": 1.0'
    extra = valid(payload_text(members)).extra
    assert extra == '{"a":{"y":1,"x":{}},"b":[1.50,-0,1E+5,true,false,null,"1.50"],"ts":1.0}'


def test_extra_fields_are_canonical_content_with_plain_numbers_and_sorted_names() -> None:
    members = '"b": [1.50, -0, 1E+5, true, false, null, "1.50"], "a": {"y": 1, "x": {}}'
    assert canonical(payload_text(members)).startswith(
        b'{"a":{"x":{},"y":1},"account":"alpha","b":[1.5,0,100000,true,false,null,"1.50"],"price"'
    )


def test_a_number_is_another_content_than_its_text_in_an_extra_field() -> None:
    number, text = valid(payload_text('"a": 1')), valid(payload_text('"a": "1"'))
    assert number.content_hash != text.content_hash
    assert text == valid(flat(a="1"))


def test_an_extra_field_that_is_null_or_empty_is_content() -> None:
    hashes = [
        valid(fields).content_hash
        for fields in (
            payload(),
            payload_text('"a": null'),
            payload_text('"a": ""'),
            payload_text('"a": []'),
            payload_text('"a": {}'),
            payload_text('"a": false'),
            payload_text('"a": 0'),
        )
    ]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("name", ["note", "trace_id"])
@pytest.mark.parametrize(
    "deep",
    [
        "[" * DEPTH_MAX + "]" * DEPTH_MAX,
        "[" * DEPTH_MAX + "1" + "]" * DEPTH_MAX,
        '{"a":' * DEPTH_MAX + '"x"' + "}" * DEPTH_MAX,
        '[{"a":' * (DEPTH_MAX // 2) + "null" + "}]" * (DEPTH_MAX // 2),
    ],
)
def test_an_extra_field_may_nest_16_levels_deep(name: str, deep: str) -> None:
    assert valid(payload_of(name, deep)).extra == f'{{"{name}":{deep}}}'


def test_many_lists_side_by_side_are_not_deep() -> None:
    assert valid(payload_of("note", f"[{','.join(['[[]]'] * 1000)}]")).extra


def test_an_empty_name_is_a_name() -> None:
    assert valid(payload_text('"": 1')).extra == '{"":1}'
    assert canonical(flat(**{"": "x"})).startswith(b'{"":"x","account"')


@pytest.mark.parametrize("text", [",:[{" * 10_000, r"\"," * 10_000, ", " * 20_000 + r"\\"])
def test_text_is_not_counted_as_what_it_looks_like(text: str) -> None:
    assert valid(payload_text(f'"note": "{text}"')).extra


ITEMS = ("1", "1234", '"中"', '"\U0001f4c8a"', "[]", "{}", '{"ab":1}', "[[[1]]]", "NaN")


@pytest.mark.parametrize("item", ITEMS)
@pytest.mark.parametrize("field", ["note", "account", "ts"])
@pytest.mark.parametrize("count", [500, 1_000, 2_000, 4_000, 60_000])
def test_an_entry_takes_at_most_twenty_times_its_size_in_memory(
    item: str, field: str, count: int
) -> None:
    size = len(item.encode()) + 1
    fields = payload_of(field, f"[{','.join([item] * min(count, 65_000 // size))}]")
    assert memory_of(fields) <= max(20 * len(fields[1].encode()), 2**20)


@pytest.mark.parametrize("text", ['"', "\\", "x", "\u0301"])
def test_so_does_one_with_long_text(text: str) -> None:
    fields = flat(note="\U0001f4c8" + text * (64_000 // len(text.encode())))
    assert memory_of(fields) <= 20 * 65_000


@pytest.mark.parametrize("text", ['\udcff"', '中"', '"', '"é":', '"",', ",", "]", '"\\'])
def test_so_does_one_that_is_no_json(text: str) -> None:
    fields = ["payload", text * (65_000 // len(text.encode(errors="surrogateescape")))]
    assert memory_of(fields) <= 20 * 65_000


def memory_of(fields: list[str]) -> int:
    """The most bytes held at once while the entry is parsed."""
    tracemalloc.start()
    try:
        parse(fields)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
