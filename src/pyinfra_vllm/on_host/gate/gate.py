"""Judges a new release: absolute criteria, and comparison with the baseline measured just before.

Pure: numbers in, a verdict with its numbers and reasons out. It measures nothing and rolls nothing back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..bench.criteria import MAX, Criteria
from ..bench.record import Record
from . import absolute, evaluations, in_turns, ladder, notes, precision, relative
from .absolute import OTHER_TRAFFIC, TRAFFIC_FACTOR
from .in_turns import InTurns
from .noise import Noise, of_phase
from .pairing import check_pair
from .verdict import FAIL, INCONCLUSIVE, PASS, Row, Verdict, concluded

LEAST = 1e-9  # of a ratio that is divided by
EXIT_CODES = {PASS: 0, FAIL: 1, INCONCLUSIVE: 3}


def judge(
    before: Record | None,
    after: Record,
    criteria: Criteria,
    noise: Noise | None = None,
    kernel: Mapping[str, Any] | None = None,
    gpu_memory_mib: int | None = None,
    asks_gpus: bool = True,
    turns: InTurns | None = None,
) -> Verdict:
    """The verdict on `after`.

    + before: the baseline; None for a first installation, which has absolute criteria only
    + noise: what `calibration` found for this service
    + kernel: the finding of server.kernel: a slow one fails, one that the log does not name is inconclusive
    + gpu_memory_mib: in use on the fullest GPU after the switch; None where nvidia-smi did not tell
    + asks_gpus: false where nobody asked them, as for two files: then a limit of their memory decides nothing
    + turns: rounds in which both servers took turns: the speed is judged by those where there are enough,
        all else as ever

    Raises RecordError where the two records do not belong together.
    """
    if before is not None:
        check_pair(before, after)
    highest = max(int(phase.concurrency) for phase in after.phases)
    saturated = f"c{highest}" if MAX in criteria.concurrency and highest not in criteria.concurrency else ""
    criteria = criteria.at(highest)
    metrics = absolute.rows(before, after, criteria, gpu_memory_mib, asks_gpus)
    if kernel is not None:
        metrics.append(absolute.kernel_row(kernel))
    doubts: list[str] = []
    if before is None:
        reasons = ["no baseline: only the absolute criteria were judged", *notes.of(after, "")]
    elif not any(phase.answered for phase in before.phases):
        reasons = [
            "the release before answered nothing, so nothing can be worse: only the absolute criteria count"
        ]
    else:
        compared, reasons, doubts = _compared(before, after, criteria, noise, turns)
        metrics = [_with_key(row, saturated) for row in (*metrics, *compared)]
    metrics += ladder.rows(before, after, criteria)
    reasons += ladder.notes(before, after, criteria)
    metrics += evaluations.rows(before, after, criteria)
    if not asks_gpus and criteria.max_gpu_memory_mib is not None:
        reasons.append("gpu_memory_mib: not measured by compare, so its limit decided nothing")
    return concluded(metrics, reasons, doubts)


def _compared(
    before: Record, after: Record, criteria: Criteria, noise: Noise | None, turns: InTurns | None
) -> tuple[list[Row], list[str], list[str]]:
    """The rows of the speed of both sides, what people should know of them, and the reasons for doubt."""
    blocks = turns if turns and turns.enough else None
    # Others' traffic meets both sides of a block alike.
    doubts = [] if blocks else incomparable(before, after)
    rows = _relative_rows(before, after, criteria, noise, doubts)
    reasons = [*notes.of_pair(before, after), _calibration_line(noise, [each.name for each in before.phases])]
    if turns:
        reasons.insert(0, turns.line())
    return in_turns.rows(rows, blocks, criteria, noise) if blocks else rows, reasons, doubts


def wants_more(
    verdict: Verdict,
    before: Record | None,
    after: Record,
    criteria: Criteria,
    left_s: float | None = None,
) -> bool:
    """Whether further rounds of `after` could change the answer, within the time that may be spent.

    They could also clear a release that failed by little: interim looks raise the false-positive rate.

    + left_s: seconds for which measuring may go on; left out: what the budget leaves (precision.left_s)
    """
    if verdict.verdict == PASS or before is None or before.plan is None:
        return False
    unsettled = [row for row in verdict.metrics if row.decides and row.verdict != PASS]
    if beyond_doubt(verdict) or not all(row.repeatable and not row.hopeless for row in unsettled):
        return False
    measured = any(phase.rounds for phase in after.phases)
    left = precision.left_s(criteria, after) if left_s is None else left_s
    return measured and left > 1.0


def beyond_doubt(verdict: Verdict) -> bool:
    """Whether it failed by something that no further round changes."""
    return any(row.decides and _sure(row) for row in verdict.metrics)


def _sure(row: Row) -> bool:
    """Whether it failed beyond doubt: with no interval, or all of it beyond twice what is allowed."""
    if row.verdict != FAIL:
        return False
    if row.interval is None or row.ratio is None or row.limit is None:
        return True
    (low, high), limit = row.interval, row.limit
    return (high < limit and row.ratio < limit**2) or (low > limit and row.ratio > limit**2)


def may_stay(verdict: Verdict, criteria: Criteria) -> bool:
    """Whether the new release is kept: it passed, or is undecided and `on_inconclusive` keeps it then."""
    if verdict.verdict == INCONCLUSIVE:
        return criteria.on_inconclusive == "keep"
    return verdict.verdict == PASS


def _relative_rows(
    before: Record, after: Record, criteria: Criteria, noise: Noise | None, doubts: list[str]
) -> list[Row]:
    """Every relative metric; where a confounder was seen in a run, none of them decides."""
    phases = {phase.name: phase for phase in after.phases}
    late_s = max(record.client.late_mean_s if record.client else 0.0 for record in (before, after))
    rows = []
    for phase in before.phases:
        known = of_phase(noise, phase.name)
        rows += relative.compare(phase, phases[phase.name], criteria, known, late_s)
    if doubts:
        rows = [_doubted(row, _traffic_gap(before, after)) for row in rows]
    return rows


def _with_key(row: Row, saturated: str) -> Row:
    """The row with the gate's setting that would have let it pass: a trade that an operator may make."""
    if row.needed is None or not row.decides or row.verdict == PASS:
        return row
    phase = MAX if row.phase == saturated else row.phase
    return replace(row, allowed_by=f"gate.margins.{phase}.{row.name} = {row.needed:g}")


