"""`explain` answers from every server what became of an order, and why."""

import pytest

from streams.producer import Producer
from tests.integration.operate.conftest import Ask
from tests.isolation import Place
from tests.orders import T0_MS, ids, order
from tests.record import claim_key
from tests.workers import drain

pytestmark = pytest.mark.anyio


@pytest.fixture
async def traffic(place: Place) -> Place:
    """An order, its repeat three seconds later, once more after the window, and a rejection."""
    place = place.having(WORKER_DEDUPE_WINDOW="1m")
    repeat = order(1, order_id="B-1", price="45678.1000", sent_at="now")
    again, bad = order(1, order_id="C-1"), order(2, order_id="R-1", side="hold")
    await place.publish(
        [order(1, order_id="A-1"), repeat, again, bad], ids(0, 3000, 61_000, 62_000)
    )
    await drain(place)
    return place


async def test_a_duplicate_is_told_with_its_original_and_how_far_apart(
    traffic: Place, ask: Ask
) -> None:
    reply = await ask(traffic, "explain", "B-1")
    assert reply.code == 0
    first = reply.output.splitlines()[0]
    assert first == (
        f"Duplicate: order B-1 has the same content as order A-1 (entry {T0_MS}-0), accepted 3 s before it; "
        "the window is 1 min."
    )
    assert len(reply.output.splitlines()) <= 24
    found = (await ask(traffic, "explain", "B-1", "--json")).document
    row, *_ = await traffic.fetch("SELECT content_hash FROM duplicates")
    assert found["content_hash"] == row["content_hash"].hex()
    assert found["canonical"] == (
        '{"account":"alpha","price":"45678.1","quantity":"2.25","side":"buy","symbol":"BTCUSDT",'
        '"time_in_force":"gtc","type":"limit"}'
    )
    assert found["original"]["apart_ms"] == 3000
    assert [item["order_id"] for item in found["same_content"]] == ["A-1", "B-1", "C-1"]
    assert found["same_content_count"] == 3
    assert (found["point"], found["in_redis"], found["unanswered"]) == ("found", "acknowledged", {})


async def test_an_entry_id_and_an_order_id_lead_to_the_same_answer(
    traffic: Place, ask: Ask
) -> None:
    by_id = (await ask(traffic, "explain", f"{T0_MS + 3000}-0", "--json")).document
    by_order = (await ask(traffic, "explain", "--order-id", "B-1", "--json")).document
    assert by_id["answer"] == by_order["answer"]
    assert by_id["claim"] == by_order["claim"]


async def test_an_id_that_redis_gave_again_is_told_with_both_its_orders(
    traffic: Place, ask: Ask
) -> None:
    await traffic.command("DEL", traffic.stream)
    [again] = await traffic.publish([order(8, order_id="D-1")], ids(0))
    await drain(traffic)
    found = (await ask(traffic, "explain", again, "--json")).document
    assert {found["order_id"], found["same_entry_id"][0]["order_id"]} == {"A-1", "D-1"}
    assert "is on record, accepted: Redis gave the id to two entries" in found["answer"]


async def test_a_later_generation_names_the_equal_order_outside_of_the_window(
    traffic: Place, ask: Ask
) -> None:
    found = (await ask(traffic, "explain", "C-1", "--json")).document
    assert found["outcome"] == "accepted"
    assert found["generation"] == 1
    assert found["original"]["order_id"] == "A-1"
    assert "1 min 1 s away, outside of the window" in found["answer"]


async def test_a_rejection_is_told_with_its_reason(traffic: Place, ask: Ask) -> None:
    reply = await ask(traffic, "explain", "R-1")
    assert reply.code == 0
    assert reply.output.startswith("Rejected, side_invalid: side must be one of buy, sell")


async def test_an_entry_that_was_trimmed_is_explained_from_the_record(
    traffic: Place, ask: Ask
) -> None:
    before = (await ask(traffic, "explain", "B-1", "--json")).document
    await traffic.command("XTRIM", traffic.stream, "MAXLEN", 0)
    after = (await ask(traffic, "explain", "B-1", "--json")).document
    assert after["canonical"] == before["canonical"]
    assert after["in_redis"] == "not in the stream any more"


async def test_fields_are_explained_as_if_they_were_sent_now(place: Place, ask: Ask) -> None:
    (entry_id,) = await place.publish([order(1, order_id="A-1")])
    await drain(place)
    words = [f"{name}={value}" for name, value in order(1, order_id="").items()]
    flat = await ask(place, "explain", *words)
    assert flat.code == 0
    assert f"duplicate of order A-1 (entry {entry_id})" in flat.output
    text = (
        '{"account": "alpha", "symbol": "BTCUSDT", "side": "BUY", "type": "limit", "quantity": 2.25, '
        '"price": 45678.10}'
    )
    payload = await ask(place, "explain", "--payload", text)
    assert payload.output.splitlines()[0].split(", accepted")[0] in flat.output
    other = await ask(place, "explain", *words, "--field", "nonce=1")
    assert other.code == 1
    assert "none of this content is on record" in other.output
    bad = await ask(place, "explain", "symbol=BTCUSDT", "side=hold")
    assert "it would be rejected, side_invalid" in bad.output


