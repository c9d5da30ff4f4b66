"""The tasks of a soak: the producer, the faults, the worker that is kept going, and the samples."""

import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random
from types import MappingProxyType

import anyio
from anyio import to_thread

from scripts.replay.synthetic import synthetic_orders
from streams.connection import connect
from streams.producer import Producer, PublishFailed
from tests.chaos.full.books import Books, Item, Kind
from tests.chaos.full.vitals import Sample, look
from tests.influxdb_server import InfluxServer, InfluxUnavailable
from tests.isolation import Place
from tests.record import AWAY, settled, until
from tests.servers import Server
from tests.workers import WorkerProcess, Workers
from worker.embedded import PostgresServer, RedisServer
from worker.errors import EmbeddedUnavailable

CHUNK = 1_000
#: Entries in the stream, those kept for a while included, beyond which nothing is sent.
STREAM_MAX = 150_000
SAMPLES = 240  #: in a whole run, about
SAMPLE_EVERY_S_MIN = 0.5
SETTLE_S_MAX = 600.0
#: The part of the run in which the worker is killed; the last one lives through the rest.
KILLS = 0.4
FAULTS = 20  #: in a run at least, about
FAULT_EVERY_S = (3.0, 20.0)
OUTAGE_S = (0.5, 3.0)
RECENT_MS = 3_000  #: a repeat follows its original within this
LATE_MS = 2_000  #: beyond the window, after which a repeat is a new order for certain
#: In Redis when all is over: Redis trims whole nodes only; the stream, its dead letters, and notes on them.
ENTRIES_LEFT, KEYS_LEFT = 1_000, 10
TIMEOUT_MS = 2_000
STARTS_MAX = 5

Step = Callable[[], Awaitable[None]]
STRANGE: Mapping[str, str] = MappingProxyType({"quantity": "NaN"})


@dataclass(frozen=True, slots=True)
class Plan:
    """How much, how fast, how long at most, and which faults.

    :ivar rate: entries a second, while everything works
    """

    orders: int
    rate: float
    seconds_max: float
    window_s: int
    seed: int

    @property
    def seconds(self) -> float:
        """How long it should take."""
        return min(self.orders / self.rate, self.seconds_max)


class Traffic:
    """Synthetic orders, with repeats of recent ones, late repeats that are new orders again, and bad ones.

    Only what is in the stream for certain is repeated, so that what becomes of a repeat follows from the
    times of the two entries.
    """

    def __init__(self, plan: Plan, chance: Random) -> None:
        self._window_ms, self._chance = plan.window_s * 1000, chance
        self._originals = synthetic_orders(plan.orders, 0, plan.seed)
        self._numbers = count()
        self._recent: deque[tuple[int, Mapping[str, str]]] = deque(maxlen=CHUNK)
        self._late: deque[tuple[int, Mapping[str, str]]] = deque()

    def next(self, now_ms: int) -> Item:
        """The next entry, to be sent at once."""
        kind, order = self._choose(now_ms)
        number = next(self._numbers)
        return Item(number, kind, {**order, "order_id": f"S-{number}"})

    def sent(self, at_ms: int, item: Item) -> None:
        """Take note of an entry that is in the stream."""
        if item.kind is Kind.NEW:
            self._recent.append((at_ms, item.order))
            if self._chance.random() < 0.002:
                self._late.append((at_ms, item.order))

    def _choose(self, now_ms: int) -> tuple[Kind, Mapping[str, str]]:
        dice = self._chance.random()
        if dice < 0.0002:
            return Kind.BAD, {**next(self._originals), **STRANGE}
        if dice < 0.15 and self._recent:
            at_ms, order = self._chance.choice(self._recent)
            if now_ms - at_ms < RECENT_MS:
                return Kind.REPEAT, order
        if self._late and now_ms - self._late[0][0] > self._window_ms + LATE_MS:
            return Kind.NEW, self._late.popleft()[1]
        return Kind.NEW, next(self._originals)


