"""What a careful producer knows: each order that it sent, under which entry id, and what Redis said to it.

The journal is kept apart from Redis and from Postgres, so that neither is asked to vouch for itself. Entry
ids are the producer's own, in a time of its own: epochs much shorter than the dedupe window and further
apart than it. So how many entries of a content are accepted follows from their ids alone, whichever worker
was first, and an id that Redis forgot is never given again.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random

import anyio

from streams.connection import connect
from streams.producer import Producer, PublishFailed
from tests.isolation import Place
from tests.record import Entries

WINDOW_MS = 60_000
EPOCH_MS = 3 * WINDOW_MS  #: from the start of one epoch to the start of the next
EPOCH_ORDERS = 2_000  #: a millisecond each
TIMEOUT_MS = 1_000  #: the producer's patience
BATCH_MAX = 40
BACKLOG_MAX = 4_000  #: entries not yet settled, beyond which the producer waits

BAD = (
    {"side": "hold"},
    {"quantity": "NaN"},
    {"quantity": "-1"},
    {"price": "1E+1000000"},
    {"symbol": "BTC USD\nT"},
    {"type": "market"},
    {"order_id": ""},
    {"payload": '{"order_id": "'},
)
SPELLINGS = ("{}", "{}0", "{}000", "+{}", "{}e0")  #: of one and the same number


@dataclass(slots=True)
class Sent:
    """One `XADD`: its fields, whether Redis said that the entry is in, and whether Redis forgot it since."""

    fields: Mapping[str, str]
    sure: bool
    lost: bool = False


class Journal:
    """Every `XADD` of the producer, by entry id."""

    def __init__(self) -> None:
        self._sent: dict[str, Sent] = {}
        self.seen: set[str] = set()  #: ids that the watcher saw acknowledged and on record
        self.last_forgotten = "0-0"  #: the last id sent before Redis lost what it had
        self.forgotten: set[str] = set()  #: ids that Redis lost, not seen acknowledged until then

    def __len__(self) -> int:
        return len(self._sent)

    def note(self, entry_id: str, fields: Mapping[str, str], *, sure: bool) -> None:
        """Keep what was sent."""
        self._sent[entry_id] = Sent(fields, sure)

    @property
    def unsure(self) -> int:
        """How many were sent whose reply was lost."""
        return sum(not sent.sure for sent in self._sent.values())

    @property
    def lost(self) -> int:
        """How many Redis had taken, and forgot before any worker put them on record."""
        return sum(sent.lost for sent in self._sent.values())

    def missing(self, stream_ids: Collection[str]) -> list[str]:
        """Ids that must be on record, given what a stream still holds. Time has passed from here on."""
        self.last_forgotten = max(self._sent, key=_key, default="0-0")
        gone = self._sent.keys() - frozenset(stream_ids) - self.seen
        self.forgotten |= gone
        return [i for i, sent in self._sent.items() if i in gone and sent.sure and not sent.lost]

    def lose(self, ids: Iterable[str]) -> list[Mapping[str, str]]:
        """Note that Redis forgot entries that it had taken; gives what is to be sent again."""
        lost = [self._sent[entry_id] for entry_id in ids]
        for sent in lost:
            sent.lost = True
        return [sent.fields for sent in lost]

    def entries(self, found: Collection[str]) -> Entries:
        """The entries that must have an outcome: all but those unsure or lost that have none.

        :param found: ids that have an outcome
        """
        return {
            entry_id: [word.encode() for pair in sent.fields.items() for word in pair]
            for entry_id, sent in sorted(self._sent.items(), key=lambda item: _key(item[0]))
            if (sent.sure and not sent.lost) or entry_id in found
        }


def _key(entry_id: str) -> tuple[int, int]:
    ms, _, seq = entry_id.partition("-")
    return int(ms), int(seq)


class Traffic:
    """Orders from a seed: new ones, repeats spelled otherwise, repeats of other epochs, bad ones."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._number = 0
        self._contents: list[dict[str, str]] = []

    def next(self) -> dict[str, str]:
        """The next order; its `order_id` was never given before."""
        self._number += 1
        head = {"order_id": f"C-{self._number}"}
        kind = self._chance.random()
        if kind < 0.05:
            return self._content() | head | self._chance.choice(BAD)
        if kind < 0.7 or not self._contents:
            content = self._content()
            self._contents.append(content)
            return content | head
        recent = kind < 0.9
        content = self._chance.choice(self._contents[-300:] if recent else self._contents)
        spelled = self._chance.choice(SPELLINGS).format(content["quantity"])
        return content | head | {"quantity": spelled}

    def _content(self) -> dict[str, str]:
        return {
            "account": self._chance.choice(("alpha", "beta")),
            "symbol": self._chance.choice(("BTCUSDT", "EUR/USD")),
            "side": self._chance.choice(("buy", "sell")),
            "type": "limit",
            "quantity": f"{self._number}.5",
            "price": f"{self._chance.randrange(1, 10**6)}.25",
        }


