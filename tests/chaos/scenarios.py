"""What a worker may find when it starts, prepared once and restored for each of many runs.

Between them the scenarios make a worker do everything it ever does with its servers; a test says so. A run
gets a stream of a new name, on a stage that several runs use after each other: a schema, a bucket and a
Redis. What a scenario needs on record was put there by the product itself.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any, NamedTuple, cast

from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync
from redis.asyncio import Redis

from tests.chaos.faulty_io import scripts
from tests.isolation import Place, isolated
from tests.record import Entries, Tally, as_sent, forge_claim
from tests.servers import Servers
from tests.workers import drain, impatient
from worker.intake import SUSPECT_FROM

T0 = 1_767_225_600_000
WINDOW_MS = 60_000
LONG_PRICE = "0.1234567890123456789012"  #: more digits than a float has
LONG_QUIET_MS = 60_000  #: since a dead consumer was last heard of; more than any takeover time here
RANDOM_ORDERS = 120
SPELLINGS = ("{}", "{}.0", "{}.000", "+{}", "{}e0")  #: of one and the same number
TABLES = ("orders", "duplicates", "rejections", "point_backlog", "points_in_hand")
COLUMNS = """
SELECT string_agg(column_name, ', ' ORDER BY ordinal_position) AS names FROM information_schema.columns
WHERE table_schema = $1 AND table_name = $2 AND is_generated = 'NEVER' AND is_identity = 'NO'
    AND column_name <> 'stream'
