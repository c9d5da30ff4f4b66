"""Workers that record the same contents, or the same entries, at once.

A worker that stalls and wakes holds what another has taken over. Repeats of one content lie in several
windows here, some entries are no orders, some are trimmed while a worker holds them, and the workers'
settings differ, so that all ways of `record_outcomes` meet each other. ORDERGATE_TEST_SEED repeats a run.
"""

import os
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import product
from random import Random, SystemRandom
from typing import Any, NamedTuple

import anyio
import pytest

from streams.entry import Entry
from tests.isolation import Place
from tests.orders import T0_MS, ids, order
from tests.record import Tally, check, until
from tests.workers import drain
from worker.decide import Decision, Insert, Reject, Repeat
from worker.errors import PostgresUnavailable
from worker.ledger import Ledger, Recorded, Rules
from worker.order import ENVELOPE_FIELDS, Malformed, Order, parse
from worker.outcome import Duplicate, Kept, Outcome, Rejected

pytestmark = pytest.mark.anyio

ROUNDS, WORKERS, ENTRIES, CONTENTS, BATCH_MAX = 4, 4, 60, 4, 6
STEP_MS_MAX = 300
WINDOWS_MS = 1_000, 1_500  #: of workers whose settings differ
ENVELOPES = ENVELOPE_FIELDS, ENVELOPE_FIELDS | {"nonce"}
BAD_SHARE, TRIMMED_SHARE = 0.1, 0.1
SEED = "ORDERGATE_TEST_SEED"

KEY = 7  #: of an advisory lock
WAITS = f"SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = {KEY} AND NOT granted"
BEGUN = "SELECT FROM orders WHERE generation > 0"
#: What a worker does once it has looked for the original of an entry at an instant, `p_at`.
BEHIND_THE_LOOK = """
ALTER FUNCTION original_of RENAME TO original_found;
CREATE FUNCTION original_of(p_content_hash bytea, p_at timestamptz, p_window interval)
RETURNS SETOF orders LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT * FROM original_found(p_content_hash, p_at, p_window);
    {statement};
END $$;
"""
#: Between what a worker inserts and its commit, too, there is time for others.
SLOW_INSERTS = """
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(random() * 0.005);
    RETURN NULL;
END $$;
CREATE TRIGGER slowly AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION slowly();
CREATE TRIGGER slowly_begun BEFORE INSERT ON orders FOR EACH STATEMENT EXECUTE FUNCTION slowly();
CREATE TRIGGER slowly AFTER INSERT ON duplicates FOR EACH ROW EXECUTE FUNCTION slowly();
"""
OUTCOMES = """
SELECT entry_id, outcome, original_entry_id, code, content_hash
FROM outcomes WHERE stream = $1 ORDER BY entry_id
"""
#: Nobody here writes points, so each is owed, or in hand.
WITHOUT_POINT = """
SELECT entry_id FROM outcomes WHERE stream = $1
EXCEPT SELECT entry_id FROM point_backlog WHERE stream = $1
EXCEPT SELECT unnest(entry_ids) FROM points_in_hand WHERE stream = $1
"""
ACCEPTED_TWICE = """
SELECT a.entry_id, b.entry_id AS again FROM orders a JOIN orders b USING (stream, content_hash)
WHERE stream = $1 AND a.generation < b.generation
    AND b.entry_at BETWEEN a.entry_at - $2::interval AND a.entry_at + $2::interval
"""
FAR_FROM_ITS_ORIGINAL = """
SELECT d.entry_id FROM duplicates d JOIN orders o USING (content_hash, generation)
WHERE d.stream = $1
    AND d.entry_at NOT BETWEEN o.entry_at - $2::interval AND o.entry_at + $2::interval
"""


class Said(NamedTuple):
    """What a worker was told, and by which rules it had asked."""

    rules: Rules
    outcome: Outcome


async def test_of_two_workers_that_meet_a_window_that_has_ended_one_begins_the_next(
    place: Place,
) -> None:
    place = place.having(WORKER_DEDUPE_WINDOW="1s", WORKER_BATCHES_IN_FLIGHT="1")
    at = ids(0, 10_000, 10_012)
    await place.publish([order(1)], at[:1])
    await drain(place)
    wait = f"PERFORM pg_advisory_xact_lock({KEY}) WHERE p_at = to_timestamp({T0_MS // 1000 + 10})"
    await place.postgres.execute(BEHIND_THE_LOOK.format(statement=wait))

    async def holds(query: str) -> bool:
        return bool(await place.fetch(query))

    async with place.connected() as lock, anyio.create_task_group() as tasks:
        await lock.execute(f"SELECT pg_advisory_lock({KEY})")
        for entry_id, name, then in zip(at[1:], ("one", "two"), (WAITS, BEGUN), strict=True):
            await place.publish([order(1)], [entry_id])
            tasks.start_soon(drain, place.having(WORKER_CONSUMER=name))
            await until(partial(holds, then))
        await lock.execute(f"SELECT pg_advisory_unlock({KEY})")
    assert await check(place, in_order=False) == Tally(accepted=2, duplicates=1)


