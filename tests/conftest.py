"""Fixtures over `servers` and `isolation`, and the logs that a failing test shows.

`CI=true`: a server that cannot be had fails its tests; elsewhere they skip with the reason.
`ORDERGATE_TEST_LOGS=1`: logs are shown in full, with `-rA` those of passing tests too.
"""

import os
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest

from tests.influxdb_server import InfluxServer
from tests.isolation import Place, isolated, sweep
from tests.servers import Log, Servers, ServerUnavailable
from tests.workers import Workers
from worker.embedded import PostgresServer, RedisServer

pytest.register_assert_rewrite("tests.record")  # so that its assertions tell what they found

FIGURE = "figure"
LOG_LINES = 20
ALL_LINES = 1_000_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin the long tests first; all others would wait for one that begins last."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}  # as the worker runs


@pytest.fixture(scope="session")
def servers() -> Generator[Servers]:
    """The servers of the session."""
    with Servers() as servers:
        yield servers


@pytest.fixture(scope="session")
async def clean_servers(servers: Servers) -> Servers:
    """The same, once what killed runs left there is removed."""
    with servers_needed():
        await sweep(servers)
    return servers


@pytest.fixture
async def place(clean_servers: Servers) -> AsyncGenerator[Place]:
    """A place of the test's own on the session's servers."""
    async with AsyncExitStack() as stack:
        with servers_needed():
            place = await stack.enter_async_context(isolated(clean_servers))
        yield place


@pytest.fixture
def own_servers() -> Generator[Servers]:
    """Servers for this test alone, to be stopped, killed and halted."""
    with Servers() as servers:
        yield servers


@pytest.fixture
def own_redis(own_servers: Servers) -> RedisServer:
    """A Redis for this test alone."""
    with servers_needed():
        return own_servers.own_redis()


@pytest.fixture
def own_postgres(own_servers: Servers) -> PostgresServer:
    """A Postgres for this test alone."""
    with servers_needed():
        return own_servers.own_postgres()


@pytest.fixture
def own_influx(own_servers: Servers) -> InfluxServer:
    """An InfluxDB for this test alone."""
    with servers_needed():
        return own_servers.own_influx()


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncGenerator[Workers]:
    """Starts `python -m worker`; what still runs at the end of the test is killed."""
    async with Workers(tmp_path) as workers:
        yield workers


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Says a figure of this test at the end of the run, whichever process ran it."""
    return lambda text: request.node.user_properties.append((FIGURE, text))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests told."""
    reports: list[pytest.TestReport] = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call"
    ]
    figures = [str(text) for r in reports for name, text in r.user_properties if name == FIGURE]
    if figures:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(figures))


@contextmanager
def servers_needed() -> Generator[None]:
    """Skip where a server cannot be had, with the reason; under CI, fail."""
    try:
        yield
    except ServerUnavailable as reason:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of the servers and workers that the test used."""
    report = yield
    in_full = os.environ.get("ORDERGATE_TEST_LOGS") == "1"
    if report.failed or (in_full and report.when == "call"):
        lines = ALL_LINES if in_full else LOG_LINES
        report.sections += [(f"log of {log.name}", log.tail(lines)) for log in _logs(item)]
    return report


def _logs(item: pytest.Item) -> list[Log]:
    values = getattr(item, "funcargs", {}).values()
    used = {
        id(it): it for it in values if isinstance(it, Servers | Workers)
    }  # one may have two names
    return [log for it in used.values() for log in it.logs]
