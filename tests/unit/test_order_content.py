"""Content: which changes make another order, and the hash that says so.

The hash is held against a plain reading of the rules, written apart from the worker's.
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from time import thread_time
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.replay.reference import nfc
from tests.unit import GTD, LIMIT, PRICES, flat, payload, payload_text, valid
from tests.unit.test_rejections import REJECTIONS
from worker.order import ENVELOPE_FIELDS, Malformed, Order, canonical, parse

CODES = {case.code for case in REJECTIONS}


def hash_of(fields: list[str]) -> bytes:
    return valid(fields).content_hash


# --- tables ---


def test_the_content_hash_is_sha256_over_the_tag_and_the_canonical_content() -> None:
    assert canonical(flat()) == (
        b'{"account":"alpha","price":"45678.12","quantity":"0.12345678","side":"buy",'
        b'"symbol":"BTCUSDT","time_in_force":"gtc","type":"limit"}'
    )
    assert hash_of(flat()) == sha256(b"ordergate.order.v1\n" + canonical(flat())).digest()


def test_all_fields_of_the_model_stand_in_sorted_order() -> None:
    order = {**GTD, "type": "stop_limit", "stop_price": "45700"}
    assert canonical(flat(order)) == (
        b'{"account":"alpha","expire_time":"2026-03-01T17:30:00Z","price":"45678.12",'
        b'"quantity":"0.12345678","side":"buy","stop_price":"45700","symbol":"BTCUSDT",'
        b'"time_in_force":"gtd","type":"stop_limit"}'
    )


@pytest.mark.parametrize("name", sorted(ENVELOPE_FIELDS))
def test_a_field_of_the_envelope_is_kept_and_is_not_content(name: str) -> None:
    changed = valid(flat(**{name: "2"}))
    assert changed.content_hash == hash_of(flat())
    assert name == "order_id" or changed.extra == f'{{"{name}":"2"}}'


@pytest.mark.parametrize(
    "changes",
    [
        {"account": "beta"},
        {"account": None},
        {"account": "Alpha"},
        {"account": "alpha "},
        {"symbol": "BTCUSDC"},
        {"symbol": "btcusdt"},
        {"side": "sell"},
        {"side": "sell_short"},
        {"type": "market", "price": None},
        {"type": "stop", "price": None, "stop_price": "45678.12"},
        {"type": "stop_limit", "stop_price": "45678.12"},
        {"quantity": "0.12345679"},
        {"quantity": "0.123456780000000001"},
        {"price": "45678.13"},
        {"price": "-45678.12"},
        {"price": "4567812"},
        {"time_in_force": "day"},
        {"time_in_force": "gtd", "expire_time": "2026-03-01T17:30:00Z"},
        {"time_in_force": "gtd", "expire_time": "2026-03-01T17:30:01Z"},
        {"time_in_force": "gtd", "expire_time": "2026-03-01T17:30:00.000001Z"},
        {"time_in_force": "gtd", "expire_time": "2026-03-01T17:30:00+01:00"},
        {"nonce": "1"},
        {"nonce": "2"},
        {"nonce": ""},
        {"": "1"},
        {"Account": "alpha"},
        {"Trace_id": "1"},
        {"trace_id ": "1"},
    ],
    ids=str,
)
def test_a_changed_field_is_another_order(changes: dict[str, str | None]) -> None:
    others = [flat(), flat(nonce="3")]
    assert hash_of(flat(**changes)) not in {hash_of(fields) for fields in others}


def test_values_do_not_run_into_one_another() -> None:
    hashes = [
        hash_of(flat(a="1", b="2")),
        hash_of(flat(a="12", b="")),
        hash_of(flat(a='1","b":"2')),
        hash_of(flat(ab="12")),
        hash_of(flat(account='alpha","price":"1')),
    ]
    assert len(set(hashes)) == len(hashes)


def test_a_number_in_an_extra_field_of_text_is_text() -> None:
    assert hash_of(flat(nonce="1")) != hash_of(flat(nonce="1.0"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("é", "e\u0301"),
        ("\u212b", "\u00e5".upper()),
        ("\ud55c", "\u1112\u1161\u11ab"),
        ("\u2126", "Ω"),
    ],
    ids=ascii,
)
def test_text_is_compared_in_nfc_and_kept_as_sent(one: str, other: str) -> None:
    for fields in ({"account": one}, {"note": one}, {one: "1"}):
        others = {
            name.replace(one, other): text.replace(one, other) for name, text in fields.items()
        }
        assert hash_of(flat(**fields)) == hash_of(flat(**others))
    assert hash_of(payload_text(f'"a": [{{"{one}": "{one}"}}]')) == hash_of(
        payload_text(f'"a": [{{"{other}": "{other}"}}]')
    )
    assert valid(flat(account=other)).account == other
    assert valid(flat(note=other)).extra == f'{{"note":"{other}"}}'


def test_compatible_characters_are_not_the_same() -> None:
    assert hash_of(flat(note="ﬁ")) != hash_of(flat(note="fi"))
    assert hash_of(flat(note="\uff11")) != hash_of(flat(note="1"))


def test_names_are_sorted_by_code_point_and_not_by_utf16_unit() -> None:
    content = canonical(flat(**{"\uffee": "1", "\U00010000": "2", "z": "3", "é": "4"})).decode()
    assert re.findall(r'"(\w|\W)":', content) == ["z", "é", "\uffee", "\U00010000"]


def test_only_quotes_and_backslashes_are_escaped() -> None:
    note = 'a"b\\c/\u2028\u2029é\U0001f4c8\u00ad\ufeff'
    expected = '"note":"a\\"b\\\\c/\u2028\u2029é\U0001f4c8\u00ad\ufeff"'
    assert expected.encode() in canonical(flat(note=note))


def test_the_envelope_can_be_set_and_order_id_is_never_content() -> None:
    nonces = [parse(flat(nonce=nonce), frozenset({"nonce"})) for nonce in "12"]
    traces = [parse(flat(trace_id=trace_id), frozenset({"nonce"})) for trace_id in "12"]
    assert len({order.content_hash for order in nonces if isinstance(order, Order)}) == 1
    assert len({order.content_hash for order in traces if isinstance(order, Order)}) == 2
    assert canonical(flat(order_id="B"), frozenset()) == canonical(flat())


def test_no_canonical_content_of_what_is_no_order() -> None:
    with pytest.raises(ValueError, match="quantity must be above zero"):
        canonical(flat(quantity="0"))


# --- a plain reading of the rules ---

Content = tuple[object, ...]


def content_of(fields: Sequence[str]) -> Content:
    """What of a valid order is content, in values that are equal when content is."""
    given: dict[str, object] = dict(zip(fields[::2], fields[1::2], strict=True))
    if "payload" in given:
        text = cast("str", given["payload"])
        given = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    model = {name: None if given.get(name) == "" else given.get(name) for name in MODEL}
    expires = model["expire_time"] and datetime.fromisoformat(str(model["expire_time"]).upper())
    decimals = [None if model[n] is None else Decimal(str(model[n])) for n in DECIMALS]
    text = [nfc(str(model[name] or "")) for name in ("account", "symbol")]
    words = [str(model[name] or "gtc").lower() for name in ("side", "type", "time_in_force")]
    others = {n: v for n, v in given.items() if n not in {*MODEL, "order_id"} | ENVELOPE_FIELDS}
    return (expires, *decimals, *text, *words, value_of(others))


MODEL = ("account", "symbol", "side", "type", "quantity", "price", "stop_price", "time_in_force",
         "expire_time")  # fmt: skip
DECIMALS = ("quantity", "price", "stop_price")


def value_of(value: object) -> Content:
    """A JSON value as something equal for equal ones, its kind beside it: 1 is not true."""
    match value:
        case str(text):
            return ("text", nfc(text))
        case list():
            return ("list", *map(value_of, cast("list[object]", value)))
        case dict():
            members = cast("dict[str, object]", value).items()
            return ("object", frozenset((nfc(name), value_of(item)) for name, item in members))
        case _:
            return (type(value), value)


# --- orders of a few values each, spelled in many ways, so that equal ones meet ---

AMOUNTS = st.sampled_from(["0.1", "1", "1.25", "10", "12.5", "1000", "0.000000000000000001"])
TEXTS = st.sampled_from(["", "a", "b", "A", "é", "e\u0301", 'q"\\', "1", "null", "\U0001f4c8"])
NAMES = st.sampled_from(
    ["nonce", "strategy", "é", "e\u0301", "Z", "\uffee", "\U00010000", "ts", "trace_id"]
)
INSTANTS = st.sampled_from(["2026-03-01T17:30:00", "2026-03-01T17:30:01", "2026-03-01T17:30:00.5"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | TEXTS | AMOUNTS.map(Decimal) | st.just(Decimal(0)),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@st.composite
def orders(draw: st.DrawFn) -> dict[str, object]:
    """The fields of a valid order; a Decimal is an amount, to be spelled in any way."""
    kind = draw(st.sampled_from(sorted(PRICES)))
    order: dict[str, object] = {
        "symbol": draw(st.sampled_from(["A", "B"])),
        "side": draw(st.sampled_from(["buy", "sell"])),
        "type": kind,
        "quantity": Decimal(draw(AMOUNTS)),
        **{name: draw(st.sampled_from([-1, 1])) * Decimal(draw(AMOUNTS)) for name in PRICES[kind]},
    }
    if account := draw(TEXTS):
        order["account"] = account
    if draw(st.booleans()):
        order |= {"time_in_force": "gtd", "expire_time": draw(INSTANTS)}
    return order | draw(st.dictionaries(NAMES, JSON_VALUES, max_size=2))


@st.composite
def spelled(draw: st.DrawFn, order: Mapping[str, object]) -> list[str]:
    """An entry that holds the order, in one of the many ways to write it."""
    given: dict[str, object] = {"order_id": draw(st.sampled_from(["1", "2"]))}
    for name, value in draw(st.permutations(list(order.items()))):
        if name in {"side", "type", "time_in_force"}:
            given[name] = draw(st.sampled_from([str.lower, str.upper, str.title]))(str(value))
        elif name == "expire_time":
            given[name] = f"{value}{draw(st.sampled_from(['Z', 'z', '+00:00', '-0000']))}"
        else:
            given[name] = value
    given |= draw(st.sampled_from([{}, {"time_in_force": ""}, {"time_in_force": "GTC"}])) if (
        "time_in_force" not in given) else {}  # fmt: skip
    flat_form = all(isinstance(value, str | Decimal) for value in given.values())
    if flat_form and draw(st.booleans()):
        return [str(word) for n, v in given.items() for word in (n, draw(flat_spelling(v)))]
    members = [f"{json.dumps(name)}: {draw(json_spelling(name, v))}" for name, v in given.items()]
    return ["payload", "{" + ", ".join(members) + "}"]


@st.composite
def flat_spelling(draw: st.DrawFn, value: object) -> str:
    """A Decimal or a text as the value of a flat field."""
    if not isinstance(value, Decimal):
        return str(value)
    text = draw(json_number(value))
    return draw(st.sampled_from([text, text if value < 0 else f"+{text}", text.replace("0.", ".", 1)
                                 if text.startswith("0.") else text]))  # fmt: skip


@st.composite
def json_number(draw: st.DrawFn, value: Decimal) -> str:
    """A Decimal as a number of JSON: plain, with trailing zeros, or with an exponent."""
    plain = f"{value:f}"
    longer = plain + ("0" if "." in plain else ".0")
    shift = draw(st.integers(-3, 3))
    power = f"{shift:{draw(st.sampled_from(['d', '+d']))}}"
    shifted = f"{value.scaleb(-shift):f}{draw(st.sampled_from('eE'))}{power}"
    return draw(st.sampled_from([plain, longer, shifted]))


@st.composite
def json_spelling(draw: st.DrawFn, name: str, value: object) -> str:
    """A value as JSON text, names of objects in any order."""
    match value:
        case Decimal():
            number = draw(json_number(value))
            return draw(st.sampled_from([number, f'"{number}"'])) if name in DECIMALS else number
        case list():
            items = cast("list[object]", value)
            return f"[{', '.join([draw(json_spelling('', item)) for item in items])}]"
        case dict():
            members = draw(st.permutations(list(cast("dict[str, object]", value).items())))
            return (
                "{"
                + ",".join([f"{json.dumps(n)}:{draw(json_spelling('', v))}" for n, v in members])
                + "}"
            )
        case _:
            return json.dumps(value, ensure_ascii=draw(st.booleans()))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Two entries: one order twice, one with a field changed or taken away, or two orders."""
    order = draw(orders())
    other = draw(orders())
    if draw(st.integers(0, 4)):
        changed = draw(st.sets(st.sampled_from(sorted(order)), max_size=1))
        other = order | {name: other[name] for name in changed if name in other}
        other = {name: value for name, value in other.items() if name in PRICES[str(other["type"])]
                 or name not in {"price", "stop_price"}}  # fmt: skip
    return draw(spelled(order)), draw(spelled(other))


