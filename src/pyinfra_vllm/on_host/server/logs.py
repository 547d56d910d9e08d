"""The journal of a service and of its switches, with the root cause of the newest start that failed.

Reads only; a fact sends it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..state.paths import ServicePaths, services
from . import root_cause, unit_log
from .unit_log import Line

SWITCH, RECOVERY = "switch", "recovery"
# A start of vLLM that fails logs a few hundred lines; systemd starts it again up to ten times.
SEARCHED = 5000


@dataclass(frozen=True)
class Told:
    """One line of a unit's journal, in seconds of Unix time."""

    at: float | None
    unit: str
    text: str


@dataclass(frozen=True)
class FailedStart:
    """The root cause of a start that failed, and when that start began."""

    at: float | None
    process: str
    text: str
    traceback: list[str]


@dataclass(frozen=True)
class ServiceLog:
    """The journal of one service's units, or the problem why there is none."""

    service: str
    cause: FailedStart | None = None
    problem: str = ""
    lines: tuple[Told, ...] = ()


def read(root: Path, names: Sequence[str], newest: int) -> list[ServiceLog]:
    """Why the newest failed start of each service failed, and the newest lines of its units.

    + names: of services; none: all of them
    + newest: so many lines of each unit
    """
    known = services(root)
    found = [_service(paths, newest) for paths in [ServicePaths(root, name) for name in names] or known]
    there = [paths.name for paths in known]
    return [each if each.service in there or each.lines else _unknown(each, there) for each in found]


def _unknown(named: ServiceLog, there: Sequence[str]) -> ServiceLog:
    """A name that is no service's and has no journal. One whose service is gone may still have its own."""
    problem = named.problem or f"no service has this name here; there is {', '.join(there) or 'none'}"
    return replace(named, problem=problem)


def _service(paths: ServicePaths, newest: int) -> ServiceLog:
    try:
        own = list(unit_log.lines(paths.unit, None, max(newest, SEARCHED)))
        lines = [Told(line.at, "service", line.text) for line in own[len(own) - newest :]]
        units = {SWITCH: f"pyinfra-vllm-switch-{paths.name}.service", RECOVERY: paths.recovery_unit}
        for kind, unit in units.items():
            lines += [Told(line.at, kind, line.text) for line in unit_log.lines(unit, None, newest)]
    except unit_log.LogError as error:
        return ServiceLog(paths.name, problem=f"the journal can't be read: {error}")
    lines.sort(key=lambda line: line.at or 0.0)
    return ServiceLog(paths.name, failed_start(own), lines=tuple(lines))


def failed_start(lines: Iterable[Line]) -> FailedStart | None:
    """Why the newest start that did not get as far as taking requests failed; None where none says why.

    A client's words are in a server's log once it takes requests: such a start does not count.
    """
    for start in reversed(_starts(lines)):
        if any(unit_log.ACCEPTS.search(line.text) for line in start):
            continue
        cause = root_cause.find(line.text for line in start)
        if cause:
            return FailedStart(start[0].at, cause.process, cause.text, list(cause.traceback))
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
    json.dump(list(map(asdict, read(Path(argv[0]), argv[2:], int(argv[1])))), sys.stdout)
    return 0
