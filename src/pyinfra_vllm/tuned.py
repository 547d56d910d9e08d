"""The end of a tuning as a measured profile: the winner's flags, and the evidence for them. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pyinfra_vllm.config.profiles import Compared, MeasuredProfile, Metric, Tried, Tuned, Workload
from pyinfra_vllm.on_host.bench.stats import half_width
from pyinfra_vllm.tuning import night
from pyinfra_vllm.tuning.measured import Settings
from pyinfra_vllm.tuning.night import METRIC, Line
from pyinfra_vllm.tuning.pareto import Speed, decisive
from pyinfra_vllm.tuning.request import Request
from pyinfra_vllm.tuning.search import Done

METRICS: Mapping[Metric, Callable[[Speed], float | None]] = {
    "tokens_per_s": lambda speed: speed.tokens_per_s,
    "ttft_s": lambda speed: speed.ttft_s,
    "tpot_s": lambda speed: speed.tpot_s,
}


@dataclass(frozen=True)
class Place:
    """The card, model, runtime and objective that a profile is valid for.

    + card: the title that the resolver has for it, or "cpu"
    + runtime: vLLM's version; its build doesn't count
    + memory_mib: of the card; None on a CPU
    """

    card: str
    gpus: int
    model: str
    runtime: str
    objective: str
    max_model_len: int | None = None
    memory_mib: int | None = None

    @classmethod
    def of(cls, asked: Request) -> Place:
        """The place of a request: a profile made for it is used for that request (tuning/measured.py)."""
        card = asked.card
        return cls(
            card="cpu" if card.platform == "cpu" else card.title,
            gpus=asked.gpu_count,
            model=asked.shape.name,
            runtime=asked.version,
            objective=asked.objective,
            max_model_len=asked.max_model_len,
            memory_mib=card.memory_mib or None,
        )

    def profile(self, tuned: Tuned) -> MeasuredProfile:
        return MeasuredProfile(
            schema="pyinfra-vllm/profile/1",
            card=self.card,
            memory_mib=self.memory_mib,
            gpus=self.gpus,
            model=self.model,
            runtime=self.runtime.partition("+")[0],
            objectives={self.objective: tuned},
        )


def unproven(place: Place, settings: Settings) -> MeasuredProfile:
    """The profile that a candidate would have, resolved as after it has won. No evidence: never written."""
    tuned = Tuned.model_construct(
        flags=dict(settings.flags),
        environment=dict(settings.environment),
        max_model_len=place.max_model_len,
        measured="never",
        gain="not measured yet",
    )
    return place.profile(Tuned.model_construct()).model_copy(update={"objectives": {place.objective: tuned}})


def proven(place: Place, settings: Settings, lines: Sequence[Line], done: Done) -> MeasuredProfile:
    """The winner with its evidence.

    + settings: the winner's
    + lines: the journal, up to the last pair

    Raises ValueError where the search has no winner.
    """
    if done.winner is None or done.ratio is None or done.interval is None:
        raise ValueError(f"nothing was found to be better: {done.why}")
    pairs = pairs_of(lines, done.winner)
    phase = decisive(pairs[0][0], place.objective).phase
    compared = comparisons(pairs)
    gain = next(each for each in compared if (each.phase, each.metric) == (phase, METRIC))
    last = [line for line in night.results(lines) if line.get("pair") == done.winner][-1]
    low, high = _outwards(*done.interval)
    ratio = round(done.ratio, 4)
    exact = gain.model_copy(update={"ratio": ratio, "interval": (low, high)})
    return place.profile(
        Tuned(
            flags=dict(settings.flags),
            environment=dict(settings.environment),
            measured=datetime.fromisoformat(last["at"]).date(),
            max_model_len=place.max_model_len,
            workload=Workload(**last["workload"]),
            gain=exact.model_copy(update={"after": _short(exact.before * done.ratio)}),
            elsewhere=tuple(each for each in compared if each is not gain),
            tried=tuple(others(lines, done.winner)),
            note=(
                f"{done.winner}: confirmed in {len(pairs)} pairs of starts, which chose nothing."
                " Another card, number of GPUs, model or runtime: tune again"
            ),
        )
    )


def pairs_of(lines: Sequence[Line], name: str) -> list[tuple[list[Speed], list[Speed]]]:
    """The speeds of both sides of each pair of the confirmation. Raises night.Damaged."""
    try:
        return [
            ([Speed.read(each) for each in line["before"]], [Speed.read(each) for each in line["after"]])
            for line in night.results(lines)
            if line.get("pair") == name and "ratio" in line
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise night.Damaged(f"a pair of {name} can't be read: {error}") from error


def comparisons(pairs: Sequence[tuple[Sequence[Speed], Sequence[Speed]]]) -> list[Compared]:
    """Each metric and phase that all pairs have on both sides: geometric means, ratio's 95 % interval."""
    found = []
    phases = [speed.phase for speed in pairs[0][0]]
    for phase in phases:
        for metric, value in METRICS.items():
            both = [(_value(before, phase, value), _value(after, phase, value)) for before, after in pairs]
            known = [(one, other) for one, other in both if one and other]
            if len(known) == len(both):
                found.append(_compared(phase, metric, known))
    return found


def others(lines: Sequence[Line], winner: str | None) -> list[Tried]:
    """The configurations that were tried and not taken, the best last look first, then those that failed."""
    last: dict[str, Line] = {}
    failed: set[str] = set()
    for line in night.results(lines):
        name = line.get("trial", line.get("pair"))
        if isinstance(name, str):
            last[name] = line
            failed |= {name} if "failed" in line else set()
    told = [_tried(name, line, winner) for name, line in last.items() if name != winner]
    return sorted(told, key=lambda each: (each.name in failed, -(each.ratio or 0.0)))


def _tried(name: str, line: Line, winner: str | None) -> Tried:
    ratio = line.get("ratio", line.get("seen"))
    shown = round(ratio, 4) if ratio else None
    if "failed" in line:
        return Tried(name=name, ratio=shown, ended=str(line["failed"]))
    if shown is None or shown <= 1:
        return Tried(name=name, ratio=shown, ended="no better than the current configuration")
    better = f"{winner} was better" if winner else "its gain is not beyond doubt"
    return Tried(name=name, ratio=shown, ended=better)


def _value(speeds: Sequence[Speed], phase: str, value: Callable[[Speed], float | None]) -> float | None:
    return next((value(speed) for speed in speeds if speed.phase == phase), None)


def _compared(phase: str, metric: Metric, both: Sequence[tuple[float, float]]) -> Compared:
    logs = [math.log(after / before) for before, after in both]
    mean, width = statistics.fmean(logs), half_width(logs)
    before = math.exp(statistics.fmean(math.log(one) for one, _ in both))
    low, high = _outwards(math.exp(mean - width), math.exp(mean + width))
    ratio = round(math.exp(mean), 4)
    return Compared(
        phase=phase,
        metric=metric,
        before=_short(before),
        after=_short(before * math.exp(mean)),
        ratio=ratio,
        interval=(low, high),
    )


def _outwards(low: float, high: float) -> tuple[float, float]:
    """Both ends with four digits, so that the interval never gets narrower."""
    return max(1e-4, math.floor(low * 1e4) / 1e4), math.ceil(high * 1e4) / 1e4


def _short(value: float) -> float:
    """Five significant digits."""
    return float(f"{value:.5g}")
