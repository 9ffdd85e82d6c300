"""The embedded log's file: one SQLite database in WAL mode, one thread that writes it, a few that read it.

The writer takes whatever waits, makes one transaction of it and answers when COMMIT has returned, that is when it is
fsynced (`synchronous=FULL`): while one commit is under way the next one gathers, so many appends and steps share an
fsync. A transaction that fails fails for everybody in it, and the next one is tried: a full disk needs no restart.

Rows are inserted hundreds in a statement and read packed into one: each SQLite row given to Python lets go of the
interpreter's lock and must win it back from a busy event loop, which takes up to 5 ms a row.

    records     every record of every log; the rowid is the order of commit
    logs        name, incarnation (a random id made when the log is created), partitions
    places      a partition of a log: a small number for the records' rows, and where offsets go on when all is gone
    owners      the epoch of each leased partition: who is fenced is refused in the transaction of its step
    followers   the same for groups without state, with what they committed
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import queue
import sqlite3
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from broker import failpoints
from broker.clock import Clock
from broker.errors import LeaseLost, LogUnavailable

logger = logging.getLogger("depesche.log")

SCHEMA_VERSION = 1

DATABASE = "log.db"
"""The file in the log's folder."""

BATCH_BYTES_MAX = 8 * 1024 * 1024
"""One transaction: some 30 ms of writing on a usual disk."""

BATCH_JOBS_MAX = 4_096

ROWS_A_STATEMENT_MAX = 256
"""7 values a row; SQLite binds 32,766 at most. A statement of 256 rows costs 4.6 µs a row, one of 1 costs 5.3."""

PAGE_BYTES = 4_096

WAL_BYTES_HIGH = 32 * 1024 * 1024
"""Beyond it the writer itself copies what the background has left, so that the WAL can begin anew."""

WAL_BYTES_MAX = 128 * 1024 * 1024
"""Reached only when more is written than the disk takes twice: then appends wait while the writer copies."""

REOPEN_AFTER = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN)
"""Errors after which a connection is not trusted: what the kernel still holds of a failed fsync is not known."""

READER_END_S_MAX = 2.0
"""How long a close waits for a read under way. One that hangs keeps its connection, and the folder stays locked."""

DAMAGES_MAX = 20
"""More damage to the file's structure than this is not listed."""

_HEAD = struct.Struct("<qqq")

_PACKED = """SELECT
    group_concat(id||' '||place||' '||offset||' '||at||' '||crc||' '||length(key)||' '||ifnull(length(value),-1)),
    group_concat(key||ifnull(value,x''),x'')
    FROM records"""
"""Rows as two values: their numbers, and all keys and values in a row."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY, place INTEGER NOT NULL, offset INTEGER NOT NULL, at INTEGER NOT NULL,
    crc INTEGER NOT NULL, key BLOB NOT NULL, value BLOB
);
CREATE TABLE IF NOT EXISTS logs (name TEXT PRIMARY KEY, incarnation TEXT NOT NULL, partitions INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS places (
    id INTEGER PRIMARY KEY AUTOINCREMENT, log TEXT NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
    UNIQUE (log, partition)
);
CREATE TABLE IF NOT EXISTS owners (
    stage TEXT NOT NULL, partition INTEGER NOT NULL, epoch INTEGER NOT NULL, PRIMARY KEY (stage, partition)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS followers (
    name TEXT NOT NULL, place INTEGER NOT NULL, epoch INTEGER NOT NULL, offset INTEGER, metadata TEXT NOT NULL,
    PRIMARY KEY (name, place)
) WITHOUT ROWID;
"""


def checksum(place: int, offset: int, at: int, key: bytes, value: bytes | None) -> int:
    """Return a record's checksum, over everything but its row."""
    head = zlib.crc32(_HEAD.pack(place, offset, at))
    return zlib.crc32(value if value is not None else b"\xff", zlib.crc32(key, head))


class Row(NamedTuple):
    """A record as it was committed."""

    id: int
    place: int
    offset: int
    at: int
    key: bytes
    value: bytes | None


class Stored(NamedTuple):
    """A record as it was read. `sound` is False when its checksum is wrong: then nothing in it can be believed."""

    id: int
    offset: int
    at: int
    key: bytes
    value: bytes | None
    sound: bool