async def test_an_order_that_nobody_has_read_or_settled_is_found_in_the_stream(
    place: Place, ask: Ask
) -> None:
    stream, group = place.stream, place.settings.group
    await place.command("XGROUP", "CREATE", stream, group, "0", "MKSTREAM")
    first, second = await place.publish([order(1, order_id="A-1"), order(2, order_id="A-2")])
    await place.command("XREADGROUP", "GROUP", group, "w-7", "COUNT", 1, "STREAMS", stream, ">")
    pending = (await ask(place, "explain", "A-1", "--json")).document
    assert (pending["entry_id"], pending["in_redis"]) == (first, "pending")
    assert (pending["pending"]["consumer"], pending["pending"]["deliveries"]) == ("w-7", 1)
    assert "pending with w-7 since" in pending["answer"]
    unread = (await ask(place, "explain", second, "--json")).document
    assert unread["answer"] == "Not on record yet: no worker has read it."
    await place.command("XACK", stream, group, first)
    acknowledged = await ask(place, "explain", first)
    assert acknowledged.code == 1
    assert "that must not be" in acknowledged.output


async def test_a_point_that_is_missing_owed_or_refused_is_told(traffic: Place, ask: Ask) -> None:
    async def point() -> str:
        return (await ask(traffic, "explain", "B-1", "--json")).document["point"]

    traffic.influx.query("DROP SERIES FROM orders WHERE outcome = 'duplicate'", traffic.bucket)
    assert await point() == "missing"
    owed = "INSERT INTO point_backlog (stream, entry_id) VALUES ($1, $2)"
    await traffic.fetch(owed, traffic.stream, f"{T0_MS + 3000}-0")
    assert await point() == "owed, to be written"
    await traffic.fetch("UPDATE point_backlog SET refusal = '422 no'")
    assert await point() == "refused: 422 no"


async def test_points_in_a_file_are_looked_up_there(place: Place, ask: Ask, tmp_path: str) -> None:
    place = place.having(INFLUXDB_URL=f"file://{tmp_path}/points.lp")
    assert (await ask(place, "explain", "A-1")).code == 1
    await place.publish([order(1, order_id="A-1")])
    await drain(place)
    assert (await ask(place, "explain", "A-1", "--json")).document["point"] == "found"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "none"),
        ("nobody", "names no entry, which says nothing"),
        (f"{T0_MS}-0", "agrees"),
        (f"{T0_MS + 3000}-0", "names an entry on record as duplicate"),
        (f"{T0_MS + 62_000}-0", "names an entry on record as rejected"),
        (f"{T0_MS + 63_000}-0", "held until the outcome of that entry is on record"),
        ("1-1", "contradicts Postgres, which has no such entry"),
    ],
)
async def test_the_claim_is_told_and_held_against_postgres(
    traffic: Place, ask: Ask, value: str | None, says: str
) -> None:
    row, *_ = await traffic.fetch("SELECT content_hash FROM orders")
    key = claim_key(traffic, row["content_hash"])
    await traffic.publish([order(3)], ids(63_000))  # nobody has read it
    await traffic.redis.delete(key)
    if value:
        await traffic.redis.set(key, value)
    assert (await ask(traffic, "explain", "A-1", "--json")).document["claim_says"] == says


async def test_a_claim_may_name_an_order_of_another_stream(place: Place, ask: Ask) -> None:
    other = f"{place.stream}-b"
    both = place.having(WORKER_STREAMS=f"{place.stream},{other}")
    await place.publish([order(1)], ids(0))
    await drain(place)
    again = [order(1, order_id="B-1")]
    [repeat] = await Producer(place.redis, other).publish(again, ids=ids(1_000))
    await drain(place.having(WORKER_STREAMS=other))
    found = (await ask(both, "explain", "B-1", "--json")).document
    assert (found["entry_id"], found["outcome"]) == (repeat, "duplicate")
    assert (found["claim"], found["claim_says"]) == (f"{T0_MS}-0", "agrees")


async def test_what_producers_send_cannot_control_the_terminal(place: Place, ask: Ask) -> None:
    await place.publish([order(1, order_id="A-1", note="<b>\u202e\\[red]")])
    await drain(place)
    output = (await ask(place, "explain", "A-1")).output
    assert "\u202e" not in output
    assert "<b>\\u202e" in output


async def test_reading_makes_no_stream_and_no_group(place: Place, ask: Ask) -> None:
    assert (await ask(place, "explain", "A-1")).code == 1
    assert (await ask(place, "explain", "1-1")).code == 1
    assert await place.command("KEYS", "*") == []
    await place.publish([order(1)])
    await ask(place, "explain", "nothing")
    assert await place.command("XINFO", "GROUPS", place.stream) == []


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("A-1", "A-2"),
        ("A-1", "side=buy"),
        ("side=buy", "--payload", "{}"),
        ("--field", "side"),
        ("x" * 129,),
        ("A-\x1b",),
        ("--stream", "a{b}", "A-1"),
        ("--nonsense", "A-1"),
    ],
)
async def test_wrong_usage_is_told_in_words(place: Place, ask: Ask, words: tuple[str, ...]) -> None:
    reply = await ask(place, "explain", *words)
    assert reply.code == 2
    assert reply.output == ""
    assert "ordergate: " in reply.errors or "error: " in reply.errors
