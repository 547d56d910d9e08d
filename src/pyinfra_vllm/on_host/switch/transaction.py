"""The switch: replace a service's current release by another, or put the current one back.

Until `activate` nothing that runs is touched. From `activate` on there are two ways to end, commit and roll
back, and the journal says at every moment which one a recovery has to finish (see unfinished.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..gate import soak
from ..gate.verdict import FAIL, PASS, Verdict
from ..server import kernel, root_cause, systemd
from ..server import release as releases
from ..server.release import NotReady, Release
from ..server.service import NotServing, PortTaken, Service, Stopped
from ..staging import chat_template, pages
from ..state.lock import exclusive
from ..state.paths import ServicePaths
from . import compile_caches, outcomes, pair, rollback, standby, unfinished
from .base import COMMITTED, DEFERRED, DOWN, FAILED, INTERRUPTED, REFUSED, RESTORE_FAILED, ROLLED_BACK, TRIED
from .judging import Judging, Worse
from .order import ROLLBACK, TRIAL, Order
from .two_servers import Failed, Stuck

EXIT_CODES = {
    COMMITTED: 0,
    TRIED: 0,
    ROLLED_BACK: 1,
    REFUSED: 1,
    INTERRUPTED: 1,
    FAILED: 1,
    DEFERRED: 4,
    RESTORE_FAILED: 5,
}


class TrialOver(Exception):
    """The trial has its verdict. Whatever that is, the old release comes back."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.conclusion())
        self.verdict = verdict


class TooLate(Exception):
    """The window's last start has passed. Nothing was touched."""


def switch(order: Order, paths: ServicePaths) -> str:
    """Carry the order out and return the outcome. Raises lock.Held where another transaction runs."""
    with exclusive(paths.lock, order.operator, f"the {order.purpose} of release {order.release}"):
        return Switch(order, paths).run()


