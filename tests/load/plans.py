"""How Postgres goes through one batch: the plan of every statement, for docs/database/plans.md.

    DATABASE_URL=postgresql://postgres@localhost/postgres python -m tests.load.plans

Needs a superuser and the extension auto_explain, which the servers of packages have and the embedded one has
not. Works in a schema of its own and removes it.
"""

import os
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import anyio

from streams.entry import Entry
from tests.load.loads import DUPLICATES_SHARE, Load
from worker.decide import Claim, Decision, decide
from worker.ledger import Ledger, Rules
from worker.migrate import migrate
from worker.order import ENVELOPE_FIELDS, READING, Malformed, Order, parse
from worker.postgres import Connection

PAGE = Path(__file__).resolve().parents[2] / "docs" / "database" / "plans.md"
SCHEMA, STREAM = "ordergate_plans", "orders"
WINDOW = timedelta(days=1)
BATCH, BATCHES_BEFORE = 1000, 300
FIRST_MS = 1_767_225_600_000
BAD = 10  #: of the batch that is explained
EXPLAIN = """
    LOAD 'auto_explain';
    SET auto_explain.log_min_duration = 0;
    SET auto_explain.log_nested_statements = on;
    SET auto_explain.log_analyze = on;
    SET auto_explain.log_buffers = on;
    SET auto_explain.log_level = notice
"""
HEAD = """# Plans

How Postgres goes through one batch of {batch} entries, {bad} of them rejections, beside
{rows:,} entries on record: `EXPLAIN (ANALYZE, BUFFERS)` of each statement that ran, in its order,
the statements within `record_outcomes` first. Made by `python -m tests.load.plans` on Postgres
{version}; times are those of a run with the instruments on.
"""


def decisions() -> Iterator[Decision]:
    """Entries of the common load as decided: the claims of all originals are stored."""
    seen: dict[bytes, str] = {}
    for n, order in enumerate(Load.of(BATCH * (BATCHES_BEFORE + 1), DUPLICATES_SHARE)):
        bad = n >= BATCH * BATCHES_BEFORE and n % BATCH < BAD
        fields = [
            word for pair in (order | {"quantity": "0"} if bad else order).items() for word in pair
        ]
        entry = Entry(STREAM, f"{FIRST_MS + n // 50}-{n % 50}", fields)
        yield decide(
            entry,
            found := parse(fields),
            _claim(found, seen, entry),
            int(WINDOW.total_seconds() * 1000),
        )


def _claim(found: Order | Malformed, seen: dict[bytes, str], entry: Entry) -> Claim | None:
    if isinstance(found, Malformed):
        return None
    return Claim(seen.setdefault(found.content_hash, entry.id), True)


async def main() -> None:
    """Record, explain, and write the page."""
    url = os.environ["DATABASE_URL"]
    ledger = Listening(url, SCHEMA, timeout_ms=120_000, connections_max=1)
    ledger.plans = {}
    await migrate(ledger, SCHEMA)
    try:
        async with ledger.connection() as connection:
            version = await connection.fetchval("SHOW server_version")
        plans = await _plans(ledger)
    finally:
        async with ledger.connection() as connection:
            await connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
        await ledger.aclose()
    head = HEAD.format(
        batch=BATCH, bad=BAD, rows=BATCH * BATCHES_BEFORE, version=version.split()[0]
    )
    PAGE.write_text(
        "\n".join([head, *(f"## {title}\n\n```\n{plan}\n```\n" for title, plan in plans.items())])
    )


async def _plans(ledger: "Listening") -> dict[str, str]:
    """The first plan of each statement, by what it begins with."""
    coming = decisions()
    for _ in range(BATCHES_BEFORE):
        await _record(ledger, list(islice(coming, BATCH)), owe_points=False)
    async with ledger.connection() as connection:
        await connection.execute("VACUUM ANALYZE")
        await connection.execute(EXPLAIN)
    batch = list(coming)
    await _record(ledger, batch, owe_points=True)
    async with ledger.owed_points(BATCH) as debt:
        debt.paid += debt.points
    await _record(ledger, batch, owe_points=False)
    await ledger.settle_in_hand(left_after_ms=0)
    return ledger.plans


class Listening(Ledger):
    """A ledger that keeps the plans its server tells of.

    :ivar plans: the first plan of each statement, by what that begins with
    """

    plans: dict[str, str]

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """See `Ledger.connection`."""
        async with super().connection() as connection:
            connection.add_log_listener(self._listen)
            try:
                yield connection
            finally:
                connection.remove_log_listener(self._listen)

    def _listen(self, _connection: object, message: Any) -> None:  # noqa: ANN401 - asyncpg's own
        found = re.search(r"plan:\nQuery Text: (.*)", str(message.message), flags=re.DOTALL)
        if found:
            query, plan = _divided(found[1])
            self.plans.setdefault(query, plan)


def _divided(text: str) -> tuple[str, str]:
    """The beginning of a statement, and its plan, which begins at the first line with costs."""
    lines = text.splitlines()
    top = next(n for n, line in enumerate(lines) if re.search(r"\(cost=\S+ rows=", line))
    words = " ".join(" ".join(lines[:top]).split())
    return (words if len(words) <= 90 else f"{words[:90]}…"), "\n".join(lines[top:])


async def _record(ledger: Ledger, batch: list[Decision], *, owe_points: bool) -> None:
    rules = Rules(int(WINDOW.total_seconds() * 1000), ENVELOPE_FIELDS, READING)
    await ledger.record(STREAM, batch, rules=rules, owe_points=owe_points, read_after=ledger.as_of)


if __name__ == "__main__":
    anyio.run(main)
