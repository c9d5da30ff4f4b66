"""Workers that are wrong on purpose: each is caught by two techniques at least, and the right one by none."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import cast
from unittest.mock import patch

import pytest

from tests.chaos import sweep, techniques
from tests.chaos.scenarios import ALL, Stage
from tests.chaos.sweep import Stages, stages
from tests.chaos.techniques import PRODUCERS, WORKERS, Technique
from tests.chaos.wrong_workers import WRONG, Wrong
from tests.servers import Servers

pytestmark = pytest.mark.anyio

WAIT_S_MAX = 8.0  #: a wrong worker may never be done
CAUGHT_BY_MIN = 2
CAUGHT, PASSED = "caught", "-"
WAITED = "waits"  #: in vain, which a slow machine does too: it does not count
DEFINITION = "SELECT pg_get_functiondef('record_outcomes'::regproc) AS text"


@pytest.mark.long
async def test_a_right_worker_passes_every_technique(clean_servers: Servers) -> None:
    async with stages(clean_servers) as on:
        for technique in (WORKERS | PRODUCERS).values():
            await technique(on)


@pytest.mark.long
async def test_each_wrong_worker_is_caught_by_two_techniques(
    clean_servers: Servers, told: Callable[[str], None]
) -> None:
    matrix: dict[str, dict[str, str]] = {}
    async with stages(clean_servers) as on:
        await prepared(on)
        for name, wrong in WRONG.items():
            tried = PRODUCERS if wrong.is_producer else WORKERS
            matrix[name] = await tried_on(on, wrong, tried)
    told(table(matrix))
    assert not few_times_caught(matrix)


async def prepared(on: Stages) -> None:
    """Have every scenario prepared by right workers."""
    for stage in on.all:
        for scenario in ALL:
            await stage.set(scenario)


def few_times_caught(matrix: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Those that too few techniques have caught."""
    return [name for name, row in matrix.items() if _count(row) < CAUGHT_BY_MIN]


async def tried_on(
    on: Stages, wrong: Wrong, tried: Mapping[str, Technique], enough: int = CAUGHT_BY_MIN
) -> dict[str, str]:
    """Which techniques fail for a wrong worker; none is tried any more once so many did."""
    row: dict[str, str] = {}
    for name in dict.fromkeys((*wrong.by, *tried)):
        if _count(row) < enough:
            row[name] = await caught(on, wrong, tried[name])
    return row


def _count(row: Mapping[str, str]) -> int:
    return sum(cell == CAUGHT for cell in row.values())


async def caught(on: Stages, wrong: Wrong, technique: Technique) -> str:
    """How a technique fails for a wrong worker, if it does."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(sweep, "RUN_S_MAX", WAIT_S_MAX))
        stack.enter_context(patch.object(techniques, "SETTLED_S_MAX", WAIT_S_MAX))
        stack.enter_context(wrong.make())
        async with wrong_schema(on.all, wrong.sql):
            try:
                await technique(on)
            except Exception as error:  # noqa: BLE001 - however it shows
                return WAITED if _is_time_out(error) else CAUGHT
    return PASSED


def _is_time_out(error: Exception) -> bool:
    if isinstance(error, ExceptionGroup):
        return all(map(_is_time_out, cast("ExceptionGroup[Exception]", error).exceptions))
    return isinstance(error, TimeoutError)


@asynccontextmanager
async def wrong_schema(all_stages: list[Stage], sql: Mapping[str, str]) -> AsyncGenerator[None]:
    """Have the schemas record as the wrong worker does."""
    if not sql:
        yield
        return
    definitions = [(stage.place, await _definition(stage)) for stage in all_stages]
    for place, text in definitions:
        await place.postgres.execute(_changed(text, sql))
    try:
        yield
    finally:
        for place, text in definitions:
            await place.postgres.execute(text)


async def _definition(stage: Stage) -> str:
    [row] = await stage.place.fetch(DEFINITION)
    return row["text"]


def _changed(text: str, changes: Mapping[str, str]) -> str:
    for right, wrong in changes.items():
        assert right in text
        text = text.replace(right, wrong)
    return text


def table(matrix: Mapping[str, Mapping[str, str]]) -> str:
    """Which wrong worker is caught by what, as Markdown."""
    names = list(WORKERS | PRODUCERS)
    head = ["wrong worker", *names]
    rows = [[name, *(row.get(it, "") for it in names)] for name, row in matrix.items()]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
