"""A browser that looks at a worker's page: Chromium with no window, the one on PATH or Debian's."""

import os
import shutil
from collections.abc import AsyncGenerator, Mapping
from typing import NamedTuple

import pytest
from anyio import to_thread
from playwright.async_api import Browser, BrowserContext, async_playwright

from tests.conftest import servers_needed
from tests.packages import PackagesUnavailable, environment, unpacked
from tests.servers import ServerUnavailable

NAMES = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium", "fonts-dejavu-core")
PROGRAM = "usr/lib/chromium/chromium"
#: Root cannot have Chromium's sandbox, and the page is our own.
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


class Chromium(NamedTuple):
    """A program, and the variables that it needs beside the usual ones."""

    program: str
    variables: Mapping[str, str]


def chromium() -> Chromium:
    """The one that is on PATH, else Debian's. :raises ServerUnavailable: there is none"""
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return Chromium(found, {})
    try:
        root = unpacked("chromium", PACKAGES, (PROGRAM, "--version"), with_needs=True)
    except PackagesUnavailable as error:
        raise ServerUnavailable(
            f"no browser for the tests: {error}; put chromium on PATH"
        ) from error
    return Chromium(str(root / PROGRAM), environment(root))


@pytest.fixture(scope="session")
async def browser() -> AsyncGenerator[Browser]:
    """The browser of the session."""
    with servers_needed():
        found = await to_thread.run_sync(chromium)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=found.program, args=OPTIONS, env={**os.environ, **found.variables}
        )
        yield browser
        await browser.close()


@pytest.fixture
async def context(browser: Browser) -> AsyncGenerator[BrowserContext]:
    """A visitor of the test's own."""
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    yield context
    await context.close()
