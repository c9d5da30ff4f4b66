"""The command line of `scripts/replay_load.py`."""

import argparse
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from math import inf
from pathlib import Path
from typing import cast

import anyio
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from scripts.replay.order_file import FIELDS, TIME, OrderFile
from scripts.replay.outcomes import OutcomesUnreadable
from scripts.replay.own_worker import WorkerFailed, own_worker
from scripts.replay.pictures.comparison import comparison_page, ratios, ratios_json, ratios_text
from scripts.replay.pictures.files import (
    COMPARISON,
    FIGURES,
    PAGE,
    ReportFailed,
    named,
    prepare,
    write,
    write_comparison,
)
from scripts.replay.publishing import EntryIds, Pace, at_once, at_own_times, at_rate
from scripts.replay.report import as_json
from scripts.replay.run import Done, Plan, Replay, StreamAhead
from scripts.replay.synthetic import Synthetic
from scripts.replay.tables import BadSource
from streams.connection import RedisUnavailable
from streams.producer import PublishFailed, PublishRefused
from worker.errors import BadSettings
from worker.settings import duration_ms, load

DESCRIPTION = """\
Replay orders into a stream: 50 synthetic ones and 20 duplicates, or those of a file.

  scripts/replay_load.py --embedded                  no services needed: starts its own, and waits
  scripts/replay_load.py --orders 100000 --wait      with the services that the environment names
  scripts/replay_load.py day.csv.gz --map order_id=id --speed 60 --wait
  scripts/replay_load.py day.csv.gz --event-time --stream day --wait
  scripts/replay_load.py --orders 100000 --report after
  scripts/replay_load.py --compare before after --report both

REDIS_URL, DATABASE_URL, DATABASE_SCHEMA, WORKER_STREAMS and WORKER_DEDUPE_WINDOW are read as the
worker reads them. Exit codes: 0; 1 a difference or a failure; 2 wrong usage;
130 interrupted, by Ctrl-C, SIGTERM or SIGHUP.
"""
FILE_HELP = """\
.csv, .jsonl or .ndjson, plain or .gz, .bz2, .xz. Columns with the names of an order's fields are
sent, and no others but those of --map and --keep"""
WAIT_HELP = """\
wait until every entry has its outcome in Postgres, and compare with what the source lets expect:
accepted, duplicates, rejected. Orders per second are outcomes recorded, from the start of
publishing to the last of them. Latency is from the entry id, Redis' clock, to recorded_at,
Postgres' clock in the transaction that records"""
REPORT_HELP = f"""\
write there what was measured: {PAGE} to look at, {FIGURES} to compute with, over those of an earlier
report; includes --wait"""
COMPARE_HELP = f"""\
replay nothing: put the reports in two directories side by side, in {COMPARISON} in that of --report, and
print their ratios"""
EVENT_TIME_HELP = """\
the file's times become the entry ids, so that the outcomes are those of that day, whenever it is
replayed. Rows must be in order of time. Without latencies, which would be those of that day too"""

SYNTHETIC_ONLY = ("orders", "duplicates", "seed")
FILE_ONLY = ("map", "keep", "limit", "speed", "event_time")
INTERRUPTED = 130


