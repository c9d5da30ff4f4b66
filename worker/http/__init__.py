"""What a worker serves over HTTP: health checks, metrics, and a page to look at.

A guest in the worker: nothing waits for it, it has connections of its own, and what answers is loaded when
the first request is there. Until then there is a socket, and a few numbers that are noted.
"""

import socket
from importlib import import_module

import anyio
import structlog
from anyio import to_thread

from worker.http.history import History
from worker.vitals import Vitals

RETRY_S = 10.0  #: seconds between two attempts at a port that is taken

log = structlog.stdlib.get_logger("worker")


async def serve_http(vitals: Vitals) -> None:
    """Serve until cancelled; return at once where `WORKER_HTTP` is off."""
    address = vitals.settings.http_address
    if address is None:
        return
    history = History(vitals)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(history.keep, name="history")
        with await _listener(*address) as listener:
            await anyio.wait_readable(listener)
            server = await to_thread.run_sync(
                import_module, "worker.http.server", abandon_on_cancel=True
            )
            await server.serve(vitals, history, listener)


async def _listener(host: str, port: int) -> socket.socket:
    """Listen, where the port is taken as soon as it is free."""
    told = False
    while True:
        try:
            listener = await _bound(host, port)
        except OSError as error:
            if not told:
                log.warning(
                    "http.not_listening",
                    address=f"{host}:{port}",
                    error=error.strerror or str(error),
                    mend="give each worker of a machine its own WORKER_HTTP, or port 0, or off",
                )
            told = True
            await anyio.sleep(RETRY_S)
        else:
            log.info("http.listening", url=_url(listener))
            return listener


async def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens at the host's first address, of IPv4 where it has one."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    listener = socket.create_server(address, family=family)
    listener.setblocking(False)
    return listener


def _url(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
