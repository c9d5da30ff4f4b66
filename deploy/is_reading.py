"""Say whether the worker in this container reads its streams: the health check of compose.yaml.

A worker tries to read every second, and Redis notes each try of a consumer, also those that find nothing.
So a consumer that has been quiet for half a minute belongs to a worker that is stuck or gone, or waits for
a server with as many batches in hand as it may hold. Its name begins with the container's host name.

Exit codes: 0 every stream is read; 1 one is not, or Redis does not say.
Source: https://redis.io/docs/latest/commands/xinfo-consumers/
"""

import socket
import sys

from redis import Redis
from redis.exceptions import RedisError

from worker.settings import load

QUIET_MS_MAX = 30_000
REPLY_S_MAX = 5


def main() -> int:
    """Ask Redis about each stream, and name the first that is not read."""
    settings = load()
    try:
        with _connect(settings.redis_address) as redis:
            for stream in settings.streams:
                quiet_ms = _quiet_ms(redis, stream, settings.group)
                if quiet_ms is None or quiet_ms > QUIET_MS_MAX:
                    return _unhealthy(stream, quiet_ms)
    except RedisError as error:
        print(f"Redis: {error}", file=sys.stderr)
        return 1
    return 0


def _connect(url: str) -> Redis:
    return Redis.from_url(  # pyright: ignore[reportUnknownVariableType]
        url,
        decode_responses=True,
        socket_connect_timeout=REPLY_S_MAX,
        socket_timeout=REPLY_S_MAX,
    )


def _quiet_ms(redis: Redis, stream: str, group: str) -> int | None:
    """Milliseconds since this container's worker last tried to read; None where it never did."""
    consumers = redis.xinfo_consumers(stream, group)
    ours = f"{socket.gethostname()}-"
    return min((c["idle"] for c in consumers if c["name"].startswith(ours)), default=None)


def _unhealthy(stream: str, quiet_ms: int | None) -> int:
    since = "never" if quiet_ms is None else f"{quiet_ms} ms ago"
    print(f"stream {stream} was last read {since}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
