"""Six promises about repeats of an order, each kept against real servers, in calm and in trouble.

A scenario is a function that asserts what it promises and gives one sentence of what it saw. Each has a test
of its own; `test_enhanced_idempotency_suite` runs them in a row:

    pytest tests/integration/infrastructure/test_idempotency_enhanced.py::test_enhanced_idempotency_suite -xvs
"""

import os
import signal
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from decimal import Decimal, localcontext
from functools import partial
from random import Random, SystemRandom
from time import perf_counter
from typing import Any, NamedTuple, cast

import anyio
import pytest
from anyio import to_thread
from structlog.testing import capture_logs

from scripts.replay.synthetic import synthetic_orders
from streams.connection import connect
from streams.producer import Value
from tests.influxdb_server import InfluxServer
from tests.integration.infrastructure.service_factory import (
    DependencyContainer,
    RealServiceFactory,
)
from tests.isolation import Place, isolated
from tests.orders import ids, order
from tests.record import (
    Tally,
    check,
    claim_key,
    everything,
    forge_claim,
    points_paid,
    settled,
    until,
)
from tests.servers import Servers
from tests.workers import Workers, drain, impatient
from worker.batch import Turn, process
from worker.embedded import PostgresServer, RedisServer

FIFTY_AND_TWENTY = list(synthetic_orders(50, 20, seed=7))
EXPECTED = Tally(accepted=50, duplicates=20)
INTERLEAVINGS = 100
SEED = "ORDERGATE_TEST_SEED"  #: a number; repeats the random choices of a run that failed

Hook = Callable[[], Awaitable[object]]


# --- 1. financial precision ---

QUANTITY, PRICE, NOTIONAL = "0.12345678", "45678.12345678", "5639.2740384165279684"
#: Quantity and price: as many digits as there may be, as small, as large, below zero, trailing zeros.
EXTREMES = [
    ("9999999999.999999999999999999", "-9999999999.999999999999999999"),
    ("1.000000000000000000000000001", "0.000000000000000001"),
    ("1000000000000000000", "999999999999999999.9999999999"),
    ("0.000000000000000001", "-1000000000000000000"),
    ("1.50000000", "0.00"),
]


async def financial_precision(servers: Servers) -> str:
    """What was sent is what is stored and what comes back, to the last digit; no float holds these."""
    with localcontext(prec=28):
        assert str(Decimal(QUANTITY) * Decimal(PRICE)) == NOTIONAL
    amounts = [(QUANTITY, PRICE), *EXTREMES]
    at = ids(*range(3 * len(amounts)))
    flat = [order(0, quantity=q, price=p) for q, p in amounts]
    decimals = [as_decimals(q, p) for q, p in amounts]
    payloads = [as_payload(q, p) for q, p in amounts]
    async with isolated(servers) as place:
        await place.publish([*flat, *decimals], at[: -len(payloads)])
        await drain(place)
        await check(place)
        await place.publish(payloads, at[-len(payloads) :])
        await drain(place)
        rows = await place.fetch("SELECT quantity, price, notional FROM orders ORDER BY entry_id")
        assert [tuple(f"{value:f}" for value in row.values()) for row in rows] == 3 * [
            (q, p, f"{exact_product(q, p):f}") for q, p in amounts
        ]
        assert {type(value) for row in rows for value in row.values()} == {Decimal}
        assert str(rows[0]["notional"]) == NOTIONAL
        assert await place.fetch(f"SELECT FROM orders WHERE notional = {NOTIONAL}")
        with pytest.raises(TypeError, match="price is a float"):
            await place.publish([{**order(0), "price": float(PRICE)}])  # pyright: ignore[reportArgumentType]
    return f"{QUANTITY} x {PRICE} = {rows[0]['notional']}, and {len(EXTREMES)} extremes"


def as_decimals(quantity: str, price: str) -> dict[str, Value]:
    """An order whose amounts are `Decimal`."""
    amounts = {"quantity": Decimal(quantity), "price": Decimal(price)}
    return {**order(0, account="decimals"), **amounts}


