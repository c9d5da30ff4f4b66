"""What commands print: JSON for programs; for people tables and lines, plain where nobody looks.

Nothing that a producer has sent reaches a terminal as it is: see `printable`.
"""

import sys
from collections.abc import Sequence

import msgspec


def print_json(value: object) -> None:
    """One JSON document."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_line(text: str = "") -> None:
    """One line; whatever standard output cannot show is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    shown = text.encode(encoding, errors="backslashreplace").decode(encoding)
    sys.stdout.write(shown + "\n")


def print_sheet(rows: Sequence[tuple[str, str]]) -> None:
    """Labels with what they say; one that says nothing is left out."""
    width = max((len(label) for label, _ in rows), default=0) + 2
    for label, text in rows:
        for number, part in enumerate(text.splitlines()):
            print_line(f"{'' if number else label:{width}}{part}")


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: with rules and wrapped to the terminal where there is one, else columns of plain text."""
    if sys.stdout.isatty():
        _print_rich(headings, rows)
        return
    for line in table_lines(headings, rows):
        print_line(line)


def table_lines(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of plain text."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    return [
        "  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in (headings, *rows)
    ]


def _print_rich(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*headings)
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    Console().print(table)


def printable(text: str, length_max: int | None = None) -> str:
    """Text as it is safe to show: what is not printable is escaped, bytes that are no UTF-8 are `\\xff`.

    :param length_max: characters to show at most, and a note of how many more there are
    """
    cut = text if length_max is None else text[:length_max]
    shown = cut if cut.isprintable() else "".join(map(_escaped, cut))
    more = len(text) - len(cut)
    return f"{shown}… and {more:,} more" if more else shown


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte, by `surrogateescape`
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
