"""The order: what an entry decodes to, its validation, its canonical content and the hash of that.

Pure. The hash decides what is placed and what is suppressed, so producers in other languages must be able
to compute it too: `docs/content-hash.md` describes what `canonical` writes, with test vectors.

Fields arrive as text decoded with `surrogateescape`: bytes that are not UTF-8 are lone surrogates here,
found by one look at the text and turned back into the very bytes for the rejection.
"""

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from typing import NamedTuple, NoReturn, TypeVar, cast

import msgspec

HASH_TAG = b"ordergate.order.v1\n"
FIELDS_MAX = 64
BYTES_MAX = 64 * 1024
NORMALIZED_AT_ONCE = (
    256  #: characters of a text that `unicodedata.normalize` is quick with, whatever they are
)
DEPTH_MAX = 16  #: levels of lists and objects within a payload's extra fields
VALUES_MAX = (
    4096  #: names and values of a payload: each is an object in memory, its text two bytes or more
)

DIGITS_MAX = 28
SIZE_MIN, SIZE_MAX = Decimal("1e-18"), Decimal("1e18")
EXPONENT_MIN, EXPONENT_MAX = -45, 18  #: follow from the digits and sizes; they bound zeros as well

ENVELOPE_FIELDS = frozenset(
    {
        "order_id",
        "client_order_id",
        "timestamp",
        "ts",
        "sent_at",
        "trace_id",
        "traceparent",
    }
)
MODEL_FIELDS = frozenset(
    {
        "order_id",
        "account",
        "symbol",
        "side",
        "type",
        "quantity",
        "price",
        "stop_price",
        "time_in_force",
        "expire_time",
    }
)
DECIMAL_FIELDS = frozenset({"quantity", "price", "stop_price"})

SIDES = {name: name for name in ("buy", "sell", "sell_short")}
TIMES_IN_FORCE = {
    name: name for name in ("gtc", "day", "ioc", "fok", "gtd", "at_the_open", "at_the_close")
}


class OrderType(NamedTuple):
    """An order type and the prices it takes."""

    name: str
    price: bool
    stop_price: bool


TYPES = {
    kind.name: kind
    for kind in (
        OrderType("market", price=False, stop_price=False),
        OrderType("limit", price=True, stop_price=False),
        OrderType("stop", price=False, stop_price=True),
        OrderType("stop_limit", price=True, stop_price=True),
        OrderType("market_if_touched", price=False, stop_price=True),
        OrderType("limit_if_touched", price=True, stop_price=True),
        OrderType("trailing_stop", price=False, stop_price=True),
    )
}

SYMBOL = re.compile(r"[A-Za-z0-9._\-/:]{1,32}", re.ASCII)
#: The common notation: canonical but for trailing zeros, and within the bounds when 29 characters or fewer.
PLAIN_DECIMAL = re.compile(r"-?(?:0|[1-9]\d{0,17})(?:\.\d{1,18})?", re.ASCII)
ANY_DECIMAL = re.compile(r"[+-]?(?:(\d+)(?:\.(\d*))?|\.(\d+))(?:[eE]([+-]?)(\d+))?", re.ASCII)
INSTANT = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?([Zz]|[+-]\d\d:?[0-5]\d)", re.ASCII
)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
JSON_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  #: JSON may be indented
SURROGATE = re.compile(r"[\ud800-\udfff]")
#: A string of JSON, also one that does not end: else the search would begin anew at each quote within.
JSON_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
JSON_MARK = re.compile(rf"{JSON_STRING}|[\[{{\]}},:]", re.DOTALL)


class Order(msgspec.Struct, frozen=True, gc=False):
    """One valid order. Decimals are plain text, exact, with the trailing zeros they came with.

    `content_hash` is 32 bytes; `extra` is a JSON object as text, or None where there is none.
    A msgspec struct, not a dataclass: it is made once for each order, at a tenth of the cost.
    """

    content_hash: bytes
    order_id: str
    account: str | None
    symbol: str
    side: str
    type: str
    quantity: str
    price: str | None
    stop_price: str | None
    time_in_force: str
    expire_at: datetime | None
    extra: str | None


