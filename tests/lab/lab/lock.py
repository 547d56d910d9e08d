"""One lab at a time on a machine: a lock held by the kernel, which names its holder and dies with it."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import sys
import time
from typing import IO

from .layout import LOCK
from .shell import LabError


def acquire() -> IO[str]:
    """Take the lab's lock; keep the file open for as long as it must hold."""
    LOCK.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    file = LOCK.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            file.seek(0)
            raise LabError(f"another lab is running on this machine: {_holder(file.read())}") from None
    file.truncate(0)
    json.dump({"pid": os.getpid(), "since": time.time(), "command": shlex.join(sys.argv)}, file)
    file.flush()
    return file


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        since = time.strftime("%H:%M:%S", time.localtime(holder["since"]))
        return (
            f"process {holder['pid']} since {since} ({holder['command']}); `make lab-down` ends one of `make"
            " lab-up`"
        )
    except (ValueError, KeyError, TypeError):
        return f"its holder left no readable name in {LOCK}"
