"""What puts a service right after anything: a verdict of worse, a killed transaction, a power cut.

`recover` is safe at any time and any number of times. It runs from `ExecStopPost=` of the transaction's unit,
at boot before the service, and at the beginning of the next transaction. Going back is one rename and a
start; where the old release won't start either, the service keeps whatever serves, and the outcome says so.
"""

from __future__ import annotations

import time
from pathlib import Path

from . import durable, journal, systemd
from . import release as releases
from .hooks import Hooks
from .journal import Entry, Journal
from .lock import Held, exclusive
from .paths import UNITS, ServicePaths, services
from .release import NotReady, Release
from .service import NotServing, Say, Service

RESTORE_ATTEMPTS = 3
RESTORE_TIMEOUT_S = 3600.0
PAUSE_S = 5.0


class Unfinished(Exception):
    """A switch could not be finished now. Nothing more was touched; `recover` can be run again once the cause is gone."""

    def __init__(self, problems: str) -> None:
        super().__init__(f"{problems}. Mend that, then run `recover` again, or boot: nothing else is needed.")


def recover(root: Path, name: str | None, say: Say, boot: bool = False, units: Path = UNITS) -> list[str]:
    """Finish what was begun, for one service or all; returns an outcome for each that needed it.

    Raises Unfinished at the end, where the disk or systemd refused: what serves goes on serving.
    """
    outcomes, unfinished = [], []
    for paths in services(root, units):
        if name not in (None, paths.name):
            continue
        try:
            with exclusive(paths.lock, "recovery", "finishing an interrupted switch"):
                outcome = finish_last(paths, say, boot)
                if not boot:
                    settle(paths, say, outcome)
        except Held as held:
            say(f"{paths.name}: {held}")
            continue
        except (OSError, ValueError, NotReady, systemd.SystemdError) as problem:
            unfinished.append(f"{paths.name}: {problem}")  # the other services are recovered all the same
            continue
        if outcome:
            outcomes.append(f"{paths.name}: {outcome}")
    if boot:
        _start_all(root, units)
    if unfinished:
        raise Unfinished("; ".join([*outcomes, *unfinished]))
    return outcomes


def _start_all(root: Path, units: Path) -> None:
    """At boot the models' file system may be mounted only after systemd read its units: read them again."""
    systemd.daemon_reload()
    for paths in services(root, units):
        if paths.wants_link.is_symlink():
            systemd.start_in_background(paths.unit)
        if paths.hooks.is_file():
            program = ("/usr/bin/env", "python3", str(root / "bin/on-host.pyz"), "--root", str(root))
            systemd.run_in_background(f"pyinfra-vllm-resume-{paths.name}", *program, "resume", paths.name)


def finish_last(paths: ServicePaths, say: Say, boot: bool = False) -> str | None:
    """End the newest transaction if it was left without an end. The caller holds the lock."""
    entries = journal.last_transaction(paths.journal)
    if entries is None or _find(entries, "end", "done"):
        return None
    log = Journal(paths.journal, entries[0]["tx"])
    purpose = entries[0].get("purpose", "switch")
    committed = _find(entries, "commit", "done")
    activated = _find(entries, "activate", "intended")
    going_back = _find(entries, "restore", "intended")  # also after a commit, when the soak found it worse
    went_back = activated and paths.linked(paths.current) != activated["to"]  # on a disk that took no entry
    if committed and activated and not going_back and not went_back:
        finish_commit(paths, activated["from"])
        return _end(log, "committed", "the switch had committed; its record was completed afterwards")
    restarted = _find(entries, "restart", "intended")
    if restarted:
        return _end_calibration(paths, log, restarted["release"], say, boot)
    if not activated:
        return _end(log, "interrupted", f"the {purpose} ended before anything was touched")
    if boot:
        return _restore_for_boot(paths, log, activated["from"])
    service = Service(paths, say)
    old = releases.load(paths, activated["from"]) if activated["from"] else None
    outcome = restore(service, log, old, releases.load(paths, activated["to"]))
    return _end(log, outcome, "the switch was interrupted before its verdict")


def settle(paths: ServicePaths, say: Say, ended: str | None = None) -> bool:
    """What hooks still owe of the newest transaction, once it has ended: the service's traffic, and the last word.

    `ended` is how a recovery has just ended it, which a full disk may have kept out of the journal. Returns whether nothing
    is owed any more. The caller holds the lock.
    """
    entries = journal.last_transaction(paths.journal) or []
    end = _find(entries, "end", "done")
    if end is None and ended is None:
        return True
    owed = Hooks(paths, Journal(paths.journal, entries[0]["tx"]))
    if owed.drained:
        touched = _find(entries, "activate", "intended") or _find(entries, "restart", "intended")
        problem = give_back(owed, Service(paths, say), untouched=not touched)
        say(problem or f"{paths.name} gets its traffic again")
    end = end or {"outcome": ended, "reason": "the disk is full, so this is on no record"}
    owed.tell_end(end["outcome"], end["reason"], end.get("verdict"))
    return not owed.drained


