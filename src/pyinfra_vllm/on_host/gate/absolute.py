"""The operator's success checklist: each limit with its measured value, pass or fail. Needs no baseline."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..bench.criteria import Criteria
from ..bench.record import Phase, Record, Request
from .relative import NOT_JUDGED
from .verdict import FAIL, INCONCLUSIVE, PASS, Row, row

TRAFFIC_FACTOR = 3.0  # a request of others may hold ours up longer than its share of the tokens says
# share of others' tokens up to which they are overlooked, and by which it may differ between two sides
OTHER_TRAFFIC = 0.05
SPEEDS = ("min_tokens_per_s", "max_ttft_s")


def rows(
    before: Record | None,
    after: Record,
    criteria: Criteria,
    gpu_memory_mib: int | None,
    asks_gpus: bool = True,
) -> list[Row]:
    """One row for each absolute criterion that was set, and always one for errors.

    + asks_gpus: whether the GPUs were asked at all; else their limit is shown and decides nothing
    """
    then = {phase.name: phase for phase in before.phases} if before else {}
    found = [_errors(before, after, criteria.max_error_rate)]
    for phase in after.phases:
        found += _phase_rows(then.get(phase.name), phase, criteria)
    measured = {phase.name for phase in after.phases}
    for key, limits in (("min_tokens_per_s", criteria.min_tokens_per_s), ("max_ttft_s", criteria.max_ttft_s)):
        for name in sorted(set(limits) - measured):
            note = f"phase {name} was not measured, so its limit of {limits[name]:g} was not shown to hold"
            found.append(row(key, name, None, None, limits[name], INCONCLUSIVE, note))
    if criteria.max_gpu_memory_mib is not None:
        limit = criteria.max_gpu_memory_mib
        found.append(_memory(gpu_memory_mib, limit, asks_gpus))
    return [_under_other_traffic(item, after) for item in found]


def _phase_rows(before: Phase | None, phase: Phase, criteria: Criteria) -> list[Row]:
    name = phase.name
    found = []
    if name in criteria.min_tokens_per_s:
        limit = criteria.min_tokens_per_s[name]
        rate, early = phase.tokens_per_s, before.tokens_per_s if before else None
        found.append(row("min_tokens_per_s", name, early, rate, limit, PASS if rate >= limit else FAIL))
    if name in criteria.max_ttft_s:
        limit = criteria.max_ttft_s[name]
        now = _median_ttft(phase)
        good = now is not None and now <= limit
        early = _median_ttft(before) if before else None
        found.append(row("max_ttft_s", name, early, now, limit, PASS if good else FAIL))
    return found


def _under_other_traffic(item: Row, after: Record) -> Row:
    """Undecided where other traffic on the server explains why a speed misses its limit."""
    share = after.other_share or 0.0
    if item.name not in SPEEDS or item.verdict != FAIL or share <= OTHER_TRAFFIC:
        return item
    if not item.after or item.limit is None:
        return item
    missed_by = max(item.limit / item.after, item.after / item.limit)
    if missed_by > 1 + TRAFFIC_FACTOR * share:
        return item
    note = (
        f"phase {item.phase}: {item.after:g}, the limit is {item.limit:g};"
        f" other traffic was {share:.0%} of the tokens, which can have done that"
    )
    return replace(item, verdict=INCONCLUSIVE, note=note)


def _errors(before: Record | None, after: Record, limit: float) -> Row:
    """Failed requests, warm-up and questions included. Answers without `usage`, and what was never asked,
    can't be judged, so they are no errors of serving.
    """
    failed, total = _failures(after)
    then = None
    if before:
        failed_before, total_before = _failures(before)
        then = len(failed_before) / total_before
    rate = len(failed) / total
    kinds = Counter(request.kind for request in failed)
    verdict = PASS if rate <= limit else FAIL
    if verdict == FAIL and set(kinds) <= set(NOT_JUDGED):
        verdict = INCONCLUSIVE
    note = ""
    if failed:
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        note = (
            f"{len(failed)} of {total} requests failed ({counted}), allowed is a share of {limit:g};"
            f" the first one: {failed[0].error or 'no reason given'}"
        )
    return row("error_rate", None, then, rate, limit, verdict, note)


def _failures(record: Record) -> tuple[list[Request], int]:
    requests = [request for phase in record.phases for request in phase.requests]
    failed = [*(record.warm_up.errors if record.warm_up else ()), *(item for item in requests if not item.ok)]
    for item in record.quality:
        if item.error is not None:
            kind = item.error_kind or "error"
            failed.append(Request(item.prompt, ok=False, kind=kind, error=item.error))
    warm = record.warm_up.requests if record.warm_up else 0
    return failed, len(requests) + warm + len(record.quality)


def _memory(used: int | None, limit: int, asks_gpus: bool) -> Row:
    if not asks_gpus:
        note = "not measured by compare: informational"
        found = row("gpu_memory_mib", None, None, None, limit, INCONCLUSIVE, note)
        return replace(found, decides=False)
    if used is None:
        note = f"nvidia-smi said nothing, so the limit of {limit} MiB was not shown to hold"
        return row("gpu_memory_mib", None, None, None, limit, INCONCLUSIVE, note)
    return row("gpu_memory_mib", None, None, used, limit, PASS if used <= limit else FAIL)


def _median_ttft(phase: Phase) -> float | None:
    times = [request.ttft_s for request in phase.answered]
    return round(statistics.median(times), 6) if times else None


def kernel_row(kernel: Mapping[str, Any]) -> Row:
    """The finding of server.kernel as a criterion: a slow kernel serves the same text, ten times slower."""
    reasons = kernel.get("reasons") or [", ".join(kernel.get("kernels") or []) or "not the expected one"]
    return row("kernel", None, None, None, None, kernel["verdict"], "; ".join(reasons))
