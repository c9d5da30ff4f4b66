"""Every rejection code, the entries that get it, and the sentence it comes with."""

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import pytest

from tests.unit import (
    BYTES_MAX,
    FIELDS_MAX,
    GTD,
    LIMIT,
    PRICES,
    flat,
    payload,
    payload_of,
    payload_text,
    priced,
)
from worker import fields as entry_fields
from worker import order
from worker.fields import MODEL_FIELDS
from worker.order import Malformed, parse


class Case(NamedTuple):
    """An entry that is no order: the code it is rejected with, the rule it breaks, its fields."""

    code: str
    rule: str
    fields: list[str] | None


TOO_MANY = {f"x{n}": "" for n in range(FIELDS_MAX + 1 - len(LIMIT))}
LONG = '"' + ", [ {" * 2_000 + '",'
MANY_NAMES = ", ".join(f'"{n}": 1' for n in range(2_050))
SPACES = "\u00a0\u2003\u2028\u200b\u00ad\ufeff\ue000"  # nothing of it is printable

REJECTIONS = [
    # the entry
    Case("trimmed", "trimmed from its stream before it was read", None),
    Case("entry_too_large", "more than 64 KiB", flat(note="x" * BYTES_MAX)),
    Case("entry_too_large", "more than 64 KiB in UTF-8", flat(note="é" * (BYTES_MAX // 2))),
    Case("entry_too_large", "a payload of more than 64 KiB", payload(note="x" * BYTES_MAX)),
    Case("too_many_fields", "65 fields", flat(**TOO_MANY)),
    Case("too_many_fields", "65 in a payload", payload(**TOO_MANY)),
    Case("not_utf8", "a byte that is not UTF-8 in a value", flat(note="\udcff")),
    Case("not_utf8", "a byte that is not UTF-8 in a name", [*flat(), "\udcc3", "x"]),
    Case("not_utf8", "in the order_id", flat(order_id="A-\udc80")),
    Case("not_utf8", "in a payload", ["payload", '{"order_id":"\udc80"}']),
    Case("not_utf8", "an escape of a lone surrogate", payload_text(r'"note": "\ud800"')),
    Case("not_utf8", "an escape of the other kind", payload_text(r'"note": "\udc80"')),
    Case("not_utf8", "an escape of one, nested", payload_text(r'"note": [{"a": "\ud83dx"}]')),
    Case("not_utf8", "an escape of one in a name", payload_text(r'"\udfff": 1')),
    Case("not_utf8", "an escape of one in the order_id", payload(order_id="\ud800")),
    Case("not_utf8", "an escape of one, where text belongs", payload(account=["\ud800"])),
    Case("control_character", "an escape of NUL, where text belongs", payload(account={"\0": 1})),
    Case("control_character", "NUL", flat(note="a\0b")),
    Case("control_character", "a newline", flat(note="a\nb")),
    Case("control_character", "a newline in a name", [*flat(), "a\nb", "x"]),
    Case("control_character", "a tab in the order_id", flat(order_id="a\tb")),
    Case("control_character", "DEL", flat(note="\x7f")),
    Case("control_character", "of ISO 8859-1", flat(note="\x9f")),
    Case("control_character", "in a payload, not escaped", ["payload", '{"a":"\x7f"}']),
    Case("control_character", "NUL beside a payload's text", ["payload", "{}\0"]),
    Case("control_character", "an escape of NUL", payload_text(r'"note": "\u0000"')),
    Case("control_character", "an escape of a newline", payload_text(r'"note": ["a\nb"]')),
    Case("control_character", "an escape in a nested name", payload_text(r'"note": {"\t": 1}')),
    Case("control_character", "in a payload that has company", ["a", "\n", "payload", "{}"]),
    Case("duplicate_field", "a name twice", [*flat(), "symbol", "ETHUSDT"]),
    Case("duplicate_field", "a name twice, one value", [*flat(), "symbol", "BTCUSDT"]),
    Case("duplicate_field", "an extra name twice", [*flat(), "a", "1", "a", "1"]),
    Case("duplicate_field", "two payloads", ["payload", "{}", "payload", "{}"]),
    Case("duplicate_field", "one name in NFC and NFD", [*flat(), "é", "1", "e\u0301", "1"]),
    Case("duplicate_field", "a name twice in a payload", payload_text('"symbol": "BTCUSDT"')),
    Case("duplicate_field", "twice by an escape", payload_text(r'"sym\u0062ol": "BTCUSDT"')),
    Case("duplicate_field", "twice in an object", payload_text('"a": [{"b": {"c": 1, "c": 1}}]')),
    Case("duplicate_field", "in an envelope field", payload_text('"ts": {"c": 1, "c": 1}')),
    Case("duplicate_field", "nested, in NFC and NFD", payload_text('"a": {"é": 1, "e\u0301": 1}')),
    # the payload
    Case("payload_not_alone", "a field beside the payload", [*payload(), "order_id", "A-17"]),
    Case("payload_not_alone", "a field before the payload", ["ts", "1", *payload()]),
    Case("payload_not_json", "text", ["payload", "order"]),
    Case("payload_not_json", "nothing", ["payload", ""]),
    Case("payload_not_json", "two objects", ["payload", "{}{}"]),
    Case("payload_not_json", "a byte order mark", ["payload", "\ufeff{}"]),
    Case("payload_not_json", "a comma too many", ["payload", '{"a": 1,}']),
    Case("payload_not_json", "a comment", ["payload", "{} // empty"]),
    Case("payload_not_json", "single quotes", ["payload", "{'a': 1}"]),
    Case("payload_not_json", "NaN", payload_text('"a": NaN')),
    Case("payload_not_json", "Infinity", payload_text('"a": [Infinity]')),
    Case("payload_not_json", "-Infinity as a price", ["payload", '{"price": -Infinity}']),
    Case("payload_not_json", "a number with a plus sign", ["payload", '{"quantity": +1}']),
    Case("payload_not_json", "a number without a whole part", ["payload", '{"quantity": .5}']),
    Case("payload_not_json", "a number without a fraction", ["payload", '{"quantity": 5.}']),
    Case("payload_not_json", "a number with leading zeros", ["payload", '{"quantity": 007}']),
    Case("payload_not_json", "a newline within text", ["payload", '{"note": "a\nb"}']),
    Case("payload_not_json", "half an escape", ["payload", r'{"note": "\u12"}']),
    Case("payload_not_object", "a list", ["payload", "[]"]),
    Case("payload_not_object", "text", ["payload", '"order"']),
    Case("payload_not_object", "a number", ["payload", "1E+1000000"]),
    Case("payload_not_object", "null", ["payload", "null"]),
    Case("payload_too_deep", "17 lists", payload_text(f'"a": {"[" * 17}1{"]" * 17}')),
    Case("payload_too_deep", "17 objects", payload_text('"a": ' + '{"a":' * 17 + "1" + "}" * 17)),
    Case("payload_too_deep", "too deep for any parser", ["payload", "[" * 60_000]),
    Case("payload_too_deep", "the same in an envelope field", payload_text('"ts": ' + "[" * 60_000)),
    Case("payload_too_deep", "in a field of text", payload_of("account", "[" * 900 + "]" * 900)),
    Case("payload_too_deep", "in a price", payload_of("price", '{"a":' * 400 + "1" + "}" * 400)),
    Case("payload_too_deep", "17 lists in much text", payload_text(f'"a": [{LONG}{"[" * 16}1{"]" * 16}]')),
    Case("too_many_values", "numbers that fill the entry", payload_text(f'"a": [{"1," * 30_000}1]')),
    Case("too_many_values", "lists that fill it", payload_text(f'"a": [{"[]," * 20_000}[]]')),
    Case("too_many_values", "objects side by side", payload_text(f'"a": [{"{}," * 2_100}{{}}]')),
    Case("too_many_values", "names of one object", payload_text(f'"a": {{{MANY_NAMES}}}')),
    Case("too_many_values", "in a field of text", payload_of("account", f'[{"1," * 30_000}1]')),
    Case("number_out_of_range", "a number of 29 digits", payload_text(f'"a": {"1" * 29}')),
    Case("number_out_of_range", "an exponent to fill memory", payload_text('"a": 1E+1000000')),
    Case("number_out_of_range", "the same, nested", payload_text('"a": [{"b": -1e-1000000}]')),
    Case("number_out_of_range", "in an envelope field", payload_text('"ts": {"a": [1e400]}')),
    # the model
    Case("order_id_missing", "no fields", []),
    Case("order_id_missing", "none", flat(order_id=None)),
    Case("order_id_missing", "empty", flat(order_id="")),
    Case("order_id_missing", "null", ["payload", '{"order_id": null}']),
    Case("order_id_invalid", "129 characters", flat(order_id="x" * 129)),
    Case("order_id_invalid", "a number", payload(order_id=17)),
    Case("order_id_invalid", "a number to fill memory", ["payload", '{"order_id": 1E+1000000}']),
    Case("order_id_invalid", "a list", payload(order_id=["A-17"])),
    *(Case("order_id_invalid", f"{c!a} is not printable", flat(order_id=c)) for c in SPACES),
    Case("account_invalid", "65 characters", flat(account="x" * 65)),
    Case("account_invalid", "a number", payload(account=17)),
    Case("account_invalid", "false", payload(account=False)),
    Case("symbol_missing", "none", flat(symbol=None)),
    Case("symbol_missing", "empty", flat(symbol="")),
    Case("symbol_invalid", "33 characters", flat(symbol="X" * 33)),
    *(
        Case("symbol_invalid", f"{symbol!a} holds others", flat(symbol=symbol))
        for symbol in ("BTC USDT", "A,B", "A=B", "A\\B", "A$", "É", "BT\u212a", "\uff22TC", "A٣")
    ),
    Case("symbol_invalid", "a number", payload(symbol=7203)),
    Case("side_missing", "none", flat(side=None)),
    Case("side_invalid", "unknown", flat(side="long")),
    Case("side_invalid", "another spelling", flat(side="sell-short")),
    Case("side_invalid", "a space", flat(side=" buy")),
    Case("side_invalid", "long s, whose upper case is S", flat(side="\u017fell")),
    Case("side_invalid", "a number", payload(side=1)),
    Case("type_missing", "empty", flat(type="")),
    Case("type_invalid", "unknown", flat(type="iceberg")),
    Case("type_invalid", "the kelvin sign, whose lower case is k", flat(type="mar\u212aet")),
    Case("type_invalid", "full width letters", flat(type="\uff4cimit")),
    Case("type_invalid", "an object", payload(type={"name": "limit"})),
    Case("time_in_force_invalid", "unknown", flat(time_in_force="gtx")),
    Case("time_in_force_invalid", "dotless i", flat(time_in_force="\u0131oc")),
    Case("time_in_force_invalid", "true", payload(time_in_force=True)),
    Case("quantity_missing", "none", flat(quantity=None)),
    Case("quantity_missing", "empty", flat(quantity="")),
    Case("quantity_invalid", "words", flat(quantity="ten")),
    Case("quantity_invalid", "true", payload(quantity=True)),
    Case("quantity_invalid", "a list", payload(quantity=[1])),
    Case("quantity_out_of_range", "too small", flat(quantity="1e-19")),
    Case("quantity_out_of_range", "too large, and negative", flat(quantity="-1e19")),
    Case("quantity_out_of_range", "a number", payload_of("quantity", "1E+1000000")),
    *(
        Case("quantity_not_positive", f"{text} is not above zero", flat(quantity=text))
        for text in ("0", "-1", "-0", "+0", "0.000", "0e5", "-1e-18", "-0.00", "00")
    ),
    Case("quantity_not_positive", "a number in a payload", payload(quantity=-1)),
    *(
        Case(f"{name}_missing", f"{kind} without {name}", flat(priced(kind), **{name: None}))
        for kind, names in PRICES.items()
        for name in names
    ),
    *(
        Case(f"{name}_missing", f"{kind} with an empty {name}", flat(priced(kind), **{name: ""}))
        for kind, names in PRICES.items()
        for name in names
    ),
    *(
        Case(f"{name}_unexpected", f"{kind} with {name}", flat(priced(kind), **{name: "0"}))
        for kind, names in PRICES.items()
        for name in sorted({"price", "stop_price"} - {*names})
    ),
    Case("price_unexpected", "though it is no number", flat(priced("market"), price="at best")),
    Case("price_invalid", "NaN", flat(price="NaN")),
    Case("price_invalid", "an object", payload(price={"amount": "1"})),
    Case("price_out_of_range", "29 digits", flat(price="1" * 29)),
    Case("stop_price_invalid", "Infinity", flat(priced("stop"), stop_price="Infinity")),
    Case("stop_price_invalid", "false", payload(priced("stop"), stop_price=False)),
    Case("stop_price_out_of_range", "too large", flat(priced("stop"), stop_price="1e19")),
    Case("expire_time_missing", "gtd without", flat(GTD, expire_time=None)),
    Case("expire_time_missing", "gtd with an empty one", flat(GTD, expire_time="")),
    Case("expire_time_unexpected", "with day", flat(GTD, time_in_force="day")),
    Case("expire_time_unexpected", "with the default", flat(GTD, time_in_force=None)),
    Case("expire_time_invalid", "a number", payload(GTD, expire_time=1772386200)),
    *(
        Case("expire_time_invalid", f"{text!a}", flat(GTD, expire_time=text))
        for text in (
            "2026-03-01T17:30:00",  # no offset
            "2026-03-01",
            "17:30:00Z",
            "1772386200",
            "now",
            "20260301T173000Z",
            "2026-W09-7T17:30:00Z",
            "2026-060T17:30:00Z",
            "2026-03-01T17Z",
            "2026-03-01T17:30:00.Z",
            "2026-03-01T17:30:00,5Z",
            "2026-03-01T17:30:00.1234567Z",  # nothing finer than microseconds is kept
            "2026-03-01T24:00:00Z",
            "2026-03-01T17:60:00Z",
            "2026-03-01T23:59:60Z",
            "2026-13-01T17:30:00Z",
            "2026-02-29T17:30:00Z",
            "2026-03-01T17:30:00+24:00",
            "2026-03-01T17:30:00+05:60",
            "2026-03-01T17:30:00+05",
            "2026-03-01T17:30:00 Z",
            "2026-03-01T17:30:00Z ",
            " 2026-03-01T17:30:00Z",
            "+2026-03-01T17:30:00Z",
            "2026-03-01T17:30:00UTC",
            "2026-03-01T17:30:00\u221205:00",
            "\uff12026-03-01T17:30:00Z",
            "0000-03-01T17:30:00Z",
            "0001-01-01T00:00:00+00:01",  # before the first year, once in UTC
            "9999-12-31T23:59:00-00:01",
        )
    ),
]  # fmt: skip

#: The grammar of JSON has no number that is no decimal, so this one can be written down and never occurs.
NEVER = {"number_invalid"}


@pytest.mark.parametrize("case", REJECTIONS, ids=lambda case: f"{case.code}: {case.rule}"[:60])
def test_an_entry_that_breaks_a_rule_is_rejected_with_its_code(case: Case) -> None:
    rejected = parse(case.fields)
    assert isinstance(rejected, Malformed), rejected
    assert rejected.code == case.code


@pytest.mark.parametrize("case", REJECTIONS, ids=lambda case: f"{case.code}: {case.rule}"[:60])
def test_a_rejection_says_in_one_short_sentence_what_was_expected(case: Case) -> None:
    rejected = parse(case.fields)
    assert isinstance(rejected, Malformed)
    assert 10 < len(rejected.reason) < 250
    assert re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", rejected.reason) is None


def test_the_table_reaches_every_code_of_the_source_and_no_other() -> None:
    assert {case.code for case in REJECTIONS} == codes_of_the_source() - NEVER


@pytest.mark.parametrize(
    "fields",
    [
        flat(side="up"),
        flat(quantity="0"),
        flat(account="x" * 65),
        flat(note="a\nb"),
        flat(note="\udcff"),
        [*flat(), "a", "1", "a", "1"],
        flat(**TOO_MANY),
        payload(side="up"),
        payload(account=17),
        payload_text('"note": 1E+1000000'),
        payload_text(r'"note": "\u0000"'),
    ],
    ids=lambda fields: getattr(parse(fields), "code", ""),
)
def test_a_rejection_carries_the_order_id_and_symbol_that_are_valid(fields: list[str]) -> None:
    rejected = parse(fields)
    assert isinstance(rejected, Malformed)
    assert (rejected.order_id, rejected.symbol) == ("A-17", "BTCUSDT")


def test_a_rejection_carries_no_order_id_and_symbol_that_are_invalid() -> None:
    rejected = parse(flat(order_id="x" * 129, symbol="?", side="up"))
    assert isinstance(rejected, Malformed)
    assert (rejected.order_id, rejected.symbol) == (None, None)
    assert parse(None) == Malformed(
        "trimmed", "the entry was trimmed from its stream before it was read"
    )


# --- the codes that stand in the source ---


def codes_of_the_source() -> set[str]:
    """Every code that `worker/fields.py` and `worker/order.py` can reject with, read from their text.

    A code is a literal, or f"{name}_…" in a function that is told the field's name; which names those are
    is gathered from all its callers. Where no caller tells it, it is any field of the model.
    """
    functions = [
        node
        for module in (entry_fields, order)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.FunctionDef)
    ]
    names = names_told(functions)
    return {
        code
        for function in functions
        for call in calls(function)
        if called(call) == "Refusal"
        for code in codes_of(call.args[0], names.get(function.name) or MODEL_FIELDS)
    }


def names_told(functions: list[ast.FunctionDef]) -> dict[str, set[str]]:
    """The values that each function's parameter `name` is given, through any number of calls."""
    position = {
        function.name: [parameter.arg for parameter in function.args.args].index("name")
        for function in functions
        if "name" in [parameter.arg for parameter in function.args.args]
    }
    told: dict[str, set[str]] = defaultdict(set)
    while True:
        before = sum(map(len, told.values()))
        for function in functions:
            for call in calls(function):
                callee = called(call)
                if callee in position:
                    argument = call.args[position[callee]]
                    told[callee] |= texts_of(argument, told[function.name])
        if sum(map(len, told.values())) == before:
            return told


def calls(function: ast.FunctionDef) -> Iterator[ast.Call]:
    return (node for node in ast.walk(function) if isinstance(node, ast.Call))


def called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def texts_of(argument: ast.expr, told: AbstractSet[str]) -> AbstractSet[str]:
    match argument:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.Name(id="name"):
            return told
        case _:
            raise AssertionError(f"cannot read the field's name from {ast.unparse(argument)}")


def codes_of(argument: ast.expr, told: AbstractSet[str]) -> AbstractSet[str]:
    match argument:
        case ast.Constant(value=str(code)):
            return {code}
        case ast.JoinedStr(
            values=[ast.FormattedValue(value=ast.Name(id="name")), ast.Constant(value=str(ending))]
        ):
            return {f"{name}{ending}" for name in told}
        case _:
            raise AssertionError(f"cannot read the code from {ast.unparse(argument)}")
