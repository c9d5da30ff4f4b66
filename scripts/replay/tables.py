"""Rows of a CSV or JSONL file, plain or compressed, as text: numbers never pass through a float."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, TextIO, cast

SURROGATE = re.compile(r"[\ud800-\udfff]")
_JSON = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)


class BadSource(Exception):
    """The file cannot be replayed as asked; `str(error)` is a sentence with its path and line."""


class Row(NamedTuple):
    """The cells of one row by column, without those that are empty in CSV or null in JSON.

    :ivar nested: columns that hold a list or an object, which an order's fields cannot
    """

    line: int
    cells: dict[str, str]
    nested: frozenset[str] = frozenset()


class Table(NamedTuple):
    """A file's rows; `header` is empty for JSONL, where every row names its own columns."""

    header: Sequence[str]
    rows: Iterator[Row]


@contextmanager
def reading(path: Path) -> Generator[Table]:
    """Open a file by its suffixes and give its rows one by one.

    :raises BadSource: for whatever is wrong with it, from the block as well
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    opened = _OPENERS[suffixes.pop()] if suffixes and suffixes[-1] in _OPENERS else _plain
    table = _TABLES.get(suffixes[-1]) if suffixes else None
    if table is None:
        raise BadSource(f"{path}: not .csv, .jsonl or .ndjson, plain or with .gz, .bz2 or .xz")
    try:
        with opened(path) as file:
            yield table(path, io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
    except UnicodeDecodeError as error:
        raise BadSource(f"{path} is not UTF-8: {error}") from error
    except csv.Error as error:
        raise BadSource(f"{path} is not CSV: {error}") from error
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise BadSource(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise BadSource(f"{path}: {error.strerror or error}") from error


def _plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _gzip(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path))


def _bz2(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", bz2.open(path))


def _xz(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", lzma.open(path))


def _csv(path: Path, text: TextIO) -> Table:
    lines = csv.reader(text, strict=True)
    header = next(lines, None) or []
    if twice := [column for n, column in enumerate(header) if column in header[:n]]:
        raise BadSource(f"{path} has two columns named {twice[0]!r}")
    rows = (_csv_row(path, lines.line_num, header, cells) for cells in lines if cells)
    return Table(header, rows)


def _csv_row(path: Path, line: int, header: Sequence[str], cells: Sequence[str]) -> Row:
    if len(cells) != len(header):
        raise BadSource(f"{path}, line {line} has {len(cells)} cells, its header {len(header)}")
    named = zip(header, cells, strict=True)
    return Row(line, {column: cell for column, cell in named if cell})


def _jsonl(path: Path, text: TextIO) -> Table:
    lines = enumerate(text, start=1)
    return Table((), (_json_row(path, line, source) for line, source in lines if source.strip()))


def _json_row(path: Path, line: int, source: str) -> Row:
    try:
        found: object = _JSON.decode(source)
    except (ValueError, RecursionError) as error:
        raise BadSource(f"{path}, line {line} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadSource(f"{path}, line {line} is not a JSON object")
    values = cast("dict[str, object]", found)
    cells = {name: _cell(value) for name, value in values.items() if value is not None}
    if SURROGATE.search("".join([*cells, *filter(None, cells.values())])):
        raise BadSource(f"{path}, line {line} holds half of a surrogate pair, which is no text")
    nested = frozenset(name for name, cell in cells.items() if cell is None)
    return Row(line, {name: cell for name, cell in cells.items() if cell is not None}, nested)


def _cell(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else None


_OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {".gz": _gzip, ".bz2": _bz2, ".xz": _xz}
_TABLES: dict[str, Callable[[Path, TextIO], Table]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
}
