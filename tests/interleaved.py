"""Workers that record the same contents, or the same entries, at once, and what must come of it.

A worker that stalls and wakes holds what another has taken over. Repeats of one content lie in several
windows here, some entries are no orders, some are trimmed while a worker holds them, some given up by one of
them, and the workers' settings differ and how they read an entry, so that all ways of `record_outcomes` meet
each other.
"""

from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from hashlib import sha256
from itertools import product
from random import Random
from typing import Any, NamedTuple

import anyio
from msgspec.structs import replace

from streams.entry import Entry
from tests.isolation import Place
from tests.orders import T0_MS, order
from worker.batch import GIVEN_UP
from worker.decide import Decision, Insert, Reject, Repeat
from worker.errors import PostgresUnavailable
from worker.ledger import Ledger, Recorded, Rules
from worker.order import ENVELOPE_FIELDS, READING, Malformed, Order, parse
from worker.outcome import Duplicate, Kept, Outcome, Rejected

WORKERS, ENTRIES, CONTENTS, BATCH_MAX = 4, 60, 4, 6
STEP_MS_MAX = 300
WINDOWS_MS = 1_000, 1_500  #: of workers whose settings differ
ENVELOPES = ENVELOPE_FIELDS, ENVELOPE_FIELDS | {"nonce"}
READINGS = READING, READING + 1  #: of workers of this version, and of a later one, see `_read`
BAD_SHARE, TRIMMED_SHARE, GIVEN_UP_SHARE = 0.1, 0.1, 0.1

NO_ORDER_ANY_MORE = Malformed("later", "a rule of a later version")

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
NOTHING_BEHIND_THE_LOOK = """
DROP FUNCTION original_of;
ALTER FUNCTION original_found RENAME TO original_of;
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
QUICK_INSERTS = "DROP FUNCTION slowly CASCADE;"
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
    """What a worker was told, what it had asked for, and by which rules."""

    rules: Rules
    decision: Decision
    outcome: Outcome


async def interleave(place: Place, seed: str, rounds: int) -> None:
    """Have workers record the same at once, so many times; in every second round their settings differ.

    :raises AssertionError: with the round in a note
    """
    settings = place.settings
    ledger = Ledger(
        settings.database_address, place.schema, timeout_ms=30_000, connections_max=WORKERS
    )
    async with aclosing(ledger), _paused(place):
        for number in range(rounds):
            try:
                chance = Random(f"{seed} {number}")  # noqa: S311 - to be repeated
                stream, differing = f"{place.stream}-{number}", number % 2 > 0
                await _round(place, ledger, chance, stream, differing=differing)
            except BaseException as error:
                error.add_note(f"round {number} of seed {seed}")
                raise


@asynccontextmanager
async def _paused(place: Place) -> AsyncGenerator[None]:
    """Pauses by chance between looking, inserting and committing."""
    pause = BEHIND_THE_LOOK.format(statement="PERFORM pg_sleep(random() * 0.005)")
    await place.postgres.execute(pause + SLOW_INSERTS)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await place.postgres.execute(QUICK_INSERTS + NOTHING_BEHIND_THE_LOOK)


async def _round(
    place: Place, ledger: Ledger, chance: Random, stream: str, *, differing: bool
) -> None:
    entries = list(_made(chance, stream))
    said: dict[str, list[Said]] = defaultdict(list)
    all_rules = [Rules(*each) for each in product(WINDOWS_MS, ENVELOPES, READINGS)]
    in_use = all_rules if differing else chance.sample(all_rules, 1)

    async def work(chance: Random) -> None:
        rules, owe_points = chance.choice(in_use), chance.choice((True, False))
        todo = entries
        while todo:
            count = chance.randint(1, BATCH_MAX)
            batch, todo = todo[:count], todo[count:]
            decisions = [_decided(chance, entry, rules) for entry in batch]
            how = partial(ledger.record, rules=rules, owe_points=owe_points, read_after=None)
            outcomes = await _recorded(partial(how, stream, decisions))
            for decision, outcome in zip(decisions, outcomes, strict=True):
                said[outcome.entry.id].append(Said(rules, decision, outcome))

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
        _check_said(said[row["entry_id"]], row)


async def _recorded(record: Callable[[], Awaitable[Recorded]]) -> list[Outcome]:
    """Record them, again where Postgres ended the call for a deadlock: those who hold the same entries may
    lock them in any order.
    """
    while True:
        with suppress(PostgresUnavailable):
            return (await record()).outcomes


def _made(chance: Random, stream: str) -> Sequence[Entry]:
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


def _decided(chance: Random, entry: Entry, rules: Rules) -> Decision:
    """Whatever Redis may have said of it; or it was given up, or trimmed while this worker held it."""
    if chance.random() < GIVEN_UP_SHARE:
        return Reject(entry, GIVEN_UP)
    if chance.random() < TRIMMED_SHARE:
        entry = Entry(entry.stream, entry.id, None)
    found = _read(entry.fields, rules)
    if isinstance(found, Malformed):
        return Reject(entry, found)
    return chance.choice((Insert, Repeat))(entry, found)


def _read(fields: Sequence[str] | None, rules: Rules) -> Order | Malformed:
    """An entry, as this version reads it; a later one hashes otherwise, and takes some orders for none."""
    found = parse(fields, rules.envelope)
    if isinstance(found, Malformed) or rules.reading == READING:
        return found
    if found.content_hash[0] % 4 == 0:
        return NO_ORDER_ANY_MORE
    return replace(found, content_hash=sha256(found.content_hash).digest())


def _check_said(said: Sequence[Said], row: dict[str, Any]) -> None:
    """Every worker was told what is on record, and one of them that it was the first."""
    known = [each.outcome for each in said if not isinstance(each.outcome, Kept)]
    for outcome in known:
        told = outcome.original_id if isinstance(outcome, Duplicate) else None
        code = outcome.malformed.code if isinstance(outcome, Rejected) else None
        on_record = row["outcome"], row["original_entry_id"], row["code"]
        assert (outcome.word, told, code) == on_record, f"{outcome} for {row}"
    assert [outcome.redelivered for outcome in known].count(False) == 1
    for each in said:
        if isinstance(each.outcome, Kept):
            _check_kept(each, row)


def _check_kept(said: Said, row: dict[str, Any]) -> None:
    """Another was first, who had not the same of this entry: its fields and not, another envelope or reading;
    or this one gave it up.

    Where it is on record as trimmed this is not final: with fields it may be a later entry.
    """
    trimmed = row["code"] == "trimmed"
    assert said.outcome.final != trimmed
    if trimmed or said.decision.entry.fields is None:
        assert trimmed != (said.decision.entry.fields is None), f"{said} for {row}"
        return
    assert row["outcome"] != "rejected", f"{said} for {row}"
    if isinstance(said.decision, Reject):
        assert said.decision.malformed in (GIVEN_UP, NO_ORDER_ANY_MORE), f"{said} for {row}"
    else:
        assert said.decision.order.content_hash != row["content_hash"], f"{said} for {row}"
