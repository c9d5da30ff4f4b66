"""The quick way from an entry to its order, for entries whose field names were often seen before.

Pure, and no second set of rules: it knows common orders when it sees them, and leaves every other entry, and
every refusal, to `order.parse`. Where it gives an order, that is the one that `order.parse` gives.

A *form* is the names of an entry's fields in the order they were sent. Producers have few, and one regular
expression for a form says of all its values at once whether they are plain: ASCII, nothing to escape or to
normalise, decimals in plain notation. What is canonical then differs from entry to entry by its values only.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from operator import itemgetter

from worker.fields import (
    BYTES_MAX,
    DECIMAL_FIELDS,
    FIELDS_MAX,
    MODEL_FIELDS,
    without_trailing_zeros,
)
from worker.order import (
    HASH_TAG,
    SIDES,
    SYMBOL,
    TIMES_IN_FORCE,
    TYPES,
    Malformed,
    Order,
    parse,
)

#: Entries that a form must have had before its expression is made, for that takes as long as they took.
SEEN_MIN = 64
FORMS_MAX = 256
CANDIDATES_MAX = 1024  #: forms seen too seldom yet; then all are forgotten, so memory is bounded

NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
NEEDED = {"order_id", "symbol", "side", "type", "quantity"}
RARE = {"payload", "expire_time"}  #: names that have rules of their own

_WORDS = ("side", "type", "time_in_force")  # in any case
_COLUMNS = (  # as `Order` has them, behind the hash
    *("order_id", "account", "symbol", "side", "type", "quantity", "price", "stop_price"),
    *("time_in_force", "expire_time", "extra"),
)

_PLAIN_TEXT = r"[ !#-\[\]-~]"  # ASCII that stands in JSON as it is
_OTHER = _PLAIN_TEXT + "*"
_WORD = r"[A-Za-z_]+"
_DECIMAL = r"(?:0|[1-9]\d{0,9})(?:\.\d{1,18})?"  # 28 digits at most
_VALUES = {
    "order_id": r"[ -~]{1,128}",
    "account": _PLAIN_TEXT + "{1,64}",
    "symbol": SYMBOL.pattern,
    **dict.fromkeys(_WORDS, _WORD),
    **dict.fromkeys(DECIMAL_FIELDS, _DECIMAL),
}


class Parser:
    """Parses entries as `order.parse` does, and learns the forms they have.

    :param envelope: the fields that are not content
    """

    def __init__(self, envelope: frozenset[str]) -> None:
        self._envelope = envelope
        self._forms: dict[tuple[str, ...], _Form] = {}
        self._seen: Counter[tuple[str, ...]] = Counter()

    def parse(self, fields: Sequence[str] | None) -> Order | Malformed:
        """See `order.parse`."""
        if fields:
            names = tuple(fields[::2])
            form = self._forms.get(names)
            if form is None:
                self._learn(names)
            elif order := form.order("\n".join(fields[1::2])):
                return order
        return parse(fields, self._envelope)

    def _learn(self, names: tuple[str, ...]) -> None:
        if len(self._forms) == FORMS_MAX or not _is_plain(names):
            return
        self._seen[names] += 1
        if self._seen[names] == SEEN_MIN:
            self._forms[names] = _Form(names, self._envelope)
        if len(self._seen) > CANDIDATES_MAX:
            self._seen.clear()


#: The parser of this process for an envelope.
parser = lru_cache(maxsize=8)(Parser)


def _is_plain(names: tuple[str, ...]) -> bool:
    """Whether names can be a form: an order's, each once, nothing in them to escape."""
    return (
        NEEDED.issubset(names)
        and RARE.isdisjoint(names)
        and len(set(names)) == len(names) <= FIELDS_MAX
        and all(map(NAME.fullmatch, names))
    )


class _Form:
    """What entries of the same names have in common: where each value goes."""

    def __init__(self, names: tuple[str, ...], envelope: frozenset[str]) -> None:
        values = [f"({_VALUES.get(name, _OTHER)})" for name in names]
        self._match = re.compile("\n".join(values), re.ASCII).fullmatch
        self._length_max = BYTES_MAX - sum(map(len, names))
        sent = {name: place for place, name in enumerate(names)}
        self._prices = "price" in sent, "stop_price" in sent
        self._decimals = [sent[name] for name in names if name in DECIMAL_FIELDS]

        # `order` adds to the values as sent what it makes of some: these, then a short form of each decimal.
        absent, extra, *made = range(len(names), len(names) + 5)
        sent["time_in_force"] = sent.get("time_in_force", absent)
        self._words = itemgetter(*(sent[name] for name in _WORDS))
        stored = sent | dict(zip(_WORDS, made, strict=True))
        columns = stored | {"extra": extra}
        self._columns = itemgetter(*(columns.get(name, absent) for name in _COLUMNS))
        content = stored | {names[n]: made[-1] + 1 + i for i, n in enumerate(self._decimals)}
        self._quantity = content["quantity"]

        others = sorted(sent.keys() - MODEL_FIELDS)
        members = sorted(content.keys() - {"order_id"} - (envelope - MODEL_FIELDS))
        self._hashed = HASH_TAG.decode() + _json_object(members)
        self._members = itemgetter(*(content[name] for name in members))
        self._extra = _json_object(others) if others else None
        self._others = [sent[name] for name in others]

    def order(self, text: str) -> Order | None:
        """The order of an entry, its values joined by newlines; None where it is not plain."""
        match = self._match(text) if len(text) <= self._length_max else None
        if not match:
            return None
        sent = match.groups()
        prices, words = _stored(*self._words((*sent, "gtc")))
        if prices != self._prices:
            return None
        short = [without_trailing_zeros(sent[n]) for n in self._decimals]
        extra = self._extra and self._extra % tuple([sent[n] for n in self._others])
        values = (*sent, None, extra, *words, *short)
        if values[self._quantity] == "0":
            return None
        content = (self._hashed % self._members(values)).encode()
        return Order(sha256(content).digest(), *self._columns(values))


@lru_cache(maxsize=1024)
def _stored(side: str, kind: str, time: str) -> tuple[tuple[bool, bool] | None, tuple[str, ...]]:
    """The prices that a type takes, and the words as they are stored; no prices where one is not known."""
    found, words = TYPES.get(kind.lower()), (side.lower(), kind.lower(), time.lower())
    if words[0] not in SIDES or not found or words[2] not in TIMES_IN_FORCE or words[2] == "gtd":
        return None, ()
    return (found.price, found.stop_price), words


def _json_object(names: Sequence[str]) -> str:
    """A JSON object with a place for the text of each name."""
    return "{" + ",".join([f'"{name}":"%s"' for name in names]) + "}"
