"""Crash recovery: ends what a killed transaction, a shutdown or a power cut left without an end.

`recover` is safe at any time and any number of times. Where the old release does not serve, the switch has no
end: `insist` tries again, with growing pauses, for as long as it takes. At boot only the rename is done; the
recovery unit ends the transaction when systemd has started the services.
"""

from __future__ import annotations

import errno
import math
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable

from ..gate.verdict import Verdict
from ..server import release as releases
from ..server import systemd
from ..server.hooks import Hooks
from ..server.service import Foreign, Say, Service
from ..state import evidence, journal
from ..state.journal import Journal
from ..state.lock import LOOK_S, Held, exclusive
from ..state.paths import UNITS, ServicePaths, services
from ..state.transactions import RESTORE_FAILED, Transaction, newest
from . import outcomes, rollback, standby
from .order import ROLLBACK, TRIAL
from .rollback import GoingDown

FIRST_PAUSE_S = 2.0  # between the tries of `insist`, doubled after each
LONGEST_PAUSE_S = 60.0
# Another try takes down the new release that serves because the old one would not start: at most a sixth of
# the time.
REST = 5
TRIED, INTERRUPTED = "tried", "interrupted"


class Unfinished(Exception):
    """A switch could not be finished now. What serves goes on serving."""

    def __init__(self, problems: str) -> None:
        super().__init__(
            f"{problems.rstrip('.')}. The host tries again by itself; once the cause is gone, nothing else"
            " is needed."
        )


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

    Raises Unfinished at the end, where a service's lock is held or something refused: what serves goes on
    serving.
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

    A service whose lock is held has a live transaction: it was not the host's boot that called, and all is
    well.
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
    left = _left(service.paths)
    if left is None or left.ended is None or not service.paths.server_units():
        return []
    if service.paths.linked(service.paths.current) is None:
        return []
    return service.others(standby.kept(left.log.entries()))


def owes(paths: ServicePaths) -> bool:
    """Whether the newest transaction has no end, or left the service drained."""
    left = _left(paths)
    return left is not None and (left.ended is None or Hooks(paths, left.log).drained)


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
    left = _left(paths)
    failed = left.find("restore", "failed") if left else None
    return bool(failed and failed.get("restarted"))


class Left:
    """The newest transaction of a service, and what it left to do. The caller holds the lock."""

    def __init__(self, paths: ServicePaths, found: Transaction) -> None:
        self.paths = paths
        self.find = found.find
        self.begin = found.begin
        self.log = Journal(paths.journal, found.tx)
        self.ended = found.end
        self.activated = self.find("activate", "intended")
        self.restarted = self.find("restart", "intended")

    @property
    def committed(self) -> bool:
        """Whether the new release stays.

        Not where a rollback was begun: by a soak, or on a disk that took no entry of it.
        """
        if self.activated is None or not self.find("commit", "done") or self.find("restore", "intended"):
            return False
        return bool(self.paths.linked(self.paths.current) == self.activated["to"])

    @property
    def interrupted(self) -> str:
        """Who ended its process, as far as the record knows; empty where nobody could write it down."""
        noted = self.find("interrupted", "note")
        return f" by {noted.get('by', 'somebody')}" if noted else ""

    @property
    def found_worse(self) -> str:
        """Why the new release is rejected; empty where nothing was found against it."""
        judged, going_back = self.find("judge", "done"), self.find("restore", "intended")
        if judged and judged.get("verdict") == "fail":
            return Verdict.read(judged, "the verdict").conclusion()
        return str(going_back.get("reason", "")) if going_back and going_back.get("rejects") else ""

    @property
    def failed_by(self) -> dict[str, Any] | None:
        """The criteria of the gate that the new release failed; None where it was not the gate."""
        judged = self.find("judge", "done")
        return judged.get("criteria") if judged and judged.get("verdict") == "fail" else None

    @property
    def trial(self) -> bool:
        """Whether it was a trial: it goes back whatever it found, and rejects nothing."""
        return self.begin.get("purpose") == TRIAL

    @property
    def soak_cut_short(self) -> bool:
        """Whether the committed release was to be watched under real traffic, and was not to the end."""
        asked = self.begin.get("soak_s") or self.find("soak", "intended")
        return bool(asked) and not self.find("soak", "done")

    @property
    def start_limit_s(self) -> float:
        return rollback.start_limit_s(self.begin.get("ready_timeout_s"))

    def settle_commit(self) -> None:
        assert self.activated is not None
        given_up = None
        if self.begin.get("purpose") == ROLLBACK:
            given_up = self.begin.get("reason") or outcomes.BY_HAND
        outcomes.settle_commit(
            self.paths, self.activated["from"], self.activated["to"], given_up, self.log.tx
        )

    def end(self, outcome: str, reason: str, **more: object) -> str:
        rollback.release_reserve(self.paths)
        self.log.try_write("end", "done", outcome=outcome, reason=reason, **more, recovered=True)
        self.seal()
        return outcome

    def seal(self) -> None:
        """The evidence gets the journal of a transaction that has ended. On a full disk that has to wait: the
        next one who looks does it.
        """
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
    found = newest(journal.read(paths.journal))
    return Left(paths, found) if found else None


