"""`audit` proves the equation, and finds each thing that breaks it; what can be mended, it mends."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from anyio import from_thread
from redis.asyncio import Redis
from structlog.testing import capture_logs

from streams.entry import EntryId
from tests.integration.operate.conftest import Ask
from tests.isolation import Place, isolated
from tests.orders import T0_MS, ids, order, orders
from tests.record import Tally, check, claim_key, forge_claim, points_paid
from tests.servers import Servers, ServerUnavailable
from tests.workers import drain
from worker.errors import EmbeddedUnavailable
from worker.operate import audit_claims
from worker.programs import valkey

pytestmark = pytest.mark.anyio


@pytest.fixture
async def traffic(place: Place) -> Place:
    """Three orders, two repeats of the first, a rejection; on record, and their points written."""
    repeats = [order(0), order(0)]
    sent = [*orders(range(3)), *repeats, order(9, side="hold")]
    await place.publish(sent, ids(*range(0, 6000, 1000)))
    await drain(place)
    return place


async def audited(ask: Ask, place: Place, *words: str) -> dict[str, Any]:
    """What the audit of the one stream says; its exit code fits."""
    reply = await ask(place, "audit", "--json", *words)
    (report,) = reply.document
    assert reply.code == (0 if report["balanced"] else 1)
    return report


def told(report: dict[str, Any]) -> dict[str, list[str]]:
    """What differs: whose, by kind."""
    return {
        kind: [example["what"] for example in found["examples"]]
        for kind, found in report["differences"].items()
    }


async def hash_of(place: Place, entry_id: str) -> bytes:
    row, *_ = await place.fetch("SELECT content_hash FROM orders WHERE entry_id = $1", entry_id)
    return row["content_hash"]


def at(seconds: int) -> str:
    return f"{T0_MS + 1000 * seconds}-0"


async def delete_order(place: Place, entry_id: str) -> None:
    await place.fetch("DELETE FROM orders WHERE entry_id = $1", entry_id)


async def test_a_whole_record_is_balanced(traffic: Place, ask: Ask) -> None:
    report = await audited(ask, traffic)
    assert (report["read"], report["accepted"], report["duplicates"]) == (6, 3, 2)
    assert (report["rejected"], report["pending"], report["unread"]) == (1, 0, 0)
    assert (report["points"], report["claims"], report["differences"]) == (6, 3, {})
    text = await ask(traffic, "audit")
    assert text.code == 0
    assert "6 read = 3 accepted + 2 duplicates + 1 rejected + 0 pending" in text.output
    assert text.output.endswith(f"stream {traffic.stream}: balanced\n")


async def test_nothing_at_all_is_balanced(place: Place, ask: Ask) -> None:
    report = await audited(ask, place)
    assert (report["read"], report["lost"]) == (0, "unknown: there is no such stream")
    assert await place.command("KEYS", "*") == []


async def test_what_is_pending_or_unread_is_no_difference(place: Place, ask: Ask) -> None:
    stream, group = place.stream, place.settings.group
    await place.command("XGROUP", "CREATE", stream, group, "0", "MKSTREAM")
    await place.publish(orders(range(5)))
    await place.command("XREADGROUP", "GROUP", group, "w-7", "COUNT", 2, "STREAMS", stream, ">")
    report = await audited(ask, place)
    assert (report["read"], report["pending"], report["unread"]) == (2, 2, 3)


async def test_a_missing_point_is_found_and_noted_as_owed(traffic: Place, ask: Ask) -> None:
    traffic.influx.query("DROP SERIES FROM orders WHERE outcome = 'duplicate'", traffic.bucket)
    assert told(await audited(ask, traffic)) == {"point_missing": [at(3), at(4)]}
    assert await traffic.fetch("SELECT FROM point_backlog") == []  # it only looks
    mended = await audited(ask, traffic, "--repair")
    assert mended["differences"]["point_missing"]["mended"] == 2
    assert (await audited(ask, traffic))["points_owed"] == 2
    await drain(traffic)
    await points_paid(traffic)
    assert (await audited(ask, traffic))["points"] == 6
    assert await check(traffic) == Tally(3, 2, 1)


async def test_a_deleted_order_row_is_found_by_its_entry_its_point_and_its_claim(
    traffic: Place, ask: Ask
) -> None:
    key = claim_key(traffic, await hash_of(traffic, at(1)))
    await delete_order(traffic, at(1))
    assert told(await audited(ask, traffic)) == {
        "outcome_missing": [at(1)],
        "point_without_outcome": [at(1)],
        "claim_contradicts": [key],
    }
    text = (await ask(traffic, "audit")).output
    assert "6 read ≠ 2 accepted + 2 duplicates + 1 rejected + 0 pending = 5" in text
    await audited(ask, traffic, "--repair")
    assert await traffic.redis.get(key) is None
    assert told(await audited(ask, traffic)).keys() == {"outcome_missing", "point_without_outcome"}


async def test_a_deleted_order_row_is_found_when_its_entry_has_left_the_stream(
    traffic: Place, ask: Ask
) -> None:
    await delete_order(traffic, at(1))
    await traffic.command("XDEL", traffic.stream, at(1))
    await traffic.forget_claims()
    assert told(await audited(ask, traffic)).keys() - {"entries_lost"} == {"point_without_outcome"}


async def test_a_duplicate_whose_original_is_gone_is_found(traffic: Place, ask: Ask) -> None:
    await traffic.fetch("ALTER TABLE duplicates DROP CONSTRAINT duplicates_original_fkey")
    await delete_order(traffic, at(0))
    found = told(await audited(ask, traffic))
    assert found["original_missing"] == [at(3), at(4)]
    assert found["outcome_missing"] == [at(0)]


async def test_an_entry_that_was_acknowledged_without_an_outcome_is_found(
    traffic: Place, ask: Ask
) -> None:
    stream, group = traffic.stream, traffic.settings.group
    (entry_id,) = await traffic.publish([order(7)])
    await traffic.command("XREADGROUP", "GROUP", group, "x", "STREAMS", stream, ">")
    assert told(await audited(ask, traffic)) == {}
    await traffic.command("XACK", stream, group, entry_id)
    assert told(await audited(ask, traffic)) == {"outcome_missing": [entry_id]}


async def test_content_that_was_accepted_twice_within_the_window_is_found(
    place: Place, ask: Ask
) -> None:
    """Taken in with a window of a second; by one of three seconds the next two should have been repeats."""
    await place.publish([order(0)] * 4, ids(0, 2000, 4000, 8000))
    await drain(place.having(WORKER_DEDUPE_WINDOW="1s"))
    report = await audited(ask, place.having(WORKER_DEDUPE_WINDOW="1999ms"))
    assert report["balanced"]
    report = await audited(ask, place.having(WORKER_DEDUPE_WINDOW="3s"))
    assert told(report) == {"accepted_twice": [at(2), at(4)]}
    assert report["differences"]["accepted_twice"]["examples"] == [
        {"what": at(2), "detail": f"the same content as {at(0)}"},
        {"what": at(4), "detail": f"the same content as {at(2)}"},
    ]


async def test_two_outcomes_of_one_entry_are_found(traffic: Place, ask: Ask) -> None:
    await traffic.fetch(
        "INSERT INTO duplicates SELECT stream, $1, entry_at, order_id, extra, content_hash, generation,"
        " recorded_at FROM orders WHERE entry_id = $1",
        at(2),
    )
    report = await audited(ask, traffic)
    assert told(report)["two_outcomes"] == [at(2)]
    assert "accepted and duplicate, the same content" in str(report)


@pytest.mark.parametrize(
    ("value", "mended"),
    [
        ("1-1", at(0)),
        pytest.param(at(1), at(0), id="an order of another content"),
        ("nonsense", at(0)),
        ("", at(0)),
    ],
)
async def test_a_claim_that_contradicts_postgres_is_found_and_corrected(
    traffic: Place, ask: Ask, value: str, mended: str
) -> None:
    key = claim_key(traffic, await hash_of(traffic, at(0)))
    await traffic.redis.set(key, value, ex=3600)
    assert told(await audited(ask, traffic)) == {"claim_contradicts": [key]}
    report = await audited(ask, traffic, "--repair")
    assert report["differences"]["claim_contradicts"]["mended"] == 1
    assert await traffic.redis.get(key) == mended
    assert 0 < await traffic.redis.ttl(key) <= 3600
    assert told(await audited(ask, traffic)) == {}


async def test_a_claim_of_another_kind_is_found_and_removed(traffic: Place, ask: Ask) -> None:
    key = claim_key(traffic, bytes(32))
    await traffic.command("LPUSH", key, "x")
    assert told(await audited(ask, traffic, "--repair")) == {"claim_contradicts": [key]}
    assert await traffic.command("EXISTS", key) == 0


@pytest.mark.parametrize("seconds", [5, 6, 7], ids=["rejected", "pending", "unread"])
async def test_a_claim_whose_entry_became_no_order_or_is_in_hand_contradicts_nothing(
    traffic: Place, ask: Ask, seconds: int
) -> None:
    await traffic.publish(orders(range(6, 8)), [at(6), at(7)])
    group = traffic.settings.group
    await traffic.redis.xreadgroup(group, "gone", {traffic.stream: ">"}, count=1)
    await traffic.redis.set(claim_key(traffic, bytes(32)), at(seconds))
    assert told(await audited(ask, traffic)) == {}


async def test_an_entry_that_is_settled_between_two_looks_at_its_claim_contradicts_nothing(
    traffic: Place, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    await traffic.publish([order(6)], [at(6)])
    await traffic.redis.xreadgroup(
        traffic.settings.group, "drain-0", {traffic.stream: ">"}, count=1
    )
    await forge_claim(traffic, order(6), at(6))
    right, looks = audit_claims.pending_ids, 0

    async def settled_meanwhile(redis: Redis, stream: str, group: str) -> AsyncGenerator[EntryId]:
        nonlocal looks
        looks += 1
        with capture_logs():  # the report is read from what is printed
            from_thread.run(drain, traffic)
        async for id_ in right(redis, stream, group):
            yield id_

    monkeypatch.setattr(audit_claims, "pending_ids", settled_meanwhile)
    assert told(await audited(ask, traffic)) == {}
    assert looks == 1


async def test_a_claim_that_names_a_repeat_of_its_order_contradicts_nothing(
    traffic: Place, ask: Ask
) -> None:
    await traffic.redis.set(claim_key(traffic, await hash_of(traffic, at(0))), at(3))
    assert told(await audited(ask, traffic)) == {}


async def test_a_point_that_tells_of_another_outcome_is_found(traffic: Place, ask: Ask) -> None:
    await traffic.fetch("DELETE FROM duplicates WHERE entry_id = $1", at(3))
    await traffic.fetch(
        "INSERT INTO rejections SELECT stream, $1, entry_at, 'x', 'x', NULL, NULL, '{}', recorded_at"
        " FROM orders WHERE entry_id = $2",
        at(3),
        at(0),
    )
    found = told(await audited(ask, traffic))
    assert found == {"point_differs": [at(3)], "point_missing": [at(3)]}


async def test_only_a_range_is_looked_at_where_one_is_given(traffic: Place, ask: Ask) -> None:
    await delete_order(traffic, at(1))
    await traffic.forget_claims()
    middle = "2026-01-01T00:00:01"
    before = await audited(ask, traffic, "--until", middle)
    assert (before["read"], before["differences"]) == (1, {})
    after = await audited(ask, traffic, "--since", f"{middle}.500Z")
    assert (after["read"], after["balanced"]) == (4, True)
    assert not (await audited(ask, traffic, "--since", middle))["balanced"]


async def test_at_most_so_many_of_a_kind_are_listed_and_all_are_counted(
    traffic: Place, ask: Ask
) -> None:
    traffic.influx.query("DROP SERIES FROM orders", traffic.bucket)
    report = await audited(ask, traffic, "--limit", "2")
    assert report["differences"]["point_missing"]["count"] == 6
    assert told(report)["point_missing"] == [at(0), at(1)]
    assert "and 4 more (--limit)" in (await ask(traffic, "audit", "--limit", "2")).output


async def test_entries_that_left_before_they_were_read_are_counted(
    clean_servers: Servers, own_servers: Servers, ask: Ask
) -> None:
    try:
        program = valkey()
    except EmbeddedUnavailable as reason:
        raise ServerUnavailable(str(reason)) from reason
    url = own_servers.own_redis(program=program).url
    async with isolated(clean_servers, redis_url=url) as place:
        await place.publish(orders(range(10)))
        await place.command("XTRIM", place.stream, "MAXLEN", 7)
        await drain(place)
        report = await audited(ask, place)
        assert report["differences"]["entries_lost"]["count"] == 3
        assert report["lost"] == "3 of 10 added"
        assert (
            "more (--limit)" not in (await ask(place, "audit")).output
        )  # the one line says it all


async def test_streams_are_audited_each_by_itself(traffic: Place, ask: Ask) -> None:
    reply = await ask(traffic, "audit", "--json", "--stream", traffic.stream, "--stream", "none")
    assert [report["read"] for report in reply.document] == [6, 0]


async def test_points_in_a_file_are_audited_there(place: Place, ask: Ask, tmp_path: str) -> None:
    place = place.having(INFLUXDB_URL=f"file://{tmp_path}/points.lp")
    await place.publish([*orders(range(3)), order(0)])
    await drain(place)
    assert (await audited(ask, place))["points"] == 4


async def test_entries_at_the_edge_of_time_are_audited(place: Place, ask: Ask) -> None:
    edge = ["9223372036854-1", "9223372036855-0", str(EntryId(2**64 - 2, 5))]
    await place.publish([order(n) for n in range(3)], ["1-1", *edge[:2]])
    await drain(place)
    report = await audited(ask, place)
    assert (report["read"], report["differences"]) == (3, {})


@pytest.mark.parametrize(
    "words",
    [
        ("--since", "yesterday"),
        ("--since", "1h", "--until", "2h"),
        ("--since", "\udcff"),
        ("--limit", "0"),
        ("--limit", "many"),
        ("--stream", "a{b}"),
        ("--stream", ""),
        ("extra",),
        ("--fix",),
    ],
)
async def test_wrong_usage_is_told_in_words(place: Place, ask: Ask, words: tuple[str, ...]) -> None:
    reply = await ask(place, "audit", *words)
    assert (reply.code, reply.output) == (2, "")
    assert "ordergate: " in reply.errors or "error: " in reply.errors
