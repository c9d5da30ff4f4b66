"""The same as `tests.chaos.test_stateful`, longer, and another search each time.

ORDERGATE_STATEFUL_EXAMPLES and ORDERGATE_STATEFUL_STEPS set how long, ORDERGATE_STATEFUL_SEED which.
"""

import os
import random
from collections.abc import Callable

from tests.chaos.story import Deed, search
from tests.servers import Servers

EXAMPLES = int(os.environ.get("ORDERGATE_STATEFUL_EXAMPLES") or 200)
STEPS = int(os.environ.get("ORDERGATE_STATEFUL_STEPS") or 40)
SEED = os.environ.get("ORDERGATE_STATEFUL_SEED")


def test_whatever_happens_ends_as_the_reference_says(
    servers: Servers, told: Callable[[str], None]
) -> None:
    seed = int(SEED) if SEED else random.SystemRandom().randrange(10**9)
    told(f"ORDERGATE_STATEFUL_SEED={seed}")
    with Deed(servers) as deed:
        search(deed, seed=seed, examples=EXAMPLES, steps=STEPS)
    told(str(deed))
    assert not deed.missing()
