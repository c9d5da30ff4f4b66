"""Bad input: kept byte for byte, told apart by code, and no obstacle to the orders around it."""

import inspect
import re

import pytest

import worker.fields
import worker.order
from tests.isolation import Place
from tests.orders import order
from tests.record import Tally, check, dead_letters
from tests.workers import drain

pytestmark = pytest.mark.anyio

VALID = {
    "order_id": "A-17",
    "symbol": "BTCUSDT",
    "side": "buy",
    "type": "limit",
    "quantity": "1",
    "price": "2",
}


def fields(**changes: str | bytes | None) -> list[str | bytes]:
    """A valid order's names and values in turn, with changes; None leaves a field out."""
    named = VALID | changes
    return [word for name, value in named.items() if value is not None for word in (name, value)]


def payload(text: str) -> list[str | bytes]:
    return ["payload", text]


def nested(levels: int) -> str:
    return '{"order_id": "A", "deep": ' + "[" * levels + "]" * levels + "}"


MALFORMED: list[tuple[str, list[str | bytes]]] = [
    *[(f"{name}_missing", fields(**{name: None})) for name in VALID],
    *[(f"{name}_missing", fields(**{name: ""})) for name in VALID],
    ("stop_price_missing", fields(type="stop_limit")),
    ("price_unexpected", fields(type="market")),
    ("stop_price_unexpected", fields(stop_price="1")),
    ("order_id_invalid", fields(order_id="x" * 129)),
    ("account_invalid", fields(account="x" * 65)),
    ("symbol_invalid", fields(symbol="BTC USDT")),
    ("symbol_invalid", fields(symbol="x" * 33)),
    ("side_invalid", fields(side="hold")),
    ("side_invalid", fields(side="\u017fell")),
    ("type_invalid", fields(type="iceberg")),
    ("time_in_force_invalid", fields(time_in_force="later")),
    ("expire_time_missing", fields(time_in_force="gtd")),
    ("expire_time_unexpected", fields(expire_time="2026-03-01T17:30:00Z")),
    ("expire_time_invalid", fields(time_in_force="gtd", expire_time="2026-03-01T17:30:00")),
    ("expire_time_invalid", fields(time_in_force="gtd", expire_time="2026-02-30T00:00:00Z")),
    *[(f"{name}_invalid", fields(**{name: "NaN"})) for name in ("quantity", "price")],
    ("price_invalid", fields(price="Infinity")),
    ("price_invalid", fields(price="1,5")),
    ("price_invalid", fields(price="\u0661")),
    ("quantity_invalid", fields(quantity="1_000")),
    ("stop_price_invalid", fields(type="stop", price=None, stop_price="0x10")),
    ("quantity_not_positive", fields(quantity="0")),
    ("quantity_not_positive", fields(quantity="-1")),
    ("quantity_not_positive", fields(quantity="0e5")),
    ("quantity_out_of_range", fields(quantity="1E+1000000")),
    ("quantity_out_of_range", fields(quantity="1E-1000000")),
    ("quantity_out_of_range", fields(quantity="1E" + "9" * 60_000)),
    ("price_out_of_range", fields(price="1" * 29)),
    ("price_out_of_range", fields(price="1.0000000000000000001e18")),
    ("stop_price_out_of_range", fields(type="stop", price=None, stop_price="1e-19")),
    ("control_character", fields(note="a\0b")),
    ("control_character", fields(symbol="BTC\nUSDT")),
    ("control_character", fields(**{"na\0me": "x"})),
    ("not_utf8", fields(note=b"\xff\xfe")),
    ("not_utf8", fields(order_id=b"\xed\xa0\x80")),
    ("entry_too_large", fields(note="x" * (1 << 20))),
    ("entry_too_large", fields(note=b"\xff" * (1 << 20))),
    ("entry_too_large", [*fields(), *(word for n in range(10_000) for word in (f"n{n}", "value"))]),
    ("too_many_fields", [*fields(), *(word for n in range(4_000) for word in (f"n{n}", "v"))]),
    ("duplicate_field", [*fields(), "price", "3"]),
    ("duplicate_field", payload('{"order_id": "A", "order_id": "B"}')),
    ("payload_not_alone", [*payload("{}"), "side", "buy"]),
    ("payload_not_json", payload("{")),
    ("payload_not_json", payload("")),
    ("payload_not_json", payload('{"price": NaN}')),
    ("payload_not_object", payload("[1]")),
    ("payload_not_object", payload("7")),
    ("too_many_values", payload(f'{{"a": [{"1," * 30_000}1]}}')),
    ("payload_too_deep", payload(nested(100))),
    ("payload_too_deep", payload(nested(20_000))),
    ("too_many_fields", payload("{" + ",".join(f'"n{n}": 1' for n in range(65)) + "}")),
    ("order_id_invalid", payload('{"order_id": 17}')),
    ("control_character", payload('{"order_id": "A\\u0000"}')),
    ("not_utf8", payload('{"order_id": "\\ud800"}')),
    ("number_out_of_range", payload('{"order_id": "A", "note": 1e400}')),
]
#: Reached otherwise: by an entry that is trimmed, and by what Postgres refuses.
ELSEWHERE = {"trimmed", "not_storable", "entry_id_out_of_range"}


