"""Publishing to a real Redis: what is in the stream, and what is known of it when Redis fails."""

import socket
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from decimal import Decimal
from threading import Event
from typing import cast

import anyio
import pytest
from redis.asyncio import Redis

from streams import connection
from streams.producer import (
    CHUNK_ORDERS_MAX,
    Producer,
    PublishRefused,
    PublishUncertain,
    PublishUnreachable,
    Value,
    connect,
)
from worker.embedded import RedisServer

pytestmark = pytest.mark.anyio
STREAM = "orders"
REPLY = len(b"$3\r\n1-0\r\n")  # bytes to an entry id of one digit


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    async with connect(server.url) as redis:
        await redis.flushall()
        yield redis


async def stored(redis: Redis) -> list[tuple[str, dict[str, str]]]:
    with_fields = cast(
        "list[list[object]]", await redis.execute_command("XRANGE", STREAM, "-", "+")
    )
    return [_entry(entry_id, fields) for entry_id, fields in with_fields]


def _entry(entry_id: object, fields: object) -> tuple[str, dict[str, str]]:
    words = cast("list[str]", fields)
    return cast("str", entry_id), dict(zip(words[::2], words[1::2], strict=True))


def orders(count: int) -> list[dict[str, Value]]:
    return [{"order_id": str(n), "quantity": Decimal("0.10")} for n in range(count)]


async def test_entries_hold_the_fields_in_order_and_the_ids_returned(redis: Redis) -> None:
    ids = await Producer(redis, STREAM).publish(orders(2 * CHUNK_ORDERS_MAX + 1))
    entries = await stored(redis)
    assert [entry_id for entry_id, _ in entries] == ids
    assert [fields["order_id"] for _, fields in entries] == [str(n) for n in range(len(ids))]


async def test_values_are_written_exactly_and_none_is_left_out(redis: Redis) -> None:
    price = Decimal("12345678901234567890.12345678")
    order = {
        "order_id": "é",
        "quantity": Decimal("1.00"),
        "price": price,
        "lots": 7,
        "account": None,
    }
    await Producer(redis, STREAM).publish([order])
    expected = {"order_id": "é", "quantity": "1.00", "price": str(price), "lots": "7"}
    assert [fields for _, fields in await stored(redis)] == [expected]


async def test_given_ids_become_the_entry_ids(redis: Redis) -> None:
    ids = ["5-0", "5-1", "9-0"]
    assert await Producer(redis, STREAM).publish(orders(3), ids=ids) == ids
    assert [entry_id for entry_id, _ in await stored(redis)] == ids