@settings(max_examples=300)
@given(pairs())
def test_hashes_are_equal_just_where_content_is(entries: tuple[list[str], list[str]]) -> None:
    one, other = map(parse, entries)
    if isinstance(one, Order) and isinstance(other, Order):
        same = content_of(entries[0]) == content_of(entries[1])
        assert same == (one.content_hash == other.content_hash)
    else:  # names that NFC makes equal, or a price that its changed type lacks
        codes = {found.code for found in (one, other) if isinstance(found, Malformed)}
        assert codes <= {"duplicate_field", "price_missing", "stop_price_missing"}


@given(orders().flatmap(spelled))
def test_canonical_content_is_json_with_sorted_names_and_is_its_own_canonical_form(
    fields: list[str],
) -> None:
    order = parse(fields)
    if isinstance(order, Malformed):
        assert order.code == "duplicate_field"
        return
    content = canonical(fields)
    json.loads(content, object_pairs_hook=sorted_names)
    again = ["payload", '{"order_id": "x", ' + content.decode()[1:]]
    assert canonical(again) == content
    assert order.content_hash == sha256(b"ordergate.order.v1\n" + content).digest()
    assert valid(again).content_hash == order.content_hash


def sorted_names(members: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in members]
    assert names == sorted(set(names))
    return dict(members)


