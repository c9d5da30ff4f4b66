"""What the tests' own ground costs, and one order on it: each figure as median and p99.

    make bench ARGS=infrastructure

An order here meets no other: its batch is its own, and each step waits for the one before.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from time import perf_counter
from typing import NamedTuple

from scripts.replay.synthetic import synthetic_orders
from tests.integration.infrastructure.service_factory import RealServiceFactory
from tests.isolation import isolated
from tests.load.figures import Rounds, add, markdown, spread
from tests.load.sections import Section
from tests.servers import Servers
from worker import logs
from worker.batch import Turn, process
from worker.order import Order, parse
from worker.settings import load

HASHES, ORDERS, PLACES = 5_000, 500, 30
WARM_UP = 20  #: orders and hashes that are not counted: connections, caches, plans


class Figure(NamedTuple):
    """One figure: what was measured, in which unit, and its value."""

    name: str
    unit: str
    value: float


def options(parser: argparse.ArgumentParser) -> None:
    """How often."""
    parser.add_argument("--rounds", type=int, default=3)


async def measure(chosen: argparse.Namespace) -> list[Section]:
    """Measure on servers that the environment names, else on servers started for it.

    :raises ServerUnavailable: a server can neither be found nor started
    """
    logs.configure(load({"WORKER_LOG_LEVEL": "warning"}))
    rounds: Rounds = {}
    for _ in range(chosen.rounds):
        figures = [*_hashes(), *await _on_servers()]
        add(rounds, {f"{name}, {unit}": value for name, unit, value in figures})
    rows = [[name, str(spread(values))] for name, values in rounds.items()]
    return [Section("infrastructure", rounds, markdown(("", "median (range)"), rows))]


def _hashes() -> list[Figure]:
    """Parse, validate, canonicalise and hash one order."""
    entries = [
        [text for pair in order.items() for text in pair]
        for order in synthetic_orders(HASHES + WARM_UP, 0, seed=3)
    ]
    times_s: list[float] = []
    for fields in entries:
        started = perf_counter()
        found = parse(fields)
        times_s.append(perf_counter() - started)
        assert isinstance(found, Order)
    return _figures("content hash", "µs", 1e6, times_s[WARM_UP:])


async def _on_servers() -> list[Figure]:
    with Servers() as servers:
        return [*await _orders(servers), *await _places(servers)]


async def _orders(servers: Servers) -> list[Figure]:
    """Send an order, read it, take it through all six steps; then the next."""
    times_s: list[float] = []
    async with isolated(servers) as place, RealServiceFactory() as factory:
        services = await factory.initialize_core_services(place)
        group, io = services.get("ConsumerGroup"), services.get("Connections")
        for order in synthetic_orders(ORDERS + WARM_UP, 0, seed=4):
            started = perf_counter()
            await place.publish([order])
            entries = await group.read_new(1, block=False)
            await process(entries, io, place.settings, Turn())
            times_s.append(perf_counter() - started)
        [row] = await place.fetch("SELECT count(*) FROM orders")
        assert row["count"] == ORDERS + WARM_UP
    return _figures("one order with persistence", "ms", 1e3, times_s[WARM_UP:])


async def _places(servers: Servers) -> list[Figure]:
    """Make a test's place, open its services, and give back everything."""
    made_s: list[float] = []
    opened_s: list[float] = []
    closed_s: list[float] = []
    for _ in range(PLACES):
        async with AsyncExitStack() as stack:
            begun = perf_counter()
            place = await stack.enter_async_context(isolated(servers))
            made = perf_counter()
            factory = await stack.enter_async_context(RealServiceFactory())
            await factory.initialize_core_services(place)
            opened = perf_counter()
        made_s.append(made - begun)
        opened_s.append(opened - made)
        closed_s.append(perf_counter() - opened)
    return [
        *_figures("schema, Redis database and bucket created", "ms", 1e3, made_s),
        *_figures("services opened and healthy", "ms", 1e3, opened_s),
        *_figures("full shutdown, schema dropped", "ms", 1e3, closed_s),
    ]


def _figures(name: str, unit: str, factor: float, times_s: Sequence[float]) -> list[Figure]:
    values: dict[str, Callable[[Sequence[float]], float]] = {
        "median": statistics.median,
        "p99": _p99,
    }
    return [Figure(f"{name}, {word}", unit, of(times_s) * factor) for word, of in values.items()]


def _p99(times_s: Sequence[float]) -> float:
    """The smallest time that 99 of 100 keep; the longest where there are fewer than 100."""
    return sorted(times_s)[-1 - len(times_s) // 100]