async def test_entries_that_several_workers_record_at_once_have_one_outcome_each(
    place: Place,
) -> None:
    seed = os.environ.get(SEED) or str(SystemRandom().getrandbits(32))
    settings = place.settings
    pause = "PERFORM pg_sleep(random() * 0.005)"
    await place.postgres.execute(BEHIND_THE_LOOK.format(statement=pause) + SLOW_INSERTS)
    ledger = Ledger(
        settings.database_address, place.schema, timeout_ms=30_000, connections_max=WORKERS
    )
    try:
        for number in range(ROUNDS):
            try:
                await round_of(place, ledger, Random(f"{seed} {number}"), f"round-{number}")  # noqa: S311 - to be repeated
            except BaseException as error:
                error.add_note(f"round {number} of {SEED}={seed}")
                raise
    finally:
        await ledger.aclose()


async def round_of(place: Place, ledger: Ledger, chance: Random, stream: str) -> None:
    entries = list(made(chance, stream))
    said: dict[str, list[Said]] = defaultdict(list)
    all_rules = [Rules(*each) for each in product(WINDOWS_MS, ENVELOPES)]
    in_use = chance.choice((chance.sample(all_rules, 1), all_rules))

    async def work(chance: Random) -> None:
        rules, owe_points = chance.choice(in_use), chance.choice((True, False))
        todo = entries
        while todo:
            count = chance.randint(1, BATCH_MAX)
            batch, todo = todo[:count], todo[count:]
            decisions = [decided(chance, entry, rules.envelope) for entry in batch]
            how = partial(ledger.record, rules=rules, owe_points=owe_points, read_after=None)
            for outcome in await recorded(partial(how, stream, decisions)):
                said[outcome.entry.id].append(Said(rules, outcome))

    async with anyio.create_task_group() as tasks:
        for _ in range(WORKERS):
            tasks.start_soon(work, Random(chance.random()))  # noqa: S311
    shortest, longest = (timedelta(milliseconds=ms) for ms in WINDOWS_MS)
    assert await place.fetch(ACCEPTED_TWICE, stream, shortest) == []
    assert await place.fetch(FAR_FROM_ITS_ORIGINAL, stream, longest) == []
    assert await place.fetch(WITHOUT_POINT, stream) == []
    rows = await place.fetch(OUTCOMES, stream)
    assert [row["entry_id"] for row in rows] == sorted(said)
    for row in rows:
        check_said(said[row["entry_id"]], row)


async def recorded(record: Callable[[], Awaitable[Recorded]]) -> list[Outcome]:
    """Record them, again where Postgres ended the call for a deadlock: those who hold the same entries may
    lock them in any order.
    """
    while True:
        with suppress(PostgresUnavailable):
            return (await record()).outcomes


def made(chance: Random, stream: str) -> Sequence[Entry]:
    """Entries of few contents, which follow each other through several windows; some are no orders."""
    found: list[Entry] = []
    at_ms = T0_MS
    for _ in range(ENTRIES):
        at_ms += chance.randint(1, STEP_MS_MAX)
        bad = {"side": "hold"} if chance.random() < BAD_SHARE else {}
        fields = order(
            chance.randrange(CONTENTS), account=stream, nonce=str(chance.randrange(2)), **bad
        )
        found.append(Entry(stream, f"{at_ms}-0", [word for it in fields.items() for word in it]))
    return found


def decided(chance: Random, entry: Entry, envelope: frozenset[str]) -> Decision:
    """Whatever Redis may have said of it; or it was trimmed while this worker held it."""
    if chance.random() < TRIMMED_SHARE:
        entry = Entry(entry.stream, entry.id, None)
    found = parse(entry.fields, envelope)
    if isinstance(found, Malformed):
        return Reject(entry, found)
    return chance.choice((Insert, Repeat))(entry, found)


def check_said(said: Sequence[Said], row: dict[str, Any]) -> None:
    """Every worker was told what is on record, and one of them that it was the first."""
    known = [outcome for _, outcome in said if not isinstance(outcome, Kept)]
    for outcome in known:
        told = outcome.original_id if isinstance(outcome, Duplicate) else None
        code = outcome.malformed.code if isinstance(outcome, Rejected) else None
        on_record = row["outcome"], row["original_entry_id"], row["code"]
        assert (outcome.word, told, code) == on_record, f"{outcome} for {row}"
    assert [outcome.redelivered for outcome in known].count(False) == 1
    for rules, outcome in said:
        if isinstance(outcome, Kept):
            check_kept(rules, outcome, row)


def check_kept(rules: Rules, kept: Kept, row: dict[str, Any]) -> None:
    """Another was first, who had not the same of this entry: its fields and not, or another envelope.

    Where it is on record as trimmed this is not final: with fields it may be a later entry.
    """
    trimmed = row["code"] == "trimmed"
    assert kept.final != trimmed
    found = parse(kept.entry.fields, rules.envelope)
    if isinstance(found, Order) and not trimmed:
        assert found.content_hash != row["content_hash"], f"{kept} for {row}"
    else:
        assert (kept.entry.fields is None) != trimmed, f"{kept} for {row}"
