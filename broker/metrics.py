"""Every metric, one line each, with its meaning. Label values are few or bounded by the configuration.

Never a customer, a wamid, a send id, a URL or free text in a label. Time series are created at zero by `prepare`, so that
a rate is right from the first event on.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry(auto_describe=True)

FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SLOW = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3_600, 21_600)
BYTES = (256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304)
RECORDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(f"depesche_{name}", meaning, labels, registry=REGISTRY)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    return Gauge(f"depesche_{name}", meaning, labels, registry=REGISTRY)


def _histogram(name: str, meaning: str, buckets: Iterable[float], *labels: str) -> Histogram:
    return Histogram(f"depesche_{name}", meaning, labels, buckets=tuple(buckets), registry=REGISTRY)


# fmt: off
# Receiver
webhook_requests = _counter("webhook_requests_total", "POSTs by the answer we decided", "result")
webhook_request_duration = _histogram("webhook_request_duration_seconds", "First byte to answer written", FAST, "result")
webhook_body_bytes = _histogram("webhook_body_bytes", "Raw body of a POST", BYTES)
webhook_items = _counter("webhook_items_total", "Items found in accepted POSTs", "kind")
webhook_item_age = _histogram("webhook_item_age_seconds", "Meta's timestamp to arrival: Meta's backlog, not ours", SLOW, "kind")
webhook_inflight_bytes = _gauge("webhook_inflight_bytes", "Read but not yet on a log")
webhook_secret_matches = _counter("webhook_secret_matches_total", "Which app secret verified; rotation is over when previous stays flat", "slot")
duplicates = _counter("duplicates_total", "Removed by dedupe", "log", "kind")
# Logs and leases
log_append_duration = _histogram("log_append_duration_seconds", "Append asked to durable", FAST, "log")
log_appends = _counter("log_appends_total", "Records appended, by what came of it", "log", "result")
log_fsync_duration = _histogram("log_fsync_duration_seconds", "Embedded engine: one group commit", FAST)
log_free_bytes = _gauge("log_free_bytes", "Embedded engine: space left on its volume")
log_lag_records = _gauge("log_lag_records", "End minus watermark over held partitions", "log")
log_oldest_pending_timestamp = _gauge("log_oldest_pending_timestamp_seconds", "Append time of the oldest record not done; 0 for none", "log")
log_gap_records = _counter("log_gap_records_total", "Records lost to retention before we read them", "log")
log_corrupt_records = _counter("log_corrupt_records_total", "Embedded engine: records whose checksum is wrong, left out", "log")
log_commits = _counter("log_commits_total", "Commits of a follower's watermark", "log", "result")
log_engine_restarts = _counter("log_engine_restarts_total", "Client objects replaced by their supervisor", "part", "reason")
leases_held = _gauge("leases_held", "Partitions this process owns", "stage")
lease_changes = _counter("lease_changes_total", "kept: came back unfenced, memory reused; fenced: a step was refused", "event")
lease_restore_duration = _histogram("lease_restore_duration_seconds", "Granted to first fetch", SLOW, "stage")
lease_restored_records = _counter("lease_restored_records_total", "State records read back", "stage")
lease_drain_duration = _histogram("lease_drain_duration_seconds", "Revocation asked to drained", SLOW)
steps = _counter("steps_total", "Steps by what came of them", "stage", "result")
step_duration = _histogram("step_duration_seconds", "Commit asked to durable", FAST, "stage")
step_records = _histogram("step_records", "Records consumed by a step", RECORDS, "stage")
# Actors
actors_live = _gauge("actors_live", "Live actors", "actor")
actor_mailbox_records = _gauge("actor_mailbox_records", "Waiting in mailboxes", "actor")
actor_mailbox_wait = _histogram("actor_mailbox_wait_seconds", "Put to taken", FAST, "actor")
actor_restarts = _counter("actor_restarts_total", "Restarts by the supervisor", "actor")
event_loop_lag = _histogram("event_loop_lag_seconds", "Lateness of a 100 ms ticker", FAST)
backpressure_active = _gauge("backpressure_active", "1 while it holds somebody back", "stage")
# Customer stage and gateway
gateway_requests = _counter("gateway_requests_total", "Requests of bots by the answer", "result")
gateway_request_duration = _histogram("gateway_request_duration_seconds", "First byte to answer written", FAST, "result")
gateway_graph_calls = _counter("gateway_graph_calls_total", "Calls passed on to Graph: done, refused by Meta, not made, unreached, unknown (no answer), unreadable, token_refused (ours), broken_off", "call", "result")
gateway_forbidden = _counter("gateway_forbidden_total", "Calls that are not passed on to Graph, by reason", "reason")
gateway_media_bytes = _counter("gateway_media_bytes_total", "Bytes of media passed on, up to Meta or down from it", "direction")
gateway_template_reads = _counter("gateway_template_reads_total", "Lists of templates read from Meta for their categories", "result")
gateway_repetitions = _counter("gateway_repetitions_total", "Requests recognised as repetitions, by the idempotency key or by their bytes", "by")
gateway_unknown_types = _counter("gateway_unknown_types_total", "Messages of a type we do not know, passed on")
routed = _counter("routed_total", "Inbound messages by the route that took them; none: no route did", "route")
auto_replies = _counter("auto_replies_total", "Replies of the broker's own that a route asked for", "route")
statuses = _counter("statuses_total", "Statuses of messages, not counting duplicates: forwarded to whoever sent, routed by a rule, foreign (no rule takes them)", "result")
sends_admitted = _counter("sends_admitted_total", "Send requests by admission", "result")
customer_moves = _counter("customer_moves_total", "Steps of customers' moves from one key to another", "step")
consent_changes = _counter("consent_changes_total", "Customers who said stop or resume to marketing", "change")
# Sender
sends = _counter("sends_total", "Final outcome, one per send", "lane", "outcome")
sends_failed = _counter("sends_failed_total", "Messages that failed after Meta had accepted them, by code", "code")
send_attempts = _counter("send_attempts_total", "Graph calls by outcome", "outcome")
send_wait = _histogram("send_wait_seconds", "Accepted by the gateway to Graph call", SLOW, "lane")
sends_held = _gauge("sends_held", "Waiting on purpose; memory: left in their log until there is room", "reason")
sends_unknown = _gauge("sends_unknown", "Outcome not known yet")
unknown_resolved = _counter("unknown_resolved_total", "How doubt ended", "by")
sends_duplicated = _counter("sends_duplicated_total", "A second accept seen for one send")
graph_request_duration = _histogram("graph_request_duration_seconds", "One Graph call", FAST, "call")
graph_errors = _counter("graph_errors_total", "Errors answered by Graph, by code and by whose turn it is", "code", "kind")
throughput_limit_mps = _gauge("throughput_limit_mps", "Tier in force", "phone_number_id")
throughput_used = _counter("throughput_used_total", "Messages counted against the tier", "phone_number_id", "direction")
number_stopped = _gauge("number_stopped", "1 while a number's sends are stopped; reason: app, waba, number or a lane", "phone_number_id", "reason")
messaging_limit = _gauge("messaging_limit_people", "People an account may write to first in 24 h, as Meta told; -1 for any number", "waba_id")
account_alerts = _counter("account_alerts_total", "What Meta told of accounts that people must hear", "severity")
templates_stopped = _gauge("templates_stopped", "Templates of an account that do not go out; the log names them", "waba_id")
# Delivery
deliveries = _counter("deliveries_total", "Delivery attempts", "kind", "result")
delivery_duration = _histogram("delivery_duration_seconds", "One attempt", FAST, "kind")
delivery_wait = _histogram("delivery_wait_seconds", "On the log to first attempt", SLOW, "kind")
delivery_pending_records = _gauge("delivery_pending_records", "Backlog of a sink", "endpoint")
delivery_oldest_pending_timestamp = _gauge("delivery_oldest_pending_timestamp_seconds", "Oldest event not delivered; 0 for none", "endpoint")
delivery_paused = _gauge("delivery_paused", "1 while an operator holds the sink back", "endpoint")
delivery_failed_over = _gauge("delivery_failed_over", "1 while another sink gets its events", "endpoint")
delivery_breaker_open = _gauge("delivery_breaker_open", "1 while the breaker is open", "endpoint")
# The rest
dead_letters = _counter("dead_letters_total", "Records set aside", "log", "reason")
config_generation = _gauge("config_generation", "Configurations this process has had in force, the first included")
config_reload_ok = _gauge("config_reload_ok", "1 while what was read last is in force; 0: it was refused, the one before stays")
config_reloads = _counter("config_reloads_total", "Readings of a configuration that had changed", "result")
config_info = _gauge("config_info", "1; short hash of the settings in force, the same wherever they are the same", "digest")
build_info = _gauge("build_info", "1; facts about this process", "version", "revision", "python", "engine")
# fmt: on

WEBHOOK_RESULTS = ("accepted", "bad_signature", "bad_request", "too_large", "overloaded", "log_unavailable")
ITEM_KINDS = (
    "message", "status", "echo", "standby", "call", "call_status", "preference", "group", "history", "account",
    "unknown", "malformed",
)  # fmt: skip


def prepare() -> None:
    """Create the series whose labels are known beforehand, at zero."""
    for by in ("key", "bytes"):
        gateway_repetitions.labels(by)
    for direction in ("up", "down"):
        gateway_media_bytes.labels(direction)
    for result in WEBHOOK_RESULTS:
        webhook_requests.labels(result)
        webhook_request_duration.labels(result)
    for kind in ITEM_KINDS:
        webhook_items.labels(kind)
    for slot in ("current", "previous"):
        webhook_secret_matches.labels(slot)
    for event in ("granted", "kept", "revoked", "lost", "fenced"):
        lease_changes.labels(event)
    for lane in ("otp", "reply", "transactional", "campaign"):
        for outcome in ("accepted", "refused", "expired", "cancelled"):
            sends.labels(lane, outcome)
    for outcome in ("accepted", "throttled", "refused", "unknown"):
        send_attempts.labels(outcome)
    for change in ("stop", "resume"):
        consent_changes.labels(change)
    for result in ("taken", "refused"):
        config_reloads.labels(result)
    for by in ("status", "answer", "policy", "expired"):
        unknown_resolved.labels(by)
