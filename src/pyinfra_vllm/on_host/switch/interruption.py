"""SIGTERM ends a transaction or a recovery at once, after one journal entry that says why.

Recovery does the rest.

A shutdown must not wait for a switch: systemd refuses every start by then, so none could be finished.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from ..server import systemd
from ..state import durable, journal
from ..state.journal import Journal
from ..state.paths import ServicePaths
from ..state.transactions import newest


def note_in(paths: ServicePaths, status: int) -> None:
    """From now on SIGTERM notes the interruption in the journal and ends the process with that status."""

    def end(number: int, frame: Any) -> None:
        try:
            note(paths)
        finally:
            os._exit(status)

    signal.signal(signal.SIGTERM, end)


def note(paths: ServicePaths) -> None:
    """Note that the newest transaction was interrupted, if it is this process's and has no end yet."""
    last = newest(journal.read(paths.journal))
    holder = durable.read_json(paths.lock, {})
    if last is None or not isinstance(holder, dict) or holder.get("pid") != os.getpid():
        return
    if last.end is None:
        by = "a shutdown" if systemd.stopping() else "`systemctl stop`"
        Journal(paths.journal, last.tx).try_write("interrupted", "note", by=by)