#: What may go wrong once the settings and the source are read; each is one sentence.
FAILURES = (StreamAhead, OutcomesUnreadable, RedisUnavailable, WorkerFailed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one replay. 0 is as expected, 1 a difference or a failure, 2 wrong usage or settings."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if complaint := _mismatch(options):
        parser.error(complaint)
    if options.compare:
        return _compare(options)
    ids = EntryIds()
    _interrupt_by_signals()
    try:
        if options.report:
            prepare(options.report)
        outcome = _replay(options, ids)
    except (BadSource, BadSettings, ReportFailed) as error:
        return _complain(str(error), 2)
    except PublishFailed as error:
        return _complain(_of_publishing(error, ids), 1)
    except FAILURES as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:  # while our own worker starts or stops
        outcome = None
    if outcome is None:
        return _complain(f"interrupted; {len(ids):,} orders were published", INTERRUPTED)
    return _report(outcome, options)


def _compare(options: argparse.Namespace) -> int:
    """Write the page of two reports, and print their ratios."""
    try:
        first, second = named(*options.compare)
        path = write_comparison(options.report, comparison_page(first, second))
    except ReportFailed as error:
        return _complain(str(error), 2)
    found = ratios(first.figures, second.figures)
    print(ratios_json(found) if options.json else ratios_text(first.name, second.name, found))
    print(f"comparison: {path}", file=sys.stderr)
    return 0


def _replay(options: argparse.Namespace, ids: EntryIds) -> Done | None:
    """Read source and settings, and run; None where it was interrupted."""
    source = _source(options)
    own = own_worker(options.stream) if options.embedded else nullcontext(None)
    with own as own_settings:
        settings = own_settings or load()
        plan = Plan(
            source=source,
            stream=options.stream or settings.streams[0],
            pace=_pace(options, source),
            pace_text=_pace_text(options),
            first_ms=source.first_ms if options.event_time else None,
            wait=options.wait or options.embedded or options.report is not None,
            quiet_s_max=options.timeout / 1000,
            measured=options.report is not None,
        )
        with _progress() as progress:
            replay = Replay(plan, settings, progress, ids)
            try:
                return anyio.run(_interruptible, replay, backend_options={"use_uvloop": True})
            finally:
                _interrupt_by_signals()  # the loop has put their defaults in place


async def _interruptible(replay: Replay) -> Done | None:
    """Run until the end or the first signal that interrupts."""
    outcome: Done | None = None
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(_cancel_on_interrupt, group.cancel_scope)
        try:
            outcome = await replay.run()
        except (*FAILURES, PublishFailed, BadSource, BadSettings) as error:
            failure = error  # raised below: a task group would wrap it
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return outcome


async def _cancel_on_interrupt(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, *_heard()) as signals:
        await anext(signals)
    scope.cancel()


def _interrupt_by_signals() -> None:
    """Let signals interrupt as Ctrl-C does: else they would leave a worker of our own behind."""
    for number in _heard():
        signal.signal(number, signal.default_int_handler)


def _heard() -> list[signal.Signals]:
    """Those that end us, but for what `nohup` has us ignore."""
    ending = (signal.SIGTERM, signal.SIGHUP)
    return [number for number in ending if signal.getsignal(number) is not signal.SIG_IGN]


# --- what is published, and how ---


def _source(options: argparse.Namespace) -> Synthetic | OrderFile:
    if options.file is None:
        try:
            return Synthetic(
                50 if options.orders is None else options.orders,
                20 if options.duplicates is None else options.duplicates,
                1 if options.seed is None else options.seed,
            )
        except ValueError as error:
            raise BadSource(str(error)) from None
    timed = options.event_time or options.speed is not None
    source = OrderFile(
        options.file, dict(options.map), options.keep, timed=timed, limit=options.limit
    )
    if source.left_out:
        names = ", ".join(source.left_out)
        _complain(f"columns that are not sent: {names} (--map or --keep sends them)", 0)
    return source


def _pace(options: argparse.Namespace, source: Synthetic | OrderFile) -> Pace:
    if options.rate is not None:
        return at_rate(options.rate)
    if options.speed is not None:
        return at_own_times(source.first_ms, options.speed)
    return at_once


def _pace_text(options: argparse.Namespace) -> str:
    if options.rate is not None:
        return f"{options.rate:,.12g} orders per second"
    if options.speed is not None:
        return f"the file's own times, {options.speed:,.12g} times as fast"
    return "as fast as possible"


def _mismatch(options: argparse.Namespace) -> str | None:
    """What is wrong with options that do not go together."""
    if options.compare:
        return _mismatch_in_comparison(options)
    synthetic = [f"--{name}" for name in SYNTHETIC_ONLY if getattr(options, name) is not None]
    of_files = [f"--{name.replace('_', '-')}" for name in FILE_ONLY if getattr(options, name)]
    if options.file is not None and synthetic:
        return f"{synthetic[0]} is for synthetic orders, without a file"
    if options.file is None and of_files:
        return f"{of_files[0]} needs a file"
    fields = [field for field, _ in options.map]
    if twice := [field for field in fields if fields.count(field) > 1]:
        return f"--map gives {twice[0]} two columns"
    return None


def _mismatch_in_comparison(options: argparse.Namespace) -> str | None:
    if options.report is None:
        return "--compare needs --report, where its page is written"
    replaying = {**vars(options), "compare": None, "report": None, "json": False}
    if replaying != vars(_parser().parse_args([])):
        return "--compare replays nothing, and goes with --report and --json alone"
    return None


# --- what is said ---


def _complain(sentence: str, code: int) -> int:
    print(f"replay_load: {sentence}", file=sys.stderr)
    return code


def _of_publishing(error: PublishFailed, ids: EntryIds) -> str:
    certain = f"{len(ids):,} orders are in the stream"
    if isinstance(error, PublishRefused):
        refused = sum(entry_id is None for entry_id in error.ids)
        return f"Redis refused {refused:,} orders: {error}; {certain}"
    unsure = f", and {error.unsure:,} more may be" if error.unsure else ""
    return f"Redis: {error}; {certain}{unsure}"


def _report(done: Done, options: argparse.Namespace) -> int:
    published, compared, figures = done
    if options.json:
        print(as_json(published, compared))
    else:
        print("\n".join([published.as_text(), *([compared.as_text()] if compared else [])]))
    if figures:
        try:
            print(f"report: {write(options.report, figures)}", file=sys.stderr)
        except ReportFailed as error:
            return _complain(str(error), 1)
    return 0 if compared is None or compared.as_expected else 1


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "")


