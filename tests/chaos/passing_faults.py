"""The mixed batch while a server is out of reach in some way for a while, from a certain byte on."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import anyio

from tests.chaos.proxy import (
    Delay,
    Direction,
    DropReplies,
    Fault,
    Hang,
    Proxy,
    Refuse,
    Reset,
    Sound,
    Trickle,
)
from tests.chaos.rounds import SERVERS, Lane, Proxies, Spread, conversations

FAULT_S = 1.2  #: seconds; longer than any call of an impatient worker may take
KINDS: tuple[Fault, ...] = (
    Refuse(),
    Reset(),
    Hang(),
    DropReplies(),
    Delay(0.05),
    Trickle(64, 0.001),
)
REACHED_MIN = 0.9  #: of the faults; conversations differ a little, and some end before the byte


class FaultFrom(NamedTuple):
    """What becomes of a server's connections, once the worker has sent so many bytes; and of the worker."""

    fault: Fault
    server: str
    after: int
    dies: bool


async def suffer(lane: Lane, at: FaultFrom) -> bool:
    """One round with that fault; says whether it began."""

    async def fail(proxies: Proxies) -> None:
        proxy: Proxy = getattr(proxies, at.server)
        proxy.plan(at.fault, Direction.TO_SERVER, at.after)
        await proxy.struck.wait()
        await anyio.sleep(FAULT_S)
        await proxy.inflict(Sound())

    return getattr(await lane.run(fail, dies=at.dies), at.server).struck.is_set()


async def every_kind(lanes: Sequence[Lane], begins: int) -> list[FaultFrom]:
    """Each fault at each server, beginning at so many bytes, evenly spread; every other worker dies of it."""
    sound = await conversations(lanes)
    lengths = {server: sum(map(len, sound[server, Direction.TO_SERVER])) for server in SERVERS}
    return [
        FaultFrom(fault, server, lengths[server] * n // begins, dies=bool((n + number) % 2))
        for number, fault in enumerate(KINDS)
        for server in SERVERS
        for n in range(begins)
    ]


async def suffered(lanes: Sequence[Lane], faults: Iterable[FaultFrom]) -> Counter[str]:
    """Let all these happen; gives how many did, by kind.

    :raises AssertionError: too few did, or something is not as it should be
    """
    results = await Spread(suffer).over(lanes, faults)
    begun = Counter(type(at.fault).__name__ for at, there in results if there)
    assert begun.total() >= REACHED_MIN * len(results), begun
    return begun
