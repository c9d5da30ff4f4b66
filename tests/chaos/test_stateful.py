"""Any sequence of what producers, workers and servers do ends as the reference says.

Hypothesis searches for a sequence that does not, and shrinks it to the few steps that matter. The search is
the same each time: see `tests.chaos.full.test_stateful` for a longer one that is not.
"""

from collections.abc import Callable

import pytest

from tests.chaos.story import Deed, search
from tests.servers import Servers

SEED, EXAMPLES, STEPS = 6, 16, 20


@pytest.mark.long
def test_whatever_happens_ends_as_the_reference_says(
    servers: Servers, told: Callable[[str], None]
) -> None:
    with Deed(servers) as deed:
        search(deed, seed=SEED, examples=EXAMPLES, steps=STEPS)
    told(f"{deed}")
    assert deed.done["check"] >= EXAMPLES
    assert deed.done.total() > 5 * EXAMPLES
