"""Publish a source's orders at a pace, and remember the entry ids.

A batch on its way is not interrupted: whoever stops a replay is told exactly how much is in the stream.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import anyio
import anyio.lowlevel

from scripts.replay.source import Item, Source
from streams.entry import EntryId
from streams.producer import CHUNK_ORDERS_MAX, Producer, PublishFailed

EARLY_S_MAX = 0.005  #: an order goes out with its batch at most so much before its time

#: When an order is due, in seconds since the start, by its place in the source.
Pace = Callable[[int, Item], float]


def at_once(_place: int, _item: Item) -> float:
    """The pace of a replay that is as fast as possible."""
    return 0.0


def at_rate(orders_per_s: float) -> Pace:
    """The pace of so many orders a second."""
    return lambda place, _item: place / orders_per_s


def at_own_times(first_ms: int, speed: float) -> Pace:
    """The pace of the orders' own times, `speed` times as fast."""
    return lambda _place, item: (item.at_ms - first_ms) / 1000 / speed


class EntryIds:
    """Entry ids in order, 16 bytes each: ten million fit in memory."""

    def __init__(self) -> None:
        self._ms, self._seq = array("Q"), array("Q")

    def extend(self, ids: Iterable[str]) -> None:
        """Add ids of the form `1767225600000-3`."""
        for entry_id in ids:
            ms, _, seq = entry_id.partition("-")
            self._ms.append(int(ms))
            self._seq.append(int(seq))

    def __len__(self) -> int:
        return len(self._ms)

    def __getitem__(self, place: int) -> EntryId:
        return EntryId(self._ms[place], self._seq[place])

    def __iter__(self) -> Iterator[EntryId]:
        return map(EntryId, self._ms, self._seq)


class IdsOfTimes:
    """Entry ids from the orders' own times: `ms-0`, and `ms-1`, `ms-2` … for more in one millisecond."""

    def __init__(self) -> None:
        self._last = EntryId(0, 0)

    def next(self, at_ms: int) -> str:
        """The next id, for a time that is not before the last one's; milliseconds since 1970."""
        same = at_ms == self._last.ms
        self._last = EntryId(at_ms, self._last.seq + 1 if same else 0)
        return str(self._last)


@dataclass(frozen=True, slots=True)
class Publishing:
    """How a source is published. `event_time`: the orders' own times become the entry ids."""

    producer: Producer
    pace: Pace
    event_time: bool

    async def run(self, source: Source, ids: EntryIds, advance: Callable[[int], object]) -> None:
        """Publish everything; `ids` holds what is in the stream for certain, also after an error.

        :param advance: called with the number of orders after each batch
        :raises PublishFailed: as `Producer.publish`
        """
        batch: list[dict[str, str]] = []
        batch_ids: list[str] = []
        own, started = IdsOfTimes(), anyio.current_time()
        for place, item in enumerate(source):
            wait_s = started + self.pace(place, item) - anyio.current_time()
            if batch and (wait_s > EARLY_S_MAX or len(batch) == CHUNK_ORDERS_MAX):
                await self._send(batch, batch_ids, ids, advance)
                batch, batch_ids = [], []
            if wait_s > EARLY_S_MAX:
                await anyio.sleep(wait_s)
            batch.append(item.order)
            batch_ids.append(own.next(item.at_ms) if self.event_time else "*")
        if batch:
            await self._send(batch, batch_ids, ids, advance)

    async def _send(
        self,
        batch: list[dict[str, str]],
        batch_ids: list[str],
        ids: EntryIds,
        advance: Callable[[int], object],
    ) -> None:
        await anyio.lowlevel.checkpoint()  # an interruption is noticed between batches
        with anyio.CancelScope(shield=True):
            try:
                ids.extend(await self.producer.publish(batch, ids=batch_ids))
            except PublishFailed as error:
                ids.extend(filter(None, error.ids))
                raise
        advance(len(batch))
