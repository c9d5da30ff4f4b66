"""Programs of ours, started as forks of a process that has loaded them already.

Loading Python, the libraries and the program takes a worker half a second of processor time, and the tests
start hundreds. So one process, the template, loads them once, and each fork of it becomes a program: with
its own environment, arguments and files, as if `python -m` had been called. A program is started that way in
all tests but those of starting itself.

    python -m tests.forks FD     # the template; `fork` starts it, and it ends with who started it
"""

import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import anyio

ROOT = Path(__file__).resolve().parents[1]
#: What our programs load, first or last.
LOADED = (
    "worker.run",
    "worker.http.server",
    "scripts.replay.command",
    "aiohttp",
    "influxdb_client.client.influxdb_client_async",
    "uvloop",
)
REQUEST_MAX = 64 * 1024  #: bytes; environment and arguments


@dataclass(frozen=True)
class Program:
    """What a fork becomes: `python -m module arguments`, in that environment."""

    module: str
    arguments: Sequence[str]
    variables: Mapping[str, str]


class Fork:
    """A program that runs: as much of `anyio.abc.Process` as is used here."""

    def __init__(self, said: int) -> None:
        """:param said: a pipe, in which the template says the process's id, and how it ended"""
        self._said = said
        self._words: list[int] = []
        self._returncode: int | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._words[0]

    @property
    def returncode(self) -> int | None:
        """Its exit code, less than 0 where a signal ended it; None while it runs."""
        if self._returncode is None:
            self._listen()
        return self._returncode

    async def begun(self) -> None:
        """Wait until it is there."""
        while not self._words:
            await anyio.wait_readable(self._said)
            self._listen()

    async def wait(self) -> int:
        """Wait until it ends; gives its exit code."""
        while (code := self.returncode) is None:
            await anyio.wait_readable(self._said)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal. :raises ProcessLookupError: it has ended"""
        if self.returncode is not None:
            raise ProcessLookupError(f"process {self.pid} has ended")
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _listen(self) -> None:
        with suppress(BlockingIOError):
            said = os.read(self._said, 64)
            if not said:
                raise RuntimeError("the template has ended, see its errors")
            self._words += map(int, said.split())
        if len(self._words) > 1:
            self._returncode = self._words[1]
            os.close(self._said)


async def fork(program: Program, output: IO[Any], errors: IO[Any]) -> Fork:
    """Start a program with these files as its standard output and error, and in a session of its own."""
    said, says = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(said, False)
    request = json.dumps(asdict(program)).encode()
    socket.send_fds(_template(), [request], [output.fileno(), errors.fileno(), says])
    os.close(says)
    started = Fork(said)
    await started.begun()
    return started


def run(program: Program, *, within_s: float) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, where no event loop runs.

    :raises TimeoutError: it did not end in time, and was killed
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:

        async def ended() -> int:
            started = await fork(program, output, errors)
            try:
                with anyio.fail_after(within_s):
                    return await started.wait()
            finally:
                if started.returncode is None:
                    started.kill()

        code = anyio.run(ended)
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess((), code, output.read(), errors.read())


@cache
def _template() -> socket.socket:
    """Where this process's template listens."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        command = [sys.executable, "-m", "tests.forks", str(its.fileno())]
        subprocess.Popen(
            command, cwd=ROOT, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    return ours


# --- the template ---


class _Template:
    """Forks whatever it is asked for, and says how each fork ends."""

    def __init__(self, asking: socket.socket) -> None:
        self._asking = asking
        self._events = selectors.DefaultSelector()
        self._events.register(asking, selectors.EVENT_READ)

    def become(self) -> Program | None:
        """Gives, in each fork, what it is to become; None, in the template, once nobody can ask any more."""
        while True:
            for event, _ in self._events.select():
                if event.fileobj is not self._asking:
                    self._say_end(event)
                    continue
                request, files, *_ = socket.recv_fds(self._asking, REQUEST_MAX, 3)
                if not request:
                    return None
                if self._fork(*files):
                    return Program(**json.loads(request))

    def _fork(self, output: int, errors: int, says: int) -> bool:
        """Says whether this is the fork. While that lives, it holds the one end of a pipe."""
        lives, living = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.dup2(output, 1)
            os.dup2(errors, 2)
            for file in (output, errors, says, lives):
                os.close(file)
            return True
        for file in (output, errors, living):
            os.close(file)
        os.write(says, b"%d\n" % pid)
        self._events.register(lives, selectors.EVENT_READ, (pid, says))
        return False

    def _say_end(self, event: selectors.SelectorKey) -> None:
        pid, says = event.data
        self._events.unregister(event.fileobj)
        os.close(event.fd)
        _, status = os.waitpid(pid, 0)
        with suppress(BrokenPipeError):  # nobody wants to know
            os.write(says, b"%d\n" % os.waitstatus_to_exitcode(status))
        os.close(says)


def _main(asking: socket.socket) -> None:
    for name in LOADED:
        import_module(name)
    gc.freeze()
    program = _Template(asking).become()
    if program:
        asking.close()
        os.environ.clear()
        os.environ.update(program.variables)
        sys.argv = [program.module, *program.arguments]
        runpy.run_module(program.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])))
