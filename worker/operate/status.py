"""`status`: how far each stream is, and how fast, at one moment or live."""

import argparse
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TypeVar

import anyio
import msgspec

from worker.errors import BadUsage, NoAnswer, PostgresRefused
from worker.operate.command import (
    Servers,
    human,
    now_ms,
    run,
    schema_checked,
    servers_told,
    streams_of,
)
from worker.operate.figures import (
    OutcomeFigures,
    PointFigures,
    StreamFigures,
    outcome_totals,
    points_owed,
    recent_outcomes,
    stream_figures,
)
from worker.operate.output import print_json, print_line, printable, table_lines
from worker.settings import duration_ms

RATE_S = 60  #: seconds over which rates are told
TOTALS_EVERY_MS = 30_000  #: counting everything on record takes a while

T = TypeVar("T")


class Status(msgspec.Struct):
    """All figures of some streams, by stream; what is None could not be asked, see `unanswered`."""

    at: datetime
    streams: list[StreamFigures] | None = None
    last_minute: Mapping[str, OutcomeFigures] | None = None
    on_record: Mapping[str, OutcomeFigures] | None = None
    points: Mapping[str, PointFigures] | None = None
    unanswered: dict[str, str] = {}


def run_status(options: argparse.Namespace) -> int:
    """Tell how things stand. 0, or 1 where a server does not answer; live, 0 in the end."""
    return run(lambda servers: _run(servers, options))


async def _run(servers: Servers, options: argparse.Namespace) -> int:
    streams = streams_of(servers.settings, options.stream)
    if options.watch is None:
        status = await look(servers, streams)
        _print(status, as_json=options.json)
        return 1 if status.unanswered else 0
    if options.json:
        raise BadUsage("--json gives one document: leave out --watch")
    await _watch(servers, streams, _every_s(options.watch))
    return 0


def _every_s(text: str) -> float:
    try:
        ms = duration_ms(text)
    except ValueError as error:
        raise BadUsage(f"--watch {error}") from None
    return max(100, ms if isinstance(ms, int) else 0) / 1000


async def look(servers: Servers, streams: Sequence[str], before: Status | None = None) -> Status:
    """All figures; a server that does not answer is asked once.

    :param before: what it was a moment ago, whose totals are taken where they are young
    """
    status = Status(datetime.now(UTC))
    group, ledger = servers.settings.group, servers.ledger

    async def of_streams() -> list[StreamFigures]:
        return [await stream_figures(servers.redis, stream, group) for stream in streams]

    async def of_totals() -> Mapping[str, OutcomeFigures]:
        return await outcome_totals(ledger, streams)

    async def ask(server: str, question: Callable[[], Awaitable[T]]) -> T | None:
        if server in status.unanswered:
            return None
        try:
            with servers_told():
                return await question()
        except (NoAnswer, PostgresRefused) as error:
            status.unanswered[server] = str(error)
            return None

    status.streams = await ask("Redis", of_streams)
    await ask("Postgres", lambda: schema_checked(servers))
    status.last_minute = await ask(
        "Postgres", lambda: recent_outcomes(ledger, streams, within_s=RATE_S)
    )
    status.points = await ask("Postgres", lambda: points_owed(ledger, streams))
    status.on_record = before.on_record if before else await ask("Postgres", of_totals)
    return status


# --- live ---


async def _watch(servers: Servers, streams: Sequence[str], every_s: float) -> None:
    """Tell it again and again, until Ctrl-C or SIGTERM."""
    async with anyio.create_task_group() as tasks, _shown() as show:
        tasks.start_soon(_watch_on, servers, streams, every_s, show)
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            await anext(signals)
        tasks.cancel_scope.cancel()


async def _watch_on(
    servers: Servers, streams: Sequence[str], every_s: float, show: Callable[[str], None]
) -> None:
    before, counted_ms = None, 0
    while True:
        if now_ms() - counted_ms > TOTALS_EVERY_MS:
            before, counted_ms = None, now_ms()
        before = await look(servers, streams, before)
        show("\n".join(_lines(before)))
        await anyio.sleep(every_s)


