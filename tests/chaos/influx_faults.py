"""What may happen to an InfluxDB: away, refusing, slow, and only half at work."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from random import Random

import anyio
from anyio import to_thread

from tests.chaos.influx_front import TROUBLES, Answer, InfluxFront, passing
from tests.influxdb_server import InfluxServer

Fault = Callable[[InfluxServer, InfluxFront, Random], Awaitable[None]]


async def killed(influx: InfluxServer, _front: InfluxFront, _chance: Random) -> None:
    """SIGKILL, and started again: it has what it acknowledged."""
    await to_thread.run_sync(influx.kill)
    await to_thread.run_sync(influx.start)


async def stopped(influx: InfluxServer, _front: InfluxFront, chance: Random) -> None:
    """Stopped for a while."""
    await to_thread.run_sync(influx.stop)
    await anyio.sleep(chance.uniform(0.2, 8))
    await to_thread.run_sync(influx.start)


async def away(for_s: float, influx: InfluxServer, _front: InfluxFront, _chance: Random) -> None:
    """Stopped for long: points are owed, and orders go on."""
    await to_thread.run_sync(influx.stop)
    await anyio.sleep(for_s)
    await to_thread.run_sync(influx.start)


async def hung(influx: InfluxServer, _front: InfluxFront, chance: Random) -> None:
    """Accepts connections and answers nothing, then stores what it was sent meanwhile."""
    influx.pause()
    await anyio.sleep(chance.uniform(0.2, 5))
    influx.resume()


async def answering(
    answer: Answer, _influx: InfluxServer, front: InfluxFront, chance: Random
) -> None:
    """Answers so for a while."""
    front.answer = answer
    await anyio.sleep(chance.uniform(0.5, 3))
    front.answer = passing


def influx_faults(away_s: float) -> Mapping[str, Fault]:
    """All of them by name. :param away_s: how long the longest outage takes"""
    return {
        "killed": killed,
        "stopped": stopped,
        f"away for {away_s:.0f} s": partial(away, away_s),
        "hung": hung,
        **{name: partial(answering, answer) for name, answer in TROUBLES.items()},
    }
