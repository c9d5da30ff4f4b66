"""Fuzzing guided by coverage: `make fuzz`, or `python -m tests.fuzz.fuzz_order [--seconds N] [--keep]`.

atheris changes entries of the corpus and keeps those that reach new code in `worker.order` or
`worker.points`; each is judged as all the others are. An entry that fails is printed. With `--keep` the
corpus is replaced by the fewest entries that reach all that was reached.

atheris is no dependency of ours: it is put into `.services` when it is first asked for. It has wheels for
Linux on x86-64.
Source: https://github.com/google/atheris
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib import import_module
from os import environ
from pathlib import Path
from typing import Any

from tests.fuzz import corpus

ROOT = Path(__file__).parents[2]
ATHERIS = ROOT / ".services/atheris"
VERSION = "atheris==3.0.0"
LENGTH_MAX = 4_096  #: bytes of an entry; what is longer is left to the mutator
ENTRIES_MAX = 300
FUZZED = ["worker.order", "worker.points"]


class AtherisUnavailable(Exception):
    """atheris cannot be had here; the message says why."""


def install() -> None:
    """Put atheris where it is found, once. :raises AtherisUnavailable: no wheel, or no network"""
    if (ATHERIS / "atheris").is_dir():
        return
    uv = [ROOT / ".venv/bin/uv", "pip", "install", "--quiet", "--only-binary", ":all:"]
    ended = subprocess.run(
        [*uv, "--python", sys.executable, "--target", ATHERIS, VERSION],
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise AtherisUnavailable(f"{VERSION}: {ended.stderr.strip()[-300:]}")


def fuzz(seconds: int, *, keep: bool = False) -> str:
    """Fuzz for so long; gives libFuzzer's own figures.

    :raises AtherisUnavailable: see `install`
    :raises AssertionError: an entry failed; the message holds it
    """
    install()
    with tempfile.TemporaryDirectory(prefix="ordergate-fuzz-") as name:
        found, kept = Path(name, "found"), Path(name, "kept")
        found.mkdir()
        kept.mkdir()
        for number, fields in enumerate(corpus.load()):
            (found / f"corpus-{number}").write_bytes(corpus.to_bytes(fields))
        log = _libfuzzer(name, found, f"-max_total_time={seconds}")
        if keep:
            _libfuzzer(name, kept, found, "-merge=1")
            smallest = sorted(kept.iterdir(), key=lambda path: path.stat().st_size)
            corpus.save(corpus.from_bytes(path.read_bytes()) for path in smallest[:ENTRIES_MAX])
        return "\n".join(line for line in log.splitlines() if _is_figure(line))


def _is_figure(line: str) -> bool:
    return line.startswith(("stat::", "Done")) or "DONE" in line or "INITED" in line


def _libfuzzer(directory: str, *arguments: str | Path) -> str:
    options = [f"-max_len={LENGTH_MAX}", "-print_final_stats=1", f"-artifact_prefix={directory}/"]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.fuzz_order", "--child", *options, *arguments],
        cwd=ROOT,
        env={**environ, "PYTHONPATH": str(ATHERIS)},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    for failed in sorted(Path(directory).glob("*-*")):
        fields = json.dumps(corpus.from_bytes(failed.read_bytes()))
        raise AssertionError(f"{failed.name}: {fields}\n{ended.stderr[-3_000:]}")
    assert ended.returncode == 0, ended.stderr[-3_000:]
    return ended.stderr


def _child(arguments: list[str]) -> None:
    """Be libFuzzer's process, the modules fuzzed loaded with their branches counted."""
    atheris: Any = import_module("atheris")
    with atheris.instrument_imports(include=FUZZED):
        judge = import_module("tests.fuzz.judge").Judge()

    def one_entry(data: bytes) -> None:
        judge.judge(corpus.from_bytes(data))

    atheris.Setup([sys.argv[0], *arguments], one_entry)
    atheris.Fuzz()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fuzz what an entry is parsed to.")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--keep", action="store_true", help="replace the corpus")
    given = parser.parse_args()
    try:
        print(fuzz(given.seconds, keep=given.keep))
    except AtherisUnavailable as reason:
        print(f"skipped: {reason}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2:])
    else:
        main()