class Malformed(msgspec.Struct, frozen=True, gc=False):
    """Why an entry is no order: a code for programs, a sentence for people.

    `order_id` and `symbol` are the entry's own where these two are valid, for whoever looks for it.
    """

    code: str
    reason: str
    order_id: str | None = None
    symbol: str | None = None


class _Refusal(Exception):
    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        self.reason = reason


class _Number(str):
    """A JSON number, as the text it was written in."""

    __slots__ = ()


T = TypeVar("T")
Json = str | _Number | bool | None | list["Json"] | dict[str, "Json"]


def parse(
    fields: Sequence[str] | None, envelope: frozenset[str] = ENVELOPE_FIELDS
) -> Order | Malformed:
    """Turn an entry's fields into an order, or say which rule they break.

    :param fields: names and values in turn, decoded with `surrogateescape`; None where Redis has trimmed
        the entry away
    :param envelope: the fields that are not content
    """
    try:
        return _order(_named(fields), envelope)
    except _Refusal as refused:
        refusal = refused.with_traceback(None)  # which holds the payload, decoded
    return _malformed(refusal, fields or ())


def canonical(fields: Sequence[str], envelope: frozenset[str] = ENVELOPE_FIELDS) -> bytes:
    """The bytes whose hash, behind `HASH_TAG`, is the content hash of a valid order.

    :raises ValueError: the fields are no valid order
    """
    try:
        named = _named(fields)
        model = _model(cast("Mapping[str, str | None]", named))
        return _canonical(model, named, envelope).encode()
    except _Refusal as refusal:
        raise ValueError(refusal.reason) from None


def _malformed(refusal: _Refusal, fields: Sequence[str]) -> Malformed:
    named: Mapping[str, Json] = dict(zip(fields[::2], fields[1::2], strict=False))
    if fields[:1] == ["payload"] and len(fields[1]) <= BYTES_MAX:
        with suppress(_Refusal):  # where the payload is what is wrong
            named = _decoded(fields[1])
    order_id, symbol = named.get("order_id"), named.get("symbol")
    return Malformed(
        refusal.code,
        refusal.reason,
        order_id if isinstance(order_id, str) and _is_order_id(order_id) else None,
        symbol if isinstance(symbol, str) and SYMBOL.fullmatch(symbol) else None,
    )


# --- reading the fields ---


def _named(fields: Sequence[str] | None) -> Mapping[str, Json]:
    """The fields by name, checked as an entry: size, count, text, no name twice."""
    if fields is None:
        raise _Refusal("trimmed", "the entry was trimmed from its stream before it was read")
    text = " ".join(fields)
    if not (len(text) <= BYTES_MAX and text.isascii() and text.isprintable()):
        _check_size(fields)
        _check_text(text, JSON_CONTROL if fields[0] == "payload" else CONTROL)
    if len(fields) > 2 * FIELDS_MAX:
        raise _Refusal("too_many_fields", f"an entry holds at most {FIELDS_MAX} fields")
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    if 2 * len(named) < len(fields):
        raise _Refusal("duplicate_field", "each field may be given once")
    if "payload" not in named:
        return named
    if len(named) > 1:
        raise _Refusal("payload_not_alone", "an entry with a payload holds no other field")
    return _payload(named["payload"])


def _check_size(fields: Sequence[str]) -> None:
    characters = sum(map(len, fields))
    if (
        characters > BYTES_MAX
        or sum(len(text.encode(errors="replace")) for text in fields) > BYTES_MAX
    ):
        raise _Refusal("entry_too_large", f"an entry holds at most {BYTES_MAX} bytes")


def _check_text(text: str, control: re.Pattern[str]) -> None:
    """Judge text that is not all ASCII, or not all printable."""
    if SURROGATE.search(text):
        raise _Refusal("not_utf8", "names and values must be UTF-8")
    if control.search(text):
        raise _Refusal("control_character", "names and values must hold no control characters")


