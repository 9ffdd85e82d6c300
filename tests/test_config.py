"""A configuration explains itself: every error names the setting, the value and what would be right."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker import trial
from broker.config import load, parse, resolve
from broker.errors import Misconfigured
from broker.misfits import misfits
from schemas.settings import Settings

EXAMPLE = Path(__file__).parent.parent / "deploy" / "depesche.toml"

Tree = dict[str, Any]

BOT: Tree = {"kind": "orders", "port": -1, "secret": {"env": "X"}, "key": {"env": "X"}, "gateway_url": "http://x/"}


def example() -> Tree:
    """Return the example configuration as a tree to spoil."""
    return tomllib.loads(EXAMPLE.read_text())


def test_the_annotated_example_is_right() -> None:
    """It is what a new operator copies first."""
    settings = parse(example())
    assert [number.slot for number in settings.numbers] == [0, 12]
    assert [sink.kind for sink in settings.sinks] == ["meta", "standard"]
    assert settings.routes[-1].when.types == []
    assert [route.name for route in settings.routes if route.go_on] == ["after-hours"]


def test_a_trial_is_made_once_and_then_kept(tmp_path: Path) -> None:
    """Started again, everything is still there: keys and secrets too."""
    first = trial.prepare(tmp_path, trial.Ports())
    before = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    config = load(first)
    assert trial.prepare(tmp_path, trial.Ports(receiver=1)) == first
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == before
    assert str(config.app_secrets()["trial"][0]) == "***"
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "secrets").iterdir())


def set_at(*path: str | int) -> Callable[[Tree, Any], None]:
    """Return a function that sets one place of a tree."""

    def put(tree: Tree, value: Any) -> None:
        place: Any = tree
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return put


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("numbers", 0, "slot"), "x", "numbers[0].slot = 'x': must be an integer, not a string"),
        (("numbers", 0, "slot"), 24, "numbers[0].slot = 24: must be from 0 to 23"),
        (("numbers", 1, "phone_number_id"), "106540352242922", "stands already at numbers[0]"),
        (("numbers", 0, "throughput_mps"), 0, "numbers[0].throughput_mps = 0: must be from 1 to 1000"),
        (("numbers", 0, "colour"), "red", "numbers[0].colour: no such setting; there are display_phone_number, "),
        (("sinks", 0, "timout_s"), 5, "sinks[0].timout_s (of 'assistant'): no such setting; did you mean 'timeout_s'?"),
        (("hourz",), [], "hourz: no such setting; did you mean 'hours'?"),
        (("sinks",), {}, "sinks: must be an array of tables, not a table"),
        (("sandbox",), 1, "sandbox = 1: must be a table, not an integer"),
        (("receiver", "port"), True, "receiver.port = true: must be an integer, not a boolean"),
        (("keys", 0, "requests_per_s_max"), "9", "keys[0].requests_per_s_max = '9': must be a number, not a string"),
        (("routes", 0, "then"), {"sinks": [1]}, "routes[0].then.sinks[0] = 1: must be a string, not an integer"),
        (("routes", 0, "when", "first_message"), 1, "first_message = 1: must be true or false, not an integer"),
        (("gateway", "media_hosts"), "x", "gateway.media_hosts = 'x': must be an array, not a string"),
        (("gateway", "template_classes"), {"a b": "x"}, "gateway.template_classes.'a b' = 'x': must be 'campaign', "),
        (("sinks", 0), {"name": "a"}, "sinks[0].kind (of 'a'): is missing; must be 'kafka', 'meta' or 'standard'"),
        (("log", "engine"), "x" * 200, "log.engine = '" + "x" * 78 + "…: must be 'embedded' or 'kafka'"),
        (("sinks", 0, "url"), "ftp://x", "sinks[0].url = 'ftp://x': must be http(s)://"),
        (("sinks", 0, "kind"), "carrier-pigeon", "'carrier-pigeon': must be 'kafka', 'meta' or 'standard'"),
        (("sinks", 1, "name"), "assistant", "sinks[1].name = 'assistant': stands already at sinks[0]"),
        (("sinks", 1, "name"), "Über", "sinks[1].name = 'Über': must match"),
        (("keys", 0, "sink"), "nowhere", "keys[0].sink = 'nowhere': no such sink; there are assistant, orders"),
        (("keys", 0, "sha256"), "abc", "keys[0].sha256 = 'abc': must be 64 lower-case hex digits"),
        (("keys", 0, "sha256"), sha256(b"").hexdigest(), "is of an empty key, which nobody has"),
        (("keys", 0, "numbers"), ["1"], "keys[0].numbers[0] = '1': no such number"),
        (("keys", 0, "numbers"), [], "keys[0].numbers = []: name the numbers this key may send from, or '*' for all"),
        (("keys", 0, "sink"), "", "keys[0].sink: is missing; name the sink that gets the statuses of what it sends"),
        (("routes", 0, "then"), {}, "routes[0].then = {}: does nothing; name at least one sink"),
        (("routes", 0, "when", "regex"), "(", "routes[0].when.regex = '(': is not a regular expression of RE2's"),
        (
            ("routes", 0, "when", "regex"),
            r"(a)\1",
            r"is not a regular expression of RE2's: invalid escape sequence: \1",
        ),
        (("routes", 0, "when", "open"), "night", "routes[0].when.open = 'night': no such hours; there are office"),
        (("routes", 0, "when", "payloads"), [""], "routes[0].when.payloads: an empty entry would match"),
        (("routes", 0, "when", "holders"), ["nobody"], "routes[0].when.holders[0] = 'nobody': must be 'bot' or a sink"),
        (("routes", 0, "when", "languages"), ["Deutsch!"], "routes[0].when.languages: 'deutsch!' is no language"),
        (("routes", 0, "then", "holder"), "nobody", "routes[0].then.holder = 'nobody': must be 'bot' or a sink"),
        (("routes", 0, "then", "tags"), ["A B"], "routes[0].then.tags[0] = 'A B': must match"),
        (("routes", 0, "then", "reply"), {}, "routes[0].then.reply: name exactly one of `text` and `message`"),
        (("routes", 0, "then", "reply"), {"text": "x" * 5_000}, "routes[0].then.reply.text: text.body must be at most"),
        (("routes", 0, "then", "reply"), {"text": "x", "every_s": 1}, "then.reply.every_s = 1.0: must be from 60 to"),
        (("routes", 0, "then", "reply"), {"message": {"to": "49", "type": "text"}}, "reply.message.to: is put in by"),
        (("hours", 0, "time_zone"), "Berlin", "hours[0].time_zone = 'Berlin': is no time zone"),
        (("hours", 0, "open"), ["mo 9-17"], "hours[0].open[0] = 'mo 9-17': must be like 'mon-fri 09:00-18:00'"),
        (("hours", 0, "open"), ["monday 09:00-17:00"], "'monday' is no day; days are mon, tue"),
        (
            ("hours", 0, "holidays"),
            ["25.12."],
            "hours[0].holidays[0] = '25.12.': must begin with a day like 2026-12-25",
        ),
        (("hours", 0, "exceptions"), ["2026-13-01 09:00-10:00"], "hours[0].exceptions[0] = '2026-13-01 09:00-10:00'"),
        (("log", "engine"), "rabbit", "log.engine = 'rabbit': must be 'embedded' or 'kafka'"),
        (("customer", "marketing_rest_h"), 169, "customer.marketing_rest_h = 169.0: must be from 0 to 168"),
        (("customer", "marketing_rest_h"), -1, "customer.marketing_rest_h = -1.0: must be from 0 to 168"),
        (("log", "kafka", "min_insync_replicas"), 5, "must not exceed replication_factor (3)"),
        (("connector", "allow"), ["10.0.0.0/99"], "connector.allow[0] = '10.0.0.0/99': is not an address range"),
        (("gateway", "public_url"), "", "gateway.public_url = '': is needed with gateway.host = '0.0.0.0'"),
        (("gateway", "public_url"), "https://x/?y=1", "gateway.public_url = 'https://x/?y=1': must be http(s)://"),
        (("sandbox",), {"port": 65_536}, "sandbox.port = 65536: must be from 0 to 65535"),
        (("sandbox",), {"bots": [BOT]}, "sandbox.bots[0].port = -1: must be from 0 to 65535"),
        (("sinks", 0, "previous_secret"), {"env": "X"}, "sinks[0].previous_secret: belongs to kind 'standard'"),
        (("apps", 0, "secrets"), [], "apps[0].secrets = []: name at least one app secret"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_would_be_right(
    path: tuple[str | int, ...], value: Any, said: str
) -> None:
    """An operator mends a file by reading the error alone."""
    tree = example()
    set_at(*path)(tree, value)
    with pytest.raises(Misconfigured) as error:
        parse(tree)
    assert said in str(error.value)


PRIVATE = "is not a public address, every delivery would be refused; name another one, or its range in connector.allow"


@pytest.mark.parametrize(
    ("url", "allow", "deny", "said"),
    [
        ("http://127.0.0.1:9/hook", [], [], f'{PRIVATE}, such as "127.0.0.1/32"'),
        ("http://localhost/hook", [], [], f'{PRIVATE}, such as "127.0.0.1/32"'),
        ("http://bot.localhost./hook", [], [], PRIVATE),
        ("http://169.254.169.254/latest", ["10.0.0.0/8"], [], PRIVATE),
        ("http://[::1]:9/", ["127.0.0.0/8"], [], f'{PRIVATE}, such as "::1/128"'),
        ("http://[::ffff:10.1.2.3]/", [], [], f'{PRIVATE}, such as "10.1.2.3/32"'),
        ("http://10.1.2.3/", ["10.0.0.0/8"], ["10.1.0.0/16"], "is in connector.deny, every delivery would be refused"),
        ("http://10.1.2.3/", ["10.0.0.0/8"], [], ""),
        ("http://localhost/", ["127.0.0.0/8"], [], ""),
        ("http://localhost/", ["::1/128"], [], ""),
        ("http://8.8.8.8/", [], [], ""),
        ("http://bot.internal/", [], [], ""),
        ("http://[::1/", [], [], "must be http(s)://"),
        ("http://bot.example:99999/", [], [], "must be http(s)://"),
        ("http://@bot.example/", [], [], "must be http(s)://"),
    ],
)
def test_a_sink_no_delivery_would_be_permitted_to_is_told(
    url: str, allow: list[str], deny: list[str], said: str
) -> None:
    """By the rule of the connector itself; what a name resolves to is judged when it is connected to."""
    tree = example()
    tree["sinks"][0]["url"] = url
    tree["connector"] = {"allow": allow, "deny": deny}
    if not said:
        parse(tree)
        return
    with pytest.raises(Misconfigured) as error:
        parse(tree)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"sinks[0].url = {url!r}: {said}")


def listening(**hosts_and_ports: tuple[str, int]) -> Tree:
    """Return the example with parts listening elsewhere."""
    tree = example()
    for name, (host, port) in hosts_and_ports.items():
        tree[name] = {**tree.get(name, {}), "host": host, "port": port}
    return tree


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (listening(receiver=("0.0.0.0", 9), gateway=("0.0.0.0", 9)), "gateway.port = 9: receiver.port is the same"),
        (listening(receiver=("127.0.0.1", 9), admin=("0.0.0.0", 9)), "admin.port = 9: receiver.port is the same"),
        (listening(receiver=("localhost", 9), gateway=("127.0.0.1", 9)), "gateway.port = 9: receiver.port is the"),
        (listening(gateway=("", 9), sandbox=("::1", 9)), "sandbox.port = 9: gateway.port is the same on ::1"),
        (listening(receiver=("10.0.0.1", 9), gateway=("10.0.0.2", 9)), ""),
        (listening(receiver=("0.0.0.0", 9), gateway=("::", 9)), ""),
        (listening(receiver=("0.0.0.0", 0), gateway=("0.0.0.0", 0)), ""),
        (listening(sandbox=("0.0.0.0", 9)) | {"sandbox": {"port": 9, "bots": [{**BOT, "port": 9}]}}, "sandbox.bots[0]"),
    ],
)
def test_two_parts_of_one_process_have_ports_of_their_own(tree: Tree, said: str) -> None:
    """Else the second of them does not start, and that is told when it is too late."""
    if not said:
        parse(tree)
        return
    with pytest.raises(Misconfigured) as error:
        parse(tree)
    (line,) = str(error.value).splitlines()
    assert line.startswith(said)
    assert line.endswith("each needs its own")


def test_on_kafka_receiver_and_gateway_may_have_one_port_on_hosts_of_their_own() -> None:
    """Pods of two deployments listen on 8080 by habit; but each process has its probes beside what it serves."""
    tree = listening(receiver=("0.0.0.0", 8080), gateway=("0.0.0.0", 8080))
    tree["log"]["engine"] = "kafka"
    parse(tree)
    tree["admin"] = {"host": "0.0.0.0", "port": 8080}
    with pytest.raises(Misconfigured) as error:
        parse(tree)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["admin.port = 8080"] * 2


def test_a_file_without_what_a_deployment_needs_says_what_is_missing() -> None:
    """An empty file is no configuration, and what would follow from the gaps is not told beside them."""
    with pytest.raises(Misconfigured) as error:
        parse({})
    assert str(error.value).splitlines() == [
        "apps: there is none, and Meta's webhooks are received for one; add [[apps]] with at least name, secrets, "
        "verify_token",
        "numbers: there is none, and messages come to and go from one; add [[numbers]] with at least phone_number_id, "
        "waba_id, token, slot",
        "sinks: there is none, and events are delivered to one; add [[sinks]] with at least name, kind",
    ]
    tree = example()
    tree["sinks"] = []
    with pytest.raises(Misconfigured) as error:
        parse(tree)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["sinks"]
    parse({"sandbox": {}})  # for `depesche sandbox` alone


def test_all_errors_are_reported_at_once() -> None:
    """A file is mended in one go, not in as many as it has errors."""
    tree = example()
    set_at("numbers", 0, "slot")(tree, 99)
    set_at("keys", 0, "sink")(tree, "nowhere")
    with pytest.raises(Misconfigured) as error:
        parse(tree)
    assert len(str(error.value).splitlines()) == 2
    set_at("numbers", 0, "slot")(tree, "x")
    set_at("sinks", 1, "kind")(tree, "mta")
    set_at("log", "sloots")(tree, 1)
    with pytest.raises(Misconfigured) as error:
        parse(tree)
    assert [line.split(" ")[0] for line in str(error.value).splitlines()] == [
        "numbers[0].slot",
        "sinks[1].kind",
        "log.sloots:",
    ]


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of everything in a tree."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, each in inside:
        yield (*path, step)
        yield from places(each, (*path, step))


def test_the_walk_finds_what_the_types_refuse_and_nothing_else() -> None:
    """Each place of the example with a value of each type: the errors are ours, and right is right."""
    whole, refused = example(), 0
    values: tuple[Any, ...] = (1, 1.5, True, "x", [], {}, [1], [{}], {"x": 1}, datetime.now(UTC))
    for path in places(whole):
        for value in values:
            tree = copy.deepcopy(whole)
            set_at(*path)(tree, value)
            try:
                msgspec.convert(tree, Settings)
            except msgspec.ValidationError:
                refused += 1
                assert misfits(tree, Settings) != [], (path, value)
            else:
                assert misfits(tree, Settings) == [], (path, value)
    assert refused > 500


@pytest.mark.parametrize(
    ("path", "value", "only"),
    [
        (("hours", 0, "time_zone"), "Berlin", "hours[0].time_zone = 'Berlin': is no time zone"),
        (("hours", 0, "opn"), ["mon 09:00-17:00"], "hours[0].opn (of 'office'): no such setting; did you mean 'open'?"),
        (("hours", 0), {"name": "office", "time_zone": "UTC", "opn": []}, "hours[0].opn (of 'office'): no such"),
        (("log", "slots"), 0, "log.slots = 0: must be from 1 to 512"),
    ],
)
def test_what_only_follows_from_another_error_is_not_told(path: tuple[str | int, ...], value: Any, only: str) -> None:
    """Who mends the cause would look for a second mistake that is none."""
    tree = example()
    set_at(*path)(tree, value)
    with pytest.raises(Misconfigured) as error:
        parse(tree)
    (line,) = str(error.value).splitlines()
    assert line.startswith(only)


def test_a_route_is_checked_to_its_end_though_its_hours_are_wrong() -> None:
    """Its own mistakes are told in the same go."""
    tree = example()
    tree["hours"][0]["time_zone"] = "Berlin"
    tree["routes"][0]["when"]["regex"] = "("
    with pytest.raises(Misconfigured) as error:
        parse(tree)
    assert [line.split(" ")[0] for line in str(error.value).splitlines()] == [
        "hours[0].time_zone",
        "routes[0].when.regex",
    ]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("apps", 0, "verify_token"), "hunter2", "apps[0].verify_token: must be a table like { file ="),
        (("apps", 0, "secrets"), "hunter2", "apps[0].secrets: must be an array of tables, not a string"),
        (("apps", 0, "secrets"), ["hunter2"], "apps[0].secrets[0]: must be a table like { file ="),
        (("sinks", 0, "secret"), {"value": "hunter2"}, "sinks[0].secret.value: no such setting; there are env, file"),
        (("numbers", 0, "tokn"), "hunter2", "numbers[0].tokn: no such setting; did you mean 'token'?"),
    ],
)
def test_a_secret_written_into_the_file_is_not_shown(path: tuple[str | int, ...], value: Any, said: str) -> None:
    """An error goes into logs and tickets; who typed the secret itself must not find it there."""
    tree = example()
    set_at(*path)(tree, value)
    with pytest.raises(Misconfigured) as error:
        parse(tree)
    assert said in str(error.value)
    assert "hunter2" not in str(error.value)


def test_an_operators_key_needs_neither_numbers_nor_sink() -> None:
    """It sends nothing; one that has numbers sends, and needs both like a bot's."""
    tree = example()
    operator = {"name": "operator", "sha256": "1" * 64, "control": True}
    tree["keys"].append(operator)
    assert parse(tree).keys[-1].numbers == []
    tree["keys"][-1] = {**operator, "numbers": ["*"]}
    with pytest.raises(Misconfigured, match=r"^keys\[1\].sink: is missing"):
        parse(tree)


