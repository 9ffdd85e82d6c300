"""The referee's journal: every call, every webhook, every message and status, in the order a real Meta would have seen.

Entries are numbered. The newest are kept in memory, all of them in a file of JSON lines when there is one: the file
is the sandbox's memory, a start reads it back. `at` is Unix ms, `mono` monotonic seconds of this process.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct, field

from broker.sandbox.people import Person
from broker.sandbox.shapes import Json

logger = logging.getLogger(__name__)

KEPT_MAX = 50_000
"""Entries in memory. A phone page shows far fewer; a load's verdicts are made as entries are written."""

FILE_BYTES_MAX = 64 * 1024 * 1024
"""Then the file steps back to `<name>.1` and a new one begins: a sandbox never holds more than twice this."""


class Called(Struct, tag="call", tag_field="entry", omit_defaults=True):
    """A Graph call that arrived. `send` is the sender's own id of it, from the opaque data.

    `accepted`: the message is Meta's now, whatever the caller was told. `answered`: the caller was given `response`.
    `fault` names the fault that struck, "" when the platform was honest. `message_id` is what a mark is about.
    """

    at: int
    mono: float
    number: str = ""
    person: str = ""
    kind: str = ""
    type: str = ""
    send: str = ""
    opaque: str | None = None
    wamid: str = ""
    message_id: str = ""
    context_id: str = ""
    context_known: bool = True
    accepted: bool = False
    answered: bool = True
    fault: str = ""
    http: int = 0
    code: int = 0
    path: str = ""
    request: str = ""
    response: str = ""
    to_phone: bool = True
    seq: int = 0


class Wrote(Struct, tag="wrote", tag_field="entry", omit_defaults=True):
    """A customer wrote to a number. `message` is the item of the webhook."""

    at: int
    mono: float
    number: str
    person: str
    wamid: str
    message: Json
    seq: int = 0


class Ticked(Struct, tag="status", tag_field="entry", omit_defaults=True):
    """A message moved on: sent, delivered, read, failed."""

    at: int
    mono: float
    number: str
    person: str
    wamid: str
    status: str
    send: str = ""
    code: int = 0
    details: str = ""
    seq: int = 0


class Webhook(Struct, tag="webhook", tag_field="entry", omit_defaults=True):
    """An item to be posted: one change, alone. `wamid` and `status` say what it is about."""

    at: int
    number: str
    waba: str
    person: str
    kind: str
    change: Json
    wamid: str = ""
    status: str = ""
    seq: int = 0


class Posted(Struct, tag="posted", tag_field="entry", omit_defaults=True):
    """A POST that was made with these items (their numbers), and its answer: the HTTP status, 0 when there was none.

    `repeat`: it came again although it had been answered with 200. `given_up`: it will not be tried again.
    """

    at: int
    mono: float
    items: list[int]
    attempt: int
    answer: int
    ms: int
    bytes: int = 0
    signature: str = ""
    repeat: bool = False
    given_up: bool = False
    seq: int = 0


class Introduced(Struct, tag="person", tag_field="entry", omit_defaults=True):
    """A person became known, or changed: online, read receipts, marketing."""

    at: int
    person: Person
    seq: int = 0


class Uploaded(Struct, tag="media", tag_field="entry", omit_defaults=True):
    """A medium somebody uploaded."""

    at: int
    id: str
    mime_type: str
    data: bytes
    filename: str = ""
    number: str = ""
    seq: int = 0


class Switched(Struct, tag="switch", tag_field="entry", omit_defaults=True):
    """A switch of the sandbox was thrown: a fault, a freeze, a token."""

    at: int
    name: str
    number: str = ""
    value: Json = field(default_factory=dict)
    seq: int = 0


class Ended(Struct, tag="dialogue", tag_field="entry", omit_defaults=True):
    """A simulated customer's dialogue is over. `why` says what broke it, "" when every answer was as it had to be."""

    at: int
    number: str
    person: str
    name: str
    why: str = ""
    seq: int = 0


