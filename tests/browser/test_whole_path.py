"""The whole path in a real browser: the phone page of a real `depesche run`, its sample bots, and Meta's bad days.

Receiver, stages, gateway and log run as a newcomer runs them, in a process of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, expect

from tests.browser.chromium import Watched, chromium
from tests.flow.trial import ASSISTANT, CLEO, Trial

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

ANSWER_MS = 15_000
"""From a message to its answer with blue ticks, on a machine that tests other things at the same time."""
QUIET_S = 3.0
"""So long nothing more may come. A duplicate webhook comes within 3 s."""


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """A running trial; each test takes a customer or number of its own."""
    with Trial(tmp_path_factory.mktemp("whole-path") / "data") as one:
        one.start_and_wait()
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Chromium, started once: that takes longer than an answer."""
    async with chromium() as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, trial: Trial) -> AsyncIterator[Page]:
    """The page, loaded and live; at the end it must not have complained or asked anybody else."""
    one = await browser.new_page(viewport={"width": 1440, "height": 900})
    one.set_default_timeout(ANSWER_MS)
    url = f"http://127.0.0.1:{trial.ports.sandbox}"
    watched = Watched(one, url)
    await one.goto(url)
    await expect(one.locator("#link[data-up=true]")).to_be_visible()
    yield one
    await one.close()
    assert watched.said == []


async def say(page: Page, text: str) -> None:
    """Type a message and send it with Enter."""
    await page.locator("#composer").fill(text)
    await page.keyboard.press("Enter")


async def switch(page: Page, fault: str) -> None:
    """Switch a fault on or off at the page."""
    await page.get_by_role("tab", name="Faults").click()
    await page.get_by_role("switch", name=fault, exact=True).click()


async def soon(locator: Locator) -> None:
    """Wait until it is seen."""
    await expect(locator).to_be_visible(timeout=ANSWER_MS)


def call(trial: Trial, method: str, path: str) -> Any:
    """Call the sandbox beside the loop: the page must go on meanwhile."""
    return asyncio.to_thread(trial.sandbox, method, path)


async def test_a_hello_is_answered_with_ticks_and_nothing_is_hidden(page: Page, tmp_path: Path) -> None:
    """The first minute of a newcomer: the answer, both blue ticks, the webhook and the Graph call behind it."""
    await say(page, "hello")
    mine = page.locator(".bubble.mine", has_text="hello")
    theirs = page.locator(".bubble.theirs", has_text="I am the sample assistant")
    await soon(mine.locator(".ticks.read"))
    await soon(theirs.locator(".ticks.read"))
    panel = page.get_by_role("tabpanel", name="Message")

    await mine.locator(".paper").click()
    webhook = panel.locator("details", has=page.locator("summary", has_text="Webhook message")).first
    await soon(webhook)
    if await webhook.get_attribute("open") is None:
        await webhook.locator("summary").click()
    await expect(webhook).to_contain_text("X-Hub-Signature-256: sha256=")
    await expect(webhook).to_contain_text('"body": "hello"')
    await expect(webhook).to_contain_text("attempt 1 → 200")

    await theirs.locator(".inspect").click()
    await expect(panel.locator("pre").first).to_contain_text("I am the sample assistant")
    await expect(panel.locator("pre").first).to_contain_text("biz_opaque_callback_data")
    await expect(panel).to_contain_text(f"/{ASSISTANT}/messages")
    await page.screenshot(path=tmp_path / "hello.png")

    await page.get_by_role("button", name="Opening hours").click()
    await soon(page.locator(".bubble.theirs", has_text="Monday to Saturday").locator(".ticks.read"))


async def test_a_customer_who_hides_the_phone_gets_an_answer(page: Page, trial: Trial) -> None:
    """There is no number to send to, only Meta's business-scoped id."""
    await page.get_by_role("radio", name="Cleo Sample").click()
    await say(page, "surprise")
    await soon(page.locator(".bubble.theirs .ticks.read").first)
    call_made = await _graph_call(trial, CLEO)
    assert call_made["recipient"] == CLEO
    assert "to" not in call_made


async def test_the_order_desk_answers_on_the_second_number(page: Page) -> None:
    """A bot behind a sink of the other kind, chosen by a route."""
    await page.get_by_role("radio", name="Parcel Service").click()
    await say(page, "Where is 1042?")
    answer = page.locator(".bubble.theirs", has_text="out for delivery")
    await soon(answer.locator(".ticks.read"))
    await page.get_by_role("button", name="Where is it?").click()
    await soon(page.locator(".bubble.theirs", has_text="Our van, four stops away"))


async def test_each_message_is_answered_exactly_once_whatever_meta_does(
    page: Page, trial: Trial, tmp_path: Path
) -> None:
    """Webhooks doubled, answers lost after the message was taken, 429 for throughput: the customer sees none of it."""
    await page.get_by_role("radio", name="Leo Legacy").click()
    for fault, is_struck in (("Duplicates", _came_again), ("Lost answers", _was_lost), ("Throttling", _was_refused)):
        await switch(page, fault)
        await say(page, f"during {fault}")
        await asyncio.to_thread(trial.until, partial(is_struck, trial), ANSWER_MS / 1_000)
        if fault == "Throttling":
            await switch(page, fault)  # while it is on nothing can be sent: Meta takes messages again
        answer = page.locator(".bubble.theirs", has_text=f"You wrote: during {fault}")
        await soon(answer.locator(".ticks.read"))
        if fault != "Throttling":
            await switch(page, fault)
    await asyncio.sleep(QUIET_S)
    await expect(page.locator(".bubble.mine")).to_have_count(3)
    await expect(page.locator(".bubble.theirs")).to_have_count(3)
    await page.screenshot(path=tmp_path / "faults.png")
    view = await call(trial, "GET", "referee")
    assert view["counts"] == {}, view["verdicts"]
    metrics = (await asyncio.to_thread(trial.call, trial.ports.admin, "GET", "/metrics"))[1].decode()
    assert "\ndepesche_sends_duplicated_total 0.0\n" in metrics


def _came_again(trial: Trial) -> bool:
    return bool(trial.sandbox("GET", "faults")["struck"]["duplicate"])


def _was_lost(trial: Trial) -> bool:
    return any(line["fault"] == "lost_answer" for line in _text_calls(trial))


def _was_refused(trial: Trial) -> bool:
    return any(line["code"] == 130429 for line in _text_calls(trial))


def _text_calls(trial: Trial) -> list[dict[str, Any]]:
    """Return the Graph calls that carried a text: the read marks beside them are struck too, and prove little."""
    lines = trial.sandbox("GET", "state")["traffic"]
    return [line for line in lines if line["line"] == "call" and line["what"] == "text"]


async def _graph_call(trial: Trial, person: str) -> dict[str, Any]:
    """Return the body of the call behind the last answer to a customer."""
    answer = (await asyncio.to_thread(trial.answers, person))[-1]
    behind = await call(trial, "GET", f"messages/{answer['id']}")
    (made,) = behind["calls"]
    request: dict[str, Any] = made["request"]
    return request
