"""Observes the services of a host: release, process, lock, journal.

Read-only; a fact sends it to hosts that have nothing of us yet.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import journal, running
from .paths import ServicePaths, services
from .transactions import CALIBRATION, RESTORE_FAILED, Transaction, transactions


def linked(link: Path) -> str | None:
    return link.readlink().name if link.is_symlink() else None


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def accepted(path: Path) -> bool:
    """Whether a release need not be asked about again: its vLLM accepted it, or can't be asked."""
    answer = read_json(path)
    return isinstance(answer, dict) and answer.get("outcome") in ("accepted", "not asked")


def unit_state(unit: str) -> dict[str, str]:
    command = ["systemctl", "show", unit, "--property", ",".join(running.PROPERTIES)]
    text = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def holder(path: Path) -> dict[str, Any] | None:
    """The holder of the lock; None where there is none (a dead holder's record counts for nothing)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        value = read_json(path)
        return value if isinstance(value, dict) else {}
    finally:
        os.close(descriptor)


def proven(history: list[Transaction], live: bool) -> str | None:
    """The release that was committed last, and not taken back since; None while that is being found out.

    A transaction without an end that touched the service, or a live one, may yet go back.
    """
    last = history[-1] if history else None
    if last is None:
        return None
    touches = live or last.find("activate", "intended")
    if touches and last.end is None and last.purpose != CALIBRATION:
        return None
    found = None
    for each in history:
        if each.outcome == "committed":
            found = each.new
        if each.outcome == RESTORE_FAILED:  # given up: what serves was never proven
            found = None
    return found


def asleep(paths: ServicePaths, last: Transaction | None) -> dict[str, str] | None:
    """The old release that sleeps on after the commit, and until when; None where none does."""
    sleeper = last.sleeper if last else None
    if sleeper is None or unit_state(paths.server_unit(sleeper["release"])).get("ActiveState") != "active":
        return None
    until = datetime.fromtimestamp(sleeper["until"], timezone.utc)
    return {"release": sleeper["release"], "until": until.isoformat(timespec="seconds")}


def service(paths: ServicePaths) -> dict[str, Any]:
    """One service, as JSON: `observed.Observed` is what it is read as."""
    state = unit_state(paths.unit)
    history = transactions(journal.read(paths.journal))
    told = [each.as_dict() for each in history]
    releases, held = paths.releases, holder(paths.lock)
    current, runs = linked(paths.current), running.release(paths.unit, state)
    return {
        "service": paths.name,
        "unit": paths.unit,
        "active": state.get("ActiveState"),
        "sub": state.get("SubState"),
        "since": state.get("ActiveEnterTimestamp"),
        "restarts": int(state.get("NRestarts") or 0),
        "current": current,
        "previous": linked(paths.previous),
        "running": runs,
        "front_lost": held is None and runs == current and paths.front_lost(current),
        "asleep": asleep(paths, history[-1] if history else None),
        "release": read_json(paths.current / "release.json"),
        "staged": sorted(e.name for e in releases.iterdir() if not e.name.startswith("."))
        if releases.is_dir()
        else [],
        "rehearsed": sorted(
            path.parent.name for path in releases.glob("[!.]*/rehearsal.json") if accepted(path)
        ),
        "rejected": read_json(paths.rejected) or {},
        "lock": held,
        "proven": proven(history, live=held is not None),
        "last": told[-1] if told else None,
        "history": told,
    }


def observe(root: Path, names: list[str]) -> list[dict[str, Any]]:
    """The services named (none named: all)."""
    named = [ServicePaths(root, name) for name in names]
    return [service(paths) for paths in named or services(root)]


def main(argv: list[str]) -> int:
    """Prints a JSON list, one entry for each service named (none named: for all).

    The arguments are ROOT [SERVICE ...].
    """
    json.dump(observe(Path(argv[0]), argv[1:]), sys.stdout)
    return 0