def test_two_keys_are_not_one() -> None:
    """Of two names for one key the gateway would know the last."""
    tree = example()
    tree["keys"].append({**tree["keys"][0], "name": "other"})
    with pytest.raises(Misconfigured, match=r"keys\[1\].sha256 = '.*': stands already at keys\[0\]"):
        parse(tree)


def test_every_secret_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The example's secrets do not exist here; none of them may be taken for empty."""
    file = tmp_path / "depesche.toml"
    file.write_text(EXAMPLE.read_text())
    with pytest.raises(Misconfigured) as error:
        load(file)
    lines = str(error.value).splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("apps[0].secrets[0].file: ")
    assert any("environment variable DEPESCHE_GRAPH_TOKEN: is empty or not set" in line for line in lines)


def test_a_sink_signs_with_the_secret_it_has_and_the_one_before(tmp_path: Path) -> None:
    """While a secret is rotated, whoever checks with either must find a signature of theirs."""
    tree = example()
    tree["sinks"][1]["previous_secret"] = {"file": "before"}
    tree["sinks"][1]["secret"] = {"file": "now"}
    (tmp_path / "now").write_text("whsec_Yg==")
    (tmp_path / "before").write_text("whsec_YQ==")
    others = {"app-secret", "verify-token", "graph-token", "assistant-secret"}
    (tmp_path / "secrets").mkdir()
    for name in sorted(others):
        (tmp_path / "secrets" / name).write_text(name)
    tree["numbers"][1]["token"] = {"file": "now"}
    config = resolve(parse(tree), tmp_path)
    assert [secret.reveal() for secret in config.sink_secrets()["orders"]] == ["whsec_Yg==", "whsec_YQ=="]
    assert [secret.reveal() for secret in config.sink_secrets()["assistant"]] == ["assistant-secret"]


