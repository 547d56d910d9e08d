"""Rollback and crash recovery: after a verdict of worse, a killed transaction, a shutdown or a power cut.

`recover` is safe at any time and any number of times. Going back is one rename and a start, and everything
that it needs was reserved before `activate`. A server that answers as the old release is never stopped. Where
the old release does not serve, the switch has no end: `insist` tries again, with growing pauses, for as long
as it takes. At boot only the rename is done; the recovery unit ends the transaction when systemd has started
the services.
"""

from __future__ import annotations

import errno
import math
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable

from ..gate.verdict import Verdict
from ..server import release as releases
from ..server import systemd
from ..server.hooks import Hooks
from ..server.release import NotReady, Release
from ..server.service import Foreign, NotServing, Say, Service, TooSlow
from ..state import durable, evidence, journal, manifest
from ..state.journal import Entry, Journal
from ..state.lock import LOOK_S, Held, exclusive
from ..state.paths import UNITS, ServicePaths, services
from . import standby
from .order import ROLLBACK

RESTORE_ATTEMPTS = 3  # where a start fails at once; one that takes too long is not tried again
RESTORE_LEAST_S = 1800.0  # least time limit of a start during a rollback, whatever the new release had
PAUSE_S = 5.0
FIRST_PAUSE_S = 2.0  # between the tries of `insist`, doubled after each
LONGEST_PAUSE_S = 60.0
# Another try takes down the new release that serves because the old one would not start: at most a sixth of
# the time.
REST = 5
BY_HAND = "rolled back by the operator"
RESTORE_FAILED = "restore_failed"
JOURNAL_BYTES = 1 << 18  # of disk space reserved for what follows `activate`
REJECTED_BYTES = 1 << 16
TROUBLE = (NotServing, NotReady, systemd.SystemdError, OSError)


class Unfinished(Exception):
    """A switch could not be finished now. What serves goes on serving."""

    def __init__(self, problems: str) -> None:
        super().__init__(
            f"{problems.rstrip('.')}. The host tries again by itself; once the cause is gone, nothing else"
            " is needed."
        )


class GoingDown(Exception):
    """The host shuts down, so systemd refuses every start. The next boot finishes the switch."""

    def __init__(self) -> None:
        super().__init__("the host is shutting down: the next boot finishes the switch")


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
        return outcome


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
    """Start the recovery unit of each service whose newest transaction left something to do and has no live
    process.

    Returns their names.
    """
    due = [paths for paths in services(root, units) if owes(paths) and not _is_held(paths)]
    for paths in due:
        systemd.start_in_background(paths.recovery_unit)
    return [paths.name for paths in due]


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

    It holds the lock only while it tries. What this process lacks and another would have ends it.

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
    return outcome != RESTORE_FAILED and settled and not unended(paths)


def _took_service_down(paths: ServicePaths) -> bool:
    """Whether the last try stopped the new release, which then had to serve again."""
    left = _left(paths)
    failed = left.find("restore", "failed") if left else None
    return bool(failed and failed.get("restarted"))


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
    def soak_cut_short(self) -> bool:
        """Whether the committed release was to be watched under real traffic and nobody watched
        to the end.
        """
        asked = self.begin.get("soak_s") or self.find("soak", "intended")
        return bool(asked) and not self.find("soak", "done")

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
        release_reserve(self.paths)
        self.log.try_write("end", "done", outcome=outcome, reason=reason, recovered=True)
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
    entries = journal.last_transaction(paths.journal)
    return Left(paths, entries) if entries else None


def unended(paths: ServicePaths) -> bool:
    left = _left(paths)
    return left is not None and left.ended is None


def start_limit_s(ready_timeout_s: object) -> float:
    """How long one start during a rollback may take: what the order gives a release, and never less than
    RESTORE_LEAST_S.
    """
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
    if old_id is None or _loaded(paths, old_id):
        service.point_at(old_id)
    return "going back" if old_id else "nothing serves, as before"


