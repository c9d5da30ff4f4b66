"""The fields of the model: what is valid at the edges, and what is stored of it."""

import string
from datetime import UTC, datetime

import pytest

from tests.unit import (
    BYTES_MAX,
    FIELDS_MAX,
    GTD,
    LIMIT,
    PRICES,
    flat,
    payload,
    payload_of,
    priced,
    valid,
)
from worker.order import canonical

SIDES = ("buy", "sell", "sell_short")
TIMES_IN_FORCE = ("gtc", "day", "ioc", "fok", "gtd", "at_the_open", "at_the_close")
SPELLINGS = (str.lower, str.upper, str.title, str.swapcase)


def test_an_order_is_stored_as_sent() -> None:
    order = valid(flat())
    assert (order.order_id, order.account, order.symbol) == ("A-17", "alpha", "BTCUSDT")
    assert (order.side, order.type, order.time_in_force) == ("buy", "limit", "gtc")
    assert (order.quantity, order.price, order.stop_price) == ("0.12345678", "45678.12", None)
    assert (order.expire_at, order.extra) == (None, None)
    assert len(order.content_hash) == 32


def test_the_order_of_the_fields_does_not_matter() -> None:
    backwards = [word for pair in reversed(LIMIT.items()) for word in pair]
    assert valid(backwards) == valid(flat())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("order_id", "x"),
        ("order_id", "x" * 128),
        ("order_id", "é" * 128),
        ("order_id", "\U0001f4c8" * 128),
        ("order_id", " "),
        ("order_id", "A 17, \"quoted\" \\ 'and' = more"),
        ("order_id", "null"),
        ("account", "x"),
        ("account", "x" * 64),
        ("account", "é" * 64),
        ("account", " "),
        ("account", "a\u00a0b"),
        ("symbol", "X"),
        ("symbol", "X" * 32),
        ("symbol", "btc-USDT_2026.H/perp:1"),
        ("symbol", "-"),
        ("symbol", "/ES"),
    ],
    ids=ascii,
)
def test_text_at_the_edges_is_valid_and_kept_as_sent(name: str, text: str) -> None:
    assert getattr(valid(flat(**{name: text})), name) == text
    assert getattr(valid(payload(**{name: text})), name) == text


@pytest.mark.parametrize("character", string.ascii_letters + string.digits + "._-/:")
def test_a_symbol_may_hold_the_character(character: str) -> None:
    assert valid(flat(symbol=character)).symbol == character


def test_symbols_that_differ_in_case_are_two() -> None:
    assert valid(flat(symbol="btcusdt")).content_hash != valid(flat(symbol="BTCUSDT")).content_hash


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("side", SIDES)
def test_a_side_is_read_in_any_case(side: str, spelling: type[str]) -> None:
    order = valid(flat(side=spelling(side)))
    assert order.side == side
    assert order == valid(flat(side=side))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kind", PRICES)
def test_a_type_is_read_in_any_case_and_takes_just_its_prices(
    kind: str, spelling: type[str]
) -> None:
    order = valid(flat(priced(kind), type=spelling(kind)))
    assert order.type == kind
    assert (order.price is not None, order.stop_price is not None) == (
        "price" in PRICES[kind],
        "stop_price" in PRICES[kind],
    )


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("time_in_force", TIMES_IN_FORCE)
def test_a_time_in_force_is_read_in_any_case(time_in_force: str, spelling: type[str]) -> None:
    expire_time = GTD["expire_time"] if time_in_force == "gtd" else None
    order = valid(flat(time_in_force=spelling(time_in_force), expire_time=expire_time))
    assert order.time_in_force == time_in_force


@pytest.mark.parametrize("kind", PRICES)
@pytest.mark.parametrize("price", ["0", "-37.63"])
def test_prices_of_every_type_may_be_zero_and_negative(kind: str, price: str) -> None:
    order = valid(flat(priced(kind), **dict.fromkeys(PRICES[kind], price)))
    assert {order.price, order.stop_price} <= {price, None}


@pytest.mark.parametrize("name", ["account", "stop_price", "time_in_force", "expire_time"])
def test_an_optional_field_that_is_empty_or_null_counts_as_absent(name: str) -> None:
    absent = valid(flat(**{name: None}))
    assert valid(flat(**{name: ""})) == absent
    assert valid(payload_of(name, '""')) == absent
    assert valid(payload_of(name, "null")) == absent


def test_an_absent_account_is_an_account_of_its_own() -> None:
    accounts = (None, "alpha", "beta", " ")
    assert len({valid(flat(account=account)).content_hash for account in accounts}) == 4


def test_an_empty_price_counts_as_absent_where_the_type_takes_none() -> None:
    assert valid(flat(priced("market"), price="", stop_price="")) == valid(flat(priced("market")))


