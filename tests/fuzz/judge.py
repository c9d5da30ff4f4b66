"""What must hold for any entry, whatever it says."""

import json
import re
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from hashlib import sha256
from time import perf_counter, thread_time
from unittest.mock import patch

from streams.entry import Entry
from tests.fuzz.reference import Content, content_of_entry
from tests.line_protocol import Parsed, parse_lines
from worker import forms
from worker.forms import FORMS_MAX, Parser
from worker.order import ENVELOPE_FIELDS, Malformed, Order, canonical, parse
from worker.outcome import Accepted, Duplicate, Rejected
from worker.points import lines, points

#: A tracer, as `make coverage` has one, takes several times what it watches.
ONE_ENTRY_S_MAX = 0.05 if sys.gettrace() is None else 0.5
TIMES_ITS_SIZE = 20
MEMORY_MIN = 2**20  #: bytes that any entry may take
REFERENCE_CHARACTERS_MAX = 4_000  #: beyond, the reference is too slow
CONTENTS_MAX = 200_000  #: contents kept to be compared with later ones
REASON_MAX = 600  #: characters; what was sent is quoted up to 40 of its own, escaped
TRIES_MAX = 4
STREAM, ENTRY_ID, ORIGINAL_ID = "orders", "1767225600000-3", "1767225599999-0"
TIME_NS = 1_767_225_600_000_000_003
PLAIN = re.compile(r"-?\d{1,19}(\.\d{1,45})?", re.ASCII)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


Way = Callable[[Sequence[str]], Order | Malformed]


class QuickWay:
    """`worker.forms`, but a form is learned from its first entry: so every common one is tried."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._parser = Parser(ENVELOPE_FIELDS)
        self._known = set[tuple[str, ...]]()

    def learn(self, fields: Sequence[str]) -> None:
        """Know the form of the entry from now on, if it can be one."""
        names = tuple(fields[::2])
        if names in self._known:
            return
        if len(self._known) == FORMS_MAX:
            self._begin()
        self._known.add(names)
        with patch.object(forms, "SEEN_MIN", 1):
            self._parser.parse(fields)

    def parse(self, fields: Sequence[str]) -> Order | Malformed:
        """The order, or why it is none."""
        return self._parser.parse(fields)


class Judge:
    """Judges entries one by one, each also against those before. Every method raises AssertionError.

    :ivar verdicts: how many became orders, and how many were rejected with which code
    """

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self.longest_s = 0.0
        self._quick = QuickWay()
        self._hashes: dict[Content, bytes] = {}
        self._contents: dict[bytes, Content] = {}

    def judge(self, fields: Sequence[str]) -> Order | Malformed:
        """Parse an entry in time, either way, and check all that comes of it."""
        self._quick.learn(fields)
        found = self._timed(parse, fields)
        quick = self._timed(self._quick.parse, fields)
        assert quick == found, f"the quick way: {quick}, the other: {found}"
        self.verdicts["order" if isinstance(found, Order) else found.code] += 1
        check_storable(found)
        check_points(found, fields)
        if isinstance(found, Order):
            content = canonical(fields)
            assert found.content_hash == sha256(b"ordergate.order.v1\n" + content).digest()
        if sum(map(len, fields)) <= REFERENCE_CHARACTERS_MAX:
            self._compare(found, content_of_entry(fields))
        return found

    def _timed(self, way: Way, fields: Sequence[str]) -> Order | Malformed:
        """What the entry comes to. The best of some tries counts: collecting garbage is not its fault.

        The processor's time counts. It is slow to ask for, and never more than the clock's, which goes first.
        """
        found, spent = _spent(way, fields, perf_counter)
        for _ in range(TRIES_MAX):
            if spent <= ONE_ENTRY_S_MAX:
                break
            again, less = _spent(way, fields, thread_time)
            assert again == found
            spent = min(spent, less)
        assert spent <= ONE_ENTRY_S_MAX, f"{spent:.3f} s for one entry"
        self.longest_s = max(self.longest_s, spent)
        return found

    def _compare(self, found: Order | Malformed, content: Content | None) -> None:
        """Equal content, equal hash, and the other way round."""
        assert (content is None) == isinstance(found, Malformed), f"{found}, reference: {content}"
        if content is None or isinstance(found, Malformed):
            return
        if len(self._hashes) > CONTENTS_MAX:
            self._hashes.clear()
            self._contents.clear()
        assert self._hashes.setdefault(content, found.content_hash) == found.content_hash
        assert self._contents.setdefault(found.content_hash, content) == content


def _spent(
    way: Way, fields: Sequence[str], time: Callable[[], float]
) -> tuple[Order | Malformed, float]:
    """What the entry comes to, and the seconds that it took, by that clock."""
    begun = time()
    found = way(fields)
    return found, time() - begun


def check_memory(fields: Sequence[str]) -> int:
    """From entry to line takes at most twenty times its size, or 1 MiB; gives how much it takes."""
    quick = QuickWay()
    quick.learn(fields)
    tracemalloc.start()
    try:
        _lines(quick.parse(fields), fields)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken <= max(TIMES_ITS_SIZE * size_of(fields), MEMORY_MIN), f"{taken} bytes"
    return taken


def size_of(fields: Sequence[str]) -> int:
    """The entry's bytes, as sent."""
    return sum(len(text.encode(errors="surrogateescape")) for text in fields)


