"""The words of the operator's commands. Imports nothing heavy: `--help` answers at once."""

import argparse
from collections.abc import Callable

Add = Callable[..., argparse.ArgumentParser]  #: adds a parser by name

EXPLAIN = """\
Say what became of an order or an entry, and why.

  python -m worker explain A-17                     an order id
  python -m worker explain 1767225600000-3          an entry id
  python -m worker explain symbol=BTCUSDT side=buy type=limit quantity=1 price=45000
  python -m worker explain --payload '{"symbol": "BTCUSDT", …}'

Exit code 0: it is known; 1: it is not, or the server that knows does not answer; 2: wrong usage.
"""

DEAD_LETTERS = """\
Look at the entries that were rejected, send them again, or remove them.

A letter is named by the id of the entry that was rejected. `replay` and `purge` take ids, or filters,
or --all.
What is sent again is a new entry; which letter it comes from is noted in Redis and in the table `replays`.
"""

AUDIT = """\
Prove that every entry read has exactly one outcome, and each outcome its point.

Reads Redis, Postgres and InfluxDB, of a stream or a range of time, while workers go on. Lists what differs.

Exit code 0: balanced; 1: differences, or a server does not answer; 2: wrong usage.
"""

CHECK = """\
Look once at everything that orders depend on: settings, servers, rights, schema, streams, workers.

Each line is ok, warn or fail, with what to do, and the command that mends. Writes one point of measurement
worker_check to InfluxDB, to prove that it takes points; changes nothing else.

Exit code 0: nothing fails; 1: something does; 2: wrong usage or settings.
"""

STATUS = """\
Say how far each stream is: what waits, what is pending and with whom, rates, outcomes, points, dead letters.

Exit code 0; 1: a server does not answer, the rest is told; 2: wrong usage. With --watch 0, after Ctrl-C.
"""


def add_commands(add: Add) -> None:
    """Add the commands of operators."""
    _command(add, "check", "look at everything orders depend on", CHECK).set_defaults(run=_check)
    status = _command(add, "status", "say how far each stream is, and how fast", STATUS)
    status.add_argument(
        "--watch", nargs="?", const="1s", metavar="EVERY", help="go on, live, every 1s or so often"
    )
    status.set_defaults(run=_status)
    _add_explain(add)
    _add_dead_letters(add)
    _add_audit(add)


def _command(
    add: Add,
    name: str,
    help_text: str,
    description: str | None = None,
) -> argparse.ArgumentParser:
    parser = add(
        name,
        help=help_text,
        description=description or f"{help_text[0].upper()}{help_text[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--stream",
        action="append",
        default=[],
        metavar="NAME",
        help="this stream; may be given several times (default: those of WORKER_STREAMS)",
    )
    return parser


def _add_range(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--since", metavar="WHEN", help=f"{what} then or later: 2h ago, or 2026-01-01T12:00Z"
    )
    parser.add_argument("--until", metavar="WHEN", help=f"{what} before then")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, not {text!a}")
    return name, value


_count.__name__ = "number of at least 1"  # argparse names the type in its message


def _add_explain(add: Add) -> None:
    parser = _command(add, "explain", "say what became of an order, and why", EXPLAIN)
    parser.add_argument(
        "what", nargs="*", metavar="WHAT", help="an entry id, an order id, or fields as name=value"
    )
    parser.add_argument("--order-id", metavar="ID", help="an order id, whatever it looks like")
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        type=_assignment,
        metavar="NAME=VALUE",
        help="a field of an order; may be given several times",
    )
    parser.add_argument("--payload", metavar="JSON", help="the order as one JSON object")
    parser.set_defaults(run=_explain)


def _add_dead_letters(add: Add) -> None:
    parser = add(
        "dead-letters",
        help="list, show, replay or purge what was rejected",
        description=DEAD_LETTERS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="", required=True).add_parser
    listed = _action(actions, "list", "list letters, oldest first")
    listed.set_defaults(limit=50)
    shown = _action(actions, "show", "show letters whole")
    shown.add_argument("--raw", action="store_true", help="names and values in turn, byte for byte")
    _add_replay(_action(actions, "replay", "send the entries of letters again"))
    purge = _action(actions, "purge", "remove letters; the rejections in Postgres stay")
    purge.add_argument("--yes", action="store_true", help="do not ask")
    for writing in (shown, purge):
        _add_all(writing)


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_assignment,
        metavar="NAME=VALUE",
        help="with this field set; of a payload, its member, as text",
    )
    parser.add_argument(
        "--unset", action="append", default=[], metavar="NAME", help="without this field"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be sent; send nothing"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="even what was sent again before: a new entry each time",
    )
    _add_all(parser)


def _add_all(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--all", action="store_true", help="every letter, where no other choice is made"
    )


def _action(add: Add, name: str, help_text: str) -> argparse.ArgumentParser:
    parser = _command(add, name, help_text)
    parser.add_argument("ids", nargs="*", metavar="ENTRY-ID", help="the rejected entry's id")
    parser.add_argument(
        "--code", action="append", default=[], help="rejected for this; may be given several times"
    )
    parser.add_argument("--symbol", help="the order's symbol")
    parser.add_argument("--limit", type=_count, metavar="N", help="at most so many")
    _add_range(parser, "set aside")
    parser.set_defaults(run=_dead_letters, action=name)
    return parser


def _add_audit(add: Add) -> None:
    parser = _command(add, "audit", "prove that every entry has one outcome, and its point", AUDIT)
    _add_range(parser, "entries of")
    parser.add_argument(
        "--limit", type=_count, default=20, metavar="N", help="list at most so many of a kind (20)"
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="note missing points as owed; correct or remove claims that contradict Postgres",
    )
    parser.set_defaults(run=_audit)


def _check(options: argparse.Namespace) -> int:
    from worker.operate.check import run_check  # noqa: PLC0415

    return run_check(options)


def _status(options: argparse.Namespace) -> int:
    from worker.operate.status import run_status  # noqa: PLC0415

    return run_status(options)


def _explain(options: argparse.Namespace) -> int:
    from worker.operate.explain import run_explain  # noqa: PLC0415

    return run_explain(options)


def _dead_letters(options: argparse.Namespace) -> int:
    from worker.operate.dead_letters import run_dead_letters  # noqa: PLC0415

    return run_dead_letters(options)


def _audit(options: argparse.Namespace) -> int:
    from worker.operate.audit import run_audit  # noqa: PLC0415

    return run_audit(options)
