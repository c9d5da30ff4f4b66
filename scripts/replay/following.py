"""Follow a run's entries in Postgres until each has its outcome, and say what was to be expected."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import anyio
import anyio.lowlevel

from scripts.replay.outcomes import Outcomes, Summary
from scripts.replay.publishing import EntryIds
from scripts.replay.reference import Figures, Reference, content_on_record
from scripts.replay.source import Source

POLL_S = 0.2
SAMPLES = 200  #: entries asked for at a time: what a poll costs does not grow with the run
BREATH = 10_000  #: orders between two looks at whether the run was interrupted


@dataclass(frozen=True, slots=True)
class Expected:
    """What should become of a run.

    :ivar repeats: duplicates among them of orders that were on record from elsewhere
    """

    figures: Figures
    repeats: int


async def wait_for_outcomes(
    outcomes: Outcomes, ids: EntryIds, quiet_s_max: float, report: Callable[[int], object]
) -> Summary:
    """Wait until every entry has an outcome, or none was recorded for `quiet_s_max` seconds.

    Progress is judged by a sample of the entries. Once all of that is recorded, those that are not
    become the next sample, until there are none.

    :param report: called with about how many entries have an outcome
    """
    step = -(-len(ids) // SAMPLES)
    waiting = {str(ids[place]) for place in range(step - 1, len(ids), step)}
    moved_at = anyio.current_time()
    while waiting:
        if found := await outcomes.found(list(waiting)):
            waiting -= found
            moved_at = anyio.current_time()
        elif anyio.current_time() - moved_at > quiet_s_max:
            summary = await outcomes.summary()
            if summary.quiet_s is None or summary.quiet_s > quiet_s_max:
                return summary
            moved_at = anyio.current_time() - summary.quiet_s
        report(max(0, len(ids) - len(waiting) * step))
        if not waiting:
            waiting, step = await outcomes.missing(), 1
        await anyio.sleep(POLL_S)
    return await outcomes.summary()


async def expected_of(
    source: Source,
    ids: EntryIds,
    outcomes: Outcomes,
    *,
    window_ms: int,
    envelope: frozenset[str],
) -> Expected:
    """Work out what should become of the published orders, from the source alone.

    What others had accepted within the window, an earlier replay for one, is read from Postgres: these
    orders stand, whatever one thinks of them, and ours repeat them.
    """
    elsewhere: dict[bytes, list[int]] = defaultdict(list)
    span = ids[0].ms - window_ms, ids[len(ids) - 1].ms + window_ms
    async for row in outcomes.accepted_elsewhere(*span):
        elsewhere[content_on_record(row, envelope)].append(row["ms"])
    reference = Reference(window_ms, envelope, elsewhere)
    for place, (item, entry_id) in enumerate(zip(source, ids, strict=True)):
        reference.add(item.order, entry_id.ms)
        if place % BREATH == 0:
            await anyio.lowlevel.checkpoint()
    return Expected(reference.figures, reference.repeats)
