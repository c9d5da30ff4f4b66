"""What we know of a server we depend on: up, degraded or down, since when and how often tried.

One event when it goes, one when it is back, nothing in between; and a pause between two attempts that
grows, differs from worker to worker, and never ends in giving up.
"""

import random
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import TypeVar

import anyio
import structlog

PAUSE_S_MIN, PAUSE_S_MAX = 0.05, 5.0
RETRY_AFTER_S_MAX = 60.0  #: seconds that a server may ask us to stay away

T = TypeVar("T")


class State(Enum):
    """How a server is, as of the last attempt."""

    UP = "up"
    DEGRADED = (
        "degraded"  #: it answers, and refuses: read-only, full, overloaded, not for this token
    )
    DOWN = "down"  #: no answer


log = structlog.stdlib.get_logger("worker")


class Dependency:
    """One server, by the name that logs use.

    :ivar failures: attempts that failed since the last one that worked
    :ivar losses: how often it went
    :ivar error: what the last attempt that failed met
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.failures = 0
        self.losses = 0
        self.error = ""
        self.state = State.UP
        self._insisting = 0
        self._down_since = 0.0
        self._due_at = 0.0

    @property
    def up(self) -> bool:
        """Whether the last attempt worked. Before the first, it is taken to be up."""
        return self.failures == 0

    @property
    def due(self) -> bool:
        """Whether to try it: it is up, or the pause since the last attempt is over."""
        return self.up or anyio.current_time() >= self._due_at

    @property
    def down_s(self) -> float:
        """How long ago it went, in seconds; 0 while it is up."""
        return 0.0 if self.up else anyio.current_time() - self._down_since

    @property
    def is_insisted_on(self) -> bool:
        """Whether somebody repeats an attempt that failed, and so will note himself that it works again."""
        return self._insisting > 0

    def worked(self) -> None:
        """Note that it answered."""
        if not self.up:
            log.info("dependency.recovered", dependency=self.name, down_s=round(self.down_s, 3))
            self.failures = 0
            self.state = State.UP

    def failed(self, error: Exception) -> None:
        """Note that it did not.

        :param error: its `answered` says whether the server refused, its `retry_after_s` for how long
        """
        was_up, self.state, self.error = self.up, _state(error), str(error)
        if was_up:
            self.losses += 1
            self._down_since = anyio.current_time()
            log.warning(
                "dependency.lost", dependency=self.name, state=self.state.value, error=str(error)
            )
        self.failures += 1
        longest = min(PAUSE_S_MAX, PAUSE_S_MIN * 2 ** min(self.failures, 16))
        pause = random.uniform(longest / 2, longest)  # noqa: S311 - jitter
        asked_s = min(getattr(error, "retry_after_s", 0.0), RETRY_AFTER_S_MAX)
        self._due_at = anyio.current_time() + max(pause, asked_s)

    async def pause(self) -> None:
        """Wait until the next attempt is due: twice as long each time, at most 5 s, with jitter.

        Longer only where the server asked for it.
        """
        await anyio.sleep_until(self._due_at)

    async def insist(
        self,
        attempt: Callable[[], Awaitable[T]],
        passing: type[Exception],
        waiting: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """Repeat `attempt` until it works. Only errors of the kind `passing` are waited out.

        :param waiting: called before each wait
        """
        failed = False
        try:
            while True:
                try:
                    result = await attempt()
                except passing as error:
                    self._insisting += not failed
                    failed = True
                    self.failed(error)
                    if waiting:
                        await waiting()
                    await self.pause()
                else:
                    self.worked()
                    return result
        finally:
            self._insisting -= failed


def _state(error: Exception) -> State:
    return State.DEGRADED if getattr(error, "answered", False) else State.DOWN
