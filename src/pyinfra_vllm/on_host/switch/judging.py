"""Measures the old release, then the new one, and judges the new one by both. Changes nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..bench import phases, probe
from ..bench.record import Phase, Record
from ..gate import gate, in_turns, precision, turns
from ..gate.in_turns import InTurns
from ..gate.noise import Noise
from ..gate.verdict import INCONCLUSIVE, PASS, Verdict
from ..server import gpu_memory, hooks
from ..server.release import Release
from ..server.service import NotServing
from ..state import durable
from ..state import transactions as journaled
from ..state.paths import ServicePaths
from . import rounds, standby
from .base import SERVING, Transaction
from .order import ROLLBACK, Order
from .two_servers import Failed

# For what a measurement takes beyond its deadline (load.ABORT_GRACE_S in each phase), and what comes between
# it and the stop. An estimate.
OVERTIME_S = 15.0


class Worse(Exception):
    """The new release must not stay. Carries the verdict, if it came to one."""

    def __init__(self, message: str, verdict: Verdict | None = None) -> None:
        super().__init__(message)
        self.verdict = verdict


class Judging(Transaction):
    """A transaction that compares two releases."""

    def __init__(self, order: Order, paths: ServicePaths) -> None:
        super().__init__(order, paths)
        self.old: Release | None = None
        self.before: Record | None = None
        self.lost_baseline = ""  # why there is none, though the old release served when the switch began
        self.after: Record | None = None
        self.candidate = self.service  # asks the unit that the new release runs in
        self.turns: standby.Turns | None = None  # where the old release sleeps meanwhile

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
            result["summary"] = phases.summary(self.before)
            if self.service.down:
                self.lost_baseline = f"{self.paths.unit} was stopped while it was measured"
                result["baseline"] = self.lost_baseline

    def _measure_well(self, old: Release) -> Record:
        """The baseline, measured beyond its budget where it varies so much that it could not resolve the
        margins: once the old release is stopped, its side of the doubt can't be measured away any more. It
        ends in time for the last stop. One that only sleeps is measured again, in turns.
        """
        noise = self._noise()
        found = self._measure(old, "before", noise)
        if self.turns:
            return found
        criteria = self.criteria.at(max(self.settings.concurrency))
        left = precision.left_s(criteria, found, _until(self.last_stop) - OVERTIME_S)
        if left > 1.0 and found.plan and not precision.settled(found.phases, criteria, noise):
            self.evidence.say(f"before: it varies too much to judge by: measured on for up to {left:.0f} s")
            found = self._measure(old, "before", noise, extend=found, deadline=time.monotonic() + left)
        return found

    @property
    def last_stop(self) -> float | None:
        """Unix time after which the old release must not be stopped: the last start, and the part of the
        estimate behind it that is for the baseline, which has been measured by then.
        """
        start = self.order.last_start
        return None if start is None else start + self.order.baseline_s

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
            result["summary"] = phases.summary(after)
        # Nobody is to be served by what is worse beyond doubt for as long as turns take.
        measured = None if gate.beyond_doubt(verdict) else self._measure_in_turns(new)
        if measured:
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
        """Rounds of the old and new release in turns; None where impossible. Ends with the new one awake."""
        if not self._takes_turns or self.turns is None or self.old is None:
            return None
        sides = {turns.OLD: self.old, turns.NEW: new}
        left_s = _until(self.order.measure_until)
        budget_s, longest_s = min(self.criteria.budget_s, left_s), min(self.criteria.longest_s, left_s)
        criteria = self.criteria.at(max(self.settings.concurrency))
        again = self.criteria.restarts > 1
        again_s = 2 * self._start_s() if again else 0.0

        def left_open(measured: InTurns) -> bool:
            undecided = in_turns.left_open(measured, criteria, self._noise())
            if undecided:
                self.evidence.say(
                    f"turns: undecided after {len(measured.blocks)} blocks: measured on for up to"
                    f" {longest_s:.0f} s in all"
                )
            return undecided

        taken = rounds.Rounds(
            self.turns.reach,
            lambda side, number, until: self._one_round(sides[side], number, until),
            lambda measured: in_turns.settled(measured, criteria),
            left_open,
            self.turns.keep_canary,
            self.evidence.tx,
        )

        def in_time() -> bool:
            return again_s + longest_s / 2 < _until(self.order.measure_until)

        with self.journal.step("turns", release=new.id, limit_s=longest_s + again_s) as result:
            try:
                found = taken.measure(budget_s, longest_s, in_time if again else None)
            except Failed as problem:
                raise NotServing(str(problem)) from problem
            result.update(turns=found.turns, blocks=len(found.blocks), starts=found.starts)
            if taken.cut_short:
                self.evidence.say(f"turns: {taken.cut_short}")
                result["because"] = taken.cut_short
        self.evidence.keep("turns", found.as_dict())
        return found if found.enough else replace(found, ended=self._why_few(taken, longest_s))

    def _why_few(self, taken: rounds.Rounds, longest_s: float) -> str:
        """Why there are fewer blocks than a verdict needs, with the setting that would allow as many."""
        if taken.cut_short:
            return taken.cut_short
        if longest_s < self.criteria.longest_s:
            return "the window had no time for more"
        room = self.criteria.allowing(turns.LEAST_BLOCKS * taken.block_s)
        return f"a block took {taken.block_s:.0f} s: {room} has room for them"

    def _start_s(self) -> float:
        """Seconds that the start of the new release took, with the sleep of the old one before it."""
        known = journaled.Transaction(self.journal.entries()).turns
        return journaled.took_s(known, "activate intended", "ready done")

    def _one_round(self, release: Release, number: int, until: float) -> Sequence[Phase]:
        assert self.before is not None
        say = self.evidence.say_how_far
        client = self.service.client(release)
        return probe.one_round(
            client,
            self.settings,
            self.before,
            number,
            self.criteria.budget_s * turns.ROUND_SHARE,
            until,
            lambda line: say(f"turns: {line}"),
        )

    def _tell(self, verdict: Verdict) -> None:
        """Sent when nothing waits for the verdict: a slow webhook must not keep a worse release serving."""
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


def _until(moment: float | None) -> float:
    """Seconds until then, by Unix time; without end where there is none."""
    return math.inf if moment is None else moment - time.time()
