"""A story: what may happen to one stream, in any order, as rules that Hypothesis chooses among.

Each step is done to real servers. Wherever a worker has drained the stream, and at the end, what is on record
must be what the reference makes of the producer's journal; after each step, what is acknowledged must be on
record.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, ClassVar, Self, TypeVar, cast

import uvloop
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as chosen_by
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.chaos.faulty_io import Fault, Point
from tests.chaos.world import NEW_REDIS, OldRedis, World, end, fresh
from tests.isolation import Place, isolated
from tests.orders import T0_MS, order
from tests.servers import Servers
from tests.workers import impatient

WINDOW_MS = 60_000
STOPS_MAX = 2  #: workers that stop half way before one drains: each delivery of an entry is counted
MALFORMED = [{"order_id": "M-1", "side": "hold"}, {"payload": "{"}, order(1, quantity="NaN")]
NUMBERS = st.integers(0, 2)
T = TypeVar("T")


def spelled(number: int, zeros: str, side: str) -> dict[str, str]:
    """The order of a number, in other words."""
    return order(number, quantity=f"{number + 1}.25{zeros}", side=side)


#: Orders that repeat one another in other words, such that are changed, and what is no order.
ENTRY = (
    st.builds(
        spelled, NUMBERS, st.sampled_from(["", "0", "e0"]), st.sampled_from(["buy", "BUY", "sell"])
    )
    | st.builds(order, NUMBERS, price=st.sampled_from(["45678.10", "45678.11", "-0.5"]))
    | st.builds(order, NUMBERS, nonce=st.sampled_from(["1", "2"]))
    | st.sampled_from(MALFORMED)
)
ENTRIES = st.lists(ENTRY, min_size=1, max_size=4)
AFTER_MS = st.sampled_from([1, WINDOW_MS // 2, WINDOW_MS, WINDOW_MS + 1])  #: event time that passes
WINDOWS = st.sampled_from(["30s", "60s", "90s"])
ENVELOPES = st.sampled_from(["order_id", "order_id,nonce"])
FORGETS = ("lose_claims", "lose_group", "redeliver", "trim", "claim", "original")


class Deed:
    """Does the steps: in one loop in the main thread, where a worker may listen for signals.

    :ivar done: how often each was done
    """

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._stack = AsyncExitStack()
        self.done: Counter[str] = Counter()

    def __enter__(self) -> Self:
        place = self(self._stack.enter_async_context(isolated(self._servers)))
        self.place: Place = impatient(place).having(
            WORKER_DEDUPE_WINDOW=f"{WINDOW_MS}ms", WORKER_BATCH_SIZE="4"
        )
        self.calls: list[Point] = self(self._calls())
        return self

    def __exit__(self, *_: object) -> None:
        self(self._stack.aclose())
        self._runner.close()

    def __call__(self, step: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(step)

    def __str__(self) -> str:
        return ", ".join(f"{name} {times}" for name, times in self.done.most_common())

    def missing(self) -> set[str]:
        """What no story came to: a kind of step, or a fault that a worker met."""
        steps = ("publish", "photograph", "bring_back_an_old_redis")
        more = ("read_and_die", "give_up", "change_settings", "stop_half_way", "drain", "check")
        faults = [fault.name for fault in Fault]
        return {*steps, *more, *FORGETS, *faults} - self.done.keys()

    async def _calls(self) -> list[Point]:
        """The I/O calls of a worker that meets a bit of everything."""
        world = await fresh(self.place)
        for n, fields in enumerate([order(1), order(1), order(2), MALFORMED[0]]):
            await world.publish(f"{T0_MS}-{n}", fields)
        calls = await world.drain()
        await world.check()
        await end(world)
        return sorted(set(calls))


CALLS: st.SearchStrategy[Point] = st.deferred(lambda: st.sampled_from(Story.deed.calls))


class Story(RuleBasedStateMachine):
    """One stream from its beginning. Entry ids go up, whatever Redis forgets."""

    deed: ClassVar[Deed]
    photographs = Bundle("photographs")

    def __init__(self) -> None:
        super().__init__()
        self.now_ms, self.published, self.stops = 0, 0, 0
        self.world: World = self.deed(fresh(self.deed.place))

    @initialize(target=photographs)
    def nothing_yet(self) -> OldRedis:
        return NEW_REDIS

    # --- producers ---

    @rule(after_ms=AFTER_MS, entries=ENTRIES)
    def publish(self, after_ms: int, entries: list[dict[str, str]]) -> None:
        self.now_ms += after_ms
        for fields in entries:
            self.published += 1
            entry_id = f"{T0_MS + self.now_ms}-{self.published}"
            self._do("publish", self.world.publish(entry_id, fields))

    # --- Redis ---

    @rule(target=photographs)
    def photograph(self) -> OldRedis:
        return self._do("photograph", self.world.photograph())

    @rule(old=photographs)
    def bring_back_an_old_redis(self, old: OldRedis) -> None:
        self._do("bring_back_an_old_redis", self.world.bring_back(old))

    @rule(how=st.sampled_from(FORGETS), number=NUMBERS)
    def redis_forgets(self, how: str, number: int) -> None:
        """Or remembers, of an order that need not exist, what never was."""
        forged = {"claim": "held-by-nobody", "original": f"{T0_MS}-7"}.get(how)
        if forged:
            self._do(how, self.world.forge_claim(order(number), forged))
        else:
            self._do(how, getattr(self.world, how)())

    # --- workers ---

    @rule(count=st.integers(1, 3))
    def read_and_die(self, count: int) -> None:
        """What was read is taken over by whoever drains the stream."""
        self._do("read_and_die", self.world.read_and_die(count))

    @rule(chance=st.floats(0, 1, exclude_max=True))
    def give_up(self, chance: float) -> None:
        """One that is on record by then, perhaps."""
        if journal := sorted(self.world.journal):
            self._do("give_up", self.world.give_up(journal[int(chance * len(journal))]))

    @rule(window=WINDOWS, envelope=ENVELOPES)
    def change_settings(self, window: str, envelope: str) -> None:
        changed = {"WORKER_DEDUPE_WINDOW": window, "WORKER_ENVELOPE_FIELDS": envelope}
        self._do("change_settings", self.world.change_settings(**changed))

    @precondition(lambda self: cast("Story", self).stops < STOPS_MAX)
    @rule(entries=ENTRIES, call=CALLS, fault=st.sampled_from(Fault))
    def stop_half_way(self, entries: list[dict[str, str]], call: Point, fault: Fault) -> None:
        self.publish(1, entries)  # for there must be something to do
        self.stops += 1
        if self._do("stop_half_way", self.world.stop_half_way(call, fault)):
            self.deed.done[fault.name] += 1

    @rule(name=st.sampled_from(["one", "two"]))
    def drain(self, name: str) -> None:
        """A worker of that name does all there is to do."""
        self.stops, self.world.consumer = 0, name
        self._do("drain", self.world.drain())
        self._do("check", self.world.check())

    @invariant()
    def what_is_acknowledged_is_on_record(self) -> None:
        self.deed(self.world.check_acknowledged())

    def teardown(self) -> None:
        """Not before what the story has left open is done, and right."""
        self.drain(name="three")
        self.deed(end(self.world))

    def _do(self, rule: str, step: Coroutine[Any, Any, T]) -> T:
        self.deed.done[rule] += 1
        return self.deed(step)


def search(deed: Deed, *, seed: int, examples: int, steps: int) -> None:
    """Search so many stories of so many steps at most.

    :raises AssertionError: with the shortest one found that fails
    """
    Story.deed = deed
    run_state_machine_as_test(
        chosen_by(seed)(Story),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
