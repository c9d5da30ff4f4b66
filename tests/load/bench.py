"""Measure Ordergate on servers of its own, beside the floor and others.

    make bench                            the contest: who drains a backlog how fast, at what cost
    make bench ARGS='latency --help'      from XADD to commit, under a steady load and in bursts
    make bench ARGS='growth --help'       backlogs, tables, workers, duplicates, fields, storms
    make bench ARGS='start'               start and stop
    make bench ARGS='infrastructure'      what the tests' own ground costs
    make bench ARGS='all --write'         all of them, into docs/performance.md
    make bench-guard                      whether it became slower since the last committed figures

Figures of a shared machine are noisy: medians with their range, to be compared within one run only.
"""

import argparse
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple

import anyio

from tests.load import contest_section, growth, guard, infrastructure_bench, latency, startup
from tests.load.figures import dumped
from tests.load.sections import Section, write

Measure = Callable[[argparse.Namespace], Coroutine[Any, Any, list[Section]]]


class Command(NamedTuple):
    """A word of the command line: its options, and what it measures."""

    options: Callable[[argparse.ArgumentParser], None]
    measure: Measure


COMMANDS = {
    "contest": Command(contest_section.options, contest_section.measure),
    "latency": Command(latency.options, latency.measure),
    "growth": Command(growth.options, growth.measure),
    "start": Command(startup.options, startup.measure),
    "infrastructure": Command(infrastructure_bench.options, infrastructure_bench.measure),
    "guard": Command(guard.options, guard.measure),
}
EVERY = "all"
PAGE = ("contest", "latency", "growth", "start")  #: what docs/performance.md has


def main(words: Sequence[str]) -> int:
    """Measure, print, and write where asked to. A wrong record is an error, and no figure."""
    if words and words[0] == EVERY:
        return max(main([name, *words[1:]]) for name in PAGE)
    name, *rest = words if words and words[0] in COMMANDS else ("contest", *words)
    command = COMMANDS[name]
    options = _parser(name, command).parse_args(rest)
    sections = anyio.run(partial(command.measure, options), backend_options={"use_uvloop": True})
    if options.json:
        print(dumped({section.name: section.results for section in sections}))
    else:
        print("\n\n".join(section.table for section in sections))
    for section in sections if options.write else ():
        write(section)
    return 0


def _parser(name: str, command: Command) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"make bench ARGS='{name} …'",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print every round's figures")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md, with plots")
    command.options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
