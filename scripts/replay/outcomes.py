"""What Postgres has on record of one run's entries.

A connection of its own, apart from the worker's ledger: it writes nothing but a temporary table of
the run's entry ids, and takes the view `outcomes` for what it promises to be.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, cast

import asyncpg

from scripts.replay.publishing import EntryIds
from scripts.replay.reference import Figures

CONNECT_S_MAX = 10
STATEMENT_S_MAX = 600  #: a summary of ten million entries takes a minute

Row = Mapping[str, Any]


def statements(file: Traversable) -> Mapping[str, str]:
    """The statements of an SQL file, by the name in each one's `-- name:` line."""
    parts = re.split(r"^-- name: (\w+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


SQL = statements(files("scripts.replay") / "outcomes.sql")


class OutcomesUnreadable(Exception):
    """Postgres does not answer, or has no tables of ours; `str(error)` is one sentence."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The outcomes of a run so far.

    :ivar recorded_now: outcomes recorded since the publishing began; the others were on record before
    :ivar seconds: from the beginning of the publishing to the last outcome; None where none was recorded
    :ivar quiet_s: seconds since the last outcome was recorded; None where there is none
    :ivar latencies_ms: from entry id to recorded_at, of those recorded now: p50, p95, p99 and the longest
    """

    figures: Figures
    recorded_now: int
    seconds: float | None
    quiet_s: float | None
    latencies_ms: Sequence[float] | None

    @property
    def recorded(self) -> int:
        """How many of the entries have an outcome."""
        return self.figures.accepted + self.figures.duplicates + self.figures.rejected


class Outcomes:
    """The outcomes of the entries that one run adds to `stream`; `connected` makes it.

    :ivar began_at: when the publishing began, by Postgres' clock
    """

    def __init__(self, connection: asyncpg.Connection, stream: str, began_at: datetime) -> None:
        self._connection, self._stream, self.began_at = connection, stream, began_at

    async def follow(self, ids: EntryIds) -> None:
        """Say which entries are meant, once all are published."""
        with _postgres_errors():
            await self._connection.execute(SQL["create_replayed"])
            records = ((str(entry_id), entry_id.ms) for entry_id in ids)
            await self._connection.copy_records_to_table("replayed", records=records)
            await self._connection.execute(SQL["analyze_replayed"])

    async def found(self, entry_ids: Sequence[str]) -> set[str]:
        """Which of some entries have an outcome."""
        return {row["entry_id"] for row in await self._fetch("found", self._stream, entry_ids)}

    async def missing(self) -> set[str]:
        """Entries that have no outcome; at most a thousand of them."""
        return {row["entry_id"] for row in await self._fetch("missing", self._stream)}

    async def summary(self) -> Summary:
        """Count and measure what is on record."""
        row = (await self._fetch("summary", self._stream, self.began_at))[0]
        figures = Figures(row["accepted"], row["duplicates"], row["rejected"])
        return Summary(
            figures, row["recorded_now"], row["seconds"], row["quiet_s"], row["latencies_ms"]
        )

    async def accepted_elsewhere(self, first_ms: int, last_ms: int) -> AsyncGenerator[Row]:
        """Rows of `orders` between two times that are not this run's, with `ms` of their entry ids."""
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        span = [epoch + timedelta(milliseconds=ms) for ms in (max(first_ms, 0), last_ms)]
        with _postgres_errors():
            async with self._connection.transaction():
                cursor = self._connection.cursor(
                    SQL["accepted_elsewhere"], self._stream, *span, prefetch=5000
                )
                async for row in cast("AsyncIterable[Row]", cursor):
                    yield row

    async def ask(self, statement: str, *arguments: object) -> list[Row]:
        """The rows of a statement, for which `replayed` holds the entries that are followed."""
        with _postgres_errors():
            return cast("list[Row]", await self._connection.fetch(statement, *arguments))

    async def _fetch(self, name: str, *arguments: object) -> list[Row]:
        return await self.ask(SQL[name], *arguments)


@asynccontextmanager
async def connected(url: str, schema: str, stream: str) -> AsyncGenerator[Outcomes]:
    """Connect, and note the time in Postgres: the publishing begins now.

    :raises OutcomesUnreadable: from the block as well
    """
    with _postgres_errors():
        connection = cast("asyncpg.Connection", await _connect(url, schema))
    try:
        with _postgres_errors():
            if not await connection.fetchval(SQL["has_outcomes"]):
                raise OutcomesUnreadable(
                    f"schema {schema} has no view outcomes: run `python -m worker migrate`"
                )
            began_at = cast("datetime", await connection.fetchval(SQL["clock"]))
        yield Outcomes(connection, stream, began_at)
    finally:
        connection.terminate()


def _connect(url: str, schema: str) -> Awaitable[object]:
    return asyncpg.connect(  # pyright: ignore[reportUnknownVariableType]
        url,
        timeout=CONNECT_S_MAX,
        command_timeout=STATEMENT_S_MAX,
        server_settings={"search_path": schema, "application_name": "replay_load"},
    )


@contextmanager
def _postgres_errors() -> Generator[None]:
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise OutcomesUnreadable(f"Postgres: {error or type(error).__name__}") from error