def test_a_file_that_is_not_there_or_not_toml_is_said(tmp_path: Path) -> None:
    """The first thing that goes wrong for a newcomer."""
    with pytest.raises(Misconfigured, match="cannot be read"):
        load(tmp_path / "missing.toml")
    (tmp_path / "wrong.toml").write_text("numbers = [")
    with pytest.raises(Misconfigured, match="is not TOML"):
        load(tmp_path / "wrong.toml")


@pytest.mark.parametrize(
    ("sink", "wrong"),
    [
        ({"topic": ""}, "sinks[2].topic = ''"),
        ({"topic": "brand topic"}, "sinks[2].topic = 'brand topic'"),
        ({"url": "https://bot.example/"}, "sinks[2].url: belongs to kinds"),
        ({"secret": {"env": "X"}}, "sinks[2].secret: belongs to kinds"),
        ({"kafka": None}, "sinks[2].kafka: is missing; with log.engine = 'embedded'"),
        ({"message_bytes_max": 5_000_000}, "sinks[2].message_bytes_max = 5000000"),
        ({"verify_token": {"env": "X"}}, "sinks[2].verify_token: belongs to kind 'meta'"),
    ],
)
def test_a_sink_of_kind_kafka_has_a_topic_and_nothing_of_http(sink: Tree, wrong: str) -> None:
    """What belongs to another kind is a mistake somebody would wonder about for long."""
    tree = example()
    right = {"name": "events", "kind": "kafka", "topic": "brand", "kafka": {"bootstrap_servers": "kafka:9092"}}
    tree["sinks"].append(right)
    parse(tree)
    tree["sinks"][-1] = {name: value for name, value in {**right, **sink}.items() if value is not None}
    with pytest.raises(Misconfigured) as error:
        parse(tree)
    assert wrong in str(error.value)


