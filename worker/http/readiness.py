"""Whether a worker is ready: it reads its streams, and reaches the servers that orders wait for. Pure."""

from collections.abc import Iterator
from time import monotonic

from worker.dependency import State
from worker.vitals import Vitals

QUIET_S_MAX = (
    30.0  #: seconds; a read ends after one at the latest, and batches wait for bounded calls
)

#: Where these are away nothing goes on. The claims are a memory, and points are owed meanwhile.
NEEDED = ("redis", "postgres")


def unready(vitals: Vitals) -> list[str]:
    """What keeps the worker from taking orders in, a sentence each; none where it does."""
    return [*_servers(vitals), *_streams(vitals)]


def _servers(vitals: Vitals) -> Iterator[str]:
    if vitals.stopping:
        yield "the worker is stopping"
    for dependency in vitals.dependencies:
        if dependency.name in NEEDED and dependency.state is not State.UP:
            state, down_s = dependency.state.value, dependency.down_s
            yield f"{dependency.name} is {state} for {down_s:.1f} s: {dependency.error}"


def _streams(vitals: Vitals) -> Iterator[str]:
    for stream, its in vitals.streams.items():
        if its.read_at is None:
            yield f"stream {stream} was not read yet"
        elif (quiet_s := monotonic() - its.read_at) > QUIET_S_MAX:
            yield f"stream {stream} was last read {quiet_s:.0f} s ago"
