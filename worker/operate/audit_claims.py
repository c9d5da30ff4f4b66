"""The claims of a stream, held against Postgres: each names an order of its content, or an entry in hand.

An entry may be settled between two looks. So claims that seem wrong are looked at once more, after the look
at what is pending: then the claim of an entry that is not, and its outcome, are final.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple

from streams.connection import call
from streams.entry import ENTRY_ID, EntryId
from streams.look import pending_ids
from worker.ledger import queries
from worker.operate.audit_report import Report, Span
from worker.operate.command import Servers
from worker.operate.output import printable

SQL = queries("operate")
REPAIR_CLAIM = (files("worker") / "lua" / "repair_claim.lua").read_text(encoding="utf-8")
AT_ONCE = 2000  #: claims that are looked at together
HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Claimed(NamedTuple):
    """A claim that does not name an order on record: its value, and the orders that are."""

    value: str | None
    content_hash: str
    originals: Sequence[str]


class ClaimsAudit:
    """The audit of one stream's claims.

    :param position: how far the group had read when the audit began
    """

    def __init__(
        self,
        servers: Servers,
        span: Span,
        report: Report,
        position: EntryId | None,
        *,
        repair: bool,
    ) -> None:
        self._servers, self._span, self._report = servers, span, report
        self._position, self._repair = position, repair
        self._stream = report.stream

    async def run(self) -> None:
        """Look at all claims, and repair those that contradict Postgres where that is asked for."""
        prefix = f"idempotency:order:{{{self._stream}}}:"
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", prefix) + "*"
        cursor = "0"
        while True:
            cursor, keys = await call(
                self._servers.claims, "SCAN", cursor, "MATCH", pattern, "COUNT", AT_ONCE
            )
            hashes = {key: key.removeprefix(prefix) for key in keys}
            await self._look_at({k: h for k, h in hashes.items() if HASH.fullmatch(h)})
            if str(cursor) == "0":
                return

    async def _look_at(self, hashes: Mapping[str, str]) -> None:
        """Look at some claims: content hashes by key."""
        self._report.claims += len(hashes)
        doubtful = await self._strangers(hashes) if hashes else {}
        if not doubtful:
            return
        redis, group = self._servers.redis, self._servers.settings.group
        pending = {str(id_) async for id_ in pending_ids(redis, self._stream, group)}
        again = await self._strangers({key: it.content_hash for key, it in doubtful.items()})
        for key, claim in again.items():
            if claim.value == doubtful[key].value and claim.value not in pending:
                await self._look_at_stranger(key, claim)

    async def _strangers(self, hashes: Mapping[str, str]) -> dict[str, Claimed]:
        """The claims, by key, that name neither an order of their content nor another entry on record."""
        values: list[str | None] = await call(self._servers.claims, "MGET", *hashes)
        originals = await self._originals(list(hashes.values()))
        strange = {
            key: Claimed(value, content_hash, originals[content_hash])
            for (key, content_hash), value in zip(hashes.items(), values, strict=True)
            if value not in originals[content_hash]
        }
        named = [it.value for it in strange.values() if it.value and ENTRY_ID.fullmatch(it.value)]
        async with self._servers.ledger.connection() as connection:
            rows = await connection.fetch(SQL["other_outcomes_of"], self._stream, named)
        known = {
            (row["entry_id"], row["content_hash"] and row["content_hash"].hex()) for row in rows
        }
        return {
            key: it
            for key, it in strange.items()
            if known.isdisjoint({(it.value, it.content_hash), (it.value, None)})
        }

    async def _originals(self, hashes: Sequence[str]) -> defaultdict[str, list[str]]:
        """The entries of the orders of each content, oldest generation first."""
        found: dict[str, list[str]] = defaultdict(list)
        async with self._servers.ledger.connection() as connection:
            for row in await connection.fetch(
                SQL["originals_of"], list(map(bytes.fromhex, hashes))
            ):
                found[row["content_hash"].hex()].append(row["entry_id"])
        return found

    async def _look_at_stranger(self, key: str, claim: Claimed) -> None:
        value, _, originals = claim
        if value is None and await call(self._servers.claims, "TYPE", key) in ("none", "string"):
            return  # its time is over
        entry = EntryId.parse(value) if value and ENTRY_ID.fullmatch(value) else None
        if not self._span.is_whole and not (entry and self._span.has(entry)):
            return
        if entry and self._position and entry > self._position:
            return  # read since the audit began, or to be read again
        named = ", ".join(originals[-3:]) or "no such order"
        detail = f"is {printable(value or 'no text', 80)!r}, Postgres has {named}"
        self._report.differs("claim_contradicts", key, detail)
        if self._repair:
            right = originals[-1] if originals else ""
            words = ("EVAL", REPAIR_CLAIM, 1, key, value or "", right)
            mended = await call(self._servers.claims, *words)
            self._report.differences["claim_contradicts"].mended += mended
