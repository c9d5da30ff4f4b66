"""An order as the contestants by hand see it: validated by pydantic, hashed, and a row.

Simpler than Ordergate's: no notation is made canonical, no reason given, no time window kept.
"""

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from hashlib import sha256
from typing import Any, Literal

from pydantic import BaseModel, Field

INSERT = """
INSERT INTO orders VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING
"""
INSERT_MANY = """
INSERT INTO orders
SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
    $7::text[], $8::numeric[], $9::numeric[], $10::numeric[], $11::text[])
ON CONFLICT DO NOTHING
"""


class Order(BaseModel):
    """One order."""

    order_id: str = Field(min_length=1, max_length=128)
    account: str | None = Field(None, max_length=64)
    symbol: str = Field(min_length=1, max_length=32)
    side: Literal["buy", "sell", "sell_short"]
    type: Literal[
        "market", "limit", "stop", "stop_limit", "market_if_touched", "limit_if_touched",
        "trailing_stop",
    ]  # fmt: skip
    quantity: Decimal = Field(gt=0)
    price: Decimal | None = None
    stop_price: Decimal | None = None
    time_in_force: Literal["gtc", "day", "ioc", "fok"] = "gtc"


def content_hash(fields: Mapping[str, str]) -> bytes:
    """The hash of every field but the order's own id."""
    content = {name: value for name, value in fields.items() if name != "order_id"}
    return sha256(json.dumps(content, sort_keys=True).encode()).digest()


def row(content: bytes, entry_id: str, order: Order) -> tuple[Any, ...]:
    """The columns of `orders`, in the order of the table."""
    return (
        content,
        entry_id,
        order.order_id,
        order.account,
        order.symbol,
        order.side,
        order.type,
        order.quantity,
        order.price,
        order.stop_price,
        order.time_in_force,
    )


def columns(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows turned into columns, for `INSERT_MANY`."""
    return list(zip(*rows, strict=True))


def line(entry_id: str, outcome: str, order: Order) -> str:
    """A point in line protocol."""
    ms, _, seq = entry_id.partition("-")
    text = f"orders,outcome={outcome},side={order.side},symbol={order.symbol},type={order.type} "
    text += f'entry_id="{entry_id}",order_id="{order.order_id}",quantity={order.quantity}'
    if order.price is not None:
        text += f",price={order.price}"
    return f"{text} {int(ms) * 1_000_000 + int(seq)}"
