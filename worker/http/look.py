"""What the servers say just now, for metrics and the page; asked once a second, however many ask us.

Each server has a bound, and one that does not answer leaves its part open.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, Generic, TypeVar

import anyio
import msgspec
from redis.exceptions import RedisError

from streams.connection import GroupLost, RedisUnavailable
from worker.errors import OrdergateError
from worker.ledger import queries
from worker.operate.command import Servers
from worker.operate.figures import (
    OutcomeFigures,
    PointFigures,
    StreamFigures,
    points_owed,
    recent_outcomes,
    stream_figures,
)

SQL = queries("http")
FRESH_S = 1.0  #: how old an answer may be that is given again
ANSWER_S_MAX = 2.0  #: seconds that we wait for one server
RECENT_S = 60.0
LATEST = 12  #: duplicates, and rejections, that are shown
WORDS_MAX, WORD_MAX = 40, 400  #: names and values of a rejected entry, and characters of each

T = TypeVar("T")


class Fresh(Generic[T]):
    """An answer that is asked for anew when it is older than `FRESH_S`, by one asker at a time."""

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask, self._lock = ask, anyio.Lock()
        self._kept: tuple[float, T] | None = None

    async def get(self) -> T:
        """The answer, of just now or almost."""
        async with self._lock:
            if self._kept is None or monotonic() - self._kept[0] > FRESH_S:
                answer = await self._ask()
                self._kept = monotonic(), answer
            return self._kept[1]


class Gauges(msgspec.Struct):
    """How each stream stands. A stream is missing where its server did not answer; see `unanswered`."""

    streams: dict[str, StreamFigures] = {}
    points: Mapping[str, PointFigures] = {}
    unanswered: dict[str, str] = {}


class Repeat(msgspec.Struct, frozen=True):
    """A duplicate, and the order that it repeats."""

    stream: str
    entry_id: str
    order_id: str
    symbol: str
    side: str
    quantity: str
    price: str | None
    original_stream: str
    original_entry_id: str
    original_order_id: str
    apart_ms: int


class Rejection(msgspec.Struct, frozen=True):
    """A rejected entry, its long fields cut.

    :ivar fields: names and values in turn
    :ivar more: how many further names and values it has
    """

    stream: str
    entry_id: str
    code: str
    reason: str
    order_id: str | None
    fields: list[str]
    more: int


class Latest(msgspec.Struct):
    """What was recorded lately, by all workers."""

    recent: Mapping[str, OutcomeFigures] = {}
    duplicates: list[Repeat] = []
    rejections: list[Rejection] = []
    unanswered: dict[str, str] = {}


class Look:
    """Looks at the servers of a worker, over connections of its own."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.gauges = Fresh(self._gauges)
        self.latest = Fresh(self._latest)

    async def _gauges(self) -> Gauges:
        found, streams = Gauges(), self.servers.settings.streams
        async with anyio.create_task_group() as tasks:
            for stream in streams:
                tasks.start_soon(
                    _asked, found.unanswered, "redis", partial(self._at, stream, found)
                )
            tasks.start_soon(_asked, found.unanswered, "postgres", partial(self._owed, found))
        return found

    async def _at(self, stream: str, found: Gauges) -> None:
        group = self.servers.settings.group
        found.streams[stream] = await stream_figures(self.servers.redis, stream, group)

    async def _owed(self, found: Gauges) -> None:
        found.points = await points_owed(self.servers.ledger, self.servers.settings.streams)

    async def _latest(self) -> Latest:
        found = Latest()
        await _asked(found.unanswered, "postgres", partial(self._recorded, found))
        return found

    async def _recorded(self, found: Latest) -> None:
        streams = self.servers.settings.streams
        found.recent = await recent_outcomes(self.servers.ledger, streams, within_s=RECENT_S)
        found.duplicates = [Repeat(**row) for row in await self._rows("latest_duplicates", LATEST)]
        words = LATEST, WORDS_MAX, WORD_MAX
        found.rejections = [
            _rejection(row) for row in await self._rows("latest_rejections", *words)
        ]

    async def _rows(self, name: str, *arguments: object) -> Sequence[Mapping[str, Any]]:
        async with self.servers.ledger.connection() as connection:
            return await connection.fetch(SQL[name], self.servers.settings.streams, *arguments)


def _rejection(row: Mapping[str, Any]) -> Rejection:
    fields = [word.decode(errors="replace") for word in row["words"]]
    named = {name: row[name] for name in ("stream", "entry_id", "code", "reason", "order_id")}
    return Rejection(**named, fields=fields, more=row["count"] - len(fields))


async def _asked(
    unanswered: dict[str, str], server: str, question: Callable[[], Awaitable[None]]
) -> None:
    """Put a question to a server; where it does not answer in time, note why."""
    try:
        with anyio.fail_after(ANSWER_S_MAX):
            await question()
    except TimeoutError:
        unanswered[server] = f"no answer within {ANSWER_S_MAX:g} s"
    except (RedisUnavailable, GroupLost, RedisError, OrdergateError) as error:
        unanswered[server] = str(error)
