"""Entries and their ids, and the bytes that were sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.entry import Entry, EntryId, entries

UNSIGNED = st.integers(0, 2**64 - 1)


@given(UNSIGNED, UNSIGNED)
def test_an_id_reads_back_as_it_was_written(ms: int, seq: int) -> None:
    assert EntryId.parse(f"{ms}-{seq}") == (ms, seq)
    assert str(EntryId.parse(f"{ms}-{seq}")) == f"{ms}-{seq}"


@pytest.mark.parametrize("text", ["", "-", "1", "1-", "-1", "a-b", "1-2-3", "$"])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        EntryId.parse(text)


def test_ids_are_ordered_as_numbers() -> None:
    ids = ["9-0", "10-0", "10-9", "10-10", "1767225600000-3"]
    assert sorted(ids, key=EntryId.parse) == ids


@given(UNSIGNED, UNSIGNED)
def test_nothing_lies_between_an_id_and_the_one_before_it(ms: int, seq: int) -> None:
    entry_id = EntryId(ms, seq)
    before = entry_id.before()
    if entry_id == (0, 0):
        assert before == entry_id
    else:
        assert before < entry_id
        assert before.ms * 2**64 + before.seq + 1 == ms * 2**64 + seq


def test_an_entry_has_the_time_of_its_id() -> None:
    assert Entry("orders", "1767225600000-3", []).ms == 1767225600000


@given(st.lists(st.binary()))
def test_raw_fields_are_the_very_bytes_that_were_sent(sent: list[bytes]) -> None:
    fields = [word.decode(errors="surrogateescape") for word in sent]
    assert Entry("orders", "1-0", fields).raw_fields == sent


def test_an_entry_that_was_trimmed_has_no_fields() -> None:
    assert Entry("orders", "1-0", None).raw_fields == []


def test_entries_of_a_reply_come_in_its_order_and_keep_their_stream() -> None:
    reply: list[object] = [["1-0", ["a", "b"]], ["1-1", ["c", "d", "a", "e"]]]
    assert entries("orders", reply) == [
        Entry("orders", "1-0", ["a", "b"]),
        Entry("orders", "1-1", ["c", "d", "a", "e"]),
    ]


def test_a_pending_entry_that_was_trimmed_is_an_entry_without_fields() -> None:
    assert entries("orders", [["1-0", None], ["1-1", []]]) == [
        Entry("orders", "1-0", None),
        Entry("orders", "1-1", None),
    ]
