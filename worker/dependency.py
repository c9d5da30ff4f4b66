"""What we know of a server we depend on: up, or down since when and how often tried.

One event when it goes, one when it is back, nothing in between; and a pause between two attempts that
grows, differs from worker to worker, and never ends in giving up.
"""

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import structlog

PAUSE_S_MIN, PAUSE_S_MAX = 0.05, 5.0

T = TypeVar("T")
log = structlog.stdlib.get_logger("worker")


class Dependency:
    """One server, by the name that logs use."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.failures = 0
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

    def worked(self) -> None:
        """Note that it answered."""
        if not self.up:
            down_s = round(anyio.current_time() - self._down_since, 3)
            log.info("dependency.recovered", dependency=self.name, down_s=down_s)
            self.failures = 0

    def failed(self, error: Exception) -> None:
        """Note that it did not."""
        if self.up:
            self._down_since = anyio.current_time()
            log.warning("dependency.lost", dependency=self.name, error=str(error))
        self.failures += 1
        longest = min(PAUSE_S_MAX, PAUSE_S_MIN * 2 ** min(self.failures, 16))
        pause = random.uniform(longest / 2, longest)  # noqa: S311 - jitter
        self._due_at = anyio.current_time() + pause

    async def pause(self) -> None:
        """Wait until the next attempt is due: twice as long each time, at most 5 s, with jitter."""
        await anyio.sleep_until(self._due_at)

    async def insist(self, attempt: Callable[[], Awaitable[T]], passing: type[Exception]) -> T:
        """Repeat `attempt` until it works. Only errors of the kind `passing` are waited out."""
        while True:
            try:
                result = await attempt()
            except passing as error:
                self.failed(error)
                await self.pause()
            else:
                self.worked()
                return result
