"""The bare loop beside which latency is measured: read one entry, insert one row, commit.

`python -m tests.load.contestants.bare FILE` writes to FILE, when stopped, when each commit was confirmed.
"""

import asyncio
import json
import signal
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic

import uvloop
from redis.asyncio import Redis

from tests.load.contestants.told import GROUP, REDIS_URL, STREAM, connect, read

INSERT = "INSERT INTO orders VALUES ($1, $2, $3, $4, $5, $6, $7, 1, NULL, NULL, 'gtc')"


async def main(commits: list[tuple[float, list[str]]]) -> None:
    """Read on until SIGTERM."""
    task = asyncio.current_task()
    assert task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    redis = Redis.from_url(REDIS_URL, protocol=2, decode_responses=True)
    postgres = await connect()
    while True:
        for entry_id, fields in await read(redis, 1):
            names = ("order_id", "account", "symbol", "side", "type")
            values = [fields[name] for name in names]
            await postgres.execute(INSERT, fields["order_id"].encode(), entry_id, *values)
            commits.append((monotonic(), [entry_id]))
            await redis.xack(STREAM, GROUP, entry_id)


if __name__ == "__main__":
    seen: list[tuple[float, list[str]]] = []
    with suppress(asyncio.CancelledError):
        uvloop.run(main(seen))
    Path(sys.argv[1]).write_text(json.dumps({"commits": seen}))