def _payload(text: str) -> dict[str, Json]:
    """The payload's members, checked as JSON; those of the model are text, or numbers where decimal."""
    payload = _decoded(text)
    if len(payload) > FIELDS_MAX:
        raise _Refusal("too_many_fields", f"an order holds at most {FIELDS_MAX} fields")
    for name, value in payload.items():
        _check_json_text(name)
        if name not in MODEL_FIELDS:
            _check_json(value, DEPTH_MAX)
        elif isinstance(value, _Number):  # an order_id 17 is not "17"; a price may be either
            _check_model_type(name, value, fits=name in DECIMAL_FIELDS)
        else:
            _check_json(value, DEPTH_MAX)
            _check_model_type(name, value, fits=value is None or isinstance(value, str))
    return payload


def _check_model_type(name: str, value: Json, *, fits: bool) -> None:
    if not fits:
        raise _Refusal(f"{name}_invalid", f"{name} must be text, not {_json(value)[:40]}")


def _check_shape(text: str) -> None:
    """Refuse before it is decoded what would take many times its size, telling depth from number."""
    depth = values = 0
    for mark in JSON_MARK.finditer(text):  # one at a time: all of them are many times their text
        char = text[mark.start()]
        depth += (char in "[{") - (char in "]}")
        values += char in ",:[{"
        if depth > DEPTH_MAX + 1:  # the payload itself is one
            raise _too_deep()
        if values > VALUES_MAX:
            raise _Refusal(
                "too_many_values", f"a payload holds at most {VALUES_MAX} names and values"
            )
        if depth < 0:  # no JSON from here on
            return


def _too_deep() -> _Refusal:
    return _Refusal("payload_too_deep", f"a payload nests at most {DEPTH_MAX} levels deep")


def _decoded(text: str) -> dict[str, Json]:
    if len(text) > VALUES_MAX:  # a shorter one cannot hold so many
        _check_shape(text)
    try:
        payload: Json = _PAYLOAD.decode(text)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise _Refusal("payload_not_json", f"payload must be a JSON object: {error}") from None
    if not isinstance(payload, dict):
        raise _Refusal("payload_not_object", "payload must be a JSON object")
    return payload


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise _Refusal("duplicate_field", "each field may be given once")
    return named


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_PAYLOAD = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_Number, parse_int=_Number, parse_constant=_constant
)


def _check_json(value: Json, depth: int) -> None:
    """Check the text, the numbers and the depth of a payload's value."""
    if isinstance(value, _Number):
        _decimal("number", value)
    elif isinstance(value, str):
        _check_json_text(value)
    elif isinstance(value, dict | list) and depth == 0:
        raise _too_deep()
    elif isinstance(value, list):
        for item in value:
            _check_json(item, depth - 1)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_json_text(name)
            _check_json(item, depth - 1)


def _check_json_text(text: str) -> None:
    if not (text.isascii() and text.isprintable()):
        _check_text(text, CONTROL)


# --- the model ---


class _Model(msgspec.Struct, frozen=True, gc=False):
    """The model's fields: what is stored, and beside each decimal what is canonical of it."""

    order_id: str
    account: str | None
    symbol: str
    side: str
    type: str
    quantity: tuple[str, str]
    price: tuple[str, str] | None
    stop_price: tuple[str, str] | None
    time_in_force: str
    expire_at: datetime | None


def _order(named: Mapping[str, Json], envelope: frozenset[str]) -> Order:
    model = _model(cast("Mapping[str, str | None]", named))  # as far as the model goes
    others = not MODEL_FIELDS.issuperset(named)
    content = _canonical(model, named if others else {}, envelope).encode()
    return Order(
        sha256(HASH_TAG + content).digest(),
        model.order_id,
        model.account,
        model.symbol,
        model.side,
        model.type,
        model.quantity[0],
        model.price and model.price[0],
        model.stop_price and model.stop_price[0],
        model.time_in_force,
        model.expire_at,
        _extra(named) if others else None,
    )


