"""Plans the tuning of one service: its configurations, their order, the nights. Pure: it runs no trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pyinfra_vllm import validation
from pyinfra_vllm.checkpoint import Checkpoint
from pyinfra_vllm.config import Service
from pyinfra_vllm.rollout.estimate import Estimate, restarts
from pyinfra_vllm.rollout.trials import Night, nights
from pyinfra_vllm.text import counted
from pyinfra_vllm.tuning import search, space
from pyinfra_vllm.tuning.search import Rung, Search
from pyinfra_vllm.tuning.space import Candidate, Space
from pyinfra_vllm.window import shown_duration

SEED = 0


@dataclass(frozen=True)
class Plan:
    """The space of one service with its trials.

    + order: of the first rung, whose members are known; those of later ones follow from the measurements
    + budget_s: of measuring on each side of one pair
    """

    service: Service
    space: Space
    order: tuple[Candidate, ...]
    rungs: tuple[Rung, ...]
    pairs: int
    budget_s: float
    restarts: Estimate
    nights: tuple[Night, ...]

    @property
    def trials(self) -> int:
        """At most; fewer where little was better than the current configuration."""
        return sum(rung.trials for rung in self.rungs)

    @property
    def left(self) -> int:
        """Trials and pairs that the nights looked at have no room for."""
        return self.trials + self.pairs - sum(len(night.starts) for night in self.nights)

    @property
    def serves(self) -> str:
        """The current configuration, in words."""
        measured, objective = self.space.current.measured, self.service.objective
        return f"measured profile {measured}" if measured else f"the catalog's flags for {objective}"

    def as_dict(self) -> dict[str, Any]:
        asked = self.space.current.asked
        return {
            "service": self.service.name,
            "model": asked["model"],
            "gpu": asked["gpu"],
            "gpu_count": asked["gpu_count"],
            "runtime": asked["vllm_text"],
            "objective": asked["objective"],
            "against": self.serves,
            "errors": list(self.space.current.errors),
            "candidates": [_as_dict(each) for each in self.order],
            "ruled_out": [{"name": each.name, "because": each.because} for each in self.space.ruled_out],
            "rungs": [{"trials": rung.trials, "look_s": rung.look_s} for rung in self.rungs],
            "pairs": self.pairs,
            "restarts_s": self.restarts.length.total_seconds(),
            "nights": [_night(each) for each in self.nights],
            "left": self.left,
        }


def planned(service: Service, checkpoint: Checkpoint, at: datetime) -> Plan | None:
    """The plan for one service at `at` (aware); None where only the host knows its card or runtime.

    Raises DeclarationError for an unknown card.
    """
    question = validation.asked(service, checkpoint)
    if question is None:
        return None
    asked = validation.with_gpus(service, question)
    found = space.pruned(asked, service.tune.draft_head, service.tune.only)
    criteria = service.gate.criteria()
    deviation = search.UNKNOWN_DEVIATION  # a calibration is on the host, which a plan doesn't ask
    looks_s = search.looks(criteria.budget_s, deviation)
    by_name = {each.name: each for each in found.candidates}
    groups = {name: each.entry.group for name, each in by_name.items()}
    pairs = search.pairs_needed(deviation) if by_name else 0
    rungs = tuple(search.outline(len(by_name), looks_s))
    beside = restarts(service)
    looks = _looks(rungs, pairs, criteria.budget_s)  # on each of two sides
    lengths = [beside.length + timedelta(seconds=2 * look) for look in looks]
    return Plan(
        service=service,
        space=found,
        order=tuple(by_name[name] for name in Search(groups, SEED, pairs, looks_s).first()),
        rungs=rungs,
        pairs=pairs,
        budget_s=criteria.budget_s,
        restarts=beside,
        nights=tuple(nights(service.window, at, lengths)),
    )


def lines(plan: Plan) -> Iterator[str]:
    """The lines below the table: the configurations that are ruled out, the cost, the nights."""
    for each in plan.space.ruled_out:
        yield f"Not tried: {each.name}: {each.because}"
    if not plan.order:
        yield "Nothing is left to try."
        return
    measuring = shown_duration(timedelta(seconds=plan.rungs[0].look_s))
    trials, pairs = counted(plan.trials, "trial"), counted(plan.pairs, "pair")
    yield (
        f"At most {trials}, and {pairs} of starts to confirm what is best (as for a noisy service;"
        " fewer where a calibration shows less noise)"
    )
    took = f"{shown_duration(plan.restarts.length)} ({plan.restarts.source})"
    yield f"Each restarts the service twice, {took}, and measures {measuring} on each side"
    done = 0
    for night in plan.nights:
        until = f" until {night.closes:%H:%M %Z}" if night.closes else ""
        count = len(night.starts)
        yield f"{night.opens:%a %Y-%m-%d %H:%M}{until}: {_which(plan, done, count)}"
        done += count
    if plan.left:
        yield f"No room in the nights ahead for {plan.left}: {_why_left(plan)}"


def _why_left(plan: Plan) -> str:
    if plan.nights:
        return "the search goes on after them"
    return (
        "a window is too short for one, or never opens: declare a longer one, or a shorter `switch_estimate`"
    )


def _which(plan: Plan, done: int, count: int) -> str:
    trials = max(0, min(plan.trials - done, count))
    told = [counted(trials, "trial")] if trials else []
    if count > trials:
        told.append(counted(count - trials, "pair"))
    return " and ".join(told)


def _looks(rungs: tuple[Rung, ...], pairs: int, budget_s: float) -> list[float]:
    """Seconds of each look on each side, in order."""
    return [look for rung in rungs for look in [rung.look_s] * rung.trials] + [budget_s] * pairs


def _as_dict(candidate: Candidate) -> dict[str, Any]:
    entry = candidate.entry
    return {
        "name": entry.name,
        "group": entry.group,
        "about": entry.about,
        "changes": candidate.changes,
        "answers": entry.answers,
        "matters": entry.matters,
        "source": entry.source,
        "flags": [each.flag for each in candidate.resolution.flags],
        "kernel": list(candidate.resolution.kernel),
    }


def _night(night: Night) -> Mapping[str, Any]:
    return {
        "opens": night.opens.isoformat(),
        "closes": night.closes.isoformat() if night.closes else None,
        "starts": [start.isoformat() for start in night.starts],
    }
