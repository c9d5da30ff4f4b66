"""A worker with servers of its own, for a replay on a machine that has none."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from worker.settings import Settings, load

READY_S_MAX = 120.0  #: a first start copies servers and makes a database
STOP_S_MAX = 60.0
ROOT = Path(__file__).resolve().parents[2]
#: Not taken over from the environment: a replay of this kind touches nothing but its own.
ADDRESSES = ("REDIS_URL", "DEDUPE_REDIS_URL", "DATABASE_URL", "INFLUXDB_URL")


class WorkerFailed(Exception):
    """Our worker did not start, or did not end well; the message ends with its last lines."""


@contextmanager
def own_worker(stream: str | None) -> Generator[Settings]:
    """Run `python -m worker --embedded` in a temporary directory; gives the settings that lead there.

    It reads while the block publishes, so latencies are those of orders as they arrive.

    :param stream: what the worker reads; by default what WORKER_STREAMS says
    :raises WorkerFailed: it did not start, or ended with an error
    :raises BadSettings: from the environment's other settings
    """
    environ = _environment(os.environ) | ({"WORKER_STREAMS": stream} if stream else {})
    load(environ)  # a mistake is reported by us, once
    with tempfile.TemporaryDirectory(prefix="ordergate-replay-") as name:
        directory = Path(name)
        command = [sys.executable, "-m", "worker", "--embedded", str(directory / "data")]
        with (directory / "out").open("wb") as out, (directory / "log").open("wb") as log:
            process = subprocess.Popen(  # a session of its own: Ctrl-C is for us to pass on
                command, cwd=ROOT, env=environ, stdout=out, stderr=log, start_new_session=True
            )
        worker = _Worker(process, directory)
        try:
            yield worker.ready_settings(environ)
        except Exception as error:
            if process.poll() is not None:  # whatever went wrong, this is why
                raise worker.failed("ended by itself") from error
            raise
        finally:
            worker.stop()
        if process.returncode:
            raise worker.failed(f"ended with exit code {process.returncode}")


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    unwanted = {*ADDRESSES, *(f"{name}_FILE" for name in ADDRESSES)}
    return {name: value for name, value in environ.items() if name not in unwanted}


@dataclass(frozen=True, slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    directory: Path

    def ready_settings(self, environ: Mapping[str, str]) -> Settings:
        """Wait until the worker reads its streams."""
        self._wait_for(lambda: len(self._addresses()) == 3)
        settings = load({**environ, **self._addresses()})
        with Redis.from_url(settings.redis_address) as redis:
            self._wait_for(lambda: _reads(redis, settings))
        return settings

    def stop(self) -> None:
        """End the worker as an operator would, and its servers with it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def failed(self, what: str) -> WorkerFailed:
        """An error that says so and ends with the worker's last lines."""
        last = (self.directory / "log").read_text(errors="replace").splitlines()[-10:]
        return WorkerFailed("\n".join([f"the worker {what}; its last lines:", *last]))

    def _wait_for(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_S_MAX
        while not ready():
            if self.process.poll() is not None:
                raise self.failed("did not start")
            if time.monotonic() > deadline:
                raise self.failed(f"was not ready within {READY_S_MAX:.0f} s")
            time.sleep(0.05)

    def _addresses(self) -> dict[str, str]:
        """The `NAME=url` lines that the worker prints once its servers run."""
        lines = (self.directory / "out").read_text().splitlines(keepends=True)
        pairs = (line.strip().partition("=") for line in lines if line.endswith("\n"))
        return {name: value for name, _, value in pairs if name in ADDRESSES}


def _reads(redis: Redis, settings: Settings) -> bool:
    try:
        return all(_has_group(redis, stream, settings.group) for stream in settings.streams)
    except RedisError:  # no such stream yet
        return False


def _has_group(redis: Redis, stream: str, group: str) -> bool:
    return any(found["name"] == group.encode() for found in redis.xinfo_groups(stream))
