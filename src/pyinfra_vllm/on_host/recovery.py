"""What puts a service right after anything: a verdict of worse, a killed transaction, a power cut.

`recover` is safe at any time and any number of times. It runs from `ExecStopPost=` of the transaction's unit,
at boot before the service, and at the beginning of the next transaction. Going back is one rename and a
start; where the old release won't start either, the service keeps whatever serves, and the outcome says so.
At boot only the rename is done; `resume` ends the transaction when systemd has started the services.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Callable

from . import durable, evidence, gate, journal, manifest, systemd
from . import release as releases
from .hooks import Hooks
from .journal import Entry, Journal
from .lock import LOOK_S, exclusive
from .order import ROLLBACK
from .paths import UNITS, ServicePaths, services
from .release import NotReady, Release
from .service import NotServing, Say, Service, TooSlow

RESTORE_ATTEMPTS = 3  # where a start fails at once; one that takes too long is not tried again
RESTORE_LEAST_S = 1800.0  # what a start on the way back may take at least, whatever the new release was given
PAUSE_S = 5.0
BY_HAND = "rolled back by the operator"


class Unfinished(Exception):
    """A switch could not be finished now. Nothing more was touched; `recover` can be run again once the cause is gone."""

    def __init__(self, problems: str) -> None:
        super().__init__(f"{problems}. Mend that, then run `recover` again, or boot: nothing else is needed.")


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

    Raises Unfinished at the end, where a service's lock is held or something refused: what serves goes on serving.
    """
    found = [paths for paths in services(root, units) if name in (None, paths.name)]
    outcomes, unfinished = _each(found, lambda paths: _recover_one(paths, say, boot, wait_s))
    if boot:
        unfinished += _each(found, lambda paths: _start_at_boot(root, paths))[1]
    if unfinished:
        raise Unfinished("; ".join([*outcomes, *unfinished]))
    return outcomes


def _each(
    found: list[ServicePaths], act: Callable[[ServicePaths], str | None]
) -> tuple[list[str], list[str]]:
    """What came of each service, and what went wrong: whatever it is, the others have their turn all the same."""
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


def _recover_one(paths: ServicePaths, say: Say, boot: bool, wait_s: float) -> str | None:
    with exclusive(paths.lock, "recovery", "finishing an interrupted switch", wait_s):
        if boot:
            return prepare_boot(paths, say)
        outcome = finish_last(paths, say)
        settle(paths, say, outcome)
        return outcome


def _start_at_boot(root: Path, paths: ServicePaths) -> None:
    systemd.daemon_reload()  # the models' file system may have been mounted only after systemd read its units
    if paths.wants_link.is_symlink():
        systemd.start_in_background(paths.unit)
    if paths.hooks.is_file() or _unended(paths):
        program = ("/usr/bin/env", "python3", str(root / "bin/on-host.pyz"), "--root", str(root))
        systemd.run_in_background(f"pyinfra-vllm-resume-{paths.name}", *program, "resume", paths.name)


class Left:
    """The newest transaction of a service, and what it left to do. The caller holds the lock."""

    def __init__(self, paths: ServicePaths, entries: list[Entry]) -> None:
        self.paths = paths
        self.entries = entries
        self.begin = entries[0]
        self.log = Journal(paths.journal, self.begin["tx"])
        self.ended = self.find("end", "done")
        self.activated = self.find("activate", "intended")
        self.restarted = self.find("restart", "intended")

    def find(self, step: str, state: str) -> Entry | None:
        found = [entry for entry in self.entries if entry["step"] == step and entry["state"] == state]
        return found[-1] if found else None

    @property
    def committed(self) -> bool:
        """Whether the new release stays. Not where the way back was begun: by a soak, or on a disk that took no entry of it."""
        if self.activated is None or not self.find("commit", "done") or self.find("restore", "intended"):
            return False
        return bool(self.paths.linked(self.paths.current) == self.activated["to"])

    @property
    def start_limit_s(self) -> float:
        return start_limit_s(self.begin.get("ready_timeout_s"))

    def settle_commit(self) -> None:
        assert self.activated is not None
        given_up = None
        if self.begin.get("purpose") == ROLLBACK:
            given_up = self.begin.get("reason") or BY_HAND
        settle_commit(self.paths, self.activated["from"], self.activated["to"], given_up, self.log.tx)

    def end(self, outcome: str, reason: str) -> str:
        self.log.try_write("end", "done", outcome=outcome, reason=reason, recovered=True)
        self.seal()
        return outcome

    def seal(self) -> None:
        """The evidence gets the journal of a transaction that has ended. On a full disk that has to wait: the next one who
        looks does it."""
        directory = self.paths.evidence / self.log.tx
        if not directory.is_dir() or (directory / "journal.jsonl").exists() or not self._is_on_record():
            return
        try:
            evidence.seal(directory, self.log.entries())
        except OSError as error:
            print(f"{directory} has no journal yet: {error}", file=sys.stderr, flush=True)

    def _is_on_record(self) -> bool:
        return any(entry["step"] == "end" for entry in self.log.entries())


