"""Fuzzing guided by coverage: `make fuzz`, or `python -m tests.fuzz.fuzz_order [--seconds N] [--keep]`.

atheris changes entries of the corpus and keeps those that reach new code in the pure modules; each is judged
as all the others are. An entry that fails is printed. With `--keep` the corpus is given those few that reach
what no other of it does.

atheris has wheels for Linux on x86-64 only, and no test needs it: it is the extra `fuzz`.
Source: https://github.com/google/atheris
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.fuzz import corpus

ROOT = Path(__file__).parents[2]
LENGTH_MAX = 4_096  #: bytes of an entry; what is longer is left to the mutator
KNOWN = ".known"
FUZZED = ["worker.fields", "worker.order", "worker.forms", "worker.points"]


def fuzz(seconds: int, *, keep: bool = False) -> str:
    """Fuzz for so long; gives libFuzzer's own figures.

    :raises AssertionError: an entry failed; the message holds it
    """
    with tempfile.TemporaryDirectory(prefix="ordergate-fuzz-") as name:
        known, found = _corpus_in(Path(name, "known")), _corpus_in(Path(name, "found"))
        log = _libfuzzer(name, found, f"-max_total_time={seconds}")
        if keep:
            _libfuzzer(name, known, found, "-merge=1")
            new = [path.read_bytes() for path in known.iterdir() if path.suffix != KNOWN]
            corpus.save([*corpus.load(), *map(corpus.from_bytes, new)])
        return "\n".join(line for line in log.splitlines() if _is_figure(line))


def _corpus_in(directory: Path) -> Path:
    directory.mkdir()
    for number, fields in enumerate(corpus.load()):
        (directory / f"{number}{KNOWN}").write_bytes(corpus.to_bytes(fields))
    return directory


def _is_figure(line: str) -> bool:
    return line.startswith(("stat::", "Done")) or "DONE" in line or "INITED" in line


def _libfuzzer(directory: str, *arguments: str | Path) -> str:
    options = [f"-max_len={LENGTH_MAX}", "-print_final_stats=1", f"-artifact_prefix={directory}/"]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.fuzz_order", "--child", *options, *arguments],
        cwd=ROOT,
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

    command = f"{sys.executable} -m tests.fuzz.fuzz_order --child"  # libFuzzer runs it, to merge
    atheris.Setup([command, *arguments], one_entry)
    atheris.Fuzz()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fuzz what an entry is parsed to.")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--keep", action="store_true", help="add to the corpus")
    given = parser.parse_args()
    if find_spec("atheris") is None:
        sys.exit("atheris is not here: make fuzz installs it, where it has a wheel")
    print(fuzz(given.seconds, keep=given.keep))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2:])
    else:
        main()