class Transaction:
    """What the jobs of one batch write. Records are gathered and inserted together at the end."""

    def __init__(self, db: sqlite3.Connection, next_id: int, next_offsets: dict[int, int]) -> None:
        self.db = db
        self.rows: list[Row] = []
        self.next_offsets: dict[int, int] = {}
        self._before = next_offsets
        self._next_id = next_id

    def insert(self, place: int, at: int, key: bytes, value: bytes | None) -> None:
        """Give a record the next offset of its place."""
        offset = self.next_offsets.get(place)
        if offset is None:
            offset = self._before.get(place, 0)
        self.next_offsets[place] = offset + 1
        self.rows.append(Row(self._next_id, place, offset, at, key, value))
        self._next_id += 1

    def flush(self) -> None:
        """Insert what was gathered."""
        done = 0
        count = ROWS_A_STATEMENT_MAX
        while done < len(self.rows):
            while count > len(self.rows) - done:
                count //= 2
            values: list[object] = []
            for row_id, place, offset, at, key, value in self.rows[done : done + count]:
                values += (row_id, place, offset, at, checksum(place, offset, at, key, value), key, value)
            self.db.execute(_INSERT[count], values)
            done += count


_INSERT = {
    count: "INSERT INTO records VALUES " + ",".join(["(?,?,?,?,?,?,?)"] * count)  # noqa: S608 - no values in it
    for count in (1 << power for power in range(ROWS_A_STATEMENT_MAX.bit_length()))
}


class Job(Protocol):
    """Something to be written. `apply` runs in the writer's thread, inside the transaction; what it raises before it
    has written is its own failure, not its neighbours'."""

    @property
    def size(self) -> int:
        """Bytes, for the batch's limit."""
        ...

    def apply(self, tx: Transaction) -> object:
        """Write."""
        ...

    def done(self, result: object, error: Exception | None) -> None:
        """Told on the event loop, after COMMIT has returned, or what went wrong."""
        ...


Landed = Callable[[list[Row], list[tuple[Job, object, Exception | None]], float], None]
"""Called in the writer's thread after each batch: rows (none after a failure), jobs' outcomes, seconds of COMMIT."""


