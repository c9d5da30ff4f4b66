"""`check` finds what is not right, says what to do, and what it suggests mends it."""

import re
import shlex
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from itertools import pairwise
from typing import Any, NamedTuple, cast

import anyio
import asyncpg
import pytest

from tests.integration.operate.conftest import Ask
from tests.isolation import Place, isolated
from tests.orders import T0_MS, order, orders
from tests.record import settled
from tests.relay import pooler
from tests.servers import Servers, ServerUnavailable
from tests.workers import drain, impatient, working
from worker.embedded import PostgresServer
from worker.errors import EmbeddedUnavailable
from worker.operate import check_influx, check_postgres, check_redis, finding
from worker.operate.check_rights import claim_commands, stream_commands
from worker.programs import valkey

pytestmark = pytest.mark.anyio


class Found(NamedTuple):
    """A line of a check."""

    level: str
    says: str
    do: str
    command: str


Lines = dict[tuple[str, str], list[Found]]


async def checked(ask: Ask, place: Place, *words: str) -> Lines:
    """All lines, by server and what was looked at; the exit code fits them."""
    reply = await ask(place, "check", "--json", *words)
    lines: Lines = {}
    for section in reply.document["sections"]:
        for it in section["findings"]:
            found = Found(it["level"], it["says"], it["do"], it["command"])
            lines.setdefault((section["server"], it["what"]), []).append(found)
    failed = any(it.level == "fail" for found in lines.values() for it in found)
    assert (reply.code, reply.document["ok"]) == (int(failed), not failed)
    return lines


def not_ok(lines: Lines, level: str = "") -> set[tuple[str, str]]:
    """What is not ok."""
    return {
        key
        for key, found in lines.items()
        if any(it.level in ([level] if level else ["warn", "fail"]) for it in found)
    }


@pytest.fixture
async def traffic(place: Place) -> Place:
    await place.publish([*orders(range(3)), order(0), order(9, side="hold")])
    await drain(place)
    return place


async def test_of_a_healthy_system_with_a_worker_everything_is_ok(traffic: Place, ask: Ask) -> None:
    async with working(traffic) as events:
        await events.wait_for("worker.ready")
        await traffic.publish([order(7)])
        await events.wait_for("batch.settled")
        lines = await checked(ask, traffic)
        assert not_ok(lines) == set()
        text = await ask(traffic, "check")
    assert text.code == 0
    assert text.output.endswith("0 warn, 0 fail\n")


async def test_before_anything_runs_only_the_missing_worker_is_warned_of(
    place: Place, ask: Ask
) -> None:
    lines = await checked(ask, place)
    assert not_ok(lines) == {("Redis", f"stream {place.stream}")}
    assert lines["Redis", f"stream {place.stream}"][-1].command == "python -m worker"
    assert await place.command("KEYS", "*") == []  # nothing was made by looking


async def test_that_points_can_be_written_is_proved_by_one(traffic: Place, ask: Ask) -> None:
    lines = await checked(ask, traffic)
    assert lines["InfluxDB", "takes points"][0].level == "ok"
    (row,) = traffic.influx.query('SELECT * FROM "worker_check"', traffic.bucket)
    assert (row["group"], row["written"]) == (traffic.settings.group, True)
    assert (await ask(traffic, "audit")).code == 0  # that point disturbs no audit


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"INFLUXDB_TOKEN": "wrong"}, "401"),
        ({"INFLUXDB_BUCKET": "nowhere"}, "404"),
        ({"INFLUXDB_URL": "file:///no/such/directory/points.lp"}, "No such file"),
    ],
)
async def test_points_that_cannot_be_written_fail(
    place: Place, ask: Ask, variables: dict[str, str], says: str
) -> None:
    (found,) = (await checked(ask, place.having(**variables)))["InfluxDB", "takes points"]
    assert (found.level, says in found.says, found.do != "") == ("fail", True, True)


