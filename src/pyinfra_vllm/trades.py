"""Foresees the gate's verdict on a known trade between two kernels, before anything is switched.

Pure: figures in, words out.

The figures are the catalog's (`catalog/trades.yaml`); what counts as worse is the gate's own rule
(on_host/bench/criteria.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyinfra_vllm.on_host.bench.criteria import MAX, MOST, Criteria, margin_for

# By how much a host may differ from the measured one and the margins named here still let it pass.
UNLIKE = 0.05
Table = Mapping[str, Any]  # one entry of catalog/trades.yaml


@dataclass(frozen=True)
class Change:
    """One metric of one phase. `limit` None: it never decides."""

    phase: str
    metric: str
    before: float
    after: float
    limit: float | None
    passes: bool
    margin: float | None  # with which it would pass

    @property
    def ratio(self) -> float:
        return self.after / self.before

    def __str__(self) -> str:
        figures = f"{self.phase} {self.metric} {self.before:g} -> {self.after:g} ({self.ratio:.2f}"
        return f"{figures})" if self.passes else f"{figures}, the limit is {self.limit:.2f})"


@dataclass(frozen=True)
class Trade:
    """From one kernel to another, on the measured model."""

    before: str
    after: str
    changes: tuple[Change, ...]
    measured: str
    source: str

    @property
    def passes(self) -> bool:
        return all(change.passes for change in self.changes)

    @property
    def margins(self) -> dict[str, dict[str, float]]:
        """`gate.margins` that would let it pass; empty where nothing is needed, or nothing would do."""
        found: dict[str, dict[str, float]] = {}
        for change in self.changes:
            if not change.passes and change.margin is not None:
                found.setdefault(change.phase, {})[change.metric] = change.margin
        return found

    def __str__(self) -> str:
        seen = ", ".join(map(str, self.changes))
        verdict = "this gate lets it pass"
        if not self.passes:
            verdict = f"this gate would roll it back; gate.margins = {_shown(self.margins)} would let it pass"
        return f"from {self.before} to {self.after}: {seen} ({self.measured}): {verdict}"


def foreseen(
    table: Table | None, before: Sequence[str] | None, after: Sequence[str] | None, criteria: Criteria
) -> Trade | None:
    """The trade from one release's kernel to another's; None where none is known, or both are the same."""
    if table is None or not before or not after or before[0] == after[0]:
        return None
    then, now = (table["kernels"].get(kernels[0]) for kernels in (before, after))
    if then is None or now is None:
        return None
    changes = tuple(
        _change(phase, metric, then[phase][metric], now[phase][metric], criteria)
        for phase in then
        if phase in now and _streams(phase) in criteria.streams(MOST)
        for metric in then[phase]
        if metric in now[phase]
    )
    return Trade(before[0], after[0], changes, table["measured"], table["source"]) if changes else None


def towards(table: Table | None, after: Sequence[str], criteria: Criteria) -> list[Trade]:
    """The trades towards a kernel from every other one that was measured."""
    found = [foreseen(table, [kernel], after, criteria) for kernel in (table or {"kernels": ()})["kernels"]]
    return [trade for trade in found if trade is not None]


def _change(phase: str, metric: str, before: float, after: float, criteria: Criteria) -> Change:
    worse = -1 if metric == "tokens_per_s" else 1
    loss = worse * math.log(after / before)
    allowed = criteria.at(MOST).allowed(f"c{_streams(phase)}", metric, before)
    return Change(
        phase=phase,
        metric=metric,
        before=before,
        after=after,
        limit=None if allowed is None else math.exp(worse * allowed),
        passes=allowed is None or loss <= allowed,
        margin=margin_for(metric, loss + UNLIKE),
    )


def _streams(phase: str) -> int:
    return MOST if phase == MAX else int(phase.removeprefix("c"))


def _shown(margins: Mapping[str, Mapping[str, float]]) -> str:
    phases = [
        f"{phase}: {{{', '.join(f'{metric}: {share:g}' for metric, share in metrics.items())}}}"
        for phase, metrics in margins.items()
    ]
    return f"{{{', '.join(phases)}}}"
