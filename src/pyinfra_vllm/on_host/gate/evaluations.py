"""Judges what other programs found about a model (lm-eval: IFEval, MMLU-Pro, ...), where a record has it.

Such an evaluation takes hours, so no switch waits for one: it is made outside the window and judged by
`compare`. A switch shows that a declared one is missing, and decides without it.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ..bench.criteria import Criteria
from ..bench.record import Record, Scores
from .verdict import FAIL, INCONCLUSIVE, PASS, Row, row

ONE_SIDED_95 = 1.645  # of the normal distribution: a score is a mean over hundreds of questions


def rows(before: Record | None, after: Record, criteria: Criteria) -> list[Row]:
    """One row for each declared score; `{TASK/METRIC: {"value", "stderr"}}` is what records have of them."""
    now: Scores = after.evaluations or {}
    then: Scores = (before.evaluations if before else None) or {}
    found = [_at_least(name, then, now, limit) for name, limit in criteria.min_evaluation.items()]
    if before is not None:
        found += [_drop(name, then, now, limit) for name, limit in criteria.max_evaluation_drop.items()]
    return found


def _at_least(name: str, then: Scores, now: Scores, limit: float) -> Row:
    if name not in now:
        return _missing(name, then, now, limit)
    value = now[name]["value"]
    verdict = PASS if value >= limit else FAIL
    return row(
        name, None, then.get(name, {}).get("value"), value, limit, verdict, f"{value:g}, at least {limit:g}"
    )


def _drop(name: str, then: Scores, now: Scores, limit: float) -> Row:
    """Fail where the drop is larger than allowed and significant."""
    if name not in then or name not in now:
        return _missing(name, then, now, -limit)
    before, after = then[name]["value"], now[name]["value"]
    doubt = ONE_SIDED_95 * math.hypot(then[name].get("stderr", 0.0), now[name].get("stderr", 0.0))
    verdict = PASS
    if before - after > limit:
        verdict = FAIL if before - after > doubt else INCONCLUSIVE
    note = (
        f"{before:g} before, {after:g} after; allowed is a drop of {limit:g}, and chance alone does"
        f" {doubt:.3g}"
    )
    return row(name, None, before, after, -limit, verdict, note)


def _missing(name: str, then: Scores, now: Scores, limit: float) -> Row:
    """Undecided where other evaluations were made; informational where none were, as in a switch."""
    made = (
        "not evaluated on both sides" if then or now else "not evaluated (see `pyinfra-vllm bench --lm-eval`)"
    )
    found = row(
        name, None, then.get(name, {}).get("value"), now.get(name, {}).get("value"), limit, INCONCLUSIVE, made
    )
    return replace(found, decides=bool(then or now))
