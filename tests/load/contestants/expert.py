"""What somebody who knows both servers writes by hand: batches, pipelines, `unnest`, uvloop."""

from typing import Any

import asyncpg
import uvloop
from redis.asyncio import Redis

from tests.load.contestants.orders import INSERT_MANY, Order, columns, content_hash, line, row
from tests.load.contestants.told import (
    BATCH_SIZE,
    CLAIM_S,
    GROUP,
    REDIS_URL,
    STREAM,
    Points,
    claim_key,
    connect,
    read,
)


async def main() -> None:
    """Drain the stream until stopped."""
    redis = Redis.from_url(REDIS_URL, protocol=2, decode_responses=True)
    postgres = await connect()
    points = Points()
    while True:
        if entries := await read(redis, BATCH_SIZE):
            await take(redis, postgres, points, entries)


async def take(
    redis: Redis,
    postgres: asyncpg.Connection,
    points: Points,
    entries: list[tuple[str, dict[str, str]]],
) -> None:
    """Validate a batch, claim it, insert what is new, write the points, acknowledge."""
    orders = [Order.model_validate(fields) for _, fields in entries]
    contents = [content_hash(fields) for _, fields in entries]
    new = await claim(redis, contents)
    rows = [
        row(content, entry_id, order)
        for content, (entry_id, _), order, is_new in zip(
            contents, entries, orders, new, strict=True
        )
        if is_new
    ]
    if rows:
        await postgres.execute(INSERT_MANY, *columns(rows))
    lines = [
        line(entry_id, "accepted" if is_new else "duplicate", order)
        for (entry_id, _), order, is_new in zip(entries, orders, new, strict=True)
    ]
    await points.write("\n".join(lines).encode())
    await acknowledge(redis, [entry_id for entry_id, _ in entries])


async def claim(redis: Redis, contents: list[bytes]) -> list[Any]:
    """Whether each content is seen for the first time."""
    async with redis.pipeline(transaction=False) as pipeline:
        for content in contents:
            pipeline.set(claim_key(content), "1", nx=True, ex=CLAIM_S)
        return await pipeline.execute()


async def acknowledge(redis: Redis, entry_ids: list[str]) -> None:
    """Acknowledge in one pipeline."""
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.xack(STREAM, GROUP, *entry_ids)
        await pipeline.execute()


if __name__ == "__main__":
    uvloop.run(main())
