"""Reads the news of a service's newest transaction since the follower last asked."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import journal
from .journal import Journal
from .paths import ServicePaths
from .transactions import Transaction, newest, seconds_between


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
    found = newest(journal.read(paths.journal))
    active = _active(unit) or _active(paths.recovery_unit)
    if found is None or found.tx == after_tx:
        nothing = dict.fromkeys(("tx", "step", "failing", "end"))
        return {**nothing, "entries": [], "progress": [], "active": _active(unit)}
    progress = _lines(paths.evidence / found.tx / "progress.log")
    return {
        "tx": found.tx,
        "entries": found.entries[seen.entries :],
        "progress": progress[seen.lines :],
        "step": under_way(found, journal.now()),
        "active": active,
        "failing": None if _active(unit) else found.failing,
        "end": found.end,
    }


def under_way(found: Transaction, now: str) -> dict[str, Any] | None:
    """The step begun last and not ended: {"name", "elapsed_s", "limit_s"}; limit_s may be None."""
    step = found.under_way
    if step is None:
        return None
    return {"name": step.name, "elapsed_s": seconds_between(step.began, now), "limit_s": step.limit_s}


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
