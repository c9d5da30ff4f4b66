"""What runs of faults need beside the servers."""

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.chaos.scene import small_disk as made_small


@pytest.fixture
def small_disk() -> Generator[Path | None]:
    """A small file system, or none where it cannot be had. Ask for it before the servers that use it."""
    with made_small() as path:
        yield path