def _end_untouched(left: Left, service: Service) -> str | None:
    """The two ends that need no service: the new release stays, or nothing was ever touched.

    None where it is neither.
    """
    if left.committed:
        mend_links(service)
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
        mend_links(service)
    purpose = left.begin.get("purpose", "switch")
    return left.end(
        "interrupted", f"the {purpose} was interrupted{left.interrupted} before anything was touched"
    )


def _end_restored(left: Left, service: Service) -> str:
    """Go back, and end the transaction where that worked: `restore_failed` is no end."""
    assert left.activated is not None
    old_id, new_id = left.activated["from"], left.activated["to"]
    reason = _why_restored(left)
    kept = _reject_worse(left, new_id)
    outcome = restore(service, left.log, old_id, new_id, left.start_limit_s)
    if outcome == RESTORE_FAILED or not kept:
        return outcome  # without an end, so that a later recovery writes both
    mend_links(service)
    return left.end(outcome, reason)


def mend_links(service: Service) -> None:
    """The last thing before an end: somebody may have disabled, masked or edited the unit meanwhile, and no
    server but the current release's runs on.

    What serves is right. Where the links can't be mended, the next switch says why.
    """
    try:
        if service.paths.linked(service.paths.current) is not None:
            service.mend_links()
            service.stop_others()
    except (systemd.SystemdError, OSError) as problem:
        service.say(f"{service.paths.unit} could not be enabled again: {problem}")


def _reject_worse(left: Left, new_id: str) -> bool:
    """Whether the rejection that the verdict asks for, if any, is on the disk."""
    found = left.found_worse
    if not found:
        return True
    try:
        reject(left.paths, new_id, found, left.log.tx, left.failed_by)
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


def _loaded(paths: ServicePaths, release_id: str) -> Release | None:
    """The release, or None where its own files are damaged."""
    try:
        return releases.load(paths, release_id)
    except NotReady:
        return None


def settle(paths: ServicePaths, say: Say, ended: str | None = None) -> bool:
    """Makes up for hooks of the newest transaction that are missing after its end: undrain, and the last
    event.

    `ended` is how a recovery has just ended it, which a full disk may have kept out of the journal. Returns
    whether nothing is owed any more. The caller holds the lock.
    """
    entries = journal.last_transaction(paths.journal) or []
    if not entries:
        return True
    left = Left(paths, entries)
    if left.ended is None and ended is None:
        return True
    owed = Hooks(paths, left.log)
    if ended == RESTORE_FAILED:
        failed = left.find("restore", "failed") or {}
        owed.alert(RESTORE_FAILED, str(failed.get("error", "the old release does not serve")))
    if owed.drained:
        touched = left.activated or left.restarted
        problem = give_back(owed, Service(paths, say), untouched=not touched)
        say(problem or f"{paths.name} gets its traffic again")
    if ended == RESTORE_FAILED:
        return False
    end = left.ended or {"outcome": ended, "reason": "the disk is full, so this is on no record"}
    owed.tell_end(end["outcome"], end["reason"], end.get("verdict"))
    return not owed.drained


def give_back(owed: Hooks, service: Service, untouched: bool) -> str:
    """Let a drained service have its traffic again, unless it serves nothing; returns what
    stands against it.
    """
    current = service.paths.linked(service.paths.current)
    if untouched or (current and service.serves(releases.load(service.paths, current))):
        return owed.undrain()
    return "it gets no traffic: nothing serves"


def _end_calibration(left: Left, service: Service) -> str:
    """A calibration restarts what is current, and may have died between a stop and a start."""
    assert left.restarted is not None
    release_id = left.restarted["release"]
    problem = bring_up(service, release_id, left.start_limit_s)
    if problem:
        note_failure(
            left.log, f"the calibration was interrupted, and {release_id} does not serve: {problem}", None
        )
        return RESTORE_FAILED
    return left.end("interrupted", f"the calibration was interrupted; release {release_id} serves as before")


