"""Reads the news of a service's newest transaction since the follower last asked."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from datetime import datetime
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

    Returns {"tx", "entries", "progress", "step", "active", "failing", "end"}: `step` is what is under way,
    `active` says whether the transaction's own unit or its recovery still runs, `end` is the closing entry or
    None. `failing` says why the old release does not serve again, while the recovery goes on trying.
    """
    entries = journal.last_transaction(paths.journal) or []
    active = _active(unit) or _active(paths.recovery_unit)
    if not entries or entries[0]["tx"] == after_tx:
        nothing = dict.fromkeys(("tx", "step", "failing", "end"))
        return {**nothing, "entries": [], "progress": [], "active": _active(unit)}
    tx = entries[0]["tx"]
    progress = _lines(paths.evidence / tx / "progress.log")
    end = [entry for entry in entries if entry["step"] == "end"]
    return {
        "tx": tx,
        "entries": entries[seen.entries :],
        "progress": progress[seen.lines :],
        "step": under_way(entries, journal.now()),
        "active": active,
        "failing": None if end or _active(unit) else journal.failing(entries),
        "end": end[-1] if end else None,
    }


def under_way(entries: list[journal.Entry], now: str) -> dict[str, Any] | None:
    """The step that was begun last and has not ended: {"name", "elapsed_s", "limit_s"}, the limit None where
    it has none.
    """
    open_steps: dict[str, journal.Entry] = {}
    for entry in entries:
        if entry["state"] == "intended":
            open_steps[entry["step"]] = entry
        else:
            open_steps.pop(entry["step"], None)
    if not open_steps:
        return None
    begun = list(open_steps.values())[-1]
    elapsed_s = (datetime.fromisoformat(now) - datetime.fromisoformat(begun["at"])).total_seconds()
    limit_s = begun.get("limit_s")
    return {
        "name": begun["step"],
        "elapsed_s": max(0.0, elapsed_s),
        "limit_s": limit_s if isinstance(limit_s, (int, float)) else None,
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
