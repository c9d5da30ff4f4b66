"""What the real servers hold of entries made by chance is what was meant, and nothing else.

ORDERGATE_FUZZ_STORED says how many entries, ORDERGATE_FUZZ_SEED which.
"""

import json
import os
import random
from collections.abc import Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, cast

import pytest
from anyio import to_thread

from streams.entry import Entry
from tests.fuzz import corpus
from tests.fuzz.mutator import SURROGATE, TEXTS, Fields, attacks, mutated
from tests.fuzz.reference import (
    Content,
    as_sent,
    comparable,
    content_of_entry,
    plain,
    row_of_entry,
)
from tests.isolation import Place
from tests.orders import T0_MS
from tests.record import Row, check_points
from tests.workers import drain
from worker.influx import sink_of
from worker.order import Malformed
from worker.outcome import Rejected
from worker.points import lines, points

pytestmark = pytest.mark.anyio

ENTRIES = int(os.environ.get("ORDERGATE_FUZZ_STORED") or 3_000)
SEED = os.environ.get("ORDERGATE_FUZZ_SEED")
DRAIN_S_MAX = 30 + ENTRIES / 100
TAGS = {"code", "outcome", "side", "stream", "symbol", "type"}
VALUES = {
    "entry_id",
    "order_id",
    "quantity",
    "price",
    "stop_price",
    "generation",
    "original_entry_id",
}
ROWS = """
SELECT v.entry_id, v.outcome, v.original_entry_id, r.fields,
       coalesce(a.order_id, d.order_id) AS order_id, coalesce(a.extra, d.extra) AS extra,
       a.account, a.symbol, a.side, a.type, a.quantity, a.price, a.stop_price, a.time_in_force, a.expire_at
FROM outcomes v
LEFT JOIN orders a ON v.outcome = 'accepted' AND a.entry_id = v.entry_id
LEFT JOIN duplicates d ON v.outcome = 'duplicate' AND d.entry_id = v.entry_id
LEFT JOIN rejections r ON v.outcome = 'rejected' AND r.entry_id = v.entry_id
"""


async def test_what_is_stored_is_what_was_meant(place: Place, told: Callable[[str], None]) -> None:
    seed = int(SEED) if SEED else random.SystemRandom().randrange(10**9)
    sent = {f"{T0_MS + n}-0": fields for n, fields in enumerate(made(seed, ENTRIES))}
    await publish(place, sent)
    await drain(place, within_s=DRAIN_S_MAX)
    rows = {row["entry_id"]: row for row in await place.fetch(ROWS)}
    assert rows.keys() == sent.keys()
    originals: dict[Content, str] = {}
    for entry_id, fields in sent.items():
        try:
            check_row(rows[entry_id], entry_id, fields, originals)
        except BaseException as error:
            error.add_note(f"ORDERGATE_FUZZ_SEED={seed}: {json.dumps(fields)[:4_000]}")
            raise
    await check_letters(place, {i: sent[i] for i in rows if rows[i]["outcome"] == "rejected"})
    await check_points(place)
    await check_schema(place)
    told(f"{len(sent):,} entries stored, {len(originals):,} of them orders; seed {seed}")


def made(seed: int, count: int) -> list[Fields]:
    """Attacks, the corpus, and entries by chance; Redis takes none without a field."""
    chance, known = random.Random(seed), corpus.load()  # noqa: S311 - to be repeated
    found = [*attacks(), *known, *(mutated(chance, known) for _ in range(count))]
    return [fields for fields in found if fields]


async def publish(place: Place, sent: Mapping[str, Fields]) -> None:
    """Add the entries byte by byte as they are."""
    pipeline = place.redis.pipeline(transaction=False)
    for entry_id, fields in sent.items():
        words = [word.encode(errors="surrogateescape") for word in fields]
        cast("Any", pipeline).execute_command("XADD", place.stream, entry_id, *words)
    await pipeline.execute()


def check_row(row: Row, entry_id: str, fields: Fields, originals: dict[Content, str]) -> None:
    """The entry's outcome, and each column."""
    content, meant = content_of_entry(fields), row_of_entry(fields)
    if content is None or meant is None:
        assert row["outcome"] == "rejected"
        assert row["fields"] == [word.encode(errors="surrogateescape") for word in fields]
        return
    original = originals.setdefault(content, entry_id)
    assert row["outcome"] == ("accepted" if original == entry_id else "duplicate")
    stored: dict[str, object] = {name: row[name] for name in meant}
    stored |= {name: plain(row[name]) for name in ("quantity", "price", "stop_price")}
    stored["extra"] = comparable(as_sent(row["extra"])) if row["extra"] else None
    if original == entry_id:
        assert stored == meant
    else:
        assert row["original_entry_id"] == original
        assert {name: stored[name] for name in ("order_id", "extra")} == {
            name: meant[name] for name in ("order_id", "extra")
        }


async def check_letters(place: Place, rejected: Mapping[str, Fields]) -> None:
    """Each rejection has one dead letter, which ends with the entry's own bytes."""
    letters = await place.command("XRANGE", f"{{{place.stream}}}:dead", "-", "+")
    found = {words[1]: words[6:] for _, words in letters}
    assert len(found) == len(letters)
    assert found == rejected


async def test_no_stream_and_no_order_id_adds_a_point_a_tag_or_a_field(place: Place) -> None:
    streams = [text for text in TEXTS if text and not SURROGATE.search(text)]
    told = [
        Rejected(Entry(stream, f"{T0_MS + n}-0", []), Malformed("x_y", "", stream))
        for n, stream in enumerate(streams)
    ]
    async with aclosing(sink_of(place.settings)) as sink:
        await sink.write(lines(points(told)))
    every = partial(place.influx.query, "SELECT * FROM orders", place.bucket)
    found = {row["entry_id"]: row for row in await to_thread.run_sync(every)}
    assert {i: (row["stream"], row["order_id"], row["outcome"]) for i, row in found.items()} == {
        f"{T0_MS + n}-0": (stream.replace("\n", " ").replace("\\", "/"), stream, "rejected")
        for n, stream in enumerate(streams)
    }


async def check_schema(place: Place) -> None:
    """No line has made a measurement, a tag or a field that is not ours."""
    ask = partial(to_thread.run_sync, place.influx.query)
    measurements = {row["name"] for row in await ask("SHOW MEASUREMENTS", place.bucket)}
    tags = {row["tagKey"] for row in await ask("SHOW TAG KEYS", place.bucket)}
    values = {row["fieldKey"] for row in await ask("SHOW FIELD KEYS FROM orders", place.bucket)}
    assert measurements - {"first_point"} == {"orders"}
    assert (tags, values) == (TAGS, VALUES)
