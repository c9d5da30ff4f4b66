"""InfluxDB: where points go, and how those that are owed get there in the end.

Orders never wait for InfluxDB longer than one bounded write. Points it did not take are noted in Postgres
(`point_backlog`) before their entries are acknowledged, and drained from there when it is back.
"""

import errno
import gzip
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from ssl import SSLContext, create_default_context
from typing import Any, Protocol, cast
from urllib.parse import unquote, urlsplit

import anyio
import structlog
from anyio import to_thread

from worker.dependency import Dependency
from worker.errors import InfluxUnavailable, PointsRefused, PostgresUnavailable
from worker.ledger import Debt, Ledger, Refused
from worker.outcome import Kept, Outcome
from worker.points import lines, points
from worker.settings import Settings

DRAIN_POINTS_MAX = 1000  #: points taken from the backlog at once, where InfluxDB takes so many
GZIP_LEVEL = 1
LOOK_S = 5.0  #: seconds between two looks at a backlog that other workers may have filled
log = structlog.stdlib.get_logger("worker")

#: InfluxDB's answers that blame a line, or that there are so many: such a write is halved. All others pass or
#: are the operator's to mend.
FINAL = (400, 413, 422)


class Sink(Protocol):
    """Where line protocol is written to."""

    async def write(self, body: bytes) -> None:
        """Write lines, nanosecond precision.

        :raises InfluxUnavailable: try again later; some or all lines may have been stored
        :raises PointsRefused: a line is malformed for good, or they are too many; some may have been stored
        """
        ...

    async def aclose(self) -> None:
        """Let go of what is held."""
        ...


class InfluxSink:
    """InfluxDB 1.8+, 2.x or 3 through `/api/v2/write`. Connects at the first write."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Any = None
        self._connecting = anyio.Lock()

    async def write(self, body: bytes) -> None:
        """See `Sink.write`."""
        async with self._connecting:
            client = self._client or await self._connect()
        try:
            with anyio.fail_after(self._settings.points_timeout_ms / 1000):
                await client.write_api().write(self._settings.influxdb_bucket, record=body)
        except OSError as error:  # TimeoutError and aiohttp's errors of connecting are such
            raise InfluxUnavailable(f"{type(error).__name__}: {error}") from error
        except Exception as error:
            raise _influx_error(error) from error

    async def _connect(self) -> Any:  # noqa: ANN401 - the client's own type is known once it is loaded
        """Load what takes longer than all else at start, beside the first reads.

        The client has no time limit of its own. A limit of aiohttp's that ends together with ours cancels the
        task once more than is accounted for, and with it whatever the task does next: it ended whole workers.
        """
        module, trusted = await to_thread.run_sync(_library)
        from aiohttp import ClientTimeout  # noqa: PLC0415 - loaded together with the client

        self._client = module.InfluxDBClientAsync(
            self._settings.influxdb_address,
            self._settings.influxdb_token.get_secret_value(),
            self._settings.influxdb_org,
            timeout=ClientTimeout(),
            enable_gzip=True,
            ssl_context=trusted,
        )
        self._client.api_client.configuration.update_request_body = _compressed
        return self._client

    async def aclose(self) -> None:
        """Close the connection."""
        if self._client:
            await self._client.close()


@cache
def _library() -> tuple[Any, SSLContext]:
    """The client library, and whom the system trusts: left to the client, the event loop would load that."""
    module = import_module("influxdb_client.client.influxdb_client_async")
    return module, create_default_context()


def _compressed(_path: str, body: bytes) -> bytes:
    """The lines of a write. The client library's own level takes six times as long for a quarter less."""
    return gzip.compress(body, GZIP_LEVEL)


def _influx_error(error: Exception) -> Exception:
    """Our error for the client library's: told apart by HTTP status, else by kind."""
    from aiohttp import ClientError  # noqa: PLC0415 - loaded together with the client
    from influxdb_client.rest import ApiException  # noqa: PLC0415

    if isinstance(error, ApiException):
        body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else ""
        reason = f"{error.status} {error.reason} {body.strip()[:500]}".rstrip()
        if error.status in FINAL:
            return PointsRefused(reason)
        headers = cast("Mapping[str, str]", error.headers or {})
        answered = bool(cast("int | None", error.status))
        return InfluxUnavailable(reason, answered=answered, retry_after_s=_retry_after_s(headers))
    if isinstance(error, ClientError):
        return InfluxUnavailable(f"{type(error).__name__}: {error}")
    return error


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """The seconds that `Retry-After` asks for; 0 where it says nothing, or a date.

    Source: https://docs.influxdata.com/influxdb/v2/api/#operation/PostWrite, for 429 and 503
    """
    asked = headers.get("Retry-After", "")
    return float(asked) if asked.isascii() and asked.isdigit() else 0.0


