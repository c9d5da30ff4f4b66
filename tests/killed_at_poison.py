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
from worker.forms import Parser
from worker.order import Malformed, Order


class Deadly(Parser):
    """Parses, unless the fields are poison."""

    def parse(self, fields: Sequence[str] | None) -> Order | Malformed:
        """See `Parser.parse`."""
        if fields and "POISON" in fields:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().parse(fields)


if __name__ == "__main__":
    with patch.object(batch, "parser", Deadly):
        sys.exit(main())