Entry = Called | Wrote | Ticked | Webhook | Posted | Introduced | Uploaded | Switched | Ended

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Entry).decode


class Journal:
    """Numbers what happened, keeps the newest, spools all of it, and tells whoever listens.

    Listeners run at once, in order, and must neither wait nor raise. The file is written without a buffer, so that it
    survives the death of the process; it is not synced to the disk.
    """

    def __init__(
        self, path: Path | None = None, *, kept_max: int = KEPT_MAX, file_bytes_max: int = FILE_BYTES_MAX
    ) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._file_bytes = 0
        self._file_bytes_max = file_bytes_max
        self._kept: deque[Entry] = deque(maxlen=kept_max)
        self._listeners: list[Callable[[Entry], None]] = []
        self._seq = 0
        self.remembered: Callable[[], list[Entry]] = list
        """What a new file begins with: whatever must not be forgotten with the old one, such as the people."""

    @property
    def seq(self) -> int:
        """The number of the newest entry."""
        return self._seq

    def listen(self, listener: Callable[[Entry], None]) -> Callable[[], None]:
        """Call `listener` with every entry from now on; return how to stop that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def write(self, entry: Entry) -> Entry:
        """Number an entry, keep it, spool it, tell it."""
        self._seq += 1
        entry.seq = self._seq
        self._kept.append(entry)
        if self._file is not None:
            self._spool(entry)
        for listener in tuple(self._listeners):
            listener(entry)
        return entry

    def since(self, seq: int, count_max: int = 1_000) -> list[Entry]:
        """Return up to `count_max` kept entries with a number above `seq`, oldest first."""
        if not self._kept or seq >= self._kept[-1].seq:
            return []
        skip = max(0, seq - self._kept[0].seq + 1)
        return [self._kept[i] for i in range(skip, min(len(self._kept), skip + count_max))]

    def open(self) -> Iterator[Entry]:
        """Read the file back, oldest first, and open it for writing once that is done.

        A line that cannot be read (the last one, after a crash of the machine) is said and passed over.
        """
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for path in (self._path.with_name(self._path.name + ".1"), self._path):
            if not path.exists():
                continue
            with path.open("rb") as stream:
                for number, line in enumerate(stream, start=1):
                    try:
                        entry = decode(line)
                    except msgspec.DecodeError as error:
                        logger.warning("sandbox journal: %s line %d cannot be read: %s", path, number, error)
                        continue
                    self._seq = max(self._seq, entry.seq)
                    self._kept.append(entry)
                    yield entry
        self._file = self._path.open("ab", buffering=0)
        self._file_bytes = self._path.stat().st_size
        if self._file_bytes and not self._ends_with_newline():
            self._file.write(b"\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def forget(self) -> None:
        """Drop everything, the file too: the sandbox begins anew."""
        self._kept.clear()
        if self._path is not None and self._file is not None:
            self._file.close()
            self._path.with_name(self._path.name + ".1").unlink(missing_ok=True)
            self._file = self._path.open("wb", buffering=0)
            self._file_bytes = 0

    def _spool(self, entry: Entry) -> None:
        assert self._file is not None
        line = encode(entry) + b"\n"
        if self._file_bytes + len(line) > self._file_bytes_max:
            self._step_back()
        self._file.write(line)
        self._file_bytes += len(line)

    def _step_back(self) -> None:
        assert self._file is not None
        assert self._path is not None
        self._file.close()
        self._path.replace(self._path.with_name(self._path.name + ".1"))
        self._file = self._path.open("wb", buffering=0)
        head = b"".join(encode(entry) + b"\n" for entry in self.remembered())
        self._file.write(head)
        self._file_bytes = len(head)

    def _ends_with_newline(self) -> bool:
        assert self._path is not None
        with self._path.open("rb") as stream:
            stream.seek(-1, 2)
            return stream.read(1) == b"\n"
