"""The sandbox phone in a real browser: what somebody sees and does in the first minute, with mouse and keyboard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from broker.sandbox.faults import Fault
from tests.browser.chromium import WAIT_MS, Watched, axe_finds_nothing, chromium
from tests.sandbox.served import Served

pytestmark = pytest.mark.browser

expect.set_options(timeout=WAIT_MS)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Chromium."""
    async with chromium() as one:
        yield one


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A sandbox with a bot behind it, and a folder for its memory."""
    async with Served(tmp_path / "sandbox") as one:
        yield one


@pytest.fixture
async def page(browser: Browser, served: Served) -> AsyncIterator[Page]:
    """The page, loaded and live; at the end it must not have complained or asked anybody else."""
    one = await browser.new_page(viewport={"width": 1440, "height": 900})
    one.set_default_timeout(WAIT_MS)
    watched = Watched(one, served.url)
    await one.goto(served.url)
    await expect(one.locator("#link[data-up=true]")).to_be_visible()
    yield one
    assert watched.said == []


async def say(page: Page, text: str) -> None:
    """Type a message and send it with Enter."""
    await page.locator("#composer").fill(text)
    await page.keyboard.press("Enter")


async def test_a_message_is_answered_live_with_ticks(page: Page) -> None:
    """The first thing anybody tries. Both bubbles get blue ticks: the bot marks as read, the open chat reads."""
    await say(page, "Hello there")
    mine = page.locator(".bubble.mine", has_text="Hello there")
    theirs = page.locator(".bubble.theirs", has_text="echo: hello there")
    await expect(mine).to_be_visible()
    await expect(theirs).to_be_visible()
    await expect(mine.locator(".ticks.read")).to_be_visible()
    await expect(theirs.locator(".ticks.read")).to_be_visible()
    await expect(page.locator("#window")).to_contain_text("open for 23 h 59 min")


async def test_buttons_and_lists_can_be_tapped(page: Page) -> None:
    """What a bot offers is answered with what Meta sends for a tap, quoting the message."""
    await say(page, "buttons")
    await page.get_by_role("button", name="Button 1").click()
    await expect(page.locator(".bubble.theirs", has_text="You chose Button 1.")).to_be_visible()
    await expect(page.locator(".bubble.mine blockquote", has_text="Choose one")).to_be_visible()
    await say(page, "menu")
    await page.get_by_role("button", name="See the menu").click()
    await page.get_by_role("dialog").get_by_role("button", name="Row 2").click()
    await expect(page.locator(".bubble.theirs", has_text="You chose Row 2.")).to_be_visible()
    await expect(page.get_by_role("dialog")).to_be_hidden()


async def test_each_bubble_opens_the_raw_call_and_the_raw_webhooks(page: Page) -> None:
    """Nothing is hidden: request, answer, webhook bodies, signatures, attempts."""
    await say(page, "Hello")
    await page.locator(".bubble.theirs .inspect").click()
    panel = page.get_by_role("tabpanel", name="Message")
    await expect(panel.locator("summary")).to_have_count(4)
    await expect(panel.locator("pre").first).to_contain_text('"body": "echo: hello"')
    await panel.locator("summary", has_text="delivered").click()
    await expect(panel).to_contain_text("X-Hub-Signature-256: sha256=")
    await expect(panel).to_contain_text("attempt 1 → 200")
    await page.locator(".bubble.mine .paper").click()
    await expect(panel.locator("summary", has_text="Webhook message")).to_be_visible()
    await expect(panel.locator("summary", has_text="read and typing")).to_be_visible()


async def test_customers_and_numbers_have_chats_of_their_own(page: Page, served: Served) -> None:
    """One with a phone, one with a business-scoped id alone; what comes while another is open is counted."""
    served.sandbox.faults.set("delay", Fault(ms=1_500))  # so that the answer comes while another chat is open
    await page.get_by_role("radio", name="Cleo Sample").click()
    await say(page, "From a hidden phone")
    await page.get_by_role("radio", name="Ada Example").click()
    await expect(page.locator(".empty")).to_be_visible()
    await expect(page.get_by_role("radio", name="Cleo Sample").locator(".badge")).to_contain_text("1")
    await page.get_by_role("radio", name="Cleo Sample").click()
    await expect(page.locator(".bubble.theirs", has_text="echo: from a hidden phone")).to_be_visible()
    await page.get_by_role("radio", name="Parcel Service").click()
    await expect(page.locator(".empty")).to_be_visible()
    await expect(page.locator("#business-name")).to_have_text("Parcel Service")


async def test_a_reload_and_a_restart_keep_the_history(page: Page, served: Served) -> None:
    """The page holds nothing; the sandbox does, and its file outlives it."""
    await page.get_by_role("radio", name="Leo Legacy").click()
    await say(page, "Remember me")
    await expect(page.locator(".bubble.theirs .ticks.read")).to_be_visible()
    await page.reload()
    await expect(page.get_by_role("radio", name="Leo Legacy")).to_have_attribute("aria-checked", "true")
    await expect(page.locator(".bubble")).to_have_count(2)


async def test_a_page_that_was_cut_off_catches_up(browser: Browser, served: Served) -> None:
    """The sandbox is started again while the page is open: it says so, comes back, and shows what was there."""
    page = await browser.new_page()
    await page.goto(served.url)
    await say(page, "Before")
    await expect(page.locator(".bubble.theirs .ticks.read")).to_be_visible()
    await served.restart()
    await expect(page.locator("#link[data-up=true]")).to_be_visible()
    await say(page, "After")
    await expect(page.locator(".bubble.theirs", has_text="echo: after")).to_be_visible()
    await expect(page.locator(".bubble")).to_have_count(4)


async def test_faults_are_switched_at_the_page_and_seen_there(page: Page, served: Served) -> None:
    """A lost answer marks its bubble; the tab says how many faults are on; all go off at once."""
    await page.get_by_role("tab", name="Faults").click()
    await page.get_by_role("switch", name="Lost answers").click()
    await expect(page.locator("#faults-on")).to_contain_text("1")
    await say(page, "Hello")
    await expect(page.locator(".bubble.theirs .fault-mark")).to_have_text("lost answer")
    await expect(page.locator(".struck").first).to_contain_text("struck")
    await page.get_by_role("button", name="25 %").click()
    await expect(page.get_by_role("button", name="25 %")).to_have_attribute("aria-pressed", "true")
    assert served.sandbox.faults.on()["lost_answer"].rate == 0.25
    await page.get_by_role("button", name="Switch everything off").click()
    await expect(page.locator("#faults-on")).to_be_hidden()
    assert served.sandbox.faults.on() == {}


async def test_duplicates_show_in_the_traffic(page: Page) -> None:
    """The same webhook again, and how often."""
    await page.get_by_role("tab", name="Faults").click()
    await page.get_by_role("switch", name="Duplicates").click()
    await say(page, "Hello")
    await page.get_by_role("tab", name="Traffic").click()
    await expect(page.locator(".traffic .pill", has_text="+1").first).to_be_visible()
    await expect(page.locator(".bubble.theirs")).to_have_count(1)


async def test_a_phone_that_is_off_stays_at_one_tick(page: Page, served: Served) -> None:
    """The customer's habits are the platform's: one tick while it is off, blue ones once it is on."""
    await say(page, "Hello")
    await expect(page.locator(".bubble.theirs .ticks.read")).to_be_visible()
    await page.get_by_role("switch", name="Phone is on").click()
    await expect(page.get_by_role("switch", name="Phone is on")).to_have_attribute("aria-checked", "false")
    await say(page, "Again")
    await expect(page.locator(".bubble.theirs", has_text="again").locator(".ticks.sent")).to_be_visible()
    await page.get_by_role("switch", name="Phone is on").click()
    await expect(page.locator(".bubble.theirs", has_text="again").locator(".ticks.read")).to_be_visible()


async def test_everything_can_be_done_with_the_keyboard(page: Page) -> None:
    """From the top of the page to an answer and a tapped button without a mouse."""
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")  # skip to the message box
    await expect(page.locator("#composer")).to_be_focused()
    await page.keyboard.type("menu")
    await page.keyboard.press("Enter")
    opener = page.get_by_role("button", name="See the menu")
    await opener.focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog").get_by_role("button", name="Row 0")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(opener).to_be_focused()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.locator(".bubble.theirs", has_text="You chose Row 1.")).to_be_visible()
    radio = page.get_by_role("radio", name="Ada Example")
    await radio.focus()
    await page.keyboard.press("ArrowDown")
    await expect(page.get_by_role("radio", name="Jörg Beispiel")).to_be_focused()
    await expect(page.get_by_role("radio", name="Jörg Beispiel")).to_have_attribute("aria-checked", "true")
    tab = page.get_by_role("tab", name="Message")
    await tab.focus()
    await page.keyboard.press("ArrowRight")
    await expect(page.get_by_role("tab", name="Traffic")).to_be_focused()
    await expect(page.get_by_role("tabpanel", name="Traffic")).to_be_visible()


async def test_a_customer_can_be_added(page: Page) -> None:
    """With a username they hide the phone from the business."""
    await page.get_by_text("Add a customer").click()
    await page.get_by_label("Name", exact=True).fill("Mia Muster")
    await page.get_by_label("Username, hides the phone").fill("mia.muster")
    await page.get_by_role("button", name="Add", exact=True).click()
    await expect(page.get_by_role("radio", name="Mia Muster")).to_have_attribute("aria-checked", "true")
    await say(page, "Hello")
    await expect(page.locator(".bubble.theirs", has_text="echo: hello")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(browser: Browser, served: Served, scheme: str) -> None:
    """In both schemes, wide and narrow, with the chat filled, every panel shown and the sheet open."""
    page = await browser.new_page(
        viewport={"width": 1440, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
    )
    await page.goto(served.url)
    await expect(page.locator("#link[data-up=true]")).to_be_visible()
    await axe_finds_nothing(page, "empty")
    served.sandbox.platform.change("15550001234", reads="never")
    await say(page, "menu")
    await expect(page.locator(".bubble.theirs .ticks.delivered")).to_be_visible()
    await say(page, "buttons")
    await expect(page.get_by_role("button", name="Button 1")).to_be_visible()
    await page.get_by_role("button", name="Button 1").click()
    await expect(page.locator(".bubble.theirs", has_text="You chose")).to_be_visible()
    await page.locator(".bubble.theirs .inspect").first.click()
    await expect(page.locator("pre").first).to_be_visible()
    await axe_finds_nothing(page, "message")
    await page.get_by_role("tab", name="Traffic").click()
    await axe_finds_nothing(page, "traffic")
    await page.get_by_role("tab", name="Faults").click()
    await page.get_by_role("switch", name="Lost answers").click()
    await say(page, "hello")
    await expect(page.locator(".fault-mark")).to_be_visible()
    await expect(page.locator(".struck").first).to_be_visible()
    await axe_finds_nothing(page, "faults")
    await page.get_by_role("button", name="See the menu").click()
    await axe_finds_nothing(page, "sheet")
    await page.keyboard.press("Escape")
    await page.set_viewport_size({"width": 390, "height": 800})
    for view in ("Customers", "Phone", "Inspector"):
        await page.get_by_role("group", name="What is shown").get_by_role("button", name=view).click()
        await axe_finds_nothing(page, f"narrow {view}")
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390
    await page.close()
