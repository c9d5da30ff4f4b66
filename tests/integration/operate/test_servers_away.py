"""Each command while a server is away, halted, or refuses us: what can be told is, and the rest in words."""

from collections.abc import AsyncGenerator

import anyio
import pytest

from tests.influxdb_server import InfluxServer
from tests.integration.operate.conftest import Ask, Reply
from tests.isolation import Place, isolated
from tests.orders import order
from tests.servers import Servers
from tests.workers import drain, impatient
from worker.embedded import PostgresServer, RedisServer

pytestmark = pytest.mark.anyio

NOWHERE = {
    "Redis": {"REDIS_URL": "redis://127.0.0.1:1/0"},
    "Postgres": {"DATABASE_URL": "postgresql://tbot:x@127.0.0.1:1/tbot_dev"},
    "InfluxDB": {"INFLUXDB_URL": "http://127.0.0.1:1"},
    "claims": {"DEDUPE_REDIS_URL": "redis://127.0.0.1:1/0"},
}
COMMANDS = {
    "explain an order": ("explain", "A-1"),
    "explain an entry": ("explain", "1767225600000-0"),
    "explain fields": ("explain", "symbol=X", "side=buy", "type=market", "quantity=1"),
    "list": ("dead-letters", "list"),
    "show": ("dead-letters", "show", "--all"),
    "dry run": ("dead-letters", "replay", "--all", "--dry-run"),
    "replay": ("dead-letters", "replay", "--all"),
    "purge": ("dead-letters", "purge", "--all", "--yes"),
    "audit": ("audit",),
    "repair": ("audit", "--repair"),
    "check": ("check",),
    "status": ("status",),
}
#: Whose absence each command bears; all others end it with exit code 1.
BEARS = {
    "explain an order": {"Redis", "InfluxDB", "claims"},
    "explain an entry": {"Redis", "InfluxDB", "claims"},
    "explain fields": {"Redis", "InfluxDB", "claims"},
    "list": {"Postgres", "InfluxDB", "claims"},
    "show": {"Postgres", "InfluxDB", "claims"},
    "dry run": {"InfluxDB", "claims"},
    "replay": {"InfluxDB", "claims"},
    "purge": {"Postgres", "InfluxDB", "claims"},
    "audit": set[str](),
    "repair": set[str](),
    "check": set[str](),
    "status": {"InfluxDB", "claims"},
}


@pytest.fixture
async def traffic(place: Place) -> Place:
    """An order, equal to the one that `explain fields` asks about, and a rejection."""
    sent = {"order_id": "A-1", "symbol": "X", "side": "buy", "type": "market", "quantity": "1"}
    await place.publish([sent, order(2, side="hold")], ["1767225600000-0", "1767225600000-1"])
    await drain(place)
    return place


@pytest.mark.parametrize("away", NOWHERE)
async def test_a_server_that_is_not_there_is_told_of(traffic: Place, ask: Ask, away: str) -> None:
    there = impatient(traffic).having(**NOWHERE[away])
    for name, command in COMMANDS.items():
        reply = await ask(there, *command)
        assert reply.code == (0 if away in BEARS[name] else 1), (name, reply)
        told_in_words(reply)
        if reply.code:
            assert away in reply.output + reply.errors, (name, reply)
        reply = await ask(there, *command, "--json")
        assert reply.document is not None if reply.output else reply.errors


def told_in_words(reply: Reply) -> None:
    assert "Traceback" not in reply.output + reply.errors
    assert reply.output or reply.errors.startswith("ordergate: ")
    assert len(reply.errors.splitlines()) <= 1


# --- servers of our own, stopped and halted ---


@pytest.fixture
async def own(
    own_redis: RedisServer, own_postgres: PostgresServer, own_influx: InfluxServer,
    clean_servers: Servers,
) -> AsyncGenerator[Place]:  # fmt: skip
    """A place with a rejection, on servers that may be halted."""
    urls = {"redis_url": own_redis.url, "database_url": own_postgres.url}
    async with isolated(clean_servers, **urls, influx=own_influx) as place:
        await place.publish([order(1), order(2, side="hold")])
        await drain(place)
        yield impatient(place)


@pytest.mark.parametrize("server", ["own_redis", "own_postgres", "own_influx"])
async def test_a_server_that_accepts_and_does_not_answer_is_not_waited_for_long(
    own: Place, ask: Ask, server: str, request: pytest.FixtureRequest
) -> None:
    halted: RedisServer | PostgresServer | InfluxServer = request.getfixturevalue(server)
    halted.pause()
    try:
        for name in ("explain an order", "replay", "audit"):
            began = anyio.current_time()
            told_in_words(await ask(own, *COMMANDS[name]))
            assert anyio.current_time() - began < 20
    finally:
        halted.resume()


# --- servers that refuse ---


async def test_redis_that_denies_a_command_is_told_of_by_name(traffic: Place, ask: Ask) -> None:
    user = f"reader-{traffic.schema}"
    rules = ("on", ">secret", "~*", "+@all", "-xrange", "-xpending")
    await traffic.command("ACL", "SETUSER", user, *rules)
    host = traffic.settings.redis_address.removeprefix("redis://").rpartition("@")[2]
    denied = traffic.having(REDIS_URL=f"redis://{user}:secret@{host}")
    try:
        reply = await ask(denied, "audit")
        assert (reply.code, "xpending" in reply.errors.lower()) == (1, True), reply
        assert (await ask(denied, "dead-letters", "list")).code == 1
        wrong = traffic.having(REDIS_URL=f"redis://{user}:wrong@{host}")
        reply = await ask(wrong, "audit")
        assert (reply.code, "secret" in reply.errors + reply.output) == (1, False)
        told_in_words(reply)
    finally:
        await traffic.command("ACL", "DELUSER", user)


async def test_a_wrong_password_or_database_of_postgres_is_told_of(
    traffic: Place, ask: Ask
) -> None:
    host = traffic.settings.database_address.rpartition("@")[2]
    for url in (f"postgresql://nobody:wrong@{host}", f"postgresql://tbot:x@{host}_none"):
        for command in COMMANDS.values():
            reply = await ask(traffic.having(DATABASE_URL=url), *command)
            told_in_words(reply)


async def test_a_schema_that_is_missing_is_told_with_the_command_that_makes_it(
    traffic: Place, ask: Ask
) -> None:
    for command in ("replay", "audit"):
        reply = await ask(traffic.having(DATABASE_SCHEMA="nowhere"), *COMMANDS[command])
        assert reply.code == 2
        assert "python -m worker migrate" in reply.errors
    reply = await ask(traffic.having(DATABASE_SCHEMA="nowhere"), *COMMANDS["explain an order"])
    told_in_words(reply)
    assert reply.code == 2


async def test_a_wrong_token_of_influxdb_leaves_points_unchecked(traffic: Place, ask: Ask) -> None:
    reply = await ask(traffic.having(INFLUXDB_TOKEN="wrong"), "audit")
    assert reply.code == 1
    assert "not checked: InfluxDB refuses: 401" in reply.output


async def test_a_key_of_another_kind_is_told_of(traffic: Place, ask: Ask) -> None:
    for key in (traffic.stream, f"{{{traffic.stream}}}:dead"):
        await traffic.command("DEL", key)
        await traffic.command("LPUSH", key, "x")
    for name, command in COMMANDS.items():
        reply = await ask(traffic, *command)
        told_in_words(reply)
        if not name.startswith("explain"):
            told = reply.output + reply.errors
            assert (reply.code, "WRONGTYPE" in told) == (1, True), (name, reply)
