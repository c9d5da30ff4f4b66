"""`dead-letters` lists, shows, sends again and removes what was rejected; nothing goes twice by mistake."""

import base64

import anyio
import pytest

from streams.connection import connect
from streams.dead_letters import DeadLetters, Letter
from tests.integration.operate.conftest import Ask
from tests.isolation import Place
from tests.orders import order
from tests.record import Tally, check, dead_letters
from tests.workers import Workers, drain
from worker.operate.replay_letters import changed

pytestmark = pytest.mark.anyio

HOSTILE = "<script>\x1b[31m\u202e"


@pytest.fixture
async def rejected(place: Place) -> tuple[Place, list[str]]:
    """Four rejections: a side, the same in a payload, bytes that are no UTF-8, far too many fields."""
    payload = (
        '{"order_id": "P-1", "symbol": "ETHUSDT", "side": "hold", "type": "market", '
        '"quantity": 1.50, "note": [1.10, 2e3]}'
    )
    many = [word for n in range(2500) for word in (f"n{n}", "v")]
    sent: list[list[str | bytes]] = [
        [word for pair in order(1, order_id="A-1", side="hold").items() for word in pair],
        ["payload", payload],
        ["order_id", "A-3", HOSTILE, b"\xff\xfe\n", "symbol", "BTCUSDT"],
        [*many],
    ]
    ids = [await place.command("XADD", place.stream, "*", *words) for words in sent]
    await drain(place)
    return place, ids


Rejected = tuple[Place, list[str]]


async def test_letters_are_listed_and_filtered(rejected: Rejected, ask: Ask) -> None:
    place, ids = rejected

    async def listed(*words: str) -> list[str]:
        reply = await ask(place, "dead-letters", "list", "--json", *words)
        assert reply.code == 0
        return [letter["entry_id"] for letter in reply.document]

    assert await listed() == ids
    assert await listed("--code", "side_invalid") == ids[:2]
    assert await listed("--code", "side_invalid", "--code", "too_many_fields") == [*ids[:2], ids[3]]
    assert await listed("--symbol", "ETHUSDT") == [ids[1]]
    assert await listed("--limit", "3") == ids[:3]
    assert await listed("--since", "1h") == ids
    assert await listed("--until", "1h") == []
    assert await listed("--since", "2100-01-01") == []
    assert await listed(ids[2]) == [ids[2]]
    text = (await ask(place, "dead-letters", "list", "--limit", "2")).output
    assert "P-1" in text
    assert "There may be more" in text


async def test_a_letter_is_shown_safely_and_to_the_byte(rejected: Rejected, ask: Ask) -> None:
    place, ids = rejected
    shown = (await ask(place, "dead-letters", "show", ids[2])).output
    assert "<script>\\x1b[31m\\u202e = \\xff\\xfe\\n" in shown
    (letter,) = (await ask(place, "dead-letters", "show", ids[2], "--json")).document
    words = [base64.b64decode(word) for word in letter["fields_base64"]]
    assert words == [b"order_id", b"A-3", HOSTILE.encode(), b"\xff\xfe\n", b"symbol", b"BTCUSDT"]


async def test_raw_gives_the_bytes_that_were_sent(
    rejected: Rejected, workers: Workers, tmp_path: str
) -> None:
    place, ids = rejected
    worker = await workers.start(place, "dead-letters", "show", "--raw", ids[2])
    assert await worker.ended() == 0
    printed = await anyio.Path(f"{tmp_path}/worker-0.out").read_bytes()
    expected = [b"order_id", b"A-3", HOSTILE.encode(), b"\xff\xfe\n", b"symbol", b"BTCUSDT", b""]
    assert printed == b"\n".join(expected)


async def test_a_packed_letter_is_unpacked(rejected: Rejected, ask: Ask) -> None:
    place, ids = rejected
    assert (await dead_letters(place))[3].keys() >= {b"packed"}
    (letter,) = (await ask(place, "dead-letters", "show", ids[3], "--json")).document
    assert letter["fields"] == [[f"n{n}", "v"] for n in range(2500)]


async def test_a_field_that_is_named_packed_is_a_field(place: Place, ask: Ask) -> None:
    entry_id = await place.command("XADD", place.stream, "*", "packed", b"\xdc\x00\x01\xa1x")
    await drain(place)
    (letter,) = (await ask(place, "dead-letters", "show", entry_id, "--json")).document
    assert letter["fields"] == [["packed", "\\xdc\\x00\\x01\\xa1x"]]


