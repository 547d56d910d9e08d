"""One transaction at a time per service, held by the kernel: a dead holder's lock is no lock."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .journal import now

LOOK_S = 0.5  # as long as somebody who only looks at the lock may have it, many times over
POLL_S = 0.05


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
def exclusive(path: Path, holder: str, purpose: str, wait_s: float = LOOK_S) -> Iterator[None]:
    """Hold the lock for the body. Raises Held where another live process still has it after `wait_s` seconds."""
    with _held(path, holder, purpose, fcntl.LOCK_EX, wait_s):
        yield


@contextmanager
def shared(path: Path, holder: str, purpose: str) -> Iterator[None]:
    """Hold the lock beside others that share it. Raises Held where one has it exclusively."""
    with _held(path, holder, purpose, fcntl.LOCK_SH, LOOK_S):
        yield


def storage(run: Path) -> Path:
    """What brings checkpoints, runtimes or releases shares this lock; what removes any of them has it alone."""
    return run / "storage.lock"


@contextmanager
def _held(path: Path, holder: str, purpose: str, how: int, wait_s: float) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _take(descriptor, how, time.monotonic() + wait_s)
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


def _take(descriptor: int, how: int, until: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise Held(_holder(descriptor)) from None
            time.sleep(POLL_S)


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # the holder has the lock but has not yet written its name
        return {}
    return record if isinstance(record, dict) else {}
