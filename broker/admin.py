"""The admin port: `/livez`, `/readyz`, `/startupz`, `/metrics`. For the pod's address only, never public.

Live never asks Kafka, Graph or a disk: their outage must not restart us. Every body gives the reason. A readiness
that changes to and fro is held: it changes at most every 10 s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from broker import metrics
from broker.clock import Clock
from broker.vitals import Vitals
from schemas.settings import AdminSettings

CHANGE_S_MIN = 10.0

Check = Callable[[], str | None]
"""Says why not, None when all is well."""


class Admin:
    """Serves the probes of one process. `ready`: each role's own check by its name; `started`: done starting."""

    def __init__(self, settings: AdminSettings, vitals: Vitals, clock: Clock, ready: Mapping[str, Check]) -> None:
        self._settings = settings
        self._vitals = vitals
        self._clock = clock
        self._ready = dict(ready)
        self._runner: web.AppRunner | None = None
        self._was: str | None = "starting"
        self._changed_at = -CHANGE_S_MIN
        self.started = False
        self.draining = False
        self.port = settings.port

    async def start(self) -> None:
        """Open the port. With port 0 the system chooses; `port` tells."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/startupz", self._startupz),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._settings.host, self._settings.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the port."""
        if self._runner is not None:
            await self._runner.cleanup()

    def why_not_ready(self) -> str | None:
        """Return the reasons not to be ready, None when ready; a change younger than 10 s is not shown yet."""
        if self.draining:
            return "draining"
        reasons = [f"{name}: {why}" for name, check in self._ready.items() if (why := check()) is not None]
        if (crowded := self._vitals.crowded()) is not None:
            reasons.append(crowded)
        why = "; ".join(reasons) or None
        now = self._clock.monotonic()
        if (why is None) != (self._was is None):
            if now - self._changed_at < CHANGE_S_MIN:
                return self._was
            self._changed_at = now
        self._was = why
        return why

    async def _livez(self, _: web.Request) -> web.Response:
        return _answer(self._vitals.stuck())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _answer(self.why_not_ready())

    async def _startupz(self, _: web.Request) -> web.Response:
        return _answer(None if self.started else "starting")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _answer(why_not: str | None) -> web.Response:
    return web.Response(text="ok\n") if why_not is None else web.Response(status=503, text=why_not + "\n")