@asynccontextmanager
async def _shown() -> AsyncGenerator[Callable[[str], None]]:
    """Show a text in place of the one before, on a terminal; else one below the other."""
    if not sys.stdout.isatty():
        yield _printed
        return
    from rich.live import Live  # noqa: PLC0415 - only a terminal needs it
    from rich.text import Text  # noqa: PLC0415

    with Live(screen=True, auto_refresh=False) as live:
        yield lambda text: live.update(Text(text, overflow="fold"), refresh=True)


def _printed(text: str) -> None:
    print_line(f"{text}\n")
    sys.stdout.flush()


# --- on paper ---


def _print(status: Status, *, as_json: bool) -> None:
    if as_json:
        print_json(status)
        return
    for line in _lines(status):
        print_line(line)


def _lines(status: Status) -> list[str]:
    lines = [f"{status.at:%Y-%m-%d %H:%M:%S} UTC"]
    for error in status.unanswered.values():
        lines += ["", printable(error, 300)]
    names = [it.stream for it in status.streams or []] or list(status.points or {})
    by_name = {it.stream: it for it in status.streams or []}
    for name in names:
        lines += ["", printable(name)]
        for label, text in _sheet(status, name, by_name.get(name)):
            lines.append(f"  {label:13}{text}")
        if found := by_name.get(name):
            lines += [f"  {line}" for line in _consumers(found)]
    return lines


def _sheet(status: Status, name: str, found: StreamFigures | None) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if found:
        rows += _of_stream(found)
    if status.last_minute:
        rows.append(("last minute", _rates(status.last_minute[name])))
    if status.on_record:
        rows.append(("on record", _counts(status.on_record[name])))
    if status.points:
        rows.append(("points", _points(status.points[name])))
    return rows


def _of_stream(found: StreamFigures) -> list[tuple[str, str]]:
    waiting = "some" if found.waiting is None else f"{found.waiting:,}"
    group = found.group if found.has_group else f"no group {found.group} yet"
    lag = f"{waiting} waiting, the first for {human(found.lag_ms)}" if found.lag_ms else "none"
    lost = (
        "unknown, Redis tells from 7 on" if found.lost is None else f"{found.lost:,} before reading"
    )
    return [
        (
            "entries",
            f"{found.entries:,} in the stream; {found.settled:,} settled by {printable(group)}",
        ),
        ("lag", lag),
        ("pending", _pending(found)),
        ("lost", lost),
        ("dead letters", f"{found.dead_letters:,}"),
    ]


def _pending(found: StreamFigures) -> str:
    if not found.oldest:
        return f"{found.pending:,}"
    it = found.oldest
    return (
        f"{found.pending:,}, the oldest {it.entry_id}, {human(it.age_ms)} old, held for {human(it.held_ms)} "
        f"by {printable(it.consumer)}, delivered {it.deliveries:,} times"
    )


def _rates(found: OutcomeFigures) -> str:
    by_kind = ", ".join(f"{count / RATE_S:,.1f} {kind}" for kind, count in _kinds(found))
    return f"{found.all:,}, {found.all / RATE_S:,.1f} a second: {by_kind}"


def _counts(found: OutcomeFigures) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in _kinds(found))


def _kinds(found: OutcomeFigures) -> list[tuple[str, int]]:
    return [
        ("accepted", found.accepted),
        ("duplicate", found.duplicate),
        ("rejected", found.rejected),
    ]


def _points(found: PointFigures) -> str:
    since = f" since {found.owed_since:%Y-%m-%d %H:%M:%S} UTC" if found.owed_since else ""
    return f"{found.owed:,} owed{since}, {found.parked:,} parked"


def _consumers(found: StreamFigures) -> list[str]:
    if not found.consumers:
        return ["consumers    none"]
    rows = [
        (printable(it.name), f"{it.pending:,}", f"{human(it.idle_ms)} ago")
        for it in found.consumers
    ]
    return table_lines(("consumer", "holds", "last seen"), rows)