"""

_streams = count()


def _order(order_id: str, quantity: str, **changes: str) -> dict[str, str]:
    return {
        "order_id": order_id,
        "account": "alpha",
        "symbol": "BTCUSDT",
        "side": "buy",
        "type": "limit",
        "price": "45678.12",
        "quantity": quantity,
    } | changes


def _stop_order(order_id: str, quantity: str) -> dict[str, str]:
    fields = _order(order_id, quantity, type="stop", stop_price="9.5")
    return {name: value for name, value in fields.items() if name != "price"}


class Sent(NamedTuple):
    """An entry of a scenario: milliseconds after T0, its fields, and its place within the millisecond."""

    at_ms: int
    fields: Mapping[str, str]
    seq: int = 0


#: On record already, and delivered once more.
EARLIER = (
    Sent(0, _order("E-1", "1")),
    Sent(0, _order("E-2", "2", price=LONG_PRICE), seq=1),  # of one millisecond with the first
    Sent(2, _order("E-3", "1.0")),  # repeats the first
    Sent(3, _order("E-4", "NaN")),  # none
    Sent(4, _stop_order("E-5", "5")),  # its point will be refused
)
#: Read by the worker in an earlier life, and not acknowledged.
OWN = (Sent(5, _order("M-1", "11")), Sent(6, _order("M-2", "11.0")))
#: The same, so often that it may be what ended its workers: it is tried alone.
SUSPECT = (Sent(7, _order("S-1", "31")),)
#: Read by a consumer that has died. The first was trimmed since; the second's point will be refused.
LEFT_BEHIND = (
    Sent(8, _order("G-1", "21")),
    Sent(9, _stop_order("G-2", "22")),
    Sent(10, _order("G-3", "0")),
)
NEW = (
    Sent(11, _order("M-3", "1")),  # repeats an earlier one
    Sent(12, _order("M-4", "1", side="hold")),
    Sent(13, _order("M-5", "12")),
    Sent(14, {"payload": "{"}),
    Sent(WINDOW_MS + 13, _order("M-6", "12")),  # at the very end of the window
    Sent(WINDOW_MS + 14, _order("M-7", "12")),  # beyond it: the next generation
    Sent(WINDOW_MS + 2_000, _order("M-8", "2", price=LONG_PRICE)),  # beyond that of an earlier one
    Sent(WINDOW_MS + 2_001, _order("M-9", "2", price=LONG_PRICE)),  # and a repeat of it
)


SMALL = (*OWN, NEW[1])


@dataclass(frozen=True)
class Scenario:
    """What a worker finds.

    :ivar prepare: brings a new place there; gives the journal of what was sent
    :ivar expected: None where only the reference knows
    :ivar scripts_known: whether Redis knows the worker's scripts already
    :ivar claims_apart: whether the claims are on a Redis of their own
    """

    name: str
    prepare: Callable[[Place], Awaitable[Entries]]
    expected: Tally | None
    scripts_known: bool = True
    claims_apart: bool = False
    refused_points: frozenset[str] = frozenset()


def _id(sent: Sent) -> str:
    return f"{T0 + sent.at_ms}-{sent.seq}"


async def _publish(place: Place, series: Sequence[Sent]) -> Entries:
    orders = [sent.fields for sent in series]
    return as_sent(await place.publish(orders, list(map(_id, series))), orders)


async def _busy(place: Place) -> Entries:
    """A stream in the midst of life: redelivered, pending, left behind, owed, new."""
    await _refuse_stop_prices(place)
    journal = dict(await _publish(place, EARLIER))
    await drain(place)
    await place.postgres.execute("UPDATE point_backlog SET refusal = NULL")
    one = place.settings.consumer
    for series, consumer, deliveries in (
        (OWN, one, 1),
        (SUSPECT, one, SUSPECT_FROM),
        (LEFT_BEHIND, "gone", 1),
    ):
        journal |= await _publish(place, series)
        await _read_and_leave(place, consumer, series, deliveries)
    trimmed = _id(LEFT_BEHIND[0])
    await place.command("XDEL", place.stream, trimmed)
    await place.command("XGROUP", "SETID", place.stream, place.settings.group, "0")
    journal[trimmed] = []
    return journal | dict(await _publish(place, NEW))


async def _refuse_stop_prices(place: Place) -> None:
    """Let InfluxDB hold a stop price that is text: it refuses every number from then on."""
    influx = place.influx
    async with InfluxDBClientAsync(influx.url, influx.token, influx.org) as client:
        line = f'orders,outcome=x stop_price="text" {T0}000000'
        await client.write_api().write(place.bucket, record=line)


async def _read_and_leave(
    place: Place, consumer: str, series: Sequence[Sent], deliveries: int
) -> None:
    group = place.settings.group
    await place.command(
        "XREADGROUP", "GROUP", group, consumer, "COUNT", len(series), "STREAMS", place.stream, ">"
    )
    ids = list(map(_id, series))
    quiet = ("IDLE", LONG_QUIET_MS, "RETRYCOUNT", deliveries, "JUSTID")
    await place.command("XCLAIM", place.stream, group, consumer, 0, *ids, *quiet)


async def _bare(place: Place) -> Entries:
    """A stream that no worker has seen, on a Redis that has just started; claims on another."""
    return await _publish(place, (*EARLIER[:4], *NEW))


async def _small(place: Place) -> Entries:
    """One batch with one of each outcome, for a worker that has been here before."""
    await place.command("XGROUP", "CREATE", place.stream, place.settings.group, "0", "MKSTREAM")
    return await _publish(place, SMALL)


#: Read by a consumer that has died, the first trimmed since.
ABANDONED = (
    Sent(0, _order("A-1", "1")),
    Sent(1, _order("A-2", "2")),
    Sent(2, _order("A-3", "3", side="hold")),
)
#: The first content is claimed by an entry that Postgres knows nothing of, and the second by something that
#: is no entry.
MISTAKEN = (Sent(3, _order("L-1", "4")), Sent(4, _order("L-2", "5")))
PLAIN = (
    Sent(5, _order("L-3", "5.0")),
    Sent(6, _order("L-4", "4.00")),
    Sent(7, _order("L-5", "5", account="beta")),
    Sent(8, _order("L-6", "-5")),
)


async def _misled(place: Place) -> Entries:
    """Entries that a dead worker holds, and claims that are wrong."""
    await place.command("XGROUP", "CREATE", place.stream, place.settings.group, "0", "MKSTREAM")
    journal = dict(await _publish(place, ABANDONED))
    await _read_and_leave(place, "gone", ABANDONED, 1)
    trimmed = _id(ABANDONED[0])
    await place.command("XDEL", place.stream, trimmed)
    journal[trimmed] = []
    for sent, claim in zip(MISTAKEN, (f"{T0 - 1}-5", "somebody else's"), strict=True):
        await forge_claim(place, sent.fields, claim)
    return journal | dict(await _publish(place, (*MISTAKEN, *PLAIN)))


async def _forgotten(place: Place) -> Entries:
    """A stream that was read in part; Redis has lost its group and the claims since."""
    journal = dict(await _publish(place, EARLIER[:4]))
    await drain(place)
    await place.command("XGROUP", "DESTROY", place.stream, place.settings.group)
    await place.forget_claims()
    return journal | dict(await _publish(place, NEW))


async def _random(place: Place) -> Entries:
    """Orders by chance, always the same: repeats spelled otherwise, in and out of the window, bad ones."""
    chance = Random(1)  # noqa: S311 - to be repeated
    await place.command("XGROUP", "CREATE", place.stream, place.settings.group, "0", "MKSTREAM")
    at_ms, series = 0, list[Sent]()
    for number in range(RANDOM_ORDERS):
        step_ms = chance.choice((0, 0, 1, 20, 20, WINDOW_MS // 3))
        seq = series[-1].seq + 1 if series and not step_ms else 0
        at_ms += step_ms
        quantity = chance.choice(SPELLINGS).format(chance.randint(0, 12))
        price = chance.choice((LONG_PRICE, "45678.12", "1.5"))
        account = chance.choice(("alpha", "beta"))
        series.append(
            Sent(at_ms, _order(f"R-{number}", quantity, price=price, account=account), seq)
        )
    return await _publish(place, series)


async def _poisoned(place: Place) -> Entries:
    """One batch with an order that Postgres is to refuse."""
    await place.command("XGROUP", "CREATE", place.stream, place.settings.group, "0", "MKSTREAM")
    return await _publish(place, POISON_AMONG)


async def _empty(_place: Place) -> Entries:
    return {}


POISON_AMONG = tuple(
    Sent(n, _order("poison" if n == 2 else f"P-{n}", str(n + 1))) for n in range(6)
)
POISONED_ID = _id(POISON_AMONG[2])
REFUSED_POINTS = frozenset({_id(EARLIER[4]), _id(LEFT_BEHIND[1])})
SCENARIOS = (
    Scenario("busy", _busy, Tally(9, 5, 5), refused_points=REFUSED_POINTS),
    Scenario("bare", _bare, Tally(5, 4, 3), scripts_known=False, claims_apart=True),
)
FOR_PAIRS = Scenario("small", _small, Tally(1, 1, 1))  #: few calls, for its pairs are many
MISLED = Scenario("misled", _misled, Tally(4, 2, 3))
FORGOTTEN = Scenario("forgotten", _forgotten, Tally(5, 4, 3))
RANDOM = Scenario("random", _random, None)
POISONED = Scenario("poisoned", _poisoned, None)
EMPTY = Scenario("empty", _empty, None)
ALL = (*SCENARIOS, FOR_PAIRS, MISLED, FORGOTTEN, RANDOM, POISONED, EMPTY)


@dataclass(frozen=True)
class _Template:
    """A prepared scenario: what is in Redis, under a stream's name, and in Postgres, and what was sent.

    :ivar rows: statement that restores the rows, for a stream's name in place of `<stream>`
    """

    stream: str
    keys: Mapping[str, tuple[int, bytes]]
    rows: str
    sent: Entries


@dataclass
class Stage:
    """Where runs take place, one after the other."""

    place: Place
    _templates: dict[str, _Template] = field(default_factory=dict[str, _Template])

    async def set(self, scenario: Scenario, *, retention: bool = True) -> tuple[Place, Entries]:
        """The scenario as it begins, in a stream of a new name; what was there before is gone.

        :param retention: settled entries are trimmed at once
        """
        template = self._templates.get(scenario.name) or await self._prepare(scenario)
        place = self._place(scenario)
        await self.clear(place)
        for key, (ttl_ms, value) in template.keys.items():
            name = key.replace(template.stream, place.stream)
            await place.command("RESTORE", name, ttl_ms, value)
        if scenario.scripts_known:
            for script in scripts().values():
                await place.command("SCRIPT", "LOAD", script.text)
        await place.postgres.execute(template.rows.replace("<stream>", place.stream))
        return place.having(WORKER_RETENTION="1ms") if retention else place, template.sent

    async def empty(self) -> Place:
        """Nothing but a stream's name."""
        place, _ = await self.set(EMPTY, retention=False)
        return place

    def _place(self, scenario: Scenario) -> Place:
        place = self.place.having(WORKER_STREAMS=f"orders-{next(_streams)}")
        if scenario.claims_apart:
            return place.having(
                DEDUPE_REDIS_URL=place.variables["REDIS_URL"].removesuffix("/0") + "/1"
            )
        return place

    async def clear(self, place: Place) -> None:
        """Remove all that is there but points."""
        await place.command("FLUSHALL")
        await place.command("SCRIPT", "FLUSH")
        await place.postgres.execute("".join(f"DELETE FROM {name};" for name in TABLES[::-1]))

    async def _prepare(self, scenario: Scenario) -> _Template:
        place = self._place(scenario)
        await self.clear(place)
        sent = await scenario.prepare(place)
        rows = [await self._kept(scenario, table) for table in TABLES]
        template = _Template(place.stream, await _dumped(place), ";".join(rows), sent)
        self._templates[scenario.name] = template
        return template

    async def _kept(self, scenario: Scenario, table: str) -> str:
        copy = f"{scenario.name}_{table}"
        await self.place.postgres.execute(f"CREATE TABLE {copy} AS SELECT * FROM {table}")
        [row] = await self.place.fetch(COLUMNS, self.place.schema, table)
        names = row["names"]
        return f"INSERT INTO {table} (stream, {names}) SELECT '<stream>', {names} FROM {copy}"


async def _dumped(place: Place) -> dict[str, tuple[int, bytes]]:
    """Every key: milliseconds to live, 0 for ever, and what it holds."""
    keys: list[str] = await place.command("KEYS", "*")
    async with cast(
        "Any", Redis.from_url(place.settings.redis_address)
    ) as redis:  # as it is, bytes
        return {key: (max(0, await redis.pttl(key)), await redis.dump(key)) for key in keys}


@asynccontextmanager
async def stage(servers: Servers) -> AsyncGenerator[Stage]:
    """A stage on the session's servers, with a Redis of its own."""
    redis = servers.own_redis({"stream-node-max-entries": "1"})  # each can be trimmed alone
    async with isolated(servers, redis_url=redis.url, WORKER_CONSUMER="one") as place:
        # so that new rows lie behind each other
        await place.postgres.execute("ALTER TABLE orders SET (autovacuum_enabled = off)")
        quick = (
            f"{place.variables['DATABASE_URL']}?sslmode=disable"  # no question about it before each
        )
        window = f"{WINDOW_MS}ms"
        yield Stage(impatient(place).having(WORKER_DEDUPE_WINDOW=window, DATABASE_URL=quick))
