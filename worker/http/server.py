"""The HTTP server. Everything is read only.

Whatever goes wrong here is a 500 and a line in the log; the worker goes on.
"""

import json
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.resources import files
from ipaddress import ip_address
from time import time

import anyio
import msgspec
import structlog
from aiohttp import web

from worker.errors import BadUsage, OrdergateError
from worker.http.history import History
from worker.http.look import Look
from worker.http.metrics import exposition
from worker.http.question import question_of
from worker.http.readiness import unready
from worker.http.status import status
from worker.operate.command import servers_of
from worker.operate.explain import explain
from worker.vitals import Vitals

CLOSE_S_MAX = 0.25  #: seconds for what is under way when the worker ends
EXPLAIN_S_MAX = 5.0

PAGE = files("worker") / "http" / "page"
FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
#: What tells nothing of orders is answered under any name.
UNDER_ANY_NAME = ("/health", "/ready", "/metrics")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = structlog.stdlib.get_logger("worker")


async def serve(vitals: Vitals, history: History, listener: socket.socket) -> None:
    """Answer whoever comes to a socket, until cancelled."""
    async with servers_of(vitals.settings) as servers:
        runner = web.AppRunner(
            application(vitals, Look(servers), history),
            access_log=None,
            shutdown_timeout=CLOSE_S_MAX,
        )
        try:
            await runner.setup()
            await web.SockSite(runner, listener).start()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await runner.cleanup()


def application(vitals: Vitals, look: Look, history: History) -> web.Application:
    """The routes, and what holds for each."""
    routes = {
        "/health": partial(_health, vitals),
        "/ready": partial(_ready, vitals),
        "/metrics": partial(_metrics, vitals, look),
        "/status.json": partial(_status, vitals, look, history),
        "/explain.json": partial(_explain, look, anyio.Lock()),
        **{path: partial(_file, name, kind) for path, (name, kind) in FILES.items()},
    }
    app = web.Application(middlewares=[_guarded])
    for path, handler in routes.items():
        app.router.add_get(path, handler)
    return app


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer, whatever happens, and with the headers that keep a browser from more than it needs."""
    try:
        if request.path in UNDER_ANY_NAME or _is_ours(request.url.host or ""):
            response = await handler(request)
        else:
            response = _told(403, "ask by address, by localhost, or by a host name without dots")
    except web.HTTPException as error:
        response = _told(error.status, error.reason)
    except Exception:  # a bug of the page must not end the intake
        log.exception("http.failed", path=request.path)
        response = _told(500, "the worker's log says what went wrong")
    response.headers.update(HEADERS)
    return response


def _is_ours(host: str) -> bool:
    """Whether no stranger's page can lead a browser here: names of the Internet have dots.

    Source: https://en.wikipedia.org/wiki/DNS_rebinding
    """
    try:
        ip_address(host)
    except ValueError:
        return "." not in host
    return True


def _told(code: int, reason: str) -> web.Response:
    return _json({"error": reason}, code)


def _json(value: object, code: int = 200) -> web.Response:
    # Not msgspec's own encoder: text that a producer sent may hold what is no UTF-8.
    text = json.dumps(msgspec.to_builtins(value))
    return web.Response(text=text, status=code, content_type="application/json")


async def _health(vitals: Vitals, _request: web.Request) -> web.Response:
    """Alive: the loop turns, for it has answered."""
    uptime_s = round(time() - vitals.started_at, 1)
    return _json({"alive": True, "consumer": vitals.settings.consumer, "uptime_s": uptime_s})


async def _ready(vitals: Vitals, _request: web.Request) -> web.Response:
    reasons = unready(vitals)
    states = {its.name: its.state.value for its in vitals.dependencies}
    ready = {"ready": not reasons, "reasons": reasons, "dependencies": states}
    return _json(ready, 503 if reasons else 200)


async def _metrics(vitals: Vitals, look: Look, request: web.Request) -> web.Response:
    found = exposition(vitals, await look.gauges.get(), request.headers.get("Accept", ""))
    return web.Response(body=found.body, headers={"Content-Type": found.content_type})


async def _status(
    vitals: Vitals, look: Look, history: History, _request: web.Request
) -> web.Response:
    return _json(status(vitals, history, await look.gauges.get(), await look.latest.get()))


async def _explain(look: Look, alone: anyio.Lock, request: web.Request) -> web.Response:
    """What `explain` says. One question at a time: it may look through a stream."""
    try:
        question = question_of(request.query.get("q", ""))
        async with alone:
            with anyio.fail_after(EXPLAIN_S_MAX):
                return _json(await explain(look.servers, look.servers.settings.streams, question))
    except BadUsage as error:
        return _told(400, str(error))
    except TimeoutError:
        return _told(
            503, f"no answer within {EXPLAIN_S_MAX:g} s; python -m worker explain waits longer"
        )
    except OrdergateError as error:
        return _told(503, str(error))


async def _file(name: str, kind: str, _request: web.Request) -> web.Response:
    return web.Response(
        text=(PAGE / name).read_text(encoding="utf-8"), content_type=kind, charset="utf-8"
    )
