"""The mixed batch while a conversation is cut after a certain byte, and what is left of the batch mended."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tests.chaos.proxy import Cut, Direction, Flight
from tests.chaos.rounds import SERVERS, Lane, Proxies, Spread, nothing

REACHED_MIN = 0.9  #: of the cuts; conversations differ a little, and some end before the byte


class CutAt(NamedTuple):
    """Whose conversation, which way, after how many bytes, and how."""

    server: str
    direction: Direction
    after: int
    reset: bool = False


async def cut(lane: Lane, at: CutAt) -> bool:
    """One round with that cut; says whether the conversation got so far."""

    async def fail(proxies: Proxies) -> None:
        await getattr(proxies, at.server).inflict(Cut(at.direction, at.after, reset=at.reset))

    return getattr(await lane.run(fail), at.server).has_cut


async def reached(lanes: Sequence[Lane], cuts: Iterable[CutAt]) -> Counter[str]:
    """Make all these cuts, in any order; gives how many bytes were reached, by server and direction.

    :raises AssertionError: too few were, or something is not as it should be
    """
    results = await Spread(cut).over(lanes, cuts)
    done = Counter(_name(at) for at, there in results if there)
    wanted = Counter(_name(at) for at, _ in results)
    for name, count in wanted.items():
        assert done[name] >= REACHED_MIN * count, f"{name}: {done[name]} of {count} cuts reached"
    return done


def _name(at: CutAt) -> str:
    return f"{at.server} {at.direction.value}"


async def boundaries(lane: Lane) -> set[CutAt]:
    """After each piece that a worker or a server sent at once, and each message within Postgres'."""
    proxies = await lane.run(nothing, record=True)
    return {
        CutAt(server, direction, end)
        for server in SERVERS
        for direction in Direction
        for end in _ends(getattr(proxies, server).flights, direction)
    }


def _ends(flights: Iterable[Flight], direction: Direction) -> Iterator[int]:
    begin = 0
    for flight in flights:
        if flight.direction is direction:
            yield from (begin + end for end in _message_ends(flight.data))
            begin += len(flight.data)
            yield begin


def _message_ends(data: bytes) -> Iterator[int]:
    """Where messages of Postgres end: a byte for the kind, four for the length of what follows.

    What is found in other protocols is a place to cut like any other.
    """
    at = 0
    while 0 < (at := at + 1 + int.from_bytes(data[at + 1 : at + 5])) < len(data):
        yield at


async def spread(lane: Lane, count: int) -> set[CutAt]:
    """So many cuts, evenly over all bytes of all conversations; every other one is a reset."""
    every = [
        (server, direction, after)
        for server, ways in (await lane.lengths()).items()
        for direction, length in ways.items()
        for after in range(length + 1)
    ]
    chosen = (every[len(every) * n // count] for n in range(count))
    return {CutAt(*at, reset=bool(n % 2)) for n, at in enumerate(chosen)}


def shuffled(cuts: Iterable[CutAt], seed: int) -> list[CutAt]:
    """In an order of the seed's, so that a machine that is slow for a while is not slow at one place."""
    order = sorted(cuts, key=lambda at: (at.server, at.direction.value, at.after))
    random.Random(seed).shuffle(order)  # noqa: S311 - to be repeated
    return order
