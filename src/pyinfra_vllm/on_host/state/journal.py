"""The write-ahead journal of one service: what was intended, what was done, in order, on the disk.

An entry is one JSON line: `at` (UTC), `tx` (the transaction), `step`, `state` (`intended`, `done`, `failed`,
`note`) and the step's own fields. A line torn by a power cut is skipped, never repaired: it was not promised.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import durable

Entry = dict[str, Any]

ALWAYS = ("at", "tx", "step", "state")
TEXTS = ("step", "state", "to", "operator", "purpose", "outcome", "reason", "error")
TEXTS_OR_NONE = ("from", "release", "verdict")
LISTS_OF_TEXT = ("overrides", "kernels", "reasons", "log")
# What a recovery acts on: an entry without it promised nothing.
NEEDED = {"activate": ("from", "to"), "restart": ("release",)}


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class Journal:
    """Append-only; every append is fsynced before it returns."""

    def __init__(self, path: Path, tx: str) -> None:
        self.path = path
        self.tx = tx

    def write(self, step: str, state: str, **fields: Any) -> Entry:
        entry: Entry = {"at": now(), "tx": self.tx, "step": step, "state": state, **fields}
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        new = not self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, durable.PRIVATE)
        try:
            if _ends_torn(descriptor):
                line = b"\n" + line
            written = os.write(descriptor, line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes of a journal entry fit into {self.path}")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            durable.sync_directory(self.path.parent)
        return entry

    def try_write(self, step: str, state: str, **fields: Any) -> None:
        """The same for a rollback, which must not need a free byte: a full disk is said on stderr, not
        raised.

        The transaction then keeps no end, so every later recovery looks at it again.
        """
        try:
            self.write(step, state, **fields)
        except OSError as error:
            print(f"{self.path}: {step} {state} could not be written: {error}", file=sys.stderr, flush=True)

    @contextmanager
    def step(self, name: str, must: bool = True, **fields: Any) -> Iterator[Entry]:
        """Write `intended`, run the body, write `done` with what the body put into the yielded dict."""
        write = self.write if must else self.try_write
        write(name, "intended", **fields)
        result: Entry = {}
        try:
            yield result
        except Exception as error:
            self.try_write(name, "failed", error=str(error) or type(error).__name__)
            raise
        write(name, "done", **result)

    def entries(self) -> list[Entry]:
        return [entry for entry in read(self.path) if entry["tx"] == self.tx]


def _ends_torn(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def read(path: Path) -> list[Entry]:
    """Every whole entry, oldest first; an empty list where there is no journal."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [entry for line in lines for entry in _parsed(line)]


def _parsed(line: bytes) -> list[Entry]:
    try:
        entry = json.loads(line)
        return [entry] if is_whole(entry) else []
    except (ValueError, RecursionError):  # torn, or the empty text behind the last newline
        return []


def is_whole(entry: Any) -> bool:
    """Whether it is an entry whose fields are what their readers take them for.

    Raises ValueError for a time that is none.
    """
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ALWAYS):
        return False
    aware = datetime.fromisoformat(entry["at"]).tzinfo is not None
    plain_name = entry["tx"] == Path(entry["tx"]).name  # it names the folder of the evidence
    needed = NEEDED.get(entry["step"], ()) if entry["state"] == "intended" else ()
    return (
        aware
        and plain_name
        and all(key in entry for key in needed)
        and all(isinstance(entry[key], str) for key in TEXTS if key in entry)
        and all(isinstance(entry[key], (str, type(None))) for key in TEXTS_OR_NONE if key in entry)
        and all(_are_texts(entry[key]) for key in LISTS_OF_TEXT if key in entry)
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
