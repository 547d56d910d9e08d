"""The journal of a service and of its switches, with the root cause of the newest start that failed.

Reads only; a fact sends it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..state.paths import ServicePaths, services
from . import root_cause, unit_log
from .unit_log import Line

SWITCH, RECOVERY = "switch", "recovery"
# A start of vLLM that fails logs a few hundred lines; systemd starts it again up to ten times.
SEARCHED = 5000


def read(root: Path, names: Sequence[str], newest: int) -> list[dict[str, Any]]:
    """Why the newest failed start of each service failed, and the newest lines of its units.

    + names: of services; none: all of them
    + newest: so many lines of each unit
    """
    found = [ServicePaths(root, name) for name in names] or services(root)
    return [_service(paths, newest) for paths in found]


def _service(paths: ServicePaths, newest: int) -> dict[str, Any]:
    told: dict[str, Any] = {"service": paths.name, "cause": None, "problem": "", "lines": []}
    try:
        own = list(unit_log.lines(paths.unit, None, max(newest, SEARCHED)))
        lines = [_told("service", line) for line in own[len(own) - newest :]]
        units = {SWITCH: f"pyinfra-vllm-switch-{paths.name}.service", RECOVERY: paths.recovery_unit}
        for kind, unit in units.items():
            lines += [_told(kind, line) for line in unit_log.lines(unit, None, newest)]
    except unit_log.LogError as error:
        return {**told, "problem": str(error)}
    return {**told, "cause": failed_start(own), "lines": sorted(lines, key=lambda line: line["at"] or 0.0)}


def _told(unit: str, line: Line) -> dict[str, Any]:
    return {"at": line.at, "unit": unit, "text": line.text}


def failed_start(lines: Iterable[Line]) -> dict[str, Any] | None:
    """Why the newest start that did not get as far as taking requests failed; None where none says why.

    A client's words are in a server's log once it takes requests, and could pass for a cause: such a start
    does not count.
    """
    for start in reversed(_starts(lines)):
        if any(unit_log.ACCEPTS.search(line.text) for line in start):
            continue
        cause = root_cause.find(line.text for line in start)
        if cause:
            text, traceback = cause.text, list(cause.traceback)
            return {"at": start[0].at, "process": cause.process, "text": text, "traceback": traceback}
    return None


def _starts(lines: Iterable[Line]) -> list[list[Line]]:
    """The lines by their start, oldest first; systemd's own belong to the start before them."""
    starts: list[list[Line]] = []
    name = ""
    for line in lines:
        if not starts or (line.start and line.start != name):
            starts.append([])
            name = line.start
        starts[-1].append(line)
    return starts


def main(argv: list[str]) -> int:
    """Prints a JSON list, one entry for each service: ROOT LINES [SERVICE ...]."""
    json.dump(read(Path(argv[0]), argv[2:], int(argv[1])), sys.stdout)
    return 0