async def test_a_bucket_that_forgets_within_the_window_is_warned_of(place: Place, ask: Ask) -> None:
    async def retention() -> Found | None:
        return (await checked(ask, place)).get(("InfluxDB", "retention"), [None])[0]

    found = await retention()
    assert found
    assert (found.level, found.says) == ("ok", "kept for ever")
    bucket = place.bucket
    change = f'ALTER RETENTION POLICY "autogen" ON "{bucket}" DURATION %s SHARD DURATION 1h'
    try:
        place.influx.query(change % "2h", bucket)
    except RuntimeError as reason:
        pytest.skip(f"only InfluxDB 1 has policies: {reason}")
    found = await retention()
    assert found
    assert (found.level, found.says[:25]) == ("warn", "points are kept for 2 h, ")
    place.influx.query(change % "48h", bucket)
    found = await retention()
    assert found
    assert found.level == "ok"


# --- Redis ---


@asynccontextmanager
async def on_redis(
    servers: Servers, own: Servers, options: Mapping[str, str], *, newest: bool = False
) -> AsyncGenerator[Place]:
    """A place on a Redis with these settings."""
    try:
        program = valkey() if newest else None
    except EmbeddedUnavailable as reason:
        raise ServerUnavailable(str(reason)) from reason
    url = own.own_redis(options, program).url
    async with isolated(servers, redis_url=url) as place:
        yield place


async def test_eviction_and_no_file_are_found_and_the_commands_mend_them(
    clean_servers: Servers, own_servers: Servers, ask: Ask
) -> None:
    evicts = {"maxmemory": "64mb", "maxmemory-policy": "allkeys-lru", "appendonly": "no"}
    async with on_redis(clean_servers, own_servers, evicts) as place:
        lines = await checked(ask, place)
        assert lines["Redis", "maxmemory-policy"][0].level == "fail"
        assert lines["Redis", "persistence"][0].level == "warn"
        for what in ("maxmemory-policy", "persistence"):
            command = lines["Redis", what][0].command
            words = command.removeprefix('redis-cli -u "$REDIS_URL" ').split()
            await place.command(*words)
        lines = await checked(ask, place)
        assert lines["Redis", "maxmemory-policy"][0].level == "ok"
        assert lines["Redis", "persistence"][0].level == "ok"


async def test_on_a_redis_for_claims_alone_eviction_and_no_file_are_fine(
    clean_servers: Servers, own_servers: Servers, place: Place, ask: Ask
) -> None:
    evicts = {"maxmemory": "64mb", "maxmemory-policy": "allkeys-lru", "appendonly": "no"}
    async with on_redis(clean_servers, own_servers, evicts) as claims:
        lines = await checked(ask, place.having(DEDUPE_REDIS_URL=claims.settings.redis_address))
        assert lines["Redis (claims)", "maxmemory-policy"][0].level == "ok"
        assert ("Redis (claims)", "persistence") not in lines
        assert lines["Redis (claims)", f"rights on {place.stream}"][0].level == "ok"


async def test_full_memory_and_a_large_stream_are_found(
    clean_servers: Servers, own_servers: Servers, ask: Ask
) -> None:
    async with on_redis(clean_servers, own_servers, {"maxmemory": "8mb"}) as place:
        await place.publish([order(n, note="x" * 6000) for n in range(1000)])
        lines = await checked(ask, place)
        assert lines["Redis", "memory"][0].level in ("warn", "fail")
        (size, *_) = lines["Redis", f"stream {place.stream}"]
        assert (size.level, "WORKER_RETENTION" in size.do) == ("warn", True)


async def test_a_replica_of_redis_fails(
    clean_servers: Servers, own_servers: Servers, ask: Ask
) -> None:
    async with on_redis(clean_servers, own_servers, {}) as place:
        await place.command("REPLICAOF", "127.0.0.1", "1")
        lines = await checked(ask, place)
        assert lines["Redis", "role"][0].level == "fail"