def unended(paths: ServicePaths) -> bool:
    left = _left(paths)
    return left is not None and left.ended is None


def finish_last(paths: ServicePaths, say: Say) -> str | None:
    """End the newest transaction if it was left without an end. The caller holds the lock."""
    left = _left(paths)
    if left is None:
        return None
    if left.ended:
        left.seal()
        return None
    service = Service(paths, say)
    untouched = _end_untouched(left, service)
    if untouched:
        return untouched
    if left.restarted:
        return _end_calibration(left, service)
    return _end_restored(left, service)


def prepare_boot(paths: ServicePaths, say: Say) -> str | None:
    """Before systemd starts the service: let it be the release that was proven. What can only be said of a
    service that runs is left to `resume`.
    """
    left = _left(paths)
    if left is None:
        return None
    if left.ended:
        left.seal()
        return None
    service = Service(paths, say)
    untouched = _end_untouched(left, service)
    if untouched or not left.activated:
        return untouched
    old_id = left.activated["from"]
    if not left.find("restore", "intended"):
        left.log.try_write("restore", "intended", release=old_id, boot=True)
    if old_id is None or rollback.loaded(paths, old_id):
        service.point_at(old_id)
    return "going back" if old_id else "nothing serves, as before"


def _end_untouched(left: Left, service: Service) -> str | None:
    """The two ends that need no service: the new release stays, or nothing was ever touched.

    None where it is neither.
    """
    if left.committed:
        rollback.mend_links(service, standby.kept(left.log.entries()))
        left.settle_commit()
        reason = "the switch had committed; its record was completed afterwards"
        if left.soak_cut_short:
            reason = (
                f"alert: the soak was cut short{left.interrupted}, so nobody watched the release under real"
                " traffic; it passed its gate and stays"
            )
        return left.end("committed", reason)
    if left.activated or left.restarted:
        return None
    with suppress(Foreign):  # a unit that is not ours any more is left alone, as nothing was touched
        service.no_foreign_unit()
        rollback.mend_links(service)
    purpose = left.begin.get("purpose", "switch")
    return left.end(
        INTERRUPTED, f"the {purpose} was interrupted{left.interrupted} before anything was touched"
    )


def _end_restored(left: Left, service: Service) -> str:
    """Go back, and end the transaction where that worked: `restore_failed` is no end."""
    assert left.activated is not None
    old_id, new_id = left.activated["from"], left.activated["to"]
    if left.trial:
        return _end_trial(left, service, old_id, new_id)
    reason = _why_restored(left)
    kept = _reject_worse(left, new_id)
    outcome = rollback.restore(service, left.log, old_id, new_id, left.start_limit_s)
    if outcome == RESTORE_FAILED or not kept:
        return outcome  # without an end, so that a later recovery writes both
    rollback.mend_links(service)
    return left.end(outcome, reason)


