"""The soak of `soak.py` for about a minute. The whole is run by hand: see there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.full.soak import soak
from tests.chaos.full.soaking import Plan
from tests.chaos.ordeal import seed_of_run
from tests.servers import Servers

pytestmark = pytest.mark.anyio

ORDERS = 75_000
RATE = 1_500.0
SECONDS_MAX = 240.0  #: on a busy machine; fewer orders then
WINDOW_S = 10  #: so that the claims are as many as they will ever be before the run is over


async def test_nothing_grows_in_a_minute_of_orders_and_faults_and_the_books_balance(
    own_servers: Servers, tmp_path: Path, told: Callable[[str], None]
) -> None:
    plan = Plan(ORDERS, RATE, SECONDS_MAX, WINDOW_S, seed_of_run())
    wrong = await soak(own_servers, tmp_path, plan)
    told((tmp_path / "soak.json").read_text())
    assert wrong == [], f"ORDERGATE_CHAOS_SEED={plan.seed}"
