"""What must hold for any entry, whatever it says."""

import json
import re
import tracemalloc
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from hashlib import sha256
from time import thread_time

from streams.entry import Entry
from tests.fuzz.reference import Content, content_of_entry
from tests.line_protocol import Parsed, parse_lines
from worker.order import Malformed, Order, canonical, parse
from worker.outcome import Accepted, Duplicate, Rejected
from worker.points import lines, points

ONE_ENTRY_S_MAX = 0.05
TIMES_ITS_SIZE = 20
MEMORY_MIN = 2**20  #: bytes that any entry may take
REFERENCE_CHARACTERS_MAX = 4_000  #: beyond, the reference is too slow
CONTENTS_MAX = 200_000  #: contents kept to be compared with later ones
REASON_MAX = 600  #: characters; what was sent is quoted up to 40 of its own, escaped
STREAM, ENTRY_ID, ORIGINAL_ID = "orders", "1767225600000-3", "1767225599999-0"
TIME_NS = 1_767_225_600_000_000_003
PLAIN = re.compile(r"-?\d{1,19}(\.\d{1,45})?", re.ASCII)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Judge:
    """Judges entries one by one, each also against those before. Every method raises AssertionError.

    :ivar verdicts: how many became orders, and how many were rejected with which code
    """

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self.longest_s = 0.0
        self._hashes: dict[Content, bytes] = {}
        self._contents: dict[bytes, Content] = {}

    def judge(self, fields: Sequence[str]) -> Order | Malformed:
        """Parse an entry in time, and check all that comes of it."""
        found = self._timed(fields)
        self.verdicts["order" if isinstance(found, Order) else found.code] += 1
        check_storable(found)
        check_points(found, fields)
        if isinstance(found, Order):
            content = canonical(fields)
            assert found.content_hash == sha256(b"ordergate.order.v1\n" + content).digest()
        if sum(map(len, fields)) <= REFERENCE_CHARACTERS_MAX:
            self._compare(found, content_of_entry(fields))
        return found

    def _timed(self, fields: Sequence[str]) -> Order | Malformed:
        begun = thread_time()
        found = parse(fields)
        spent = thread_time() - begun
        for _ in range(4):  # collecting garbage, or a machine that halts: the entry is not to blame
            if spent <= ONE_ENTRY_S_MAX:
                break
            begun = thread_time()
            assert parse(fields) == found
            spent = min(spent, thread_time() - begun)
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


def check_memory(fields: Sequence[str]) -> int:
    """Parsing takes at most twenty times the entry's size, or 1 MiB; gives how much it takes."""
    tracemalloc.start()
    try:
        parse(fields)
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
    entry = Entry(STREAM, ENTRY_ID, list(fields))
    if isinstance(found, Malformed):
        tags = {"code": found.code, "outcome": "rejected", "stream": STREAM}
        meant = {"order_id": found.order_id}
        expected = [_parsed(tags, meant)]
        written = points([Rejected(entry, found)])
    else:
        expected = [
            _of_order(found, "accepted", 7, None),
            _of_order(found, "duplicate", 0, ORIGINAL_ID),
        ]
        written = points([Accepted(entry, found, 7), Duplicate(entry, found, 0, ORIGINAL_ID)])
    assert parse_lines(lines(written).decode()) == expected


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
