"""What happened in a service's newest transaction since the follower last asked."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import journal
from .journal import Journal
from .paths import ServicePaths


@dataclass(frozen=True)
class Position:
    """How much the follower has seen: whole lines of the transaction's journal and of its progress log."""

    entries: int = 0
    lines: int = 0


def follow(paths: ServicePaths, after_tx: str | None, seen: Position, unit: str) -> dict[str, Any]:
    """New journal entries and progress lines of the newest transaction other than `after_tx`.

    Returns {"tx", "entries", "progress", "active", "end"}: `active` says whether the transaction's own unit
    still runs, `end` is the closing entry or None.
    """
    entries = journal.last_transaction(paths.journal) or []
    if not entries or entries[0]["tx"] == after_tx:
        return {"tx": None, "entries": [], "progress": [], "active": _active(unit), "end": None}
    tx = entries[0]["tx"]
    progress = _lines(paths.evidence / tx / "progress.log")
    end = [entry for entry in entries if entry["step"] == "end"]
    return {
        "tx": tx,
        "entries": entries[seen.entries :],
        "progress": progress[seen.lines :],
        "active": _active(unit),
        "end": end[-1] if end else None,
    }


def acknowledge(paths: ServicePaths, tx: str) -> None:
    """Note that a control machine has shown the outcome to its operator."""
    Journal(paths.journal, tx).write("reported", "done")


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[: text.count("\n")]


def _active(unit: str) -> bool:
    done = subprocess.run(["systemctl", "is-active", unit], capture_output=True, text=True, check=False)
    return done.stdout.strip() in ("active", "activating", "deactivating", "reloading")
