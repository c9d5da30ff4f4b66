"""What the page shows, as plain values. Pure."""

from time import time
from typing import Any

from worker import __version__
from worker.http.history import History
from worker.http.look import Gauges, Latest
from worker.http.readiness import unready
from worker.vitals import Vitals


def status(vitals: Vitals, history: History, gauges: Gauges, latest: Latest) -> dict[str, Any]:
    """Everything at one moment, about this worker, its servers and its streams."""
    return {
        "consumer": vitals.settings.consumer,
        "group": vitals.settings.group,
        "version": __version__,
        "now": time(),
        "started_at": vitals.started_at,
        "unready": unready(vitals),
        "window_ms": vitals.settings.dedupe_window_ms,
        "dependencies": _dependencies(vitals),
        "streams": [_stream(name, vitals, gauges, latest) for name in vitals.streams],
        "history": list(history.samples),
        "duplicates": latest.duplicates,
        "rejections": latest.rejections,
        "unanswered": {**latest.unanswered, **gauges.unanswered},
    }


def _dependencies(vitals: Vitals) -> list[dict[str, Any]]:
    return [
        {
            "name": its.name,
            "state": its.state.value,
            "down_s": its.down_s,
            "losses": its.losses,
            "error": its.error if not its.up else "",
        }
        for its in vitals.dependencies
    ]


def _stream(name: str, vitals: Vitals, gauges: Gauges, latest: Latest) -> dict[str, Any]:
    """None where the server that knows did not answer."""
    return {
        "stream": name,
        "settled": vitals.streams[name].outcomes,
        "recent": latest.recent.get(name),
        "figures": gauges.streams.get(name),
        "points": gauges.points.get(name),
    }
