"""Entries made from others by chance: right orders spelled otherwise, nearly right ones, and nonsense.

Knows the grammar of entries, of JSON and of decimals, so that much of it gets past the first check.
Everything follows from the `Random` it is given.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from random import Random
from typing import cast

from scripts.replay.reference import MODEL, PRICED, SIDES, STOP_PRICED, TIMES_IN_FORCE, TYPES

Fields = list[str]

NAMES = [
    *sorted(MODEL),
    "ts",
    "trace_id",
    "note",
    "é",
    "e\u0301",
    "",
    "payload",
    "K",
    "\u212a",
    "Ts",
]
DECIMALS = [
    "1",
    "1.0",
    "0.1",
    "+1",
    "001.00",
    "1.",
    ".5",
    "10e-1",
    "1E+1000000",
    "1e-1000000",
    "-0",
    "-0.00",
    "0e5",
    "0e18",
    "0e19",
    "0e-45",
    "0e-46",
    "1e18",
    "1.0e18",
    "1e-18",
    "9" * 28,
    "1" * 29,
    "0." + "0" * 17 + "1",
    "0." + "0" * 18 + "1",
    "1e0000000001",
    "NaN",
    "Infinity",
    "-Infinity",
    "1_000",
    "\uff11",
    "0x10",
    "1,5",
    "--1",
    "1e",
    "e1",
    "1e+",
    "45678.12",
    "-37.630",
    "1e999999999999999999",
    "0e-999",
    "000",
    ".",
    "-",
    " 1",
]
INSTANTS = [
    "2026-03-01T17:30:00Z",
    "2026-03-01t17:30z",
    "2026-03-01 18:30:00+01:00",
    "2026-03-01T17:30:00.000000Z",
    "2026-03-01T17:30:00.5-0000",
    "0001-01-01T00:00:00+00:01",
    "9999-12-31T23:59:59.999999Z",
    "2026-02-29T00:00:00Z",
    "2026-03-01T24:00:00Z",
    "2026-03-01T17:30:60Z",
    "20260301T173000Z",
    "2026-W09-7T00:00Z",
    "2026-03-01T17:30:00",
    "2026-03-01T17:30:00+24:00",
    "2026-03-01",
]
TEXTS = [
    "",
    " ",
    "a",
    "A",
    "é",
    "e\u0301",
    "\u212b",
    "\u1ea5\u0323",
    "\u1112\u1161\u11ab",
    "\ud55c",
    "\U0001f4c8",
    "\u202edrow",
    "\u2066x\u2069",
    "\ufeff",
    "\ufffd",
    "\ufdd0",
    "\U0010ffff",
    "\u2028",
    "\u00a0",
    "\u00ad",
    "\0",
    "\n",
    "\r",
    "\t",
    "\x1b[31m",
    "\x7f",
    "\x85",
    "\udcff",
    "\udc80",
    "\udced\udca0\udc80",
    '"',
    "\\",
    '\\"',
    "'",
    ",",
    "=",
    "\\,",
    "\\n",
    " x=1",
    "\norders,outcome=accepted x=1",
    '" 1',
    "{}",
    "[]",
    "null",
    "true",
    "$1",
    "'; DROP TABLE orders; --",
    "\u0130",
    "\u017f",
    "\ufb01",
    "\u0344",
    "\u0301\u0316",
    "x" * 64,
    "x" * 65,
    "é" * 128,
    "BTCUSDT",
    "A/B:C.D-E_F",
]
JSON_TOKENS = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "\\",
    "\\u0000",
    "\\ud800",
    "\\udc00",
    "\\ud83d\\udcc8",
    "\\u00e9",
    "\\n",
    "\\/",
    "\\x",
    "\\u12",
    "null",
    "true",
    "false",
    "NaN",
    "Infinity",
    "-Infinity",
    "1E+1000000",
    "-0",
    "01",
    "1.",
    ".5",
    "0e19",
    "1" * 29,
    "{}",
    "[]",
    '""',
    '"a":1',
    '"a":1,"a":1',
    '"\\u0061":1',
    '"é":1,"e\u0301":1',
    "[" * 17,
    "]" * 17,
    '{"a":' * 17,
    "[" * 1000,
    " ",
    "\n",
    "\t",
    "\ufeff",
    "//",
    "/**/",
    "\0",
    "\udcff",
    "1e5",
    '"side":"BUY"',
    '"price":1.50',
    '"account":null',
    '"order_id":17',
    '"ts":[1e400]',
    '"quantity":"1.0"',
]
WORDS = {
    "side": [*sorted(SIDES), "BUY", "Sell", "bu\u0130", "hold"],
    "type": [*sorted(TYPES), "LIMIT", "\u212aimit", "iceberg"],
    "time_in_force": [*sorted(TIMES_IN_FORCE), "GTD", "Day"],
    "expire_time": INSTANTS,
    "quantity": DECIMALS,
    "price": DECIMALS,
    "stop_price": DECIMALS,
}
SURROGATE = re.compile("[\ud800-\udfff]")
CHARACTERS = ' "\\,={}[]:0123456789.eE+-éß\u0301\U0001f4c8'
INFLATED_BYTES = 65_600  #: a little more than an entry may hold


def mutated(chance: Random, corpus: Sequence[Fields]) -> Fields:
    """An entry of the corpus, or a valid one, changed a few times."""
    fields = valid(chance) if chance.random() < 0.7 else list(chance.choice(corpus))
    for _ in range(chance.choice((0, 0, 0, 1, 1, 1, 2, 3, 5))):
        is_payload = len(fields) == 2 and fields[0] == "payload"
        fields = chance.choice(PAYLOAD_MUTATIONS if is_payload else FLAT_MUTATIONS)(chance, fields)
    if chance.random() < 0.001:
        fields = inflated(chance, fields)
    return fields


def valid(chance: Random) -> Fields:
    """A valid order out of few values, so that equal ones meet, in one of its spellings."""
    kind = chance.choice(sorted(TYPES))
    order = {
        "order_id": chance.choice(["A-1", "A-2", "é", 'q"\\,= ']),
        "symbol": chance.choice("AB"),
        "side": _cased(chance, chance.choice(sorted(SIDES))),
        "type": _cased(chance, kind),
        "quantity": respelled(chance, chance.choice(["1", "0.25"])),
    }
    for name, kinds in (("price", PRICED), ("stop_price", STOP_PRICED)):
        if kind in kinds:
            order[name] = respelled(chance, chance.choice(["1", "-2.5", "0"]))
    if chance.random() < 0.3:
        order["account"] = chance.choice(["a", "é", "e\u0301"])
    if chance.random() < 0.2:
        order |= {
            "time_in_force": _cased(chance, "gtd"),
            "expire_time": chance.choice(INSTANTS[:4]),
        }
    if chance.random() < 0.3:
        order[chance.choice(["note", "é", "e\u0301", "ts"])] = chance.choice(TEXTS)
    pairs = list(order.items())
    if chance.random() < 0.2:  # mostly not: a producer keeps to one order
        chance.shuffle(pairs)
    fields = [word for pair in pairs for word in pair]
    return as_payload(chance, fields) if chance.random() < 0.4 else fields


def attacks() -> list[Fields]:
    """Each text in each place where one may stand, in an order that is right otherwise."""
    base = {"order_id": "A-1", "symbol": "A", "side": "buy", "type": "market", "quantity": "1"}
    places = [name for name in base if name != "quantity"]
    flat = [{**base, place: text} for place in (*places, "account", "note") for text in TEXTS]
    named = [{**base, text: "x"} for text in TEXTS]
    entries = [[word for pair in order.items() for word in pair] for order in (*flat, *named)]
    chance = Random(0)  # noqa: S311 - for how they are written only
    return entries + [as_payload(chance, fields) for fields in entries if _is_utf8(fields)]


def _is_utf8(fields: Fields) -> bool:
    return SURROGATE.search("".join(fields)) is None


def _cased(chance: Random, text: str) -> str:
    return chance.choice((str.lower, str.upper, str.title, str.lower))(text)


def respelled(chance: Random, text: str) -> str:
    """The same decimal in other words, where it is a plain one."""
    match chance.randrange(6):
        case 0:
            return text + ("0" if "." in text else ".0")
        case 1:
            return text + "0" * chance.randrange(1, 4) + "e-0" if "." in text else text + "e0"
        case 2 if "." not in text and text != "0":
            return text + "0e-1"
        case 3 if not text.startswith("-"):
            return "+" + text
        case 4 if not text.startswith("-"):
            return "00" + text
        case _:
            return text


# --- mutations of flat fields ---


def _replace_value(chance: Random, fields: Fields) -> Fields:
    at = _value_at(chance, fields)
    known = WORDS.get(fields[at - 1], TEXTS)
    return _with(fields, at, chance.choice(known if chance.random() < 0.8 else TEXTS))


def _edit_word(chance: Random, fields: Fields) -> Fields:
    at = chance.randrange(len(fields)) if fields else 0
    return _with(fields, at, edited(chance, fields[at], TEXTS)) if fields else ["", ""]


def _respell(chance: Random, fields: Fields) -> Fields:
    at = _value_at(chance, fields)
    if fields[at - 1] in ("quantity", "price", "stop_price"):
        return _with(fields, at, respelled(chance, fields[at]))
    change = chance.choice((str.upper, str.lower, _nfd, _nfc))
    return _with(fields, at, change(fields[at]))


def _add(chance: Random, fields: Fields) -> Fields:
    return [*fields, chance.choice(NAMES), chance.choice(TEXTS)]


def _repeat(chance: Random, fields: Fields) -> Fields:
    at = _value_at(chance, fields)
    return [*fields, *fields[at - 1 : at + 1] * chance.choice((1, 1, 60))]


def _drop(chance: Random, fields: Fields) -> Fields:
    at = _value_at(chance, fields)
    return fields[: at - 1] + fields[at + 1 :]


def _shuffle(chance: Random, fields: Fields) -> Fields:
    pairs = list(zip(fields[::2], fields[1::2], strict=True))
    chance.shuffle(pairs)
    return [word for pair in pairs for word in pair]


def _rename(chance: Random, fields: Fields) -> Fields:
    return _with(fields, _value_at(chance, fields) - 1, chance.choice(NAMES))


def _many(chance: Random, fields: Fields) -> Fields:
    extra = [word for n in range(chance.choice((50, 56, 58, 60))) for word in (f"n{n}", "")]
    return [*fields, *extra]


def as_payload(chance: Random, fields: Fields) -> Fields:
    """The same as one JSON object, numbers as numbers or text."""
    members: list[str] = []
    escaped = chance.random() < 0.5
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        number = name in ("quantity", "price", "stop_price") and chance.random() < 0.5
        text = value if number else json.dumps(value, ensure_ascii=escaped)
        members.append(f"{json.dumps(name, ensure_ascii=escaped)}:{text}")
    if chance.random() < 0.3:
        members.append(f'"legs":{_json(chance, 3)}')
    return ["payload", "{" + chance.choice((",", ", ", ",\n")).join(members) + "}"]


def _with(fields: Fields, at: int, word: str) -> Fields:
    return [*fields[:at], word, *fields[at + 1 :]]


def _value_at(chance: Random, fields: Fields) -> int:
    """The place of a value; an empty entry is given one first."""
    if not fields:
        fields += ["", ""]
    return 2 * chance.randrange(len(fields) // 2) + 1


# --- mutations of payloads ---


def _insert_token(chance: Random, fields: Fields) -> Fields:
    text = fields[1]
    marks = [at for at, char in enumerate(text[:2_000]) if char in '{}[],:"'] or [0]
    at = chance.choice(marks) + chance.randrange(2)
    return ["payload", text[:at] + chance.choice(JSON_TOKENS) + text[at:]]


def _add_member(chance: Random, fields: Fields) -> Fields:
    name = json.dumps(chance.choice(NAMES), ensure_ascii=chance.random() < 0.5)
    head, brace, tail = fields[1].rpartition("}")
    return ["payload", f"{head},{name}:{_json(chance, 4)}{brace}{tail}"]


def _wrap(chance: Random, fields: Fields) -> Fields:
    """A value deeper by some levels."""
    head, colon, tail = fields[1].rpartition(":")
    value, brace, rest = tail.partition("}")
    levels = chance.choice((1, 2, 14, 15, 16, 17, 18, 400))
    left, right = chance.choice((("[", "]"), ('{"a":', "}")))
    return ["payload", head + colon + left * levels + value + right * levels + brace + rest]


def _edit_text(chance: Random, fields: Fields) -> Fields:
    return ["payload", edited(chance, fields[1], JSON_TOKENS)]


def _flip_bytes(chance: Random, fields: Fields) -> Fields:
    raw = bytearray(fields[1].encode(errors="surrogateescape"))
    for _ in range(chance.randrange(1, 4)):
        if raw:
            raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    return ["payload", raw.decode(errors="surrogateescape")]


def _to_flat(chance: Random, fields: Fields) -> Fields:
    try:
        members = json.loads(fields[1], parse_float=str, parse_int=str)
    except (ValueError, RecursionError):
        return [*fields, chance.choice(NAMES), "1"]
    if not isinstance(members, dict):
        return fields
    pairs = cast("dict[str, object]", members).items()
    found = [word for name, value in pairs for word in (name, str(value))]
    return found if _is_from_redis(found) else fields


def _is_from_redis(fields: Fields) -> bool:
    """Whether bytes could be decoded to this: other surrogates than those of `surrogateescape` cannot."""
    try:
        "".join(fields).encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _json(chance: Random, levels: int) -> str:
    """The text of a JSON value."""
    match chance.randrange(8 if levels else 5):
        case 0:
            return chance.choice(DECIMALS)
        case 1:
            return chance.choice(("1", "1.0", "0.1e1", "10E-1", "-0", "2"))
        case 2:
            return chance.choice(("null", "true", "false"))
        case 3 | 4:
            return json.dumps(chance.choice(TEXTS), ensure_ascii=chance.random() < 0.5)
        case 5:
            return f"[{','.join(_json(chance, levels - 1) for _ in range(chance.randrange(4)))}]"
        case _:
            names = chance.sample(NAMES, chance.randrange(4))
            members = [f"{json.dumps(name)}:{_json(chance, levels - 1)}" for name in names]
            return f"{{{','.join(members)}}}"


# --- mutations of any text ---


def edited(chance: Random, text: str, tokens: Sequence[str]) -> str:
    """The text with something put in, taken out, doubled or changed."""
    at = chance.randrange(len(text) + 1)
    end = min(len(text), at + chance.choice((0, 1, 1, 2, 8)))
    match chance.randrange(6):
        case 0:
            return text[:at] + chance.choice(tokens) + text[end:]
        case 1:
            return text[:at] + text[end:]
        case 2:
            return text[:end] + text[at:]
        case 3:
            return text[:at] + text[at:end] * chance.choice((2, 3, 64)) + text[end:]
        case 4:
            return _nfd(text)
        case _:
            return text[:at] + chance.choice(CHARACTERS) + text[end:]


def inflated(chance: Random, fields: Fields) -> Fields:
    """The entry with one of its texts as long as an entry may be, or a little longer."""
    tokens = [token for token in (*TEXTS, *JSON_TOKENS, "\u0301", "1,", "[],", '"a",') if token]
    unit = "".join(chance.choice(tokens) for _ in range(chance.randrange(1, 3)))
    room = chance.choice((8_000, INFLATED_BYTES - 500, INFLATED_BYTES))
    much = unit * (room // len(unit.encode(errors="surrogateescape")))
    at = _value_at(chance, fields)
    cut = chance.randrange(len(fields[at]) + 1)
    return _with(fields, at, fields[at][:cut] + much + fields[at][cut:])


def _nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text[:4_000]) + text[4_000:]


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text[:4_000]) + text[4_000:]


Mutation = Callable[[Random, Fields], Fields]
FLAT_MUTATIONS: list[Mutation] = [
    *(_replace_value, _edit_word, _respell, as_payload) * 2,
    *(_add, _repeat, _drop, _shuffle, _rename, _many),
]
PAYLOAD_MUTATIONS: list[Mutation] = [
    *(_insert_token, _add_member, _edit_text) * 2,
    *(_wrap, _flip_bytes, _to_flat),
]