@pytest.mark.parametrize("newest", [False, True])
async def test_rights_that_are_missing_are_named_and_the_command_gives_them(
    clean_servers: Servers, own_servers: Servers, ask: Ask, newest: bool
) -> None:
    """Also rights on keys; and no stream, group or letter is made on the way."""
    async with on_redis(clean_servers, own_servers, {}, newest=newest) as place:
        await place.publish(orders(range(3)))
        rules = ["~nothing", "+@all", "-xclaim", "-xgroup", "-info"]
        await place.command("ACL", "SETUSER", "worker", "on", ">secret", *rules)
        url = place.settings.redis_address.replace("://", "://worker:secret@")
        denied = place.having(REDIS_URL=url)
        (found,) = (await checked(ask, denied))["Redis", f"rights on {place.stream}"]
        assert found.level == "fail"
        assert {"XCLAIM", "XGROUP CREATE", "XREADGROUP", "SET"} <= set(
            found.says.removeprefix("not allowed: ").split(", ")
        )
        await place.command(*found.command.removeprefix("redis-cli ").split())
        lines = await checked(ask, denied)
        assert lines["Redis", f"rights on {place.stream}"][0].level == "ok"
        assert lines["Redis", "server"][0].level == "warn"  # INFO is refused still: nothing fails
        assert await place.command("KEYS", "*") == [place.stream]
        assert await place.command("XINFO", "GROUPS", place.stream) == []
        await drain(denied)  # and it suffices


def test_rights_are_asked_for_every_command_of_the_scripts() -> None:
    asked = {command[0] for command in stream_commands("s", "g") + claim_commands("s")}
    asked |= {" ".join(command[:2]) for command in stream_commands("s", "g")}
    own = ("replay_letter.lua", "remove_letters.lua", "repair_claim.lua")  # operators' alone
    scripts = [
        path.read_text()
        for package in ("worker", "streams")
        for path in (files(package) / "lua").iterdir()
        if path.name not in own
    ]
    pattern = r"(?:redis\.p?call|attempt)\('([A-Z]+)'(?:, '([A-Z]+)')?"
    used = {words for text in scripts for words in re.findall(pattern, text)}
    assert len(used) > 10
    assert {
        f"{first} {second}" if first[:2] in ("XG", "XI") else first for first, second in used
    } <= asked


