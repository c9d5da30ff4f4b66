"""The corpus: entries that each reach something no other does, one JSON list of words a line."""

import json
from collections.abc import Iterable
from pathlib import Path

PATH = Path(__file__).with_name("corpus.jsonl")
SEPARATOR = b"\xff"  #: of words, where an entry is bytes; it occurs in no UTF-8


def load() -> list[list[str]]:
    """The entries, each names and values in turn."""
    return [json.loads(line) for line in PATH.read_text(encoding="ascii").splitlines()]


def save(entries: Iterable[list[str]]) -> None:
    """Replace the corpus; shortest first, ties by text."""
    written = {json.dumps(entry) for entry in entries}
    PATH.write_text("".join(f"{line}\n" for line in sorted(written, key=lambda it: (len(it), it))))


def to_bytes(fields: list[str]) -> bytes:
    """The entry as the bytes that a fuzzer mutates."""
    return SEPARATOR.join(text.encode(errors="surrogateescape") for text in fields)


def from_bytes(data: bytes) -> list[str]:
    """The entry that any bytes are; a name without value gets an empty one."""
    words = [word.decode(errors="surrogateescape") for word in data.split(SEPARATOR)]
    return words if len(words) % 2 == 0 else [*words, ""]
