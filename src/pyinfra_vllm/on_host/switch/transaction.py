"""The switch: replace a service's current release by another, or put the current one back.

Until `activate` nothing that runs is touched. From `activate` on there are two ways to end, commit and roll
back, and the journal says at every moment which one a recovery has to finish (see recovery.py).
"""

from __future__ import annotations

import functools
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from ..bench import probe
from ..bench.record import Phase, Record
from ..gate import gate, in_turns, precision, soak, turns
from ..gate.in_turns import InTurns
from ..gate.noise import Noise
from ..gate.verdict import FAIL, INCONCLUSIVE, PASS, Verdict
from ..server import carried_cache, gpu_memory, hooks, kernel, root_cause, systemd
from ..server import release as releases
from ..server.release import NotReady, Release
from ..server.service import NotServing, PortTaken, Service, Stopped
from ..staging import chat_template, compiled, pages
from ..state import durable, transactions
from ..state.evidence import Evidence
from ..state.journal import Journal
from ..state.lock import exclusive
from ..state.paths import ServicePaths
from . import outcomes, pair, recovery, rollback, rounds, saturation, standby
from .order import ROLLBACK, ROLLOUT, TRIAL, Order
from .two_servers import Failed

COMMITTED, ROLLED_BACK, DEFERRED, REFUSED = "committed", "rolled_back", "deferred", "refused"
INTERRUPTED, RESTORE_FAILED = recovery.INTERRUPTED, transactions.RESTORE_FAILED
TRIED, FAILED = recovery.TRIED, "failed"  # a trial: with a verdict, and without one
SERVING, SILENT, DOWN = "serving", "silent", "down"  # what the old release did when the transaction began
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


class Worse(Exception):
    """The new release must not stay. Carries the verdict, if it came to one."""

    def __init__(self, message: str, verdict: Verdict | None = None) -> None:
        super().__init__(message)
        self.verdict = verdict


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


class Transaction:
    """The base of every transaction: its order, its record and its service.

    Whoever runs it holds the lock.
    """

    def __init__(self, order: Order, paths: ServicePaths) -> None:
        self.order = order
        self.paths = paths
        self.criteria = gate.Criteria.from_dict(order.criteria)
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        self.evidence = Evidence(paths, f"{stamp}-{order.release}")
        self.journal = Journal(paths.journal, self.evidence.tx)
        self.service = Service(paths, self.evidence.say)
        self.hooks = hooks.Hooks(paths, self.journal)
        self.log: list[str] = []  # of the service since the last start of ours
        self.last_words: list[str] = []  # why that start failed, as its log says it
        self.settings = probe.Settings.from_criteria(self.criteria)
        self.old_id: str | None = None  # what is current; where that link is lost, what runs
        self.old_was = DOWN

    def _begin(self) -> None:
        """Finish what the last transaction left, and write down what this one is to do."""
        ended = recovery.finish_last(self.paths, self.evidence.say)
        recovery.settle(self.paths, self.evidence.say, ended)
        if ended == RESTORE_FAILED:
            recovery.give_up_last(self.paths, self.order.release)
        self.hooks.adopt(self.order.hooks, self.order.release)
        self.old_id = self.paths.linked(self.paths.current) or self.service.running_release()
        self.old_was = self._old_state()
        order = self.order
        self.journal.write(
            "begin",
            "done",
            **{"from": self.old_id, "to": order.release},
            purpose=order.purpose,
            ready_timeout_s=order.ready_timeout_s,
            soak_s=self.criteria.soak_s if order.purpose == ROLLOUT else 0.0,
            old_was=self.old_was,
            operator=order.operator,
            reason=order.reason,
            overrides=list(order.overrides),
        )
        self.hooks.notify(hooks.BEGIN, f"the {order.purpose} of release {order.release} begins")

    def _old_state(self) -> str:
        """The old release's state before anything is touched: a baseline that is missing later is judged by
        it.
        """
        try:
            old = releases.load(self.paths, self.old_id or "")
        except NotReady:
            return DOWN if self.service.down else SILENT
        if self.service.serves(old):
            return SERVING
        return DOWN if self.service.down else SILENT

    def _share_phases(self, *releases: Release) -> None:
        """Measure each of these releases at the same numbers of requests at once, saturation at what all of
        them admit.
        """
        self.settings = probe.Settings.from_criteria(self.criteria, saturation.admitted(*releases))

    def _measure(self, release: Release, name: str, noise: Noise | None = None, **how: Any) -> Record:
        """Measure the release that runs now, until it is known precisely enough or its time is up.

        + noise: what calibration found; where margins are wider for it, less precision is enough
        + how: pairs it with the other side, or extends an earlier record (probe.measure)
        """
        criteria = self.criteria.at(max(self.settings.concurrency))
        measured = probe.measure(
            self.service.client(release),
            self.settings,
            progress=lambda line: self.evidence.say_how_far(f"{name}: {line}"),
            enough=functools.partial(precision.settled, criteria=criteria, noise=noise),
            **how,
        )
        written = measured.as_dict()
        self.evidence.keep(name, written)
        return Record.read(written, name)  # a server may answer with numbers that no gate can compare

    def _end(self, outcome: str, reason: str, verdict: Verdict | None = None) -> str:
        untouched = outcome in (DEFERRED, REFUSED)
        if not untouched:
            rollback.mend_links(self.service)
        still_drained = ""
        if self.hooks.drained:
            still_drained = recovery.undrain_if_serving(self.hooks, self.service, untouched)
        reason = "; ".join(filter(None, (reason, still_drained)))
        fields: dict[str, Any] = {"outcome": outcome, "reason": reason}
        if verdict:
            fields["verdict"] = verdict.verdict
        if self.last_words:
            fields["log"] = self.last_words
        self.hooks.tell_end(outcome, reason, fields.get("verdict"))
        rollback.release_reserve(self.paths)
        self.journal.write("end", "done", **fields)
        self.evidence.close(self.journal.entries())
        return outcome


