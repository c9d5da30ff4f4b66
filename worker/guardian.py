"""The guardian of a server of our own: run as a script, it stands between the server and its owner.

It starts the server and stops it when its own input ends, which the kernel sees to whatever becomes of the
owner, SIGKILL included. (PR_SET_PDEATHSIG does not do: it follows the *thread* that started the server, and a
change of user clears it.) Imports nothing but the standard library, for it runs without ours.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def _guard(stop_signal: str, patience_s: str, place: str, *command: str) -> int:
    """Be the guardian: run a server until it ends, or our input does. Returns its exit code.

    :param patience_s: seconds it has to stop by itself before it is killed
    """
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, **json.loads(place))  # noqa: S603
    how = server, int(stop_signal), float(patience_s)
    threading.Thread(target=_stop_at_end, args=how, daemon=True).start()
    return server.wait()


def _stop_at_end(server: subprocess.Popen[bytes], stop_signal: int, patience_s: float) -> None:
    os.read(sys.stdin.fileno(), 1)  # nobody writes: it returns when the owner is done or dead
    server.send_signal(stop_signal)
    signal_server(os.getpid(), signal.SIGCONT)  # it may be paused
    time.sleep(patience_s)
    signal_server(os.getpid(), signal.SIGKILL)


def signal_server(guardian: int, number: signal.Signals) -> None:
    """Signal each process of a server: those of Postgres have process groups of their own."""
    for server in _children(guardian):
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGSTOP)  # from here on it starts no others
        for process in (*_children(server), server):
            with suppress(ProcessLookupError):
                os.kill(process, number)


def _children(parent: int) -> list[int]:
    return [process for process, its_parent in _processes() if its_parent == parent]


def _processes() -> Iterator[tuple[int, int]]:
    """Give every process with its parent."""
    if not Path("/proc/self/stat").exists():  # macOS
        ps = subprocess.run(["/bin/ps", "-Ao", "pid=,ppid="], capture_output=True, check=True)
        yield from ((int(row.split()[0]), int(row.split()[1])) for row in ps.stdout.splitlines())
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(ProcessLookupError, FileNotFoundError):  # it has ended since
            parent = status.read_bytes().rpartition(b")")[2].split()[1]
            yield int(status.parent.name), int(parent)


if __name__ == "__main__":
    sys.exit(_guard(*sys.argv[1:]))
