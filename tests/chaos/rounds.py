"""The mixed batch again and again, each time by a worker that reaches its servers through proxies.

A round costs a tenth of a second: it shares schema, database and bucket with those before it and has a stream
of its own. Several lanes of rounds run at once, for most of a round is waiting.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import anyio
from anyio import to_thread

from tests.chaos.mixed_batch import EARLIER, EXPECTED, MIXED, T0, TIMES, WINDOW_MS
from tests.chaos.proxy import Direction, Proxy
from tests.isolation import Place, isolated
from tests.record import check, forge_claim, is_settled
from tests.servers import Servers
from tests.workers import drain, impatient
from worker.service import serve

LANES = 6
SOUND_ROUNDS = 12
ROUND_S_MAX = 60  #: seconds; a busy machine included
EARLIER_IDS = [f"{T0}-{n}" for n in range(len(EARLIER))]
#: Whom the claims of the earlier orders name. The first is not its order's own, and is taken for stored.
CLAIMED_BY = (f"{T0 - 1}-0", EARLIER_IDS[1])
IDS = [*EARLIER_IDS, *(f"{T0 + ms}-0" for ms in TIMES)]

J = TypeVar("J")
R = TypeVar("R")


class Proxies(NamedTuple):
    """One before each server."""

    redis: Proxy
    postgres: Proxy
    influxdb: Proxy


SERVERS = Proxies._fields
Fail = Callable[[Proxies], Awaitable[object]]  #: what goes on at the proxies while a worker runs


@asynccontextmanager
async def proxied(place: Place, *, record: bool = False) -> AsyncGenerator[tuple[Place, Proxies]]:
    """The same place for workers whose connections go through proxies."""
    settings = place.settings
    urls = (settings.redis_address, settings.database_address, settings.influxdb_address)
    async with AsyncExitStack() as stack:
        proxies = Proxies(
            *[await stack.enter_async_context(Proxy.before(url, record=record)) for url in urls]
        )
        addresses = [proxy.url for proxy in proxies]
        names = ("REDIS_URL", "DATABASE_URL", "INFLUXDB_URL")
        yield place.having(**dict(zip(names, addresses, strict=True))), proxies


@dataclass(frozen=True)
class OneStream(Place):
    """A place whose bucket holds other streams' points too."""

    async def points(self) -> list[dict[str, object]]:
        """Every point of the stream, by time."""
        own = f"SELECT * FROM orders WHERE entry_id != '' AND stream = '{self.stream}'"
        return await to_thread.run_sync(partial(self.influx.query, own, self.bucket))


class Lane:
    """Rounds one after the other, in one place."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.rounds = 0

    @classmethod
    @asynccontextmanager
    async def opened(cls, servers: Servers) -> AsyncGenerator["Lane"]:
        """A lane whose place has the earlier orders on record."""
        async with isolated(servers) as made:
            window = f"{WINDOW_MS}ms"
            place = impatient(made).having(WORKER_CONSUMER="one", WORKER_DEDUPE_WINDOW=window)
            await place.publish(EARLIER, EARLIER_IDS)
            await drain(place)
            yield cls(place)

    async def run(self, fail: Fail, *, dies: bool = False, record: bool = False) -> Proxies:
        """One round: a worker drains while `fail` goes on; then all must be as it should.

        :param dies: the worker does so when `fail` returns; else it ends by itself
        """
        place = await self._renewed()
        async with proxied(place, record=record) as (through, proxies):
            with anyio.fail_after(ROUND_S_MAX):
                await _work(through, partial(fail, proxies), dies=dies)
                for proxy in proxies:
                    await proxy.quiet()
        if not await _is_done(place):
            await drain(place)
        assert await check(place) == EXPECTED
        return proxies

    async def _renewed(self) -> Place:
        """The place with a new stream: the earlier orders come again, and the mixed batch is new."""
        self.rounds += 1
        old = self._place
        variables = {**old.variables, "WORKER_STREAMS": f"{old.stream}-{self.rounds}"}
        place = OneStream(variables, old.redis, old.postgres, old.influx)
        await place.postgres.execute(FORGET.format(stream=place.stream, earlier=EARLIER_IDS[-1]))
        await place.command("FLUSHDB")
        for fields, entry_id in zip(EARLIER, CLAIMED_BY, strict=True):
            await forge_claim(place, fields, entry_id)
        await place.publish([*EARLIER, *MIXED], IDS)
        return place


FORGET = """
DELETE FROM point_backlog;
DELETE FROM points_in_hand;
DELETE FROM duplicates;
DELETE FROM rejections;
DELETE FROM orders WHERE entry_id > '{earlier}';
UPDATE orders SET stream = '{stream}';
"""


async def _work(through: Place, fail: Callable[[], Awaitable[object]], *, dies: bool) -> None:
    async with anyio.create_task_group() as tasks:

        async def work() -> None:
            await serve(through.settings, drain=True)
            tasks.cancel_scope.cancel()

        tasks.start_soon(work)
        await fail()
        if dies:
            tasks.cancel_scope.cancel()


def _pieces(proxy: Proxy, direction: Direction) -> list[bytes]:
    return [flight.data for flight in proxy.flights if flight.direction is direction]


async def _is_done(place: Place) -> bool:
    return await is_settled(place) and not await place.fetch("SELECT FROM point_backlog LIMIT 1")


@asynccontextmanager
async def lanes(servers: Servers, count: int = LANES) -> AsyncGenerator[list[Lane]]:
    """So many lanes."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Lane.opened(servers)) for _ in range(count)]


class Spread(Generic[J, R]):
    """Jobs spread over lanes, their results in `results`."""

    def __init__(self, run: Callable[[Lane, J], Awaitable[R]]) -> None:
        self._run = run
        self.results: list[tuple[J, R]] = []

    async def over(self, lanes: Iterable[Lane], jobs: Iterable[J]) -> list[tuple[J, R]]:
        """Run each job in the next lane that is free. :raises: the first error, with its job as a note"""
        todo = iter(jobs)
        async with anyio.create_task_group() as tasks:
            for lane in lanes:
                tasks.start_soon(self._work, lane, todo)
        return self.results

    async def _work(self, lane: Lane, todo: Iterator[J]) -> None:
        for job in todo:
            try:
                self.results.append((job, await self._run(lane, job)))
            except Exception as error:
                error.add_note(f"in the round of {job}")
                raise


async def conversations(lanes: Iterable[Lane]) -> dict[tuple[str, Direction], list[bytes]]:
    """What goes each way between a worker and each server where all is sound, piece by piece.

    The shortest of a few, in lanes as busy as they will be: what a worker does beside its batch differs, and
    how often it asks whether it is done.
    """

    async def recorded(lane: Lane, _number: int) -> Proxies:
        return await lane.run(nothing, record=True)

    sound = await Spread(recorded).over(lanes, range(SOUND_ROUNDS))
    return {
        (server, direction): min(
            (_pieces(getattr(proxies, server), direction) for _, proxies in sound),
            key=lambda pieces: sum(map(len, pieces)),
        )
        for server in SERVERS
        for direction in Direction
    }


async def nothing(_proxies: Proxies) -> None:
    """What goes wrong in a sound round."""
