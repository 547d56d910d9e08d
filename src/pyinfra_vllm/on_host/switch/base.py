"""The base of a switch and a calibration: order, record, service, how they begin, measure and end."""

from __future__ import annotations

import functools
from datetime import datetime, timezone
from typing import Any

from ..bench import probe
from ..bench.criteria import Criteria
from ..bench.plan import Settings
from ..bench.record import Record
from ..gate import precision
from ..gate.noise import Noise
from ..gate.verdict import Verdict
from ..server import hooks
from ..server import release as releases
from ..server.release import NotReady, Release
from ..server.service import Service
from ..state import transactions
from ..state.evidence import Evidence
from ..state.journal import Journal
from ..state.paths import ServicePaths
from . import rollback, saturation, standby, unfinished
from .order import ROLLOUT, Order

COMMITTED, ROLLED_BACK, DEFERRED, REFUSED = "committed", "rolled_back", "deferred", "refused"
INTERRUPTED, RESTORE_FAILED = unfinished.INTERRUPTED, transactions.RESTORE_FAILED
TRIED, FAILED = unfinished.TRIED, "failed"  # a trial: with a verdict, and without one
SERVING, SILENT, DOWN = "serving", "silent", "down"  # what the old release did when the transaction began


class Transaction:
    """The base of every transaction: its order, its record and its service.

    Whoever runs it holds the lock.
    """

    def __init__(self, order: Order, paths: ServicePaths) -> None:
        self.order = order
        self.paths = paths
        self.criteria = Criteria.from_dict(order.criteria)
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        self.evidence = Evidence(paths, f"{stamp}-{order.release}")
        self.journal = Journal(paths.journal, self.evidence.tx)
        self.service = Service(paths, self.evidence.say)
        self.hooks = hooks.Hooks(paths, self.journal)
        self.log: list[str] = []  # of the service since the last start of ours
        self.last_words: list[str] = []  # why that start failed, as its log says it
        self.settings = Settings.from_criteria(self.criteria)
        self.old_id: str | None = None  # what is current; where that link is lost, what runs
        self.old_was = DOWN

    def _begin(self) -> None:
        """Finish what the last transaction left, and write down what this one is to do."""
        ended = unfinished.finish_last(self.paths, self.evidence.say)
        unfinished.settle(self.paths, self.evidence.say, ended)
        if ended == RESTORE_FAILED:
            unfinished.give_up_last(self.paths, self.order.release)
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
        """The old release's state before anything is touched, by which a baseline missing later is judged."""
        try:
            old = releases.load(self.paths, self.old_id or "")
        except NotReady:
            return DOWN if self.service.down else SILENT
        if self.service.serves(old):
            return SERVING
        return DOWN if self.service.down else SILENT

    def _share_phases(self, served: Release) -> None:
        """Measure both sides at the same numbers of requests at once: saturation at what the one that serves
        admits. Where the other admits fewer, the rest waits, as its clients would.
        """
        self.settings = Settings.from_criteria(self.criteria, saturation.admitted(served))

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
            rollback.mend_links(self.service, standby.kept(self.journal.entries()))
        still_drained = ""
        if self.hooks.drained:
            still_drained = unfinished.undrain_if_serving(self.hooks, self.service, untouched)
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
