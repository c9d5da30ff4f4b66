"""Claims: what Redis remembers of content hashes, and the settlement of a batch.

A claim is a hint that saves work and never the truth: whatever Redis forgets, invents or does not answer,
Postgres decides. So where Redis is away a claim is *unknown*, and the order goes on.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple

from streams.connection import connect, redis_errors
from streams.dead_letters import dead_letters_of
from streams.entry import ENTRY_ID, EntryId
from streams.group import progress_of
from worker.decide import Claim
from worker.outcome import Accepted, Duplicate, Outcome, Rejected

LUA = files("worker") / "lua"


class Settled(NamedTuple):
    """What a settlement did: entries acknowledged, and the first error that Redis met on the way.

    `uncounted`: settled entries that the group's progress lacks, for memory was full; the next call adds
    them.
    """

    acknowledged: int
    uncounted: int
    error: str | None


class Claims:
    """The claims of one stream, `idempotency:order:{<stream>}:<content hash>`, and its settlement.

    A claim's value is the id of the entry that was the first to ask, or of the original where Postgres has
    another. It lives as long as the dedupe window. Every method raises `RedisUnavailable`; calling again is
    safe, for an entry knows its own claim.

    An entry that is settled has its outcome in Postgres, so nothing need be written to say that what it
    claimed is stored: what is older than all that is pending is settled. Claims on a Redis of their own do
    not know what is pending, and are taken for held.
    """

    def __init__(
        self, url: str, claims_url: str, stream: str, group: str, *, window_ms: int, timeout_ms: int
    ) -> None:
        self._stream, self._group = stream, group
        self._ttl_s = max(1, -(-window_ms // 1000))
        self._progress = progress_of(stream, group)
        self._prefix = f"idempotency:order:{{{stream}}}:"
        self._redis = connect(url, timeout_ms=timeout_ms)
        self.apart = claims_url != url  #: whether the claims are on a Redis of their own
        self._claims_redis = (
            connect(claims_url, timeout_ms=timeout_ms) if self.apart else self._redis
        )
        self._uncounted = 0  # settled, and not in the group's progress: Redis had no memory left
        self._claim = self._claims_redis.register_script((LUA / "claim.lua").read_text())
        self._correct = self._claims_redis.register_script((LUA / "correct_claims.lua").read_text())
        self._settle = self._redis.register_script((LUA / "settle.lua").read_text())

    async def aclose(self) -> None:
        """Close the connections."""
        await self._claims_redis.aclose()
        await self._redis.aclose()

    async def claim(
        self, entry_ids: Sequence[str], content_hashes: Sequence[bytes]
    ) -> dict[bytes, Claim]:
        """Claim a hash for each entry, in one call. Gives the claim that stands, by content hash.

        A value that names no entry says nothing, and is left out.
        """
        if not content_hashes:
            return {}
        stream, group = ([], "") if self.apart else ([self._stream], self._group)
        keys = [*stream, *(self._prefix + content_hash.hex() for content_hash in content_hashes)]
        async with redis_errors(self._claims_redis):
            oldest, *answers = await self._claim(keys=keys, args=[group, self._ttl_s, *entry_ids])
        pending_ms = EntryId.parse(oldest).ms if oldest else 0
        return {
            content_hash: Claim(entry_id, False)
            if answer is None
            else _standing(answer, pending_ms)
            for content_hash, entry_id, answer in zip(
                content_hashes, entry_ids, answers, strict=True
            )
            if answer is None or ENTRY_ID.fullmatch(answer)
        }

    async def correct(
        self, outcomes: Sequence[Outcome], claims: Mapping[bytes, Claim]
    ) -> str | None:
        """Let claims name the originals that Postgres has, where they do not; remove those it has nothing of.

        Gives the first error that Redis met on the way; those claims are left as they are.

        :param claims: what stands, by content hash
        """
        wrong = self._wrong(outcomes, claims)
        if not wrong:
            return None
        async with redis_errors(self._claims_redis):
            return await self._correct(keys=[*wrong], args=[self._ttl_s, *wrong.values()])

    def _wrong(self, outcomes: Sequence[Outcome], claims: Mapping[bytes, Claim]) -> dict[str, str]:
        """The claims that do not name the original that Postgres has, and their right values; "" for none.

        Of two outcomes of one content the last is the newest.
        """
        right: dict[bytes, str] = {}
        no_original: set[str] = set()
        for outcome in outcomes:
            if isinstance(outcome, Accepted):
                right[outcome.order.content_hash] = outcome.entry.id
            elif isinstance(outcome, Duplicate):
                right[outcome.order.content_hash] = outcome.original_id
            elif outcome.final:
                no_original.add(outcome.entry.id)
        if no_original:  # what they claimed is not what is on record of them
            nothing = {h: "" for h, claim in claims.items() if claim.entry_id in no_original}
            right = nothing | right
        return {
            self._prefix + content_hash.hex(): original
            for content_hash, original in right.items()
            if (claim := claims.get(content_hash)) is None or claim.entry_id != original
        }

    async def settle(self, outcomes: Sequence[Outcome]) -> Settled:
        """Copy rejections to the dead letters, acknowledge what is final.

        :raises GroupLost: nothing is left to acknowledge; the outcomes are on record all the same
        """
        final = [outcome for outcome in outcomes if outcome.final]
        rejected = [outcome for outcome in final if isinstance(outcome, Rejected)]
        others = [o.entry.id for o in final if not isinstance(o, Rejected)]
        letters = [
            text for r in rejected for text in (r.entry.id, r.malformed.code, r.malformed.reason)
        ]
        dead = dead_letters_of(self._stream)
        uncounted, self._uncounted = self._uncounted, 0
        async with redis_errors(self._redis):
            reply = await self._settle(
                keys=[self._stream, dead, f"{dead}:index", self._progress],
                args=[self._group, len(rejected), uncounted, *letters, *others],
            )
        settled = Settled(*reply)
        self._uncounted += settled.uncounted
        return settled


def _standing(entry_id: str, pending_ms: int) -> Claim:
    """The claim of an entry; stored, where it is older than all that is pending."""
    return Claim(entry_id, int(entry_id.partition("-")[0]) < pending_ms)
