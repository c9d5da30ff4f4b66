"""The InfluxDB that other tests rely on: what it is asked here is what the worker asks of it."""

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import pytest
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync
from influxdb_client.rest import ApiException

from tests.influxdb_server import STOP_S_MAX, InfluxServer, InfluxUnavailable

pytestmark = pytest.mark.anyio

AT_NS = 1_767_225_600_000_000_003  # a float would lose the last digits of this, and of LARGE
LARGE = 2**63 - 1
ROOT = Path(__file__).parents[2]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # influxdb-client's own


@pytest.fixture(scope="module")
def server() -> Generator[InfluxServer]:
    try:
        found = InfluxServer()
    except InfluxUnavailable as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(reason))
    with found:
        yield found


@pytest.fixture
def own_server(server: InfluxServer) -> InfluxServer:
    if not server.is_own:
        pytest.skip(f"{server.url} is not ours to stop")
    return server


@pytest.fixture
def bucket(server: InfluxServer) -> Generator[str]:
    name = f"test-{uuid.uuid4().hex}"
    server.create_bucket(name)
    yield name
    server.drop_bucket(name)


async def write(
    server: InfluxServer, bucket: str, lines: str, *, gzip: bool = False, token: str | None = None
) -> None:
    async with InfluxDBClientAsync(
        server.url, token or server.token, server.org, enable_gzip=gzip
    ) as client:
        await client.write_api().write(bucket, record=lines)


@pytest.mark.parametrize("gzip", [True, False])
async def test_a_point_comes_back_exactly(server: InfluxServer, bucket: str, *, gzip: bool) -> None:
    line = f'orders,symbol=BTC\\ USD,side=buy value={LARGE}i,price=0.1,id="é \\"x\\"" {AT_NS}'
    await write(server, bucket, line, gzip=gzip)
    expected = {"time": AT_NS, "symbol": "BTC USD", "side": "buy", "value": LARGE, "price": 0.1}
    rows = server.query("SELECT * FROM orders", bucket)
    assert rows == [expected | {"id": 'é "x"'}]
    assert isinstance(rows[0]["value"], int)


async def test_every_point_of_a_large_write_is_kept(server: InfluxServer, bucket: str) -> None:
    lines = "\n".join(f"orders n={n}i {AT_NS + n}" for n in range(20_000))
    await write(server, bucket, lines, gzip=True)
    rows = server.query("SELECT n FROM orders", bucket)
    assert rows == [{"time": AT_NS + n, "n": n} for n in range(20_000)]


async def test_a_point_written_again_overwrites_itself(server: InfluxServer, bucket: str) -> None:
    for value in (1, 1, 2):
        await write(server, bucket, f"orders,symbol=A n={value}i {AT_NS}")
    assert server.query("SELECT n FROM orders", bucket) == [{"time": AT_NS, "n": 2}]


async def test_groups_carry_their_tags(server: InfluxServer, bucket: str) -> None:
    await write(server, bucket, f"orders,symbol=A n=1i {AT_NS}\norders,symbol=B n=2i {AT_NS}")
    rows = server.query("SELECT n FROM orders GROUP BY symbol", bucket)
    assert [(row["symbol"], row["n"]) for row in rows] == [("A", 1), ("B", 2)]


async def test_a_wrong_token_is_refused(server: InfluxServer, bucket: str) -> None:
    with pytest.raises(ApiException) as refused:
        await write(server, bucket, f"orders n=1i {AT_NS}", token="wrong")
    assert refused.value.status == 401
    assert server.query("SELECT n FROM orders", bucket) == []


