"""A real Chromium for the tests of pages. Where there is none, they are skipped and say why; with CI=true they fail."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_MS = 10_000


def executable() -> str:
    """Return Chromium's path, or skip the test and say why."""
    named = os.environ.get("DEPESCHE_TEST_CHROMIUM", "")
    found = named or next((path for name in NAMES if (path := shutil.which(name))), "")
    if not found:
        reason = f"no Chromium: none of {', '.join(NAMES)} is on PATH, and DEPESCHE_TEST_CHROMIUM names none"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Start Chromium, and end it."""
    path = executable()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


class Watched:
    """What a page said that it should not have: errors, warnings, requests to elsewhere."""

    def __init__(self, page: Page, origin: str) -> None:
        self.said: list[str] = []
        page.on("console", lambda message: self._console(message.type, message.text))
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("request", lambda request: self._request(request.url, origin))

    def _console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.said.append(f"{kind}: {text}")

    def _request(self, url: str, origin: str) -> None:
        if not url.startswith((origin, "data:", "blob:")):
            self.said.append(f"request to elsewhere: {url}")


async def axe_finds_nothing(page: Page, where: str) -> None:
    """Fail with every violation axe finds on the page as it stands."""
    results = await Axe().run(page)
    violations = [
        f"{where}: {violation['id']}: {violation['help']}: "
        + "; ".join(f"{node['target']} {node['failureSummary']}" for node in violation["nodes"][:3])
        for violation in results.response["violations"]
    ]
    assert violations == [], "\n".join(violations)
