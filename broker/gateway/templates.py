"""Reads the lists of templates from Meta, for the categories that decide lanes: at the start, now and then, and soon
after a template was sent that they do not hold."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from urllib.parse import quote

from broker import metrics
from broker.clock import Clock
from broker.core.template_class import NAMES_MAX, TemplateClasses, note, read_page
from broker.gateway.passthrough import Broken, Passthrough, Unreached

logger = logging.getLogger("depesche.gateway")

CALL = "templates"
PAGE = 250
PAGES_MAX = NAMES_MAX // PAGE
LOOK_S = 5.0
WANTED_S_MIN = 60.0
"""A list is read anew this long after the last time at the earliest, whoever wants it: Meta allows 200 calls an hour
for an account without a registered number. Source: Meta, "Rate limits"."""
STOP_S_MAX = 2.0


class TemplateList:
    """Keeps what is known of templates up to date. Owns the task that reads."""

    def __init__(self, graph: Passthrough, classes: TemplateClasses, waba_of: Mapping[str, str], clock: Clock) -> None:
        """`waba_of`: each number's account. Whichever number of an account comes first, its token reads the list."""
        self._graph = graph
        self._classes = classes
        self._waba_of = waba_of
        self._reader = {waba: number for number, waba in reversed(list(waba_of.items()))}
        self._clock = clock
        self._every_s = graph.settings.gateway.template_refresh_s
        self._read_at: dict[str, float] = {}
        self._wanted: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to read, unless the settings say never."""
        if self._every_s:
            self._task = asyncio.create_task(self._run(), name="template lists")

    async def stop(self) -> None:
        """Stop reading. Never raises."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=STOP_S_MAX)

    def wanted(self, phone_number_id: str) -> None:
        """Note that a template of this number's account is not in the list."""
        self._wanted[self._waba_of[phone_number_id]] = None

    async def _run(self) -> None:
        while True:
            for waba, number in self._reader.items():
                now = self._clock.monotonic()
                age_s = now - self._read_at.get(waba, float("-inf"))
                if age_s >= self._every_s or (waba in self._wanted and age_s >= WANTED_S_MIN):
                    self._read_at[waba] = now
                    self._wanted.pop(waba, None)
                    try:
                        await self._read(waba, number)
                    except Exception:
                        metrics.gateway_template_reads.labels("crashed").inc()
                        logger.exception("reading the list of templates crashed; what is known stays")
            await asyncio.sleep(LOOK_S)

    async def _read(self, waba: str, number: str) -> None:
        """Read an account's list whole, or leave what is known as it is and try again: soon when Meta was not reached,
        else in a minute."""
        categories: dict[str, str] = {}
        after = ""
        try:
            for _ in range(PAGES_MAX):
                query = f"fields=name,category&limit={PAGE}" + (f"&after={quote(after, safe='')}" if after else "")
                exchange = await self._graph.exchange(CALL, "GET", number, f"{waba}/message_templates", query=query)
                page = read_page(exchange.body) if exchange.status == 200 else None
                if page is None:
                    metrics.gateway_template_reads.labels("refused").inc()
                    self._wanted[waba] = None
                    logger.warning("account %s: its list of templates was refused with %d", waba, exchange.status)
                    return
                for name, category in page.categories.items():
                    note(categories, name, category)
                after = page.after
                if not after:
                    break
        except Unreached:
            metrics.gateway_template_reads.labels("unreached").inc()
            self._read_at.pop(waba, None)
            return
        except Broken:
            metrics.gateway_template_reads.labels("broken").inc()
            self._wanted[waba] = None
            return
        self._classes.replace(waba, categories)
        metrics.gateway_template_reads.labels("read").inc()
