"""What a look at a server has found: a level, what was looked at, what is so, and how to mend it."""

from enum import Enum
from time import time

import msgspec

CLOCK_MS_MAX = 1_000  #: milliseconds that two clocks may differ


class Level(Enum):
    """How a finding stands."""

    OK = "ok"
    WARN = "warn"  #: it works, and something is at risk
    FAIL = "fail"  #: it does not work, or orders are at risk


class Finding(msgspec.Struct, frozen=True):
    """One line of a check.

    :ivar do: what to do about it; "" where nothing is to be done
    :ivar command: what one types to do that, if there is such a command
    """

    level: Level
    what: str
    says: str
    do: str = ""
    command: str = ""


def ok(what: str, says: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, what, says)


def warn(what: str, says: str, do: str = "", command: str = "") -> Finding:
    """It works, and something is at risk."""
    return Finding(Level.WARN, what, says, do, command)


def fail(what: str, says: str, do: str = "", command: str = "") -> Finding:
    """It does not work, or orders are at risk."""
    return Finding(Level.FAIL, what, says, do, command)


def clock(their_ms: float, asked_at: float, resolution_ms: int = 0) -> Finding:
    """A server's clock against ours.

    :param their_ms: what it said, milliseconds since 1970
    :param asked_at: our own clock when we asked, seconds since 1970
    :param resolution_ms: by how much its answer may be too early, for it is cut off
    """
    now = time()
    late = (now - asked_at) * 500
    differs = their_ms + resolution_ms / 2 - (now * 1000 - late)
    unsure = late + resolution_ms / 2
    says = f"{abs(differs):,.0f} ms {'ahead of' if differs > 0 else 'behind'} this machine"
    if unsure >= 1:
        says += f", give or take {unsure:,.0f}"
    if abs(differs) - unsure <= CLOCK_MS_MAX:
        return ok("clock", says)
    return warn(
        "clock", says, "entries' times, WORKER_RETENTION and points follow clocks: run NTP on both"
    )
