"""Measures one unchanged service several times across restarts, and keeps its noise on the host.

The service's release never changes: the current one is restarted inside the window, as often as the order
says. At the end it generates tokens again, or the outcome says that it does not. recovery.py ends
a killed one.
"""

from __future__ import annotations

import time
from typing import Any

from ..bench import phases
from ..bench.record import Record
from ..gate.calibration import calibration
from ..gate.noise import LEAST_RUNS, Noise
from ..server import release as releases
from ..server import root_cause
from ..server.release import NotReady, Release
from ..server.service import NotServing
from ..state import durable
from ..state.journal import now
from ..state.lock import exclusive
from ..state.paths import ServicePaths
from . import rollback, unfinished
from .base import DEFERRED, FAILED, REFUSED, RESTORE_FAILED, Transaction
from .order import Order

CALIBRATED = "calibrated"
EXIT_CODES = {CALIBRATED: 0, FAILED: 1, REFUSED: 1, DEFERRED: 4, RESTORE_FAILED: 5}


def calibrate(order: Order, paths: ServicePaths) -> str:
    """Carry the order out and return the outcome. Raises lock.Held where another transaction runs."""
    with exclusive(paths.lock, order.operator, f"the calibration of release {order.release}"):
        return Calibrating(order, paths).run()


class Calibrating(Transaction):
    """One calibration, in named steps. Its lock is held by the caller."""

    def run(self) -> str:
        self._begin()
        try:
            release = self._prove()
            if not self._may_restart():
                return self._end(DEFERRED, self._too_few(0))
            self.hooks.drain()
        except Exception as reason:  # whatever it is: nothing was touched, and the record says why
            return self._end(REFUSED, str(reason) or type(reason).__name__)
        try:
            records = self._runs(release)
            if len(records) < LEAST_RUNS:
                return self._end(DEFERRED, self._too_few(len(records)))
            return self._end(CALIBRATED, self._keep(release, calibration(records)))
        except Exception as reason:  # whatever it is: it may have left the service stopped
            return self._serve_again(release, str(reason) or type(reason).__name__)

    def _prove(self) -> Release:
        """Check that the order's release runs now and could be started again."""
        current = self.paths.linked(self.paths.current)
        with self.journal.step("prove-way-back", release=current):
            if current is None or current != self.order.release:
                raise NotReady(
                    f"release {self.order.release} is not what this service points to: {current} is"
                )
            release = releases.load(self.paths, current)
            self._share_phases(release)
            releases.prove(self.paths, release)
            if not self.service.serves(release):
                raise NotServing(
                    f"release {release.id} serves no tokens now, so there is nothing to calibrate"
                )
            self.service.stop_others()  # one that still sleeps would be part of what is measured
        return release

    def _runs(self, release: Release) -> list[Record]:
        """One record of what runs now, then one after each restart that the window still has room for."""
        records = [self._measured(release, 1)]
        while len(records) < self.order.runs and self._may_restart():
            self._restart(release)
            records.append(self._measured(release, len(records) + 1, like=records[0]))
        return records

    def _may_restart(self) -> bool:
        return self.order.last_start is None or time.time() <= self.order.last_start

    def _measured(self, release: Release, number: int, **how: Any) -> Record:
        with self.journal.step("measure-run", run=number, of=self.order.runs) as result:
            record = self._measure(release, f"run-{number}", **how)
            result["summary"] = phases.summary(record)
            return record

    def _restart(self, release: Release) -> None:
        limit_s = self.order.ready_timeout_s
        with self.journal.step("restart", release=release.id, limit_s=limit_s) as result:
            self.service.stop(release)
            cursor = self.service.start()
            try:
                after_s = self.service.wait_until_serving(release, limit_s)
            except NotServing:
                self.log = self.service.log(cursor)
                self.evidence.keep_log(self.log)
                self.last_words = root_cause.explain(self.log)
                raise
            result["after_s"] = round(after_s, 1)

    def _keep(self, release: Release, noise: Noise) -> str:
        with self.journal.step("noise", release=release.id):
            durable.write_json(self.paths.noise, {**noise.as_dict(), "release": release.id, "at": now()})
        return str(noise)

    def _too_few(self, runs: int) -> str:
        return (
            f"the window's last start came after {runs} of {self.order.runs} runs, and {LEAST_RUNS} are the"
            " least; nothing was stored. Begin earlier in the window, or override it with --now."
        )

    def _serve_again(self, release: Release, reason: str) -> str:
        limit_s = rollback.start_limit_s(self.order.ready_timeout_s)
        problem = rollback.bring_up(self.service, release.id, limit_s)
        if problem:
            problem = f"{reason}; it did not come back: {problem}"
            rollback.note_failure(self.journal, problem, None, words=self.last_words)
            unfinished.settle(self.paths, self.evidence.say, RESTORE_FAILED)
            return RESTORE_FAILED  # without an end: the recovery unit goes on trying
        return self._end(FAILED, f"{reason}; release {release.id} serves, and nothing was stored")
