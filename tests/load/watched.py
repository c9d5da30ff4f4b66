"""The worker with a stopwatch at its stages: `python -m tests.load.watched FILE STAGES [the worker's words]`.

Writes to FILE, once the worker has ended, how long each stage computed and how long it lasted, waiting
included, and when each entry's commit was confirmed. STAGES is `all`, or `record` for that last alone: each
stopwatch takes its own time. For the bench alone: the product knows nothing of it.
"""

import inspect
import json
import sys
from collections.abc import Awaitable, Callable, Generator, Iterable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from time import monotonic, perf_counter, process_time, thread_time
from typing import Any

from worker.__main__ import main

#: The call that is each stage: module, name within it.
STAGES = {
    "read": ("streams.group", "Group.read_new"),
    "parse": ("worker.batch", "_parse"),
    "claim": ("worker.claims", "Claims.claim"),
    "decide": ("worker.batch", "_decide"),
    "record": ("worker.ledger", "Ledger.record"),
    "emit": ("worker.influx", "PointWriter.emit"),
    "settle": ("worker.claims", "Claims.settle"),
}
Call = Callable[..., Any]


@dataclass
class Stage:
    """One stage's sums: `busy_s` is CPU of its own, `lasted_s` from call to return, where it waits."""

    busy_s: float = 0
    lasted_s: float = 0
    calls: int = 0


@dataclass
class Watch:
    """Everything seen. CPU and stages count from the first entries read."""

    stages: dict[str, Stage] = field(default_factory=lambda: {name: Stage() for name in STAGES})
    commits: list[tuple[float, list[str]]] = field(default_factory=list[tuple[float, list[str]]])
    cpu_s: float = 0
    began_at_cpu_s: float = 0

    def install(self, names: Iterable[str]) -> None:
        """Put a stopwatch around the call of each of these stages."""
        for name in names:
            module, path = STAGES[name]
            owner: Any = import_module(module)
            *holders, attribute = path.split(".")
            for holder in holders:
                owner = getattr(owner, holder)
            call = getattr(owner, attribute)
            wrap = self._timed_task if inspect.iscoroutinefunction(call) else self._timed
            setattr(owner, attribute, wrap(name, call))

    def _timed(self, name: str, call: Call) -> Call:
        stage = self.stages[name]

        def timed(*words: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the call takes
            started = thread_time()
            answer = call(*words, **named)
            stage.busy_s += thread_time() - started
            stage.calls += 1
            return answer

        return timed

    def _timed_task(self, name: str, call: Call) -> Call:
        stage = self.stages[name]

        async def timed(*words: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the call takes
            started = perf_counter()
            answer = await _Stopwatch(call(*words, **named), stage)
            stage.lasted_s += perf_counter() - started
            stage.calls += 1
            self._note(name, words, answer)
            return answer

        return timed

    def _note(self, name: str, words: tuple[Any, ...], answer: object) -> None:
        if name == "record":  # words: the ledger, the stream, the decisions
            self.commits.append((monotonic(), [decision.entry.id for decision in words[2]]))
        elif name == "read" and answer and not self.began_at_cpu_s:
            self.began_at_cpu_s = process_time()
        elif name == "settle":
            self.cpu_s = process_time() - self.began_at_cpu_s


class _Stopwatch:
    """Awaits a coroutine and adds to its stage how long it computes, not how long it waits."""

    def __init__(self, task: Awaitable[Any], stage: Stage) -> None:
        self._task, self._stage = task, stage

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._task.__await__()
        resume = _sending(steps, None)
        while True:
            started = thread_time()
            try:
                awaited = resume()
            except StopIteration as end:
                return end.value
            finally:
                self._stage.busy_s += thread_time() - started
            try:
                sent = yield awaited
            except BaseException as error:  # noqa: BLE001 - cancellation too goes to the coroutine
                resume = _throwing(steps, error)
            else:
                resume = _sending(steps, sent)


def _throwing(steps: Generator[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: steps.throw(error)


def _sending(steps: Generator[Any, Any, Any], sent: object) -> Callable[[], Any]:
    return lambda: steps.send(sent)


if __name__ == "__main__":
    path, names, *words = sys.argv[1:]
    watch = Watch()
    watch.install(STAGES if names == "all" else [names])
    try:
        code = main(words)
    finally:
        Path(path).write_text(json.dumps(asdict(watch)))
    sys.exit(code)