def give_back(owed: Hooks, service: Service, untouched: bool) -> str:
    """Let a drained service have its traffic again, unless it serves nothing; returns what stands against it."""
    current = service.paths.linked(service.paths.current)
    if untouched or (current and service.serves(releases.load(service.paths, current))):
        return owed.undrain()
    return "it gets no traffic: nothing serves"


def resume(paths: ServicePaths, say: Say) -> None:
    """After a boot, when tokens take minutes to flow: settle as soon as they do."""
    began = time.monotonic()
    while time.monotonic() - began < RESTORE_TIMEOUT_S:
        with exclusive(paths.lock, "recovery", "giving the service its traffic back", wait=True):
            if settle(paths, say):
                return
        time.sleep(PAUSE_S)


def _end_calibration(paths: ServicePaths, log: Journal, release_id: str, say: Say, boot: bool) -> str:
    """A calibration restarts what is current, and may have died between a stop and a start."""
    if not boot:  # at boot systemd starts it by itself
        problem = bring_up(Service(paths, say), releases.load(paths, release_id))
        if problem:
            return _end(log, "restore_failed", f"the calibration was interrupted: {problem}")
    return _end(log, "interrupted", f"the calibration was interrupted; release {release_id} serves as before")


def _find(entries: list[Entry], step: str, state: str) -> Entry | None:
    found = [entry for entry in entries if entry["step"] == step and entry["state"] == state]
    return found[-1] if found else None


def _end(log: Journal, outcome: str, reason: str) -> str:
    log.try_write("end", "done", outcome=outcome, reason=reason, recovered=True)
    return outcome


def _restore_for_boot(paths: ServicePaths, log: Journal, old_id: str | None) -> str:
    """Point back before systemd starts the service: it comes up with the old release by itself."""
    with log.step("restore", must=False, release=old_id, boot=True):
        old = releases.load(paths, old_id) if old_id else None
        Service(paths, lambda line: None).point_at(old)
    return _end(log, "rolled_back", "the host went down before the verdict; it booted with the old release")


def restore(service: Service, log: Journal, old: Release | None, new: Release) -> str:
    """Bring the old release back until its tokens flow; returns the outcome.

    Where it won't start, the new one is tried again, because serving something beats serving nothing.
    """
    began = time.monotonic()
    with log.step("restore", must=False, release=old.id if old else None) as result:
        if old is None:
            service.stop(new)
            service.point_at(None)
            return "rolled_back"
        problem = bring_up(service, old)
        if not problem:
            result["after_s"] = round(time.monotonic() - began, 1)
            _keep_for_reference(service.paths, old, new)
            return "rolled_back"
        result["problem"] = problem
        result["serving"] = _last_resort(service, old, new)
    return "restore_failed"


def _keep_for_reference(paths: ServicePaths, old: Release, new: Release) -> None:
    """After a commit `previous` is the old release, which is current again: it means the one that was left."""
    if paths.linked(paths.previous) == old.id:
        durable.point(paths.previous, paths.release(new.id))


def bring_up(service: Service, release: Release) -> str:
    """Have the release serve: an empty text once tokens flow, else what went wrong the last time."""
    problem = ""
    for attempt in range(1, RESTORE_ATTEMPTS + 1):
        try:
            service.point_at(release)
            if not service.serves(release):
                service.stop(release)
                service.start()
                service.wait_until_serving(release, RESTORE_TIMEOUT_S)
            return ""
        except (NotServing, NotReady, systemd.SystemdError, OSError) as error:
            problem = str(error)
            service.say(f"attempt {attempt} to bring {release.id} back: {problem}")
            time.sleep(PAUSE_S)
    return problem


def _last_resort(service: Service, old: Release, new: Release) -> str | None:
    if not bring_up(service, new):
        return new.id
    service.point_at(old)  # nothing serves: systemd goes on trying the release that was proven once
    service.stop(new)
    service.start()
    return None


def finish_commit(paths: ServicePaths, old_id: str | None) -> None:
    if old_id and paths.release(old_id).is_dir() and old_id != paths.linked(paths.current):
        durable.point(paths.previous, paths.release(old_id))


def reject(paths: ServicePaths, release_id: str, reason: str, tx: str) -> None:
    """Remember that the release was found worse: it is not tried again until something in it changes."""
    rejected = durable.read_json(paths.rejected, {})
    rejected[release_id] = {"at": journal.now(), "reason": reason, "tx": tx}
    durable.write_json(paths.rejected, rejected)


def accept(paths: ServicePaths, release_id: str) -> None:
    """A release that was proven after all is no longer rejected."""
    rejected = durable.read_json(paths.rejected, {})
    if rejected.pop(release_id, None):
        durable.write_json(paths.rejected, rejected)
