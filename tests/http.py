"""What a worker serves over HTTP, asked for the way any client would."""

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import anyio
import urllib3
from anyio import to_thread
from prometheus_client.parser import text_string_to_metric_families

from tests.isolation import Place
from tests.workers import WorkerProcess, Workers

ANSWER_S_MAX = 10.0


class Reply(NamedTuple):
    """One answer."""

    status: int
    headers: urllib3.HTTPHeaderDict
    text: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever the page gives
        """The body, decoded."""
        return json.loads(self.text)


class Client:
    """Asks one worker."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def get(self, path: str, **headers: str) -> Reply:
        """Ask for a path without its first slash."""
        ask = partial(
            urllib3.request,
            "GET",
            f"{self.url}{path}",
            headers=headers,
            timeout=ANSWER_S_MAX,
            retries=False,
        )
        reply = await to_thread.run_sync(ask)
        return Reply(reply.status, reply.headers, reply.data.decode())

    async def until(self, path: str, status: int, within_s: float = 30) -> Reply:
        """Ask until the answer has that status; gives it. :raises TimeoutError: it had not in time"""
        with anyio.fail_after(within_s):
            while (reply := await self.get(path)).status != status:  # noqa: ASYNC110 - as below
                await anyio.sleep(0.1)
        return reply

    async def metrics(self) -> Mapping[str, float]:
        """Every sample, by its name and the values of its labels, in the order of the labels' names."""
        reply = await self.get("metrics")
        assert reply.status == 200
        return {
            " ".join(
                (sample.name, *(sample.labels[name] for name in sorted(sample.labels)))
            ): sample.value
            for family in text_string_to_metric_families(reply.text)
            for sample in family.samples
        }

    async def until_metric(self, name: str, value: float, within_s: float = 30) -> None:
        """Wait until a metric has a value. :raises TimeoutError: it had not in time"""
        with anyio.fail_after(within_s):
            while (await self.metrics()).get(name) != value:  # noqa: ASYNC110 - the worker knows
                await anyio.sleep(0.1)


async def served(workers: Workers, place: Place, **variables: str) -> tuple[WorkerProcess, Client]:
    """Start a worker that serves HTTP on a port of its own, and a client of it."""
    worker = await workers.start(place, **{"WORKER_HTTP": "127.0.0.1:0", **variables})
    return worker, await client_of(worker)


async def client_of(worker: WorkerProcess) -> Client:
    """A client of a worker, once that one listens."""
    await worker.logged("http.listening")
    found = re.search(r"http://127\.0\.0\.1:\d+/", worker.log)
    assert found, worker.log
    return Client(found[0])
