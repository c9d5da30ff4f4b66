"""`python -m tests.killed_at_poison`: a worker whom an order of the symbol POISON ends where it is decoded.

It stands for input that brings down a library or exhausts memory: no exception, no clean-up, no trace.
"""

import os
import signal
import sys
from collections.abc import Sequence
from unittest.mock import patch

from worker import batch
from worker.__main__ import main
from worker.order import Malformed, Order, parse


def deadly(fields: Sequence[str] | None, envelope: frozenset[str]) -> Order | Malformed:
    """Parse, unless the fields are poison."""
    if fields and "POISON" in fields:
        os.kill(os.getpid(), signal.SIGKILL)
    return parse(fields, envelope)


if __name__ == "__main__":
    with patch.object(batch, "parse", deadly):
        sys.exit(main())
