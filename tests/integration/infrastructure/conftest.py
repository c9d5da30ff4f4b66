"""The fixtures of tests against real services; see README.md. They add to those of `tests/conftest.py`."""

from collections.abc import AsyncGenerator

import pytest

from tests.integration.infrastructure.service_factory import (
    DependencyContainer,
    RealServiceFactory,
)
from tests.isolation import Place
from worker.claims import Claims
from worker.ledger import Ledger
from worker.settings import Settings


@pytest.fixture
def clean_database(place: Place) -> Place:
    """A schema `test_<uuid>`, migrated and empty, with a Redis database and an InfluxDB bucket beside it."""
    return place


@pytest.fixture
def real_test_config(clean_database: Place) -> Settings:
    """The settings of a worker in the test's place."""
    return clean_database.settings


@pytest.fixture
async def real_services(clean_database: Place) -> AsyncGenerator[DependencyContainer]:
    """The product's objects in the test's place, once every server has answered."""
    async with RealServiceFactory() as factory:
        yield await factory.initialize_core_services(clean_database)


@pytest.fixture
def real_cache_manager(real_services: DependencyContainer) -> Claims:
    """The claims of the test's stream, in Redis."""
    return real_services.get("CacheManager")


@pytest.fixture
def real_database_service(real_services: DependencyContainer) -> Ledger:
    """The ledger of the test's schema, in Postgres."""
    return real_services.get("DatabaseService")


@pytest.fixture
async def verify_services_healthy(clean_database: Place) -> None:
    """See that each server does what a worker needs of it, for tests that open their services themselves.

    :raises ServiceUnhealthy: one does not; the message names it
    """
    async with RealServiceFactory() as factory:
        await factory.initialize_core_services(clean_database)