def as_payload(quantity: str, price: str) -> dict[str, Value]:
    """An order as one JSON object, its amounts as JSON numbers."""
    texts = order(0, account="payload", quantity="", price="")
    members = [f'"{name}": "{value}"' for name, value in texts.items()]
    members += [f'"quantity": {quantity}', f'"price": {price}']
    return {"payload": "{" + ", ".join(members) + "}"}


def exact_product(quantity: str, price: str) -> Decimal:
    """Twice as many digits as one factor may have hold it."""
    with localcontext(prec=56):
        return Decimal(quantity) * Decimal(price)


# --- 2. database persistence ---


class Restartable(NamedTuple):
    """Servers of the test's own."""

    redis: RedisServer
    postgres: PostgresServer
    influx: InfluxServer


async def database_persistence(servers: Servers, own: Restartable, workers: Workers) -> str:
    """Claims and rows outlive their servers and their worker; outcomes even outlive the claims."""
    async with isolated(
        servers, redis_url=own.redis.url, database_url=own.postgres.url, influx=own.influx
    ) as place:
        await place.publish(FIFTY_AND_TWENTY)
        await work(place, workers)
        assert await check(place) == EXPECTED
        claims, before = await claims_found(place), await everything(place)
        assert len(claims) == 50

        for server in own:
            await to_thread.run_sync(server.stop)
            await to_thread.run_sync(server.start)
        await until(partial(claims_found, place))
        assert await claims_found(place) == claims
        assert await everything(place) == before
        await place.publish(FIFTY_AND_TWENTY)
        await work(place, workers)
        assert await check(place) == Tally(50, 20 + 70)

        await place.redis.flushall()
        await place.publish(FIFTY_AND_TWENTY)
        await work(place, workers)
        rows = await place.fetch("SELECT outcome FROM outcomes")
        assert Counter(row["outcome"] for row in rows) == {"accepted": 50, "duplicate": 160}
        after = await everything(place)
        assert after["orders"] == before["orders"]
        assert len(after["points"]) == 210
        assert await claims_found(place) == claims
    return "50 claims and 70 outcomes outlived three restarts, three workers and a Redis emptied"


async def work(place: Place, workers: Workers) -> None:
    """Let a new worker process take in what is there."""
    worker = await workers.start(place, "--drain")
    assert await worker.ended() == 0


async def claims_found(place: Place) -> dict[str, str]:
    """The value of each claim, found as an operator finds them; each lives as long as the window."""
    found: dict[str, str] = {}
    window_s = place.settings.dedupe_window_ms // 1000
    async for key in cast("AsyncIterator[str]", place.redis.scan_iter("idempotency:order:*")):
        assert 0 < await place.redis.ttl(key) <= window_s
        found[key] = str(await place.redis.get(key))
    return found


# --- 3. high-frequency stress ---


async def high_frequency_stress(servers: Servers, workers: Workers) -> str:
    """Seventy orders at once, from five producers to four worker processes."""
    async with isolated(servers, WORKER_BATCH_SIZE="3") as place:
        running = [await workers.start(place) for _ in range(4)]
        for worker in running:
            await worker.logged("worker.ready")
        async with anyio.create_task_group() as producers:
            for n in range(5):
                producers.start_soon(place.publish, FIFTY_AND_TWENTY[n::5])
        await settled(place)
        for worker in running:
            worker.signal(signal.SIGTERM)
        assert [await worker.ended() for worker in running] == [0] * 4
        assert await check(place, in_order=False) == EXPECTED
        assert len(await place.points()) == 70
        busy = sum("batch.settled" in worker.log for worker in running)
    return f"50 new, 20 duplicates, 70 points; {busy} of 4 worker processes had a part in it"


async def random_interleavings(servers: Servers) -> str:
    """The same again and again, four workers meeting each other at ever other points of their way."""
    seed = int(os.environ.get(SEED) or SystemRandom().getrandbits(32))
    async with isolated(servers) as place, workers_at(place, 4) as four:
        for number in range(INTERLEAVINGS):
            choices = Random(f"{seed} {number}")  # noqa: S311 - to be repeated
            try:
                await interleave(place, four, choices, f"round-{number}")
            except BaseException as error:
                error.add_note(f"interleaving {number} of {SEED}={seed}")
                raise
        total = Tally(50 * INTERLEAVINGS, 20 * INTERLEAVINGS)
        await paid(place, four[0])
        assert await check(place, in_order=False) == total
    return f"{INTERLEAVINGS} random interleavings, seed {seed}"


async def interleave(
    place: Place, four: list[DependencyContainer], choices: Random, account: str
) -> None:
    """Fifty new contents and twenty repeats, in any order, by three producers."""
    sent = synthetic_orders(50, 20, seed=choices.getrandbits(32))
    orders = [{**fields, "account": account} for fields in sent]
    choices.shuffle(orders)
    published: list[str] = []
    complete = anyio.Event()

    async def publish(part: list[dict[str, str]]) -> None:
        published.extend(await place.publish(part))
        if len(published) == len(orders):
            complete.set()

    async with anyio.create_task_group() as tasks:
        for n in range(3):
            tasks.start_soon(publish, orders[n::3])
        for services in four:
            tasks.start_soon(work_hesitantly, place, services, choices, complete)
    rows = await place.fetch("SELECT outcome FROM outcomes WHERE entry_id = ANY($1)", published)
    assert Counter(row["outcome"] for row in rows) == {"accepted": 50, "duplicate": 20}


async def work_hesitantly(
    place: Place, services: DependencyContainer, choices: Random, complete: anyio.Event
) -> None:
    """Read batches of any size until there are no more, and pause for any time before each step."""
    io, group = services.get("Connections"), services.get("ConsumerGroup")
    while True:
        last = complete.is_set()
        entries = await group.read_new(choices.randint(1, 12), block=False)
        if entries:
            for service, step in (
                (io.claims, "claim"),
                (io.ledger, "record"),
                (io.claims, "settle"),
            ):
                just_before(service, step, lambda: anyio.sleep(choices.random() * 0.004))
            await process(entries, io, place.settings, Turn())
        elif last:
            return
        await anyio.sleep(choices.random() * 0.002)


# --- 4. Redis failure fallback ---

FAULTS = {
    "stopped": (RedisServer.stop, RedisServer.start),
    "hung": (RedisServer.pause, RedisServer.resume),
}
MOMENTS = ("before the claim", "between claim and commit", "before the settlement")


async def redis_failure(
    servers: Servers, redis: RedisServer, fault: str, moment: str, *, apart: bool
) -> str:
    """Redis fails at a moment of the first batch: not an order is lost or doubled.

    :param apart: the Redis that fails has the claims alone, DEDUPE_REDIS_URL, and nothing waits for it;
        else it has the stream too, and the worker waits until it is back
    """
    down, up = FAULTS[fault]
    urls: dict[str, Any] = {"DEDUPE_REDIS_URL" if apart else "redis_url": redis.url}
    async with (
        isolated(servers, **urls, WORKER_BATCH_SIZE="9") as bare,
        RealServiceFactory() as factory,
    ):
        place, failed = impatient(bare), anyio.Event()

        async def fail() -> None:
            await to_thread.run_sync(down, redis)
            failed.set()

        services = await factory.initialize_core_services(place)
        io = services.get("Connections")
        settle = "correct" if apart else "settle"
        steps = ((io.claims, "claim"), (io.ledger, "record"), (io.claims, settle))
        just_before(*steps[MOMENTS.index(moment)], fail)
        await place.publish(FIFTY_AND_TWENTY)
        # Something to correct, for the claims are not asked again else.
        await forge_claim(place, FIFTY_AND_TWENTY[0], "nobody")
        with capture_logs() as logs:
            if apart:
                await goes_on_by_postgres_alone(place, services)
                await to_thread.run_sync(up, redis)
            else:
                await waits_for_redis(services, failed, lambda: to_thread.run_sync(up, redis))
            await claims_come_back(place, services)
        name = "claims" if apart else "redis"
        for event in ("dependency.lost", "dependency.recovered"):
            assert [log for log in logs if log["event"] == event and log["dependency"] == name]
    return f"{fault} {moment}, claims {'apart' if apart else 'with the stream'}"


async def goes_on_by_postgres_alone(place: Place, services: DependencyContainer) -> None:
    """All is settled without the claims, and health says that they are away."""
    with anyio.fail_after(10):
        await services.get("Intake").run()
    known = services.get("Connections").servers
    assert (known.redis.up, known.postgres.up, known.claims.up) == (True, True, False)
    await paid(place, services)
    assert await check(place, claims=False) == EXPECTED


async def waits_for_redis(services: DependencyContainer, failed: anyio.Event, mend: Hook) -> None:
    """Health says that Redis is away; once it is back, all is settled without anyone's help."""
    redis = services.get("Connections").servers.redis
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(services.get("Intake").run)
            await failed.wait()
            while redis.up:  # noqa: ASYNC110 - health is asked for
                await anyio.sleep(0.01)
            await mend()
    assert redis.up


async def claims_come_back(place: Place, services: DependencyContainer) -> None:
    """New orders are claimed again, without a restart."""
    with anyio.fail_after(30):
        number, known = 0, services.get("Connections").servers
        while not known.claims.up or not number:
            await place.publish([order(number, account="later")])
            await services.get("Intake").run()
            number += 1
    [row] = await place.fetch(
        "SELECT content_hash, entry_id FROM orders ORDER BY recorded_at DESC LIMIT 1"
    )
    async with connect(place.settings.claims_address, timeout_ms=5_000) as claims:
        claim = await claims.get(claim_key(place, row["content_hash"]))
    assert claim == row["entry_id"]
    await paid(place, services)
    assert await check(place, claims=False) == Tally(50 + number, 20)


# --- 5. order modification ---

CHANGES = [{"quantity": "1.25000001"}, {"price": "45678.11"}, {"side": "sell"}, {"account": "beta"}]
ENVELOPE = ("client_order_id", "timestamp", "ts", "sent_at", "trace_id", "traceparent")


async def order_modification(servers: Servers) -> str:
    """Content makes an order, and neither its id nor its envelope does."""
    async with isolated(servers) as place:
        same_id = [order(0, order_id="A-17", **change) for change in ({}, *CHANGES)]
        await place.publish(same_id)
        await drain(place)
        assert await check(place) == Tally(accepted=1 + len(CHANGES))
        await place.publish([order(0, order_id="A-17", **{name: "other"}) for name in ENVELOPE])
        await drain(place)
        assert await check(place) == Tally(1 + len(CHANGES), len(ENVELOPE))
        [original] = await place.fetch("SELECT entry_id FROM orders ORDER BY entry_id LIMIT 1")
        named = await place.fetch("SELECT DISTINCT original_entry_id FROM outcomes")
        assert {row["original_entry_id"] for row in named} == {None, original["entry_id"]}
    return (
        f"{len(CHANGES)} changes of content are orders, {len(ENVELOPE)} of the envelope duplicates"
    )


# --- 6. concurrent same content ---


async def concurrent_same_content(servers: Servers) -> str:
    """One content under fifty ids: four workers hold a share each before any of them begins."""
    async with isolated(servers) as place, workers_at(place, 4) as four:
        await place.publish([order(0) for _ in range(50)])
        async with anyio.create_task_group() as tasks:
            for services in four:
                share = await services.get("ConsumerGroup").read_new(13, block=False)
                io = services.get("Connections")
                tasks.start_soon(process, share, io, place.settings, Turn())
        await paid(place, four[0])
        assert await check(place, in_order=False) == Tally(accepted=1, duplicates=49)
        [accepted] = await place.fetch("SELECT entry_id FROM outcomes WHERE outcome = 'accepted'")
        rows = await place.fetch(
            "SELECT original_entry_id FROM outcomes WHERE outcome = 'duplicate'"
        )
        assert {row["original_entry_id"] for row in rows} == {accepted["entry_id"]}
        ids = await place.fetch("SELECT DISTINCT order_id FROM outcomes")
        assert len(ids) == 50
    return f"1 order, {len(rows)} duplicates that name it"


# --- what the scenarios share ---


async def paid(place: Place, services: DependencyContainer) -> None:
    """Write what InfluxDB did not take in time, as a whole worker does beside its intake."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(services.get("PointWriter").drain_until_stopped)
        await points_paid(place)
        tasks.cancel_scope.cancel()


def just_before(service: object, step: str, action: Hook) -> None:
    """Let something happen right before the next call of a service's method, which then runs as ever."""
    real = getattr(service, step)

    async def interrupted(*arguments: object, **named: object) -> object:
        setattr(service, step, real)
        await action()
        return await real(*arguments, **named)

    setattr(service, step, interrupted)


@asynccontextmanager
async def workers_at(place: Place, count: int) -> AsyncGenerator[list[DependencyContainer]]:
    """The services of so many workers, all in one place."""
    async with AsyncExitStack() as stack:
        factories = [await stack.enter_async_context(RealServiceFactory()) for _ in range(count)]
        yield [
            await factory.initialize_core_services(place.having(WORKER_CONSUMER=f"worker-{n}"))
            for n, factory in enumerate(factories)
        ]


@pytest.fixture
def restartable(
    own_redis: RedisServer, own_postgres: PostgresServer, own_influx: InfluxServer
) -> Restartable:
    return Restartable(own_redis, own_postgres, own_influx)


@contextmanager
def quiet() -> Generator[None]:
    """Keep the services' logs back, for the lines of the suite to stand together; unless asked for."""
    with nullcontext() if os.environ.get("ORDERGATE_TEST_LOGS") == "1" else capture_logs():
        yield


# --- the tests ---


async def test_financial_precision(clean_servers: Servers) -> None:
    await financial_precision(clean_servers)


async def test_database_persistence(
    clean_servers: Servers, restartable: Restartable, workers: Workers
) -> None:
    await database_persistence(clean_servers, restartable, workers)


async def test_high_frequency_stress(clean_servers: Servers, workers: Workers) -> None:
    await high_frequency_stress(clean_servers, workers)


@pytest.mark.long
async def test_random_interleavings(clean_servers: Servers) -> None:
    await random_interleavings(clean_servers)


@pytest.mark.parametrize("apart", [True, False], ids=["claims apart", "one Redis"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_redis_failure_fallback(
    clean_servers: Servers, own_redis: RedisServer, fault: str, moment: str, *, apart: bool
) -> None:
    await redis_failure(clean_servers, own_redis, fault, moment, apart=apart)


async def test_order_modification(clean_servers: Servers) -> None:
    await order_modification(clean_servers)


async def test_concurrent_same_content(clean_servers: Servers) -> None:
    await concurrent_same_content(clean_servers)


@pytest.mark.long
async def test_enhanced_idempotency_suite(
    clean_servers: Servers, restartable: Restartable, workers: Workers
) -> None:
    """All of them in a row, a line for each. The services' logs: `ORDERGATE_TEST_LOGS=1`."""

    async def stress() -> str:
        processes = await high_frequency_stress(clean_servers, workers)
        return f"{processes}; {await random_interleavings(clean_servers)}"

    async def every_redis_failure() -> str:
        cases = [(f, m, a) for f in FAULTS for m in MOMENTS for a in (True, False)]
        for fault, moment, apart in cases:
            await redis_failure(clean_servers, restartable.redis, fault, moment, apart=apart)
        return f"{len(cases)} failures: {', '.join(FAULTS)}; {', '.join(MOMENTS)}"

    scenarios = {
        "financial precision": partial(financial_precision, clean_servers),
        "database persistence": partial(database_persistence, clean_servers, restartable, workers),
        "high-frequency stress": stress,
        "Redis failure fallback": every_redis_failure,
        "order modification": partial(order_modification, clean_servers),
        "concurrent same content": partial(concurrent_same_content, clean_servers),
    }
    print()
    for number, (name, scenario) in enumerate(scenarios.items(), 1):
        started = perf_counter()
        with quiet():
            seen = await scenario()
        print(f"{number}. {name:<24} passed in {perf_counter() - started:4.1f} s: {seen}")
