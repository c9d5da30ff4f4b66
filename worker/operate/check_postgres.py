"""`check`: Postgres, where the decision falls."""

from collections.abc import AsyncGenerator, Mapping
from time import time
from typing import Any

from worker.errors import BadSettings, SchemaMismatch
from worker.ledger import Ledger, queries
from worker.migrate import check_schema
from worker.operate.command import human
from worker.operate.figures import PointFigures, points_owed
from worker.operate.finding import Finding, clock, fail, ok, warn
from worker.operate.output import printable
from worker.order import READING
from worker.postgres import Connection
from worker.settings import Settings

SQL = queries("check")
VERSION_MIN = 14
DECIDES = ["content_hash", "generation"]


async def look_at_postgres(ledger: Ledger, settings: Settings) -> AsyncGenerator[Finding]:
    """Look at the server, the schema, and the index that decides.

    :raises PostgresUnavailable, PostgresRefused: it does not answer, or not to us
    """
    schema = settings.database_schema
    asked_at = time()
    async with ledger.connection() as connection:
        server = dict(await _row(connection, "server"))
    yield clock(server["now_ms"], asked_at)
    yield _version(server)
    yield _writable(server)
    yield _durable(server)
    try:
        await check_schema(ledger, schema)
    except BadSettings as error:
        yield fail("database", str(error), "change DATABASE_URL")
        return
    except SchemaMismatch as error:
        newer = "newer" in str(error)
        command = "" if newer else "python -m worker migrate"
        yield fail("schema", str(error), "update the worker" if newer else "migrate it", command)
        return
    yield ok("schema", f"{schema}, as this worker needs it")
    async with ledger.connection() as connection:
        yield _index(await connection.fetchrow(SQL["deciding_index"]))
        lacking = [row["lacking"] for row in await connection.fetch(SQL["lacking_rights"])]
        yield _rights(lacking, schema, server["role"])
        if not lacking:
            for row in await connection.fetch(SQL["rules"], settings.streams):
                yield _rules(row, settings)
    for stream, points in (await points_owed(ledger, settings.streams)).items():
        yield _points(f"points of {stream}", points)


async def _row(connection: Connection, query: str) -> Mapping[str, Any]:
    row = await connection.fetchrow(SQL[query])
    assert row  # noqa: S101 - it selects one row
    return row


def _version(server: Mapping[str, Any]) -> Finding:
    number = int(server["version_number"])
    says = f"Postgres {server['version']}"
    if number < VERSION_MIN * 10_000:
        return fail("version", says, f"Ordergate needs Postgres {VERSION_MIN} or newer: update it")
    return ok("version", says)


def _writable(server: Mapping[str, Any]) -> Finding:
    if server["replica"]:
        return fail(
            "writable", "a replica: nothing can be recorded", "let DATABASE_URL lead to the primary"
        )
    if server["read_only"]:
        return fail(
            "writable",
            "read-only by default: nothing can be recorded",
            "take that back, and let the workers connect anew",
            _psql("SET default_transaction_read_only = off", *server["writable_again"]),
        )
    return ok("writable", "the primary, takes writes")


def _psql(*statements: str) -> str:
    """Each statement in a transaction of its own, all in one session."""
    return " ".join(['psql "$DATABASE_URL"', *(f"-c '{statement}'" for statement in statements)])


def _durable(server: Mapping[str, Any]) -> Finding:
    off = [name for name in ("fsync", "full_page_writes") if not server[name]]
    if off:
        return fail(
            "durability",
            f"{' and '.join(off)} off: a crash may destroy the record",
            *_switch_on(off[0]),
        )
    if not server["synchronous_commit"]:
        return warn(
            "durability",
            "synchronous_commit off: a crash takes outcomes whose entries were acknowledged",
            *_switch_on("synchronous_commit"),
        )
    return ok("durability", "what is committed stays")


def _switch_on(name: str) -> tuple[str, str]:
    return (
        "switch it on",
        f'psql "$DATABASE_URL" -c "ALTER SYSTEM SET {name} = on" -c "SELECT pg_reload_conf()"',
    )


def _index(found: Mapping[str, Any] | None) -> Finding:
    """The primary key of `orders`: without it, or while it is not valid, an order may be placed twice."""
    what = "deciding index"
    if found is None or found["columns"] != DECIDES or not found["is_unique"]:
        return fail(
            what,
            "orders has no primary key (content_hash, generation): nothing keeps orders from being doubled",
            "stop the workers, then",
            'psql "$DATABASE_URL" -c "ALTER TABLE orders ADD CONSTRAINT orders_pkey PRIMARY KEY '
            '(content_hash, generation)"',
        )
    if not found["is_valid"]:
        command = 'psql "$DATABASE_URL" -c "REINDEX INDEX orders_pkey"'
        return fail(
            what, "orders_pkey is not valid", "stop the workers, then build it anew", command
        )
    return ok(what, "orders_pkey, unique and valid")


def _rights(lacking: list[str], schema: str, role: str) -> Finding:
    if not lacking:
        return ok("rights", "all that a worker needs")
    says, do = f"lacking: {', '.join(lacking)}", "as the owner of the schema, grant them"
    grant = f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO "{role}"'
    return fail("rights", says, do, f"psql -c '{grant}'")


def _rules(row: Mapping[str, Any], settings: Settings) -> Finding:
    """By which settings a stream is recorded, and whether ours are the same."""
    what, since = f"rules of {row['stream']}", f"since {row['since']:%Y-%m-%d %H:%M:%S} UTC"
    differs: list[str] = []
    if row["window_ms"] != settings.dedupe_window_ms:
        differs.append(f"WORKER_DEDUPE_WINDOW {human(row['window_ms'])}")
    if row["envelope"] != sorted(settings.envelope_fields):
        differs.append(f"WORKER_ENVELOPE_FIELDS {','.join(row['envelope'])}")
    if row["reading"] != READING:
        differs.append(f"reading {row['reading']}, of another version of Ordergate")
    if not differs:
        return ok(what, f"the window and envelope set here, {since}")
    return warn(
        what,
        f"others than set here, {since}: {printable(' and '.join(differs), 300)}",
        "give all workers of a stream the same; what is on record stays, and what comes goes by the new ones",
    )


def _points(what: str, points: PointFigures) -> Finding:
    if points.parked:
        says = f"{points.parked:,} refused by InfluxDB for good, {points.owed:,} owed"
        return warn(
            what, says, "see `refusal` in point_backlog, mend the cause, then offer them again"
        )
    if points.owed:
        says = f"{points.owed:,} owed since {points.owed_since:%Y-%m-%d %H:%M:%S} UTC"
        return warn(what, says, "they are written once InfluxDB takes them")
    return ok(what, "none owed")