def test_a_sinks_topic_is_not_among_our_own_logs() -> None:
    """A brand's events appended to our own log would come to us as records nobody can read."""
    tree = example()
    tree["log"] = {"engine": "kafka"}
    tree["sinks"].append({"name": "events", "kind": "kafka", "topic": "depesche.conversations"})
    with pytest.raises(Misconfigured, match=r"begins with log.kafka.prefix"):
        parse(tree)


def test_lists_are_for_sinks_that_can_take_them() -> None:
    """Meta's format is one update per POST: a debounce there would be a delay and nothing else."""
    tree = example()
    tree["sinks"][0]["debounce_ms"] = 1_000
    with pytest.raises(Misconfigured, match=r"sinks\[0\].debounce_ms: not for kind 'meta'"):
        parse(tree)
    tree = example()
    tree["sinks"][1] |= {"debounce_ms": 1_000}
    parse(tree)
    tree["sinks"][1] |= {"failover_to": "assistant"}
    with pytest.raises(Misconfigured, match="of kind 'meta', which takes no list"):
        parse(tree)
    tree["sinks"][1] |= {"debounce_ms": 0, "failover_to": "orders"}
    with pytest.raises(Misconfigured, match="must be another sink; there are assistant"):
        parse(tree)


@pytest.mark.parametrize(
    ("then", "wrong"),
    [
        (
            {"sinks": ["orders", "assistant"], "debounce_ms": 1_000},
            "routes[0].then.debounce_ms = 1000: not for sink 'assistant' of kind 'meta', where one update per POST has "
            "no room for a list; must be 0 or left out, or that sink named by a rule of its own (continue = true)",
        ),
        (
            {"sinks": ["guarded"], "debounce_ms": 1_000},
            "routes[0].then.debounce_ms = 1000: not for sink 'guarded', whose failover_to = 'assistant' is of kind "
            "'meta', which takes no list; must be 0 or left out, or the stand-in of kind 'standard' or 'kafka'",
        ),
        (
            {"tags": ["a"], "debounce_ms": 0},
            "routes[0].then.debounce_ms = 0: is for the sinks of this rule; name at least",
        ),
        ({"sinks": ["orders"], "debounce_ms": 60_001}, "routes[0].then.debounce_ms = 60001: must be from 0 to 60000"),
        ({"sinks": ["orders"], "debounce_ms": -1}, "routes[0].then.debounce_ms = -1: must be from 0 to 60000"),
        (
            {"sinks": ["orders"], "debounce_ms": 9, "debounce_events_max": 1},
            "routes[0].then.debounce_events_max = 1: must be from 2 to 100",
        ),
        (
            {"sinks": ["orders"], "debounce_ms": 9, "debounce_wait_ms_max": 0},
            "routes[0].then.debounce_wait_ms_max = 0: must be from 1 to 60000",
        ),
        (
            {"sinks": ["orders"], "debounce_events_max": 5},
            "routes[0].then.debounce_events_max = 5: bounds what is joined; say then.debounce_ms, too, or neither",
        ),
        (
            {"sinks": ["orders"], "debounce_ms": 0, "debounce_wait_ms_max": 5},
            "routes[0].then.debounce_wait_ms_max = 5: bounds what is joined; say then.debounce_ms, too, or neither",
        ),
    ],
)
def test_a_route_joins_events_only_for_sinks_that_take_lists(then: Tree, wrong: str) -> None:
    """A debounce that cannot hold would be a promise nobody keeps; what would be right is said."""
    tree = example()
    tree["sinks"].append({**tree["sinks"][1], "name": "guarded", "failover_to": "assistant"})
    tree["routes"][0]["then"] = {"sinks": ["guarded", "assistant"], "debounce_ms": 0}
    parse(tree)
    tree["routes"][0]["then"] = then
    with pytest.raises(Misconfigured) as error:
        parse(tree)
    assert str(error.value).startswith(wrong)
