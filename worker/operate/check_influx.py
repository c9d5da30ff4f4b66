"""`check`: InfluxDB, or the file of points. That points can be written is proved by writing one."""

import re
from collections.abc import AsyncGenerator, Mapping
from email.utils import parsedate_to_datetime
from time import time, time_ns
from urllib.parse import urlencode

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout

from worker.errors import InfluxUnavailable, PointsRefused
from worker.influx import sink_of
from worker.operate.command import human
from worker.operate.finding import Finding, clock, fail, ok, warn
from worker.operate.point_reader import PointReader
from worker.settings import Settings

MEASUREMENT = "worker_check"
INFLUX = "see INFLUXDB_URL, INFLUXDB_TOKEN, INFLUXDB_ORG, INFLUXDB_BUCKET"
DEFAULT_POLICY = re.compile(r'\["[^"]*","(?:(\d+)h)?(?:(\d+)m)?(\d+)s","[^"]*",\d+,true\]')
SIZES_S = (3600, 60, 1)
DO = {
    "401": "give a token that may write this bucket as INFLUXDB_TOKEN",
    "403": "give a token that may write this bucket as INFLUXDB_TOKEN",
    "404": "make the bucket, or name another in INFLUXDB_BUCKET",
}


class _Rule(msgspec.Struct):
    everySeconds: int = 0  # noqa: N815 - InfluxDB's name


class _Bucket(msgspec.Struct):
    name: str
    retentionRules: list[_Rule] = []  # noqa: N815


class _Buckets(msgspec.Struct):
    buckets: list[_Bucket] = []


async def look_at_influx(settings: Settings, reader: PointReader) -> AsyncGenerator[Finding]:
    """Look at the place that INFLUXDB_URL names. What does not answer is a finding, too."""
    if settings.influxdb_address.startswith("file:"):
        yield await _write(settings)
        return
    try:
        async with _session(settings) as session:
            async for finding in _server(settings, session):
                yield finding
            yield await _write(settings)
            yield await _read(settings, reader)
            retention_s = await _retention_s(settings, session)
    except (ClientError, OSError) as error:  # TimeoutError is one
        yield fail("answers", f"no: {type(error).__name__}: {error}", f"start it, or {INFLUX}")
        return
    if retention_s is not None:
        yield _retention(settings, retention_s)


def _session(settings: Settings) -> ClientSession:
    return ClientSession(
        timeout=ClientTimeout(settings.points_timeout_ms / 1000),
        headers={"Authorization": f"Token {settings.influxdb_token.get_secret_value()}"},
    )


async def _server(settings: Settings, session: ClientSession) -> AsyncGenerator[Finding]:
    asked_at = time()
    async with session.get(f"{settings.influxdb_address.rstrip('/')}/ping") as reply:
        headers = reply.headers
    version = headers.get("X-Influxdb-Version", "").removeprefix("v")
    yield ok("version", f"InfluxDB {version}" if version else "does not tell")
    if date := headers.get("Date"):
        yield clock(parsedate_to_datetime(date).timestamp() * 1000, asked_at, resolution_ms=1000)


async def _write(settings: Settings) -> Finding:
    """Write a point, as workers do."""
    what, where = "takes points", settings.influxdb_bucket
    line = f"{MEASUREMENT},group={_tag(settings.group)} written=true {time_ns()}"
    sink = sink_of(settings)
    try:
        await sink.write(line.encode())
    except InfluxUnavailable as error:
        return fail(what, f"no: {error}", DO.get(str(error)[:3], f"mend it; {INFLUX}"))
    except PointsRefused as error:
        return fail(
            what, f"no: {error}", "see its answer: the bucket may hold other types of that name"
        )
    finally:
        await sink.aclose()
    if settings.influxdb_address.startswith("file:"):
        where = settings.influxdb_address
    return ok(what, f"a point of {MEASUREMENT} is written to {where}")


def _tag(text: str) -> str:
    return "".join(f"\\{character}" if character in ",= " else character for character in text)


async def _read(settings: Settings, reader: PointReader) -> Finding:
    try:
        async for _ in reader.between(settings.streams[0], 0, 0):
            pass
    except InfluxUnavailable as error:
        do = "workers do without; audit and explain need a token that may read, and /query"
        return warn("gives points", f"no: {error}", do)
    return ok("gives points", "audit and explain can read them")


async def _retention_s(settings: Settings, session: ClientSession) -> int | None:
    """How long the bucket keeps points, 0 for ever; None where InfluxDB does not tell us.

    InfluxDB 2 tells it of buckets, 1 of the default policy of a database.
    """
    bucket = settings.influxdb_bucket
    try:
        words = {"name": bucket, "org": settings.influxdb_org}
        if body := await _answer(settings, session, "api/v2/buckets", words):
            found = msgspec.json.decode(body, type=_Buckets).buckets
            rules = [rule.everySeconds for it in found for rule in it.retentionRules]
            return min(rules, default=0) if found else None
        quoted = bucket.replace("\\", "\\\\").replace('"', '\\"')
        words = {"q": f'SHOW RETENTION POLICIES ON "{quoted}"'}
        body = await _answer(settings, session, "query", words)
        return _default_policy_s(body.decode()) if body else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


async def _answer(
    settings: Settings, session: ClientSession, path: str, words: Mapping[str, str]
) -> bytes:
    """What InfluxDB answers; nothing where it refuses, or knows no such path."""
    url = f"{settings.influxdb_address.rstrip('/')}/{path}?{urlencode(words)}"
    async with session.get(url) as reply:
        body = await reply.read()
    return body if reply.status == 200 else b""


def _default_policy_s(text: str) -> int | None:
    """The duration, `168h0m0s` or `0s`, of the policy that is the default."""
    found = DEFAULT_POLICY.search(text)
    return (
        sum(int(part or 0) * size for part, size in zip(found.groups(), SIZES_S, strict=True))
        if found
        else None
    )


def _retention(settings: Settings, retention_s: int) -> Finding:
    kept = f"points are kept for {human(1000 * retention_s)}" if retention_s else "kept for ever"
    if retention_s and retention_s * 1000 < settings.dedupe_window_ms:
        do = "let it keep points for WORKER_DEDUPE_WINDOW at least, or audits miss them"
        return warn("retention", f"{kept}, less than the dedupe window", do)
    return ok("retention", kept)
