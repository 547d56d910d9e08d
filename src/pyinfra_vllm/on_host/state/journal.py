"""The write-ahead journal of one service: what was intended, what was done, in order, on the disk.

An entry is one JSON line: `at` (UTC), `tx` (the transaction), `step`, `state` (`intended`, `done`, `failed`,
`note`) and the step's own fields. A line torn by a power cut is skipped, never repaired: it was not promised.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import durable

Entry = dict[str, Any]

ALWAYS = ("at", "tx", "step", "state")
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
        """The same for a rollback, which must not need a free byte: a full disk is only said on stderr.

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
    except (ValueError, RecursionError):  # torn, or the empty text behind the last newline
        return []
    return [entry] if wrong_key(entry) is None else []


def wrong_key(entry: Any) -> str | None:
    """The first key that is missing, or that has another value than its readers take; None for an entry.

    Empty for what is no mapping.
    """
    if not isinstance(entry, dict):
        return ""
    missing = [key for key in ALWAYS if not isinstance(entry.get(key), str)]
    if missing:
        return missing[0]
    needed = NEEDED.get(entry["step"], ()) if entry["state"] == "intended" else ()
    wrong = [key for key in needed if key not in entry]
    wrong += [key for key, is_right in KINDS.items() if key in entry and not is_right(entry[key])]
    return wrong[0] if wrong else None


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _is_name(text: str) -> bool:
    """Whether it can name a folder, as `tx` does that of the evidence."""
    return text == Path(text).name


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


KINDS: dict[str, Callable[[Any], bool]] = {
    "at": _is_time,
    "tx": _is_name,
    **dict.fromkeys(("to", "operator", "purpose", "outcome", "reason", "error"), _is_text),
    **dict.fromkeys(("from", "release", "verdict"), _is_text_or_none),
    **dict.fromkeys(("overrides", "kernels", "reasons", "log"), _are_texts),
}
