"""Orders for tests: valid ones by number, each with a content of its own."""

from collections.abc import Mapping
from itertools import count

from worker.order import Order, parse

_numbers = count()

T0_MS = 1_767_225_600_000  #: 2026-01-01, milliseconds since 1970; for entry ids of tests' own


def order(number: int, **changes: str) -> dict[str, str]:
    """A limit order whose content is its number's; the order id is another each time.

    :param changes: fields to set; an empty one is left out
    """
    fields = {
        "order_id": f"A-{next(_numbers)}",
        "account": "alpha",
        "symbol": "BTCUSDT",
        "side": "buy",
        "type": "limit",
        "quantity": f"{number + 1}.25000000",
        "price": "45678.10",
    } | changes
    return {name: value for name, value in fields.items() if value}


def orders(numbers: range) -> list[dict[str, str]]:
    """The order of each number."""
    return [order(number) for number in numbers]


def parsed(fields: Mapping[str, str]) -> Order:
    """What a worker makes of a valid order."""
    found = parse([word for pair in fields.items() for word in pair])
    assert isinstance(found, Order)
    return found


def ids(*offsets_ms: int) -> list[str]:
    """Entry ids at so many milliseconds after T0_MS; the second and further at one instant count up."""
    return [f"{T0_MS + ms}-{offsets_ms[:place].count(ms)}" for place, ms in enumerate(offsets_ms)]
