"""The little statistics that the gate needs, with the standard library alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom (any table of it), then the normal value.
T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
# The same, one-sided 99 %: for limits that are set from few calibration runs and that only the worse may
# cross.
T99 = (
    31.821, 6.965, 4.541, 3.747, 3.365, 3.143, 2.998, 2.896, 2.821, 2.764,
    2.718, 2.681, 2.650, 2.624, 2.602, 2.583, 2.567, 2.552, 2.539, 2.528,
    2.518, 2.508, 2.500, 2.492, 2.485, 2.479, 2.473, 2.467, 2.462, 2.457,
)  # fmt: skip


def t_value(degrees: int, table: Sequence[float] = T95) -> float:
    """The table's quantile; infinite for no degrees of freedom: one value shows nothing about its spread."""
    if degrees < 1:
        return math.inf
    return table[min(degrees, len(table)) - 1] if degrees <= 60 else (1.960 if table is T95 else 2.326)


def t_quantile(share: float, degrees: int) -> float:
    """The quantile of Student's t for a share >= 0.5; exact for whole degrees of freedom."""
    if degrees < 1:
        return math.inf
    low, high = 0.0, 1.0
    while _t_below(high, degrees) < share:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, degrees) < share else (low, middle)
    return high


def _t_below(value: float, degrees: int) -> float:
    """The share of Student's t below a value from 0 on (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(value / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for step in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cosine * cosine * (step - 1) / step
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 + within) / 2


def half_width(logs: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of these values; infinite for fewer than two."""
    if len(logs) < 2:
        return math.inf
    return t_value(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies, interpolated (as numpy's default does)."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def chance(lost: int, gained: int) -> float:
    """McNemar's exact one-sided p-value, from the numbers of answers lost and gained."""
    changed = lost + gained
    if changed == 0:
        return 1.0
    return float(sum(math.comb(changed, count) for count in range(lost, changed + 1))) / 2.0**changed


def detectable_drop(questions: int, changed: float) -> float:
    """The share of answers whose loss McNemar's test at 5 % (one-sided) sees in four of five runs, by the
    normal approximation.

    + questions: how many pairs there are
    + changed: the share of answers that change sides by chance alone

    A drop of d moves d * n answers, against a standard deviation of sqrt(n * (changed + d)): solved for d
    with the quantiles of 5 % and of 80 % power added up.
    """
    wanted = (1.645 + 0.842) ** 2 / questions
    return (wanted + math.sqrt(wanted**2 + 4 * wanted * changed)) / 2
