"""What a worker serves over HTTP: health checks, metrics, and a page to look at.

A guest in the worker: it comes after everything else, has connections of its own, and nothing waits for it.
"""

from importlib import import_module

import anyio
from anyio import to_thread

from worker.vitals import Vitals

START_AFTER_S = (
    0.5  #: seconds; the start of the intake does not share its processor with this one's
)


async def serve_http(vitals: Vitals) -> None:
    """Serve until cancelled; return at once where `WORKER_HTTP` is off."""
    address = vitals.settings.http_address
    if address is None:
        return
    await anyio.sleep(START_AFTER_S)
    server = await to_thread.run_sync(import_module, "worker.http.server", abandon_on_cancel=True)
    await server.listen(vitals, *address)
