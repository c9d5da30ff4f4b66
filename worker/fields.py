"""Fields: what an entry holds, by name; the JSON and the decimals among it. Bounded before it is decoded.

Pure. Fields arrive as text decoded with `surrogateescape`: bytes that are not UTF-8 are lone surrogates here,
found by one look at the text and turned back into the very bytes for the rejection.
"""

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import NoReturn

FIELDS_MAX = 64
BYTES_MAX = 64 * 1024
DEPTH_MAX = 16  #: levels of lists and objects within a payload's extra fields
VALUES_MAX = (
    4096  #: names and values of a payload: each is an object in memory, its text two bytes or more
)

DIGITS_MAX = 28
SIZE_MIN, SIZE_MAX = Decimal("1e-18"), Decimal("1e18")
EXPONENT_MIN, EXPONENT_MAX = -45, 18  #: follow from the digits and sizes; they bound zeros as well

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

#: The common notation: canonical but for trailing zeros, and within the bounds when 29 characters or fewer.
PLAIN_DECIMAL = re.compile(r"-?(?:0|[1-9]\d{0,17})(?:\.\d{1,18})?", re.ASCII)
ANY_DECIMAL = re.compile(r"[+-]?(?:(\d+)(?:\.(\d*))?|\.(\d+))(?:[eE]([+-]?)(\d+))?", re.ASCII)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
JSON_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  #: JSON may be indented
SURROGATE = re.compile(r"[\ud800-\udfff]")
#: A string of JSON, also one that does not end: else the search would begin anew at each quote within.
JSON_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
JSON_MARK = re.compile(rf"{JSON_STRING}|[\[{{\]}},:]", re.DOTALL)


class Refusal(Exception):
    """An entry breaks a rule. :ivar code, reason: see `worker.order.Malformed`"""

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        self.reason = reason


class Number(str):
    """A JSON number, as the text it was written in."""

    __slots__ = ()


Json = str | Number | bool | None | list["Json"] | dict[str, "Json"]


def named_fields(fields: Sequence[str] | None) -> Mapping[str, Json]:
    """The fields by name, a payload's members where there is one.

    Checked as an entry: size, count, text, no name twice. :raises Refusal: it breaks one of these rules
    """
    if fields is None:
        raise Refusal("trimmed", "the entry was trimmed from its stream before it was read")
    text = " ".join(fields)
    if not (len(text) <= BYTES_MAX and text.isascii() and text.isprintable()):
        _check_size(fields)
        _check_text(text, JSON_CONTROL if fields[0] == "payload" else CONTROL)
    if len(fields) > 2 * FIELDS_MAX:
        raise Refusal("too_many_fields", f"an entry holds at most {FIELDS_MAX} fields")
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    if 2 * len(named) < len(fields):
        raise Refusal("duplicate_field", "each field may be given once")
    if "payload" not in named:
        return named
    if len(named) > 1:
        raise Refusal("payload_not_alone", "an entry with a payload holds no other field")
    return _payload(named["payload"])


def _check_size(fields: Sequence[str]) -> None:
    characters = sum(map(len, fields))
    if (
        characters > BYTES_MAX
        or sum(len(text.encode(errors="replace")) for text in fields) > BYTES_MAX
    ):
        raise Refusal("entry_too_large", f"an entry holds at most {BYTES_MAX} bytes")


def _check_text(text: str, control: re.Pattern[str]) -> None:
    """Judge text that is not all ASCII, or not all printable."""
    if SURROGATE.search(text):
        raise Refusal("not_utf8", "names and values must be UTF-8")
    if control.search(text):
        raise Refusal("control_character", "names and values must hold no control characters")


# --- JSON ---


def _payload(text: str) -> dict[str, Json]:
    """The payload's members, checked as JSON; those of the model are text, or numbers where decimal."""
    payload = decoded_payload(text)
    if len(payload) > FIELDS_MAX:
        raise Refusal("too_many_fields", f"an order holds at most {FIELDS_MAX} fields")
    for name, value in payload.items():
        _check_json_text(name)
        if name not in MODEL_FIELDS:
            _check_json(value, DEPTH_MAX)
        elif isinstance(value, Number):  # an order_id 17 is not "17"; a price may be either
            _check_model_type(name, value, fits=name in DECIMAL_FIELDS)
        else:
            _check_json(value, DEPTH_MAX)
            _check_model_type(name, value, fits=value is None or isinstance(value, str))
    return payload


def _check_model_type(name: str, value: Json, *, fits: bool) -> None:
    if not fits:
        raise Refusal(f"{name}_invalid", f"{name} must be text, not {json_text(value)[:40]}")


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
            raise Refusal(
                "too_many_values", f"a payload holds at most {VALUES_MAX} names and values"
            )
        if depth < 0:  # no JSON from here on
            return


def _too_deep() -> Refusal:
    return Refusal("payload_too_deep", f"a payload nests at most {DEPTH_MAX} levels deep")


def decoded_payload(text: str) -> dict[str, Json]:
    """The members of a payload, its numbers as text. :raises Refusal: no JSON object, too deep, too many"""
    if len(text) > VALUES_MAX:  # a shorter one cannot hold so many
        _check_shape(text)
    try:
        payload: Json = _PAYLOAD.decode(text)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise Refusal("payload_not_json", f"payload must be a JSON object: {error}") from None
    if not isinstance(payload, dict):
        raise Refusal("payload_not_object", "payload must be a JSON object")
    return payload


def unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """Pairs by name. :raises Refusal: a name is given twice"""
    named = dict(pairs)
    if len(named) < len(pairs):
        raise Refusal("duplicate_field", "each field may be given once")
    return named


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_PAYLOAD = json.JSONDecoder(
    object_pairs_hook=unique, parse_float=Number, parse_int=Number, parse_constant=_constant
)


def _check_json(value: Json, depth: int) -> None:
    """Check the text, the numbers and the depth of a payload's value."""
    if isinstance(value, Number):
        decimal("number", value)
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


LITERALS = {None: "null", True: "true", False: "false"}


def json_text(value: Json) -> str:
    """JSON of a value, its numbers as they came."""
    if isinstance(value, dict):
        text = ",".join([f"{quote(name)}:{json_text(item)}" for name, item in value.items()])
        return f"{{{text}}}"
    if isinstance(value, list):
        return f"[{','.join(map(json_text, value))}]"
    if isinstance(value, Number):
        return value
    return quote(value) if isinstance(value, str) else LITERALS[value]


def quote(text: str) -> str:
    """A JSON string. Control characters were refused, so two characters are left to escape."""
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


# --- decimals ---


def decimal(name: str, text: str) -> tuple[str, str]:
    """A decimal in plain notation as it came, and the same without trailing zeros.

    :param name: the field's, for the reason. :raises Refusal: no decimal, or out of range
    """
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
        raise Refusal(
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


def _out_of_range(name: str) -> Refusal:
    return Refusal(
        f"{name}_out_of_range",
        f"{name} must have at most {DIGITS_MAX} significant digits and be zero or 1e-18 to 1e18 in size",
    )
