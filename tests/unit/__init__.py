"""Tests of what takes values and gives values: no network, no server, no waiting.

Here is how they write an entry down.
"""

import json
from collections.abc import Mapping

from hypothesis import HealthCheck, settings

from worker.order import Order, parse

# A machine that is busy makes an example slow and not wrong.
settings.register_profile(
    "unit", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("unit")

#: An entry's limits as producers were told them; the worker's own numbers are what is tested.
BYTES_MAX, FIELDS_MAX, DEPTH_MAX = 65_536, 64, 16

LIMIT = {
    "order_id": "A-17",
    "account": "alpha",
    "symbol": "BTCUSDT",
    "side": "buy",
    "type": "limit",
    "quantity": "0.12345678",
    "price": "45678.12",
}
GTD = {**LIMIT, "time_in_force": "gtd", "expire_time": "2026-03-01T17:30:00Z"}

#: The prices that each type requires; it refuses the others.
PRICES = {
    "market": (),
    "limit": ("price",),
    "stop": ("stop_price",),
    "stop_limit": ("price", "stop_price"),
    "market_if_touched": ("stop_price",),
    "limit_if_touched": ("price", "stop_price"),
    "trailing_stop": ("stop_price",),
}


def changed(order: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """An order with some fields changed; None takes a field away."""
    return {name: value for name, value in {**order, **changes}.items() if value is not None}


def flat(order: Mapping[str, str] = LIMIT, /, **changes: str | None) -> list[str]:
    """An order as the names and values of an entry, in turn."""
    return [str(word) for pair in changed(order, changes).items() for word in pair]


def payload(order: Mapping[str, object] = LIMIT, /, **changes: object) -> list[str]:
    """An order as an entry with a payload."""
    return ["payload", json.dumps(changed(order, changes))]


def payload_text(extra: str) -> list[str]:
    """An entry with a payload whose last members are `extra`, as JSON text."""
    return ["payload", json.dumps(LIMIT)[:-1] + f", {extra}}}"]


def payload_of(name: str, text: str) -> list[str]:
    """An order as a payload, with JSON text for one of its fields."""
    others = {field: value for field, value in LIMIT.items() if field != name}
    return ["payload", f'{json.dumps(others)[:-1]}, "{name}": {text}}}']


def valid(fields: list[str]) -> Order:
    """The order that the fields are."""
    order = parse(fields)
    assert isinstance(order, Order), order
    return order


def priced(kind: str) -> dict[str, str]:
    """A valid order of a type, with the prices it requires."""
    order = {name: value for name, value in LIMIT.items() if name != "price"} | {"type": kind}
    return order | dict.fromkeys(PRICES[kind], "101.5")
