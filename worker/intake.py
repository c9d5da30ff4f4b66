"""The intake of one stream: own history first, then what is new, and what quiet consumers left behind.

Batches form from what is waiting, without any delay of ours: while the allowed number of them is under way
nothing is read, and entries gather in the stream. Any error of a read ends the session: the batches under
way are waited for, and the next session begins with our own pending entries, among which are those whose
reply was lost.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from itertools import chain

import anyio
import structlog
from anyio.abc import TaskGroup

from streams.connection import GroupLost, RedisUnavailable
from streams.entry import Entry
from streams.group import Group
from worker.batch import Connections, Turn, process
from worker.outcome import Rejected
from worker.settings import Settings

BATCH_BYTES = 4 * 1024 * 1024  #: what a batch should hold at most, names and values
FIRST_BATCH = 64  #: entries; the next may be twice as many
SIZED = 100  #: entries whose size tells that of a batch, at most
BLOCK_MS = 1_000  #: how long a read waits for the first entry
BLOCK_MS_DRAINING = 50  #: the same where the end of the stream is awaited
TAKEOVER_EVERY_S_MAX = 5.0
SUSPECT_FROM = 4  #: an entry delivered so often may be what ends its workers, and is tried alone

log = structlog.stdlib.get_logger("worker")


class Intake:
    """Reads one stream and takes its entries through `process`.

    :param alone: held while a suspect is tried, by all intakes of this process
    :param drain: end when the stream is read to its end and nothing is pending in the whole group
    """

    def __init__(
        self, io: Connections, settings: Settings, stream: str, alone: anyio.Lock, *, drain: bool
    ) -> None:
        self._io, self._settings, self._alone, self._drain = io, settings, alone, drain
        self.group = Group(
            settings.redis_address,
            stream,
            settings.group,
            settings.consumer,
            timeout_ms=settings.redis_timeout_ms,
            block_ms=BLOCK_MS_DRAINING if drain else BLOCK_MS,
        )
        self._slots = anyio.Semaphore(settings.batches_in_flight)
        self._count = min(FIRST_BATCH, settings.batch_size)
        self._last_turn: Turn | None = None
        self._reading = anyio.CancelScope()
        self._stopping = False
        self._takeover_s = min(TAKEOVER_EVERY_S_MAX, settings.takeover_after_ms / 4000)
        self._takeover_at = 0.0

    def stop(self) -> None:
        """Read no more. What is under way goes on; `run` returns when that is settled."""
        self._stopping = True
        self._reading.cancel()

    async def run(self) -> None:
        """Read until stopped, or drained. Waits for servers that are away."""
        while not await self._session():
            await self._io.servers.redis.pause()

    async def _session(self) -> bool:
        """Read until stopped, drained, or the first error; says whether all is done."""
        done = False
        async with anyio.create_task_group() as batches:
            with anyio.CancelScope() as self._reading:
                done = not self._stopping and await self._guarded(self._read_on, batches)
        if self._stopping:
            # A read that was called off may have been answered: those entries are ours and unseen. If
            # Redis is away now, they stay pending for the next worker.
            async with anyio.create_task_group() as batches:
                await self._guarded(self._read_own, batches)
        return done or self._stopping

    async def _guarded(
        self, read: Callable[[TaskGroup], Awaitable[None]], batches: TaskGroup
    ) -> bool:
        """Read; what Redis lacks ends the session, and the next one mends it."""
        try:
            await read(batches)
        except (RedisUnavailable, GroupLost) as error:
            # A lost group counts, too: errors must not spin, and BLOCK does not apply to them.
            self._io.servers.redis.failed(error)
            return False
        return True

    async def _read_on(self, batches: TaskGroup) -> None:
        try:
            await self._read_own(batches)
        except GroupLost:
            # Made only now: a Redis whose memory is full would not even say that it exists.
            if await self.group.create():
                log.info("group.created", stream=self.group.stream, group=self.group.name)
        while True:
            if anyio.current_time() >= self._takeover_at:
                await self._take_over(batches)
                self._takeover_at = anyio.current_time() + self._takeover_s
            last = await self._next(batches, self._read_new)
            if self._drain and not last and not (await self.group.pending()).entries:
                return

    async def _read_new(self) -> list[Entry]:
        return await self.group.read_new(self._count, block=True)

    async def _read_own(self, batches: TaskGroup) -> None:
        after = "0"

        async def read() -> list[Entry]:
            return await self.group.read_own(after, self._count)

        while after:
            after = await self._next(batches, read)

    async def _take_over(self, batches: TaskGroup) -> None:
        after = ""

        async def claim() -> list[Entry]:
            nonlocal after
            taken = await self.group.take_over(
                after, self._count, idle_ms_min=self._settings.takeover_after_ms
            )
            self._io.vitals.taken_over += len(taken.entries)
            if taken.entries:
                log.warning(
                    "entries.taken_over", stream=self.group.stream, entries=len(taken.entries)
                )
            after = taken.after
            return taken.entries

        await self._next(batches, claim)
        while after:
            await self._next(batches, claim)

    async def _next(self, batches: TaskGroup, read: Callable[[], Awaitable[list[Entry]]]) -> str:
        """Read a batch once there is room for it, and start it; gives its last id, "" for none."""
        await self._slots.acquire()
        entries: list[Entry] = []
        read_after = self._io.ledger.as_of
        try:
            entries = await read()
            self._io.servers.redis.worked()
            self._io.vitals.read()
        finally:
            if not entries:
                self._slots.release()
        if not entries:
            return ""
        self._count = self._next_count(entries)
        suspects = [entry for entry in entries if entry.deliveries >= SUSPECT_FROM]
        usual = [e for e in entries if e.deliveries < SUSPECT_FROM] if suspects else entries
        if usual:
            turn = self._last_turn = Turn(self._last_turn, read_after)
            batches.start_soon(self._process, usual, turn, name=f"batch {usual[0].id}")
        else:
            self._slots.release()
        for suspect in suspects:
            await self._try_alone(suspect, read_after)
        return entries[-1].id

    async def _try_alone(self, entry: Entry, read_after: datetime | None) -> None:
        """Process one entry while nothing else is under way, so that it is known what ended a worker.

        An attempt that begins is noted, and forgotten where the worker survives it. Waiting for a server is
        surviving: what ends the worker then is not the entry.
        """
        async with self._all_slots(), self._alone:
            await self._attempt(entry, Turn(None, read_after))

    @asynccontextmanager
    async def _all_slots(self) -> AsyncGenerator[None]:
        held = 0
        try:
            while held < self._settings.batches_in_flight:
                await self._slots.acquire()
                held += 1
            yield
        finally:
            for _ in range(held):
                self._slots.release()

    async def _attempt(self, entry: Entry, turn: Turn) -> None:
        attempt = await self._begin_attempt(entry)
        given_up = attempt > self._settings.delivery_limit
        survived = partial(self._survived, entry)
        try:
            [outcome] = await process(
                [entry], self._io, self._settings, turn, given_up=given_up, waiting=survived
            )
        finally:
            with anyio.CancelScope(shield=True):
                await survived()
        if given_up and isinstance(outcome, Rejected):  # else it has an outcome, and keeps that
            log.error(
                "entry.given_up", stream=entry.stream, entry_id=entry.id, attempts=attempt - 1
            )

    async def _begin_attempt(self, entry: Entry) -> int:
        try:
            return await self.group.begin_attempt(entry.id)
        except RedisUnavailable as error:  # with full memory nothing can be noted, and work goes on
            log.warning("attempt.not_noted", entry_id=entry.id, error=str(error))
            return 0

    async def _survived(self, entry: Entry) -> None:
        with suppress(RedisUnavailable):  # one attempt too many is noted
            await self.group.survived(entry.id)

    def _next_count(self, entries: Sequence[Entry]) -> int:
        """How many entries to ask for next, so that memory is bounded where entries are large.

        Redis counts entries and not bytes, so the size of the last ones, or of some of them, has to tell.
        """
        some = entries[:: 1 + len(entries) // SIZED]
        size = sum(map(len, chain.from_iterable(entry.fields or () for entry in some)))
        fit = BATCH_BYTES * len(some) // (size or 1)
        return max(1, min(self._settings.batch_size, fit, 2 * self._count))

    async def _process(self, entries: Sequence[Entry], turn: Turn) -> None:
        try:
            await process(entries, self._io, self._settings, turn)
        finally:
            self._slots.release()