# --- whatever is sent, an order or a rejection comes of it ---

NASTY = st.text(st.characters(exclude_categories=[]), max_size=12) | st.sampled_from(
    [
        "",
        "\0",
        "\udcff",
        "\ud800",
        "\n",
        "1e999999999",
        "NaN",
        "-0",
        "\u212a",
        "0" * 99,
        "[" * 999,
        "\ufdd0",
    ]
)
PLAUSIBLE = {
    "order_id": NASTY | st.just("A-17"),
    "account": NASTY,
    "symbol": st.just("A") | NASTY,
    "side": st.sampled_from(["buy", "SELL", "hold"]) | NASTY,
    "type": st.sampled_from([*PRICES, "LIMIT", "iceberg"]) | NASTY,
    "quantity": st.from_regex(r"[+-]?\d{0,3}\.?\d{0,3}([eE][+-]?\d{1,3})?", fullmatch=True) | NASTY,
    "price": st.decimals(allow_nan=True, allow_infinity=True).map(str) | NASTY,
    "stop_price": st.floats().map(str) | NASTY,
    "time_in_force": st.sampled_from(["gtc", "gtd", "GTD", "day"]) | NASTY,
    "expire_time": st.datetimes().map(lambda at: f"{at.isoformat()}Z") | NASTY,
    "ts": NASTY,
    "note": NASTY,
    "payload": NASTY | st.just(json.dumps(LIMIT)),
}


