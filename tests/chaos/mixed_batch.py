"""A batch of every sort of entry, for rounds that send it again and again."""

from tests.record import Tally

T0 = 1_767_225_600_000
WINDOW_MS = 60_000
ORDER = {
    "account": "alpha",
    "symbol": "BTCUSDT",
    "side": "buy",
    "type": "limit",
    "price": "45678.12",
}
EARLIER = [ORDER | {"order_id": f"E-{n}", "quantity": str(n)} for n in (1, 2)]
MIXED = [
    ORDER | {"order_id": "M-1", "quantity": "11"},  # new
    ORDER | {"order_id": "M-2", "quantity": "11.0"},  # its twin
    ORDER | {"order_id": "M-3", "quantity": "1"},  # repeats an earlier one
    ORDER | {"order_id": "M-4", "quantity": "NaN"},  # none
    ORDER | {"order_id": "M-5", "quantity": "12"},
    {"payload": "{"},
    ORDER | {"order_id": "M-6", "quantity": "2"},  # outside the window: the next generation
    ORDER | {"order_id": "M-7", "quantity": "2"},  # and a repeat of that
]
TIMES = (1, 2, 3, 4, 5, 6, WINDOW_MS + 2_000, WINDOW_MS + 2_001)
EXPECTED = Tally(accepted=5, duplicates=3, rejected=2)