def _model(named: Mapping[str, str | None]) -> _Model:
    """Check the model's fields; one that is absent, null or empty is not there."""
    order_id = _required(named, "order_id")
    if not _is_order_id(order_id):
        raise _Refusal("order_id_invalid", "order_id must be 1 to 128 printable characters")
    account = named.get("account") or None
    if account is not None and len(account) > 64:
        raise _Refusal("account_invalid", "account must be 1 to 64 characters")
    symbol = _required(named, "symbol")
    if not SYMBOL.fullmatch(symbol):
        raise _Refusal("symbol_invalid", "symbol must be 1 to 32 of A-Z a-z 0-9 . _ - / :")
    side = _one_of(SIDES, "side", _required(named, "side"))
    kind = _one_of(TYPES, "type", _required(named, "type"))
    quantity = _decimal("quantity", _required(named, "quantity"))
    if quantity[1] == "0" or quantity[1][0] == "-":
        raise _Refusal("quantity_not_positive", "quantity must be above zero")
    time_in_force = _one_of(TIMES_IN_FORCE, "time_in_force", named.get("time_in_force") or "gtc")
    return _Model(
        order_id,
        account,
        symbol,
        side,
        kind.name,
        quantity,
        _price(named, "price", kind, required=kind.price),
        _price(named, "stop_price", kind, required=kind.stop_price),
        time_in_force,
        _expire_at(named, time_in_force),
    )


def _is_order_id(text: str) -> bool:
    return 0 < len(text) <= 128 and text.isprintable()


def _required(named: Mapping[str, str | None], name: str) -> str:
    value = named.get(name)
    if not value:
        raise _Refusal(f"{name}_missing", f"{name} is required")
    return value


def _one_of(known: Mapping[str, T], name: str, text: str) -> T:
    found = known.get(text)
    if found is None and text.isascii():  # other alphabets have letters whose lower case is ASCII
        found = known.get(text.lower())
    if found is None:
        raise _Refusal(
            f"{name}_invalid", f"{name} must be one of {', '.join(known)}, not {text[:40]!a}"
        )
    return found


def _price(
    named: Mapping[str, str | None], name: str, kind: OrderType, *, required: bool
) -> tuple[str, str] | None:
    text = named.get(name)
    if not text:
        if required:
            raise _Refusal(f"{name}_missing", f"a {kind.name} order requires {name}")
        return None
    if not required:
        raise _Refusal(f"{name}_unexpected", f"a {kind.name} order takes no {name}")
    return _decimal(name, text)


def _decimal(name: str, text: str) -> tuple[str, str]:
    """A decimal in plain notation as it came, and the same without trailing zeros."""
    common = len(text) <= 29 and PLAIN_DECIMAL.fullmatch(text)
    plain = text if common else _bounded_decimal(name, text)
    short = without_trailing_zeros(plain)
    return plain, "0" if short == "-0" else short


def without_trailing_zeros(plain: str) -> str:
    """A decimal in plain notation with no more digits behind its point than it needs."""
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def _bounded_decimal(name: str, text: str) -> str:
    """Plain notation of any decimal, its digits and exponent bounded before any arithmetic."""
    match = ANY_DECIMAL.fullmatch(text)
    if not match:
        raise _Refusal(
            f"{name}_invalid", f"{name} must be a decimal such as 0.25, not {text[:40]!a}"
        )
    whole, fraction = match[1] or "", match[2] or match[3] or ""
    digits = len((whole + fraction).lstrip("0"))
    power = (match[5] or "").lstrip("0") or "0"
    if digits > DIGITS_MAX or len(power) > 3:
        raise _out_of_range(name)
    if not EXPONENT_MIN <= int(f"{match[4] or ''}{power}") - len(fraction) <= EXPONENT_MAX:
        raise _out_of_range(name)
    value = Decimal(text)
    if value and not SIZE_MIN <= abs(value) <= SIZE_MAX:
        raise _out_of_range(name)
    return f"{value:f}"


def _out_of_range(name: str) -> _Refusal:
    return _Refusal(
        f"{name}_out_of_range",
        f"{name} must have at most {DIGITS_MAX} significant digits and be zero or 1e-18 to 1e18 in size",
    )


def _expire_at(named: Mapping[str, str | None], time_in_force: str) -> datetime | None:
    text = named.get("expire_time")
    if time_in_force != "gtd":
        if text:
            raise _Refusal("expire_time_unexpected", "expire_time goes with time_in_force gtd only")
        return None
    if not text:
        raise _Refusal("expire_time_missing", "time_in_force gtd requires expire_time")
    try:
        if not INSTANT.fullmatch(text):
            raise ValueError  # noqa: TRY301 - one sentence for both
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _Refusal(
            "expire_time_invalid",
            "expire_time must be ISO 8601 with an offset, such as 2026-03-01T17:30:00Z, "
            f"not {text[:40]!a}",
        ) from None