@pytest.mark.parametrize(
    ("order", "error"),
    [
        ({"price": 0.1}, TypeError),
        ({"price": True}, TypeError),
        ({"price": b"0.1"}, TypeError),
        ({"note": "\ud800"}, ValueError),
        ({"note": None}, ValueError),
        ({}, ValueError),
    ],
)
async def test_an_order_that_cannot_be_sent_stops_the_call_before_the_first_entry(
    redis: Redis, order: dict[str, Value], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await Producer(redis, STREAM).publish([*orders(2 * CHUNK_ORDERS_MAX), order])
    assert await stored(redis) == []


async def test_ids_must_be_as_many_as_the_orders(redis: Redis) -> None:
    with pytest.raises(ValueError, match="1 ids for 2 orders"):
        await Producer(redis, STREAM).publish(orders(2), ids=["1-0"])


async def test_maxlen_trims_the_stream(redis: Redis) -> None:
    await Producer(redis, STREAM, maxlen=100).publish(orders(5000))
    assert len(await stored(redis)) < 1000


async def test_a_refusal_says_which_order_has_no_entry(redis: Redis) -> None:
    with pytest.raises(PublishRefused, match="equal or smaller") as refused:
        await Producer(redis, STREAM).publish(orders(3), ids=["5-0", "4-0", "6-0"])
    assert refused.value.ids == ["5-0", None, "6-0"]
    assert (refused.value.unsure, refused.value.unsent) == (0, 0)
    assert [entry_id for entry_id, _ in await stored(redis)] == ["5-0", "6-0"]


async def test_nothing_is_sent_after_a_chunk_with_a_refusal(redis: Redis) -> None:
    ids = ["1-1", "1-1", *(f"2-{n}" for n in range(2 * CHUNK_ORDERS_MAX))]
    with pytest.raises(PublishRefused) as refused:
        await Producer(redis, STREAM).publish(orders(len(ids)), ids=ids)
    assert refused.value.unsent == len(ids) - CHUNK_ORDERS_MAX
    assert len(await stored(redis)) == CHUNK_ORDERS_MAX - 1


async def test_full_memory_is_a_refusal_with_its_code(redis: Redis) -> None:
    await redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(PublishRefused, match="OOM"):
            await Producer(redis, STREAM).publish(orders(1))
    finally:
        await redis.config_set("maxmemory", "0")


async def test_a_replica_refuses_and_is_left(redis: Redis) -> None:
    producer = Producer(redis, STREAM)
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(PublishRefused, match="READONLY"):
            await producer.publish(orders(1))
    finally:
        await redis.execute_command("REPLICAOF", "NO", "ONE")
    await producer.publish(orders(1))
    assert len(await stored(redis)) == 1


async def test_a_redis_that_does_not_answer_in_time_leaves_all_unsure(
    server: RedisServer, redis: Redis
) -> None:
    await redis.ping()
    async with connection.connect(server.url, timeout_ms=200) as impatient:
        await impatient.ping()
        server.pause()
        try:
            with pytest.raises(PublishUncertain, match=r"no answer within 0\.2 s") as uncertain:
                await Producer(impatient, STREAM).publish(orders(3))
        finally:
            server.resume()
    assert (uncertain.value.ids, uncertain.value.unsure) == ([], 3)


async def test_no_connection_means_nothing_was_sent() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        async with connect(f"redis://127.0.0.1:{taken.getsockname()[1]}") as redis:
            with pytest.raises(PublishUnreachable) as unreachable:
                await Producer(redis, STREAM).publish(orders(3))
    assert (unreachable.value.ids, unreachable.value.unsent) == ([], 3)


@contextmanager
def losing_replies(server: RedisServer, *, after_bytes: int) -> Generator[str]:
    """Relay to Redis, and hang up after so many bytes of replies to `XADD`: the URL to use."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        relay = threading.Thread(target=_relay, args=(listener, server.port, after_bytes))
        relay.start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
        relay.join()


def _relay(listener: socket.socket, port: int, after_bytes: int) -> None:
    client, _ = listener.accept()
    with client, socket.create_connection(("127.0.0.1", port)) as upstream:
        forward = threading.Thread(target=_forward, args=(client, upstream, xadd := Event()))
        forward.start()
        while after_bytes > 0 and (data := upstream.recv(65536)):
            passed = data[:after_bytes] if xadd.is_set() else data  # before it, redis-py's greeting
            client.sendall(passed)
            after_bytes -= len(passed) if xadd.is_set() else 0
        client.shutdown(socket.SHUT_RDWR)
        forward.join()


def _forward(client: socket.socket, upstream: socket.socket, xadd: Event) -> None:
    while data := client.recv(1 << 20):
        if b"XADD" in data:
            xadd.set()
        upstream.sendall(data)


async def test_a_lost_reply_leaves_the_earlier_orders_certain_and_the_rest_unsure(
    server: RedisServer, redis: Redis
) -> None:
    ids = [f"{n}-0" for n in range(1, 9)]
    with losing_replies(server, after_bytes=3 * REPLY) as url:
        async with connect(url) as lossy:
            with pytest.raises(PublishUncertain) as uncertain, anyio.fail_after(30):
                await Producer(lossy, STREAM).publish(orders(8), ids=ids)
    assert (uncertain.value.ids, uncertain.value.unsure) == (["1-0", "2-0", "3-0"], 5)
    assert [entry_id for entry_id, _ in await stored(redis)] == ids  # all were written, once


async def test_a_lost_reply_leaves_later_chunks_unsent(server: RedisServer, redis: Redis) -> None:
    with losing_replies(server, after_bytes=1) as url:
        async with connect(url) as lossy:
            with pytest.raises(PublishUncertain) as uncertain, anyio.fail_after(30):
                await Producer(lossy, STREAM).publish(orders(CHUNK_ORDERS_MAX + 7))
    assert (uncertain.value.unsure, uncertain.value.unsent) == (CHUNK_ORDERS_MAX, 7)
    assert len(await stored(redis)) <= CHUNK_ORDERS_MAX


async def test_a_client_that_retries_by_itself_still_publishes_once(
    server: RedisServer, redis: Redis
) -> None:
    with losing_replies(server, after_bytes=1) as url:
        async with Redis.from_url(url, protocol=2) as retrying:  # redis-py's defaults
            with pytest.raises(PublishUncertain), anyio.fail_after(30):
                await Producer(retrying, STREAM).publish(orders(1))
    assert len(await stored(redis)) == 1


async def test_a_cancelled_call_leaves_the_client_usable(server: RedisServer, redis: Redis) -> None:
    producer = Producer(redis, STREAM)
    server.pause()
    try:
        with anyio.move_on_after(0.2) as scope:
            await producer.publish(orders(3), ids=["1-0", "2-0", "3-0"])
    finally:
        server.resume()
    assert scope.cancelled_caught
    assert await producer.publish(orders(1), ids=["9-0"]) == ["9-0"]
