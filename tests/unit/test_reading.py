"""What entries come to is part of what is on record: a change of it has to be told, by `READING`."""

from collections.abc import Sequence
from hashlib import sha256

from tests.fuzz.corpus import load
from worker.order import READING, Malformed, parse

#: Of what this version makes of the corpus.
FINGERPRINT = "4d1ac7e7bf03d08f"


def test_what_entries_come_to_has_not_changed_without_a_word() -> None:
    """Raise `READING` in worker/order.py with each such change, and change the fingerprint. Where only the
    corpus has changed, the fingerprint alone.
    """
    found = sha256("\n".join(map(comes_to, load())).encode()).hexdigest()
    assert (READING, found[:16]) == (1, FINGERPRINT)


def comes_to(fields: Sequence[str]) -> str:
    """An order's hash, or why it is none."""
    found = parse(fields)
    return found.code if isinstance(found, Malformed) else found.content_hash.hex()
