"""Claims: what Redis remembers of content hashes, and the settlement of a batch.

A claim is a hint that saves work and never the truth: whatever Redis forgets, invents or does not answer,
Postgres decides. So where Redis is away a claim is `UNKNOWN`, and the order goes on.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple

from redis.asyncio import Redis

from streams.connection import connect, redis_errors
from streams.dead_letters import dead_letters_of
from streams.group import progress_of
from worker.decide import Claim, Hint, Stored
from worker.outcome import Accepted, Duplicate, Outcome, Rejected

LUA = files("worker") / "lua"
ENTRY_ID = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)


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

    A claim's value is `held <token>`, or `stored <entry id>` once Postgres has committed. It lives as long as
    the dedupe window. Every method raises `RedisUnavailable`; calling again is safe.

    :param token: names this worker's run; a worker that asks again after a lost reply knows its claim by it
    """

    def __init__(
        self, url: str, claims_url: str, stream: str, group: str, token: str,
        *, window_ms: int, timeout_ms: int,
    ) -> None:  # fmt: skip
        self._stream, self._group = stream, group
        self._held = f"held {token}"
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
        self._settle = self._redis.register_script((LUA / "settle.lua").read_text())

    async def aclose(self) -> None:
        """Close the connections."""
        await self._claims_redis.aclose()
        await self._redis.aclose()

    async def claim(self, content_hashes: Sequence[bytes]) -> list[Claim]:
        """Claim each hash, in one call; a hash that occurs twice is won twice."""
        if not content_hashes:
            return []
        keys = [self._prefix + content_hash.hex() for content_hash in content_hashes]
        async with redis_errors(self._claims_redis):
            answers = await self._claim(keys=keys, args=[self._held, self._ttl_s])
        return [self._read(answer) for answer in answers]

    def _read(self, answer: str | None) -> Claim:
        if answer is None or answer == self._held:
            return Hint.WON
        kind, _, original = answer.partition(" ")
        return Stored(original) if kind == "stored" and ENTRY_ID.fullmatch(original) else Hint.HELD

    async def settle(self, outcomes: Sequence[Outcome], claims: Mapping[bytes, Claim]) -> Settled:
        """Mark claims as stored, copy rejections to the dead letters, acknowledge what is final.

        :param claims: what stood before, by content hash; a claim that says so already is left alone
        Claims on a Redis of their own are left to `remember`.

        :raises GroupLost: nothing is left to acknowledge; the outcomes are on record all the same
        """
        stored = {} if self.apart else self._stored(outcomes, claims)
        final = [outcome for outcome in outcomes if outcome.final]
        rejected = [outcome for outcome in final if isinstance(outcome, Rejected)]
        others = [o.entry.id for o in final if not isinstance(o, Rejected)]
        uncounted, self._uncounted = self._uncounted, 0
        settled = await self._settle_call(self._redis, stored, rejected, others, uncounted)
        self._uncounted += settled.uncounted
        return settled

    async def remember(self, outcomes: Sequence[Outcome], claims: Mapping[bytes, Claim]) -> None:
        """Mark claims as stored, on a Redis of their own; before the settlement."""
        await self._settle_call(self._claims_redis, self._stored(outcomes, claims), [], [], 0)

    def _stored(self, outcomes: Sequence[Outcome], claims: Mapping[bytes, Claim]) -> dict[str, str]:
        """The claims to set, key and value. Of two outcomes of one content the last is the newest."""
        stored: dict[str, str] = {}
        for outcome in outcomes:
            if isinstance(outcome, Accepted):
                original = outcome.entry.id
            elif isinstance(outcome, Duplicate):
                original = outcome.original_id
            else:
                continue
            content_hash = outcome.order.content_hash
            claim = claims.get(content_hash)
            if not (isinstance(claim, Stored) and claim.original == original):
                stored[self._prefix + content_hash.hex()] = f"stored {original}"
        return stored

    async def _settle_call(
        self,
        redis: Redis,
        stored: Mapping[str, str],
        rejected: Sequence[Rejected],
        ids: Sequence[str],
        uncounted: int,
    ) -> Settled:
        letters = [
            text for r in rejected for text in (r.entry.id, r.malformed.code, r.malformed.reason)
        ]
        dead = dead_letters_of(self._stream)
        async with redis_errors(redis):
            reply = await self._settle(
                keys=[self._stream, dead, f"{dead}:index", self._progress, *stored],
                args=[
                    self._group, self._ttl_s, len(rejected), uncounted,
                    *stored.values(), *letters, *ids,
                ],
                client=redis,
            )  # fmt: skip
        return Settled(*reply)