def reserve(paths: ServicePaths, old_id: str | None, new_id: str) -> None:
    """Reserve all that going back needs, so that it lacks nothing: links, the journal's next entries, the
    rejection.

    Raises OSError where the disk has no room for it: then nothing may be touched.
    """
    durable.prepare(paths.current, *(paths.release(each) for each in (old_id, new_id) if each))
    durable.reserve(paths.journal, JOURNAL_BYTES)
    durable.reserve_replacement(paths.rejected, REJECTED_BYTES)


def release_reserve(paths: ServicePaths) -> None:
    """The counterpart of `reserve`, once the transaction needs it no more.

    The journal keeps its space for the next one.
    """
    try:
        durable.tidy(paths.current)
        durable.release_replacement(paths.rejected)
    except OSError as error:  # a disk that takes no writes: the next transaction's end does it
        print(f"{paths.directory} could not be tidied: {error}", file=sys.stderr, flush=True)


def restore(
    service: Service,
    log: Journal,
    old_id: str | None,
    new_id: str,
    limit_s: float,
    reason: str = "",
    rejects: bool = False,
) -> str:
    """Have the old release serve until its tokens flow; returns the outcome, `rolled_back` or
    `restore_failed`.

    Where it won't start, the new one is tried again, because serving something beats serving nothing. The
    journal keeps one `restore intended` and a `failed` for each new problem, however often it is tried.

    limit_s: how long each start may take
    reason, rejects: why it goes back, and whether that rejects the new release; for whoever finishes it

    Raises GoingDown where the host shuts down.
    """
    if systemd.stopping():
        raise GoingDown
    began = time.monotonic()
    if not _has(log, "restore", "intended"):
        why = {"reason": reason, "rejects": rejects} if reason else {}
        log.try_write("restore", "intended", release=old_id, limit_s=limit_s, **why)
    if old_id:
        standby.back(service, log, old_id, new_id, limit_s)
    problem = bring_up(service, old_id, limit_s) if old_id else _take_away(service, new_id)
    if problem:
        serving, restarted = _last_resort(service, old_id, new_id, limit_s) if old_id else (None, False)
        note_failure(log, problem, serving, restarted)
        return RESTORE_FAILED
    if old_id:
        _keep_for_reference(service.paths, old_id, new_id)
    log.try_write("restore", "done", **({"after_s": round(time.monotonic() - began, 1)} if old_id else {}))
    return "rolled_back"


def _has(log: Journal, step: str, state: str) -> bool:
    return any(entry["step"] == step and entry["state"] == state for entry in log.entries())


def note_failure(
    log: Journal, problem: str, serving: str | None, restarted: bool = False, words: Sequence[str] = ()
) -> None:
    """Write down that going back failed, unless that is what the journal said last.

    serving: what serves instead; `restarted` where trying took it down for a while
    words: why the start failed, as its log says it
    """
    found: Entry = {"error": problem, "serving": serving, "restarted": restarted}
    failed = [entry for entry in log.entries() if (entry["step"], entry["state"]) == ("restore", "failed")]
    if not failed or any(failed[-1].get(key) != value for key, value in found.items()):
        log.try_write("restore", "failed", **found, **({"log": list(words)} if words else {}))


def _take_away(service: Service, new_id: str) -> str:
    """Before the first release nothing served, and nothing is what to go back to."""
    try:
        service.stop(_loaded(service.paths, new_id))
        service.point_at(None)
    except TROUBLE as error:
        return str(error)
    return ""


def _keep_for_reference(paths: ServicePaths, old_id: str, new_id: str) -> None:
    """After a commit `previous` is the old release, which is current again: it means the one
    that was left.
    """
    if paths.linked(paths.previous) == old_id:
        try:
            durable.point(paths.previous, paths.release(new_id))
        except OSError as error:  # what serves is right; this is for people
            print(f"{paths.previous} could not be changed: {error}", file=sys.stderr, flush=True)


