"""Migrations: numbered SQL files, applied in order, each in a transaction of its own.

The plainest thing that is safe: an advisory lock lets one migrator in at a time, and what was applied is a
row in `schema_migrations` beside the tables it made.
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple

from worker.errors import BadSettings, SchemaMismatch
from worker.ledger import Ledger
from worker.postgres import Connection

LOCK = 0x6F726472  #: "ordr"; any number, the same for every migrator


class Migration(NamedTuple):
    """One file of `worker/migrations`, `<version>_<name>.sql`."""

    version: int
    name: str
    sql: str


def migrations() -> list[Migration]:
    """All migrations this worker knows, oldest first."""
    found = [re.fullmatch(r"(\d{4})_(\w+)\.sql", f.name) for f in _FOLDER.iterdir()]
    return sorted(
        Migration(int(m[1]), m[2], (_FOLDER / m.string).read_text(encoding="utf-8"))
        for m in found
        if m
    )


_FOLDER = files("worker") / "migrations"


async def migrate(ledger: Ledger, schema: str) -> list[Migration]:
    """Bring `schema` up to date, making it where it is missing. Says what was applied.

    :raises PostgresUnavailable: what was applied before stays; calling again goes on from there
    :raises SchemaMismatch: the schema is newer than this worker, or not one of its own
    :raises BadSettings: see `check_schema`; nothing was done
    """
    async with ledger.connection() as connection:
        await connection.execute("SELECT pg_advisory_lock($1, hashtext($2))", LOCK, schema)
        try:
            return await _migrate(connection, schema)
        finally:
            await connection.execute("SELECT pg_advisory_unlock($1, hashtext($2))", LOCK, schema)


async def _migrate(connection: Connection, schema: str) -> list[Migration]:
    await _require_session(connection, schema)
    if not await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", schema):
        await connection.execute(f'CREATE SCHEMA "{schema}"')
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations (version int PRIMARY KEY, name text NOT NULL, "
        "applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
    )
    missing = _missing(await _applied(connection))
    for migration in missing:
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(
                "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)",
                migration.version,
                migration.name,
            )
    return missing


async def check_schema(ledger: Ledger, schema: str) -> None:
    """Raise unless the schema is exactly the one this worker was written for.

    Hears Postgres' time as well, for the first batch.

    :raises SchemaMismatch: it is older, newer, or another; the message says what to do
    :raises BadSettings: sessions are not in the schema, or not in UTF8; the message says why
    """
    await ledger.hear_as_of()
    async with ledger.connection() as connection:
        await _require_session(connection, schema)
        there = await connection.fetchval("SELECT to_regclass('schema_migrations') IS NOT NULL")
        applied = await _applied(connection) if there else dict[int, str]()
    if missing := _missing(applied):
        raise SchemaMismatch(
            f"schema {schema} is older than this worker: {len(missing)} migration(s) missing, the first "
            f"is {missing[0].version:04}_{missing[0].name}; run `python -m worker migrate`"
        )


async def _require_session(connection: Connection, schema: str) -> None:
    """A pooler may keep to itself what we ask of a session: all would be done in another schema then. And
    in another encoding than UTF-8 there are orders that cannot be stored, for nothing that is in them.
    """
    path, encoding = await connection.fetchrow(
        "SELECT current_setting('search_path'), current_setting('server_encoding')"
    )
    if path != schema:
        raise BadSettings(
            f"DATABASE_URL leads to sessions whose search_path is {path}, where {schema} was asked for, and "
            "that have no time limits of ours; connect to Postgres itself, not to a pooler such as PgBouncer"
        )
    if encoding != "UTF8":
        raise BadSettings(
            f"DATABASE_URL leads to a database in {encoding}, which cannot store the text of every order; "
            "make one in UTF8: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )


def _missing(applied: Mapping[int, str]) -> list[Migration]:
    """The migrations that are not applied yet. :raises SchemaMismatch: others are, which are not ours"""
    ours = migrations()
    known = {migration.version: migration.name for migration in ours}
    for version, name in sorted(applied.items()):
        if version not in known:
            raise SchemaMismatch(
                f"the schema has migration {version:04}, which this worker does not know: it is newer; "
                "update the worker"
            )
        if name != known[version]:
            raise SchemaMismatch(
                f"migration {version:04} of the schema is {name}, of this worker {known[version]}: "
                "it is from before the first release; use another DATABASE_SCHEMA"
            )
    return [migration for migration in ours if migration.version not in applied]


async def _applied(connection: Connection) -> dict[int, str]:
    rows = await connection.fetch("SELECT version, name FROM schema_migrations")
    return {row["version"]: row["name"] for row in rows}
