"""The command line: `python -m worker`."""

import argparse
import sys
from collections.abc import Sequence

from worker.errors import BadSettings, BadUsage, OrdergateError, SchemaMismatch
from worker.operate.parsers import add_commands

DESCRIPTION = """\
Takes orders in from Redis Streams. Without a command: run a worker until SIGTERM or Ctrl-C.

Every entry ends as accepted, duplicate or rejected, on record in Postgres, with one InfluxDB point.
Addresses and settings come from the environment (REDIS_URL, DATABASE_URL, INFLUXDB_URL, WORKER_…);
the README lists them all. No servers at hand? `python -m worker demo`, or `--embedded`.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. 0 is success, 1 a difference or a failure, 2 wrong usage or settings."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:  # before the worker listens to signals
        return 130
    except (BadSettings, BadUsage, SchemaMismatch) as error:
        print(f"ordergate: {error}", file=sys.stderr)
        return 2
    except OrdergateError as error:
        print(f"ordergate: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """The whole command line, its commands included."""
    words = argparse.ArgumentParser(
        prog="python -m worker",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument(
        "--drain",
        action="store_true",
        help="exit 0 once the streams are read to their end and nothing is pending",
    )
    words.add_argument(
        "--embedded",
        nargs="?",
        const="ordergate-data",
        metavar="DIR",
        help="start Redis and Postgres of its own, their files in DIR (default: ordergate-data)",
    )
    words.set_defaults(run=_worker)
    commands = words.add_subparsers(title="commands", metavar="")
    demo = commands.add_parser(
        "demo", help="the whole way of 50 orders and 20 duplicates, on servers of its own"
    )
    demo.set_defaults(run=_demo)
    migrate = commands.add_parser(
        "migrate", help="bring the schema in Postgres up to date, making it where it is missing"
    )
    migrate.set_defaults(run=_migrate)
    add_commands(commands.add_parser)
    return words


# Each command imports what it needs, so that --help answers at once.


def _worker(options: argparse.Namespace) -> int:
    from worker.run import run_worker  # noqa: PLC0415

    return run_worker(embedded=options.embedded, drain=options.drain)


def _demo(_options: argparse.Namespace) -> int:
    from worker.demo import run_demo  # noqa: PLC0415

    return run_demo()


def _migrate(_options: argparse.Namespace) -> int:
    from worker.run import run_migrate  # noqa: PLC0415

    return run_migrate()


if __name__ == "__main__":
    sys.exit(main())
