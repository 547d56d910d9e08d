"""The measured speeds of tried configurations, and the Pareto front of those that meet the objective. Pure.

A configuration is on the front where no other one that meets the service level objective (SLO) is at least as
good in every respect and better in one: first token, time per token and tokens/s in the phase of the
objective, and tokens/s with the most requests at a time. All are compared in the same phases; one that
answered nothing in a phase is better than no other there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pyinfra_vllm.on_host.bench.record import Record


@dataclass(frozen=True)
class Speed:
    """One phase of a measurement.

    + concurrency: requests at a time
    + ttft_s, tpot_s: medians over its requests, in seconds; tpot_s None: no answer had two tokens
    + tokens_per_s: output tokens of all requests per second
    """

    phase: str
    concurrency: int
    ttft_s: float
    tpot_s: float | None
    tokens_per_s: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, value: Any) -> Speed:
        """The speed that `as_dict` wrote. Raises ValueError."""
        try:
            found = cls(**value)
            numbers = [found.concurrency, found.ttft_s, found.tokens_per_s]
            numbers += [] if found.tpot_s is None else [found.tpot_s]
            if isinstance(found.phase, str) and all(0 <= number < math.inf for number in numbers):
                return found
        except TypeError:
            pass
        raise ValueError(f"no speed of a phase: {value!r}")


Speeds = Sequence[Speed]  # of one configuration, by requests at a time


@dataclass(frozen=True)
class Slo:
    """The longest waits that users accept, in seconds; None: no limit."""

    max_ttft_s: float | None = None
    max_tpot_s: float | None = None

    def missed(self, speed: Speed) -> str:
        """Which limit this phase is beyond; empty where it is within both."""
        if self.max_ttft_s is not None and speed.ttft_s > self.max_ttft_s:
            return f"first token after {speed.ttft_s:.3g} s at {speed.phase}, and {self.max_ttft_s:g} is most"
        if self.max_tpot_s is None or (speed.tpot_s is not None and speed.tpot_s <= self.max_tpot_s):
            return ""
        took = "unknown" if speed.tpot_s is None else f"{speed.tpot_s:.3g} s"
        return f"time per token {took} at {speed.phase}, and {self.max_tpot_s:g} is most"


@dataclass(frozen=True)
class Front:
    """Every tried configuration, in one of three places.

    + on: on the front
    + behind: name -> one on the front that is at least as good in everything
    + missed: name -> the limit of the SLO that it is beyond, or that it answered nothing in that phase
    """

    on: tuple[str, ...]
    behind: Mapping[str, str]
    missed: Mapping[str, str]


def speeds(record: Record) -> tuple[Speed, ...]:
    """The speed in each phase that was answered, by requests at a time."""
    answered = (phase for phase in record.phases if phase.answered)
    found = []
    for phase in sorted(answered, key=lambda phase: phase.concurrency):
        per_token = [request.tpot_s for request in phase.answered if request.tpot_s is not None]
        found.append(
            Speed(
                phase=phase.name,
                concurrency=phase.concurrency,
                ttft_s=statistics.median(request.ttft_s for request in phase.answered),
                tpot_s=statistics.median(per_token) if per_token else None,
                tokens_per_s=phase.tokens_per_s,
            )
        )
    return tuple(found)


def decisive(found: Speeds, objective: str) -> Speed:
    """The phase by which an objective is judged: the fewest requests at a time for latency, the most for
    throughput, the middle one for balanced. Raises ValueError where nothing was measured.
    """
    if not found:
        raise ValueError("no phase was measured")
    ordered = sorted(found, key=lambda speed: speed.concurrency)
    return ordered[place(len(ordered), objective)]


def place(count: int, objective: str) -> int:
    """The index of the objective's phase among so many, by requests at a time."""
    return {"latency": 0, "throughput": count - 1}.get(objective, count // 2)


def phases(tried: Iterable[Speeds], objective: str) -> tuple[str, str]:
    """The phases in which configurations are compared: the objective's, and the one with the most requests at
    a time. Raises ValueError where nothing was measured.
    """
    known = {speed.concurrency: speed.phase for found in tried for speed in found}
    if not known:
        raise ValueError("no phase was measured")
    ordered = [known[concurrency] for concurrency in sorted(known)]
    return ordered[place(len(ordered), objective)], ordered[-1]


def speed_in(found: Speeds, phase: str) -> Speed | None:
    """The speed in a phase; None where nothing was answered in it."""
    return next((speed for speed in found if speed.phase == phase), None)


def front(tried: Mapping[str, Speeds], objective: str, slo: Slo) -> Front:
    """Which of the tried configurations are on the Pareto front of those that meet the SLO.

    + tried: name -> its speeds

    Raises ValueError where something was tried and nothing measured.
    """
    if not tried:
        return Front((), {}, {})
    own_phase, most_phase = phases(tried.values(), objective)
    missed: dict[str, str] = {}
    points: dict[str, tuple[float, ...]] = {}
    for name, found in tried.items():
        own = speed_in(found, own_phase)
        if why := slo.missed(own) if own else f"nothing was answered at {own_phase}":
            missed[name] = why
        elif own:
            points[name] = _point(own, speed_in(found, most_phase))
    on = [name for name in points if not any(_dominates(other, points[name]) for other in points.values())]
    behind = {
        name: next(best for best in on if _dominates(points[best], point))
        for name, point in points.items()
        if name not in on
    }
    return Front(tuple(on), behind, missed)


def _point(own: Speed, most: Speed | None) -> tuple[float, ...]:
    """The respects in which configurations are compared; less is better in each."""
    per_token = math.inf if own.tpot_s is None else own.tpot_s
    return own.ttft_s, per_token, -own.tokens_per_s, -most.tokens_per_s if most else 0.0


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine <= its for mine, its in zip(one, other, strict=True))