def test_gtc_is_the_default_and_the_same_content() -> None:
    assert valid(flat(time_in_force="GTC")) == valid(flat())
    assert b'"time_in_force":"gtc"' in canonical(flat())


EXPIRES = [
    ("2026-03-01T17:30:00Z", "2026-03-01T17:30:00Z"),
    ("2026-03-01T17:30:00z", "2026-03-01T17:30:00Z"),
    ("2026-03-01t17:30:00Z", "2026-03-01T17:30:00Z"),
    ("2026-03-01 17:30:00Z", "2026-03-01T17:30:00Z"),
    ("2026-03-01T17:30Z", "2026-03-01T17:30:00Z"),
    ("2026-03-01T17:30:00+00:00", "2026-03-01T17:30:00Z"),
    ("2026-03-01T17:30:00-00:00", "2026-03-01T17:30:00Z"),
    ("2026-03-01T23:00:00+05:30", "2026-03-01T17:30:00Z"),
    ("2026-03-01T23:00:00+0530", "2026-03-01T17:30:00Z"),
    ("2026-03-01T12:30-05:00", "2026-03-01T17:30:00Z"),
    ("2026-03-02T00:30:00+07:00", "2026-03-01T17:30:00Z"),
    ("2026-02-28T17:31:00-23:59", "2026-03-01T17:30:00Z"),
    ("2026-03-01T17:30:00.0Z", "2026-03-01T17:30:00Z"),
    ("2026-03-01T17:30:00.000000Z", "2026-03-01T17:30:00Z"),
    ("2026-03-01T17:30:00.1Z", "2026-03-01T17:30:00.1Z"),
    ("2026-03-01T17:30:00.12Z", "2026-03-01T17:30:00.12Z"),
    ("2026-03-01T17:30:00.123Z", "2026-03-01T17:30:00.123Z"),
    ("2026-03-01T17:30:00.1230Z", "2026-03-01T17:30:00.123Z"),
    ("2026-03-01T17:30:00.12345Z", "2026-03-01T17:30:00.12345Z"),
    ("2026-03-01T17:30:00.123456Z", "2026-03-01T17:30:00.123456Z"),
    ("2026-03-01T17:30:00.000001+00:00", "2026-03-01T17:30:00.000001Z"),
    ("2028-02-29T23:59:59Z", "2028-02-29T23:59:59Z"),
    ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
    ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ("1969-12-31T23:59:59Z", "1969-12-31T23:59:59Z"),  # whether it has passed is not ours to judge
]


@pytest.mark.parametrize(("sent", "content"), EXPIRES)
def test_an_expire_time_is_an_instant_whatever_its_offset(sent: str, content: str) -> None:
    fields = flat(GTD, expire_time=sent)
    assert valid(fields).expire_at == datetime.fromisoformat(content)
    assert f'"expire_time":"{content}"'.encode() in canonical(fields)


def test_an_expire_time_is_stored_in_utc() -> None:
    expire_at = valid(flat(GTD, expire_time="2026-03-01T23:00:00+05:30")).expire_at
    assert expire_at is not None
    assert expire_at.tzinfo is UTC


# --- the entry's limits ---


def test_an_entry_may_hold_64_fields() -> None:
    others = {f"x{n}": "" for n in range(FIELDS_MAX - len(LIMIT))}
    assert valid(flat(**others)).extra
    assert valid(payload(**others)).extra


@pytest.mark.parametrize("letter", ["x", "é", "\u20ac", "\U0001f4c8"])
def test_an_entry_may_hold_64_kib_of_names_and_values(letter: str) -> None:
    used = len("".join(flat(note="")).encode())
    count, rest = divmod(BYTES_MAX - used, len(letter.encode()))
    fields = flat(note=letter * count + "x" * rest)
    assert sum(len(text.encode()) for text in fields) == BYTES_MAX
    assert valid(fields).extra


def test_a_payload_may_fill_the_entry() -> None:
    fields = payload(note="")
    fields = payload(note="x" * (BYTES_MAX - len("".join(fields).encode())))
    assert len("".join(fields)) == BYTES_MAX
    assert valid(fields).extra


@pytest.mark.parametrize("letter", ["x", "é", "\udcff"])
def test_one_byte_more_is_too_large(letter: str) -> None:
    used = len("".join(flat(note="")).encode())
    size = len(letter.encode(errors="surrogateescape"))
    count, rest = divmod(BYTES_MAX - used + 1, size)
    fields = flat(note=letter * count + "x" * rest)
    with pytest.raises(ValueError, match="65536 bytes"):
        canonical(fields)


def test_bytes_that_are_no_utf8_count_as_they_were_sent() -> None:
    with pytest.raises(ValueError, match="must be UTF-8"):
        canonical(flat(note="\udcff" * 60_000))