def _progress() -> Progress:
    """Bars on stderr while it is a terminal; stdout is left to the report."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
    return Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )


# --- the options ---


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="replay_load.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_source(parser)
    _add_pace(parser)
    add = parser.add_argument
    add("--stream", metavar="NAME", help="default: the first of WORKER_STREAMS")
    add("--wait", action="store_true", help=WAIT_HELP)
    add(
        "--timeout",
        type=_duration,
        default=60_000,
        metavar="DURATION",
        help="--wait gives up once nothing was recorded for so long (default 60s)",
    )
    add("--json", action="store_true", help="report one JSON object")
    add("--report", type=Path, metavar="DIR", help=REPORT_HELP)
    add("--compare", type=Path, nargs=2, metavar="DIR", help=COMPARE_HELP)
    add(
        "--embedded",
        action="store_true",
        help="with a worker, Redis and Postgres of its own, gone at the end; includes --wait",
    )
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("source").add_argument
    add("file", nargs="?", type=Path, metavar="FILE", help=FILE_HELP)
    add("--orders", type=int, metavar="N", help="synthetic orders of distinct content (default 50)")
    add("--duplicates", type=int, metavar="N", help="repeats spread among them (default 20)")
    add("--seed", type=int, metavar="N", help="the same seed gives the same orders (default 1)")
    add(
        "--map",
        type=_mapping,
        action="append",
        default=[],
        metavar="FIELD=COLUMN",
        help=f"the column of a field of an order, or of {TIME!r}; may be repeated",
    )
    add(
        "--keep",
        action="append",
        default=[],
        metavar="COLUMN",
        help="send this column, too, as part of the order's content; may be repeated",
    )
    add(
        "--limit", type=_count, metavar="N", help="send the file's first N orders, and read no more"
    )


def _add_pace(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pace (default: as fast as possible)")
    paces = group.add_mutually_exclusive_group()
    paces.add_argument("--rate", type=_positive, metavar="N", help="orders per second")
    paces.add_argument(
        "--speed", type=_positive, metavar="X", help="the file's own times, X times as fast"
    )
    group.add_argument("--event-time", action="store_true", help=EVENT_TIME_HELP)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return number


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def _duration(text: str) -> int:
    """Milliseconds."""
    try:
        return cast("int", duration_ms(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _mapping(text: str) -> tuple[str, str]:
    field, equals, column = text.partition("=")
    if not (equals and column and field in (*FIELDS, TIME)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not FIELD=COLUMN with a field out of {', '.join((*FIELDS, TIME))}"
        )
    return field, column
