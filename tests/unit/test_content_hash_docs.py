"""docs/content-hash.md and its vectors: all that they say of a hash is what the worker computes."""

import io
import json
import re
import shutil
import subprocess
from contextlib import redirect_stdout
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest
import unicodedata2

from tests.markdown import fenced
from tests.unit.test_rejections import REJECTIONS
from worker.order import ENVELOPE_FIELDS, HASH_TAG, Malformed, Order, canonical, parse

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "content-hash.md").read_text(encoding="utf-8")
VECTORS = cast(
    "dict[str, Any]", json.loads((DOCS / "content-hash-vectors.json").read_text(encoding="utf-8"))
)
ORDERS = cast("list[dict[str, Any]]", VECTORS["orders"])
REJECTED = cast("list[dict[str, Any]]", VECTORS["rejections"])


def name_of(vector: dict[str, Any]) -> str:
    return vector["name"]


def fields_of(vector: dict[str, Any]) -> list[str]:
    """The vector's entry, names and values in turn."""
    if "payload" in vector:
        return ["payload", vector["payload"]]
    return [word for field in cast("dict[str, str]", vector["fields"]).items() for word in field]


def envelope_of(vector: dict[str, Any]) -> frozenset[str]:
    return frozenset(vector.get("envelope", ENVELOPE_FIELDS))


# --- the vectors ---


@pytest.mark.parametrize("vector", ORDERS, ids=name_of)
def test_a_vector_has_the_content_and_the_hash_that_the_worker_computes(
    vector: dict[str, Any],
) -> None:
    order = parse(fields_of(vector), envelope_of(vector))
    assert isinstance(order, Order), order
    assert order.content_hash.hex() == vector["content_hash"]
    assert canonical(fields_of(vector), envelope_of(vector)).decode() == vector["canonical"]


@pytest.mark.parametrize("vector", ORDERS, ids=name_of)
def test_a_vectors_hash_is_sha256_over_tag_and_content(vector: dict[str, Any]) -> None:
    content = f"{VECTORS['version_tag']}{vector['canonical']}".encode()
    assert sha256(content).hexdigest() == vector["content_hash"]


@pytest.mark.parametrize("vector", REJECTED, ids=name_of)
def test_a_vector_that_is_no_order_has_its_code(vector: dict[str, Any]) -> None:
    rejected = parse(fields_of(vector))
    assert isinstance(rejected, Malformed), rejected
    assert rejected.code == vector["code"]


def test_the_vectors_are_many_and_each_has_a_name_of_its_own() -> None:
    names = list(map(name_of, ORDERS + REJECTED))
    assert len(names) == len(set(names))
    assert len(ORDERS) >= 40
    assert len({vector["content_hash"] for vector in ORDERS}) >= 40
    assert {vector["code"] for vector in REJECTED} <= {case.code for case in REJECTIONS}


def test_the_vectors_name_the_tag_and_the_envelope() -> None:
    assert VECTORS["version_tag"].encode() == HASH_TAG
    assert set(VECTORS["envelope"]) == ENVELOPE_FIELDS


# --- the page ---


EXAMPLES = re.split(
    r"^### Example: |^## ", PAGE.partition("\n## Examples\n")[2], flags=re.MULTILINE
)[1:4]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.partition("\n")[0])
def test_an_example_shows_the_very_bytes_and_the_hash(example: str) -> None:
    given, content = fenced(example, "json")
    hexadecimal, content_hash = fenced(example, "text")
    read = cast("dict[str, object]", json.loads(given))
    is_flat = all(isinstance(value, str) for value in read.values())
    fields = fields_of({"fields": read}) if is_flat else ["payload", given.strip()]
    assert canonical(fields) == content.strip().encode() == bytes.fromhex(hexadecimal)
    assert f"Canonical content, {len(canonical(fields))} bytes:" in example
    order = parse(fields)
    assert isinstance(order, Order)
    assert order.content_hash.hex() == content_hash.strip()


def test_the_examples_are_three_and_one_is_a_payload() -> None:
    assert [example.partition("\n")[0] for example in EXAMPLES] == [
        "a limit order",
        "text beyond ASCII, prices of a spread, and a time",
        "a payload",
    ]


def test_the_table_of_decimals_is_right() -> None:
    rows = re.findall(r"^\| (`[-+.\d].*) \| `(.*)` \|$", PAGE, re.MULTILINE)
    assert len(rows) == 5
    for sent, content in rows:
        for text in re.findall("`(.*?)`", sent):
            fields = f"order_id 1 symbol A side buy type limit quantity 1 price {text}".split()
            assert f'"price":"{content}"'.encode() in canonical(fields)


def test_the_page_names_the_version_of_unicode() -> None:
    assert f"Unicode {unicodedata2.unidata_version.removesuffix('.0')}. An older" in PAGE


def test_the_page_names_the_whole_envelope() -> None:
    assert all(f"`{name}`" in PAGE for name in ENVELOPE_FIELDS)


@pytest.mark.parametrize("number", [0, 1])
def test_the_python_examples_print_the_hash_of_the_first_order(number: int) -> None:
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(fenced(PAGE, "python")[number], {})  # noqa: S102 - our own page
    content_hash = fenced(EXAMPLES[0], "text")[1].strip()
    assert printed.getvalue().split()[-1] == content_hash
    assert f"Both end with `{content_hash}`." in PAGE


CHECK = """
import { readFileSync } from "node:fs";
const { orders } = JSON.parse(readFileSync(process.argv[2], "utf8"));
console.log(JSON.stringify(orders.map(({ fields, payload, envelope }) => {
  const read = () => fields ?? readPayload(payload);
  return [canonical(read(), envelope), contentHash(read(), envelope)];
})));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_the_javascript_computes_every_vector(tmp_path: Path) -> None:
    script = tmp_path / "content_hash.mjs"
    [javascript] = fenced(PAGE, "js")
    script.write_text(javascript + CHECK, encoding="utf-8")
    vectors = DOCS / "content-hash-vectors.json"
    ran = subprocess.run(["node", script, vectors], capture_output=True, timeout=30, check=True)
    computed = cast("list[list[str]]", json.loads(ran.stdout))
    assert computed == [[vector["canonical"], vector["content_hash"]] for vector in ORDERS]
