"""`python -m worker` as an operator meets it: settings, secrets, servers of its own, the demo."""

import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest

from scripts.replay.synthetic import synthetic_orders
from streams.connection import connect
from streams.producer import Producer
from tests.isolation import Place
from tests.record import until
from tests.workers import Workers

pytestmark = pytest.mark.anyio

BAD_SETTINGS = {
    "WORKER_DEDUPE_WINDOW": "1 day",
    "WORKER_BATCH_SIZE": "0",
    "WORKER_TAKEOVER_AFTER": "1s",
    "WORKER_LOG_LEVEL": "loud",
    "WORKER_STREAMS": "orders,orders",
    "WORKER_ENVELOPE_FIELDS": "price",
    "DATABASE_SCHEMA": 'a"b',
    "DATABASE_PORT": "70000",
    "REDIS_PORT": "redis",
    "REDIS_DB": "-1",
    "DATABASE_PASSWORD_FILE": "/nowhere/at/all",
    "REDIS_URL": "localhost:6379",
    "DATABASE_URL": "mysql://localhost/x",
    "INFLUXDB_URL": "localhost:8086",
    "DEDUPE_REDIS_URL": "localhost",
}


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncGenerator[Workers]:
    """Workers that begin as an operator's do."""
    async with Workers(tmp_path, fresh=True) as workers:
        yield workers


@pytest.mark.parametrize("name", BAD_SETTINGS)
async def test_a_bad_setting_is_named_in_one_line_and_nothing_is_started(
    workers: Workers, name: str
) -> None:
    worker = await workers.run({name: BAD_SETTINGS[name]})
    assert await worker.ended(within_s=20) == 2
    assert worker.output == ""
    line, *others = worker.log.splitlines()
    assert others == []
    assert line.startswith("ordergate: ")
    assert name in line


async def test_every_bad_setting_is_named_at_once(workers: Workers) -> None:
    names = ["WORKER_BATCH_SIZE", "WORKER_LOG_LEVEL", "DATABASE_PORT"]
    worker = await workers.run({name: BAD_SETTINGS[name] for name in names})
    assert await worker.ended() == 2
    assert all(name in worker.log for name in names)


async def test_a_variable_that_is_misspelt_is_warned_of(place: Place, workers: Workers) -> None:
    worker = await workers.start(place, "--drain", WORKER_BATCH_SIZES="7")
    assert await worker.ended() == 0
    assert "WORKER_BATCH_SIZES" in worker.log
    assert "WORKER_BATCH_SIZE" in worker.log


SECRET = "p3nny-black"


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(SECRET)
    return str(path)


async def test_secrets_are_not_in_what_is_logged_or_printed(
    place: Place, workers: Workers, token_file: str
) -> None:
    started = [
        await workers.start(place, REDIS_URL=f"redis://:{SECRET}@127.0.0.1:1/0"),
        await workers.start(place, DATABASE_URL=f"postgresql://tbot:{SECRET}@127.0.0.1:1/tbot_dev"),
        await workers.start(place, DEDUPE_REDIS_URL=f"redis://:{SECRET}@127.0.0.1:1/0"),
        await workers.start(place, INFLUXDB_TOKEN="", INFLUXDB_TOKEN_FILE=token_file),
    ]
    await place.publish(list(synthetic_orders(5, 0, seed=1)))
    for worker in started[:2]:
        await worker.logged("dependency.lost")
    await started[2].logged("worker.ready")
    await started[3].logged("worker.ready")
    refused = await workers.run({"DATABASE_URL": f"mysql://tbot:{SECRET}@h/x", "REDIS_DB": SECRET})
    assert await refused.ended() == 2
    for worker in (*started, refused):
        assert SECRET not in worker.log + worker.output


async def test_embedded_servers_take_a_worker_from_nothing_to_outcomes(
    workers: Workers, tmp_path: Path
) -> None:
    directory = tmp_path / "data"
    producer = await workers.run({}, "--embedded", str(directory))
    await producer.logged("worker.ready")
    urls = dict(line.split("=", 1) for line in producer.output.splitlines())
    async with connect(urls["REDIS_URL"], timeout_ms=5_000) as redis:
        await Producer(redis, "orders").publish(list(synthetic_orders(50, 20, seed=2)))
    await until(lambda: outcomes(urls["DATABASE_URL"], 70))
    producer.signal(signal.SIGTERM)
    assert await producer.ended() == 0
    drained = await workers.run({}, "--embedded", str(directory), "--drain")
    assert await drained.ended() == 0
    lines = (directory / "points.lp").read_text().splitlines()
    assert urls["INFLUXDB_URL"] == (directory / "points.lp").as_uri()
    assert len({line for line in lines if line.startswith("orders,")}) == 70
    assert sum("outcome=accepted" in line for line in lines) == 50


async def outcomes(url: str, count: int) -> bool:
    connection = cast("Any", await asyncpg.connect(url))
    try:
        return await connection.fetchval("SELECT count(*) FROM outcomes") == count
    finally:
        await connection.close()


async def test_drain_on_servers_of_its_own_ends_by_itself(workers: Workers, tmp_path: Path) -> None:
    worker = await workers.run({}, "--embedded", str(tmp_path / "data"), "--drain")
    assert await worker.ended() == 0


async def test_the_demo_shows_the_fifty_and_the_twenty(workers: Workers) -> None:
    worker = await workers.run({}, "demo")
    assert await worker.ended() == 0
    assert "50" in worker.output
    assert "20" in worker.output


async def test_streams_are_read_side_by_side(place: Place, workers: Workers) -> None:
    """One process, two streams: each with claims, group and outcomes of its own."""
    other = f"{place.stream}-b"
    both = place.having(WORKER_STREAMS=f"{place.stream},{other}")
    sent = list(synthetic_orders(10, 5, seed=4))
    await place.publish(sent)
    await Producer(place.redis, other).publish(list(synthetic_orders(10, 5, seed=5)))
    worker = await workers.start(both, "--drain")
    assert await worker.ended() == 0
    rows = await place.fetch(
        "SELECT stream, outcome, count(*) AS n FROM outcomes GROUP BY 1, 2 ORDER BY 1, 2"
    )
    assert [(row["stream"], row["outcome"], row["n"]) for row in rows] == [
        (stream, outcome, n)
        for stream in (place.stream, other)
        for outcome, n in (("accepted", 10), ("duplicate", 5))
    ]


async def test_migrate_names_the_server_that_does_not_answer(workers: Workers) -> None:
    nowhere = {"DATABASE_URL": "postgresql://tbot:x@127.0.0.1:1/tbot_dev"}
    migration = await workers.run(nowhere, "migrate")
    assert await migration.ended() == 1
    assert migration.log.startswith("ordergate: Postgres does not answer: ConnectionRefusedError")
