"""The mixed batch while a conversation is cut after a certain byte, and what is left of the batch mended."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tests.chaos.proxy import Cut, Direction
from tests.chaos.rounds import Lane, Proxies, Spread

REACHED_MIN = 0.9  #: of the cuts; conversations differ a little, and some end before the byte

Conversations = Mapping[
    tuple[str, Direction], Sequence[bytes]
]  #: in pieces, by server and direction


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


def boundaries(conversations: Conversations) -> set[CutAt]:
    """After each piece that a worker or a server sent at once, and each message within Postgres'."""
    return {CutAt(*which, end) for which, pieces in conversations.items() for end in _ends(pieces)}


def _ends(pieces: Sequence[bytes]) -> Iterator[int]:
    begin = 0
    for piece in pieces:
        yield from (begin + end for end in _message_ends(piece))
        begin += len(piece)
        yield begin


def _message_ends(data: bytes) -> Iterator[int]:
    """Where messages of Postgres end: a byte for the kind, four for the length of what follows.

    What is found in other protocols is a place to cut like any other.
    """
    at = 0
    while 0 < (at := at + 1 + int.from_bytes(data[at + 1 : at + 5])) < len(data):
        yield at


def spread(conversations: Conversations, count: int) -> set[CutAt]:
    """So many cuts, evenly over all bytes of all conversations; every other one is a reset."""
    every = every_byte(conversations)
    chosen = [every[len(every) * n // count] for n in range(count)]
    return {at._replace(reset=bool(n % 2)) for n, at in enumerate(chosen)}


def every_byte(conversations: Conversations) -> list[CutAt]:
    """A cut before the first byte of each conversation, and after each."""
    return [
        CutAt(*which, after)
        for which, pieces in conversations.items()
        for after in range(sum(map(len, pieces)) + 1)
    ]


def shuffled(cuts: Iterable[CutAt], seed: int) -> list[CutAt]:
    """In an order of the seed's, so that a machine that is slow for a while is not slow at one place."""
    order = sorted(cuts, key=lambda at: (at.server, at.direction.value, at.after))
    random.Random(seed).shuffle(order)  # noqa: S311 - to be repeated
    return order