def _end_trial(left: Left, service: Service, old_id: str | None, new_id: str) -> str:
    """A trial that was interrupted after its verdict has its answer."""
    outcome = rollback.restore(service, left.log, old_id, new_id, left.start_limit_s)
    if outcome == RESTORE_FAILED:
        return outcome
    rollback.mend_links(service)
    given, judged = left.find("restore", "intended") or {}, left.find("judge", "done")
    if given.get("verdict"):
        return left.end(TRIED, str(given.get("reason", "")), verdict=given["verdict"])
    if judged:
        verdict = Verdict.read(judged, "the verdict")
        return left.end(TRIED, verdict.conclusion(), verdict=verdict.verdict)
    return left.end(INTERRUPTED, _why_restored(left))


def _reject_worse(left: Left, new_id: str) -> bool:
    """Whether the rejection that the verdict asks for, if any, is on the disk."""
    found = left.found_worse
    if not found:
        return True
    try:
        outcomes.reject(left.paths, new_id, found, left.log.tx, left.failed_by)
    except OSError as error:
        print(f"{new_id} was found worse, which could not be kept: {error}", file=sys.stderr, flush=True)
        return False
    return True


def _why_restored(left: Left) -> str:
    if left.find("restore", "failed") and left.found_worse:
        return left.found_worse
    if left.found_worse:
        return f"the rollback was interrupted{left.interrupted}, and finished afterwards: {left.found_worse}"
    given = left.find("restore", "intended") or {}
    if given.get("reason"):
        return str(given["reason"])
    if left.interrupted:
        return f"the switch was interrupted{left.interrupted} before its verdict"
    if given.get("boot"):
        return "the host went down before the verdict; it booted with the old release"
    if given:
        return "the switch was interrupted during its rollback"
    return "the switch was interrupted before its verdict"


def give_up_last(paths: ServicePaths, release_id: str) -> None:
    """Another transaction follows one whose old release can't be had: what serves now is what the next one
    goes back to.

    Raises Unfinished where it is the same release once more: that would be measured against itself.
    """
    left = _left(paths)
    if left is None or left.ended:
        return
    failed = left.find("restore", "failed") or {}
    problem = str(failed.get("error", "the old release does not serve"))
    if left.activated and left.activated["to"] == release_id:
        raise Unfinished(
            f"{release_id} is to be replaced by {left.activated['from']}, which fails: {problem}"
        )
    left.end(RESTORE_FAILED, f"given up for the transaction that follows: {problem}")


def settle(paths: ServicePaths, say: Say, ended: str | None = None) -> bool:
    """Makes up for hooks of the newest transaction that are missing after its end: undrain, and the last
    event.

    `ended` is how a recovery has just ended it, which a full disk may have kept out of the journal. Returns
    whether nothing is owed any more. The caller holds the lock.
    """
    left = _left(paths)
    if left is None:
        return True
    if left.ended is None and ended is None:
        return True
    owed = Hooks(paths, left.log)
    if ended == RESTORE_FAILED:
        failed = left.find("restore", "failed") or {}
        owed.alert(RESTORE_FAILED, str(failed.get("error", "the old release does not serve")))
    if owed.drained:
        touched = left.activated or left.restarted
        problem = undrain_if_serving(owed, Service(paths, say), untouched=not touched)
        say(problem or f"{paths.name} is undrained")
    if ended == RESTORE_FAILED:
        return False
    end = left.ended or {"outcome": ended, "reason": "the disk is full, so this is on no record"}
    owed.tell_end(end["outcome"], end["reason"], end.get("verdict"))
    return not owed.drained


def undrain_if_serving(owed: Hooks, service: Service, untouched: bool) -> str:
    """Undrain a drained service if it serves; returns the problem, empty where there is none."""
    current = service.paths.linked(service.paths.current)
    if untouched or (current and service.serves(releases.load(service.paths, current))):
        return owed.undrain()
    return "it stays drained: nothing serves"


def _end_calibration(left: Left, service: Service) -> str:
    """A calibration restarts what is current, and may have died between a stop and a start."""
    assert left.restarted is not None
    release_id = left.restarted["release"]
    problem = rollback.bring_up(service, release_id, left.start_limit_s)
    if problem:
        rollback.note_failure(
            left.log, f"the calibration was interrupted, and {release_id} does not serve: {problem}", None
        )
        return RESTORE_FAILED
    return left.end(INTERRUPTED, f"the calibration was interrupted; release {release_id} serves as before")
