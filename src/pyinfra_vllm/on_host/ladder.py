"""Judges quality: which graded answers were lost between two records, and whether that can be chance."""

from __future__ import annotations

from typing import Any

from .criteria import Criteria
from .relative import FAIL, INCONCLUSIVE, PASS
from .stats import chance

SIGNIFICANT = 0.05
Record = dict[str, Any]
Row = dict[str, Any]


def rows(before: Record | None, after: Record, criteria: Criteria) -> list[Row]:
    """The rungs that were measured; none where quality is off or nothing was asked."""
    if not criteria.quality:
        return []
    found = []
    now = _graded(after)
    if now and before and _graded(before):
        found.append(_answers(_graded(before), now, criteria.quality_drop_points))
    return found


def _graded(record: Record) -> dict[str, bool]:
    return {item["prompt"]: item["passed"] for item in record.get("quality") or []}


def _answers(before: dict[str, bool], after: dict[str, bool], limit: float) -> Row:
    """McNemar in pairs: only answers that changed sides say anything."""
    common = sorted(set(before) & set(after))
    lost = sum(1 for prompt in common if before[prompt] and not after[prompt])
    gained = sum(1 for prompt in common if after[prompt] and not before[prompt])
    total = max(1, len(common))
    then = 100 * sum(before[prompt] for prompt in common) / total
    now = 100 * sum(after[prompt] for prompt in common) / total
    probability = chance(lost, gained)
    verdict = PASS
    note = f"{then:.0f} of 100 answers right before, {now:.0f} after ({lost} lost, {gained} gained, of {len(common)})"
    if then - now > limit:
        verdict = FAIL if probability < SIGNIFICANT else INCONCLUSIVE
        note += f"; allowed is a drop of {limit:g} points, and chance alone would do this with p = {probability:.3g}"
    elif then == now == 0:
        note = "no answer was right before, so there was nothing to lose: these prompts say nothing about this model"
    return {
        "name": "quality_points",
        "phase": None,
        "before": round(then, 2),
        "after": round(now, 2),
        "ratio": round(now / then, 6) if then else None,
        "interval": None,
        "limit": -limit,
        "verdict": verdict,
        "decides": True,
        "note": note,
    }
