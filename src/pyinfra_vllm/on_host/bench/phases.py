"""The phases of a record as rounds are added to them, and the few numbers of a record that fit a line."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import replace

from . import load
from .record import Phase, Record, Request, Round

MANY = 1_000_000  # rounds that nobody counts


def with_round(phase: Phase, done: load.Round, number: int) -> Phase:
    """The phase with a round. One that the deadline cut counts only where there is no whole one."""
    if not done.complete and phase.rounds:
        failures = (request for request in done.requests if not request.ok)
        return replace(phase, cut=True, requests=(*phase.requests, *failures))
    requests = [replace(request, round=number) for request in done.requests]
    if not done.complete and not done.answered:
        requests += map(_unfinished, done.unfinished)
    duration_s = round(done.duration_s, 6)
    return replace(
        phase,
        duration_s=round(phase.duration_s + done.duration_s, 6),
        requests=(*phase.requests, *requests),
        rounds=(*phase.rounds, Round(number, duration_s, done.output_tokens, done.complete)),
        cut=phase.cut if done.complete else True,
    )


def _unfinished(item: load.Unfinished) -> Request:
    error = f"not answered after {item.waited_s:.1f} s, when the time for measuring was over"
    return Request(item.prompt, ok=False, kind="unfinished", error=error)


def whole(record: Record) -> int:
    """Rounds that every phase has finished."""
    return min((sum(item.complete for item in phase.rounds) for phase in record.phases), default=0)


def never_begun(phase: Phase, elapsed_s: float) -> Phase:
    """A phase for which no time was left, marked by a request that was not made."""
    reason = f"not asked: after {elapsed_s:.1f} s the time for measuring was over"
    never = Request("first", ok=False, kind="not_asked", error=reason)
    return replace(phase, requests=(never,), duration_s=round(max(phase.duration_s, elapsed_s), 6), cut=True)


def round_line(name: str, number: int, last: int, done: load.Round) -> str:
    failed = len(done.requests) - len(done.answered)
    rate = done.output_tokens / done.duration_s if done.duration_s else 0.0
    of = f" of {last}" if last < MANY else ""
    return (
        f"{name} round {number}{of}: {rate:.1f} tokens/s from {len(done.answered)} answers"
        + (f", {failed} failed" if failed else "")
        + ("" if done.complete else ", cut short by the budget")
    )


def summary(record: Record) -> dict[str, object]:
    """A record in a line of the journal: per phase tokens/s, medians in seconds, errors."""
    lines: dict[str, object] = {}
    for phase in record.phases:
        lines[phase.name] = {
            "tokens_per_s": round(phase.tokens_per_s, 1) if phase.duration_s else None,
            "ttft_s": _median(request.ttft_s for request in phase.answered),
            "e2e_s": _median(request.e2e_s for request in phase.answered),
            "requests": len(phase.answered),
            "errors": len(phase.requests) - len(phase.answered),
        }
    if record.quality:
        lines["quality"] = f"{sum(item.passed for item in record.quality)} of {len(record.quality)}"
    return lines


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return round(statistics.median(found), 5) if found else None
