"""Points: one line of InfluxDB's line protocol for each outcome.

Pure. Series and time derive from the entry alone, so writing a point again overwrites it, whether it comes
from the batch, from a redelivery or from the backlog.
Source: https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/
"""

from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256

import msgspec

from streams.entry import EntryId
from worker.outcome import Accepted, Duplicate, Kept, Outcome, Rejected

MEASUREMENT = "orders"
NS_MAX = 2**63 - 2  #: InfluxDB's last instant, in the year 2262
MS_END = NS_MAX // 1_000_000  #: entries before this millisecond have a time


class Point(msgspec.Struct, frozen=True, gc=False):
    """What a point tells of an outcome; decimals are plain text and go to the line as they are.

    Tags are few-valued: stream, outcome, symbol, side, type, code. Ids are fields.
    """

    stream: str
    entry_id: str
    outcome: str
    order_id: str | None
    symbol: str | None = None
    side: str | None = None
    type: str | None = None
    quantity: str | None = None
    price: str | None = None
    stop_price: str | None = None
    generation: int | None = None
    original_entry_id: str | None = None
    code: str | None = None


def points(outcomes: Iterable[Outcome]) -> list[Point]:
    """The point of each outcome; an entry that keeps an earlier outcome has none of its own."""
    return [_point(outcome) for outcome in outcomes if not isinstance(outcome, Kept)]


def _point(outcome: Accepted | Duplicate | Rejected) -> Point:
    entry = outcome.entry
    if isinstance(outcome, Rejected):
        malformed = outcome.malformed
        return Point(entry.stream, entry.id, outcome.word, malformed.order_id, code=malformed.code)
    order = outcome.order
    return Point(
        entry.stream,
        entry.id,
        outcome.word,
        order.order_id,
        order.symbol,
        order.side,
        order.type,
        order.quantity,
        order.price,
        order.stop_price,
        outcome.generation,
        None if isinstance(outcome, Accepted) else outcome.original_id,
    )


def line(point: Point) -> str:
    """The point as one line, integer nanoseconds, tags in sorted order."""
    series = _series(point.stream, point.outcome, point.code, point.side, point.symbol, point.type)
    fields = f'entry_id="{point.entry_id}"'
    if point.order_id is not None:
        fields += f',order_id="{_text(point.order_id)}"'
    if point.quantity is not None:
        fields += f",quantity={point.quantity},generation={point.generation}i"
    if point.price is not None:
        fields += f",price={point.price}"
    if point.stop_price is not None:
        fields += f",stop_price={point.stop_price}"
    if point.original_entry_id is not None:
        fields += f',original_entry_id="{point.original_entry_id}"'
    return f"{series} {fields} {_time(point.entry_id)}"


@lru_cache(maxsize=4096)
def _series(
    stream: str,
    outcome: str,
    code: str | None,
    side: str | None,
    symbol: str | None,
    kind: str | None,
) -> str:
    """Measurement and tags; few-valued, so most points find theirs made."""
    tags = f"{MEASUREMENT},"
    if code:
        tags += f"code={tag_value(code)},"
    tags += f"outcome={outcome}"
    if side:
        tags += f",side={side}"
    tags += f",stream={tag_value(stream)}"
    if symbol:  # its characters need no escape
        tags += f",symbol={symbol},type={kind}"
    return tags


def lines(points: Iterable[Point]) -> bytes:
    """The points as one body for `/api/v2/write?precision=ns`."""
    return "\n".join([line(point) for point in points]).encode()


def time_ns(entry_id: str) -> int:
    """The point's time: ms·10⁶ + seq nanoseconds, distinct for each entry of a stream.

    Ids beyond what InfluxDB can tell (only rejections have such) get a time of their own near its end.
    """
    if has_own_time(entry_id):
        ms, seq = EntryId.parse(entry_id)
        return ms * 1_000_000 + seq
    return NS_MAX - int.from_bytes(sha256(entry_id.encode()).digest()[:6])


def _time(entry_id: str) -> str:
    """`time_ns` as text, without arithmetic for all but odd ids."""
    ms, _, seq = entry_id.partition("-")
    if len(ms) <= 13 and len(seq) <= 6 and "0" < ms < "9":
        return f"{ms}{seq:0>6}"
    return str(time_ns(entry_id))


def has_own_time(entry_id: str) -> bool:
    """Whether the entry's time is one that InfluxDB can tell and no other entry has."""
    dash = entry_id.find("-")
    if dash <= 13 and len(entry_id) - dash <= 7 and entry_id < "9":  # all but ids given by hand
        return True
    ms, seq = EntryId.parse(entry_id)
    return ms < MS_END and seq < 1_000_000


def tag_value(value: str) -> str:
    """Escape a tag value.

    A newline ends a line even within an escape, and a backslash at a value's end escapes what ends it; before
    another one it means one backslash to some versions and two to others. So neither gets here.
    """
    value = value.replace("\n", " ").replace("\\", "/")
    return value.replace(",", "\\,").replace("=", "\\=").replace(" ", "\\ ")


def _text(value: str) -> str:
    """Escape a string field's value."""
    if '"' not in value and "\\" not in value:
        return value
    return value.replace("\\", "\\\\").replace('"', '\\"')
