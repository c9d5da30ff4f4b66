"""What this worker did in the last minutes, so that whoever opens the page sees more than a moment."""

from collections import deque
from collections.abc import Sequence
from time import time

import anyio
import msgspec

from worker.vitals import SECONDS, Vitals, quantile

EVERY_S = 2.0
SAMPLES = 150  #: five minutes
SHOWN = ("accepted", "duplicate", "rejected")


class Sample(msgspec.Struct, frozen=True):
    """Entries a second by outcome, and the latency, since the sample before.

    :ivar at: seconds since 1970
    :ivar p50_ms: of batches, by their oldest entries; None where none was settled
    """

    at: float
    accepted: float
    duplicate: float
    rejected: float
    p50_ms: float | None
    p99_ms: float | None


class History:
    """Samples of one worker, oldest first."""

    def __init__(self, vitals: Vitals) -> None:
        self._vitals = vitals
        self.samples: deque[Sample] = deque(maxlen=SAMPLES)

    async def keep(self) -> None:
        """Take samples until cancelled."""
        at, outcomes, latency = time(), *self._now()
        while True:
            await anyio.sleep(EVERY_S)
            before, before_outcomes, before_latency = at, outcomes, latency
            at, outcomes, latency = time(), *self._now()
            lasted_s = max(at - before, EVERY_S / 2)  # the wall clock may be set back
            rates = {word: (outcomes[word] - before_outcomes[word]) / lasted_s for word in SHOWN}
            settled = [now - then for now, then in zip(latency, before_latency, strict=True)]
            self.samples.append(
                Sample(at, **rates, p50_ms=_ms(settled, 0.5), p99_ms=_ms(settled, 0.99))
            )

    def _now(self) -> tuple[dict[str, int], list[int]]:
        """The counts by outcome, and those of latency, over all streams."""
        streams = self._vitals.streams.values()
        outcomes = {word: sum(its.outcomes[word] for its in streams) for word in SHOWN}
        latency = [
            sum(counts) for counts in zip(*(its.latency.counts for its in streams), strict=True)
        ]
        return outcomes, latency


def _ms(counts: Sequence[int], share: float) -> float | None:
    seconds = quantile(SECONDS, counts, share)
    return None if seconds is None else round(seconds * 1000, 2)