def bring_up(service: Service, release_id: str, limit_s: float, attempts: int = RESTORE_ATTEMPTS) -> str:
    """Have the release serve: an empty text once tokens flow, else what went wrong the last time."""
    problem = ""
    for attempt in range(1, attempts + 1):
        try:
            _serve(service, release_id, limit_s)
            return ""
        except Exception as error:
            if systemd.stopping():
                raise GoingDown from error
            problem = str(error) or type(error).__name__
            service.say(f"attempt {attempt} to have {release_id} serve: {problem}")
            if isinstance(error, TooSlow) or not _may_start(service.paths, release_id):
                break
            if attempt < attempts:
                time.sleep(PAUSE_S)
    return problem


def _serve(service: Service, release_id: str, limit_s: float) -> None:
    """One attempt. Until systemd is shown to know the release's unit, nothing that serves is stopped.

    A release that answers, or that systemd is starting already, as after a boot, is not started anew; nor is
    one that systemd could not start and that lost files.
    """
    release = releases.load(service.paths, release_id)
    if service.running_release() not in (None, release_id) and not _may_start(service.paths, release_id):
        raise NotReady(f"release {release_id} has lost files that it needs, so what serves goes on serving")
    service.point_at(release_id)
    known = systemd.started_release(service.paths.unit) == release_id  # else it may be another that runs
    if known and (service.serves(release) or _comes_up_by_itself(service, release, limit_s)):
        return
    if known and not _may_start(service.paths, release_id):
        raise NotReady(f"release {release_id} has lost files that it needs, and systemd could not start it")
    service.stop(release)
    service.start()
    service.wait_until_serving(release, limit_s)


def _may_start(paths: ServicePaths, release_id: str) -> bool:
    """Whether trying again is worth the silence: not for a release that has lost what it needs.

    Looks at files only: a proof by another process may fail for what made the start fail.
    """
    release = _loaded(paths, release_id)
    return (
        release is not None and release.executable.exists() and not manifest.quick_check(release.checkpoint)
    )


def _comes_up_by_itself(service: Service, release: Release, limit_s: float) -> bool:
    try:
        service.wait_until_serving(release, limit_s, service.crashes)
    except NotServing as problem:
        service.say(f"{release.id} runs and serves nothing, so it is started anew: {problem}")
        return False
    return True


def _last_resort(service: Service, old_id: str, new_id: str, limit_s: float) -> tuple[str | None, bool]:
    """The release that serves where the old one can't be restored, and whether it had to be started."""
    for release in filter(None, (_loaded(service.paths, each) for each in (old_id, new_id))):
        if service.serves(release):
            return release.id, False
    if not bring_up(service, new_id, limit_s, attempts=1):
        return new_id, True
    try:
        service.stop(_loaded(service.paths, new_id))
        service.point_at(old_id)  # nothing serves: systemd goes on trying the release that was proven once
        service.start()
    except Exception as problem:
        service.say(f"{old_id} can't be started, and neither can {new_id}: {problem}")
    return None, False


def settle_commit(
    paths: ServicePaths, old_id: str | None, new_id: str, given_up: str | None, tx: str
) -> None:
    """Brings the links and lists in line with a commit.

    given_up: why the old release was left by hand, which rejects it; None where a rollout replaced it
    """
    if old_id and old_id != new_id:
        if paths.release(old_id).is_dir():
            durable.point(paths.previous, paths.release(old_id))
        if given_up:
            reject(paths, old_id, given_up, tx)
    accept(paths, new_id)


def reject(
    paths: ServicePaths, release_id: str, reason: str, tx: str, criteria: dict[str, Any] | None = None
) -> None:
    """Remember that the release was found worse: it is not tried again until something in it changes.

    + criteria: of the gate that it failed; where others are declared, it may be tried again
    """
    rejected = durable.read_json(paths.rejected, {})
    judged = {"criteria": criteria} if criteria else {}
    rejected[release_id] = {"at": journal.now(), "reason": reason, "tx": tx, **judged}
    durable.write_json(paths.rejected, rejected)


def accept(paths: ServicePaths, release_id: str) -> None:
    """A release that was proven after all is no longer rejected."""
    rejected = durable.read_json(paths.rejected, {})
    if rejected.pop(release_id, None):
        durable.write_json(paths.rejected, rejected)
