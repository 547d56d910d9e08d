"""One transaction at a time per service, held by the kernel: a dead holder's lock is no lock."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .journal import now


class Held(Exception):
    """Another transaction holds the lock. Nothing was touched."""

    def __init__(self, holder: dict[str, Any]) -> None:
        self.holder = holder
        who = holder.get("holder", "an unknown holder")
        super().__init__(
            f"{who} has held this service since {holder.get('since', 'an unknown time')}"
            f" for {holder.get('purpose', 'an unknown purpose')} (process {holder.get('pid', '?')});"
            " nothing was touched. Wait for it, or follow it by running the same command again later."
        )


@contextmanager
def exclusive(path: Path, holder: str, purpose: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock for the body. Raises Held where another live process has it (or waits, when told to)."""
    with _held(path, holder, purpose, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)):
        yield


@contextmanager
def shared(path: Path, holder: str, purpose: str) -> Iterator[None]:
    """Hold the lock beside others that share it. Raises Held where one has it exclusively."""
    with _held(path, holder, purpose, fcntl.LOCK_SH | fcntl.LOCK_NB):
        yield


def storage(run: Path) -> Path:
    """What brings checkpoints, runtimes or releases shares this lock; what removes any of them has it alone."""
    return run / "storage.lock"


@contextmanager
def _held(path: Path, holder: str, purpose: str, how: int) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            raise Held(_holder(descriptor)) from None
        record = {
            "holder": holder,
            "purpose": purpose,
            "since": now(),
            "pid": os.getpid(),
            "nonce": os.urandom(8).hex(),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(record).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # the holder has the lock but has not yet written its name
        return {}
    return record if isinstance(record, dict) else {}