def _left(paths: ServicePaths) -> Left | None:
    entries = journal.last_transaction(paths.journal)
    return Left(paths, entries) if entries else None


def _unended(paths: ServicePaths) -> bool:
    left = _left(paths)
    return left is not None and left.ended is None


def start_limit_s(ready_timeout_s: object) -> float:
    """How long one start on the way back may take: what the order gives a release, and never less than RESTORE_LEAST_S."""
    declared = ready_timeout_s if isinstance(ready_timeout_s, (int, float)) else 0.0
    return max(float(declared), RESTORE_LEAST_S)


def finish_last(paths: ServicePaths, say: Say) -> str | None:
    """End the newest transaction if it was left without an end. The caller holds the lock."""
    left = _left(paths)
    if left is None:
        return None
    if left.ended:
        left.seal()
        return None
    untouched = _end_untouched(left)
    if untouched:
        return untouched
    service = Service(paths, say)
    if left.restarted:
        return _end_calibration(left, service)
    return _end_restored(left, service)


def prepare_boot(paths: ServicePaths, say: Say) -> str | None:
    """Before systemd starts the service: let it be the release that was proven. What can only be said of a service that
    runs is left to `resume`."""
    left = _left(paths)
    if left is None:
        return None
    if left.ended:
        left.seal()
        return None
    untouched = _end_untouched(left)
    if untouched or not left.activated:
        return untouched
    old_id = left.activated["from"]
    left.log.try_write("restore", "intended", release=old_id, boot=True)
    if old_id is None or _loaded(paths, old_id):
        Service(paths, say).point_at(old_id)
    return "going back" if old_id else "nothing serves, as before"


def _end_untouched(left: Left) -> str | None:
    """The two ends that need no service: the new release stays, or nothing was ever touched. None where it is neither."""
    if left.committed:
        left.settle_commit()
        return left.end("committed", "the switch had committed; its record was completed afterwards")
    if left.activated or left.restarted:
        return None
    purpose = left.begin.get("purpose", "switch")
    return left.end("interrupted", f"the {purpose} ended before anything was touched")


def _end_restored(left: Left, service: Service) -> str:
    assert left.activated is not None
    old_id, new_id = left.activated["from"], left.activated["to"]
    outcome = restore(service, left.log, old_id, new_id, left.start_limit_s)
    reason = "the switch was interrupted before its verdict"
    going_back = left.find("restore", "intended")
    if going_back:
        reason = "the switch was interrupted on its way back"
    if going_back and going_back.get("boot"):
        reason = "the host went down before the verdict; it booted with the old release"
    judged = left.find("judge", "done")
    if judged and judged.get("verdict") == "fail":
        found = gate.conclusion(judged)
        try:
            reject(left.paths, new_id, found, left.log.tx)
        except OSError as error:
            service.say(f"{new_id} was found worse, which could not be kept: {error}")
            return outcome  # without an end, so that a later recovery writes both
        reason = f"the way back was interrupted, and finished afterwards: {found}"
    return left.end(outcome, reason)


def _loaded(paths: ServicePaths, release_id: str) -> Release | None:
    """The release, or None where its own files are damaged."""
    try:
        return releases.load(paths, release_id)
    except NotReady:
        return None


def settle(paths: ServicePaths, say: Say, ended: str | None = None) -> bool:
    """What hooks still owe of the newest transaction, once it has ended: the service's traffic, and the last word.

    `ended` is how a recovery has just ended it, which a full disk may have kept out of the journal. Returns whether nothing
    is owed any more. The caller holds the lock.
    """
    entries = journal.last_transaction(paths.journal) or []
    if not entries:
        return True
    left = Left(paths, entries)
    if left.ended is None and ended is None:
        return True
    owed = Hooks(paths, left.log)
    if owed.drained:
        touched = left.activated or left.restarted
        problem = give_back(owed, Service(paths, say), untouched=not touched)
        say(problem or f"{paths.name} gets its traffic again")
    end = left.ended or {"outcome": ended, "reason": "the disk is full, so this is on no record"}
    owed.tell_end(end["outcome"], end["reason"], end.get("verdict"))
    return not owed.drained


def give_back(owed: Hooks, service: Service, untouched: bool) -> str:
    """Let a drained service have its traffic again, unless it serves nothing; returns what stands against it."""
    current = service.paths.linked(service.paths.current)
    if untouched or (current and service.serves(releases.load(service.paths, current))):
        return owed.undrain()
    return "it gets no traffic: nothing serves"


