"""One batch's way through the six steps: parse, claim, decide, record, emit, settle.

A crash between any two of them leaves the entries pending; whoever claims them runs the same steps and
reaches the same result. A step that meets an unreachable server waits for it here, so that reading stops
and what is pending does not grow.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import anyio
import structlog
from anyio.lowlevel import checkpoint

from streams.connection import GroupLost, RedisUnavailable
from streams.entry import Entry
from worker.claims import Claims
from worker.decide import Claim, Decision, decide
from worker.dependency import Dependency
from worker.errors import PostgresUnavailable
from worker.forms import Parser, parser
from worker.influx import PointWriter
from worker.ledger import Ledger, Rules
from worker.order import READING, Malformed, Order
from worker.outcome import Outcome, Rejected
from worker.points import has_own_time
from worker.settings import Settings
from worker.vitals import Laps, StreamVitals

PARSED_AT_ONCE = 100  #: entries; then answers that came meanwhile are heard

log = structlog.stdlib.get_logger("worker")


#: Instead of what the entry holds, which nobody has looked at again.
GIVEN_UP = Malformed("delivery_limit", "every worker that tried this entry alone has ended at it")


NO_CODES = Counter[str]()
NO_CLAIMS: Mapping[bytes, Claim] = {}


@dataclass(frozen=True, slots=True)
class Servers:
    """What we know of each server."""

    redis: Dependency
    claims: Dependency
    postgres: Dependency
    influxdb: Dependency


@dataclass(frozen=True, slots=True)
class Connections:
    """What one stream's batches go through."""

    claims: Claims
    ledger: Ledger
    points: PointWriter
    servers: Servers
    vitals: StreamVitals = field(default_factory=StreamVitals)


class Turn:
    """A place in the line of a stream's batches, which reach Postgres in the order they were read.

    Else a repeat could be recorded before its original, and be taken for it.

    :param read_after: `Ledger.as_of` before the batch was read
    """

    def __init__(self, before: "Turn | None" = None, read_after: datetime | None = None) -> None:
        self._begins = before.over if before else None
        self.read_after = read_after
        self.over = anyio.Event()  #: set when the next one may begin

    async def __aenter__(self) -> None:
        if self._begins and not self._begins.is_set():  # else waiting lets others go first
            await self._begins.wait()

    async def __aexit__(self, *_exception: object) -> None:
        self.over.set()
        await checkpoint()  # the next one sends its batch, and Postgres works while we go on


async def process(
    entries: Sequence[Entry],
    io: Connections,
    settings: Settings,
    turn: Turn,
    *,
    given_up: bool = False,
    waiting: Callable[[], Awaitable[None]] | None = None,
) -> list[Outcome]:
    """Take a batch of one stream through the six steps; returns when it is acknowledged, all but what
    is not final.

    Waits for servers that are away; cancelling leaves the entries pending, for whoever comes next.

    :param given_up: reject the entries without a look at them: they have ended too many workers
    :param waiting: called when Postgres has to be waited for, before the wait
    """
    started, laps = anyio.current_time(), Laps()
    stream = entries[0].stream
    forms = parser(settings.envelope_fields)
    parsed = [GIVEN_UP] * len(entries) if given_up else await _parsed(entries, forms)
    laps.lap("parse")
    # Nothing that Redis says spares a single entry its way to Postgres, so that is not kept waiting for it.
    alone = len(entries) == 1
    claims = NO_CLAIMS
    if not alone:
        claims = await _claim(io, entries, parsed)
        laps.lap("claim")
    decisions = _decide(entries, parsed, claims, settings.dedupe_window_ms)
    laps.lap("decide")
    async with turn:
        laps.lap("wait")
        owed = io.points.owe
        outcomes, in_hand = await io.servers.postgres.insist(
            lambda: io.ledger.record(
                stream,
                decisions,
                rules=Rules(settings.dedupe_window_ms, settings.envelope_fields, READING),
                owe_points=owed,
                read_after=turn.read_after,
            ),
            PostgresUnavailable,
            waiting,
        )
    laps.lap("record")
    await io.points.emit(stream, outcomes, owed=owed)
    io.ledger.points_written(in_hand)
    laps.lap("emit")
    if alone:
        claims = await _claim(io, entries, parsed)
        laps.lap("claim")
    await io.servers.redis.insist(lambda: _settle(io, outcomes, claims), RedisUnavailable)
    laps.lap("settle")
    counts = Counter(map(_word, outcomes))
    _report(stream, len(outcomes), counts, anyio.current_time() - started)
    codes = _codes(outcomes) if counts["rejected"] else NO_CODES
    io.vitals.settled(entries[0].ms, counts, codes, laps)
    return outcomes


