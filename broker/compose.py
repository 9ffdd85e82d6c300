"""Puts a process together: which roles it plays, in what order they start, and how all of it ends in bounded time.

This and `broker.cli` are the only places that know every part. Parts start from the log upwards and end the other way
round: first nothing new comes in, then what is under way is finished, then the log is closed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import random
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from broker import garbage, metrics
from broker.admin import Admin
from broker.clock import Clock, SystemClock
from broker.config import Config, load
from broker.core.customer_context import Context, context_of
from broker.errors import LogUnavailable, Misconfigured, WrongIncarnation
from broker.gateway.app import Gateway, gateway_app
from broker.gateway.control import Control
from broker.gateway.passthrough import Passthrough
from broker.log.catalogue import catalogue
from broker.log.contract import Draft, Entry, LogEngine
from broker.log.contract import Stage as LogStage
from broker.log.door import Door
from broker.log.embedded import EmbeddedLog
from broker.log.glance import glance, must_exist
from broker.log.kafka import KafkaLog
from broker.log.kafka_connection import connection
from broker.log.kafka_topics import Topics
from broker.log.position import NOWHERE, POSITION, encode_position
from broker.receiver import Receiver, receiver_app
from broker.reload import Reloader, Take
from broker.sandbox.app import Sandbox
from broker.sandbox.bots import SampleBots
from broker.secrets import Secret
from broker.visit import EmbeddedVisit, EngineVisit, Visit
from broker.vitals import Vitals
from schemas.settings import LogSettings, SandboxSettings, SinkSettings
from workers.connector import Connector, guard_of
from workers.customer import CustomerStage
from workers.delivery import DeliveryStage
from workers.graph import GraphClient
from workers.sender import SenderStage
from workers.sinks import Target
from workers.topics import TopicPublisher

logger = logging.getLogger("depesche")

STAGES = ("customer", "sender", "delivery")

GRACE_S_RUN = 4.0
"""Everything in one process belongs to a person who pressed Ctrl-C."""
GRACE_S_WORKER = 35.0
"""Running calls are better finished than in doubt."""
GRACE_S_PORT = 10.0

LEASE_S_MAX = 30.0
"""A worker that was granted nothing in this time is one too many; it is ready all the same, to take over."""

START_S_MAX = 60.0
"""A log that cannot be opened in this time is an error to be seen, not a wait."""


class Part(Protocol):
    """What starts and stops. `stop` never raises and ends within its own bound."""

    async def start(self) -> None:
        """Begin."""
        ...

    async def stop(self) -> None:
        """End."""
        ...


class Stage(Protocol):
    """What a stage shows of itself to the readiness probe."""

    @property
    def failure(self) -> Exception | None:
        """What keeps a partition from being run for good."""
        ...

    def held(self) -> frozenset[tuple[str, int]]:
        """The partitions this process runs."""
        ...


@dataclass(frozen=True)
class Roles:
    """What a process is."""

    receiver: bool = False
    gateway: bool = False
    stages: tuple[str, ...] = ()
    sandbox: bool = False

    @classmethod
    def everything(cls, config: Config) -> Roles:
        """Return all roles; the sandbox where one is configured."""
        return cls(True, True, STAGES, config.settings.sandbox is not None)

    @property
    def needs_log(self) -> bool:
        """Whether any role touches the log."""
        return self.receiver or self.gateway or bool(self.stages)

    @property
    def grace_s(self) -> float:
        """How long each part may take to stop."""
        if self.receiver and self.stages:
            return GRACE_S_RUN
        return GRACE_S_WORKER if self.stages else GRACE_S_PORT


def engine_of(config: Config, clock: Clock, rng: random.Random, *, create: bool = True) -> EmbeddedLog | KafkaLog:
    """Return the engine the settings name, not yet started."""
    settings = config.settings.log
    specs = catalogue(config.settings)
    if settings.engine == "embedded":
        folder = config.base / settings.embedded.path
        return EmbeddedLog(folder, specs, clock=clock, rng=rng, bytes_in_flight_max=settings.bytes_in_flight_max)
    return KafkaLog(
        settings.kafka,
        specs,
        clock=clock,
        rng=rng,
        password=_kafka_password(config),
        bytes_in_flight_max=settings.bytes_in_flight_max,
        create_topics=create,
    )


def visit(config: Config) -> Visit:
    """Return a command's visit to the logs, to be entered. It makes no topics and waits for no lock."""
    settings, clock, rng = config.settings.log, SystemClock(), random.SystemRandom()
    if settings.engine == "embedded":
        folder = config.base / settings.embedded.path
        engine = EmbeddedLog(folder, catalogue(config.settings), clock=clock, rng=rng, lock_s_max=0.0)
        return EmbeddedVisit(folder, engine)
    return EngineVisit(engine_of(config, clock, rng, create=False))