class Switch(Transaction):
    """One switch, in named steps."""

    def __init__(self, order: Order, paths: ServicePaths) -> None:
        super().__init__(order, paths)
        self.old: Release | None = None
        self.before: Record | None = None
        self.lost_baseline = ""  # why there is none, though the old release served when the switch began
        self.after: Record | None = None
        self.candidate = self.service  # asks the unit that the new release runs in
        self.turns: standby.Turns | None = None  # where the old release sleeps meanwhile

    def run(self) -> str:
        self._begin()
        try:
            new = self._prove_both_ways()
            self.hooks.drain()
            self._measure_before()
            self._ask_canary()
            self._last_start()
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
        self._settle(
            new
        )  # where the disk refuses that, the proven release stays and recovery completes its record
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
            self.service.no_foreign_unit()
            if self.order.purpose != ROLLBACK:
                result.update(chat_template.check(new))
            result.update(self._carry_cache(new))
            if self.order.purpose != ROLLBACK:  # which must not wait for a disk
                known = self.old is not None and self.old.runtime == new.runtime
                result["read_ahead"] = pages.read_ahead(new.checkpoint, None if known else new.runtime)
        self._choose_way(new)
        self._share_phases(new, *filter(None, [self.old]))
        self.evidence.keep_release(new.id)
        return new

    def _choose_way(self, new: Release) -> None:
        """Whether the old release sleeps while the new one is judged, and if not, why."""
        problem = standby.refusal(self.paths, self.old, new)
        if problem is None:
            return
        if not problem and self.old and not self.service.serves(self.old):
            problem = "the old release does not serve"
        self.journal.write("standby", "note", standby=not problem, because=problem)
        if not problem and self.old:
            start_s = self.order.ready_timeout_s
            self.turns = standby.Turns(self.service, self.journal, self.old, new, start_s)
            self.candidate = Service(self.paths, self.evidence.say, self.paths.server_unit(new.id))

    def _carry_cache(self, new: Release) -> dict[str, str]:
        """Compiled code for a release that was never started: of a host that runs it, or else of the old
        release. Without any it compiles for itself.
        """
        paths = self.paths
        brought = paths.carried_cache(new.id)
        donor = durable.read_json(brought / compiled.LISTED, {}).get("from")
        if donor is not None:
            noted, cache, origin = brought / compiled.LISTED, brought / compiled.FILES, f"host {donor}"
        elif self.old is not None:
            noted, cache = paths.noted_cache(self.old.id), paths.own_cache(self.old.id)
            origin = f"release {self.old.id}"
        else:
            return {}
        try:
            count, size = carried_cache.carry(noted, cache, paths.own_cache(new.id), new.user)
        except (OSError, ValueError, KeyError) as error:
            return {"cache": f"nothing was carried from {origin}: {error}"}
        finally:
            shutil.rmtree(brought, ignore_errors=True)
        return {"cache": f"{count} files, {size >> 20} MiB carried from {origin}"} if count else {}

    def _note_cache(self, release: Release) -> None:
        """Notes the files that the next release may take over; later ones are not carried."""
        try:
            carried_cache.note(self.paths.own_cache(release.id), self.paths.noted_cache(release.id))
        except OSError as error:
            self.evidence.say(f"the cache could not be noted, so the next release compiles anew: {error}")

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

    def _measure_before(self) -> None:
        if self.old is None or self.order.purpose == ROLLBACK:
            return
        with self.journal.step(
            "measure-before", release=self.old.id, limit_s=self.criteria.longest_s
        ) as result:
            silent = self._silence_of(self.old)
            if silent and self.old_was == SERVING:
                result["baseline"] = (
                    f"none: the old release served when the switch began, and stopped ({silent})"
                )
                self.lost_baseline = silent
                return
            if silent:
                result["baseline"] = (
                    f"none: the old release serves no tokens, so nothing can be worse ({silent})"
                )
                return
            self.before = self._measure_well(self.old)
            result["summary"] = probe.summary(self.before)
            if self.service.down:
                self.lost_baseline = f"{self.paths.unit} was stopped while it was measured"
                result["baseline"] = self.lost_baseline

    def _ask_canary(self) -> None:
        """Record the old release's canary answer before its first sleep."""
        if self.turns:
            self.turns.keep_canary(pair.OLD)

    def _measure_well(self, old: Release) -> Record:
        """The baseline, measured beyond its budget where it varies so much that it could not resolve the
        margins: once the old release is stopped, its side of the doubt can't be measured away any more. Never
            beyond the last start.
        """
        noise = self._noise()
        found = self._measure(old, "before", noise)
        criteria = self.criteria.at(max(self.settings.concurrency))
        left = precision.left_s(criteria, found, _until(self.order.last_start))
        if left > 1.0 and found.plan and not precision.settled(found.phases, criteria, noise):
            self.evidence.say(f"before: it varies too much to judge by: measured on for up to {left:.0f} s")
            found = self._measure(old, "before", noise, extend=found, deadline=time.monotonic() + left)
        return found

    def _noise(self) -> Noise | None:
        """The noise that a calibration of this service found. Raises RecordError for a damaged file."""
        found = durable.read_json(self.paths.noise)
        return None if found is None else Noise.read(found, self.paths.noise.name)

    def _silence_of(self, old: Release) -> str:
        """Why the old release can't be measured; empty where it generates tokens, if only after a while.

        One that systemd has just restarted is silent for minutes, and as good as ever afterwards.
        """
        if self.service.serves(old):
            return ""
        if self.service.down:
            return f"{self.paths.unit} is down"
        try:
            self.service.wait_until_serving(old, self.order.ready_timeout_s, self.service.crashes)
        except NotServing as problem:
            return str(problem)
        return ""

    def _last_start(self) -> None:
        with self.journal.step("window", last_start=self.order.last_start):
            if self.order.last_start is not None and time.time() > self.order.last_start:
                raise TooLate(
                    "the window's last start has passed: a switch that began now might have to be undone"
                    " after it closes. Everything is staged; the next run inside a window switches."
                )

    def _reserve_rollback(self, new: Release) -> None:
        """Just before anything is touched: what held at the beginning still holds, and going back will lack
        nothing.
        """
        with self.journal.step("reserve-rollback", release=self.old_id):
            problem = self.service.refused()
            if problem:
                raise NotReady(f"{problem}. Nothing was touched.")
            self.service.no_foreign_listener(new)
            self.service.no_foreign_unit()
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
            self._note_cache(new)
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
                turns.reach(pair.TURN_TO_NEW)
            except Failed as problem:
                self._keep_log(cursor)
                raise NotServing(str(problem)) from problem
            return cursor

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

    def _judge(self, new: Release, checked: Mapping[str, Any]) -> Verdict:
        with self.journal.step("measure-after", release=new.id, limit_s=self.criteria.longest_s) as result:
            noise = self._noise()
            after = self._measure(new, "after", noise, like=self.before)
            verdict = self._verdict(new, after, checked, noise)
            while not self._takes_turns and gate.wants_more(
                verdict, self.before, after, self.criteria, self._left_s(after)
            ):
                how = {"like": self.before, "deadline": time.monotonic() + self._left_s(after)}
                after = self._measure(new, "after", noise, extend=after, **how)
                verdict = self._verdict(new, after, checked, noise)
            result["summary"] = probe.summary(after)
        measured = self._measure_in_turns(new)
        if measured and measured.enough:
            verdict = self._verdict(new, after, checked, noise, measured)
        self.after = after
        self.evidence.keep("verdict", verdict.as_dict())
        self.journal.write("judge", "done", **verdict.as_dict(), criteria=self.criteria.as_dict())
        if not gate.may_stay(verdict, self.criteria):
            raise Worse(verdict.conclusion(), verdict)
        if not self.candidate.serves(new):
            raise Worse("it stopped generating tokens after the measurement", verdict)
        self._tell(verdict)
        return verdict

    @property
    def _takes_turns(self) -> bool:
        """Whether the two releases can be measured in turns."""
        return bool(self.turns and self.before and self.before.plan and not self.lost_baseline)

    def _measure_in_turns(self, new: Release) -> InTurns | None:
        """Rounds in which the old and the new release take turns; None where they can't. Ends with the new
        one awake.
        """
        if not self._takes_turns or self.turns is None or self.old is None:
            return None
        sides = {turns.OLD: self.old, turns.NEW: new}
        budget_s = min(self.criteria.budget_s, _until(self.order.measure_until))
        criteria = self.criteria.at(max(self.settings.concurrency))
        with self.journal.step("turns", release=new.id, limit_s=budget_s) as result:
            try:
                found = rounds.measure(
                    self.turns.reach,
                    lambda side, number, until: self._one_round(sides[side], number, until),
                    lambda measured: in_turns.settled(measured, criteria),
                    budget_s,
                    self.evidence.tx,
                )
            except Failed as problem:
                raise NotServing(str(problem)) from problem
            result.update(turns=found.turns, blocks=len(found.blocks))
        self.evidence.keep("turns", found.as_dict())
        return found

    def _one_round(self, release: Release, number: int, until: float) -> Sequence[Phase]:
        assert self.before is not None
        say = self.evidence.say_how_far
        client = self.service.client(release)
        return probe.one_round(
            client, self.settings, self.before, number, until, lambda line: say(f"turns: {line}")
        )

    def _tell(self, verdict: Verdict) -> None:
        """People hear of a verdict when nothing waits for it any more: a slow webhook must not keep a worse
        release serving.
        """
        reasons = list(verdict.reasons)
        self.hooks.notify(hooks.VERDICT, verdict.conclusion(), verdict=verdict.verdict, reasons=reasons)

    def _left_s(self, after: Record) -> float:
        return precision.left_s(self.criteria, after, _until(self.order.measure_until))

    def _verdict(
        self,
        new: Release,
        after: Record,
        checked: Mapping[str, Any],
        noise: Noise | None,
        measured: InTurns | None = None,
    ) -> Verdict:
        verdict = gate.judge(
            self.before,
            after,
            self.criteria,
            noise=noise,
            kernel=checked,
            gpu_memory_mib=gpu_memory.used_mib(new.gpus),
            turns=measured,
        )
        if self.lost_baseline and verdict.verdict == PASS:
            reason = (
                "the old release served when the switch began and was down when it was to be measured, so"
                f" nobody can tell whether this one is worse ({self.lost_baseline})"
            )
            return replace(verdict, verdict=INCONCLUSIVE, reasons=(reason, *verdict.reasons))
        return verdict

    def _settle(self, new: Release) -> None:
        """Brings the links and lists in line with a commit."""
        if self.turns:
            self.turns.reach(pair.FORWARD)  # whoever waits for the old release is answered first
            self.service.stop_others()
        self.service.mend_links()  # somebody may have disabled the unit meanwhile
        given_up = (self.order.reason or outcomes.BY_HAND) if self.order.purpose == ROLLBACK else None
        outcomes.settle_commit(self.paths, self.old_id, new.id, given_up, self.journal.tx)
        self.hooks.undrain()

    def _soak(self, new: Release) -> str:
        """Watch the release under real traffic, where that is asked for; returns what its operator must be
        alerted to.
        """
        if not self.criteria.soak_s or self.order.purpose == ROLLBACK:
            return ""
        with self.journal.step("soak", release=new.id, limit_s=self.criteria.soak_s) as result:
            client = self.service.client(new)
            watched = soak.soak(client, self.criteria, self.after, progress=self.evidence.say_how_far)
            result.update(vars(watched))
        if watched.verdict == PASS:
            return ""
        reasons = "; ".join(watched.reasons)
        if watched.verdict == FAIL and self.criteria.soak_action == "rollback":
            raise Worse(reasons, Verdict(FAIL, (), ()))
        return f"alert from the soak: {reasons}"

    def _go_back(self, new: Release, reason: Exception) -> str:
        """Returns `restore_failed` without an end where the old release does not serve: the recovery unit
        goes on trying.
        """
        text = str(reason) or type(reason).__name__
        verdict = reason.verdict if isinstance(reason, (Worse, TrialOver)) else None
        limit_s = rollback.start_limit_s(self.order.ready_timeout_s)
        silent = isinstance(reason, NotServing) and not isinstance(reason, (PortTaken, Stopped))
        if silent:
            self.last_words = root_cause.explain(self.log)
        if self.order.purpose == TRIAL:
            return self._end_trial(new, text, _of_trial(reason, verdict, silent))
        rejects = silent or bool(verdict and verdict.verdict == FAIL)
        outcome = rollback.restore(self.service, self.journal, self.old_id, new.id, limit_s, text, rejects)
        if rejects:
            criteria = None if silent else self.criteria.as_dict()
            outcomes.reject(self.paths, new.id, text, self.journal.tx, criteria)
        if verdict and verdict.reasons:
            self._tell(verdict)
        if outcome == RESTORE_FAILED:
            recovery.settle(self.paths, self.evidence.say, outcome)
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
            recovery.settle(self.paths, self.evidence.say, outcome)
            return outcome
        return self._end(TRIED if verdict else FAILED, text, verdict)


def _of_trial(reason: Exception, verdict: Verdict | None, silent: bool) -> Verdict | None:
    """The answer of a trial; None where something else ended it. One that does not start, or does not serve
    to the end, fails.
    """
    if silent or (isinstance(reason, Worse) and verdict and verdict.verdict == PASS):
        return Verdict(FAIL, verdict.metrics if verdict else (), (str(reason),))
    return verdict


def _until(moment: float | None) -> float:
    """Seconds until then, by Unix time; without end where there is none."""
    return math.inf if moment is None else moment - time.time()
