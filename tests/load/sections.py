"""What a measurement gives: results for programs, a table for people, a plot; and how they get into the page.

`docs/performance.md` marks where each table goes: between `<!-- name -->` and `<!-- /name -->`. So nothing
there is typed by hand.
"""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.load.figures import dumped
from tests.load.ground import Ground

ROOT = Path(__file__).resolve().parents[2]
NOTHING = "unknown"  #: where a command prints nothing
PAGE = ROOT / "docs" / "performance.md"
FIGURES = ROOT / "docs" / "performance"


@dataclass(frozen=True)
class Section:
    """One measurement's part of the page."""

    name: str
    results: object
    table: str
    plots: Mapping[str, str] = field(default_factory=dict[str, str])  #: SVG by the file's name


def write(section: Section) -> None:
    """Put a section's table into the page, its plots and results beside it.

    :raises ValueError: the page has no place for it
    """
    FIGURES.mkdir(exist_ok=True)
    for name, svg in section.plots.items():
        (FIGURES / f"{name}.svg").write_text(svg)
    (FIGURES / f"{section.name}.json").write_text(dumped(section.results) + "\n")
    text = PAGE.read_text()
    begin, end = f"<!-- {section.name} -->\n", f"<!-- /{section.name} -->"
    place = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not place.search(text):
        raise ValueError(f"{PAGE} has no place for {section.name}: {begin.strip()}")
    PAGE.write_text(place.sub(lambda _: begin + section.table + end, text))


def _commit() -> str:
    """The commit that is measured; pages may differ from it, for they are what is written."""
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
    return _output("git", "rev-parse", "--short", "HEAD") + ("" if changed == NOTHING else "-dirty")


async def machine(ground: Ground) -> dict[str, str]:
    """What was measured on what."""
    redis = await ground.command("INFO", "server")
    [postgres] = await ground.row("SHOW server_version")
    return {
        "measured": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": _commit(),
        "processor": f"{_processor()}, {os.cpu_count()} cores, servers and clients together",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "servers": f"Redis {redis['redis_version']}, Postgres {postgres}",
    }


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*: (.*)$", text, flags=re.MULTILINE)
    return found[1] if found else platform.machine()


def _output(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or NOTHING
