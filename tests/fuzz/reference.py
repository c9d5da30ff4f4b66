"""What an entry is by a plain reading of the rules, payloads included: the content of an order, or none.

Shares no line with the worker; what is flat it leaves to `scripts.replay.reference`.
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import NoReturn, cast

from scripts.replay.reference import MODEL, content_of, nfc

ENVELOPE = frozenset(
    ["order_id", "client_order_id", "timestamp", "ts", "sent_at", "trace_id", "traceparent"]
)
DECIMALS = {"quantity", "price", "stop_price"}
LEVELS_MAX, MEMBERS_MAX, BYTES_MAX = 16, 64, 65_536

Content = tuple[bytes, object]


class Number(str):
    """A number, as it is written."""

    __slots__ = ()


def content_of_entry(words: Sequence[str]) -> Content | None:
    """Something that is equal for two entries when their content is; None where the entry is no order."""
    try:
        fields = dict(zip(words[::2], words[1::2], strict=True))
        _require(2 * len(fields) == len(words))
        return _of_payload(fields["payload"]) if list(fields) == ["payload"] else _of_flat(fields)
    except (ValueError, OverflowError, RecursionError):
        return None


def row_of_entry(words: Sequence[str]) -> dict[str, object] | None:
    """The columns of `orders` that the entry is meant to have; None where it is no order."""
    if content_of_entry(words) is None:
        return None
    fields: dict[str, object] = dict(zip(words[::2], words[1::2], strict=True))
    if list(fields) == ["payload"]:
        fields = cast("dict[str, object]", as_sent(words[1]))
    given = {name: str(fields[name]) for name in fields.keys() & MODEL if fields[name]}
    extra = {name: fields[name] for name in fields.keys() - MODEL}
    expires = given.get("expire_time")
    return {
        **{name: given.get(name) for name in ("order_id", "account", "symbol")},
        **{name: given[name].lower() for name in ("side", "type")},
        **{name: plain(given.get(name)) for name in DECIMALS},
        "time_in_force": given.get("time_in_force", "gtc").lower(),
        "expire_at": expires and datetime.fromisoformat(expires.upper()),
        "extra": comparable(extra) if extra else None,
    }


def plain(number: str | Decimal | None) -> str | None:
    """A decimal with all the digits that it has. Postgres knows no zero below zero."""
    if number is None:
        return None
    return f"{Decimal(number):f}".removeprefix("-" if not Decimal(number) else "")


def as_sent(text: str) -> object:
    """Decoded JSON, its numbers as they are written. :raises ValueError: a name twice, or no number"""
    return json.loads(
        text,
        object_pairs_hook=_members,
        parse_int=Number,
        parse_float=Number,
        parse_constant=_no_number,
    )


def comparable(value: object) -> object:
    """Decoded JSON as something that is equal for equal values, and only for these."""
    match value:
        case Number():
            return "number", Decimal(value)
        case list():
            return [comparable(item) for item in cast("list[object]", value)]
        case dict():
            pairs = cast("dict[str, object]", value).items()
            return {name: comparable(item) for name, item in pairs}
        case _:
            return type(value), value


def _of_flat(fields: dict[str, str]) -> Content:
    content_of(fields, ENVELOPE)  # for its checks of the fields that are not of the model
    return _content(fields, {name: fields[name] for name in fields.keys() - MODEL})


def _of_payload(text: str) -> Content:
    _require(len(text.encode()) + len("payload") <= BYTES_MAX)
    _require(_has_no_controls(text.translate({9: " ", 10: " ", 13: " "})))
    found = as_sent(text)
    _require(isinstance(found, dict))
    members = cast("dict[str, object]", found)
    _require(len(members) <= MEMBERS_MAX)
    for name, value in members.items():
        _check_text(name)
        _check_value(value, LEVELS_MAX)
    model = {name: members[name] for name in members.keys() & MODEL if members[name] is not None}
    for name, value in model.items():
        _require(isinstance(value, str))
        _require(name in DECIMALS or not isinstance(value, Number))
    extra = {name: members[name] for name in members.keys() - MODEL}
    return _content({name: str(value) for name, value in model.items()}, extra)


def _content(fields: Mapping[str, str], extra: Mapping[str, object]) -> Content:
    model = content_of({name: text for name, text in fields.items() if name in MODEL}, ENVELOPE)
    return model, _form({name: extra[name] for name in extra.keys() - ENVELOPE})


def _form(value: object) -> object:
    """A value in the one form of all its spellings, beside its kind."""
    match value:
        case Number():
            number = Decimal(value)
            return "number", number.normalize() if number else Decimal(0)
        case str():
            return "text", nfc(value)
        case list():
            return "list", tuple(map(_form, cast("list[object]", value)))
        case dict():
            pairs = cast("dict[str, object]", value).items()
            named = {nfc(name): _form(item) for name, item in pairs}
            _require(len(named) == len(pairs))
            return "object", frozenset(named.items())
        case _:
            return "word", str(value)


def _check_value(value: object, levels: int) -> None:
    match value:
        case Number():
            _check_number(value)
        case str():
            _check_text(value)
        case list():
            _require(levels > 0)
            for item in cast("list[object]", value):
                _check_value(item, levels - 1)
        case dict():
            _require(levels > 0)
            for name, item in cast("dict[str, object]", value).items():
                _check_text(name)
                _check_value(item, levels - 1)
        case _:
            pass


def _check_number(text: str) -> None:
    """One of an extra field follows the rules of a price."""
    order = {"order_id": "1", "symbol": "A", "side": "buy", "type": "limit", "quantity": "1"}
    content_of({**order, "price": text}, ENVELOPE)


def _check_text(text: str) -> None:
    text.encode()  # a lone surrogate is a ValueError
    _require(_has_no_controls(text))


def _has_no_controls(text: str) -> bool:
    return all(unicodedata.category(char) != "Cc" for char in text)


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    _require(len(dict(pairs)) == len(pairs))
    return dict(pairs)


def _no_number(_name: str) -> NoReturn:
    raise ValueError


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError
