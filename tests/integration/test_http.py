"""Health, readiness, metrics and answers over HTTP, of a worker whose servers are there, and are not."""

import signal
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from tests.http import client_of, served
from tests.isolation import Place, isolated
from tests.orders import order, orders
from tests.record import settled, until
from tests.servers import Server, Servers
from tests.workers import Workers, impatient, working
from worker.dependency import Dependency
from worker.http.history import History
from worker.http.look import Look
from worker.http.server import application
from worker.operate.command import servers_of
from worker.vitals import Vitals

pytestmark = pytest.mark.anyio

SERVERS = ("redis", "postgres", "influxdb")


# --- a worker that is well ---


async def test_a_worker_that_reads_is_alive_and_ready(place: Place, workers: Workers) -> None:
    _, client = await served(workers, place)
    health, ready = await client.get("health"), await client.until("ready", 200)
    assert health.status == 200
    assert health.json["alive"] is True
    states = dict.fromkeys(("redis", "claims", "postgres", "influxdb"), "up")
    assert ready.json == {"ready": True, "reasons": [], "dependencies": states}


async def test_metrics_count_what_became_of_the_entries(place: Place, workers: Workers) -> None:
    _, client = await served(workers, place)
    rejected = [order(n, side="hold") for n in range(2)] + [order(9, quantity="0")]
    await place.publish([*orders(range(300)), *orders(range(5)), *rejected])
    await settled(place)
    values = await client.metrics()
    stream = place.stream
    assert values[f"ordergate_entries_total accepted {stream}"] == 300
    assert values[f"ordergate_entries_total duplicate {stream}"] == 5
    assert values[f"ordergate_entries_total rejected {stream}"] == 3
    assert values[f"ordergate_rejections_total side_invalid {stream}"] == 2
    assert values[f"ordergate_rejections_total quantity_not_positive {stream}"] == 1
    batches = values[f"ordergate_batch_entries_count {stream}"]
    assert values[f"ordergate_batch_entries_sum {stream}"] == 308
    assert values[f"ordergate_batch_entries_bucket +Inf {stream}"] == batches
    for stage in ("parse", "claim", "record", "emit", "settle"):
        assert values[f"ordergate_stage_seconds_count {stage} {stream}"] == batches
        assert values[f"ordergate_stage_seconds_sum {stage} {stream}"] > 0
    assert values[f"ordergate_stream_entries {stream}"] == 308
    assert values[f"ordergate_dead_letters {stream}"] == 3
    for gauge in ("waiting_entries", "pending_entries", "oldest_pending_seconds", "points_owed"):
        assert values[f"ordergate_{gauge} {stream}"] == 0
    assert any(name.startswith("ordergate_build_info") for name in values)


async def test_metrics_tell_of_a_takeover(place: Place, workers: Workers) -> None:
    await place.publish(orders(range(7)))
    await place.command("XGROUP", "CREATE", place.stream, place.settings.group, "0")
    await place.command(
        "XREADGROUP", "GROUP", place.settings.group, "gone", "STREAMS", place.stream, ">"
    )
    _, client = await served(workers, impatient(place))
    await settled(place)
    assert (await client.metrics())[f"ordergate_takeovers_total {place.stream}"] == 7


# --- a worker without one of its servers ---


@asynccontextmanager
async def own_place(servers: Servers) -> AsyncGenerator[tuple[Place, Mapping[str, Server]]]:
    """A place on servers that this test may stop, for impatient workers, and the servers by name."""
    redis, postgres, influx = servers.own_redis(), servers.own_postgres(), servers.own_influx()
    async with isolated(
        servers,
        redis_url=f"{redis.url.rpartition('/')[0]}/1",
        database_url=postgres.url,
        influx=influx,
    ) as place:
        yield impatient(place), dict(zip(SERVERS, (redis, postgres, influx), strict=True))


async def test_ready_names_the_server_that_is_away_and_metrics_go_on(
    own_servers: Servers, workers: Workers
) -> None:
    async with own_place(own_servers) as (place, servers):
        _, client = await served(workers, place)
        await client.until("ready", 200)
        for name in ("redis", "postgres"):
            servers[name].stop()
            reasons = (await client.until("ready", 503)).json["reasons"]
            assert any(reason.startswith(f"{name} is down") for reason in reasons), reasons
            assert (await client.get("health")).status == 200
            values = await client.metrics()
            assert values[f"ordergate_dependency_up {name}"] == 0
            assert values[f"ordergate_dependency_losses_total {name}"] == 1
            gauge = {"redis": "ordergate_pending_entries", "postgres": "ordergate_points_owed"}[
                name
            ]
            assert f"{gauge} {place.stream}" not in values
            assert name in (await client.get("status.json")).json["unanswered"]
            servers[name].start()
            await client.until("ready", 200)
            assert (await client.metrics())[f"ordergate_dependency_up {name}"] == 1


async def test_a_worker_without_influxdb_is_ready_and_says_that_it_is_away(
    own_servers: Servers, workers: Workers
) -> None:
    async with own_place(own_servers) as (place, servers):
        worker, client = await served(workers, place)
        servers["influxdb"].stop()
        await place.publish(orders(range(5)))
        await worker.logged("batch.settled")
        await client.until_metric(f"ordergate_points_owed {place.stream}", 5)
        ready = await client.get("ready")
        assert ready.status == 200
        assert ready.json["dependencies"]["influxdb"] == "down"
        servers["influxdb"].start()
        await worker.logged("dependency.recovered")
        await client.until_metric(f"ordergate_points_owed {place.stream}", 0)


async def test_a_worker_that_waits_for_postgres_at_the_start_is_alive_and_not_ready(
    own_servers: Servers, workers: Workers
) -> None:
    async with own_place(own_servers) as (place, servers):
        servers["postgres"].stop()
        _, client = await served(workers, place)
        assert (await client.get("health")).status == 200
        reasons = (await client.until("ready", 503)).json["reasons"]
        assert f"stream {place.stream} was not read yet" in reasons
        servers["postgres"].start()
        await client.until("ready", 200)


async def test_an_idle_worker_notices_that_postgres_is_back(own_servers: Servers) -> None:
    postgres = own_servers.own_postgres()
    async with (
        isolated(own_servers, database_url=postgres.url) as place,
        working(impatient(place)) as events,
    ):
        await events.wait_for("worker.ready")
        postgres.stop()
        await events.wait_for("dependency.lost", dependency="postgres")
        postgres.start()
        await events.wait_for("dependency.recovered", dependency="postgres")


async def test_a_worker_that_stops_is_not_ready(place: Place, workers: Workers) -> None:
    worker, client = await served(workers, place)
    async with place.orders_locked():
        await place.publish(orders(range(3)))
        await until(place.pending)
        worker.signal(signal.SIGTERM)
        reasons = (await client.until("ready", 503)).json["reasons"]
        assert "the worker is stopping" in reasons
    assert await worker.ended() == 0


# --- ports ---


