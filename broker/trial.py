"""A folder in which everything can be tried: configuration, secrets, log and sandbox, made at the first start.

`depesche run` without a configuration uses it. The secrets are random and the sandbox plays Meta, so nothing leaves the
machine. Started again, the folder is used as it stands; delete it to begin anew.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import tomllib
from pathlib import Path
from string import Template
from typing import NamedTuple

from broker.errors import Misconfigured

CONFIG = "depesche.toml"


class Ports(NamedTuple):
    """Where the parts of a trial listen, all on loopback."""

    receiver: int = 8080
    gateway: int = 8081
    sandbox: int = 8090
    assistant: int = 8091
    orders: int = 8092
    admin: int = 9090

    @classmethod
    def from_base(cls, base: int) -> Ports:
        """Return six ports in a row, in the order of the fields. `base`: the first, 1 to 65530."""
        return cls(*range(base, base + len(cls._fields)))


_CONFIG = Template("""\
# Made by `depesche run` for a trial on this machine: the sandbox plays Meta, two sample bots answer.
# Every secret in this folder is random. Delete the folder to begin anew.

[[apps]]
name = "trial"
secrets = [{ file = "secrets/app-secret" }]
verify_token = { file = "secrets/verify-token" }

[[numbers]]
phone_number_id = "106540352242922"
waba_id = "102290129340398"
display_phone_number = "15550001000"
slot = 0
token = { file = "secrets/graph-token" }

[[numbers]]
phone_number_id = "106540352242955"
waba_id = "102290129340398"
display_phone_number = "15550002000"
slot = 4
token = { file = "secrets/graph-token" }

[[sinks]]
name = "assistant"
kind = "meta"
url = "http://127.0.0.1:$assistant/webhook"
secret = { file = "secrets/assistant-secret" }

[[sinks]]
name = "orders"
kind = "standard"
url = "http://127.0.0.1:$orders/events"
secret = { file = "secrets/orders-secret" }

[[keys]]
name = "assistant"
sha256 = "$assistant_sha256"
numbers = ["*"]
sink = "assistant"

[[keys]]
name = "orders"
sha256 = "$orders_sha256"
numbers = ["*"]
sink = "orders"

[[routes]]
name = "orders-number"
when = { numbers = ["106540352242955"] }
then = { sinks = ["orders"] }

[[routes]]
name = "orders-by-word"
when = { keywords = ["order", "delivery", "parcel"] }
then = { sinks = ["orders"] }

[[routes]]
name = "orders-by-button"
when = { payloads = ["order:*"] }
then = { sinks = ["orders"] }

[[routes]]
name = "everything-else"
then = { sinks = ["assistant"] }

[log]
partitions = 8
slots = 8

[log.embedded]
path = "log"

[receiver]
port = $receiver

[gateway]
port = $gateway

[sender]
graph_url = "http://127.0.0.1:$sandbox"

[connector]
allow = ["127.0.0.0/8"]     # the sample bots live on this machine

[admin]
port = $admin

[sandbox]
port = $sandbox
path = "sandbox"
webhook_url = "http://127.0.0.1:$receiver/webhooks/meta/trial"
app_secret = { file = "secrets/app-secret" }

[[sandbox.numbers]]
phone_number_id = "106540352242922"
waba_id = "102290129340398"
display_phone_number = "15550001000"
name = "Garden & Home"
token = { file = "secrets/graph-token" }

[[sandbox.numbers]]
phone_number_id = "106540352242955"
waba_id = "102290129340398"
display_phone_number = "15550002000"
name = "Parcel Service"
token = { file = "secrets/graph-token" }

[[sandbox.bots]]
kind = "assistant"
port = $assistant
secret = { file = "secrets/assistant-secret" }
key = { file = "secrets/assistant-key" }
gateway_url = "http://127.0.0.1:$gateway"

[[sandbox.bots]]
kind = "orders"
port = $orders
secret = { file = "secrets/orders-secret" }
key = { file = "secrets/orders-key" }
gateway_url = "http://127.0.0.1:$gateway"
""")


def new_key() -> tuple[str, str]:
    """Return a new bot key, 32 random bytes, and the digest that the configuration holds."""
    key = "dk_" + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def prepare(folder: Path, ports: Ports | None = None) -> Path:
    """Return the configuration of the trial in a folder, made if there is none.

    `ports` moves a trial that exists to other ports, None leaves it where it is. Raises `Misconfigured` when the folder
    cannot be had, or when a configuration that somebody has edited would have to be moved.
    """
    config = folder / CONFIG
    try:
        if not config.exists():
            _make(folder, ports or Ports())
        elif ports is not None:
            _move(config, ports)
    except OSError as error:
        raise Misconfigured(f"{folder}: a trial cannot be kept there ({error.strerror}); name another --data") from None
    return config


def _make(folder: Path, ports: Ports) -> None:
    """Make a trial. The configuration comes last and whole, so that a folder with one has everything."""
    assistant_key, assistant_sha256 = new_key()
    orders_key, orders_sha256 = new_key()
    values = {
        "app-secret": secrets.token_hex(16),
        "verify-token": secrets.token_urlsafe(16),
        "graph-token": "EAA" + secrets.token_urlsafe(48),
        "assistant-secret": secrets.token_hex(16),
        "orders-secret": "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode(),
        "assistant-key": assistant_key,
        "orders-key": orders_key,
    }
    (folder / "secrets").mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        _write(folder / "secrets" / name, value + "\n", 0o600)
    _write(folder / CONFIG, _text(ports, assistant_sha256, orders_sha256), 0o644)


def _move(config: Path, ports: Ports) -> None:
    """Write a trial's configuration anew with other ports, if it stands as we made it."""
    text = config.read_text()
    try:
        tree = tomllib.loads(text)
        bots = tree["sandbox"]["bots"]
        found = Ports(
            tree["receiver"]["port"],
            tree["gateway"]["port"],
            tree["sandbox"]["port"],
            bots[0]["port"],
            bots[1]["port"],
            tree["admin"]["port"],
        )
        digests = [key["sha256"] for key in tree["keys"]]
        is_ours = _text(found, digests[0], digests[1]) == text
    except (tomllib.TOMLDecodeError, LookupError, TypeError):
        is_ours = False
    if not is_ours:
        raise Misconfigured(f"{config}: has been edited, so --base-port leaves it alone; change its ports in the file")
    if found != ports:
        _write(config, _text(ports, digests[0], digests[1]), 0o644)


def _text(ports: Ports, assistant_sha256: str, orders_sha256: str) -> str:
    return _CONFIG.substitute(ports._asdict(), assistant_sha256=assistant_sha256, orders_sha256=orders_sha256)


def _write(path: Path, text: str, mode: int) -> None:
    """Write a file whole or not at all: a crash must not leave half of one."""
    partial = path.with_name(path.name + ".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    partial.replace(path)