class FileSink:
    """A line-protocol file, appended to. A point written again is a line again; the last one counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rest = b""  #: ends what a write left, which may be half a line: that is no point then

    async def write(self, body: bytes) -> None:
        """See `Sink.write`. One write call for all lines, so that those of two workers do not mix."""
        try:
            await to_thread.run_sync(self._append, b"%b%b\n" % (self._rest, body))
        except OSError as error:
            self._rest = b"#cut short\n"
            raise InfluxUnavailable(f"{self._path}: {error}") from error
        self._rest = b""

    def _append(self, text: bytes) -> None:
        with self._path.open("ab", buffering=0) as file:
            if file.write(text) < len(text):
                raise OSError(errno.ENOSPC, "only a part was written: is the disk full?")

    async def aclose(self) -> None:
        """Hold nothing between writes."""


def sink_of(settings: Settings) -> Sink:
    """The sink that INFLUXDB_URL names: InfluxDB, or a file for `file:///path`."""
    url = urlsplit(settings.influxdb_address)
    return FileSink(Path(unquote(url.path))) if url.scheme == "file" else InfluxSink(settings)


class PointWriter:
    """Writes the points of batches, and notes and drains what is owed.

    :ivar ledger: where what is owed is noted
    :param left_after_ms: points that a worker has had in hand for so long are owed: it has left them
    """

    def __init__(
        self,
        sink: Sink,
        ledger: Ledger,
        influxdb: Dependency,
        postgres: Dependency,
        *,
        left_after_ms: int,
    ) -> None:
        self.ledger, self._sink, self._left_after_ms = ledger, sink, left_after_ms
        self._influxdb, self._postgres = influxdb, postgres
        self._owing = anyio.Event()
        self._stopping = False
        self._resting = anyio.CancelScope()
        self._count = DRAIN_POINTS_MAX

    async def aclose(self) -> None:
        """Close the sink."""
        await self._sink.aclose()

    @property
    def owe(self) -> bool:
        """Whether a batch should note its points as owed in its own transaction, for InfluxDB is away."""
        return not self._influxdb.up

    async def emit(self, stream: str, outcomes: Sequence[Outcome], *, owed: bool) -> None:
        """Write the points of a batch, or note them as owed. Returns when one of the two is done.

        An entry that keeps an earlier outcome owes that one's point: it may never have been written.

        :param owed: the batch's transaction has noted them all
        """
        if owed:
            self._owing.set()
            return
        debts = [outcome.entry.id for outcome in outcomes if isinstance(outcome, Kept)]
        try:
            if body := lines(points(outcomes)):
                await self._sink.write(body)
            self._influxdb.worked()
        except InfluxUnavailable as error:
            self._influxdb.failed(error)
            debts = [outcome.entry.id for outcome in outcomes]
        except PointsRefused:  # which line it was is found when the debt is drained
            debts = [outcome.entry.id for outcome in outcomes]
        if debts:
            await self._postgres.insist(
                lambda: self.ledger.owe_points(stream, debts), PostgresUnavailable
            )
            self._owing.set()

    async def write_own(self, body: bytes) -> None:
        """Write lines about the worker itself, in one attempt; lost where InfluxDB does not take them."""
        if not self._influxdb.due:
            return
        try:
            await self._sink.write(body)
            self._influxdb.worked()
        except InfluxUnavailable as error:
            self._influxdb.failed(error)
        except PointsRefused as error:
            log.warning("own_points.refused", answer=str(error))

    def stop(self) -> None:
        """Have `drain_until_stopped` end, with the step that it is in.

        Not by a cancellation: Postgres may commit such a step all the same, behind the look of `finish`.
        """
        self._stopping = True
        self._resting.cancel()

    async def drain_until_stopped(self) -> None:
        """Pay what is owed, whenever something is; other workers' debts too."""
        while not self._stopping:
            if not self._influxdb.due:  # a batch may have met its refusal just now
                await self._rest(self._influxdb.pause)
                continue
            try:
                await self._owe_what_was_left()
                while await self.drain() and not self._stopping:
                    pass
            except InfluxUnavailable as error:
                self._influxdb.failed(error)
            except PostgresUnavailable as error:
                self._postgres.failed(error)
                await self._rest(self._postgres.pause)
            else:
                # Nothing else may ask it before the next batch. A batch that is refused, as with a full disk,
                # knows better than we do: our own statements need no room.
                if not self._postgres.is_insisted_on:
                    self._postgres.worked()
                await self._rest(self._look_is_due)
                self._owing = anyio.Event()

    async def _look_is_due(self) -> None:
        with anyio.move_on_after(LOOK_S):
            await self._owing.wait()

    async def _rest(self, until: Callable[[], Awaitable[None]]) -> None:
        """Wait, but no longer than until told to stop."""
        with anyio.CancelScope() as self._resting:
            if not self._stopping:
                await until()

    async def finish(self) -> None:
        """Pay what is owed. One attempt is made though InfluxDB was away: one slow write says little.

        :raises InfluxUnavailable, PostgresUnavailable: what was not paid stays owed
        """
        await self._owe_what_was_left()
        while await self.drain():
            pass

    async def _owe_what_was_left(self) -> None:
        await self.ledger.settle_in_hand(left_after_ms=self._left_after_ms)

    async def drain(self) -> int:
        """Pay some of what is owed, in bounded memory; says how many points were looked at.

        After a payment that was not complete, half as many are taken: some step is small enough.

        :raises InfluxUnavailable, PostgresUnavailable: what was not paid stays owed
        """
        async with self.ledger.owed_points(self._count) as debt:
            unavailable = await self._pay(debt)
        complete = len(debt.paid) + len(debt.refused) == len(debt.points)
        more, fewer = min(DRAIN_POINTS_MAX, 2 * self._count), max(1, len(debt.points) // 2)
        self._count = more if complete else fewer
        for refused in debt.refused:
            log.error("point.refused", entry_id=refused.point.entry_id, answer=refused.answer)
        if unavailable:
            raise unavailable
        return len(debt.points)

    async def _pay(self, debt: Debt) -> InfluxUnavailable | None:
        """Write points; where a line is refused, halves, until that line stands alone.

        What is written by then counts, though InfluxDB goes away or time runs out.
        """
        parts = [debt.points] if debt.points else []
        while parts and anyio.current_time() < debt.until:
            part = parts.pop()
            half = len(part) // 2
            try:
                await self._sink.write(lines(part))
                debt.paid += part
            except PointsRefused as error:
                if half:
                    parts += [part[half:], part[:half]]
                else:
                    debt.refused.append(Refused(part[0], str(error)))
            except InfluxUnavailable as error:
                return error
            self._influxdb.worked()
        return None
