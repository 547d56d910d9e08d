"""The newest transaction of a service, what it left to do, and how that is finished.

The journal alone decides it. Everything here is safe at any time and any number of times; the caller holds
the service's lock.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from ..gate.verdict import FAIL, PASS, Verdict
from ..server import release as releases
from ..server.hooks import Hooks
from ..server.service import Foreign, Say, Service
from ..state import evidence, journal
from ..state.journal import Journal
from ..state.paths import ServicePaths
from ..state.transactions import RESTORE_FAILED, Transaction, newest
from . import outcomes, rollback, standby
from .order import ROLLBACK, TRIAL

TRIED, INTERRUPTED = "tried", "interrupted"


class Unfinished(Exception):
    """A switch could not be finished now. What serves goes on serving."""

    def __init__(self, problems: str) -> None:
        super().__init__(
            f"{problems.rstrip('.')}. The host tries again by itself; once the cause is gone, nothing else"
            " is needed."
        )


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

        Not where a soak found it worse, or a rollback was begun on a disk that took no entry of it.
        """
        if self.activated is None or not self.find("commit", "done") or self.find("restore", "intended"):
            return False
        if self.soak_goes_back:
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
        if judged and judged.get("verdict") == FAIL:
            return Verdict.read(judged, "the verdict").conclusion()
        if self.soak_goes_back:
            return self.soak_found or "the soak failed"
        if not going_back or not going_back.get("rejects"):
            return ""
        host_may_be_why = going_back.get("silent") and self.find("restore", "failed")
        return "" if host_may_be_why else str(going_back.get("reason", ""))

    @property
    def failed_by(self) -> dict[str, Any] | None:
        """The criteria of the gate or the soak that the new release failed; None where it was neither."""
        judged = self.find("judge", "done")
        failed = judged and (judged.get("verdict") == FAIL or self.soak_goes_back)
        return judged.get("criteria") if judged and failed else None

    @property
    def soak_found(self) -> str:
        """The soak's reasons against the new release; empty where it passed, or there was none."""
        watched = self.find("soak", "done") or {}
        return "; ".join(watched.get("reasons", ())) if watched.get("verdict", PASS) != PASS else ""

    @property
    def soak_goes_back(self) -> bool:
        """Whether the soak found the new release worse, and it was ordered that it goes back then."""
        watched, begun = self.find("soak", "done") or {}, self.find("soak", "intended") or {}
        return watched.get("verdict") == FAIL and begun.get("action") == "rollback"

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
        if not directory.is_dir() or (directory / "journal.jsonl").exists():
            return
        entries = self.log.entries()
        if not any(entry["step"] == "end" for entry in entries):
            return
        try:
            evidence.seal(directory, entries)
        except OSError as error:
            print(f"{directory} has no journal yet: {error}", file=sys.stderr, flush=True)


def left_of(paths: ServicePaths) -> Left | None:
    found = newest(journal.read(paths.journal))
    return Left(paths, found) if found else None


def unended(paths: ServicePaths) -> bool:
    left = left_of(paths)
    return left is not None and left.ended is None


def owes(paths: ServicePaths) -> bool:
    """Whether the newest transaction has no end, or left the service drained."""
    left = left_of(paths)
    return left is not None and (left.ended is None or Hooks(paths, left.log).drained)


def _to_be_ended(paths: ServicePaths) -> Left | None:
    """The newest transaction, unless it has an end: then its evidence is sealed."""
    left = left_of(paths)
    if left is None or left.ended is None:
        return left
    left.seal()
    return None


def finish_last(paths: ServicePaths, say: Say) -> str | None:
    """End the newest transaction if it was left without an end. The caller holds the lock."""
    left = _to_be_ended(paths)
    if left is None:
        return None
    service = Service(paths, say)
    if lost := _lost(left, service):
        return _end_restored(left, service, lost)
    if untouched := _end_untouched(left, service):
        return untouched
    if left.restarted:
        return _end_calibration(left, service)
    return _end_restored(left, service)


def prepare_boot(paths: ServicePaths, say: Say) -> str | None:
    """Before systemd starts the service: let it be the release that was proven. What can only be said of a
    service that runs is left to `resume`.
    """
    left = _to_be_ended(paths)
    if left is None:
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


def _lost(left: Left, service: Service) -> str:
    """Why a new release that was committed serves no more, and the old one that sleeps has to."""
    if not left.committed or left.activated is None or left.activated["from"] is None:
        return ""
    old_id, new_id = left.activated["from"], left.activated["to"]
    return standby.forward(service, left.log, old_id, new_id, left.start_limit_s)


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
        if left.soak_found:
            reason = f"alert from the soak: {left.soak_found}"
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


def _end_restored(left: Left, service: Service, lost: str = "") -> str:
    """Go back, and end the transaction where that worked: `restore_failed` is no end.

    + lost: why, where that is on no record yet
    """
    assert left.activated is not None
    old_id, new_id = left.activated["from"], left.activated["to"]
    if left.trial:
        return _end_trial(left, service, old_id, new_id)
    reason = lost or _why_restored(left)
    kept = _reject_worse(left, new_id)
    outcome = rollback.restore(service, left.log, old_id, new_id, left.start_limit_s, lost)
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
    """Another transaction follows one whose old release can't be had: it goes back to what serves now.

    Raises Unfinished where it is the same release once more: that would be measured against itself.
    """
    left = left_of(paths)
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
    """Makes up for missing hooks of the newest transaction after its end: undrain, and the last event.

    `ended` is how a recovery has just ended it, which a full disk may have kept out of the journal. Returns
    whether nothing is owed any more. The caller holds the lock.
    """
    left = left_of(paths)
    if left is None or (left.ended is None and ended is None):
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
    as_it_was = untouched and not owed.drained_before
    if as_it_was or (current and service.serves(releases.load(service.paths, current))):
        problem = owed.undrain()
        owed.give_up_undeclared()
        return problem
    return "it stays drained: nothing serves"
