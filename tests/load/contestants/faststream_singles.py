"""FastStream as its pages show it: one subscriber, one entry at a time, acknowledged by the framework."""
# It is installed for `make bench` alone, so its types are not there when all else is checked.
# pyright: basic, reportMissingImports=false

import logging
from typing import Annotated

import asyncpg
import uvloop
from faststream import AckPolicy, Context, ContextRepo, FastStream
from faststream.redis import RedisBroker, StreamSub
from redis.asyncio import Redis

from tests.load.contestants.orders import INSERT, Order, content_hash, row
from tests.load.contestants.told import (
    CLAIM_S,
    CONSUMER,
    DATABASE_URL,
    GROUP,
    REDIS_URL,
    STREAM,
    claim_key,
)

broker = RedisBroker(REDIS_URL, log_level=logging.DEBUG)
app = FastStream(broker)
redis = Redis.from_url(REDIS_URL)


@app.on_startup
async def connect(context: ContextRepo) -> None:
    """Open the pool."""
    context.set_global("pool", await asyncpg.create_pool(DATABASE_URL))


@broker.subscriber(
    stream=StreamSub(STREAM, group=GROUP, consumer=CONSUMER, max_records=100),
    ack_policy=AckPolicy.ACK,
)
async def take(order: dict[str, str], pool: Annotated[asyncpg.Pool, Context()]) -> None:
    """Store an order unless its content was seen."""
    valid, content = Order.model_validate(order), content_hash(order)
    if await redis.set(claim_key(content), "1", nx=True, ex=CLAIM_S):
        await pool.execute(INSERT, *row(content, "", valid))


if __name__ == "__main__":
    uvloop.run(app.run())