async def test_a_letter_is_sent_again_with_a_field_changed_and_ends_as_an_order(
    rejected: Rejected, ask: Ask
) -> None:
    place, ids = rejected
    reply = await ask(place, "dead-letters", "replay", *ids[:2], "--set", "side=buy", "--json")
    assert reply.code == 0
    flat, payload = (sent["replayed_as"] for sent in reply.document)
    entries = dict(await place.command("XRANGE", place.stream, flat, "+"))
    assert entries[flat][entries[flat].index("side") + 1] == "buy"
    assert '"quantity":1.50,"note":[1.10, 2e3]' in entries[payload][1]  # the others as they were
    await drain(place)
    orders = await place.fetch("SELECT entry_id FROM orders ORDER BY entry_id")
    assert [row["entry_id"] for row in orders] == [flat, payload]
    links = await place.fetch("SELECT entry_id, origin_id, changed FROM replays ORDER BY entry_id")
    assert [tuple(row.values()) for row in links] == [
        (flat, ids[0], ["side"]),
        (payload, ids[1], ["side"]),
    ]
    about = (await ask(place, "explain", flat, "--json")).document["replays"]
    assert about == [f"is {ids[0]} sent again, with side changed"]
    about = (await ask(place, "explain", ids[0], "--json")).document["replays"]
    assert about == [f"sent again as {flat}, with side changed"]


async def test_a_letter_is_sent_as_it_was_to_the_byte(rejected: Rejected, ask: Ask) -> None:
    place, ids = rejected
    reply = await ask(place, "dead-letters", "replay", ids[2], "--json")
    (sent,) = reply.document
    assert "will be rejected again, not_utf8" in sent["says"]
    assert await fields(place, sent["replayed_as"]) == await fields(place, ids[2])


async def fields(place: Place, entry_id: str) -> list[str]:
    ((_, words),) = await place.command("XRANGE", place.stream, entry_id, entry_id)
    return words


async def test_a_letter_is_sent_again_once(rejected: Rejected, ask: Ask) -> None:
    place, ids = rejected
    words = ("dead-letters", "replay", ids[0], "--set", "side=buy", "--json")
    first = (await ask(place, *words)).document[0]["replayed_as"]
    second = await ask(place, *words)
    assert second.code == 1
    assert second.document[0]["before"] == [first]
    assert second.document[0]["replayed_as"] is None
    third = await ask(place, *words, "--again")
    assert third.code == 0
    await drain(place)
    tally = await place.fetch("SELECT outcome, count(*) AS n FROM outcomes GROUP BY 1 ORDER BY 1")
    assert [tuple(row.values()) for row in tally] == [
        ("accepted", 1),
        ("duplicate", 1),
        ("rejected", 4),
    ]
    listed = (await ask(place, "dead-letters", "list", "--json")).document
    assert listed[0]["replayed_as"] == [first, third.document[0]["replayed_as"]]


async def test_of_many_who_send_one_letter_again_only_one_does(rejected: Rejected) -> None:
    place, ids = rejected
    before = await place.command("XLEN", place.stream)
    sent: list[str | None] = []

    async def send() -> None:
        async with connect(place.settings.redis_address, timeout_ms=10_000) as redis:
            letters = DeadLetters(redis, place.stream)
            letter = await letters.letter(ids[0])
            assert letter
            sent.append((await letters.replay(letter, letter.fields, again=False)).entry_id)

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(send)
    assert len([entry_id for entry_id in sent if entry_id]) == 1
    assert await place.command("XLEN", place.stream) == before + 1


async def test_a_replay_that_ended_before_it_was_on_record_is_caught_up_with(
    rejected: Rejected, ask: Ask
) -> None:
    place, ids = rejected
    letters = DeadLetters(place.redis, place.stream)
    letter = await letters.letter(ids[0])
    assert letter
    sent = await letters.replay(letter, letter.fields, again=False)
    assert (await ask(place, "dead-letters", "replay", ids[0])).code == 1
    rows = await place.fetch("SELECT entry_id, origin_id FROM replays")
    assert [tuple(row.values()) for row in rows] == [(sent.entry_id, ids[0])]


async def test_a_dry_run_sends_nothing(rejected: Rejected, ask: Ask) -> None:
    place, ids = rejected
    before = await place.command("XLEN", place.stream)
    reply = await ask(place, "dead-letters", "replay", "--all", "--set", "side=buy", "--dry-run")
    assert reply.code == 0
    assert f"{ids[0]}: would be sent; order A-1" in reply.output
    assert await place.command("XLEN", place.stream) == before
    assert await place.fetch("SELECT FROM replays") == []


async def test_what_is_rejected_again_meanwhile_is_not_sent_again_in_the_same_run(
    rejected: Rejected,
) -> None:
    place, ids = rejected
    letters = DeadLetters(place.redis, place.stream)
    seen: list[Letter] = []
    async for letter in letters.letters():
        seen.append(letter)
        await place.command("XADD", f"{{{place.stream}}}:dead", "*", *letter_words(letter))
    assert [letter.entry_id for letter in seen] == ids