def connector(config: Config) -> Connector:
    """Return what speaks to sinks, guard and all, to be entered. Raises `Misconfigured`."""
    return Connector(guard_of(config.settings.connector))


def rehearse(config: Config) -> None:
    """Build what needs neither log nor port, as the roles will. Raises `Misconfigured` with a line for each error."""
    settings, sandbox = config.settings, config.settings.sandbox
    attempts: list[Callable[[], object]] = [
        lambda: context_from(config),
        lambda: guard_of(settings.connector),
        *(partial(_target, config, i, sink) for i, sink in enumerate(settings.sinks)),
    ]
    if sandbox is not None:
        attempts += [partial(_sample_bots, config, sandbox, SystemClock()), partial(_must_be_playable, sandbox)]
    errors: list[str] = []
    for attempt in attempts:
        try:
            attempt()
        except (Misconfigured, ValueError) as error:
            errors.append(str(error))
    if errors:
        raise Misconfigured("\n".join(errors))


async def serve(
    config: Config, roles: Roles, admin_port: int | None = None, greet: Callable[[str], None] | None = None
) -> None:
    """Run the roles until SIGTERM or SIGINT. A second signal ends the process at once.

    Raises `Misconfigured`, `LogUnavailable`, `OSError` when a part cannot start; what had started is stopped first.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    metrics.prepare()
    settings = config.settings
    admin_settings = settings.admin if admin_port is None else replace(settings.admin, port=admin_port)
    metrics.build_info.labels(
        version("depesche"), os.environ.get("DEPESCHE_REVISION", ""), platform.python_version(), settings.log.engine
    ).set(1)
    rehearse(config)
    stopping = _signals()
    process = _Process(config, roles)
    admin = Admin(admin_settings, process.vitals, process.clock, process.ready)
    async with AsyncExitStack() as stack:
        _on_hangup(process.reloader.hurry, stopping.set)
        process.vitals.start()
        stack.push_async_callback(process.vitals.stop)
        with _port("admin.port", admin_settings.port):
            await admin.start()
        stack.push_async_callback(admin.stop)
        starting = asyncio.ensure_future(process.start(stack))
        stopped = asyncio.ensure_future(stopping.wait())
        await asyncio.wait([starting, stopped], timeout=START_S_MAX, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting], timeout=GRACE_S_RUN)
            if not stopping.is_set():
                raise LogUnavailable(f"not started within {START_S_MAX:.0f} s: is {_log_of(settings.log)} reachable?")
            if starting.done() and not starting.cancelled() and (error := starting.exception()) is not None:
                raise error
            return
        starting.result()
        garbage.settle()
        admin.started = True
        if greet is not None:
            for line in process.greetings():
                greet(line)
        await stopped
        logger.info("stopping")
        admin.draining = True
    logger.info("stopped")


class _Process:
    """The parts of one process."""

    def __init__(self, config: Config, roles: Roles) -> None:
        self.config = config
        self.roles = roles
        self.clock: Clock = SystemClock()
        self.rng: random.Random = random.SystemRandom()
        self.chance = random.Random(self.rng.getrandbits(128))  # noqa: S311
        """For pauses and probes of the stages, one for each event: asking the system takes up to 20 µs, and nobody
        gains by guessing them. What must not be guessed, as ids, comes from `rng`."""
        self.vitals = Vitals(self.clock)
        self.reloader = Reloader(config, self._read, self.clock)
        self.ready: dict[str, Callable[[], str | None]] = {"process": lambda: None if self._started else "starting"}
        self.ready["configuration"] = lambda: self.reloader.failure
        self._started = False
        self._sandbox: Sandbox | None = None
        self._addresses: list[str] = []

    def _read(self) -> Config:
        """Read the configuration anew and check it as at the start."""
        if self.config.path is None:
            return self.config
        config = load(self.config.path)
        rehearse(config)
        return config

    async def start(self, stack: AsyncExitStack) -> None:
        """Start every part; each is stopped by the stack, last first."""
        config, roles, settings = self.config, self.roles, self.config.settings
        if roles.needs_log:
            engine = engine_of(config, self.clock, self.rng)
            stack.push_async_callback(engine.close)
            await engine.start()
            if isinstance(engine, EmbeddedLog):
                door = Door(config.base / settings.log.embedded.path, engine)
                await door.start()
                stack.push_async_callback(door.stop)
            if roles.sandbox and settings.sandbox is not None:
                await self._start_bots(stack, settings.sandbox)
            await self._start_stages(stack, engine)
            await self._start_ports(stack, engine)
        elif settings.sandbox is not None:
            await self._start_bots(stack, settings.sandbox)
        if roles.sandbox and settings.sandbox is not None:
            await self._start_sandbox(stack, settings.sandbox)
        await self.reloader.start()
        stack.push_async_callback(self.reloader.stop)
        self._started = True

    def greetings(self) -> list[str]:
        """Return what a person at the terminal wants to know."""
        lines = [f"  {address}" for address in self._addresses]
        if self._sandbox is not None:
            lines.append(f"\nThe sandbox phone: http://{self._sandbox.settings.host}:{self._sandbox.port}/")
        return ["Depesche is running. Ctrl-C stops it.", *lines]

    async def _start_stages(self, stack: AsyncExitStack, engine: LogEngine) -> None:
        config, settings, grace_s = self.config, self.config.settings, self.roles.grace_s
        started: list[Callable[[float], Awaitable[None]]] = []
        stack.push_async_callback(_stop_together, started, grace_s)
        if "delivery" in self.roles.stages and settings.sinks:
            poster = connector(config)
            await poster.start()
            stack.push_async_callback(poster.stop)
            publisher = TopicPublisher()
            stack.push_async_callback(publisher.stop)
            delivery = DeliveryStage(engine, targets_of(config), poster, self.clock, self.chance, publisher=publisher)
            await delivery.start()
            self.reloader.add(partial(_take_targets, delivery))
            started.append(delivery.stop)
            self._watch("delivery", delivery)
        if "customer" in self.roles.stages:
            customer = CustomerStage(engine, context_from(config), self.clock, self.chance)
            await customer.start()
            self.reloader.add(partial(_take_context, customer))
            started.append(customer.stop)
            self._watch("customer", customer)
        if "sender" in self.roles.stages:
            graph = GraphClient(
                settings.sender.graph_url, settings.sender.graph_version, settings.sender.call_timeout_s
            )
            await graph.start()
            stack.push_async_callback(graph.close)
            sender = SenderStage(engine, settings, config.number_tokens(), graph, self.clock, self.chance)
            await sender.start()
            self.reloader.add(partial(_take_numbers, sender))
            started.append(sender.stop)
            self._watch("sender", sender)

    async def _start_ports(self, stack: AsyncExitStack, engine: EmbeddedLog | KafkaLog) -> None:
        config, settings = self.config, self.config.settings
        if self.roles.gateway:
            graph = Passthrough(settings, config.number_tokens(), self.clock, self.rng)
            await graph.start()
            stack.push_async_callback(graph.stop)
            control = Control(settings, engine, self.clock)
            gateway = Gateway(settings, engine, self.clock, self.rng, graph, control)
            await gateway.start()
            self.reloader.add(partial(_take_keys, gateway))
            self.reloader.add(partial(_take_tokens, graph))
            self.reloader.add(partial(_take_control, control))
            stack.push_async_callback(gateway.stop, self.roles.grace_s)
            port = gateway_app(gateway, settings, self.clock)
            with _port("gateway.port", settings.gateway.port):
                await port.start()
            stack.push_async_callback(port.stop, self.roles.grace_s)
            self.ready["gateway"] = gateway.why_not_ready
            self._addresses.append(f"gateway   http://{settings.gateway.host}:{port.port}  (bots send here)")
        if self.roles.receiver:
            receiver = Receiver(settings, config.app_secrets(), config.verify_tokens(), engine, self.clock)
            await receiver.start()
            self.reloader.add(partial(_take_secrets, receiver))
            stack.push_async_callback(receiver.stop, self.roles.grace_s)
            port = receiver_app(receiver, settings, self.clock)
            with _port("receiver.port", settings.receiver.port):
                await port.start()
            stack.push_async_callback(port.stop, self.roles.grace_s)
            self.ready["receiver"] = receiver.why_not_ready
            self._addresses.append(f"receiver  http://{settings.receiver.host}:{port.port}/webhooks/meta/<app>")

    async def _start_bots(self, stack: AsyncExitStack, settings: SandboxSettings) -> None:
        if not settings.bots:
            return
        bots = _sample_bots(self.config, settings, self.clock)
        with _port("sandbox.bots' ports", *(bot.port for bot in settings.bots)):
            await bots.start()
        stack.push_async_callback(bots.stop)

    async def _start_sandbox(self, stack: AsyncExitStack, settings: SandboxSettings) -> None:
        config = self.config
        tokens = {
            n.phone_number_id: config.secret(f"sandbox.numbers[{i}].token") for i, n in enumerate(settings.numbers)
        }
        folder: Path | None = config.base / settings.path if settings.path else None
        self._sandbox = Sandbox(settings, tokens, config.secret("sandbox.app_secret"), folder, self.clock)
        with _port("sandbox.port", settings.port):
            await self._sandbox.start()
        stack.push_async_callback(self._sandbox.stop)

    def _watch(self, name: str, stage: Stage) -> None:
        began = self.clock.monotonic()

        def why_not_ready() -> str | None:
            if stage.failure is not None:
                return str(stage.failure)
            if not stage.held() and self.clock.monotonic() - began < LEASE_S_MAX:
                return "no partition granted yet"
            return None

        self.ready[name] = why_not_ready


def context_from(config: Config) -> Context:
    """Return what customers' decisions need of a configuration. Raises `ValueError`."""
    return context_of(config.settings, config.media_secrets())


