"""The frame of work in a unit of its own: read the request, hold its locks, do it, tell how it ended."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Callable, Protocol, TypeVar

from . import lock
from .status import Status


class TaskError(Exception):
    """The work can't be done: the message is for the operator."""


class Request(Protocol):
    """The arguments of one task, and the lock file that one process at a time holds for it."""

    @property
    def lock(self) -> Path: ...

    @property
    def purpose(self) -> str: ...


R = TypeVar("R", bound=Request)
S = TypeVar("S", bound=Status)


def run(
    verb: str,
    argv: list[str],
    read: Callable[[Path], R],
    status_of: Callable[[R], S],
    work: Callable[[R, S], None],
) -> int:
    """0: done.

    1: not done, and the status file and standard error say why. 2: no such request; nothing was touched.
    """
    if len(argv) != 1:
        print(f"usage: on-host.pyz {verb} REQUEST.json", file=sys.stderr)
        return 2
    try:
        request = read(Path(argv[0]))
    except TaskError as error:
        print(error, file=sys.stderr)
        return 2
    status = status_of(request)
    alone = lock.exclusive(request.lock, verb, request.purpose)
    undisturbed = lock.shared(lock.storage(request.lock.parent), verb, request.purpose)
    try:
        with alone, undisturbed:
            work(request, status)
    except lock.Held as error:
        print(error, file=sys.stderr)  # the status file belongs to the one that holds the lock
        return 1
    except (TaskError, OSError) as error:
        status.failed(str(error))
        return 1
    return 0