#: Entries at these ids have a time in InfluxDB that is theirs alone.
WITH_A_TIME = ("0-1", "1-0", "1767225600000-999999", "9223372036853-999999")


async def add(place: Place, words: list[str | bytes], entry_id: str = "*") -> str:
    return await place.command("XADD", place.stream, entry_id, *words)


async def test_every_kind_of_bad_input_is_kept_under_its_code_and_orders_between_pass(
    place: Place,
) -> None:
    expected: dict[str, str] = {}
    for number, (code, words) in enumerate(MALFORMED):
        expected[await add(place, words)] = code
        await place.publish([order(number)])
    await drain(place)
    rows = await place.fetch("SELECT entry_id, code FROM rejections")
    assert {row["entry_id"]: row["code"] for row in rows} == expected
    accepted = await place.fetch("SELECT FROM orders")
    assert len(accepted) == len(MALFORMED)


async def test_rejections_are_kept_byte_for_byte_beside_their_dead_letters_and_points(
    place: Place,
) -> None:
    flat = [(code, words) for code, words in MALFORMED if words[0] != "payload"]
    for _, words in flat:
        await add(place, words)
    await place.publish([order(1)])
    await drain(place)
    assert await check(place) == Tally(accepted=1, rejected=len(flat))


async def test_malformed_payloads_are_kept_byte_for_byte(place: Place) -> None:
    texts = [words for _, words in MALFORMED if words[0] == "payload"]
    for words in texts:
        await add(place, words)
    await drain(place)
    rows = await place.fetch("SELECT fields FROM rejections ORDER BY entry_id")
    assert sorted(row["fields"] for row in rows) == sorted(
        [word if isinstance(word, bytes) else word.encode() for word in words] for words in texts
    )
    assert len(await dead_letters(place)) == len(await place.points()) == len(texts)


def test_every_rejection_code_is_among_the_cases() -> None:
    source = inspect.getsource(worker.fields) + inspect.getsource(worker.order)
    plain = set(re.findall(r'Refusal\(\s*"(\w+)"', source))
    assert plain <= {code for code, _ in MALFORMED} | ELSEWHERE
    suffixes = set(re.findall(r'f"\{name\}(_\w+)"', source))
    assert all(any(code.endswith(suffix) for code, _ in MALFORMED) for suffix in suffixes)


async def test_a_reason_says_what_was_expected_and_the_valid_ids_are_kept(place: Place) -> None:
    await add(place, fields(side="hold"))
    await drain(place)
    row, *_ = await place.fetch("SELECT * FROM rejections")
    assert (row["order_id"], row["symbol"]) == ("A-17", "BTCUSDT")
    assert row["reason"] == "side must be one of buy, sell, sell_short, not 'hold'"


@pytest.mark.parametrize(
    "entry_id",
    [
        *WITH_A_TIME,
        "1767225600000-1000000",
        "1767225600000-18446744073709551615",
        "9223372036854-0",
        "9999999999999999-7",
        "18446744073709551615-18446744073709551615",
    ],
)
@pytest.mark.parametrize("valid", [True, False])
async def test_an_entry_id_at_a_limit_has_an_outcome_and_does_not_stop_the_worker(
    place: Place, entry_id: str, *, valid: bool
) -> None:
    await add(place, fields() if valid else fields(side="hold"), entry_id)
    await drain(place)
    rows = await place.fetch("SELECT entry_id, outcome FROM outcomes")
    outcome = "accepted" if valid and entry_id in WITH_A_TIME else "rejected"
    assert [tuple(row.values()) for row in rows] == [(entry_id, outcome)]
    points = await place.points()
    assert [(point["entry_id"], point["outcome"]) for point in points] == [(entry_id, outcome)]
    assert await place.pending() == 0
