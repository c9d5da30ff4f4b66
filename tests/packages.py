"""Programs from Debian's and Ubuntu's packages, unpacked into `.services/`: nothing is installed, and no
root is needed.
"""

import fcntl
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

SERVICES = Path(__file__).resolve().parent.parent / ".services"
PACKAGES_S_MAX = 300.0  #: seconds for one call of apt-get


class PackagesUnavailable(Exception):
    """A program cannot be had from packages here; the message says why."""


def unpacked(
    name: str, packages: Sequence[str], tries: Sequence[str], *, with_needs: bool = False
) -> Path:
    """The root of what some packages hold, made by the first who asks.

    :param name: of its folder
    :param tries: a program in it, and arguments, by which a library that is missing shows here and not in
        every test
    :param with_needs: unpack what these packages depend on, too, so far as the system lacks it
    :raises PackagesUnavailable: not Debian or Ubuntu, or the packages cannot be had or run
    """
    if not shutil.which("apt-get"):
        raise PackagesUnavailable("it needs Debian's or Ubuntu's packages")
    system = platform.freedesktop_os_release()
    root = SERVICES / f"{name}-{system['ID']}-{system.get('VERSION_ID', '')}-{platform.machine()}"
    try:
        with _alone(SERVICES):
            if not root.exists():
                _unpack(root, packages, tries, with_needs=with_needs)
    except OSError as error:
        raise PackagesUnavailable(str(error)) from error
    return root


def environment(root: Path) -> dict[str, str]:
    """What programs in such a folder need to find their libraries and fonts."""
    library = root / "usr/lib" / f"{platform.machine()}-linux-gnu"
    folders = [library, *sorted(path for path in library.glob("*") if list(path.glob("*.so*")))]
    return {
        "LD_LIBRARY_PATH": ":".join(map(str, folders)),
        **({"FONTCONFIG_SYSROOT": str(root)} if not Path("/etc/fonts/fonts.conf").exists() else {}),
    }


def printed(
    command: Sequence[str],
    directory: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end; give what it printed.

    :raises PackagesUnavailable: it failed, with the end of what it said
    """
    try:
        ended = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, **(variables or {})},
            capture_output=True,
            text=True,
            timeout=PACKAGES_S_MAX,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        raise PackagesUnavailable(f"{Path(command[0]).name}: {str(said).strip()[-300:]}") from error
    return ended.stdout


@contextmanager
def _alone(directory: Path) -> Generator[None]:
    """Keep the other test runs in this checkout out of a directory."""
    directory.mkdir(exist_ok=True)
    held = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _unpack(root: Path, packages: Sequence[str], tries: Sequence[str], *, with_needs: bool) -> None:
    with tempfile.TemporaryDirectory(dir=root.parent) as name:
        scratch = Path(name)
        _download(scratch, packages, with_needs=with_needs)
        for package in scratch.glob("*.deb"):
            printed(["dpkg", "-x", str(package), f"{scratch}/root"])
        program, *arguments = tries
        found = scratch / "root"
        printed([f"{found}/{program}", *arguments], None, environment(found))
        found.rename(root)


def _download(directory: Path, packages: Sequence[str], *, with_needs: bool) -> None:
    """Fetch packages, with package lists of our own where the system's are missing or too old.

    Lists of our own need no root, and leave the system as it is.
    """
    try:
        _fetch(["apt-get"], directory, packages, with_needs=with_needs)
    except PackagesUnavailable:
        (directory / "lists/partial").mkdir(parents=True)
        (directory / "archives/partial").mkdir(parents=True)
        own = ["-o", f"Dir::State::Lists={directory}/lists", "-o", f"Dir::Cache={directory}"]
        apt = ["apt-get", *own, "-o", "Acquire::http::Timeout=30"]
        subprocess.run([*apt, "update"], capture_output=True, timeout=PACKAGES_S_MAX, check=False)
        _fetch(apt, directory, packages, with_needs=with_needs)


def _fetch(
    apt: Sequence[str], directory: Path, packages: Sequence[str], *, with_needs: bool
) -> None:
    wanted = set(packages)
    if with_needs:
        asked = ["install", "--simulate", "--no-install-recommends", "-qq", *packages]
        steps = map(str.split, printed([*apt, *asked]).splitlines())
        wanted |= {words[1] for words in steps if words[0] == "Inst"}
    printed([*apt, "download", *sorted(wanted)], directory)
