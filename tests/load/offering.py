"""Offer orders at given instants, whatever becomes of them: an open loop.

An order that is sent late, for the sender was held up, still counts from the instant at which it was due:
else a system that stalls would slow down its own test and hide the stall (coordinated omission).
"""

import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from time import monotonic, sleep
from typing import Any, NamedTuple, Protocol, cast
from urllib.parse import urlsplit

import hiredis

from tests.load.ground import STREAM

_pack = cast("Callable[[tuple[str, ...]], bytes]", hiredis.pack_command)


class Offered(NamedTuple):
    """An order sent: its entry id, when it was due, how late it was sent. Seconds of the monotonic clock."""

    entry_id: str
    due: float
    late_s: float


class _Replies(Protocol):
    def feed(self, data: bytes, /) -> None: ...

    def gets(self) -> Any: ...  # noqa: ANN401 - a reply


def packed(orders: Iterable[dict[str, str]]) -> list[bytes]:
    """The `XADD` of each order, as bytes."""
    words = (tuple(word for pair in order.items() for word in pair) for order in orders)
    return [_pack(("XADD", STREAM, "*", *fields)) for fields in words]


def offer(redis_url: str, commands: Sequence[bytes], dues: Sequence[float]) -> list[Offered]:
    """Send each command when it is due; those due at once are sent at once. Blocks its thread."""
    url = urlsplit(redis_url)
    with socket.create_connection((url.hostname or "", url.port or 0)) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ids: list[str] = []
        reader = threading.Thread(target=_read, args=(link, ids, len(commands)))
        reader.start()
        sent = _send(link, commands, dues)
        reader.join()
    return [Offered(id_, due, at - due) for id_, due, at in zip(ids, dues, sent, strict=True)]


def _send(link: socket.socket, commands: Sequence[bytes], dues: Sequence[float]) -> list[float]:
    sent: list[float] = []
    while len(sent) < len(commands):
        first = len(sent)
        sleep(max(0.0, dues[first] - monotonic()))
        now, last = monotonic(), first + 1
        while last < len(commands) and dues[last] <= now:
            last += 1
        link.sendall(b"".join(commands[first:last]))
        sent += [now] * (last - first)
    return sent


def _read(link: socket.socket, ids: list[str], count: int) -> None:
    replies = cast("_Replies", hiredis.Reader(encoding="utf-8"))
    while len(ids) < count:
        replies.feed(link.recv(1 << 16))
        while (reply := replies.gets()) is not False:
            ids.append(str(reply))