@pytest.mark.parametrize("gzip", [True, False])
async def test_a_bad_line_is_refused_with_its_reason_and_the_good_ones_are_kept(
    server: InfluxServer, bucket: str, *, gzip: bool
) -> None:
    lines = f"orders n=1i {AT_NS}\norders n= {AT_NS}\norders n=3i {AT_NS + 1}"
    with pytest.raises(ApiException) as refused:
        await write(server, bucket, lines, gzip=gzip)
    assert refused.value.status == 400
    assert f"orders n= {AT_NS}" in str(refused.value)
    rows = server.query("SELECT n FROM orders", bucket)
    assert rows == [{"time": AT_NS, "n": 1}, {"time": AT_NS + 1, "n": 3}]


async def test_a_field_of_another_type_is_refused_with_its_reason(
    server: InfluxServer, bucket: str
) -> None:
    await write(server, bucket, f"orders n=1i {AT_NS}")
    with pytest.raises(ApiException) as refused:
        await write(server, bucket, f'orders n="one" {AT_NS + 1}')
    assert refused.value.status in (400, 422)
    assert "field type conflict" in str(refused.value)


async def test_an_unknown_bucket_is_refused(server: InfluxServer) -> None:
    with pytest.raises(ApiException) as refused:
        await write(server, "unknown", f"orders n=1i {AT_NS}")
    assert refused.value.status == 404
    assert "unknown" in str(refused.value)


async def test_a_dropped_bucket_is_gone(server: InfluxServer, bucket: str) -> None:
    await write(server, bucket, f"orders n=1i {AT_NS}")
    server.drop_bucket(bucket)
    server.create_bucket(bucket)
    assert server.query("SELECT n FROM orders", bucket) == []


async def test_a_killed_server_refuses_and_comes_back_with_its_points(
    own_server: InfluxServer, bucket: str
) -> None:
    await write(own_server, bucket, f"orders n=1i {AT_NS}")
    own_server.kill()
    assert not listens(own_server.url)
    own_server.start()
    assert own_server.query("SELECT n FROM orders", bucket) == [{"time": AT_NS, "n": 1}]


async def test_a_stopped_server_comes_back_with_its_points(
    own_server: InfluxServer, bucket: str
) -> None:
    await write(own_server, bucket, f"orders n=1i {AT_NS}")
    own_server.stop()
    assert not listens(own_server.url)
    own_server.start()
    assert own_server.query("SELECT n FROM orders", bucket) == [{"time": AT_NS, "n": 1}]


async def test_a_paused_server_takes_connections_and_answers_once_resumed(
    own_server: InfluxServer, bucket: str
) -> None:
    own_server.pause()
    try:
        assert listens(own_server.url)
        with anyio.move_on_after(0.5) as patience:
            await write(own_server, bucket, f"orders n=1i {AT_NS}")
        assert patience.cancelled_caught
    finally:
        own_server.resume()
    with anyio.fail_after(10):
        await write(own_server, bucket, f"orders n=2i {AT_NS}")
    assert {"time": AT_NS, "n": 2} in own_server.query("SELECT n FROM orders", bucket)


async def test_a_paused_server_can_be_stopped(own_server: InfluxServer) -> None:
    own_server.pause()
    with anyio.fail_after(STOP_S_MAX):
        await anyio.to_thread.run_sync(own_server.stop)
    assert not listens(own_server.url)
    own_server.start()


@pytest.mark.usefixtures("own_server")
def test_a_server_ends_with_its_owner_even_when_that_is_killed() -> None:
    with (
        TemporaryDirectory() as files,  # nobody is left to remove them
        subprocess.Popen(
            [sys.executable, "-c", OWNER],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": files},
            stdout=subprocess.PIPE,
            text=True,
        ) as owner,
    ):
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        assert listens(url)
        owner.kill()
        deadline = time.monotonic() + STOP_S_MAX
        while listens(url) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not listens(url)


OWNER = """
import signal
from tests.influxdb_server import InfluxServer
server = InfluxServer()
server.start()
print(server.url, flush=True)
signal.pause()
"""


def listens(url: str) -> bool:
    address = urlsplit(url)
    with socket.socket() as client:
        return client.connect_ex((address.hostname, address.port)) == 0
