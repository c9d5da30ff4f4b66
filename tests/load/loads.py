"""What is published: synthetic orders and their repeats, and what must be on record afterwards."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from scripts.replay.synthetic import synthetic_orders

SEED = 1
DUPLICATES_SHARE = 0.286  #: of a venue's public feed: how many orders repeat an earlier one


@dataclass(frozen=True)
class Load:
    """Some orders of distinct content, repeats of them among them, and all that so many times over.

    :ivar fields: how many fields an entry has at least; those beyond an order's own are content
    :ivar times: how often the whole series is sent
    """

    orders: int
    duplicates: int
    fields: int = 0
    times: int = 1

    @classmethod
    def of(cls, entries: int, share: float = DUPLICATES_SHARE, *, fields: int = 0) -> "Load":
        """So many entries, of which that share are repeats."""
        duplicates = round(entries * share)
        return cls(entries - duplicates, duplicates, fields)

    def part(self, share: float) -> "Load":
        """A smaller load of the same kind."""
        return Load(
            round(self.orders * share), round(self.duplicates * share), self.fields, self.times
        )

    @property
    def entries(self) -> int:
        """How many entries it is in all."""
        return (self.orders + self.duplicates) * self.times

    @property
    def repeats(self) -> int:
        """How many of them are to be suppressed."""
        return self.entries - self.orders

    def __iter__(self) -> Iterator[dict[str, str]]:
        for _ in range(self.times):
            for order in synthetic_orders(self.orders, self.duplicates, SEED):
                yield self._padded(order)

    def _padded(self, order: dict[str, str]) -> dict[str, str]:
        for number in range(self.fields - len(order)):
            order[f"tag_{number:02}"] = f"value-{number}"
        return order


@lru_cache
def quantity_sum(orders: int) -> int:
    """The sum of all distinct orders' quantities, in units of 1e-8. No two have the same quantity."""
    return sum(
        int(order["quantity"].replace(".", "")) for order in synthetic_orders(orders, 0, SEED)
    )
