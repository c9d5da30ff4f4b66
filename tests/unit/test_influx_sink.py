"""What goes over the wire to InfluxDB, or to a file."""

import gzip
import re
import ssl
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import get_ident

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from worker.influx import InfluxSink
from worker.settings import load

pytestmark = pytest.mark.anyio

LINES = b"\n".join(b"orders,stream=orders quantity=%d %d" % (n, n) for n in range(1000))
HEAD = rb"(?s)Content-Length: (\d+)\r\n(?:.*?\r\n)?\r\n"
FASTEST = 4  #: in a gzip header's XFL. Source: RFC 1952, section 2.3.1


@asynccontextmanager
async def influxdb() -> AsyncGenerator[tuple[InfluxSink, list[bytes]]]:
    """A sink of somebody who takes everything, and the bodies that he was sent."""
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
        yield sink, bodies
        await sink.aclose()
        tasks.cancel_scope.cancel()


async def test_lines_travel_compressed_in_the_fastest_way() -> None:
    async with influxdb() as (sink, bodies):
        await sink.write(LINES)
    [body] = bodies
    assert gzip.decompress(body) == LINES
    assert body[8] == FASTEST


async def test_the_first_write_loads_no_certificates_in_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To load them takes it tens of milliseconds, in which no batch goes on."""
    threads: list[int] = []
    loads = ssl.SSLContext.load_default_certs

    def load_default_certs(context: ssl.SSLContext, purpose: ssl.Purpose) -> None:
        threads.append(get_ident())
        loads(context, purpose)

    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", load_default_certs)
    async with influxdb() as (sink, _):
        await sink.write(LINES)
    assert get_ident() not in threads


FULL = """
import resource, sys
import anyio
from pathlib import Path
from worker.errors import InfluxUnavailable
from worker.influx import FileSink

async def main():
    sink = FileSink(Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (38, resource.RLIM_INFINITY))
    for _ in range(2):  # of the first a part is written, of the second nothing
        try:
            await sink.write(b"orders quantity=1 1")
            await sink.write(b"orders quantity=2 2")
        except InfluxUnavailable as error:
            print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    await sink.write(b"orders quantity=2 2")
    await sink.write(b"orders quantity=3 3")

anyio.run(main)
"""


async def test_a_file_that_is_full_takes_no_half_of_a_line_for_a_point(tmp_path: Path) -> None:
    path = tmp_path / "points.lp"
    done = await anyio.run_process([sys.executable, "-c", FULL, str(path)])
    assert len(done.stdout.splitlines()) == 2
    assert path.read_text().splitlines() == [
        "orders quantity=1 1",
        "orders quantity=2 #cut short",
        "orders quantity=2 2",
        "orders quantity=3 3",
    ]
