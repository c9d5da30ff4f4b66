"""The operator's commands, run in this process on a place: what they print, and their exit codes."""

import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from anyio import to_thread

from tests.isolation import Place
from worker.__main__ import main


class Reply(NamedTuple):
    """What a command has printed, and its exit code."""

    code: int
    output: str
    errors: str

    @property
    def document(self) -> Any:  # noqa: ANN401 - each command has its own
        """The JSON that it printed."""
        return json.loads(self.output)


Ask = Callable[..., Awaitable[Reply]]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """`await ask(place, "explain", "A-17")` runs that command there."""

    async def run(place: Place, *words: str) -> Reply:
        for name, value in place.variables.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        code = await to_thread.run_sync(_code, words)
        printed = capsys.readouterr()
        return Reply(code, str(printed.out), str(printed.err))

    return run


def _code(words: tuple[str, ...]) -> int:
    try:
        return main(words)
    except SystemExit as end:  # as argparse ends
        return int(end.code or 0)
