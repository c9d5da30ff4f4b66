"""Which points there are: read back from InfluxDB, or from the file of line protocol.

InfluxQL through `/query`, which InfluxDB 1.x, 2.x and 3 answer alike.
"""

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout

from worker.errors import InfluxUnavailable
from worker.points import MEASUREMENT
from worker.settings import Settings

POINTS_AT_ONCE = 10_000
QUERY_TIMEOUTS = (
    5  #: times WORKER_POINTS_TIMEOUT for one query; the server may have to open old shards
)


class FoundPoint(NamedTuple):
    """A point as its place has it: its time, and the outcome it tells of."""

    time_ns: int
    outcome: str


class PointReader(Protocol):
    """Where points are read back from."""

    def between(self, stream: str, first_ns: int, last_ns: int) -> AsyncGenerator[list[FoundPoint]]:
        """The stream's points from `first_ns` to `last_ns`, both included, by time, some at a time.

        :raises InfluxUnavailable: no answer, or it refuses our token or bucket
        """
        ...

    async def aclose(self) -> None:
        """Let go of what is held."""
        ...


def reader_of(settings: Settings) -> PointReader:
    """The reader for the place that INFLUXDB_URL names."""
    url = urlsplit(settings.influxdb_address)
    return FilePoints(Path(unquote(url.path))) if url.scheme == "file" else InfluxPoints(settings)


class _Series(msgspec.Struct):
    columns: list[str]
    values: list[list[int | float | str | None]]


class _Result(msgspec.Struct):
    series: list[_Series] = []
    error: str = ""


class _Answer(msgspec.Struct):
    results: list[_Result] = []
    error: str = ""


class InfluxPoints:
    """Points in InfluxDB."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session: ClientSession | None = None

    async def between(
        self, stream: str, first_ns: int, last_ns: int
    ) -> AsyncGenerator[list[FoundPoint]]:
        """See `PointReader.between`. A stream has few points of one instant: their tags differ."""
        edge: set[FoundPoint] = set()  # those of a page's last instant come again with the next one
        while True:
            page = await self._query(stream, first_ns, last_ns)
            if found := [point for point in page if point not in edge]:
                yield found
            if len(page) < POINTS_AT_ONCE:
                return
            first_ns = page[-1].time_ns
            edge = {point for point in page if point.time_ns == first_ns}

    async def _query(self, stream: str, first_ns: int, last_ns: int) -> list[FoundPoint]:
        quoted = stream.replace("\\", "\\\\").replace("'", "\\'")
        statement = (
            f'SELECT entry_id, outcome FROM "{MEASUREMENT}" '  # noqa: S608 - quoted
            f"WHERE stream = '{quoted}' AND time >= {first_ns} AND time <= {last_ns} "
            f"ORDER BY time LIMIT {POINTS_AT_ONCE}"
        )
        answer = await self._ask(statement)
        result = answer.results[0] if answer.results else _Result(error="no result")
        if error := answer.error or result.error:
            raise InfluxUnavailable(error, answered=True)
        if not result.series:
            return []
        (series, *_) = result.series
        time, outcome = series.columns.index("time"), series.columns.index("outcome")
        return [FoundPoint(int(row[time] or 0), str(row[outcome])) for row in series.values]

    async def _ask(self, statement: str) -> _Answer:
        chosen = self._settings
        if not self._session:
            timeout = ClientTimeout(QUERY_TIMEOUTS * chosen.points_timeout_ms / 1000)
            self._session = ClientSession(timeout=timeout)
        parameters = {"db": chosen.influxdb_bucket, "q": statement, "epoch": "ns"}
        token = f"Token {chosen.influxdb_token.get_secret_value()}"
        try:
            async with self._session.post(
                f"{chosen.influxdb_address.rstrip('/')}/query",
                data=parameters,
                headers={"Authorization": token},
            ) as reply:
                body = await reply.read()
        except (ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            raise InfluxUnavailable(f"{type(error).__name__}: {error}") from error
        if reply.status >= 300:
            told = body.decode(errors="replace").strip()[:200]
            raise InfluxUnavailable(f"{reply.status} {reply.reason} {told}".rstrip(), answered=True)
        try:
            return msgspec.json.decode(body, type=_Answer)
        except msgspec.MsgspecError as error:
            raise InfluxUnavailable(f"InfluxDB's answer is not understood: {error}") from error

    async def aclose(self) -> None:
        """Close the connection."""
        if self._session:
            await self._session.close()


class FilePoints:
    """Points in a file of line protocol. It is read once for a stream; 8 bytes are kept for each line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._times: dict[str, dict[str, array[int]]] = {}

    async def between(
        self, stream: str, first_ns: int, last_ns: int
    ) -> AsyncGenerator[list[FoundPoint]]:
        """See `PointReader.between`."""
        if stream not in self._times:
            self._times[stream] = self._read(stream)
        found = [
            FoundPoint(time_ns, outcome)
            for outcome, times in self._times[stream].items()
            for time_ns in times[bisect_left(times, first_ns) : bisect_right(times, last_ns)]
        ]
        yield sorted(found)

    def _read(self, stream: str) -> dict[str, "array[int]"]:
        tag = re.sub(r"([,= ])", r"\\\1", stream)
        head = (
            rf"{MEASUREMENT},(?:code=\w+,)?outcome=(\w+)(?:,side=\w+)?,stream={re.escape(tag)}[, ]"
        )
        series = re.compile(head.encode())
        times: dict[str, array[int]] = {}
        try:
            with self._path.open("rb") as file:
                for line in file:
                    time = line.rpartition(b" ")[2].strip()
                    if (found := series.match(line)) and time.isdigit():
                        times.setdefault(found[1].decode(), array("Q")).append(int(time))
        except FileNotFoundError:
            return {}  # nothing was written yet
        except OSError as error:
            raise InfluxUnavailable(f"{self._path}: {error}") from error
        return {outcome: array("Q", sorted(set(found))) for outcome, found in times.items()}

    async def aclose(self) -> None:
        """Hold nothing open."""
