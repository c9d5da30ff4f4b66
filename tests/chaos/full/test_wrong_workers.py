"""The whole matrix: each wrong worker, and each technique that could catch it."""

from collections.abc import Callable

import pytest

from tests.chaos.sweep import stages
from tests.chaos.techniques import PRODUCERS, WORKERS
from tests.chaos.test_wrong_workers import few_times_caught, prepared, table, tried_on
from tests.chaos.wrong_workers import WRONG
from tests.servers import Servers

pytestmark = pytest.mark.anyio


async def test_each_wrong_worker_is_tried_with_each_technique(
    clean_servers: Servers, told: Callable[[str], None]
) -> None:
    matrix: dict[str, dict[str, str]] = {}
    async with stages(clean_servers) as on:
        await prepared(on)
        for name, wrong in WRONG.items():
            tried = PRODUCERS if wrong.is_producer else WORKERS
            matrix[name] = await tried_on(on, wrong, tried, enough=len(tried) + 1)
    told(table(matrix))
    assert not few_times_caught(matrix)
