"""Every setting with its unit and default: what `depesche.toml` may say.

Unknown keys are refused, so that a typo is an error and not a silence. Secrets never stand here: a field that ends in
`_file` names a file, `_env` an environment variable (see `broker.secrets`). `broker.config` reads, checks and resolves.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

from schemas.records import SendClass


class SecretSource(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a secret is read from: exactly one of the two."""

    file: str = ""
    env: str = ""


class App(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A Meta app whose webhooks come to `/webhooks/meta/<name>`. More than one secret while one is being rotated."""

    name: str
    secrets: list[SecretSource]
    verify_token: SecretSource


class Number(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A business number: who may send from it, how fast, and at which slot its sender lives.

    `throughput_mps`: Meta's tier (80, 1,000 or 20 in coexistence), inbound included; an upgrade that Meta tells raises
    80 by itself. `slot`: partition of the `sends`, `ledger` and `traffic` logs, written once and never changed while
    sends are waiting.
    """

    phone_number_id: str
    waba_id: str
    token: SecretSource
    slot: int
    portfolio: str = "main"
    display_phone_number: str = ""
    throughput_mps: int = 80


class KafkaAccess(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to reach Apache Kafka."""

    bootstrap_servers: str = "127.0.0.1:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = ""
    sasl_username: str = ""
    sasl_password: SecretSource | None = None


class SinkSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A place events are delivered to. `kind` "meta" speaks Meta's own webhook format and signature, "standard" is
    Standard Webhooks, "kafka" a topic of the brand's own. `secret`: the app secret towards a `meta` sink, the
    `whsec_…` of a `standard` one. `previous_secret`: while it is rotated, a `standard` sink's events are signed with
    both; Meta's format has room for one signature."""

    name: str
    kind: Literal["meta", "standard", "kafka"]
    url: str = ""
    """Of a `meta` or `standard` sink; they need one."""
    secret: SecretSource | None = None
    """What their events are signed with; they need one, a topic has none."""
    previous_secret: SecretSource | None = None
    timeout_s: float = 15.0
    in_flight_max: int = 64
    """Requests under way to this sink at once, over all customers, for one leased partition."""
    give_up_after_s: float = 600.0
    """A customer's failing event becomes a dead letter after this time and the next one is tried."""
    partitions: int = 6
    account_updates: bool = False
    """Whether it gets what concerns an account or number as a whole: all updates without `metadata`, which some bots'
    libraries refuse."""
    debounce_ms: int = 0
    """A customer's events are joined into one list after a silence of so long; 0: each goes by itself, at once. Not for
    `meta` sinks: that format is one update per POST. A route may say otherwise for what it takes."""
    debounce_events_max: int = 20
    debounce_wait_ms_max: int = 10_000
    """The first of them waits no longer."""
    failover_to: str = ""
    """Another sink that gets this one's events while it is down, in their order, and no longer than that."""
    failover_after_s: float = 300.0
    """How long its breaker must have been open before. Each process counts for itself, anew after a restart."""
    verify_token: SecretSource | None = None
    """What `depesche sinks verify` says in the GET handshake towards a `meta` sink, as Meta's dashboard would."""
    topic: str = ""
    """Of a `kafka` sink, which needs one. It is the brand's: we neither make nor change it."""
    kafka: KafkaAccess | None = None
    """The cluster the topic is on; without it the one our logs are on."""
    message_bytes_max: int = 1_000_000
    """Of a `kafka` sink: key, headers and value of one message. Kafka's own default for a topic is 1,048,588 for a
    batch; with a larger `max.message.bytes` this may grow too, up to what Meta sends (3 MB)."""


class BotKey(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A key of ours that a bot sends with, or an operator asks with. `sha256`: hex digest of the key, which nobody
    stores. `numbers` it may send from, `sink` where the statuses of its sends go: a bot needs both. `send_class`: what
    its free-form messages are."""

    name: str
    sha256: str
    numbers: list[str] = field(default_factory=list)
    sink: str = ""
    control: bool = False
    """Whether it may ask for what operators do, under `/control/v1`. Without `numbers` it may do nothing else."""
    send_class: SendClass = "reply"
    requests_per_s_max: float = 0.0
    """At each gateway; up to a second's worth at once, beyond it 429. 0 is no limit: a number's tier bounds what is
    sent, this bounds what a bot that ran wild may ask for."""


class When(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a route asks of a message; everything named must hold (AND), inside a list one suffices (OR)."""

    numbers: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    keywords: list[str] = field(default_factory=list)
    """Whole words, compared without case."""
    regex: str = ""
    """Searched in the text, without case. Text beyond 4,096 characters is not looked at."""
    payloads: list[str] = field(default_factory=list)
    """Id of a reply button or list row, or payload of a template's quick reply; a trailing `*` matches any rest."""
    referrals: list[str] = field(default_factory=list)
    """Id of the ad or post a message came from (`referral.source_id`); `*` alone is any."""
    first_message: bool | None = None
    """The customer's first to this number that we know of."""
    customers: list[str] = field(default_factory=list)
    """Phone numbers or BSUIDs; a trailing `*` matches any rest, so `49*` is Germany."""
    languages: list[str] = field(default_factory=list)
    """The customer's, as a template sent to them or a route's `then.language` said; `und` when neither did. Nothing is
    guessed from a text: most are too short. `de` holds for `de_AT` too."""
    holders: list[str] = field(default_factory=list)
    """Who holds the conversation: `bot`, or what a route's `then.holder` said last."""
    open: str = ""
    """Name of `hours` that are open when the message comes in."""
    closed: str = ""
    """Name of `hours` that are not."""


class Reply(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the broker answers by itself: exactly one of the two. It goes the way of every send, with its limits."""

    text: str = ""
    message: dict[str, Any] = field(default_factory=dict)
    """A message as Graph takes it, without its addressing: `{ type = "template", template = { … } }`."""
    every_s: float = 86_400.0
    """One customer gets it from one number no more often than this: a minute to 30 days."""


class Then(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a route does with what it met: at least one of these."""

    sinks: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    """Shown to `standard` sinks."""
    holder: str = ""
    """Who holds the conversation from now on: a sink's name, or `bot`. Sends that name an older epoch are refused."""
    language: str = ""
    """The customer's language from now on."""
    debounce_ms: int | None = None
    """How a customer's events that it takes are joined at its sinks; 0: not at all. Unsaid: as each sink is set."""
    debounce_events_max: int | None = None
    """This bound and the next are the sink's unless said."""
    debounce_wait_ms_max: int | None = None
    reply: Reply | None = None


class Route(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One rule of the ordered list. The first that matches wins, unless it says `continue`."""

    name: str
    when: When = field(default_factory=When)
    then: Then
    go_on: bool = field(default=False, name="continue")


class Hours(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a brand is open, by its own clock."""

    name: str
    time_zone: str
    open: list[str]
    """Like `mon-fri 09:00-12:00,13:00-18:00`. An end before its begin is on the next day."""
    holidays: list[str] = field(default_factory=list)
    """Closed all day: `2026-04-03`, or `12-25` for every year's."""
    exceptions: list[str] = field(default_factory=list)
    """Days with hours of their own: `2026-12-24 09:00-12:00`."""


class KafkaSettings(KafkaAccess, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The cluster our logs are on, and the timings of our clients (measured)."""

    prefix: str = "depesche."
    replication_factor: int = 3
    min_insync_replicas: int = 2
    session_timeout_ms: int = 6_000
    heartbeat_interval_ms: int = 500
    rebalance_timeout_ms: int = 15_000
    transaction_timeout_ms: int = 2_500


class EmbeddedSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The log in one file, for one process."""

    path: str = "data/log"


class LogSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which engine, and the sizes that are fixed when a log is created."""

    engine: Literal["embedded", "kafka"] = "embedded"
    partitions: int = 24
    """Of `conversations` and `state`. Never changed after creation: the key decides the partition."""
    slots: int = 24
    """Of `sends.*`, `ledger` and `traffic`."""
    bytes_in_flight_max: int = 64 * 1024 * 1024
    """Appended but not yet durable, for one process; beyond it appends wait."""
    kafka: KafkaSettings = field(default_factory=KafkaSettings)
    embedded: EmbeddedSettings = field(default_factory=EmbeddedSettings)


class ReceiverSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Webhooks in. Meta sends up to 3 MB and asks for a median of 250 ms."""

    host: str = "127.0.0.1"
    port: int = 8080
    body_bytes_max: int = 4 * 1024 * 1024
    bytes_in_flight_max: int = 64 * 1024 * 1024
    """Read but not yet on a log; above it 503 and `Retry-After`."""
    append_timeout_s: float = 5.0


class GatewaySettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What bots talk to."""

    host: str = "127.0.0.1"
    port: int = 8081
    body_bytes_max: int = 512 * 1024
    """The largest messages the platform documents fit, with every character escaped: 32,768 characters filled into a
    template (393 kB), 257 contacts of 1.9 kB."""
    append_timeout_s: float = 4.0
    """Then the answer is that it is not known. Clients of the field give up after 5 s: an answer that says what to do
    is worth more than one nobody hears."""
    unknown_types: bool = True
    """Message types we do not know are passed on and counted; false refuses them."""
    public_url: str = ""
    """Where bots reach the gateway: media urls begin with it. Empty: `http://<host>:<port>`."""
    passthrough: list[str] = field(default_factory=list)
    """What of Graph bots may call besides what `core/endpoints.py` lists, such as "GET number/settings" or
    "POST waba/message_templates". What takes webhooks away or unregisters a number is refused here, too."""
    graph_timeout_s: float = 30.0
    """Of a call passed on to Graph, from its first byte to the end of its answer."""
    graph_in_flight_max: int = 256
    """Calls passed on, uploads and downloads under way at once, over all keys; beyond it a call waits 3 s, then 503.
    Each holds two connections and up to 256 kB. Half of them at most are one key's, so that no bot keeps the others
    out."""
    media_bytes_max: int = 101 * 1024 * 1024
    """Of an upload or download: Meta takes documents up to 100 MB."""
    media_timeout_s: float = 300.0
    """Of a whole upload or download; 100 MB in it are 3 Mbit/s. A side that is silent for 30 s ends it sooner."""
    media_hosts: list[str] = field(default_factory=lambda: ["fbsbx.com", "fbcdn.net", "facebook.com", "whatsapp.net"])
    """Names under which Meta keeps media: to them alone, and by TLS, its token is shown."""
    template_refresh_s: float = 900.0
    """How often the categories of templates are read from Meta, which decide their lanes; 0 is never."""
    template_classes: dict[str, SendClass] = field(default_factory=dict)
    """Class of what is sent by a template, by its name, where neither its category in Meta's list nor the customer's
    window are to decide."""


class SenderSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sends out to Graph."""

    graph_url: str = "https://graph.facebook.com"
    graph_version: str = "v26.0"
    call_timeout_s: float = 30.0
    """A silent call is in doubt after this. Each avoided timeout is an avoided doubt: Meta may take long."""
    in_flight_max: int = 500
    """Calls under way for one number; 1,000 mps at 350 ms need 350."""
    pending_max: int = 10_000
    """Sends of one lane held in memory for one slot, shared evenly by its numbers; what is beyond waits in the log. As
    many again may queue behind doubts."""


class DoubtSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long a send of each class stays in doubt before it is sent again; -1: never. ARCHITECTURE.md, "Doubt"."""

    otp_s: float = 10.0
    reply_s: float = 60.0
    transactional_s: float = 600.0
    campaign_s: float = -1.0


STOP_WORDS = {
    "en": ["stop", "stop all", "stop promotions", "unsubscribe", "opt out"],
    "de": ["stopp", "abmelden", "abbestellen", "keine werbung"],
    "es": ["baja", "parar", "cancelar suscripción", "no más mensajes"],
    "fr": ["arrêter", "désabonner", "se désabonner"],
    "it": ["ferma", "disiscrivimi", "cancellami"],
    "pt": ["parar", "sair", "descadastrar", "cancelar inscrição"],
    "ar": ["توقف", "إلغاء الاشتراك"],
    "hi": ["बंद करो", "रोकें"],
    "id": ["berhenti", "berhenti berlangganan"],
}
START_WORDS = {
    "en": ["start", "unstop", "subscribe", "opt in"],
    "de": ["anmelden"],
    "es": ["alta", "suscribir"],
    "fr": ["réabonner", "s'abonner"],
    "it": ["iscrivimi"],
    "pt": ["inscrever", "voltar"],
    "ar": ["ابدأ", "اشتراك"],
    "hi": ["शुरू करो"],
    "id": ["mulai", "berlangganan"],
}


class ConsentSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Marketing opt-out. Words are compared with a whole message, without case and punctuation; `stop_words` and
    `start_words` are by language, and all languages count at every number."""

    scope: Literal["portfolio", "number"] = "portfolio"
    """How far a stop reaches: to every number of the portfolio, or to the one it was said to."""
    stop_words: dict[str, list[str]] = field(default_factory=lambda: dict(STOP_WORDS))
    start_words: dict[str, list[str]] = field(default_factory=lambda: dict(START_WORDS))


class CustomerSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds of what one customer may occupy."""

    window_margin_s: float = 60.0
    """A free-form send must begin this long before its 24 h window closes: clocks and queues are not exact."""
    waiting_sends_max: int = 100
    """Admitted and not yet answered sends of one customer; more are refused with the pair limit's code."""
    marketing_rest_h: float = 24.0
    """How long marketing to a customer rests after Meta refused it as more than they are to get (131049); 0: it does
    not. Meta asks for 24 h, and may limit an account that tries sooner again and again."""
    doubt: DoubtSettings = field(default_factory=DoubtSettings)
    consent: ConsentSettings = field(default_factory=ConsentSettings)


class AdminSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Probes and metrics. Pod address only."""

    host: str = "127.0.0.1"
    port: int = 9090


class SandboxNumber(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A number the sandbox plays Meta for; its token is checked."""

    phone_number_id: str
    waba_id: str
    display_phone_number: str
    token: SecretSource
    throughput_mps: int = 80
    name: str = ""
    """Of the business, as customers see it."""


class SampleBot(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A bot to try things with, served beside the sandbox: "assistant" is a `meta` sink, "orders" a `standard` one."""

    kind: Literal["assistant", "orders"]
    port: int
    secret: SecretSource
    """What signs the events it gets."""
    key: SecretSource
    """Its bot key for the gateway."""
    gateway_url: str


class SandboxSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Meta's stand-in and the phone page."""

    host: str = "127.0.0.1"
    port: int = 8090
    webhook_url: str = ""
    app_secret: SecretSource | None = None
    numbers: list[SandboxNumber] = field(default_factory=list)
    path: str = ""
    """Folder for the histories and the referee's journal; empty keeps them in memory."""
    latency_ms: int = 80
    seed: int = 1
    bots: list[SampleBot] = field(default_factory=list)


class ConnectorSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which addresses sinks may have: none that is not public, unless named here (CIDR)."""

    allow: list[str] = field(default_factory=list)
    deny: list[str] = field(default_factory=list)


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of `depesche.toml`."""

    apps: list[App] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)
    sinks: list[SinkSettings] = field(default_factory=list)
    keys: list[BotKey] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    hours: list[Hours] = field(default_factory=list)
    log: LogSettings = field(default_factory=LogSettings)
    receiver: ReceiverSettings = field(default_factory=ReceiverSettings)
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    sender: SenderSettings = field(default_factory=SenderSettings)
    customer: CustomerSettings = field(default_factory=CustomerSettings)
    connector: ConnectorSettings = field(default_factory=ConnectorSettings)
    admin: AdminSettings = field(default_factory=AdminSettings)
    sandbox: SandboxSettings | None = None