@st.composite
def any_fields(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Names and values, many of them nearly right."""
    names = draw(st.lists(st.sampled_from(sorted(PLAUSIBLE)), max_size=14))
    known = [(name, draw(PLAUSIBLE[name])) for name in names]
    order = list(LIMIT.items()) if draw(st.booleans()) else []
    return draw(
        st.permutations(order + known + draw(st.lists(st.tuples(NASTY, NASTY), max_size=3)))
    )


@settings(max_examples=300)
@given(any_fields())
def test_any_names_and_values_end_as_an_order_or_a_rejection(pairs: list[tuple[str, str]]) -> None:
    check(parse([text for pair in pairs for text in pair]))


ANY_JSON = st.recursive(
    st.none() | st.booleans() | NASTY | st.integers() | st.floats() | st.integers(10**17, 10**40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NASTY, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from(sorted(PLAUSIBLE)) | NASTY, ANY_JSON, max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_any_json_ends_as_an_order_or_a_rejection(
    members: dict[str, object], plausible: bool, escaped: bool
) -> None:
    document = {**LIMIT, **members} if plausible else members
    check(parse(["payload", json.dumps(document, ensure_ascii=escaped)]))


@given(st.text() | st.binary().map(lambda sent: sent.decode(errors="surrogateescape")))
def test_any_text_as_a_payload_ends_as_an_order_or_a_rejection(text: str) -> None:
    check(parse(["payload", text]))


def check(found: Order | Malformed) -> None:
    """What comes out can be stored, whatever went in."""
    storable = [text for text in (found.order_id, found.symbol) if text is not None]
    if isinstance(found, Malformed):
        assert found.code in CODES
        assert len(found.reason) < 250
        storable += [found.code, found.reason]
    else:
        amounts = [text for text in (found.quantity, found.price, found.stop_price) if text]
        assert all(re.fullmatch(r"-?\d{1,19}(\.\d{1,45})?", text) for text in amounts)
        assert Decimal(found.quantity) > 0
        assert len(found.content_hash) == 32
        assert found.extra is None or isinstance(json.loads(found.extra), dict)
        storable += [text for text in (found.account, found.extra) if text]
    for text in storable:
        text.encode()
        assert re.search(r"[\x00-\x1f\x7f-\x9f]", text) is None


def test_a_payload_and_its_flat_form_hash_the_same() -> None:
    assert hash_of(payload()) == hash_of(flat())


# --- text in NFC ---

MARKS = "".join(char for char in map(chr, range(0x110000)) if unicodedata.combining(char))
STARTERS = "aé\u1ea5\u1112\u1161\u11ab\u0cc6\u0cc2\u0cd5\u0958\U0001d15e漢"


SHORT_TEXT = st.text(st.sampled_from(MARKS), max_size=20) | st.text(
    st.sampled_from(MARKS) | st.sampled_from(STARTERS), max_size=60
)


@given(st.lists(st.tuples(SHORT_TEXT, st.integers(0, 40)), max_size=5))
def test_text_of_characters_that_python_knows_is_in_its_nfc(parts: list[tuple[str, int]]) -> None:
    text = "".join(part * times for part, times in parts)
    expected = json.dumps(unicodedata.normalize("NFC", text), ensure_ascii=False)
    assert canonical(flat(note=text)).decode().partition('"note":')[2].startswith(expected)


@pytest.mark.parametrize(
    ("composed", "decomposed"),
    [("\U000105c9", "\U000105d2\u0307"), ("a\u0316\u0897", "a\u0897\u0316")],
)
def test_characters_newer_than_a_workers_python_have_one_form_too(
    composed: str, decomposed: str
) -> None:
    """Both are of Unicode 16.0, which Python knows from 3.14 on."""
    assert hash_of(flat(account=composed)) == hash_of(flat(account=decomposed))


@pytest.mark.parametrize("run", ["\u0301\u0316", "\u0f73", "\u0344\u0f81", "\u0f75\u0316"])
def test_a_long_run_of_marks_takes_no_time_whatever_it_is_made_of(run: str) -> None:
    """Sorted by insertion each would be a second, and more."""
    note = f"a{run * (20_000 // len(run))}x"
    begun = thread_time()
    content = canonical(flat(note=note)).decode().partition('"note":')[2]
    assert thread_time() - begun < 0.3
    assert unicodedata.is_normalized("NFC", content)


@pytest.mark.parametrize("form", ["flat", "payload"])
def test_many_combining_marks_in_the_wrong_order_take_no_time(form: str) -> None:
    note = f"a{chr(0x301) * 12_000}{chr(0x316) * 12_000}x"
    fields = flat(note=note) if form == "flat" else payload_text(f'"note": "{note}"')
    begun = thread_time()
    content = canonical(fields).decode().partition('"note":')[2]
    assert thread_time() - begun < 0.3  # sorted by insertion it is a second
    assert content.startswith('"\u00e1' + "\u0316" * 12_000 + "\u0301" * 11_999 + "x")