class Soak:
    """One run.

    :ivar last_start_s: when the worker started that lived to the end
    :ivar faults: what happened, and when, in seconds
    :ivar samples: how everything was doing
    """

    def __init__(
        self, place: Place, workers: Workers, redis: RedisServer, postgres: PostgresServer,
        influx: InfluxServer, plan: Plan,
    ) -> None:  # fmt: skip
        self._place, self._workers, self.plan, self.books = place, workers, plan, Books()
        self._redis, self._postgres, self._influx = redis, postgres, influx
        self._chance = Random(plan.seed)  # noqa: S311 - to be repeated
        self._traffic = Traffic(plan, self._chance)
        self.faults: list[tuple[float, str]] = []
        self.last_start_s = 0.0
        self._worker: WorkerProcess
        self._started = anyio.current_time()
        self._last_id = (0, 0)
        self._stream_entries = 0
        self.samples: list[Sample] = []

    async def run(self) -> None:
        """Publish everything, let it settle, and Redis be emptied of it.

        :raises TimeoutError: it does not settle, the stream is not trimmed, or claims do not expire
        :raises AssertionError: the worker does not end well
        """
        await self._start_worker()
        async with anyio.create_task_group() as tasks:
            for task in (self._sample, self._watch_stream, self._trouble):
                tasks.start_soon(task)
            await self._publish()
            tasks.cancel_scope.cancel()
        self._servers_up()
        await settled(self._place, within_s=SETTLE_S_MAX)
        await until(self._emptied, within_s=self.plan.window_s + SETTLE_S_MAX)
        self._worker.signal(signal.SIGTERM)
        code = await self._worker.ended()
        assert code == 0, f"exit code {code}:\n{self._worker.log_tail(30)}"

    async def _emptied(self) -> bool:
        """Whether settled entries are trimmed, all but a node's, and claims have expired."""
        entries, keys = [
            await self._place.command(*words)
            for words in (("XLEN", self._place.stream), ("DBSIZE",))
        ]
        return entries <= ENTRIES_LEFT and keys <= KEYS_LEFT

    def _servers_up(self) -> None:
        """Whatever the last fault was doing when it was called off."""
        for server in (self._redis, self._postgres, self._influx):
            server.resume()
            _start(server)

    @property
    def _elapsed_s(self) -> float:
        return anyio.current_time() - self._started

    @property
    def _done(self) -> float:
        """How much of the run is over, by what is sent and by the time that is allowed."""
        return max(self.books.entries / self.plan.orders, self._elapsed_s / self.plan.seconds_max)

    async def _start_worker(self) -> None:
        self._worker = await self._workers.start(self._place)
        self.last_start_s = self._elapsed_s

    # --- the producer ---

    async def _publish(self) -> None:
        again: list[Item] = []
        async with connect(self._redis.url, timeout_ms=TIMEOUT_MS) as redis:
            producer = Producer(redis, self._place.stream)
            while again or self._done < 1:
                await self._room()
                again = await self._send(producer, again or self._chunk())
                if again:
                    await anyio.sleep(0.1)

    def _chunk(self) -> list[Item]:
        size = max(1, min(CHUNK, round(self.plan.rate / 2)))
        return [self._traffic.next(_now_ms()) for _ in range(size)]

    async def _send(self, producer: Producer, items: list[Item]) -> list[Item]:
        """Publish, and enter what is in; gives what is to be sent again: what is not in, or may not be.

        A repeat is not sent again: by then it might be a new order.
        """
        ids = [self._next_id() for _ in items]
        answered: list[str | None] = list(ids)
        unsure = 0
        try:
            await producer.publish([item.order for item in items], ids=ids)
        except PublishFailed as error:
            answered, unsure = error.ids, error.unsure
        again: list[Item] = []
        for place, (entry_id, item) in enumerate(zip(ids, items, strict=True)):
            if place < len(answered) and answered[place]:
                self.books.note(entry_id, item)
                self._traffic.sent(self._last_id[0], item)
                continue
            if item.kind is not Kind.REPEAT:
                again.append(item)
            if len(answered) <= place < len(answered) + unsure:
                self.books.doubt(entry_id, item)
        return again

    def _next_id(self) -> str:
        """The time, as Redis would give it: so that an entry whose reply is lost is known by its id."""
        now, (ms, seq) = _now_ms(), self._last_id
        self._last_id = (now, 0) if now > ms else (ms, seq + 1)
        return f"{self._last_id[0]}-{self._last_id[1]}"

    async def _room(self) -> None:
        """Wait until the next entries are due, and there is room for them."""
        due_s = self.books.entries / self.plan.rate
        await anyio.sleep(max(0.0, due_s - self._elapsed_s))
        while self._stream_entries > STREAM_MAX:  # noqa: ASYNC110 - it is Redis that knows
            await anyio.sleep(0.02)

    async def _watch_stream(self) -> None:
        while True:
            with suppress(*AWAY):
                self._stream_entries = await self._place.command("XLEN", self._place.stream)
            await anyio.sleep(0.1)

    # --- samples ---

    async def _sample(self) -> None:
        every_s = max(SAMPLE_EVERY_S_MIN, self.plan.seconds / SAMPLES)
        while True:
            await anyio.sleep(every_s)
            before = self.samples[-1] if self.samples else None
            try:
                sample = await look(
                    self._place, self._worker.pid, self._elapsed_s, self.books.entries, before
                )
            except AWAY:  # a server or the worker is away just now
                continue
            self.samples.append(sample)

    # --- faults ---

    async def _trouble(self) -> None:
        least, most = FAULT_EVERY_S
        every_s = max(least, min(most, self.plan.seconds / FAULTS))
        steady = self._server_faults()
        while True:
            await anyio.sleep(self._chance.uniform(0.5, 1.5) * every_s)
            assert self._worker.running, f"it ended by itself:\n{self._worker.log_tail(30)}"
            steps = {"worker killed": self._kill} if self._done < KILLS else {}
            name, step = self._chance.choice([*(steps | steady).items(), *steps.items()])
            self.faults.append((round(self._elapsed_s, 1), name))
            await step()

    async def _kill(self) -> None:
        self._worker.signal(signal.SIGKILL)
        await self._worker.ended()
        await self._start_worker()

    def _server_faults(self) -> dict[str, Step]:
        servers = {"redis": self._redis, "postgres": self._postgres, "influxdb": self._influx}
        faults: dict[str, Step] = {}
        for name, server in servers.items():
            faults[f"{name} killed"] = partial(self._outage, server.kill, partial(_start, server))
            faults[f"{name} stopped"] = partial(self._outage, server.stop, partial(_start, server))
            faults[f"{name} hung"] = partial(self._outage, server.pause, server.resume)
        return faults

    async def _outage(self, down: Callable[[], None], up: Callable[[], None]) -> None:
        await to_thread.run_sync(down)
        await anyio.sleep(self._chance.uniform(*OUTAGE_S))
        await to_thread.run_sync(up)
        await until(partial(self._place.command, "PING"), within_s=SETTLE_S_MAX)
        with suppress(*AWAY):  # it does so by itself once the file has doubled since the last start
            await self._place.command("BGREWRITEAOF")


def _start(server: Server) -> None:
    """Start it, if need be again and again: at low priority on a busy machine it may take minutes."""
    for _ in range(STARTS_MAX - 1):
        with suppress(EmbeddedUnavailable, InfluxUnavailable):
            return server.start()
    return server.start()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
