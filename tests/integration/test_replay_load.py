"""The replay command against real servers, with a real worker on the other side of the stream."""

import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from redis import Redis

from streams.producer import Producer, connect
from tests.forks import ROOT, Fork, Program, fork, run
from worker.embedded import EmbeddedServices, RedisServer, embedded_services
from worker.run import migrated
from worker.settings import load

COMMAND = [sys.executable, "scripts/replay_load.py"]
WITHIN_S = 60.0
NUMBERS = count(1)

DAY = """\
id,symbol,side,type,quantity,price,time
1,BTCUSD,buy,limit,1.50,236.47,2015-05-01T00:00:04.518Z
2,BTCUSD,buy,limit,1.5,236.470,2015-05-01T00:00:04.518Z
3,BTCUSD,sell,limit,2,236.50,2015-05-01T00:00:05.000Z
4,BTCUSD,sell,limit,none,236.50,2015-05-01T00:00:06.000Z
5,BTCUSD,buy,limit,1.50,236.47,2015-05-01T00:02:00.000Z
"""


@dataclass(frozen=True)
class Place:
    """A stream and a schema of a test's own."""

    environ: Mapping[str, str]
    stream: str
    redis: Redis

    def replay(self, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
        program = Program("scripts.replay_load", options, {**self.environ, **environ})
        return run(program, within_s=WITHIN_S)

    def report(self, *options: str, code: int = 0) -> dict[str, Any]:
        done = self.replay("--json", *options)
        assert done.returncode == code, done.stderr
        return cast("dict[str, Any]", json.loads(done.stdout))

    def entries(self, stream: str = "") -> list[tuple[str, dict[str, str]]]:
        found = cast(
            "list[tuple[bytes, dict[bytes, bytes]]]", self.redis.xrange(stream or self.stream)
        )
        return [
            (entry_id.decode(), {name.decode(): value.decode() for name, value in fields.items()})
            for entry_id, fields in found
        ]

    @contextmanager
    def started(self, *options: str, **environ: str) -> Generator[subprocess.Popen[str]]:
        """Replay beside the test, begun as an operator does, and end it as one would."""
        process = subprocess.Popen(
            [*COMMAND, *options], cwd=ROOT, env={**self.environ, **environ}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=WITHIN_S)
            print(log)  # pytest shows it where the test fails

    @contextmanager
    def worker(self, **environ: str) -> Generator[None]:
        """A worker beside the test, told to stop at the end."""
        program = Program("worker", (), {**self.environ, **environ})
        with tempfile.TemporaryFile("w+") as log:
            worker = anyio.run(fork, program, log, log)
            try:
                yield
            finally:
                if worker.returncode is None:
                    worker.terminate()
                anyio.run(ended, worker)
                log.seek(0)
                print(log.read())  # pytest shows it where the test fails


async def ended(worker: Fork) -> None:
    with anyio.fail_after(WITHIN_S):
        await worker.wait()


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Generator[EmbeddedServices]:
    with embedded_services(tmp_path_factory.mktemp("services")) as services:
        yield services


@pytest.fixture
def place(services: EmbeddedServices) -> Generator[Place]:
    """A place without tables."""
    name = f"replay_{next(NUMBERS)}"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WORKER_")}
    environ |= {
        "REDIS_URL": services.redis_url, "DATABASE_URL": services.database_url,
        "INFLUXDB_URL": services.points_url, "DATABASE_SCHEMA": name, "WORKER_STREAMS": name,
    }  # fmt: skip
    with Redis.from_url(services.redis_url) as redis:
        yield Place(environ, name, redis)


@pytest.fixture
def ready(place: Place) -> Place:
    """A place with tables."""
    anyio.run(migrated, load(place.environ))
    return place


@pytest.fixture
def day(tmp_path: Path) -> str:
    path = tmp_path / "day.csv.gz"
    path.write_bytes(gzip.compress(DAY.encode()))
    return str(path)


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


# --- publishing ---


def test_without_options_fifty_orders_and_twenty_duplicates_are_published(place: Place) -> None:
    done = place.replay()
    assert (done.returncode, done.stderr) == (0, "")
    orders = [fields for _, fields in place.entries()]
    contents = {
        tuple(sorted(set(order.items()) - {("order_id", order["order_id"])})) for order in orders
    }
    assert (len(orders), len(contents)) == (70, 50)
    assert done.stdout.startswith("70 entries in stream ")


def test_the_report_for_machines_names_what_was_published(place: Place) -> None:
    report = place.report("--orders", "1500", "--duplicates", "3", "--seed", "4")
    ids = [entry_id for entry_id, _ in place.entries()]
    assert (report["entries"], len(ids)) == (1503, 1503)
    assert (report["first_entry_id"], report["last_entry_id"]) == (ids[0], ids[-1])
    assert "expected" not in report


def test_a_file_is_published_with_its_columns_mapped(place: Place, day: str) -> None:
    done = place.replay(day, "--map", "order_id=id", "--keep", "time", "--stream", "another")
    assert done.returncode == 0, done.stderr
    (_, first), *_ = place.entries("another")
    assert first == {
        "order_id": "1", "symbol": "BTCUSD", "side": "buy", "type": "limit", "quantity": "1.50",
        "price": "236.47", "time": "2015-05-01T00:00:04.518Z",
    }  # fmt: skip
    place.redis.delete("another")


def test_columns_that_are_not_sent_are_named_once(place: Place, day: str) -> None:
    done = place.replay(day, "--map", "order_id=id")
    assert done.stderr.count("columns that are not sent: time") == 1


def test_event_times_become_the_entry_ids(place: Place, day: str) -> None:
    assert place.replay(day, "--map", "order_id=id", "--event-time").returncode == 0
    assert [entry_id for entry_id, _ in place.entries()] == [
        "1430438404518-0", "1430438404518-1", "1430438405000-0", "1430438406000-0", "1430438520000-0",
    ]  # fmt: skip


def test_event_times_before_the_stream_s_last_entry_are_refused_before_the_first(
    place: Place, day: str
) -> None:
    place.redis.xadd(place.stream, {"a": "b"}, id="1430438404519-7")
    done = place.replay(day, "--map", "order_id=id", "--event-time")
    assert done.returncode == 1
    assert "has had entries up to 1430438404519-7" in done.stderr
    assert len(place.entries()) == 1


def test_a_rate_spreads_the_orders_in_time(place: Place) -> None:
    report = place.report("--rate", "200", "--orders", "101", "--duplicates", "0")
    assert report["published_seconds"] >= 0.49  # the last is due after half a second
    span = int(report["last_entry_id"].split("-")[0]) - int(report["first_entry_id"].split("-")[0])
    assert span >= 240  # the first may be late by what connecting takes; at once, it is a few ms


def test_a_speed_keeps_the_distances_of_the_file(place: Place, day: str) -> None:
    place.report(day, "--map", "order_id=id", "--speed", "100")
    times = [int(entry_id.split("-")[0]) for entry_id, _ in place.entries()]
    assert times[-1] - times[0] >= 600  # 1,155 ms, less by what connecting took before the first


def test_an_interrupted_replay_says_how_much_is_in_the_stream(place: Place) -> None:
    with place.started("--rate", "500", "--orders", "100000") as replay:
        wait_until(lambda: place.redis.xlen(place.stream) > 20)
        replay.send_signal(signal.SIGINT)
        _, stderr = replay.communicate(timeout=WITHIN_S)
    assert replay.returncode == 130
    assert f"interrupted; {place.redis.xlen(place.stream)} orders were published" in stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_replay_that_is_ended_takes_its_own_worker_and_servers_with_it(
    place: Place, tmp_path: Path, number: signal.Signals
) -> None:
    options = ("--embedded", "--rate", "100", "--orders", "100000")
    with place.started(*options, TMPDIR=str(tmp_path)) as replay:
        wait_until(lambda: any(tmp_path.glob("ordergate-replay-*/data/*/*")))
        running = list(processes_in(tmp_path))
        replay.send_signal(number)
        _, stderr = replay.communicate(timeout=WITHIN_S)
    assert running
    assert replay.returncode == 130
    assert "interrupted; " in stderr
    assert "Traceback" not in stderr
    wait_until(lambda: not any(processes_in(tmp_path)))
    assert not any(tmp_path.glob("ordergate-replay-*"))


def processes_in(directory: Path) -> Iterator[str]:
    """Commands of processes that name a directory, their own arguments included."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended since
            if str(directory).encode() in (command := path.read_bytes()):
                yield command.replace(b"\0", b" ").decode(errors="replace")


# --- waiting for the outcomes ---


def test_what_is_expected_is_found(ready: Place) -> None:
    with ready.worker():
        report = ready.report("--wait", "--orders", "2000", "--duplicates", "500")
    assert report["as_expected"] is True
    assert (
        report["found"]
        == report["expected"]
        == {"accepted": 2000, "duplicates": 500, "rejected": 0}
    )
    assert report["recorded_before"] == 0
    assert report["per_second"] > 0
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["max"]


def test_a_second_run_within_the_window_is_expected_to_repeat_the_first(ready: Place) -> None:
    with ready.worker():
        ready.report("--wait")
        report = ready.report("--wait")
    assert report["found"] == report["expected"] == {"accepted": 0, "duplicates": 70, "rejected": 0}
    assert report["repeats_of_earlier_orders"] == 70


def test_a_first_run_that_was_not_waited_for_counts_as_well(ready: Place) -> None:
    ready.report()
    ready.report("--seed", "2")
    with ready.worker():
        report = ready.report("--wait")
    assert report["found"] == report["expected"] == {"accepted": 0, "duplicates": 70, "rejected": 0}


def test_a_second_run_beyond_the_window_is_expected_to_be_accepted(ready: Place) -> None:
    environ = {**ready.environ, "WORKER_DEDUPE_WINDOW": "1s"}
    brief = Place(environ, ready.stream, ready.redis)
    with brief.worker():
        first = brief.report("--wait")
        ended_ms = int(first["last_entry_id"].split("-")[0])
        wait_until(lambda: time.time() * 1000 > ended_ms + 1100)
        report = brief.report("--wait")
    assert (
        report["found"] == report["expected"] == {"accepted": 50, "duplicates": 20, "rejected": 0}
    )


def test_orders_that_break_a_rule_are_expected_to_be_rejected(ready: Place, day: str) -> None:
    with ready.worker():
        report = ready.report(day, "--map", "order_id=id", "--wait")
    assert report["found"] == report["expected"] == {"accepted": 2, "duplicates": 2, "rejected": 1}


def test_event_times_give_the_outcomes_of_that_day(ready: Place, day: str) -> None:
    environ = {**ready.environ, "WORKER_DEDUPE_WINDOW": "60s"}
    minute = Place(environ, ready.stream, ready.redis)
    with minute.worker():
        report = minute.report(day, "--map", "order_id=id", "--event-time", "--wait")
    assert report["found"] == report["expected"] == {"accepted": 3, "duplicates": 1, "rejected": 1}
    assert report["latency_ms"] is None
    assert "own times" in report["latency_omitted"]


def test_a_day_replayed_into_an_emptied_redis_has_the_outcomes_on_record(
    ready: Place, day: str
) -> None:
    options = (day, "--map", "order_id=id", "--event-time", "--wait")
    with ready.worker():
        first = ready.report(*options)
    ready.redis.flushall()
    with ready.worker():
        second = ready.report(*options)
    assert second["found"] == first["found"]
    assert second["recorded_before"] == 5
    assert second["per_second"] is None


async def publish(place: Place, orders: Sequence[Mapping[str, str]]) -> None:
    async with connect(place.environ["REDIS_URL"]) as redis:
        await Producer(redis, place.stream).publish(orders)


def test_entries_of_others_in_between_are_not_counted(ready: Place) -> None:
    stranger = {"order_id": "s", "symbol": "A", "side": "buy", "type": "market", "quantity": "1"}
    options = ("--rate", "50", "--orders", "40", "--duplicates", "10", "--wait", "--json")
    with ready.worker(), ready.started(*options) as replay:
        wait_until(lambda: ready.redis.xlen(ready.stream) > 5)
        anyio.run(publish, ready, [stranger] * 30)
        stdout, stderr = replay.communicate(timeout=WITHIN_S)
    assert replay.returncode == 0, stderr
    assert json.loads(stdout)["found"] == {"accepted": 40, "duplicates": 10, "rejected": 0}


def test_outcomes_that_differ_fail_the_replay(ready: Place) -> None:
    with ready.worker(WORKER_DEDUPE_WINDOW="1ms"):  # the worker forgets; the replay expects a day
        done = ready.replay("--wait", "--orders", "5", "--duplicates", "5", "--rate", "100")
    assert done.returncode == 1
    assert done.stdout.count("differs") == 2


def test_without_a_worker_the_wait_gives_up(ready: Place) -> None:
    done = ready.replay("--wait", "--timeout", "500ms")
    assert done.returncode == 1
    assert "gave up: 70 entries have no outcome, and none was recorded for 0.5 s" in done.stdout


def test_embedded_needs_no_services(place: Place) -> None:
    nowhere = {"REDIS_URL": "redis://127.0.0.1:1", "DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    done = place.replay("--embedded", "--orders", "200", "--json", **nowhere)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (
        report["found"] == report["expected"] == {"accepted": 200, "duplicates": 20, "rejected": 0}
    )


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("environ", "options", "code", "complaint"),
    [
        ({"REDIS_URL": "redis://127.0.0.1:1"}, [], 1, "0 orders are in the stream"),
        ({"REDIS_URL": "ftp://x"}, [], 2, "REDIS_URL: "),
        ({"DATABASE_URL": "postgresql://127.0.0.1:1/x"}, ["--wait"], 1, "Postgres: "),
        ({"DATABASE_URL": "x"}, ["--wait"], 2, "DATABASE_URL: must be a URL"),
        ({}, ["--wait"], 1, "has no view outcomes: run `python -m worker migrate`"),
        ({"WORKER_DEDUPE_WINDOW": "soon"}, [], 2, "WORKER_DEDUPE_WINDOW"),
        ({}, ["none.csv"], 2, "none.csv: No such file"),
        ({}, ["none.csv", "--orders", "1"], 2, "--orders is for synthetic orders"),
        ({}, ["none.csv", "--map", "order_id=a", "--map", "order_id=b"], 2, "order_id two columns"),
        ({}, ["none.csv", "--map", "prize=a"], 2, "'prize=a' is not FIELD=COLUMN"),
        ({}, ["--limit", "3"], 2, "--limit needs a file"),
        ({}, ["none.csv", "--limit", "0"], 2, "'0' is not a whole number above zero"),
        ({}, ["--event-time"], 2, "--event-time needs a file"),
        ({}, ["--orders", "0"], 2, "cannot make 0 orders"),
        ({}, ["--rate", "fast"], 2, "'fast' is not a number above zero"),
        ({}, ["--timeout", "1 minute"], 2, "must be a duration"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    place: Place, environ: dict[str, str], options: list[str], code: int, complaint: str
) -> None:
    done = place.replay(*options, **environ)
    assert done.returncode == code
    last = done.stderr.splitlines()[-1]
    assert last.startswith("replay_load")
    assert complaint in last
    assert "Traceback" not in done.stderr
    assert place.redis.xlen(place.stream) == 0


def test_a_key_that_is_no_stream_is_a_refusal(place: Place) -> None:
    place.redis.set(place.stream, "text")
    done = place.replay()
    assert done.returncode == 1
    assert "Redis refused 70 orders: WRONGTYPE" in done.stderr
    place.redis.delete(place.stream)


def test_a_key_that_is_no_stream_is_said_before_event_times_go_there(
    place: Place, day: str
) -> None:
    place.redis.set(place.stream, "text")
    done = place.replay(day, "--map", "order_id=id", "--event-time")
    assert done.returncode == 1
    assert f"Redis does not tell of stream {place.stream}: WRONGTYPE" in done.stderr
    assert "Traceback" not in done.stderr
    place.redis.delete(place.stream)


def test_a_redis_that_dies_leaves_a_count_of_what_is_certain(place: Place, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server, Redis.from_url(server.url) as redis:
        options = ("--rate", "500", "--orders", "100000")
        with place.started(*options, REDIS_URL=server.url) as replay:
            wait_until(lambda: redis.xlen(place.stream) > 20)
            server.kill()
            _, stderr = replay.communicate(timeout=WITHIN_S)
    assert replay.returncode == 1
    assert "orders are in the stream" in stderr
    assert "Traceback" not in stderr