def check_storable(found: Order | Malformed) -> None:
    """What comes out can be stored in Postgres, whatever went in."""
    texts = [found.order_id, found.symbol]
    if isinstance(found, Malformed):
        assert re.fullmatch(r"[a-z_0-9]{5,40}", found.code)
        assert len(found.reason) <= REASON_MAX
        texts += [found.code, found.reason]
    else:
        amounts = [text for text in (found.quantity, found.price, found.stop_price) if text]
        assert all(PLAIN.fullmatch(text) for text in amounts)
        assert Decimal(found.quantity) > 0
        assert len(found.content_hash) == 32
        assert found.extra is None or isinstance(json.loads(found.extra), dict)
        assert found.expire_at is None or found.expire_at.utcoffset() is not None
        texts += [found.account, found.side, found.type, found.time_in_force, found.extra]
    whole = "".join(text for text in texts if text)
    whole.encode()
    assert CONTROL.search(whole) is None


def check_points(found: Order | Malformed, fields: Sequence[str]) -> None:
    """The lines read back as just the tags and fields that were meant."""
    if isinstance(found, Malformed):
        tags = {"code": found.code, "outcome": "rejected", "stream": STREAM}
        expected = [_parsed(tags, {"order_id": found.order_id})]
    else:
        expected = [
            _of_order(found, "accepted", 7, None),
            _of_order(found, "duplicate", 0, ORIGINAL_ID),
        ]
    assert parse_lines(_lines(found, fields).decode()) == expected


def _lines(found: Order | Malformed, fields: Sequence[str]) -> bytes:
    """The points of the outcomes that it can have."""
    entry = Entry(STREAM, ENTRY_ID, list(fields))
    if isinstance(found, Malformed):
        return lines(points([Rejected(entry, found)]))
    return lines(points([Accepted(entry, found, 7), Duplicate(entry, found, 0, ORIGINAL_ID)]))


def _of_order(order: Order, outcome: str, generation: int, original_id: str | None) -> Parsed:
    tags = {
        "outcome": outcome,
        "side": order.side,
        "stream": STREAM,
        "symbol": order.symbol,
        "type": order.type,
    }
    return _parsed(
        tags,
        {
            "order_id": order.order_id,
            "quantity": float(order.quantity),
            "generation": generation,
            "price": None if order.price is None else float(order.price),
            "stop_price": None if order.stop_price is None else float(order.stop_price),
            "original_entry_id": original_id,
        },
    )


def _parsed(tags: dict[str, str], values: Mapping[str, str | float | None]) -> Parsed:
    fields = {name: value for name, value in values.items() if value is not None}
    return Parsed("orders", tags, {"entry_id": ENTRY_ID, **fields}, TIME_NS)