class EventTime:
    """Entry ids, growing: a millisecond each, and a leap from epoch to epoch.

    They begin on this week's Monday, for InfluxDB keeps weeks apart: see `InfluxServer.create_bucket`.
    """

    def __init__(self) -> None:
        now = datetime.now(UTC)
        monday = datetime(now.year, now.month, now.day, 1, tzinfo=UTC) - timedelta(now.weekday())
        self._start_ms = int(monday.timestamp()) * 1000
        self._number = 0

    def next(self) -> str:
        """The next id."""
        epoch, order = divmod(self._number, EPOCH_ORDERS)
        self._number += 1
        return f"{self._start_ms + epoch * EPOCH_MS + order}-0"


class Load:
    """Publishes traffic at a rate, and again what did not get in or may not have.

    :ivar held: whoever holds this lock keeps the producer from sending
    :ivar backlog: entries not yet settled, as the watcher says
    """

    def __init__(self, place: Place, journal: Journal, chance: Random, *, rate: float) -> None:
        self._place, self._journal, self._chance, self._rate = place, journal, chance, rate
        self._traffic, self._time = Traffic(chance), EventTime()
        self._again: list[Mapping[str, str]] = []
        self._ending = False
        self.held = anyio.Lock()
        self.backlog = 0

    def again(self, orders: Iterable[Mapping[str, str]]) -> None:
        """Have these sent again."""
        self._again += orders

    def end(self) -> None:
        """Send nothing new; `run` returns when all that was sent is in."""
        self._ending = True

    async def run(self) -> None:
        """Publish until `end`."""
        async with connect(self._place.settings.redis_address, timeout_ms=TIMEOUT_MS) as redis:
            producer = Producer(redis, self._place.stream)
            while not self._ending or self._again:
                if self.backlog < BACKLOG_MAX:
                    async with self.held:
                        await self._send(producer, self._batch())
                await anyio.sleep(BATCH_MAX / 2 / self._rate)

    def _batch(self) -> Sequence[Mapping[str, str]]:
        again, self._again = self._again[:BATCH_MAX], self._again[BATCH_MAX:]
        fresh = 0 if self._ending or again else self._chance.randint(1, BATCH_MAX)
        return again or [self._traffic.next() for _ in range(fresh)]

    async def _send(self, producer: Producer, orders: Sequence[Mapping[str, str]]) -> None:
        ids = [self._time.next() for _ in orders]
        answered: Sequence[str | None] = ids
        unsure = 0
        try:
            await producer.publish(orders, ids=ids)
        except PublishFailed as error:
            answered, unsure = error.ids, error.unsure
        for place, (entry_id, fields) in enumerate(zip(ids, orders, strict=True)):
            taken = place < len(answered) and answered[place] is not None
            if taken or len(answered) <= place < len(answered) + unsure:
                self._journal.note(entry_id, fields, sure=taken)
            if not taken:
                self._again.append(fields)
