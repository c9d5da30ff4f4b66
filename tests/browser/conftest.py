"""A browser that looks at a worker's page: Chromium, Debian's or another that is on PATH, with no window."""

import shutil
from collections.abc import AsyncGenerator

import pytest
from playwright.async_api import Browser, BrowserContext, async_playwright

from tests.conftest import servers_needed
from tests.servers import ServerUnavailable

NAMES = ("chromium", "chromium-browser", "google-chrome")
#: Root cannot have Chromium's sandbox, and the page is our own.
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


def chromium() -> str:
    """The program. :raises ServerUnavailable: there is none"""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        raise ServerUnavailable(
            "no browser for the tests: put chromium on PATH; on Debian, apt-get install chromium"
        )
    return found


@pytest.fixture(scope="session")
async def browser() -> AsyncGenerator[Browser]:
    """The browser of the session."""
    with servers_needed():
        program = chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser
        await browser.close()


@pytest.fixture
async def context(browser: Browser) -> AsyncGenerator[BrowserContext]:
    """A visitor of the test's own."""
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    yield context
    await context.close()
