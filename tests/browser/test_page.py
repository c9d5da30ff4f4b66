"""The page of a worker in a real browser: what a person sees of orders, faults and strangers' text."""

import re
import signal
from collections.abc import Sequence
from typing import Any, Literal

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import BrowserContext, Page, expect

from tests.http import served
from tests.isolation import Place
from tests.orders import order, orders
from tests.record import settled
from tests.workers import WorkerProcess, Workers

pytestmark = pytest.mark.anyio

SCRIPT = (
    "<script>document.title='taken'</script><img src=x onerror=document.title='taken'><b>bold</b>"
)
READY, UNREADY = "Taking orders in", "Not taking orders in"


async def opened(
    context: BrowserContext, workers: Workers, place: Place
) -> tuple[Page, WorkerProcess]:
    """The page of a worker that is ready. What the browser complains of fails the test at its end."""
    worker, client = await served(workers, place)
    page = await context.new_page()
    await page.goto(client.url)
    await expect(page.get_by_role("status")).to_have_text(READY, timeout=20_000)
    return page, worker


def complaints(page: Page) -> list[str]:
    """What the browser will have complained of: errors of the script, and breaches of the policy."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda it: found.append(it.text) if it.type == "error" else None)
    return found


async def test_figures_change_while_orders_come(
    context: BrowserContext, place: Place, workers: Workers
) -> None:
    page, _ = await opened(context, workers, place)
    found = complaints(page)
    accepted = page.get_by_role("row", name=place.stream).get_by_role("cell").first
    await expect(accepted).to_have_text("0")
    await expect(page.locator("#rate")).to_have_text("0")
    await place.publish(orders(range(500)))
    await expect(accepted).to_have_text("500", timeout=20_000)
    await expect(page.locator("#rate")).not_to_have_text("0", timeout=20_000)
    await expect(page.locator("#latency")).to_have_text(re.compile(r"\d+\sm?s"), timeout=20_000)
    await expect(page.locator("#rate-chart")).to_have_attribute(
        "aria-label", re.compile("at most [1-9]"), timeout=20_000
    )
    await place.publish(orders(range(500, 700)))
    await expect(accepted).to_have_text("700", timeout=20_000)
    await expect(page.get_by_text("settled 700 accepted")).to_be_visible(timeout=20_000)
    assert found == []


async def test_the_search_finds_the_original_of_a_duplicate(
    context: BrowserContext, place: Place, workers: Workers
) -> None:
    original, repeat = await place.publish([order(1, order_id="O-1"), order(1, order_id="O-2")])
    page, _ = await opened(context, workers, place)
    await settled(place)
    box = page.get_by_role("textbox", name="An entry id, an order id")
    answer = page.get_by_role("region", name="Answer")
    await box.fill("O-2")
    await box.press("Enter")
    await expect(answer).to_contain_text("Duplicate: order O-2 has the same content as order O-1")
    await answer.get_by_role("link", name=original).first.click()
    await expect(answer).to_contain_text("Accepted: order O-1 is the first of its content")
    await page.go_back()
    await expect(answer).to_contain_text("Duplicate: order O-2")
    await box.fill(repeat)
    await page.get_by_role("button", name="Explain").click()
    await expect(answer.get_by_text(repeat).first).to_be_visible()
    await box.fill("nobody-knows")
    await box.press("Enter")
    await expect(answer).to_contain_text("Unknown: no order id nobody-knows is on record")


async def test_a_duplicate_is_listed_with_the_order_that_it_repeats(
    context: BrowserContext, place: Place, workers: Workers
) -> None:
    page, _ = await opened(context, workers, place)
    await place.publish([order(1, order_id="O-1"), order(1, order_id="O-2")])
    pair = page.get_by_role("listitem").filter(has_text="O-2 repeats O-1")
    await expect(pair).to_be_visible(timeout=20_000)
    await pair.get_by_role("link", name="O-1").click()
    await expect(page.get_by_role("region", name="Answer")).to_contain_text("Accepted: order O-1")


async def test_what_a_producer_sent_is_shown_as_text_whatever_it_holds(
    context: BrowserContext, place: Place, workers: Workers
) -> None:
    page, _ = await opened(context, workers, place)
    found = complaints(page)
    hostile = {"order_id": SCRIPT[:128], "symbol": SCRIPT, SCRIPT: SCRIPT, "side": "\x1b[31m"}
    await place.publish(
        [hostile, order(1, note=SCRIPT), order(1, note=SCRIPT, order_id=SCRIPT[:90])]
    )
    letter = page.get_by_role("group").filter(has_text=SCRIPT).first
    await expect(letter).to_be_visible(timeout=20_000)
    await letter.locator("summary").click()
    await expect(letter.get_by_text(SCRIPT, exact=True).first).to_be_visible()
    await expect(page.locator("#duplicates")).to_contain_text("<script>")
    await page.locator("#duplicates").get_by_role("link").first.click()
    await expect(page.get_by_role("region", name="Answer")).to_contain_text("<script>")
    assert await page.locator("main img, main script, main b:not(.tiles b)").count() == 0
    assert "taken" not in await page.title()
    assert found == []


async def test_an_open_dead_letter_stays_open_while_others_come(
    context: BrowserContext, place: Place, workers: Workers
) -> None:
    page, _ = await opened(context, workers, place)
    await place.publish([order(1, side="hold", order_id="R-1")])
    letter = page.get_by_role("group").filter(has_text="R-1")
    await letter.locator("summary").click(timeout=20_000)
    await place.publish([order(1, side="hold", order_id="R-2")])
    await expect(page.get_by_role("group").filter(has_text="R-2")).to_be_visible(timeout=20_000)
    await expect(letter).to_have_attribute("open", "")


async def test_a_worker_that_is_gone_is_noticed_and_one_that_is_back_too(
    context: BrowserContext, place: Place, workers: Workers
) -> None:
    page, worker = await opened(context, workers, place)
    url = page.url
    worker.signal(signal.SIGKILL)
    await worker.ended()
    await expect(page.get_by_role("status")).to_contain_text("does not answer", timeout=20_000)
    assert "no answer" in await page.title()
    await workers.start(place, WORKER_HTTP=url.removeprefix("http://").rstrip("/"))
    await expect(page.get_by_role("status")).to_have_text(READY, timeout=30_000)


async def test_the_page_works_by_keyboard_alone(
    context: BrowserContext, place: Place, workers: Workers
) -> None:
    await place.publish([order(1, order_id="O-1")])
    page, _ = await opened(context, workers, place)
    await settled(place)
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")  # skip to the search
    await expect(page.get_by_role("textbox")).to_be_focused()
    await page.keyboard.type("O-1")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("region", name="Answer")).to_contain_text("Accepted: order O-1")


SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
WIDTHS = (1280, 360)


async def test_axe_finds_nothing_to_complain_of_in_light_and_dark_wide_and_narrow(
    context: BrowserContext, place: Place, workers: Workers
) -> None:
    await place.publish([order(1, order_id="O-1"), order(1, order_id="O-2"), order(2, side="hold")])
    page, worker = await opened(context, workers, place)
    await settled(place)
    await page.get_by_role("textbox").fill("O-2")
    await page.get_by_role("textbox").press("Enter")
    await expect(page.get_by_role("region", name="Answer")).to_contain_text("Duplicate: order O-2")
    await page.locator("summary").first.click(timeout=20_000)
    await well_made(page)
    worker.signal(signal.SIGKILL)
    await expect(page.get_by_role("status")).to_contain_text("does not answer", timeout=20_000)
    await well_made(page)


async def well_made(page: Page) -> None:
    """Look at the page as it is now in every scheme and width: axe, and nothing to scroll sideways for."""
    for scheme in SCHEMES:
        for width in WIDTHS:
            await page.emulate_media(color_scheme=scheme)
            await page.set_viewport_size({"width": width, "height": 800})
            assert await violations(page) == [], (scheme, width)
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width


async def violations(page: Page) -> Sequence[str]:
    """What axe finds wrong with the page as it is now."""
    results: Any = await Axe().run(page)
    found: list[dict[str, Any]] = results.response["violations"]
    return [f"{it['id']}: {[node['html'] for node in it['nodes']]}" for it in found]
