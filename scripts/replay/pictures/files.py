"""The directory of a report: a page, and the figures it was made of."""

from pathlib import Path

from scripts.replay.pictures.comparison import Named
from scripts.replay.pictures.figures import Figures, FiguresUnreadable, as_json, from_json
from scripts.replay.pictures.page import page_of

PAGE, FIGURES, COMPARISON = "report.html", "figures.json", "comparison.html"


class ReportFailed(Exception):
    """A report cannot be written or read; `str(error)` is one sentence with its path."""


def prepare(directory: Path) -> None:
    """Make sure that a report can be written there, before a replay begins.

    :raises ReportFailed: it cannot
    """
    _write(directory, ".writable", b"")
    (directory / ".writable").unlink()


def write(directory: Path, figures: Figures) -> Path:
    """Write page and figures over those of an earlier report; gives the page. :raises ReportFailed:"""
    _write(directory, FIGURES, as_json(figures))
    return _write(directory, PAGE, page_of(figures))


def write_comparison(directory: Path, page: bytes) -> Path:
    """Write the page of a comparison; gives its path. :raises ReportFailed:"""
    return _write(directory, COMPARISON, page)


def read(directory: Path) -> Figures:
    """The figures of a report. :raises ReportFailed: there are none, or none that can be read"""
    path = directory / FIGURES
    try:
        return from_json(path.read_bytes())
    except FiguresUnreadable as error:
        raise ReportFailed(f"{path}: {error}") from error
    except OSError as error:
        raise ReportFailed(f"{path}: {error.strerror or error}") from error


def named(first: Path, second: Path) -> tuple[Named, Named]:
    """Two reports, named as their directories are; as their paths where these are equal.

    :raises ReportFailed: as `read`
    """
    names = (first.resolve().name, second.resolve().name)
    if names[0] == names[1]:
        names = (str(first), str(second))
    one, other = (it.encode(errors="replace").decode() for it in names)  # a path may be no text
    return Named(one, read(first)), Named(other, read(second))


def _write(directory: Path, name: str, content: bytes) -> Path:
    """Write a file as a whole or not at all."""
    path, new = directory / name, directory / f"{name}.new"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        new.write_bytes(content)
        new.replace(path)
    except OSError as error:
        raise ReportFailed(f"{error.filename or path}: {error.strerror or error}") from error
    return path
