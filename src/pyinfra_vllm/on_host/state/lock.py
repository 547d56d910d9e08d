"""One transaction at a time per service, by flock: the kernel drops the lock of a process that has ended."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import durable
from .journal import now

LOOK_S = 0.5  # as long as somebody who only looks at the lock may have it, many times over
POLL_S = 0.05
PROC = Path("/proc")


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
    """Hold the lock for the body.

    Raises Held where another live process still has it after `wait_s` seconds.
    """
    with _held(path, holder, purpose, fcntl.LOCK_EX, wait_s):
        yield


@contextmanager
def shared(path: Path, holder: str, purpose: str) -> Iterator[None]:
    """Hold the lock beside others that share it. Raises Held where one has it exclusively."""
    with _held(path, holder, purpose, fcntl.LOCK_SH, LOOK_S):
        yield


def storage(run: Path) -> Path:
    """Storage lock: staging holds it shared, prune exclusively."""
    return run / "storage.lock"


@contextmanager
def _held(path: Path, holder: str, purpose: str, how: int, wait_s: float) -> Iterator[None]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = _take(path, how, time.monotonic() + wait_s)
    try:
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


def _take(path: Path, how: int, until: float) -> int:
    """The lock's descriptor, once it is held."""
    while True:
        tighten(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, durable.PRIVATE)
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):  # else it was replaced in the meantime
                return descriptor
        except BlockingIOError:
            if time.monotonic() >= until:
                holder = _holder(descriptor)
                os.close(descriptor)
                raise Held(holder) from None
            time.sleep(POLL_S)
        os.close(descriptor)


def tighten(path: Path) -> None:
    """Replace a lock that others may open, as earlier versions made it: they could hold it for ever.

    One that our own program holds is left until it is let go. Two that replace it at once agree by a lock
    that was never open to others.
    """
    if not _open_to_others(path):
        return
    guard = os.open(
        path.with_name(f".{path.name}.guard"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, durable.PRIVATE
    )
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if _open_to_others(path) and not any(map(_is_ours, _holders(path))):
            partial = path.with_name(f".{path.name}.partial")
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, durable.PRIVATE))
            partial.replace(path)
    finally:
        os.close(guard)


def _open_to_others(path: Path) -> bool:
    try:
        return bool(path.lstat().st_mode & 0o077)
    except FileNotFoundError:
        return False


def _holders(path: Path) -> Iterator[Path]:
    """The processes that hold the lock, as folders of /proc."""
    wanted = path.stat()
    for descriptor in PROC.glob("[0-9]*/fd/*"):
        try:
            if os.path.samestat(descriptor.stat(), wanted):
                process = descriptor.parents[1]
                if "FLOCK" in (process / "fdinfo" / descriptor.name).read_text():
                    yield process
        except OSError:  # it ended, or closed it, while we looked
            continue


def _is_ours(process: Path) -> bool:
    """Whether it is root's Python: a set-user-id program may have been handed another user's lock."""
    try:
        users = re.findall(r"^Uid:\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)$", (process / "status").read_text(), re.M)
        program = (process / "exe").readlink().name
    except OSError:
        return False
    return users == [(str(os.geteuid()),) * 4] and program.startswith("python")


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # the holder has the lock but has not yet written its name
        return {}
    return record if isinstance(record, dict) else {}
