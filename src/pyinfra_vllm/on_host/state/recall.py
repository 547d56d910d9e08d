"""Prints a host's record of its switches as JSON: read-only, sent as text by a fact.

NEWEST switches of each service are told (0: all), at most MAX_BYTES of evidence for each service, the newest
first; with 0 bytes neither evidence nor the log that an end carries is sent. Whole files are left out, and
named or counted; none is cut.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from . import journal
from .journal import Entry
from .paths import ServicePaths, services
from .transactions import transactions

EVIDENCE = ("verdict", "before", "after", "release")


def kernels(entries: list[Entry]) -> dict[str, Any]:
    """Release id -> what its newest kernel check found."""
    found: dict[str, Any] = {}
    began: dict[str, str] = {}
    for entry in entries:
        if entry.get("step") != "kernel":
            continue
        if entry.get("state") == "intended":
            began[entry["tx"]] = str(entry.get("release"))
        elif entry.get("state") == "done" and entry["tx"] in began:
            found[began[entry["tx"]]] = {"verdict": entry.get("verdict"), "kernels": entry.get("kernels")}
    return found


def evidence(directory: Path, old: str, allowed: int) -> tuple[dict[str, Any], dict[str, str], int]:
    """The files of one switch, those that were left out with the reason, and the bytes that were read.

    + old: the release before, whose own document is told as `old` where it is still staged
    """
    places = {name: directory / f"{name}.json" for name in EVIDENCE}
    places["old"] = directory.parents[1] / "releases" / old / "release.json"
    files: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    used = 0
    for name, path in places.items():
        try:
            if not path.is_file():  # a switch that ended early
                continue
            size = path.stat().st_size
            if used + size > allowed:
                left_out[name] = f"{size} bytes are more than this request allows"
                continue
            files[name] = json.loads(path.read_text(encoding="utf-8"))
            used += size
        except (OSError, ValueError) as error:
            left_out[name] = str(error)
    return files, left_out, used


def progress(directory: Path) -> str:
    """The last line that a switch said of itself."""
    path = directory / "progress.log"
    if not path.is_file():
        return ""
    return path.read_text(encoding="utf-8", errors="replace").rstrip().split("\n")[-1]


def service(paths: ServicePaths, newest: int, max_bytes: int) -> dict[str, Any]:
    entries = journal.read(paths.journal)
    told: list[dict[str, Any]] = []
    left = max_bytes
    known = transactions(entries)
    older = max(0, len(known) - newest) if newest else 0
    for each in reversed(known[older:]):
        place = paths.evidence / each.tx
        files, left_out, used = evidence(place, str(each.old), left) if max_bytes else ({}, {}, 0)
        left -= used
        own = each.entries
        kept = own if max_bytes else [{k: v for k, v in entry.items() if k != "log"} for entry in own]
        told.append({"tx": each.tx, "entries": kept, "evidence": files, "left_out": left_out})
    last = progress(paths.evidence / told[0]["tx"]) if told else ""
    return {
        "service": paths.name,
        "kernels": kernels(entries),
        "progress": last,
        "older": older,
        "transactions": told[::-1],
    }


def recall(root: Path, newest: int, max_bytes: int, names: list[str]) -> list[dict[str, Any]]:
    """The switches of the services named (none named: of all)."""
    named = [ServicePaths(root, name) for name in names]
    return [service(paths, newest, max_bytes) for paths in named or services(root)]


def main(argv: list[str]) -> int:
    """Prints a JSON list, one entry for each service named (none named: for all).

    The arguments are ROOT NEWEST MAX_BYTES [SERVICE ...].
    """
    json.dump(recall(Path(argv[0]), int(argv[1]), int(argv[2]), argv[3:]), sys.stdout)
    return 0