def incomparable(before: Record, after: Record) -> list[str]:
    """Why two runs can't be compared: others asked much more of the server in one than in the other."""
    if _traffic_gap(before, after) <= OTHER_TRAFFIC:
        return []
    return [
        f"other traffic was {before.other_share:.0%} of the tokens before and {after.other_share:.0%} after:"
        " the two can't be compared"
    ]


def _traffic_gap(before: Record, after: Record) -> float:
    """By how much the share of others' tokens differs; nothing where one side does not know."""
    early, late = before.other_share, after.other_share
    return 0.0 if early is None or late is None else abs(early - late)


def _doubted(row: Row, gap: float) -> Row:
    """Undecided, unless it is worse by more than other traffic of that size explains."""
    if row.ratio is None or row.limit is None or not row.decides:
        return row
    more_is_better = row.name == "tokens_per_s"
    beyond = row.limit / max(row.ratio, LEAST) if more_is_better else row.ratio / row.limit
    if row.verdict == FAIL and beyond > 1 + TRAFFIC_FACTOR * gap:
        return row
    return replace(row, verdict=INCONCLUSIVE, needed=None)


def _calibration_line(noise: Noise | None, phases: Sequence[str]) -> str:
    unknown = [name for name in phases if noise is None or name not in noise.phases]
    within = "intervals come from within these runs (see `pyinfra-vllm calibrate`)"
    if noise is None or unknown == phases:
        return f"not calibrated: {within}"
    line = f"calibrated over {noise.runs} runs of an unchanged service: no margin is tighter than its noise"
    return f"{line}; {', '.join(unknown)} not calibrated: {within}" if unknown else line
