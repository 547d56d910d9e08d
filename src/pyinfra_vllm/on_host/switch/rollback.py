"""Rollback on the host: have the old release serve again.

Going back is one rename and a start, and everything that it needs was reserved before `activate`. A server
that answers as the old release is never stopped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from ..server import release as releases
from ..server import systemd
from ..server.release import NotReady, Release
from ..server.service import NotServing, Service, TooSlow
from ..state import durable, manifest
from ..state.journal import Entry, Journal
from ..state.paths import ServicePaths
from ..state.transactions import RESTORE_FAILED, Transaction
from . import standby

RESTORE_ATTEMPTS = 3  # where a start fails at once; one that takes too long is not tried again
RESTORE_LEAST_S = 1800.0  # least time limit of a start during a rollback, whatever the new release had
PAUSE_S = 5.0
JOURNAL_BYTES = 1 << 18  # of disk space reserved for what follows `activate`
REJECTED_BYTES = 1 << 16
TROUBLE = (NotServing, NotReady, systemd.SystemdError, OSError)


class GoingDown(Exception):
    """The host shuts down, so systemd refuses every start. The next boot finishes the switch."""

    def __init__(self) -> None:
        super().__init__("the host is shutting down: the next boot finishes the switch")


def start_limit_s(ready_timeout_s: object) -> float:
    """How long one start in a rollback may take: as its order says, and at least RESTORE_LEAST_S."""
    declared = ready_timeout_s if isinstance(ready_timeout_s, (int, float)) else 0.0
    return max(float(declared), RESTORE_LEAST_S)


def reserve(paths: ServicePaths, old_id: str | None, new_id: str) -> None:
    """Reserve all that going back needs: links, the journal's next entries, the rejection.

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
    silent: bool = False,
    verdict: str | None = None,
) -> str:
    """Start the old release and wait for tokens; returns the outcome, `rolled_back` or `restore_failed`.

    Where it won't start, the new one is tried again, because serving something beats serving nothing. The
    journal keeps one `restore intended` and a `failed` for each new problem, however often it is tried.

    limit_s: how long each start may take
    reason, rejects: why it goes back, and whether that rejects the new release; for whoever finishes it
    silent: it never generated tokens: where the old one does not either, the host may be why, and none is
        rejected
    verdict: of a trial, for the same

    Raises GoingDown where the host shuts down.
    """
    if systemd.stopping():
        raise GoingDown
    began = time.monotonic()
    if not Transaction(log.entries()).find("restore", "intended"):
        why: Entry = {"reason": reason, "rejects": rejects, "silent": silent} if reason else {}
        why |= {"verdict": verdict} if verdict else {}
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


def note_failure(
    log: Journal, problem: str, serving: str | None, restarted: bool = False, words: Sequence[str] = ()
) -> None:
    """Write down that going back failed, unless that is what the journal said last.

    serving: what serves instead; `restarted` where trying took it down for a while
    words: why the start failed, as its log says it
    """
    found: Entry = {"error": problem, "serving": serving, "restarted": restarted}
    failed = Transaction(log.entries()).find("restore", "failed")
    if failed is None or any(failed.get(key) != value for key, value in found.items()):
        log.try_write("restore", "failed", **found, **({"log": list(words)} if words else {}))


def _take_away(service: Service, new_id: str) -> str:
    """Roll back a first release: nothing served before it, so the service is stopped."""
    try:
        service.stop(loaded(service.paths, new_id))
        service.point_at(None)
    except TROUBLE as error:
        return str(error)
    return ""


def _keep_for_reference(paths: ServicePaths, old_id: str, new_id: str) -> None:
    """Let `previous` name the release that was rolled back, not the old one, which is current again."""
    if paths.linked(paths.previous) == old_id:
        try:
            durable.point(paths.previous, paths.release(new_id))
        except OSError as error:  # what serves is right; this is for people
            print(f"{paths.previous} could not be changed: {error}", file=sys.stderr, flush=True)


def bring_up(service: Service, release_id: str, limit_s: float, attempts: int = RESTORE_ATTEMPTS) -> str:
    """Start the release: an empty text once it generates tokens, else why the last attempt failed."""
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
    """Whether another start could succeed: not where the release has lost files that it needs.

    Only files are checked: a full pre-check may fail for the same reason as the start.
    """
    release = loaded(paths, release_id)
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
    for release in filter(None, (loaded(service.paths, each) for each in (old_id, new_id))):
        if service.serves(release):
            return release.id, False
    if not bring_up(service, new_id, limit_s, attempts=1):
        return new_id, True
    try:
        service.stop(loaded(service.paths, new_id))
        service.point_at(old_id)  # nothing serves: systemd goes on trying the release that was proven once
        service.start()
    except Exception as problem:
        service.say(f"{old_id} can't be started, and neither can {new_id}: {problem}")
    return None, False


def loaded(paths: ServicePaths, release_id: str) -> Release | None:
    """The release, or None where its own files are damaged."""
    try:
        return releases.load(paths, release_id)
    except NotReady:
        return None


def mend_links(service: Service, keep: str | None = None) -> None:
    """Before a transaction ends: repair the unit's links and the front's, which somebody may have changed
    meanwhile, and stop every server but the current release's.

    + keep: this one sleeps on

    A failure is only reported: the right release serves, and the next switch refuses with the reason.
    """
    try:
        if service.paths.linked(service.paths.current) is not None:
            service.mend_links()
            service.mend_front()
            service.stop_others(keep)
    except (systemd.SystemdError, OSError) as problem:
        service.say(f"{service.paths.unit} could not be enabled again: {problem}")
