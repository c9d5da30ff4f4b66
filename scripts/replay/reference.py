"""What should become of a series of orders, by a plain reading of the rules.

Apart from the worker's own validation and hash on purpose, and sharing no line with them: a replay that
computed its expectation with the code it checks would agree with every mistake in it.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import blake2b
from typing import cast

import unicodedata2

SIDES = {"buy", "sell", "sell_short"}
PRICED = {"limit", "stop_limit", "limit_if_touched"}
STOP_PRICED = {
    "stop",
    "stop_limit",
    "market_if_touched",
    "limit_if_touched",
    "trailing_stop",
}
TYPES = PRICED | STOP_PRICED | {"market"}
TIMES_IN_FORCE = {"gtc", "day", "ioc", "fok", "gtd", "at_the_open", "at_the_close"}
MODEL = {
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

_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?0*\d{1,4})?", re.ASCII)
_INSTANT = re.compile(
    r"\d{4}(-\d\d){2}[T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:?[0-5]\d)", re.ASCII
)
_SYMBOL = re.compile(r"[A-Za-z0-9._\-/:]{1,32}", re.ASCII)


@dataclass(slots=True)
class Figures:
    """How many entries ended in each outcome."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0


class Reference:
    """Counts what should become of entries, added in the order of their ids.

    It holds one digest of 16 bytes, and a time, for each content that was accepted.

    :ivar figures: the outcomes expected so far
    :ivar repeats: duplicates among them of orders that others had accepted
    """

    def __init__(
        self,
        window_ms: int,
        envelope: Iterable[str],
        accepted_elsewhere: Mapping[bytes, Sequence[int]],
    ) -> None:
        """Start with nothing seen.

        :param envelope: names of fields that are not content
        :param accepted_elsewhere: by content, the times in milliseconds of accepted orders that are
            not part of this series: they are on record and stand
        """
        self.figures, self.repeats = Figures(), 0
        self._window_ms, self._envelope = window_ms, frozenset(envelope) | {"order_id"}
        self._elsewhere = accepted_elsewhere
        self._accepted_ms: dict[bytes, int] = {}

    def add(self, order: Mapping[str, str], at_ms: int) -> None:
        """Take the next entry, with the milliseconds of its id."""
        try:
            content = content_of(order, self._envelope)
        except ValueError:
            self.figures.rejected += 1
            return
        accepted_ms = self._accepted_ms.get(content)
        if accepted_ms is not None and at_ms - accepted_ms <= self._window_ms:
            self.figures.duplicates += 1
        elif any(abs(at_ms - ms) <= self._window_ms for ms in self._elsewhere.get(content, ())):
            self.figures.duplicates += 1
            self.repeats += 1
        else:
            self._accepted_ms[content] = at_ms
            self.figures.accepted += 1


def content_of(order: Mapping[str, str], envelope: frozenset[str]) -> bytes:
    """A digest that is equal for two orders when their content is.

    :param envelope: names of fields that are not content
    :raises ValueError: the order is to be rejected
    """
    _check_entry(order)
    given = {name: value for name, value in order.items() if value or name not in MODEL}
    order_id, account = given.get("order_id", ""), given.get("account")
    _check(0 < len(order_id) <= 128 and order_id.isprintable())
    _check(account is None or len(account) <= 64)
    _check(_SYMBOL.fullmatch(given.get("symbol", "")) is not None)
    side, kind = _lower(given.get("side", "")), _lower(given.get("type", ""))
    time_in_force = _lower(given.get("time_in_force", "gtc"))
    _check(side in SIDES and kind in TYPES and time_in_force in TIMES_IN_FORCE)
    _check(("price" in given) == (kind in PRICED))
    _check(("stop_price" in given) == (kind in STOP_PRICED))
    _check(("expire_time" in given) == (time_in_force == "gtd"))
    quantity, price, stop_price = (
        _decimal(given[name]) if name in given else None
        for name in ("quantity", "price", "stop_price")
    )
    _check(quantity is not None and quantity > 0)
    expires = _instant(given["expire_time"]) if "expire_time" in given else None
    extra = {nfc(name): nfc(given[name]) for name in given.keys() - MODEL - envelope}
    model = (
        account,
        given["symbol"],
        side,
        kind,
        quantity,
        price,
        stop_price,
        time_in_force,
        expires,
    )
    return _digest(model, extra)


def content_on_record(row: Mapping[str, object], envelope: frozenset[str]) -> bytes:
    """The same digest for a row of `orders`, its columns as asyncpg gives them."""
    extra = cast("dict[str, object]", json.loads(cast("str", row["extra"] or "{}")))
    columns = ("account", "symbol", "side", "type", "quantity", "price", "stop_price")
    model = (*(row[name] for name in columns), row["time_in_force"], row["expire_at"])
    content = {name: value for name, value in extra.items() if name not in envelope}
    return _digest(model, {nfc(name): _value(value) for name, value in content.items()})


def _value(value: object) -> str:
    """Text as it is in a flat entry; a payload's other values as something no text is."""
    return nfc(value) if isinstance(value, str) else f"\0{value!r}"


def _digest(model: Iterable[object], extra: Mapping[str, str]) -> bytes:
    words = [_word(value) for value in model]
    return blake2b(repr((words, sorted(extra.items()))).encode(), digest_size=16).digest()


def _word(value: object) -> str | None:
    if isinstance(value, Decimal):
        return str(value.normalize()) if value else "0"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return None if value is None else nfc(str(value))


def _check(holds: bool) -> None:
    if not holds:
        raise ValueError


def _check_entry(order: Mapping[str, str]) -> None:
    """Check size, number of fields and text, which hold for names and values alike."""
    words = [*order, *order.values()]
    text = "".join(words)
    _check("payload" not in order)  # it stands alone, and these are flat fields
    _check(len(order) <= 64 and len(text.encode()) <= 64 * 1024)
    _check(text.isascii() or len({nfc(name) for name in order}) == len(order))
    _check(text.isprintable() or not any(unicodedata.category(char) == "Cc" for char in text))


def _lower(text: str) -> str:
    return text.lower() if text.isascii() else text  # other alphabets have letters lowered to ASCII


def _decimal(text: str) -> Decimal:
    _check(_DECIMAL.fullmatch(text) is not None)
    value = Decimal(text)
    _check(len(value.as_tuple().digits) <= 28)
    _check(-45 <= int(value.as_tuple().exponent) <= 18)  # for zeros; else it follows from the size
    _check(not value or Decimal("1e-18") <= abs(value) <= Decimal("1e18"))
    return value


def _instant(text: str) -> datetime:
    _check(_INSTANT.fullmatch(text.upper()) is not None)
    return datetime.fromisoformat(text.upper())


def nfc(text: str) -> str:
    """The text in the one form that counts, of Unicode 18.0 whatever Python's version of it."""
    return text if text.isascii() else cast("str", unicodedata2.normalize("NFC", text))
