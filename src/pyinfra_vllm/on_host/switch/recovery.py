"""Crash recovery: ends what a killed transaction, a shutdown or a power cut left without an end.

`recover` is safe at any time and any number of times. Where the old release does not serve, the switch has no
end: `insist` tries again, with growing pauses, for as long as it takes. At boot only the rename is done; the
recovery unit ends the transaction when systemd has started the services.
"""

from __future__ import annotations

import errno
import math
import time
from pathlib import Path
from typing import Callable

from ..server import systemd
from ..server.service import Say, Service
from ..state.lock import LOOK_S, Held, exclusive
from ..state.paths import UNITS, ServicePaths, services
from ..state.transactions import RESTORE_FAILED
from . import standby
from .rollback import GoingDown
from .unfinished import Unfinished, finish_last, left_of, owes, prepare_boot, settle, unended

FIRST_PAUSE_S = 2.0  # between the tries of `insist`, doubled after each
LONGEST_PAUSE_S = 60.0
# Another try takes down the new release that serves because the old one would not start: at most a sixth of
# the time.
REST = 5


def recover(
    root: Path,
    name: str | None,
    say: Say,
    boot: bool = False,
    units: Path = UNITS,
    wait_s: float = LOOK_S,
) -> list[str]:
    """Finish what was begun, for one service or all; returns an outcome for each that needed it.

    wait_s: how long to wait for whoever holds a service's lock

    Raises Unfinished at the end, where a lock is held or something refused: what serves goes on serving.
    """
    found = [paths for paths in services(root, units) if name in (None, paths.name)]
    if boot:
        outcomes, unfinished = _each(found, lambda paths: _prepare_and_start(paths, say))
    else:
        outcomes, unfinished = _each(found, lambda paths: _recover_one(paths, say, wait_s))
    if unfinished:
        raise Unfinished("; ".join([*outcomes, *unfinished]))
    return outcomes


def _each(
    found: list[ServicePaths], act: Callable[[ServicePaths], str | None]
) -> tuple[list[str], list[str]]:
    """The result of each service, and the problems. A service that fails keeps no other from its turn."""
    outcomes, problems = [], []
    for paths in found:
        try:
            outcome = act(paths)
        except Exception as problem:
            problems.append(f"{paths.name}: {str(problem) or type(problem).__name__}")
            continue
        if outcome:
            outcomes.append(f"{paths.name}: {outcome}")
    return outcomes, problems


def _recover_one(paths: ServicePaths, say: Say, wait_s: float) -> str | None:
    with exclusive(paths.lock, "recovery", "finishing an interrupted switch", wait_s):
        outcome = finish_last(paths, say)
        settle(paths, say, outcome)
        return outcome or _mend(paths, say)


def _prepare_and_start(paths: ServicePaths, say: Say) -> str | None:
    """At boot.

    A service whose lock is held has a live transaction: it was not the host's boot that called.
    """
    outcome = None
    try:
        with exclusive(paths.lock, "recovery", "finishing an interrupted switch"):
            outcome = prepare_boot(paths, say)
    except Held:
        return None
    except Exception as problem:
        say(f"{paths.name}: {problem}")  # the recovery unit goes on trying
    systemd.daemon_reload()  # the models' file system may have been mounted only after systemd read its units
    if systemd.show(paths.unit, "LoadState")["LoadState"] == "masked":
        say(f"{paths.name}: somebody masked {paths.unit}, so it is not started: `systemctl unmask` allows it")
    elif paths.wants_link.is_symlink():
        systemd.start_in_background(paths.unit)
    if paths.hooks.is_file() or unended(paths):
        systemd.start_in_background(paths.recovery_unit)
    return outcome


def start_due(root: Path, units: Path = UNITS) -> list[str]:
    """Start the recovery unit of each service without a live transaction, where the newest one left something
    to do, the front is lost, or a server sleeps for longer than it may.

    Returns their names.
    """
    due = [paths for paths in services(root, units) if _needs_recovery(paths) and not _is_held(paths)]
    for paths in due:
        systemd.start_in_background(paths.recovery_unit)
    return [paths.name for paths in due]


def _needs_recovery(paths: ServicePaths) -> bool:
    service = Service(paths, say=print)
    try:
        return owes(paths) or service.front_lost or bool(_needless(service))
    except Exception:  # its recovery meets the same and says it; no other service is to wait for that
        return True


def _needless(service: Service) -> list[str]:
    """Outside of a switch, the servers that are neither the current release's nor may sleep on."""
    left = left_of(service.paths)
    if left is None or left.ended is None or not service.paths.server_units():
        return []
    if service.paths.linked(service.paths.current) is None:
        return []
    return service.others(standby.kept(left.log.entries()))


def _is_held(paths: ServicePaths) -> bool:
    try:
        with exclusive(paths.lock, "recovery", "looking for an interrupted switch"):
            return False
    except Held:
        return True


def insist(paths: ServicePaths, say: Say, tries: float = math.inf) -> bool:
    """Finish the newest transaction and what it owes, however often that has to be tried.

    It holds the lock only while it tries. An error that only a new process can get rid of ends it.

    Returns whether nothing is left to do; it gives up after so many `tries`, or where the host shuts down.
    """
    pause_s, tried = FIRST_PAUSE_S, 0
    while True:
        began = time.monotonic()
        try:
            with exclusive(paths.lock, "recovery", "finishing an interrupted switch", math.inf):
                if _try_once(paths, say):
                    return True
        except GoingDown as reason:
            say(str(reason))
            return False
        except Exception as problem:  # whatever it is: the next try may find it gone
            say(f"{type(problem).__name__}: {problem}")
            if _starved(problem):
                raise  # systemd starts the recovery anew
        tried += 1
        if tried >= tries:
            return False
        rest_s = REST * (time.monotonic() - began) if _took_service_down(paths) else 0.0
        time.sleep(max(pause_s, rest_s))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _starved(problem: BaseException | None) -> bool:
    """Whether this process has no file handle or no memory left: limits of its own, which no pause lifts."""
    if problem is None:
        return False
    if isinstance(problem, MemoryError) or getattr(problem, "errno", None) in (errno.EMFILE, errno.ENOMEM):
        return True
    return _starved(problem.__cause__ or problem.__context__)


def _try_once(paths: ServicePaths, say: Say) -> bool:
    """Whether nothing is left to do."""
    outcome = finish_last(paths, say)
    settled = settle(paths, say, outcome)
    if outcome == RESTORE_FAILED or unended(paths):
        return False
    _mend(paths, say)
    return settled


def _mend(paths: ServicePaths, say: Say) -> str | None:
    """Outside of a switch the front leads to the current release, and nothing else sleeps for longer than it
    may. What was done, where it was otherwise.
    """
    if unended(paths):
        return None
    service = Service(paths, say)
    mended = ["its front was mended"] if service.mend_front() else []
    for release_id in _needless(service):
        service.stop_server(release_id)
        mended.append(f"{release_id} was stopped, which slept")
    return ", ".join(mended) or None


def _took_service_down(paths: ServicePaths) -> bool:
    """Whether the last try stopped the new release, which then had to serve again."""
    left = left_of(paths)
    failed = left.find("restore", "failed") if left else None
    return bool(failed and failed.get("restarted"))
