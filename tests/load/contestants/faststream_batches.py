"""FastStream in batch mode, with the expert's steps inside: pipelined claims, `unnest`, points."""
# It is installed for `make bench` alone, so its types are not there when all else is checked.
# pyright: basic, reportMissingImports=false

import logging
from typing import Annotated, Any

import asyncpg
import uvloop
from faststream import AckPolicy, Context, ContextRepo, FastStream
from faststream.redis import RedisBatchStreamMessage, RedisBroker, StreamSub
from redis.asyncio import Redis

from tests.load.contestants.expert import claim
from tests.load.contestants.orders import INSERT_MANY, Order, columns, content_hash, line, row
from tests.load.contestants.told import (
    BATCH_SIZE,
    CONSUMER,
    DATABASE_URL,
    GROUP,
    REDIS_URL,
    STREAM,
    Points,
)

broker = RedisBroker(REDIS_URL, log_level=logging.DEBUG)
app = FastStream(broker)
redis = Redis.from_url(REDIS_URL, decode_responses=True)
points = Points()


@app.on_startup
async def connect(context: ContextRepo) -> None:
    """Open the pool."""
    context.set_global("pool", await asyncpg.create_pool(DATABASE_URL))


@broker.subscriber(
    stream=StreamSub(STREAM, group=GROUP, consumer=CONSUMER, batch=True, max_records=BATCH_SIZE),
    ack_policy=AckPolicy.ACK,
)
async def take(
    batch: list[dict[str, str]],
    message: RedisBatchStreamMessage,
    pool: Annotated[asyncpg.Pool, Context()],
) -> None:
    """Validate a batch, claim it, insert what is new, write the points."""
    ids = [entry_id.decode() for entry_id in message.raw_message["message_ids"]]
    orders = [Order.model_validate(fields) for fields in batch]
    contents = [content_hash(fields) for fields in batch]
    new = await claim(redis, contents)
    every: list[tuple[bytes, str, Order, Any]] = list(zip(contents, ids, orders, new, strict=True))
    if rows := [row(content, id_, order) for content, id_, order, is_new in every if is_new]:
        await pool.execute(INSERT_MANY, *columns(rows))
    lines = [line(id_, "accepted" if n else "duplicate", order) for _, id_, order, n in every]
    await points.write("\n".join(lines).encode())


if __name__ == "__main__":
    uvloop.run(app.run())
