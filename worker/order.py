"""The order: what an entry decodes to, its validation, its canonical content and the hash of that.

Pure. The hash decides what is placed and what is suppressed, so producers in other languages must be able
to compute it too: `docs/content-hash.md` describes what `canonical` writes, with test vectors.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple, TypeVar, cast

import msgspec
import unicodedata2

from worker.fields import (
    BYTES_MAX,
    LITERALS,
    MODEL_FIELDS,
    Json,
    Number,
    Refusal,
    decimal,
    decoded_payload,
    json_text,
    named_fields,
    quote,
    unique,
)

HASH_TAG = b"ordergate.order.v1\n"
#: Rises with each change of what an entry comes to: whether it is an order, and by which hash. Batches that
#: were read differently go one after the other, and what is on record by another reading stays as it is. What
#: is stored tells which entry it is (`recorded_otherwise`): mind that where a field is stored otherwise.
READING = 1
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

#: Codes of a payload that cannot be decoded: a second try would end as the first.
UNREADABLE = {"payload_not_json", "too_many_values"}
SYMBOL = re.compile(r"[A-Za-z0-9._\-/:]{1,32}", re.ASCII)
INSTANT = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?([Zz]|[+-]\d\d:?[0-5]\d)", re.ASCII
)


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


T = TypeVar("T")


def parse(
    fields: Sequence[str] | None, envelope: frozenset[str] = ENVELOPE_FIELDS
) -> Order | Malformed:
    """Turn an entry's fields into an order, or say which rule they break.

    :param fields: names and values in turn, decoded with `surrogateescape`; None where Redis has trimmed
        the entry away
    :param envelope: the fields that are not content
    """
    try:
        return _order(named_fields(fields), envelope)
    except Refusal as refused:
        refusal = refused.with_traceback(None)  # which holds the payload, decoded
    return _malformed(refusal, fields or ())


def canonical(fields: Sequence[str], envelope: frozenset[str] = ENVELOPE_FIELDS) -> bytes:
    """The bytes whose hash, behind `HASH_TAG`, is the content hash of a valid order.

    :raises ValueError: the fields are no valid order
    """
    try:
        named = named_fields(fields)
        model = _model(cast("Mapping[str, str | None]", named))
        return _canonical(model, named, envelope).encode()
    except Refusal as refusal:
        raise ValueError(refusal.reason) from None


def _malformed(refusal: Refusal, fields: Sequence[str]) -> Malformed:
    named: Mapping[str, Json] = dict(zip(fields[::2], fields[1::2], strict=False))
    readable = refusal.code not in UNREADABLE
    if readable and fields[:1] == ["payload"] and len(fields[1]) <= BYTES_MAX:
        with suppress(Refusal):  # where the payload is what is wrong
            named = decoded_payload(fields[1])
    order_id, symbol = named.get("order_id"), named.get("symbol")
    return Malformed(
        refusal.code,
        refusal.reason,
        order_id if isinstance(order_id, str) and _is_order_id(order_id) else None,
        symbol if isinstance(symbol, str) and SYMBOL.fullmatch(symbol) else None,
    )


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
        raise Refusal("order_id_invalid", "order_id must be 1 to 128 printable characters")
    account = named.get("account") or None
    if account is not None and len(account) > 64:
        raise Refusal("account_invalid", "account must be 1 to 64 characters")
    symbol = _required(named, "symbol")
    if not SYMBOL.fullmatch(symbol):
        raise Refusal("symbol_invalid", "symbol must be 1 to 32 of A-Z a-z 0-9 . _ - / :")
    side = _one_of(SIDES, "side", _required(named, "side"))
    kind = _one_of(TYPES, "type", _required(named, "type"))
    quantity = decimal("quantity", _required(named, "quantity"))
    if quantity[1] == "0" or quantity[1][0] == "-":
        raise Refusal("quantity_not_positive", "quantity must be above zero")
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
        raise Refusal(f"{name}_missing", f"{name} is required")
    return value


def _one_of(known: Mapping[str, T], name: str, text: str) -> T:
    found = known.get(text)
    if found is None and text.isascii():  # other alphabets have letters whose lower case is ASCII
        found = known.get(text.lower())
    if found is None:
        raise Refusal(
            f"{name}_invalid", f"{name} must be one of {', '.join(known)}, not {text[:40]!a}"
        )
    return found


def _price(
    named: Mapping[str, str | None], name: str, kind: OrderType, *, required: bool
) -> tuple[str, str] | None:
    text = named.get(name)
    if not text:
        if required:
            raise Refusal(f"{name}_missing", f"a {kind.name} order requires {name}")
        return None
    if not required:
        raise Refusal(f"{name}_unexpected", f"a {kind.name} order takes no {name}")
    return decimal(name, text)


def _expire_at(named: Mapping[str, str | None], time_in_force: str) -> datetime | None:
    text = named.get("expire_time")
    if time_in_force != "gtd":
        if text:
            raise Refusal("expire_time_unexpected", "expire_time goes with time_in_force gtd only")
        return None
    if not text:
        raise Refusal("expire_time_missing", "time_in_force gtd requires expire_time")
    try:
        if not INSTANT.fullmatch(text):
            raise ValueError  # noqa: TRY301 - one sentence for both
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Refusal(
            "expire_time_invalid",
            "expire_time must be ISO 8601 with an offset, such as 2026-03-01T17:30:00Z, "
            f"not {text[:40]!a}",
        ) from None


# --- canonical content ---


def _canonical(model: _Model, named: Mapping[str, Json], envelope: frozenset[str]) -> str:
    """Canonical JSON of the content. The model's names stand in sorted order; others sort in."""
    content = [
        ("account", f'"account":{quote(_nfc(model.account))}' if model.account else ""),
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
        (name, f"{quote(name)}:{_canonical_json(value)}")
        for name, value in unique(list(pairs)).items()
    ]


def _instant(at: datetime) -> str:
    """`2026-03-01T17:30:00Z`, with the fraction of a second only where there is one."""
    text = at.replace(tzinfo=None).isoformat()
    return (text.rstrip("0") if at.microsecond else text) + "Z"


def _nfc(text: str) -> str:
    """By one version of Unicode, whatever Python's is: two workers must not hash one content differently."""
    return text if text.isascii() else cast("str", unicodedata2.normalize("NFC", text))


def _canonical_json(value: Json) -> str:
    """Canonical JSON: names sorted by code point, text in NFC, numbers plain without trailing zeros."""
    if isinstance(value, dict):
        members = _members((_nfc(name), item) for name, item in value.items())
        return f"{{{','.join(member for _, member in sorted(members))}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_canonical_json, value))}]"
    if isinstance(value, Number):
        return decimal("number", value)[1]
    return quote(_nfc(value)) if isinstance(value, str) else LITERALS[value]


def _extra(named: Mapping[str, Json]) -> str:
    """What is not of the model, as one JSON object with the numbers' own text."""
    return json_text({name: named[name] for name in sorted(named.keys() - MODEL_FIELDS)})