class Switch(Judging):
    """One switch, in named steps."""

    def run(self) -> str:
        self._begin()
        try:
            new = self._prove_both_ways()
            self._in_time(self.order.last_start)
            self.hooks.drain()
            self._measure_before()
            self._ask_canary()
            self._last_stop()
            self._reserve_rollback(new)
        except TooLate as reason:
            return self._end(DEFERRED, str(reason))
        except Exception as reason:  # whatever it is: nothing was touched, and the record says why
            return self._end(REFUSED, str(reason) or type(reason).__name__)
        try:
            verdict = self._go_forward(new)
            if self.order.purpose == TRIAL:
                raise TrialOver(verdict)
            self._point(new)
            self.journal.write("commit", "done", release=new.id, verdict=verdict.verdict)
        except Exception as reason:  # whatever it is: from `activate` on the only other way is back
            return self._go_back(new, reason)
        try:
            # Where the disk refuses that, the proven release stays and recovery completes its record.
            self._settle(new)
        except (Failed, Stuck) as reason:
            return self._go_back(new, Worse(f"after its commit {reason}", verdict))
        try:
            alert = self._soak(new)
        except Exception as reason:
            return self._go_back(new, reason)
        return self._end(COMMITTED, "; ".join(filter(None, (verdict.conclusion(), alert))), verdict)

    def _prove_both_ways(self) -> Release:
        with self.journal.step("prove-way-back", release=self.old_id) as result:
            if self.old_id is not None:
                result.update(self._prove_way_back(self.old_id))
            if self.order.purpose == TRIAL and not (self.old and self.service.serves(self.old)):
                raise NotReady("no release serves that this one could be compared with, so nothing is tried")
        with self.journal.step("prove-way-forward", release=self.order.release) as result:
            new = releases.load(self.paths, self.order.release)
            if new.allow_code:
                result["allow_code"] = new.allow_code
            releases.prove(self.paths, new)
            releases.out_of_reach(new)
            self.service.no_foreign_listener(new)
            self.service.no_foreign_unit(new.id)
            if self.order.purpose != ROLLBACK:
                result.update(chat_template.check(new))
            result.update(compile_caches.carry(self.paths, self.old, new))
            if self.order.purpose != ROLLBACK:  # which must not wait for a disk
                known = self.old is not None and self.old.runtime == new.runtime
                result["read_ahead"] = pages.read_ahead(new.checkpoint, None if known else new.runtime)
        self._choose_way(new)
        self._share_phases(self.old if self.old and self.old_was != DOWN else new)
        self.evidence.keep_release(new.id)
        return new

    def _choose_way(self, new: Release) -> None:
        """Whether the old release sleeps while the new one is judged, and if not, why."""
        if self.order.purpose != ROLLBACK:
            self.service.stop_others()  # one that still sleeps has no part in this switch
        problem = standby.refusal(self.paths, self.old, new, self.service.asleep(new.id))
        if problem is None:
            return
        if not problem and self.old and not self.service.serves(self.old):
            problem = "the old release does not serve"
        self.journal.write("standby", "note", standby=not problem, because=problem)
        if not problem and self.old:
            start_s = self.order.ready_timeout_s
            self.turns = standby.Turns(self.service, self.journal, self.old, new, start_s)
            self.candidate = Service(self.paths, self.evidence.say, self.paths.server_unit(new.id))

    def _prove_way_back(self, old_id: str) -> dict[str, str]:
        """Raises NotReady where the rollback target is missing and the old release serves.

        If the old release is down anyway, a missing rollback target does not block the switch.
        """
        try:
            self.old = releases.load(self.paths, old_id)
            releases.prove(self.paths, self.old)
        except NotReady as problem:
            if self.service.serves(self.old) if self.old else not self.service.down:
                raise
            return {"nothing_to_lose": f"it serves nothing, and could not be started again: {problem}"}
        return {}

    def _ask_canary(self) -> None:
        """Record the old release's canary answer before its first sleep."""
        if self.turns:
            self.turns.keep_canary(pair.OLD)

    def _last_stop(self) -> None:
        """The baseline may have taken longer than the estimate has room for: its server was silent at first,
        or the drain was slow.
        """
        with self.journal.step("window", last_start=self.order.last_start, last_stop=self.last_stop):
            self._in_time(self.last_stop)

    def _in_time(self, limit: float | None) -> None:
        if limit is not None and time.time() > limit:
            raise TooLate(
                "the window's last start has passed: a switch that began now might have to be undone"
                " after it closes. Everything is staged; the next run inside a window switches."
            )

    def _reserve_rollback(self, new: Release) -> None:
        """Just before anything is touched: the first checks still hold, and a rollback has what it needs."""
        with self.journal.step("reserve-rollback", release=self.old_id):
            problem = self.service.refused()
            if problem:
                raise NotReady(f"{problem}. Nothing was touched.")
            self.service.no_foreign_listener(new)
            self.service.no_foreign_unit(new.id)
            rollback.reserve(self.paths, self.old_id, new.id)
            if self.turns:
                self.service.lay_server(new.id)

    def _go_forward(self, new: Release) -> Verdict:
        cursor = self._activate(new)
        limit_s = self.order.ready_timeout_s
        try:
            with self.journal.step("ready", release=new.id, limit_s=limit_s) as result:
                after_s = self.candidate.wait_until_serving(new, limit_s, unproven_since=cursor)
                result["after_s"] = round(after_s, 1)
            if self.turns:
                self.turns.keep_canary(pair.NEW)
            compile_caches.note(self.paths, new, self.evidence.say)
            if self.order.purpose == ROLLBACK:
                return Verdict(PASS, (), ("a rollback is judged by the generation check alone",))
            checked = self._check_kernel(new, cursor)
            return self._judge(new, checked)
        finally:
            self._keep_log(cursor)

    def _keep_log(self, cursor: str | None) -> None:
        """For people: what becomes of it must not hide why the release goes back."""
        try:
            self.log = self.candidate.log(cursor)
            self.evidence.keep_log(self.log)
        except Exception as error:
            self.evidence.say(f"the service's log could not be kept: {error}")

    def _activate(self, new: Release) -> str | None:
        """The point of no return: from here the journal demands an end."""
        ends: dict[str, Any] = {"from": self.old_id, "to": new.id}
        if self.turns:
            return self._turn_to_new(self.turns, ends)
        with self.journal.step("activate", **ends):
            if self._is_other_kind(new):
                self.service.stop(self.old or new)
                self.service.point_at(new.id)
            else:
                self.service.point_at(new.id)
                self.service.stop(self.old or new)
            return self.service.start()

    def _is_other_kind(self, new: Release) -> bool:
        """Whether the name of the old release's unit becomes an alias of another's, or the other way round:
        systemd must not see that of a unit that runs.
        """
        return self.old is not None and bool(self.old.sockets) != bool(new.sockets)

    def _turn_to_new(self, turns: standby.Turns, ends: dict[str, Any]) -> str | None:
        """The old release sleeps, the new one starts, and clients that waited are served by it."""
        with self.journal.step("activate", standby=True, **ends):
            cursor = systemd.log_cursor()
            try:
                self._reach_new(turns)
            except Failed as problem:
                self._keep_log(cursor)
                raise NotServing(str(problem)) from problem
            return cursor

    def _reach_new(self, turns: standby.Turns) -> None:
        """One that still sleeps since its own switch and fails to wake is started. Whoever goes back by hand
        wants it to serve, whether it can sleep or not, and whether the requests of the other one end or not.
        """
        slept = self.service.asleep(self.order.release)
        goal = pair.REPLACE if self.order.purpose == ROLLBACK else pair.ACTIVATE
        try:
            turns.reach(goal)
        except Failed as problem:
            if not slept:
                raise
            self.evidence.say(f"{problem}; so it is started")
            turns.reach(goal)

    def _point(self, new: Release) -> None:
        """With standby `current` is the old release until here, so that a power cut boots that."""
        if self.turns:
            with self.journal.step("point", release=new.id):
                self.service.point_at(new.id)

    def _check_kernel(self, new: Release, cursor: str | None) -> Mapping[str, Any]:
        with self.journal.step("kernel", release=new.id) as result:
            log = self.candidate.log_of_start(cursor)
            result.update(kernel.check(log, new.runtime_version, new.kernels))
            checked = dict(result)
            result["kv_cache"] = {
                "predicted": new.predicted_fit,
                "measured": self.candidate.kv_cache(new, log),
            }
            return checked

    def _settle(self, new: Release) -> None:
        """Brings the links and lists in line with a commit.

        Raises Failed or Stuck where the new release serves no more.
        """
        if self.turns:  # whoever waits for the old release is answered before that is stopped
            self.turns.reach(pair.KEEP if self._sleeps_on(self.turns) else pair.FORWARD)
            self._stop_others()
        self.service.mend_links()  # somebody may have disabled the unit meanwhile
        given_up = (self.order.reason or outcomes.BY_HAND) if self.order.purpose == ROLLBACK else None
        outcomes.settle_commit(self.paths, self.old_id, new.id, given_up, self.journal.tx)
        self.hooks.undrain()

    def _sleeps_on(self, turns: standby.Turns) -> bool:
        """Whether the old release is left asleep after the commit."""
        keep_s = self.order.standby_for_s
        if not keep_s or self.old_id is None or not turns.keep_asleep(keep_s):
            return False
        try:
            self.service.let_sleep(self.old_id)
        except (systemd.SystemdError, OSError) as problem:
            self.evidence.say(f"the old release is stopped: {problem}")
            return False
        return True

    def _stop_others(self) -> None:
        self.service.stop_others(standby.kept(self.journal.entries()))

    def _pause(self, seconds: float) -> None:
        """While it is watched: the old release sleeps no longer than it may."""
        time.sleep(seconds)
        if self.turns is None:
            return
        try:
            self._stop_others()
        except (systemd.SystemdError, OSError) as problem:
            self.evidence.say(f"the old release sleeps on, for it could not be stopped: {problem}")

    def _soak(self, new: Release) -> str:
        """Watch the release under real traffic, if asked for; returns what to alert its operator to."""
        if not self.criteria.soak_s or self.order.purpose == ROLLBACK:
            return ""
        limit_s, action = self.criteria.soak_s, self.criteria.soak_action
        with self.journal.step("soak", release=new.id, limit_s=limit_s, action=action) as result:
            client = self.service.client(new)
            say, pause = self.evidence.say_how_far, self._pause
            watched = soak.soak(client, self.criteria, self.after, progress=say, sleep=pause)
            result.update(vars(watched))
        if watched.verdict == PASS:
            return ""
        reasons = "; ".join(watched.reasons)
        if watched.verdict == FAIL and self.criteria.soak_action == "rollback":
            raise Worse(reasons, Verdict(FAIL, (), ()))
        return f"alert from the soak: {reasons}"

    def _go_back(self, new: Release, reason: Exception) -> str:
        """Returns `restore_failed` without an end if the old release does not serve: recovery goes on."""
        text = str(reason) or type(reason).__name__
        verdict = reason.verdict if isinstance(reason, (Worse, TrialOver)) else None
        limit_s = rollback.start_limit_s(self.order.ready_timeout_s)
        silent = isinstance(reason, NotServing) and not isinstance(reason, (PortTaken, Stopped))
        if silent:
            self.last_words = root_cause.explain(self.log)
        if self.order.purpose == TRIAL:
            return self._end_trial(new, text, _of_trial(reason, verdict, silent))
        rejects = silent or bool(verdict and verdict.verdict == FAIL)
        outcome = rollback.restore(
            self.service, self.journal, self.old_id, new.id, limit_s, text, rejects, silent
        )
        if rejects and not (silent and outcome == RESTORE_FAILED):  # neither starts: the host may be why
            criteria = None if silent else self.criteria.as_dict()
            outcomes.reject(self.paths, new.id, text, self.journal.tx, criteria)
        if verdict and verdict.reasons:
            self._tell(verdict)
        if outcome == RESTORE_FAILED:
            unfinished.settle(self.paths, self.evidence.say, outcome)
            return outcome
        return self._end(outcome, text, verdict)

    def _end_trial(self, new: Release, text: str, verdict: Verdict | None) -> str:
        """The old release comes back, and nothing is rejected: what a trial finds out is for people."""
        limit_s = rollback.start_limit_s(self.order.ready_timeout_s)
        word = verdict.verdict if verdict else None
        outcome = rollback.restore(
            self.service, self.journal, self.old_id, new.id, limit_s, text, verdict=word
        )
        if verdict:
            self._tell(verdict)
        if outcome == RESTORE_FAILED:
            unfinished.settle(self.paths, self.evidence.say, outcome)
            return outcome
        return self._end(TRIED if verdict else FAILED, text, verdict)


def _of_trial(reason: Exception, verdict: Verdict | None, silent: bool) -> Verdict | None:
    """A trial's answer; None if something else ended it. One that does not start or serve on fails."""
    if silent or (isinstance(reason, Worse) and verdict and verdict.verdict == PASS):
        return Verdict(FAIL, verdict.metrics if verdict else (), (str(reason),))
    return verdict
