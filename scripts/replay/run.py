"""One replay: publish a source's orders and, where asked, wait for what becomes of them."""

from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError
from rich.progress import Progress

from scripts.replay.following import expected_of, wait_for_outcomes
from scripts.replay.outcomes import Outcomes, connected
from scripts.replay.pictures.figures import Figures
from scripts.replay.pictures.measure import Conditions, measure
from scripts.replay.publishing import EntryIds, Pace, Publishing
from scripts.replay.report import Compared, Published
from scripts.replay.source import Source
from streams.connection import RedisUnavailable, call
from streams.entry import EntryId
from streams.producer import Producer, connect
from worker.errors import BadSettings
from worker.settings import Settings


class StreamAhead(Exception):
    """The stream holds later entries than the orders' own times; `str(error)` says what to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to replay, and how.

    :ivar pace_text: the pace in words
    :ivar first_ms: the first order's own time where such times are to be the entry ids, else None
    :ivar quiet_s_max: give up when no outcome was recorded for so long
    :ivar measured: measure the run for a report; it is waited for then
    """

    source: Source
    stream: str
    pace: Pace
    pace_text: str
    first_ms: int | None
    wait: bool
    quiet_s_max: float
    measured: bool


class Done(NamedTuple):
    """A replay that came to its end, and what was asked of it."""

    published: Published
    compared: Compared | None = None
    figures: Figures | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay under way; `ids` holds what is in the stream for certain, whatever happens."""

    plan: Plan
    settings: Settings
    progress: Progress
    ids: EntryIds

    async def run(self) -> Done:
        """Publish, wait where the plan says so, and measure.

        :raises PublishFailed: not everything could be published
        :raises StreamAhead: nothing was published, Redis would refuse the first id
        :raises OutcomesUnreadable: Postgres cannot be asked, before or after publishing
        :raises BadSettings: REDIS_URL is no address
        """
        settings = self.settings
        async with _client(settings.redis_address) as redis:
            if not self.plan.wait:
                return Done(await self._publish(redis))
            address, schema = settings.database_address, settings.database_schema
            async with connected(address, schema, self.plan.stream) as outcomes:
                published = await self._publish(redis)
                compared = await self._compare(outcomes)
                if not self.plan.measured:
                    return Done(published, compared)
                figures = await self._measure(outcomes, redis, published, compared)
                return Done(published, compared, figures)

    async def _publish(self, redis: Redis) -> Published:
        event_time = self.plan.first_ms is not None
        if self.plan.first_ms is not None:
            await self._check_ids_grow(redis, EntryId(self.plan.first_ms, 0))
        publishing = Publishing(Producer(redis, self.plan.stream), self.plan.pace, event_time)
        task = self.progress.add_task("published", total=len(self.plan.source))
        started = monotonic()
        await publishing.run(
            self.plan.source, self.ids, lambda orders: self.progress.advance(task, orders)
        )
        seconds = monotonic() - started
        count = len(self.ids)
        return Published(self.plan.stream, count, self.ids[0], self.ids[count - 1], seconds)

    async def _check_ids_grow(self, redis: Redis, first: EntryId) -> None:
        """Redis takes growing ids only. Look before, or it may refuse in the middle."""
        last = await _last_id(redis, self.plan.stream)
        if last >= first:
            raise StreamAhead(
                f"stream {self.plan.stream} has had entries up to {last}, and --event-time would begin "
                f"with {first}: Redis takes growing ids only. Replay into another stream (--stream), "
                "or delete this one. Nothing was published"
            )

    async def _compare(self, outcomes: Outcomes) -> Compared:
        task = self.progress.add_task("recorded", total=len(self.ids))
        await outcomes.follow(self.ids)
        found = await wait_for_outcomes(
            outcomes,
            self.ids,
            self.plan.quiet_s_max,
            lambda recorded: self.progress.update(task, completed=recorded),
        )
        expected = await expected_of(
            self.plan.source,
            self.ids,
            outcomes,
            window_ms=self.settings.dedupe_window_ms,
            envelope=self.settings.envelope_fields,
        )
        event_time = self.plan.first_ms is not None
        return Compared(len(self.ids), expected, found, event_time, self.plan.quiet_s_max)

    async def _measure(
        self, outcomes: Outcomes, redis: Redis, published: Published, compared: Compared
    ) -> Figures:
        self.progress.add_task("measuring", total=None)
        conditions = Conditions(
            str(self.plan.source), self.plan.pace_text, self.settings.dedupe_window_ms
        )
        return await measure(outcomes, redis, conditions, published, compared)


def _client(address: str) -> Redis:
    try:
        return connect(address)
    except ValueError as error:
        raise BadSettings(f"REDIS_URL: {error}") from None


async def _last_id(redis: Redis, stream: str) -> EntryId:
    """The greatest id the stream has had, 0-0 where there is none."""
    try:
        if not await call(redis, "EXISTS", stream):
            return EntryId(0, 0)
        reply = cast("list[str]", await call(redis, "XINFO", "STREAM", stream))
    except ResponseError as error:  # it is no stream, or we lack a right
        reason = f"Redis does not tell of stream {stream}: {error}"
        raise RedisUnavailable(reason, answered=True) from error
    return EntryId.parse(reply[reply.index("last-generated-id") + 1])
