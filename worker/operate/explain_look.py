"""A look at all servers that know something of an order or an entry.

A server that does not answer leaves its part open; the rest is told all the same.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from streams.entry import Entry, EntryId
from streams.look import Delivery, delivery, entry_of, last_delivered
from worker.errors import NoAnswer, PostgresRefused
from worker.ledger import queries
from worker.operate.command import Servers, servers_told
from worker.operate.explain_report import Answer, Listed

SQL = queries("operate")
LISTED_MAX = 10  #: entries of one content, or of one order id, that are listed

T = TypeVar("T")
Row = dict[str, Any]


class Place(NamedTuple):
    """Where an entry is in Redis: itself, where it is in its stream; who holds it; both in words."""

    entry: Entry | None
    held: Delivery | None
    state: str


@dataclass
class Look:
    """One look at all servers. A server that does not answer is asked once."""

    servers: Servers
    streams: Sequence[str]
    found: Answer = field(default_factory=Answer)

    async def ask(self, server: str, question: Callable[[], Awaitable[T]]) -> T | None:
        """What a server says; None, and a note, where it does not answer."""
        if server in self.found.unanswered:
            return None
        try:
            with servers_told():
                return await question()
        except (NoAnswer, PostgresRefused) as error:
            self.found.unanswered[server] = str(error)
            return None

    async def rows(self, name: str, *arguments: object) -> list[Row]:
        """The rows of a query; none where Postgres does not answer."""

        async def fetch() -> list[Row]:
            async with self.servers.ledger.connection() as connection:
                return [dict(row) for row in await connection.fetch(SQL[name], *arguments)]

        return await self.ask("Postgres", fetch) or []

    async def place_of(self, stream: str, entry_id: str) -> Place | None:
        """Where an entry is in Redis; None where that does not answer."""
        redis, group = self.servers.redis, self.servers.settings.group

        async def look() -> Place:
            entry = await entry_of(redis, stream, entry_id)
            position = await last_delivered(redis, stream, group)
            held = await delivery(redis, stream, group, entry_id)
            unread = position is None or EntryId.parse(entry_id) > position
            state = "pending" if held else "unread" if entry and unread else "acknowledged"
            return Place(entry, held, state if entry or held else "not in the stream any more")

        return await self.ask("Redis", look)


def listed(row: Row) -> Listed:
    """One of the entries that are listed beside each other."""
    names = ("stream", "entry_id", "outcome", "order_id", "generation")
    return Listed(*(row[name] for name in names))