def letter_words(letter: Letter) -> list[str]:
    return ["entry_id", "9-9", "code", letter.code, "reason", letter.reason, "a", "b"]


async def test_a_purge_removes_letters_and_keeps_their_rejections(
    rejected: Rejected, ask: Ask
) -> None:
    place, ids = rejected
    index = f"{{{place.stream}}}:dead:index"
    refused = await ask(place, "dead-letters", "purge", "--code", "side_invalid")
    assert refused.code == 2
    assert "remove 2 dead letters" in refused.errors
    assert len(await dead_letters(place)) == 4
    done = await ask(place, "dead-letters", "purge", "--code", "side_invalid", "--yes", "--json")
    assert done.document == {"removed": 2, "missing": 0}
    assert sorted(await place.command("HKEYS", index)) == sorted(ids[2:])
    assert len(await place.fetch("SELECT FROM rejections")) == 4
    assert (await ask(place, "dead-letters", "purge", ids[0], "--yes")).code == 1
    assert (await ask(place, "dead-letters", "show", ids[0])).code == 1
    assert (await ask(place, "dead-letters", "replay", ids[0])).code == 1
    assert (await ask(place, "dead-letters", "purge", "--all", "--yes")).code == 0
    assert await place.command("EXISTS", index) == 0


async def test_an_entry_whose_letter_was_purged_keeps_its_replays(
    rejected: Rejected, ask: Ask
) -> None:
    place, ids = rejected
    await ask(place, "dead-letters", "replay", ids[0], "--set", "side=buy")
    await ask(place, "dead-letters", "purge", ids[0], "--yes")
    assert "sent again as" in (await ask(place, "explain", ids[0])).output


async def test_after_all_this_the_record_is_whole(rejected: Rejected, ask: Ask) -> None:
    place, ids = rejected
    await ask(place, "dead-letters", "replay", ids[0], "--set", "side=buy")
    await drain(place)
    assert await check(place) == Tally(accepted=1, rejected=4)
    assert (await ask(place, "audit")).code == 0


async def test_there_may_be_none_at_all(place: Place, ask: Ask) -> None:
    assert (await ask(place, "dead-letters", "list")).output == "No dead letters.\n"
    assert (await ask(place, "dead-letters", "list", "--json")).document == []
    assert (await ask(place, "dead-letters", "replay", "--all")).code == 0
    assert (await ask(place, "dead-letters", "purge", "--all")).code == 0
    assert (await ask(place, "dead-letters", "show", "1-1")).code == 1
    assert await place.command("KEYS", "*") == []


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("burn",),
        ("show",),
        ("replay",),
        ("purge", "--yes"),
        ("list", "A-17"),
        ("list", "--since", "yesterday"),
        ("list", "--limit", "0"),
        ("replay", "1-1", "--set", "price"),
        ("list", "--stream", "{a}"),
    ],
)
async def test_wrong_usage_is_told_in_words(place: Place, ask: Ask, words: tuple[str, ...]) -> None:
    reply = await ask(place, "dead-letters", *words)
    assert (reply.code, reply.output) == (2, "")
    assert "ordergate: " in reply.errors or "error: " in reply.errors


@pytest.mark.parametrize(
    ("fields", "set_", "unset", "expected"),
    [
        (["a", "1", "b", "2"], [("b", "3")], [], ["a", "1", "b", "3"]),
        (["a", "1"], [("b", "")], [], ["a", "1", "b", ""]),
        (["a", "1", "b", "2", "a", "3"], [], ["a"], ["b", "2"]),
        (["a", "1", "b", "2", "a", "3"], [("a", "4")], [], ["a", "4", "b", "2"]),
        (
            ["payload", '{"a": 1.50, "b": 2}'],
            [("b", 'x"')],
            [],
            ["payload", '{"a":1.50,"b":"x\\""}'],
        ),
        (["payload", '{"a": 1.50, "b": 2}'], [], ["b"], ["payload", '{"a":1.50}']),
        (["payload", "{"], [("payload", "{}")], [], ["payload", "{}"]),
        ([], [("a", "1")], [], ["a", "1"]),
    ],
)
def test_fields_are_changed_and_the_others_left_as_they_are(
    fields: list[str], set_: list[tuple[str, str]], unset: list[str], expected: list[str]
) -> None:
    assert changed(fields, set_, unset) == expected


def test_a_payload_that_is_no_object_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="no JSON object"):
        changed(["payload", "[1]"], [("a", "1")], [])