# --- canonical content ---


def _canonical(model: _Model, named: Mapping[str, Json], envelope: frozenset[str]) -> str:
    """Canonical JSON of the content. The model's names stand in sorted order; others sort in."""
    content = [
        ("account", f'"account":{_quote(_nfc(model.account))}' if model.account else ""),
        ("expire_time", f'"expire_time":"{_instant(model.expire_at)}"' if model.expire_at else ""),
        ("price", f'"price":"{model.price[1]}"' if model.price else ""),
        ("quantity", f'"quantity":"{model.quantity[1]}"'),
        ("side", f'"side":"{model.side}"'),
        ("stop_price", f'"stop_price":"{model.stop_price[1]}"' if model.stop_price else ""),
        ("symbol", f'"symbol":"{model.symbol}"'),
        ("time_in_force", f'"time_in_force":"{model.time_in_force}"'),
        ("type", f'"type":"{model.type}"'),
    ]
    if others := named.keys() - MODEL_FIELDS - envelope:
        content += _members((_nfc(name), named[name]) for name in others)
        content.sort()
    text = ",".join([member for _, member in content if member])
    del content  # as long as the text, which the braces copy
    return f"{{{text}}}"


def _members(pairs: Iterable[tuple[str, Json]]) -> list[tuple[str, str]]:
    """Each name with its `"name":value`. Names that NFC makes equal are one name given twice."""
    return [
        (name, f"{_quote(name)}:{_canonical_json(value)}")
        for name, value in _unique(list(pairs)).items()
    ]


def _instant(at: datetime) -> str:
    """`2026-03-01T17:30:00Z`, with the fraction of a second only where there is one."""
    text = at.replace(tzinfo=None).isoformat()
    return (text.rstrip("0") if at.microsecond else text) + "Z"


def _nfc(text: str) -> str:
    if text.isascii():
        return text
    if len(text) > NORMALIZED_AT_ONCE and not unicodedata.is_normalized("NFC", text):
        text = _marks_sorted(text)
    return unicodedata.normalize("NFC", text)


def _marks_sorted(text: str) -> str:
    """Decomposed text whose combining marks stand in canonical order, in linear time.

    `normalize` sorts each run of marks by insertion: a run of 64 KiB takes it more than a second.
    Source: https://www.unicode.org/versions/Unicode15.0.0/ch03.pdf, section 3.11, D109
    """
    whole = bytearray()
    run: defaultdict[int, bytearray] = defaultdict(
        bytearray
    )  # marks since the last starter, by class
    for char in text:
        for part in unicodedata.normalize("NFD", char):
            mark = unicodedata.combining(part)
            if run and not mark:
                whole += b"".join([run.pop(mark) for mark in sorted(run)])
            (run[mark] if mark else whole).extend(part.encode())
    whole += b"".join([run[mark] for mark in sorted(run)])
    return whole.decode()


def _quote(text: str) -> str:
    """A JSON string. Control characters were refused, so two characters are left to escape."""
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _canonical_json(value: Json) -> str:
    """Canonical JSON: names sorted by code point, text in NFC, numbers plain without trailing zeros."""
    if isinstance(value, dict):
        members = _members((_nfc(name), item) for name, item in value.items())
        return f"{{{','.join(member for _, member in sorted(members))}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_canonical_json, value))}]"
    if isinstance(value, _Number):
        return _decimal("number", value)[1]
    return _quote(_nfc(value)) if isinstance(value, str) else _LITERALS[value]


# --- the fields that are kept as sent ---


_LITERALS = {None: "null", True: "true", False: "false"}


def _extra(named: Mapping[str, Json]) -> str:
    """What is not of the model, as one JSON object with the numbers' own text."""
    return _json({name: named[name] for name in sorted(named.keys() - MODEL_FIELDS)})


def _json(value: Json) -> str:
    if isinstance(value, dict):
        text = ",".join([f"{_quote(name)}:{_json(item)}" for name, item in value.items()])
        return f"{{{text}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_json, value))}]"
    if isinstance(value, _Number):
        return value
    return _quote(value) if isinstance(value, str) else _LITERALS[value]
