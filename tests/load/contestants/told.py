"""What every contestant is told by its environment: the variables of Ordergate's own worker."""

import os
from typing import Any, cast
from urllib.parse import urlsplit

import asyncpg
from aiohttp import ClientSession
from redis.asyncio import Redis

STREAM = "orders"
GROUP = "order-workers"
CONSUMER = "contestant"
CLAIM_S = 86_400  #: how long a repeat is a duplicate

REDIS_URL = os.environ["REDIS_URL"]
DATABASE_URL = os.environ["DATABASE_URL"]
INFLUXDB_URL = os.environ["INFLUXDB_URL"]
BATCH_SIZE = int(os.environ["WORKER_BATCH_SIZE"])
IN_FLIGHT = int(os.environ["WORKER_BATCHES_IN_FLIGHT"])


def claim_key(content_hash: bytes) -> str:
    """The key whose `SET NX` says whether a content is new."""
    return f"idempotency:order:{{{STREAM}}}:{content_hash.hex()}"


async def connect() -> asyncpg.Connection:
    """A connection to Postgres."""
    return cast("asyncpg.Connection", await cast("Any", asyncpg.connect(DATABASE_URL)))


async def read(redis: Redis, count: int) -> list[tuple[str, dict[str, str]]]:
    """The next entries of the group, at most so many; waits for the first."""
    reply = await cast(
        "Any", redis.xreadgroup(GROUP, CONSUMER, {STREAM: ">"}, count=count, block=1000)
    )
    return reply[0][1] if reply else []


class Points:
    """Where points go: appended to a file, or posted to InfluxDB."""

    def __init__(self) -> None:
        url = urlsplit(INFLUXDB_URL)
        appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(url.path, appending) if url.scheme == "file" else None
        self._client: ClientSession | None = None

    async def write(self, lines: bytes) -> None:
        """Write lines of line protocol, nanosecond precision."""
        if self._file is not None:
            os.write(self._file, lines + b"\n")
        else:
            await self._post(lines)

    async def _post(self, lines: bytes) -> None:
        self._client = self._client or ClientSession(
            headers={"Authorization": f"Token {os.environ['INFLUXDB_TOKEN']}"}
        )
        place = {"org": os.environ["INFLUXDB_ORG"], "bucket": os.environ["INFLUXDB_BUCKET"]}
        url = f"{INFLUXDB_URL}/api/v2/write"
        async with self._client.post(
            url, params={**place, "precision": "ns"}, data=lines
        ) as answer:
            answer.raise_for_status()