def resume(paths: ServicePaths, say: Say) -> None:
    """After a boot, when tokens take minutes to flow: end what was left and settle, as soon as they do."""
    with exclusive(paths.lock, "recovery", "finishing what a power cut interrupted", math.inf):
        outcome = finish_last(paths, say)
    began = time.monotonic()
    while time.monotonic() - began < RESTORE_LEAST_S:
        with exclusive(paths.lock, "recovery", "giving the service its traffic back", math.inf):
            if settle(paths, say, outcome):
                return
        time.sleep(PAUSE_S)


def _end_calibration(left: Left, service: Service) -> str:
    """A calibration restarts what is current, and may have died between a stop and a start."""
    assert left.restarted is not None
    release_id = left.restarted["release"]
    problem = bring_up(service, release_id, left.start_limit_s)
    if problem:
        return left.end("restore_failed", f"the calibration was interrupted: {problem}")
    return left.end("interrupted", f"the calibration was interrupted; release {release_id} serves as before")


def restore(service: Service, log: Journal, old_id: str | None, new_id: str, limit_s: float) -> str:
    """Bring the old release back until its tokens flow; returns the outcome.

    Where it won't start, the new one is tried again, because serving something beats serving nothing.
    limit_s: how long each start may take
    """
    began = time.monotonic()
    with log.step("restore", must=False, release=old_id, limit_s=limit_s) as result:
        if old_id is None:
            service.stop(_loaded(service.paths, new_id))
            service.point_at(None)
            return "rolled_back"
        problem = bring_up(service, old_id, limit_s)
        if not problem:
            result["after_s"] = round(time.monotonic() - began, 1)
            _keep_for_reference(service.paths, old_id, new_id)
            return "rolled_back"
        result["problem"] = problem
        result["serving"] = _last_resort(service, old_id, new_id, limit_s)
    return "restore_failed"


def _keep_for_reference(paths: ServicePaths, old_id: str, new_id: str) -> None:
    """After a commit `previous` is the old release, which is current again: it means the one that was left."""
    if paths.linked(paths.previous) == old_id:
        durable.point(paths.previous, paths.release(new_id))


def bring_up(service: Service, release_id: str, limit_s: float) -> str:
    """Have the release serve: an empty text once tokens flow, else what went wrong the last time.

    One that systemd is starting already, as after a boot, is waited for before it is started anew.
    """
    problem = ""
    for attempt in range(1, RESTORE_ATTEMPTS + 1):
        try:
            release = releases.load(service.paths, release_id)
            service.point_at(release_id)
            if attempt > 1 or not _comes_up_by_itself(service, release, limit_s):
                service.stop(release)
                service.start()
                service.wait_until_serving(release, limit_s)
            return ""
        except (NotServing, NotReady, systemd.SystemdError, OSError) as error:
            problem = str(error)
            service.say(f"attempt {attempt} to bring {release_id} back: {problem}")
            if isinstance(error, TooSlow) or not _may_start(service.paths, release_id):
                break
            time.sleep(PAUSE_S)
    return problem


def _may_start(paths: ServicePaths, release_id: str) -> bool:
    """Whether trying again is worth the silence: not for a release that has lost what it needs.

    Looks at files only: a proof by another process may fail for what made the start fail.
    """
    release = _loaded(paths, release_id)
    return (
        release is not None and release.executable.exists() and not manifest.quick_check(release.checkpoint)
    )


def _comes_up_by_itself(service: Service, release: Release, limit_s: float) -> bool:
    if service.running_release() != release.id:
        return False
    try:
        service.wait_until_serving(release, limit_s, service.crashes)
    except NotServing as problem:
        service.say(f"{release.id} runs and serves nothing, so it is started anew: {problem}")
        return False
    return True


def _last_resort(service: Service, old_id: str, new_id: str, limit_s: float) -> str | None:
    if not bring_up(service, new_id, limit_s):
        return new_id
    try:
        service.stop(_loaded(service.paths, new_id))
        service.point_at(old_id)  # nothing serves: systemd goes on trying the release that was proven once
        service.start()
    except (NotReady, systemd.SystemdError, OSError) as problem:
        service.say(f"{old_id} can't be started, and neither can {new_id}: {problem}")
    return None


def settle_commit(
    paths: ServicePaths, old_id: str | None, new_id: str, given_up: str | None, tx: str
) -> None:
    """What follows a commit: the links and lists agree with it.

    given_up: why the old release was left by hand, which rejects it; None where a rollout replaced it
    """
    if old_id and old_id != new_id:
        if paths.release(old_id).is_dir():
            durable.point(paths.previous, paths.release(old_id))
        if given_up:
            reject(paths, old_id, given_up, tx)
    accept(paths, new_id)


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