def targets_of(config: Config) -> list[Target]:
    """Return the sinks as they are delivered to. Raises `Misconfigured`."""
    return [_target(config, i, sink) for i, sink in enumerate(config.settings.sinks)]


def _target(config: Config, index: int, sink: SinkSettings) -> Target:
    where = f"sinks[{index}]"
    if sink.kind != "kafka":
        return Target(sink, config.sink_secrets()[sink.name], where=where)
    if sink.kafka is None:
        return Target(sink, [], connection(config.settings.log.kafka, _kafka_password(config)), where)
    password = config.sink_passwords().get(sink.name)
    return Target(sink, [], connection(sink.kafka, password, f"{where}.kafka"), where)


# What each part takes of a configuration that changed: built first, which may fail, then put in force.


def _take_targets(delivery: DeliveryStage, config: Config) -> Take:
    return partial(delivery.use_targets, targets_of(config))


def _take_context(customer: CustomerStage, config: Config) -> Take:
    return partial(customer.adopt, context_from(config))


def _take_numbers(sender: SenderStage, config: Config) -> Take:
    return partial(sender.use, config.settings.numbers, config.number_tokens())


def _take_keys(gateway: Gateway, config: Config) -> Take:
    return partial(gateway.use_keys, config.settings.keys)


def _take_tokens(graph: Passthrough, config: Config) -> Take:
    return partial(graph.use_tokens, config.number_tokens())


