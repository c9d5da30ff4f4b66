"""The loop that tutorials show: one entry at a time, each step awaited before the next."""

import asyncio

import asyncpg
from redis.asyncio import Redis

from tests.load.contestants.orders import INSERT, Order, content_hash, row
from tests.load.contestants.told import CLAIM_S, GROUP, REDIS_URL, STREAM, claim_key, connect, read


async def main() -> None:
    """Drain the stream until stopped."""
    redis = Redis.from_url(REDIS_URL, protocol=2, decode_responses=True)
    postgres = await connect()
    while True:
        for entry_id, fields in await read(redis, 1):
            await take(redis, postgres, entry_id, fields)


async def take(
    redis: Redis, postgres: asyncpg.Connection, entry_id: str, fields: dict[str, str]
) -> None:
    """Store an order unless its content was seen, and acknowledge it."""
    order, content = Order.model_validate(fields), content_hash(fields)
    if await redis.set(claim_key(content), entry_id, nx=True, ex=CLAIM_S):
        await postgres.execute(INSERT, *row(content, entry_id, order))
    await redis.xack(STREAM, GROUP, entry_id)


if __name__ == "__main__":
    asyncio.run(main())
