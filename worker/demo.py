"""The demo: 50 orders and 20 duplicates, the whole way, on servers of its own.

Publishes the way a producer would, runs a worker until the stream is drained, then looks into Redis,
Postgres and the points file, and compares what it finds with what must be there.
"""

import os
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from streams.connection import call, connect
from streams.producer import Producer
from worker import logs, settings
from worker.embedded import embedded_services
from worker.run import in_loop, ledger_of, migrated
from worker.service import serve
from worker.settings import Settings

ORDERS, DUPLICATES = 50, 20
REDIS_TIMEOUT_MS = 5_000

OUTCOMES = "SELECT outcome, count(*) FROM outcomes GROUP BY outcome"
PAIRS = """
SELECT d.order_id AS repeat, o.order_id AS original
FROM duplicates d JOIN orders o USING (content_hash, generation)
"""
CLAIMED = """
SELECT count(*) FROM orders JOIN unnest($1::text[], $2::text[]) AS claim (key, entry_id) USING (entry_id)
WHERE claim.key LIKE '%' || encode(orders.content_hash, 'hex')
"""


class Row(NamedTuple):
    """One line of the table: where, what, how many there must be, how many there are."""

    where: str
    what: str
    expected: int
    found: int


def run_demo() -> int:
    """Run the demo and print its table. 0 where all is as expected, else 1.

    :raises EmbeddedUnavailable: a server cannot be had; the message says what to install
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="ordergate-demo-") as directory:
        Console().print("starting Redis and Postgres …")
        with embedded_services(Path(directory)) as services:
            chosen = settings.load(
                {
                    "REDIS_URL": services.redis_url,
                    "DATABASE_URL": services.database_url,
                    "INFLUXDB_URL": services.points_url,
                    "WORKER_HTTP": "off",
                    "WORKER_LOG_LEVEL": os.environ.get("WORKER_LOG_LEVEL", "warning"),
                }
            )
            logs.configure(chosen)

            async def demonstrate() -> None:
                rows.extend(await _demonstrate(chosen))

            in_loop(demonstrate)
    return _print(rows)


async def _demonstrate(chosen: Settings) -> list[Row]:
    orders, originals = _orders(random.Random(1))  # noqa: S311 - the same demo every time
    await migrated(chosen)
    redis = connect(chosen.redis_address, timeout_ms=REDIS_TIMEOUT_MS)
    try:
        Console().print(f"publishing {ORDERS} orders and {DUPLICATES} duplicates of some of them …")
        await Producer(redis, chosen.streams[0]).publish(orders)
        Console().print("running a worker until the stream is drained …\n")
        await serve(chosen, drain=True)
        in_redis = await _in_redis(redis, chosen)
    finally:
        await redis.aclose()
    return [*in_redis, *await _in_postgres(chosen, originals), *_in_points(chosen)]


def _orders(chance: random.Random) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The orders in the order they are sent; and for each repeat's order id that of its original."""
    orders = [
        {
            "order_id": f"A-{number}",
            "account": chance.choice(("alpha", "beta")),
            "symbol": chance.choice(("BTCUSDT", "ETHUSDT", "EUR/USD")),
            "side": chance.choice(("buy", "sell")),
            "type": "limit",
            "quantity": f"{number}.{chance.randrange(10**8):08}",
            "price": f"{chance.randrange(10**4, 10**5)}.{chance.randrange(100):02}",
        }
        for number in range(1, ORDERS + 1)
    ]
    originals: dict[str, str] = {}
    for number, order in enumerate(chance.sample(orders, DUPLICATES), start=1):
        repeat = order | {"order_id": f"B-{number}"}
        originals[repeat["order_id"]] = order["order_id"]
        orders.insert(chance.randint(orders.index(order) + 1, len(orders)), repeat)
    return orders, originals


async def _in_redis(redis: Redis, chosen: Settings) -> list[Row]:
    stream = chosen.streams[0]
    claims: list[str] = await call(redis, "KEYS", "idempotency:order:*")  # a Redis of ours
    entries: list[str] = await call(redis, "MGET", *claims) if claims else []
    async with ledger_of(chosen) as ledger, ledger.connection() as connection:
        right = await connection.fetchval(CLAIMED, claims, entries)
    pending = (await call(redis, "XPENDING", stream, chosen.group))[0]
    return [
        Row(
            "Redis", "entries in the stream", ORDERS + DUPLICATES, await call(redis, "XLEN", stream)
        ),
        Row("Redis", "claims that name their order", ORDERS, right),
        Row("Redis", "entries pending", 0, pending),
    ]


async def _in_postgres(chosen: Settings, originals: Mapping[str, str]) -> list[Row]:
    async with ledger_of(chosen) as ledger, ledger.connection() as connection:
        counts: dict[str, int] = dict(await connection.fetch(OUTCOMES))
        pairs: dict[str, str] = dict(await connection.fetch(PAIRS))
    right = sum(pairs.get(repeat) == original for repeat, original in originals.items())
    return [
        Row("Postgres", "accepted", ORDERS, counts.get("accepted", 0)),
        Row("Postgres", "duplicates", DUPLICATES, counts.get("duplicate", 0)),
        Row("Postgres", "duplicates that name their original", DUPLICATES, right),
        Row("Postgres", "rejected", 0, counts.get("rejected", 0)),
    ]


def _in_points(chosen: Settings) -> list[Row]:
    """Count points by series and time, as InfluxDB would: a line written twice is one point."""
    path = Path(chosen.influxdb_address.removeprefix("file://"))
    lines = path.read_text().splitlines() if path.exists() else []
    points = {(line.partition(" ")[0], line.rpartition(" ")[2]) for line in lines}
    found = [series for series, _ in points]
    return [
        Row("points", outcome, expected, sum(f",outcome={outcome}," in s for s in found))
        for outcome, expected in (("accepted", ORDERS), ("duplicate", DUPLICATES))
    ]


def _print(rows: Sequence[Row]) -> int:
    table = Table("where", "what", "expected", "found", "")
    for row in rows:
        same = row.expected == row.found
        mark = "[green]ok[/]" if same else "[red]differs[/]"
        table.add_row(row.where, row.what, str(row.expected), str(row.found), mark)
    Console().print(table)
    return 0 if rows and all(row.expected == row.found for row in rows) else 1
