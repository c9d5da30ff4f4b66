"""`check`: one look at everything that orders depend on, and what to do where something is not right."""

import argparse
from collections.abc import AsyncGenerator

import msgspec

from worker.errors import NoAnswer, PostgresRefused
from worker.operate.check_influx import look_at_influx
from worker.operate.check_postgres import look_at_postgres
from worker.operate.check_redis import look_at_redis
from worker.operate.check_streams import look_at_settings
from worker.operate.command import Servers, run, servers_told, streams_of
from worker.operate.finding import Finding, Level, fail
from worker.operate.output import print_json, print_line, printable
from worker.settings import Settings


class Section(msgspec.Struct, frozen=True):
    """What was found at one server."""

    server: str
    findings: list[Finding]


def run_check(options: argparse.Namespace) -> int:
    """Look at everything. 0 where nothing fails, 1 where something does."""
    return run(lambda servers: _run(servers, options))


async def _run(servers: Servers, options: argparse.Namespace) -> int:
    streams = streams_of(servers.settings, options.stream)
    chosen = servers.settings.model_copy(update={"streams": streams})
    sections: list[Section] = []
    for server, findings in _looks(servers, chosen).items():
        sections.append(Section(server, await _all(server, findings)))
        if not options.json:
            _print(sections[-1])
    levels = [finding.level for section in sections for finding in section.findings]
    if options.json:
        print_json({"ok": Level.FAIL not in levels, "sections": sections})
    else:
        print_line(", ".join(f"{levels.count(level)} {level.value}" for level in Level))
    return 1 if Level.FAIL in levels else 0


def _looks(servers: Servers, settings: Settings) -> dict[str, AsyncGenerator[Finding]]:
    apart = settings.claims_address != settings.redis_address
    looks = {
        "settings": _settings(settings),
        "Redis": look_at_redis(servers.redis, settings, streams=True, claims=not apart),
    }
    if apart:
        looks["Redis (claims)"] = look_at_redis(
            servers.claims, settings, streams=False, claims=True
        )
    looks["Postgres"] = look_at_postgres(servers.ledger, settings)
    looks["InfluxDB"] = look_at_influx(settings, servers.points)
    return looks


async def _all(server: str, findings: AsyncGenerator[Finding]) -> list[Finding]:
    """Everything found at a server, and that it does not answer where it does not."""
    found: list[Finding] = []
    try:
        with servers_told():
            async for finding in findings:
                found.append(finding)  # noqa: PERF401 - what came before an error counts
    except (NoAnswer, PostgresRefused) as error:
        found.append(fail("answers", str(error), DO.get(server, "")))
    return found


DO = {
    "Redis": "start it, or see REDIS_URL and the rights of its user",
    "Redis (claims)": "start it, or see DEDUPE_REDIS_URL; orders go on without it",
    "Postgres": "start it, or see DATABASE_URL and the rights of its role",
}


async def _settings(settings: Settings) -> AsyncGenerator[Finding]:
    for finding in look_at_settings(settings):
        yield finding


def _print(section: Section) -> None:
    print_line(section.server)
    for it in section.findings:
        print_line(f"  {it.level.value:4}  {it.what}: {printable(it.says, 500)}")
        if it.do:
            print_line(f"        → {it.do}" + (":" if it.command else ""))
        if it.command:
            print_line(f"          {printable(it.command)}")