async def test_a_clock_that_differs_is_warned_of(
    place: Place, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (check_influx, check_postgres, check_redis, finding):
        monkeypatch.setattr(module, "time", lambda: time.time() + 5)
    lines = await checked(ask, place)
    for server in ("Redis", "Postgres", "InfluxDB"):
        (found,) = lines[server, "clock"]
        assert (found.level, "behind this machine" in found.says) == ("warn", True)


# --- Postgres ---


async def test_a_schema_that_is_missing_fails_with_the_command_that_makes_it(
    place: Place, ask: Ask
) -> None:
    lines = await checked(ask, place.having(DATABASE_SCHEMA=f"{place.schema}_none"))
    assert lines["Postgres", "schema"][0].command == "python -m worker migrate"
    await place.fetch("INSERT INTO schema_migrations (version, name) VALUES (9999, 'future')")
    (found,) = (await checked(ask, place))["Postgres", "schema"]
    assert (found.level, found.do) == ("fail", "update the worker")


async def test_a_pooler_that_keeps_settings_of_sessions_to_itself_is_found(
    place: Place, ask: Ask
) -> None:
    async with pooler(place.variables["DATABASE_URL"]) as url:
        lines = await checked(ask, place.having(DATABASE_URL=url))
    (found,) = lines["Postgres", "database"]
    assert (found.level, "PgBouncer" in found.says) == ("fail", True)


async def test_the_deciding_index_is_looked_at(place: Place, ask: Ask) -> None:
    async def index() -> Found:
        return (await checked(ask, place))["Postgres", "deciding index"][0]

    assert (await index()).level == "ok"
    await place.fetch("ALTER TABLE duplicates DROP CONSTRAINT duplicates_original_fkey")
    await place.fetch("ALTER TABLE orders DROP CONSTRAINT orders_pkey")
    found = await index()
    assert found.level == "fail"
    await place.fetch(sql_of(found.command))
    assert (await index()).level == "ok"
    await place.fetch(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'orders_pkey'::regclass"
    )
    found = await index()
    assert (found.level, "REINDEX" in found.command) == ("fail", True)
    await place.fetch(sql_of(found.command))
    assert (await index()).level == "ok"


def sql_of(command: str) -> str:
    """The statement of a command for psql."""
    return re.split("['\"]", command.partition(" -c ")[2], maxsplit=1)[1].rstrip("'\"")


async def test_a_database_that_is_read_only_by_default_fails_and_its_command_mends_it(
    own_postgres: PostgresServer, clean_servers: Servers, ask: Ask
) -> None:
    async with isolated(clean_servers, database_url=own_postgres.url) as place:
        for whose in (
            "ROLE tbot", "DATABASE tbot_dev", "ROLE tbot IN DATABASE tbot_dev", "SYSTEM",
        ):  # fmt: skip
            await typed(own_postgres, f"ALTER {whose} SET default_transaction_read_only = on")
            await typed(own_postgres, "SELECT pg_reload_conf()")
            await wait_for("fail", lambda: writable(ask, place))
            (found,) = (await checked(ask, place))["Postgres", "writable"]
            await typed(own_postgres, *sqls_of(found.command))
            await wait_for("ok", lambda: writable(ask, place))


async def writable(ask: Ask, place: Place) -> str:
    return (await checked(ask, place))["Postgres", "writable"][0].level


async def wait_for(level: str, look: Callable[[], Awaitable[str]]) -> None:
    """Postgres' processes hear of a new configuration one after the other."""
    with anyio.fail_after(30):
        while await look() != level:  # noqa: ASYNC110 - it is Postgres that knows
            await anyio.sleep(0.1)


async def typed(server: PostgresServer, *statements: str) -> None:
    """What psql does with these, each behind a -c: one connection, as Postgres makes it by default."""
    connection = cast("Any", await asyncpg.connect(server.url))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def sqls_of(command: str) -> list[str]:
    """The statements of a command for psql."""
    words = shlex.split(command)
    return [sql for option, sql in pairwise(words) if option == "-c"]


async def test_commits_that_a_crash_may_take_are_warned_of(
    own_postgres: PostgresServer, clean_servers: Servers, ask: Ask
) -> None:
    async with isolated(clean_servers, database_url=own_postgres.url) as place:
        await place.fetch("ALTER ROLE CURRENT_USER SET synchronous_commit = off")
        (found,) = (await checked(ask, place))["Postgres", "durability"]
        assert (found.level, "synchronous_commit" in found.says) == ("warn", True)


async def test_rights_that_the_role_lacks_are_named_and_the_command_grants_them(
    own_postgres: PostgresServer, clean_servers: Servers, ask: Ask
) -> None:
    async with isolated(clean_servers, database_url=own_postgres.url) as place:
        await place.fetch("CREATE ROLE worker LOGIN PASSWORD 'secret'")
        await place.fetch(f"GRANT USAGE ON SCHEMA {place.schema} TO worker")
        await place.fetch("GRANT SELECT ON ALL TABLES IN SCHEMA " + place.schema + " TO worker")
        host = own_postgres.url.rpartition("@")[2]
        lesser = place.having(DATABASE_URL=f"postgresql://worker:secret@{host}")
        (found,) = (await checked(ask, lesser))["Postgres", "rights"]
        assert "INSERT on orders" in found.says
        await place.fetch(found.command.partition(" -c ")[2].strip("'"))
        assert (await checked(ask, lesser))["Postgres", "rights"][0].level == "ok"
        await place.publish(orders(range(3)))
        await drain(lesser)  # and it suffices


async def test_settings_by_which_a_stream_is_not_recorded_are_told(place: Place, ask: Ask) -> None:
    what = "Postgres", f"rules of {place.stream}"
    assert what not in await checked(ask, place)
    await place.publish(orders(range(3)))
    await drain(place)
    (found,) = (await checked(ask, place))[what]
    assert (found.level, "set here" in found.says) == ("ok", True)
    for name, value, was in (
        ("WORKER_DEDUPE_WINDOW", "90m", "24 h"),
        ("WORKER_ENVELOPE_FIELDS", "order_id,nonce", "client_order_id,order_id,"),
    ):
        (found,) = (await checked(ask, place.having(**{name: value})))[what]
        assert found.level == "warn"
        assert f"{name} {was}" in found.says
    await place.fetch("UPDATE rules SET reading = 0")
    (found,) = (await checked(ask, place))[what]
    assert (found.level, "another version of Ordergate" in found.says) == ("warn", True)


# --- streams, workers, settings ---


async def test_dead_consumers_and_what_they_hold_are_found(place: Place, ask: Ask) -> None:
    place = impatient(place)
    stream, group = place.stream, place.settings.group
    await place.command("XGROUP", "CREATE", stream, group, "0", "MKSTREAM")
    await place.publish(orders(range(3)), [f"{T0_MS + n}-0" for n in range(3)])
    read = ("XREADGROUP", "GROUP", group, "w-7", "COUNT", 2, "STREAMS", stream, ">")
    await place.command(*read)
    claim = ("XCLAIM", stream, group, "w-7", 0, f"{T0_MS}-0", "IDLE", 3_600_000)
    await place.command(*claim)
    findings = (await checked(ask, place))["Redis", f"stream {stream}"]
    pending = [it for it in findings if "2 pending" in it.says]
    assert [it.level for it in pending] == ["warn"]
    assert f"explain {T0_MS}-0" in pending[0].command


async def test_a_worker_that_may_wait_for_a_server_is_not_simply_called_dead(
    place: Place, ask: Ask
) -> None:
    place = impatient(place)
    await place.command("XGROUP", "CREATE", place.stream, place.settings.group, "0", "MKSTREAM")
    await place.publish(orders(range(2)))
    read = ("XREADGROUP", "GROUP", place.settings.group, "w-7", "COUNT", 1)
    await place.command(*read, "STREAMS", place.stream, ">")
    await anyio.sleep(3.2)  # longer than it takes for a takeover: it is Redis' clock that counts
    (found,) = [it for it in await stream_lines(ask, place) if "nobody reads" in it.says]
    assert (found.level, "that waits for a server" in found.do) == ("fail", True)


async def stream_lines(ask: Ask, place: Place) -> list[Found]:
    return (await checked(ask, place))["Redis", f"stream {place.stream}"]


@pytest.mark.parametrize("newest", [False, True])
async def test_where_nothing_waits_a_live_worker_is_not_taken_for_a_dead_one(
    clean_servers: Servers, own_servers: Servers, ask: Ask, *, newest: bool
) -> None:
    """Before 7.2 Redis notes only reads that find something."""
    async with on_redis(clean_servers, own_servers, {}, newest=newest) as usual:
        place = impatient(usual)
        async with working(place):
            await place.publish(orders(range(1)))
            await settled(place)
            await anyio.sleep(3.5)
            reading = (await stream_lines(ask, place))[1]
            assert (reading.level, "nobody" in reading.says) == ("ok", False)
        await place.publish(orders(range(1, 2)))
        await anyio.sleep(3.5)
        reading = (await stream_lines(ask, place))[1]
        assert (reading.level, "nobody" in reading.says) == ("warn", True)


async def test_retention_below_the_window_and_unknown_variables_are_warned_of(
    place: Place, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_RETENTIONS", "1h")
    lines = await checked(ask, place.having(WORKER_RETENTION="1h"))
    assert ("settings", "WORKER_RETENTION") in not_ok(lines, "warn")
    assert lines["settings", "WORKER_RETENTIONS"][0].do == "WORKER_RETENTION may be meant"
    lines = await checked(ask, place.having(WORKER_RETENTION="48h"))
    assert ("settings", "WORKER_RETENTION") not in not_ok(lines)


async def test_points_owed_and_parked_are_warned_of(place: Place, ask: Ask) -> None:
    await place.fetch(
        "INSERT INTO point_backlog (stream, entry_id) VALUES ($1, '1-1')", place.stream
    )
    (found,) = (await checked(ask, place))["Postgres", f"points of {place.stream}"]
    assert (found.level, found.says[:7]) == ("warn", "1 owed ")
    await place.fetch("UPDATE point_backlog SET refusal = '422 no'")
    (found,) = (await checked(ask, place))["Postgres", f"points of {place.stream}"]
    assert (found.level, "1 refused by InfluxDB" in found.says) == ("warn", True)


@pytest.mark.parametrize("words", [("extra",), ("--stream", ""), ("--stream", "a{b}"), ("--fix",)])
async def test_wrong_usage_is_told_in_words(place: Place, ask: Ask, words: Sequence[str]) -> None:
    reply = await ask(place, "check", *words)
    assert (reply.code, reply.output) == (2, "")
    assert "ordergate: " in reply.errors or "error: " in reply.errors
