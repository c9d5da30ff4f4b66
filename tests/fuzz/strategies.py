"""Entries as Hypothesis strategies: what the mutator makes, and JSON and text grown from nothing.

A failing entry shrinks to fewer mutations, then to shorter words.
"""

import json

from hypothesis import strategies as st

from tests.fuzz import corpus
from tests.fuzz.mutator import (
    DECIMALS,
    FLAT_MUTATIONS,
    NAMES,
    PAYLOAD_MUTATIONS,
    TEXTS,
    WORDS,
    Fields,
)

#: Text as Redis may give it: any of Unicode, and bytes that are none.
ANY_TEXT = st.text(max_size=20) | st.binary(max_size=20).map(
    lambda sent: sent.decode(errors="surrogateescape")
)
TEXT = st.sampled_from(TEXTS) | ANY_TEXT
NUMBER = st.sampled_from(DECIMALS) | st.from_regex(
    r"-?(0|[1-9]\d{0,19})(\.\d{1,20})?([eE][+-]?\d{1,3})?", fullmatch=True
)
BASE = {"order_id": "A-1", "symbol": "A", "side": "buy", "type": "market", "quantity": "1"}


def _json_text(text: str) -> str:
    return json.dumps(text)


JSON_VALUE = st.recursive(
    st.sampled_from(["null", "true", "false", "NaN"]) | NUMBER | TEXT.map(_json_text),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(st.sampled_from(NAMES) | TEXT, inner), max_size=4).map(
            lambda members: f"{{{','.join(f'{_json_text(n)}:{v}' for n, v in members)}}}"
        )
    ),
    max_leaves=12,
)


@st.composite
def flat_fields(draw: st.DrawFn) -> Fields:
    """A valid order with fields added and replaced."""
    names = draw(st.lists(st.sampled_from(NAMES) | TEXT, max_size=4))
    changes = {name: draw(st.sampled_from(WORDS.get(name, TEXTS)) | TEXT) for name in names}
    fields = [word for pair in {**BASE, **changes}.items() for word in pair]
    if draw(st.integers(0, 9)) == 9:
        fields += [draw(st.sampled_from(NAMES)), draw(TEXT)]
    return fields


@st.composite
def payloads(draw: st.DrawFn) -> Fields:
    """A valid order as JSON, members added."""
    members = [f"{_json_text(name)}:{_json_text(value)}" for name, value in BASE.items()]
    added = draw(st.lists(st.tuples(st.sampled_from(NAMES) | TEXT, JSON_VALUE), max_size=4))
    members += [f"{_json_text(name)}:{value}" for name, value in added]
    return ["payload", f"{{{','.join(draw(st.permutations(members)))}}}"]


@st.composite
def mutations(draw: st.DrawFn) -> Fields:
    """An entry of the corpus, changed by mutations that Hypothesis chooses."""
    fields = list(draw(st.sampled_from(corpus.load())))
    for _ in range(draw(st.integers(0, 4))):
        is_payload = len(fields) == 2 and fields[0] == "payload"
        mutation = draw(st.sampled_from(PAYLOAD_MUTATIONS if is_payload else FLAT_MUTATIONS))
        fields = mutation(draw(st.randoms(use_true_random=False)), fields)
    return fields


def entries() -> st.SearchStrategy[Fields]:
    """Entries of every kind."""
    words = st.lists(st.tuples(ANY_TEXT, ANY_TEXT), max_size=8)
    nonsense = words.map(lambda pairs: [word for pair in pairs for word in pair])
    return flat_fields() | payloads() | mutations() | nonsense
