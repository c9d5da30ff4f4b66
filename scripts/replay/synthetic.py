"""Synthetic orders, any number of them, the same for a seed on every machine.

An order is a function of the seed and its number, so a duplicate of any earlier one can be written
without holding what was sent: ten million orders need no more memory than ten.
"""

from collections.abc import Iterator

from scripts.replay.source import Item

ORDERS_MAX = 2**32  #: as many quantities as there are, one for each order

_MASK = 2**64 - 1
_ACCOUNTS = tuple(f"desk-{n:02}" for n in range(1, 65))
_SIDES = ("buy",) * 8 + ("sell",) * 7 + ("sell_short",)
#: Order types with whether they take a price and a stop price, as often as they shall occur in 32.
_TYPES = (
    (("limit", True, False),) * 20
    + (("market", False, False),) * 6
    + (("stop_limit", True, True),) * 2
    + (
        ("stop", False, True),
        ("market_if_touched", False, True),
        ("limit_if_touched", True, True),
        ("trailing_stop", False, True),
    )
)
#: Symbol, middle of its prices in ticks, ticks in one unit of price, decimals of a tick.
_SYMBOLS = (
    ("BTCUSDT", 6_512_345, 100, 2),
    ("ETHUSDT", 341_250, 100, 2),
    ("SOLUSDT", 15_230, 100, 2),
    ("XRPUSDT", 58_310, 10_000, 4),
    ("BTC-EUR", 5_987_654, 100, 2),
    ("EUR/USD", 108_415, 100_000, 5),
    ("LTCUSDT", 8_412, 100, 2),
    ("LINKUSDT", 14_225, 1_000, 3),
)
_TIMES_IN_FORCE = (None,) * 13 + ("ioc", "fok", "day")


class Synthetic:
    """Synthetic orders as a source; they have no times. :raises ValueError: as `synthetic_orders`"""

    first_ms = 0

    def __init__(self, orders: int, duplicates: int, seed: int) -> None:
        synthetic_orders(orders, duplicates, seed)
        self._orders, self._duplicates, self._seed = orders, duplicates, seed

    def __str__(self) -> str:
        orders, duplicates = (
            f"{self._orders:,} synthetic orders",
            f"{self._duplicates:,} duplicates",
        )
        return f"{orders} and {duplicates}, seed {self._seed}"

    def __len__(self) -> int:
        return self._orders + self._duplicates

    def __iter__(self) -> Iterator[Item]:
        return map(Item, synthetic_orders(self._orders, self._duplicates, self._seed))


def synthetic_orders(orders: int, duplicates: int, seed: int) -> Iterator[dict[str, str]]:
    """Give `orders` orders of distinct content and `duplicates` repeats, evenly among them.

    A repeat has the content of some earlier order and an `order_id` of its own.

    :raises ValueError: fewer than 1 or more than ORDERS_MAX orders, or fewer than 0 duplicates
    """
    if not 1 <= orders <= ORDERS_MAX or duplicates < 0:
        raise ValueError(
            f"cannot make {orders} orders and {duplicates} duplicates: orders must be 1 to "
            f"{ORDERS_MAX}, duplicates 0 or more"
        )
    return _interleaved(orders, duplicates, seed)


def _interleaved(orders: int, duplicates: int, seed: int) -> Iterator[dict[str, str]]:
    total, salt = orders + duplicates, _mixed(seed & _MASK)
    originals = 0
    for place in range(total):
        order_id = f"R{seed}-{place}"
        if (place + 1) * orders // total > originals or not originals:
            yield _order(order_id, originals, salt)
            originals += 1
        else:
            yield _order(order_id, _mixed(salt + place) % originals, salt)


def _order(order_id: str, number: int, salt: int) -> dict[str, str]:
    """Make the order of that number. No other has its quantity: an odd factor permutes 2^32."""
    units = 1 + ((number * 2_654_435_761 + salt) & 0xFFFFFFFF)
    bits = _mixed(salt ^ number)
    symbol, middle, unit, decimals = _SYMBOLS[bits & 7]
    kind, has_price, has_stop_price = _TYPES[bits >> 3 & 31]
    order = {
        "order_id": order_id,
        "account": _ACCOUNTS[bits >> 8 & 63],
        "symbol": symbol,
        "side": _SIDES[bits >> 14 & 15],
        "type": kind,
        "quantity": f"{units // 100_000_000}.{units % 100_000_000:08}",
    }
    ticks = middle + (bits >> 18 & 1023) - 512
    if has_price:
        order["price"] = f"{ticks // unit}.{ticks % unit:0{decimals}}"
    if has_stop_price:
        ticks += 1 + (bits >> 28 & 63)
        order["stop_price"] = f"{ticks // unit}.{ticks % unit:0{decimals}}"
    if time_in_force := _TIMES_IN_FORCE[bits >> 34 & 15]:
        order["time_in_force"] = time_in_force
    return order


def _mixed(value: int) -> int:
    """Scatter 64 bits. Source: the finaliser of SplitMix64, https://prng.di.unimi.it/splitmix64.c"""
    value = value + 0x9E3779B97F4A7C15 & _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31