def _take_control(control: Control, config: Config) -> Take:
    return partial(control.use, config.settings)


def _take_secrets(receiver: Receiver, config: Config) -> Take:
    return partial(receiver.use_secrets, config.app_secrets(), config.verify_tokens())


def _sample_bots(config: Config, settings: SandboxSettings, clock: Clock) -> SampleBots:
    return SampleBots(
        settings.bots,
        secrets=[config.secret(f"sandbox.bots[{i}].secret") for i in range(len(settings.bots))],
        keys=[config.secret(f"sandbox.bots[{i}].key") for i in range(len(settings.bots))],
        clock=clock,
    )


def _must_be_playable(settings: SandboxSettings) -> None:
    if settings.app_secret is None or not settings.webhook_url or not settings.numbers:
        raise Misconfigured("sandbox: needs app_secret, webhook_url and at least one of sandbox.numbers")


@contextmanager
def _port(where: str, *ports: int) -> Iterator[None]:
    """Say of a port that cannot be had which setting names it."""
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        numbers = ", ".join(str(port) for port in ports)
        raise OSError(
            error.errno,
            f"{where} = {numbers}: cannot be opened ({why}); end what uses it, or choose another port "
            "(a trial's all at once: --base-port)",
        ) from None


async def _stop_together(stops: Sequence[Callable[[float], Awaitable[None]]], grace_s: float) -> None:
    """Stop the stages side by side: they share the grace."""
    await asyncio.gather(*(stop(grace_s) for stop in stops))


