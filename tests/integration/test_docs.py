"""docs/database/schema.md, held against the migrated schema: nothing is missing there, nothing made up."""

import re
from pathlib import Path

import pytest

from tests.isolation import Place
from tests.markdown import fenced
from tests.orders import order
from tests.workers import drain

pytestmark = pytest.mark.anyio

PAGE = (Path(__file__).resolve().parents[2] / "docs/database/schema.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
EXAMPLES: list[str] = [
    statement.strip()
    for block in fenced(PAGE, "sql")
    for statement in re.split(r";\s*$", block, flags=re.MULTILINE)
    if statement.strip()
]
SECTIONS: dict[str, str] = dict(
    re.findall(r"^## `(\w+)`\n(.*?)(?=^## )", PAGE, flags=re.MULTILINE | re.DOTALL)
)

RELATIONS = """
SELECT relname AS name, relkind = 'v' AS is_view FROM pg_class
WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v', 'm')
"""
COLUMNS = """
SELECT attname AS name, format_type(atttypid, atttypmod) AS type, attnotnull AS is_required
FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
#: NOT NULL has names of its own since Postgres 18; the column says it already.
RULES = """
SELECT conname AS name FROM pg_constraint WHERE conrelid = to_regclass($1) AND contype <> 'n'
UNION
SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = to_regclass($1)
"""
FUNCTIONS = (
    "SELECT proname AS name FROM pg_proc WHERE pronamespace = current_schema()::regnamespace"
)
TYPES = """
SELECT c.relname AS name,
    string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum) AS attributes
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'c'
GROUP BY c.relname
"""


def table(text: str, first_heading: str) -> list[list[str]]:
    """The rows of the table whose first column is headed so, as cells without quotes; [] for none."""
    head = rf"^\| {re.escape(first_heading)} \|.*\n\|[-|]+\n((?:\|.*\n)*)"
    found = re.search(head, FENCED.sub("", text), flags=re.MULTILINE)
    rows = found[1].splitlines() if found else []
    return [[cell.strip(" `") for cell in row.strip("|").split(" | ")] for row in rows]


@pytest.mark.parametrize("statement", EXAMPLES, ids=lambda sql: " ".join(sql.split())[:60])
async def test_every_example_prepares_on_the_migrated_schema(place: Place, statement: str) -> None:
    async with place.connected() as connection:
        own = re.sub(r"\bSCHEMA public\b", f"SCHEMA {place.schema}", statement)
        await connection.prepare(own)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 10


async def test_the_page_has_every_relation_and_no_other(place: Place) -> None:
    names = {row["name"] for row in await place.fetch(RELATIONS)}
    assert SECTIONS.keys() == names
    overview = [re.sub(r"\[`(\w+)`\].*", r"\1", row[0]) for row in table(PAGE, "relation")]
    assert {cell.lstrip("[").split("`")[0] for cell in overview} == names


async def test_the_page_has_every_column_with_its_type_in_order(place: Place) -> None:
    for relation in await place.fetch(RELATIONS):
        rows = table(SECTIONS[relation["name"]], "column")
        columns = await place.fetch(COLUMNS, relation["name"])
        assert [row[:2] for row in rows] == [[c["name"], c["type"]] for c in columns]
        if not relation["is_view"]:
            required = ["no" if c["is_required"] else "yes" for c in columns]
            assert [row[2] for row in rows] == required, relation["name"]


async def test_the_page_has_every_constraint_and_index_and_no_other(place: Place) -> None:
    for relation in await place.fetch(RELATIONS):
        listed = {row[0] for row in table(SECTIONS[relation["name"]], "constraint or index")}
        assert listed == {row["name"] for row in await place.fetch(RULES, relation["name"])}


async def test_the_page_has_every_function_and_no_other(place: Place) -> None:
    listed = {row[0] for row in table(PAGE, "function")}
    assert listed == {row["name"] for row in await place.fetch(FUNCTIONS)}


async def test_the_page_has_every_composite_type_with_its_attributes(place: Place) -> None:
    listed = dict(row[:2] for row in table(PAGE, "composite type"))
    types = await place.fetch(TYPES)
    assert listed == {row["name"]: row["attributes"] for row in types}


async def test_deleting_old_orders_takes_whole_contents_and_leaves_those_in_use(
    place: Place,
) -> None:
    past = [order(1), order(1), order(1), order(2)]
    await place.publish(past, ids=[f"{1_700_000_000_000 + n * 46_800_000}-0" for n in range(4)])
    await place.publish([order(2)])
    await drain(place)
    assert await outcomes(place) == [(1, 0), (1, 0), (1, 1), (2, 0), (2, 1)]

    deletion = next(sql for sql in EXAMPLES if sql.startswith("WITH past"))
    await place.postgres.execute("INSERT INTO point_backlog (stream, entry_id) VALUES ('s', '1-1')")
    await place.postgres.execute(deletion)
    assert len(await outcomes(place)) == 5  # nothing while points are owed
    await place.postgres.execute("DELETE FROM point_backlog")
    await place.postgres.execute(deletion)
    assert await outcomes(place) == [(2, 0), (2, 1)]


async def outcomes(place: Place) -> list[tuple[int, int]]:
    """Number and generation of each order and duplicate."""
    rows = await place.fetch(
        "SELECT trunc(quantity)::int - 1 AS number, generation FROM orders UNION ALL"
        " SELECT trunc(quantity)::int - 1, generation"
        " FROM duplicates JOIN orders USING (content_hash, generation) ORDER BY 1, 2"
    )
    return [(row["number"], row["generation"]) for row in rows]
