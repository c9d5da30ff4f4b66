"""Servers by TLS: believed where who vouches for them is trusted, and not otherwise."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trustme

from tests.isolation import Place
from tests.orders import orders
from tests.record import Tally, check
from tests.relay import encrypted
from tests.workers import Workers

pytestmark = pytest.mark.anyio


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def by_tls(place: Place, authority: trustme.CA) -> AsyncGenerator[Place]:
    """A place whose Redis and InfluxDB are reached by TLS, with fifty orders and twenty repeats."""
    await place.publish([*orders(range(50)), *orders(range(20))])
    redis, influxdb = place.variables["REDIS_URL"], place.variables["INFLUXDB_URL"]
    async with encrypted(redis, authority) as rediss, encrypted(influxdb, authority) as https:
        yield place.having(REDIS_URL=rediss, INFLUXDB_URL=https)


async def test_servers_whose_authority_is_trusted_are_worked_with(
    by_tls: Place, place: Place, authority: trustme.CA, workers: Workers, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trusted = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    worker = await workers.start(by_tls, "--drain", **trusted)
    assert await worker.ended() == 0
    assert "dependency.lost" not in worker.log
    assert await check(place) == Tally(50, 20)


async def test_a_server_that_nobody_vouches_for_is_not_believed(
    by_tls: Place, place: Place, workers: Workers
) -> None:
    worker = await workers.start(by_tls)
    await worker.logged("CERTIFICATE_VERIFY_FAILED")
    assert await place.command("XINFO", "GROUPS", place.stream) == []


async def test_an_influxdb_that_nobody_vouches_for_gets_no_points(
    by_tls: Place, place: Place, workers: Workers
) -> None:
    worker = await workers.start(by_tls, "--drain", REDIS_URL=place.variables["REDIS_URL"])
    assert await worker.ended() == 0
    assert "CERTIFICATE_VERIFY_FAILED" in worker.log
    assert await place.points() == []
    assert len(await place.fetch("SELECT FROM point_backlog")) == 70


@pytest.fixture
async def postgres_by_tls(place: Place, authority: trustme.CA) -> AsyncGenerator[Place]:
    """A place whose Postgres is reached by TLS, with fifty orders and twenty repeats."""
    await place.publish([*orders(range(50)), *orders(range(20))])
    async with encrypted(place.variables["DATABASE_URL"], authority) as url:
        yield place.having(DATABASE_URL=url)


def verified(place: Place, authority: trustme.CA, directory: Path) -> Place:
    """The same place for workers that believe a Postgres for which this authority vouches."""
    authority.cert_pem.write_to_path(str(directory / "root.pem"))
    query = f"?sslmode=verify-full&sslrootcert={directory / 'root.pem'}"
    return place.having(DATABASE_URL=place.variables["DATABASE_URL"] + query)


async def test_a_postgres_whose_authority_the_url_names_is_worked_with(
    postgres_by_tls: Place, place: Place, authority: trustme.CA, workers: Workers, tmp_path: Path
) -> None:
    worker = await workers.start(verified(postgres_by_tls, authority, tmp_path), "--drain")
    assert await worker.ended() == 0
    assert "dependency.lost" not in worker.log
    assert await check(place) == Tally(50, 20)


async def test_a_postgres_that_another_authority_vouches_for_gets_no_order(
    postgres_by_tls: Place, place: Place, workers: Workers, tmp_path: Path
) -> None:
    worker = await workers.start(verified(postgres_by_tls, trustme.CA(), tmp_path), "--drain")
    await worker.logged("CERTIFICATE_VERIFY_FAILED")
    assert worker.running
    assert await place.fetch("SELECT FROM outcomes") == []
    assert await place.command("XINFO", "GROUPS", place.stream) == []