def _signals() -> asyncio.Event:
    """Return what the first SIGTERM or SIGINT sets; the second ends the process."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked() -> None:
        if stopping.is_set():
            os._exit(130)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
    return stopping


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _on_hangup(reread: Callable[[], None], stop: Callable[[], None]) -> None:
    """SIGHUP is what it always was, where a terminal was closed; else it asks to read the configuration."""
    began_in_terminal = _has_terminal()

    def hung_up() -> None:
        if began_in_terminal and not _has_terminal():
            stop()
        else:
            reread()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up)


async def topics(config: Config, *, apply: bool) -> tuple[list[str], list[str]]:
    """Compare the topics with what the logs need, after making those that are missing when `apply`.

    Returns the names made and a line for each difference that remains. Raises `Misconfigured`, `LogUnavailable`.
    """
    settings = config.settings.log
    if settings.engine != "kafka":
        raise Misconfigured("log.engine = 'embedded': has no topics; they belong to engine = 'kafka'")
    connect = connection(settings.kafka, _kafka_password(config))
    found = Topics(settings.kafka, catalogue(config.settings), connect)
    made = await found.apply() if apply else []
    try:
        return made, [str(difference) for difference in await found.differences()]
    except Misconfigured as missing:
        if apply:
            raise
        return made, [str(missing)]


async def reset_position(config: Config, stage: LogStage, partition: int, *, reset: bool) -> str:
    """Say why a stage refuses a partition, "" when it does not; with `reset`, let it begin at its logs' first records.

    Fences the partition's owner for a moment. Raises `Misconfigured`, `LogUnavailable`.
    """
    engine = engine_of(config, SystemClock(), random.SystemRandom(), create=False)
    if partition >= (partitions := engine.logs[stage.state].partitions):
        raise Misconfigured(f"partition {partition}: {stage.name} has partitions 0 to {partitions - 1}")
    if config.settings.log.engine == "embedded":
        must_exist(config.base / config.settings.log.embedded.path)
    async with EngineVisit(engine) as opened:
        try:
            await engine.seize(stage, partition)
        except WrongIncarnation as wrong:
            if reset:
                await opened.append(stage.state, [Draft(POSITION, encode_position(NOWHERE), partition)])
            return str(wrong)
    return ""


def _log_of(settings: LogSettings) -> str:
    """Return the setting that says where the log is."""
    if settings.engine == "kafka":
        return f"log.kafka.bootstrap_servers = {settings.kafka.bootstrap_servers!r}"
    return f"log.embedded.path = {settings.embedded.path!r}"


def _kafka_password(config: Config) -> Secret | None:
    return config.secret("log.kafka.sasl_password") if config.settings.log.kafka.sasl_password is not None else None


async def tail(
    config: Config,
    log: str,
    show: Callable[[Entry], object],
    partition: int | None,
    offset: int | None,
    limit: int | None,
    *,
    follow: bool,
) -> None:
    """Show the records of a log, of one partition or all. Raises `Misconfigured` for a log that does not exist."""
    left = [limit if limit is not None else -1]

    def shown(entry: Entry) -> bool:
        show(entry)
        left[0] -= 1
        return left[0] == 0

    settings = config.settings
    if settings.log.engine == "embedded":
        folder = config.base / settings.log.embedded.path
        async with aclosing(glance(folder, log, partition=partition, offset=offset or 0, tail=follow)) as entries:
            async for entry in entries:
                if shown(entry):
                    return
        return
    engine = engine_of(config, SystemClock(), random.SystemRandom(), create=False)
    specs = engine.logs
    if log not in specs:
        raise Misconfigured(f"no log {log!r}; there are {', '.join(sorted(specs))}")
    if partition is not None and partition >= specs[log].partitions:
        raise Misconfigured(f"partition {partition}: {log} has partitions 0 to {specs[log].partitions - 1}")
    wanted = range(specs[log].partitions) if partition is None else (partition,)
    try:
        try:
            async with asyncio.timeout(START_S_MAX):
                await engine.start()
        except TimeoutError:
            raise LogUnavailable(
                f"not opened within {START_S_MAX:.0f} s: is {_log_of(settings.log)} reachable?"
            ) from None
        await _merge(engine, log, wanted, offset, shown, follow=follow)
    except ExceptionGroup as failed:
        # A group says that several readers were at work; whoever asked wants to know what went wrong.
        raise failed.exceptions[0] from None
    finally:
        await engine.close()


async def _merge(
    engine: LogEngine,
    log: str,
    partitions: Iterable[int],
    offset: int | None,
    shown: Callable[[Entry], bool],
    *,
    follow: bool,
) -> None:
    """Read partitions side by side until `shown` has enough or all of them end. Raises `ExceptionGroup`."""
    queue: asyncio.Queue[Entry | None] = asyncio.Queue(maxsize=1_000)

    async def pump(number: int) -> None:
        async for entry in engine.read(log, number, offset, tail=follow):
            await queue.put(entry)
        await queue.put(None)

    async with asyncio.TaskGroup() as group:
        pumps = [group.create_task(pump(number)) for number in partitions]
        open_pumps = len(pumps)
        while open_pumps:
            record = await queue.get()
            if record is None:
                open_pumps -= 1
            elif shown(record):
                break
        for each in pumps:
            each.cancel()