class Reading:
    """One thread's connection for reading. It is never closed while it is used: SQLite would not survive that."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db: sqlite3.Connection | None = db
        self._lock = threading.Lock()

    def __enter__(self) -> sqlite3.Connection:
        """Use it. Raises `LogUnavailable` when it is closed."""
        self._lock.acquire()
        if self._db is None:
            self._lock.release()
            raise LogUnavailable("the log is closed")
        return self._db

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def close(self, timeout_s: float) -> bool:
        """Close it when it is not used any more; return False when that takes too long."""
        if not self._lock.acquire(timeout=timeout_s):
            return False
        with contextlib.suppress(sqlite3.Error):
            if self._db is not None:
                self._db.close()
        self._db = None
        self._lock.release()
        return True


class Store:
    """The file and its writer. Owns the lock that keeps a second process out."""

    def __init__(self, folder: Path, clock: Clock, landed: Landed, bytes_max: int | None) -> None:
        self.folder = folder
        self.path = folder / DATABASE
        self._clock = clock
        self._landed = landed
        self._bytes_max = bytes_max
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock: IO[str] | None = None
        self._writer: threading.Thread | None = None
        self._readers = threading.local()
        self._next_id = 1
        self._next_offsets: dict[int, int] = {}
        self._db: sqlite3.Connection | None = None
        self.written_bytes = 0
        """Since the start, roughly; only the writer changes it."""
        self._finish_checkpoint = False
        self._checkpointing = threading.Lock()
        """SQLite lets one copy at a time: the writer waits for the background, which is what holds appends back."""
        self._wal_bytes = 0
        self._wal_bytes_max = WAL_BYTES_MAX
        self._reading: list[Reading] | None = []
        """None when closed."""
        self._reading_lock = threading.Lock()

    # Opening and closing; called from one thread, before and after everything else.

    def take_lock(self) -> None:
        """Keep other processes out. Raises `LogUnavailable` naming who is in."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("a+")
        except OSError as error:
            raise LogUnavailable(f"{self.folder}: cannot keep a log here: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "an unknown process"
            lock.close()
            raise LogUnavailable(
                f"{self.folder}: {holder} has this log open. The embedded log is for one process; use Kafka for more"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        self._lock = lock

    def probe(self) -> None:
        """Write, fsync, rename and fsync the folder: a disk that cannot is found now. Raises `LogUnavailable`."""
        first, second = self.folder / "probe.new", self.folder / "probe"
        try:
            with first.open("wb") as file:
                file.write(b"\x00" * 4096)
                file.flush()
                os.fsync(file.fileno())
            first.replace(second)
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            second.unlink()
        except OSError as error:
            raise LogUnavailable(f"{self.folder}: not a durable place for a log: {error}") from error

    def open(self) -> sqlite3.Connection:
        """Open the database and make its tables. Returns the writer's connection. Raises `LogUnavailable`."""
        try:
            self._db = self._connect()
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA_VERSION):
                raise LogUnavailable(f"{self.path}: made by another version of Depesche (schema {version})")
            tables = _tables(self._db)
            if (version or tables) and tables != _made():
                raise LogUnavailable(f"{self.path}: damaged: its tables are not what was created")
            self._db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        except (sqlite3.Error, UnicodeError) as error:
            raise LogUnavailable(f"{self.path}: cannot be opened: {error}") from error
        return self._db

    def begin(self, next_id: int, next_offsets: dict[int, int]) -> None:
        """Start the writer."""
        self._next_id = next_id
        self._next_offsets = next_offsets
        self._writer = threading.Thread(target=self._write, name="log-writer", daemon=True)
        self._writer.start()

    def put(self, job: Job) -> None:
        """Hand a job to the writer."""
        self._jobs.put(job)

    def end(self, timeout_s: float) -> bool:
        """Let the writer finish what waits, then stop it. Returns False when it hangs: then the lock is kept until
        the process is gone, for it may still write."""
        if self._writer is not None:
            self._jobs.put(None)
            self._writer.join(timeout_s)
            if self._writer.is_alive():
                return False
            if self._db is not None:
                self._db.close()
                self._db = None
        elif self._db is not None:
            self._db.close()
            self._db = None
        with self._reading_lock:
            reading, self._reading = self._reading, None
        for reader in reading or ():
            if not reader.close(READER_END_S_MAX):
                return False
        self.release_lock()
        return True

    def release_lock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self.path, timeout=5.0, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA wal_autocheckpoint=0")
        db.execute("PRAGMA temp_store=MEMORY")
        if self._bytes_max is not None:
            pages = max(1, self._bytes_max // db.execute("PRAGMA page_size").fetchone()[0])
            db.execute(f"PRAGMA max_page_count={pages}")
        return db

    # The writer's thread.

    def _write(self) -> None:
        more = True
        while more:
            batch: list[Job] = []
            size = 0
            job = self._jobs.get()
            while job is not None:
                batch.append(job)
                size += job.size
                if size >= BATCH_BYTES_MAX or len(batch) >= BATCH_JOBS_MAX:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            more = job is not None
            if batch:
                self._commit(batch)
                self.written_bytes += size
            self._wal_bytes += size + size // 4 + 2 * PAGE_BYTES  # whole pages, and two more that each commit touches
            if self._finish_checkpoint or self._wal_bytes > self._wal_bytes_max:
                self._finish()

    def _finish(self) -> None:
        """Copy the rest of the WAL, so that the next commit writes over its beginning."""
        self._finish_checkpoint = False
        if self._db is None:
            return
        pages, copied = self._checkpoint(self._db)
        if pages == copied:
            self._wal_bytes, self._wal_bytes_max = 0, WAL_BYTES_MAX
        else:  # somebody still reads from it: try again a good deal later
            self._wal_bytes_max = self._wal_bytes + WAL_BYTES_HIGH

    def _commit(self, batch: list[Job]) -> None:
        outcomes: list[tuple[Job, object, Exception | None]] = []
        rows: list[Row] = []
        took = 0.0
        try:
            db = self._db if self._db is not None else self._connect()
            self._db = db
            db.execute("BEGIN IMMEDIATE")
            tx = Transaction(db, self._next_id, self._next_offsets)
            for job in batch:
                try:
                    outcomes.append((job, job.apply(tx), None))
                except LeaseLost as error:
                    outcomes.append((job, None, error))
            tx.flush()
            failpoints.reached("embedded.written")
            began = self._clock.monotonic()
            db.execute("COMMIT")
            failpoints.reached("embedded.committed")
            took = self._clock.monotonic() - began
            rows = tx.rows
            self._next_id += len(rows)
            self._next_offsets.update(tx.next_offsets)
        except sqlite3.Error as error:
            self._abandon(error)
            failure = LogUnavailable(f"{self.path}: {error}")
            outcomes = [(job, None, failure) for job in batch]
            rows = []
        except Exception as error:  # a broken job: its waiters must hear of it, and the writer must live
            logger.exception("%s: a write crashed", self.path)
            self._abandon(sqlite3.OperationalError(str(error)))
            outcomes = [(job, None, error) for job in batch]
            rows = []
        self._landed(rows, outcomes, took)

    def _abandon(self, error: sqlite3.Error) -> None:
        """Roll back, and open anew next time when the connection itself is in doubt."""
        if self._db is None:
            return
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        code = getattr(error, "sqlite_errorcode", None)
        if self._db.in_transaction or (code is not None and code & 0xFF in REOPEN_AFTER):
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    # Readers: any thread, each with a connection of its own.

    def _reader(self) -> Reading:
        """Return this thread's connection for reading. Raises `LogUnavailable` when the store is closed."""
        reader: Reading | None = getattr(self._readers, "reader", None)
        if reader is None:
            db = self._connect()
            db.text_factory = bytes
            reader = self._readers.reader = Reading(db)
            with self._reading_lock:
                if self._reading is None:
                    db.close()
                    raise LogUnavailable(f"{self.path}: the log is closed")
                self._reading.append(reader)
        return reader

    def read_rows(self, place: int, ids: Sequence[int]) -> list[Stored]:
        """Read rows by id, in order of id. Rows that are gone are left out; damaged ones are marked. Any thread.

        Raises `LogUnavailable`.
        """
        found: list[Stored] = []
        for begin in range(0, len(ids), ROWS_A_STATEMENT_MAX):
            part = ids[begin : begin + ROWS_A_STATEMENT_MAX]
            try:
                found += self._read_packed(place, part)
            except (sqlite3.DatabaseError, UnicodeError) as error:  # a damaged text in SQLite's own message
                if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF != sqlite3.SQLITE_CORRUPT:
                    raise LogUnavailable(f"{self.path}: cannot be read: {error}") from error
                found += self._read_singly(place, part)
        return found

    def _read_singly(self, place: int, ids: Sequence[int]) -> list[Stored]:
        """A page is damaged: read row by row, so that only what stands on it is lost."""
        found: list[Stored] = []
        for row_id in ids:
            try:
                found += self._read_packed(place, (row_id,))
            except (sqlite3.DatabaseError, UnicodeError):
                found.append(Stored(row_id, -1, 0, b"", None, sound=False))
        return found

    def _read_packed(self, place: int, ids: Sequence[int]) -> list[Stored]:
        query = f"{_PACKED} WHERE id IN ({','.join(map(str, ids))})"
        with self._reader() as db:
            heads, body = db.execute(query).fetchone()
        if heads is None:
            return []
        found: list[Stored] = []
        begin = 0
        for head in heads.split(b","):
            row_id, of, offset, at, crc, key_size, value_size = map(int, head.split(b" "))
            middle = begin + key_size
            end = middle + max(0, value_size)
            key, value = body[begin:middle], body[middle:end] if value_size >= 0 else None
            begin = end
            sound = of == place and crc == checksum(place, offset, at, key, value)
            found.append(Stored(row_id, offset, at, key, value, sound))
        found.sort()
        return found

    def checkpoint(self) -> None:
        """Copy what the WAL holds into the database, without stopping the writer. Any thread but the writer's.

        While it copies, the writer goes on, so under load some is always left and the WAL grows: beyond
        `WAL_BYTES_HIGH` the writer is asked to copy that rest itself, after its next commit.
        """
        with self._reader() as db:
            pages, copied = self._checkpoint(db)
        self._finish_checkpoint = pages > copied and pages * PAGE_BYTES > WAL_BYTES_HIGH

    def check(self) -> list[str]:
        """Check the structure of the whole file; return what is wrong. Any thread; takes some seconds a GB."""
        try:
            with self._reader() as db:
                found = [str(row[0], "utf-8", "replace") for row in db.execute(f"PRAGMA quick_check({DAMAGES_MAX})")]
        except (sqlite3.Error, UnicodeError) as error:
            return [str(error)]
        return [] if found == ["ok"] else found

    def _checkpoint(self, db: sqlite3.Connection) -> tuple[int, int]:
        try:
            with self._checkpointing:
                busy, pages, copied = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            logger.warning("%s: checkpoint failed, will be tried again: %s", self.path, error)
            return 1, 0
        return (1, 0) if busy else (pages, copied)


def _tables(db: sqlite3.Connection) -> dict[str, str | None]:
    """Return what a database says it holds: a table whose name lost a bit would be made anew, and be empty."""
    return dict(db.execute("SELECT name, sql FROM sqlite_schema"))


def _made() -> dict[str, str | None]:
    """Return what `SCHEMA` makes."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        return _tables(db)
