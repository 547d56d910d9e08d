"""When one side has been measured long enough: by its own rounds alone, without the other side's.

So the rule can't favour either verdict: it stops where two sides that vary as this one does would be compared
precisely enough, whatever their difference is (docs/gate.md).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping

from ..bench.criteria import EVERY_PHASE, ONE_STREAM, Criteria
from ..bench.record import Phase, Record
from ..bench.stats import half_width
from .noise import Noise, of_phase
from .relative import by_round

ENOUGH = 0.5  # of what is allowed: the half width of the ratio of two such sides
LEAST_ROUNDS = 5
LEAST_SHARE = 0.04  # of the budget, for each phase: a machine's speed varies over seconds


def settled(phases: Iterable[Phase], criteria: Criteria, noise: Noise | None = None) -> bool:
    """Whether every metric that decides is known precisely enough.

    + criteria: with numbers only, see `Criteria.at`
    + noise: what `calibration` found for this service
    """
    return all(_settled(phase, criteria, of_phase(noise, phase.name)) for phase in phases)


def left_s(criteria: Criteria, record: Record, until_s: float = math.inf) -> float:
    """Seconds for which this side may still be measured: its budget, or more if the window has room.

    + until_s: seconds until measuring must end
    """
    spent = criteria.longest_s if record.spent_s is None else record.spent_s
    return max(criteria.budget_s - spent, min(criteria.longest_s - spent, until_s))


def _settled(phase: Phase, criteria: Criteria, noise: Mapping[str, float]) -> bool:
    if not phase.answered:
        return True
    if phase.duration_s < LEAST_SHARE * criteria.budget_s:
        return False
    return all(
        _precise(list(by_round(phase, metric).values()), phase.name, metric, criteria, noise.get(metric))
        for metric in (*EVERY_PHASE, *ONE_STREAM)
        if criteria.margin(phase.name, metric) is not None
    )


def _precise(logs: list[float], phase: str, metric: str, criteria: Criteria, noise: float | None) -> bool:
    if len(logs) < LEAST_ROUNDS:
        return False
    allowed = criteria.allowed(phase, metric, math.exp(statistics.fmean(logs)), noise)
    return allowed is not None and math.sqrt(2) * half_width(logs) <= ENOUGH * allowed
