"""What goes over the wire to InfluxDB."""

import gzip
import re

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from worker.influx import InfluxSink
from worker.settings import load

pytestmark = pytest.mark.anyio

LINES = b"\n".join(b"orders,stream=orders quantity=%d %d" % (n, n) for n in range(1000))
HEAD = rb"(?s)Content-Length: (\d+)\r\n(?:.*?\r\n)?\r\n"
FASTEST = 4  #: in a gzip header's XFL. Source: RFC 1952, section 2.3.1


async def test_lines_travel_compressed_in_the_fastest_way() -> None:
    bodies: list[bytes] = []

    async def answer(client: SocketStream) -> None:
        async with client:
            request = b""
            while not (head := re.search(HEAD, request)):
                request += await client.receive()
            while len(request) < head.end() + int(head[1]):
                request += await client.receive()
            bodies.append(request[head.end() :])
            await client.send(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - not Django's
        sink = InfluxSink(load({"INFLUXDB_URL": f"http://127.0.0.1:{port}"}))
        await sink.write(LINES)
        await sink.aclose()
        tasks.cancel_scope.cancel()
    [body] = bodies
    assert gzip.decompress(body) == LINES
    assert body[8] == FASTEST