async def test_a_port_that_is_taken_is_told_and_costs_no_order(
    place: Place, workers: Workers
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        worker = await workers.start(place, WORKER_HTTP=address)
        await worker.logged("http.not_listening")
        assert address in worker.log
        assert "give each worker of a machine its own WORKER_HTTP" in worker.log
        await place.publish(orders(range(5)))
        await settled(place)
    assert (await (await client_of(worker)).get("health")).status == 200  # once it is free


async def test_nothing_is_served_where_it_is_off(place: Place, workers: Workers) -> None:
    worker = await workers.start(place, WORKER_HTTP="off")
    await worker.logged("worker.ready")
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == 0
    assert "http." not in worker.log


# --- what is asked ---


async def test_explain_answers_for_orders_entries_fields_and_payloads(
    place: Place, workers: Workers
) -> None:
    original, repeat = await place.publish([order(1, order_id="O-1"), order(1, order_id="O-2")])
    _, client = await served(workers, place)
    await settled(place)
    for question in ("O-2", repeat, " O-2 "):
        answer = (await client.get(f"explain.json?q={question}")).json
        assert answer["outcome"] == "duplicate"
        assert answer["original"]["entry_id"] == original
        assert answer["answer"].startswith("Duplicate: order O-2 has the same content as order O-1")
    fields = "symbol=BTCUSDT side=buy type=limit quantity=2.25 price=45678.1 account=alpha"
    answer = (await client.get(f"explain.json?q={fields}")).json
    assert answer["answer"].startswith("Sent now it would be a duplicate of order O-1")
    payload = '{"symbol":"X","side":"buy","type":"market","quantity":1}'
    answer = (await client.get(f"explain.json?q={payload}")).json
    assert answer["answer"].startswith("Sent now it would be a new order")


@pytest.mark.parametrize("question", ["", " ", "x" * 129, "a\x00b", "y" * 5000, "{" * 100])
async def test_a_question_that_is_none_is_answered_in_words(
    place: Place, workers: Workers, question: str
) -> None:
    _, client = await served(workers, place)
    reply = await client.get(f"explain.json?q={question}")
    assert reply.status in (200, 400)
    assert reply.json.get("error") or reply.json["answer"].startswith("No order")


async def test_strangers_names_are_refused_and_every_answer_has_the_headers(
    place: Place, workers: Workers
) -> None:
    _, client = await served(workers, place)
    for path in ("", "status.json", "explain.json?q=A"):
        assert (await client.get(path, Host="orders.example.com")).status == 403
        assert (await client.get(path, Host="worker:9080")).status == 200
        assert (await client.get(path, Host="[::1]:9080")).status == 200
    assert (await client.get("health", Host="orders.example.com")).status == 200
    for path, status in (("", 200), ("page.js", 200), ("nowhere", 404), ("../settings.py", 404)):
        reply = await client.get(path)
        assert reply.status == status
        assert reply.headers["Content-Security-Policy"].startswith("default-src 'none';")
        assert reply.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_mistake_of_ours_is_a_500_and_a_line_in_the_log(place: Place) -> None:
    async def mistaken(_request: web.Request) -> web.Response:
        raise ZeroDivisionError

    vitals = Vitals.of(place.settings, [Dependency("redis")])
    async with servers_of(place.settings) as asked:
        app = application(vitals, Look(asked), History(vitals))
        app.router.add_get("/mistaken", mistaken)
        with structlog.testing.capture_logs() as logs:
            async with TestClient(TestServer(app)) as client:
                reply = await client.get("/mistaken")
                assert reply.status == 500
                assert await reply.json() == {"error": "the worker's log says what went wrong"}
                assert (await client.get("/health")).status == 200
    assert [(it["event"], it["path"]) for it in logs] == [("http.failed", "/mistaken")]


# --- the worker's own points ---


async def test_a_worker_writes_points_of_its_own(place: Place, workers: Workers) -> None:
    await place.publish([*orders(range(20)), order(3), order(0, side="hold")])
    worker = await workers.start(place, WORKER_CONSUMER="a worker, one=1")
    await settled(place)

    async def written() -> bool:
        return bool(place.influx.query("SELECT * FROM worker", place.bucket))

    await until(written)
    point, *_ = place.influx.query("SELECT * FROM worker", place.bucket)
    assert point["consumer"] == "a worker, one=1"
    assert (point["group"], point["stream"]) == (place.settings.group, place.stream)
    assert [point[word] for word in ("accepted", "duplicate", "rejected")] == [20, 1, 1]
    assert [point[name] for name in ("waiting", "pending", "points_owed")] == [0, 0, 0]
    assert worker.running