async def _parsed(entries: Sequence[Entry], forms: Parser) -> list[Order | Malformed]:
    """What each entry holds; in slices, so that batches whose servers have answered go on in between."""
    parsed: list[Order | Malformed] = []
    for first in range(0, len(entries), PARSED_AT_ONCE):
        if first:
            await checkpoint()
        parsed += [_parse(entry, forms) for entry in entries[first : first + PARSED_AT_ONCE]]
    return parsed


def _parse(entry: Entry, forms: Parser) -> Order | Malformed:
    if has_own_time(entry.id):
        return forms.parse(entry.fields)
    return Malformed(
        "entry_id_out_of_range",
        "the entry's id must lie before 9223372036854-0 (the year 2262), its sequence number below "
        "1000000: else its point would have no time of its own",
    )


async def _claim(
    io: Connections, entries: Sequence[Entry], parsed: Sequence[Order | Malformed]
) -> Mapping[bytes, Claim]:
    """The claims that are known, by content hash; none where Redis does not answer, for Postgres decides."""
    if not io.servers.claims.due:
        return NO_CLAIMS
    ids = [entry.id for entry, found in zip(entries, parsed, strict=True) if type(found) is Order]
    hashes = [found.content_hash for found in parsed if type(found) is Order]
    try:
        claims = await io.claims.claim(ids, hashes)
    except RedisUnavailable as error:
        io.servers.claims.failed(error)
        return NO_CLAIMS
    io.servers.claims.worked()
    return claims


def _decide(
    entries: Sequence[Entry],
    parsed: Sequence[Order | Malformed],
    claims: Mapping[bytes, Claim],
    window_ms: int,
) -> list[Decision]:
    return [
        decide(
            entry,
            found,
            claims.get(found.content_hash) if isinstance(found, Order) else None,
            window_ms,
        )
        for entry, found in zip(entries, parsed, strict=True)
    ]


async def _settle(
    io: Connections, outcomes: Sequence[Outcome], claims: Mapping[bytes, Claim]
) -> None:
    await _correct(io, outcomes, claims)
    try:
        settled = await io.claims.settle(outcomes)
    except GroupLost as error:  # nothing is left to acknowledge; the outcomes are on record
        log.warning("group.lost_before_settlement", error=str(error), entries=len(outcomes))
    else:
        if settled.error:
            log.warning("settlement.incomplete", error=settled.error)


async def _correct(
    io: Connections, outcomes: Sequence[Outcome], claims: Mapping[bytes, Claim]
) -> None:
    """Correct claims. Where they are on a Redis of their own that is away, there is a hint less."""
    if io.claims.apart and not io.servers.claims.due:
        return
    try:
        refused = await io.claims.correct(outcomes, claims)
    except RedisUnavailable as error:
        if not io.claims.apart:
            raise
        io.servers.claims.failed(error)
    else:
        if refused:
            log.warning("claims.not_corrected", error=refused)


def _report(stream: str, entries: int, counts: Counter[str], duration_s: float) -> None:
    log.info(
        "batch.settled",
        stream=stream,
        entries=entries,
        duration_ms=round(duration_s * 1000, 1),
        **counts,
    )
    if counts["kept"]:
        log.warning("entries.kept_earlier_outcome", stream=stream, entries=counts["kept"])
    if counts["left"]:
        log.warning("entries.trimmed_in_hand", stream=stream, entries=counts["left"])


def _word(outcome: Outcome) -> str:
    if not outcome.final:
        return "left"
    return "redelivered" if outcome.redelivered else outcome.word


def _codes(outcomes: Sequence[Outcome]) -> Counter[str]:
    """The codes of the entries that were rejected now."""
    return Counter(
        outcome.malformed.code
        for outcome in outcomes
        if isinstance(outcome, Rejected) and not outcome.redelivered
    )
