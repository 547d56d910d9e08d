"""Replays recorded traces through the gate: how often it cries wolf, and how often it sees a real slowdown.

`replay.py [--pairs 1000] [--traces FILE.json.xz ...]` (this is `make bench-gate`)

A pair is two runs of one unchanged service, mostly with a restart between them, and four fifths of their
rounds, drawn anew and taken in another order: a thousand pairs from a handful of runs. No round counts twice
in a pair, for that would add noise to what the machine really had (with replacement a fifth more, on the
lab). Each side is measured as a switch measures it: round by round until it is known precisely enough or its
time is up; where a run has no more rounds, the other runs of the same start go on. A doubtful second side is
measured further, the same prompts again, while the trace has rounds for it. Exits with 1 when a target of the
project is missed.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import random
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.plan import Plan
from pyinfra_vllm.on_host.bench.record import Phase, Record, Request, Round
from pyinfra_vllm.on_host.gate import gate, precision
from pyinfra_vllm.on_host.gate.calibration import calibration
from pyinfra_vllm.on_host.gate.noise import Noise
from pyinfra_vllm.on_host.gate.verdict import Verdict

HERE = Path(__file__).resolve().parent
SEED = 20261121
KEPT = 0.8  # of the rounds of a run
# Seconds a side that a trace was recorded with, and what of it went to the warm-up.
BUDGETS, DEFAULT_BUDGET_S, WARM_UP = {"h200": 30.0}, 120.0, 0.15
RUNS_OF_A_START = 3  # where a trace does not say which start a run belongs to
# Scenario -> (how the second run is slower, what must hold, in words and as a check of the shares).
TARGETS: dict[str, tuple[float, str, Callable[[Counter[str], int], bool]]] = {
    "unchanged": (1.0, "fails at most 1 %", lambda seen, n: seen["fail"] <= 0.01 * n),
    "10 % slower": (0.90, "fails at least 95 %", lambda seen, n: seen["fail"] >= 0.95 * n),
    "5 % slower": (0.95, "not passed at least 80 %", lambda seen, n: n - seen["pass"] >= 0.80 * n),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--traces", type=Path, nargs="*", default=sorted((HERE / "traces").glob("*.json.xz")))
    arguments = parser.parse_args()
    missed = 0
    for path in arguments.traces:
        traces = json.loads(lzma.decompress(path.read_bytes()))
        missed += replay(path.name.split(".")[0], traces, arguments.pairs)
    return int(missed > 0)


@dataclass(frozen=True, eq=False)
class Run:
    """A recorded run, and which start of the server it belongs to."""

    record: Record
    start: str


def runs_of(values: list[dict[str, Any]]) -> list[Run]:
    notes = [str(value.get("note") or "").split(",")[0] for value in values]
    starts = [note or str(place // RUNS_OF_A_START) for place, note in enumerate(notes)]
    records = [Record.read(value, f"run {place}") for place, value in enumerate(values)]
    return list(map(Run, records, starts))


def replay(name: str, traces: dict[str, Any], pairs: int) -> int:
    """Print the table of one set of traces; returns how many targets it missed."""
    unchanged = runs_of(traces["unchanged"])
    noise = calibration([run.record for run in unchanged]) if len(unchanged) >= 3 else None
    budget_s = BUDGETS.get(name, DEFAULT_BUDGET_S)
    missed = 0
    print(f"\n{name}: {traces['about']}")
    print(f"{'':54}{'pass':>7}{'fail':>7}{'unclear':>8}{'s a side':>10}   target")
    for calibrated, known in (("not calibrated", None), ("calibrated", noise)):
        for scenario, (speed, words, holds) in TARGETS.items():
            seen, spent = verdicts(unchanged, unchanged, speed, pairs, known, budget_s)
            good = holds(seen, pairs)
            missed += not good
            target = f"{words}: {'met' if good else 'MISSED'}"
            print(line(f"{scenario}, {calibrated}", seen, pairs, spent, target))
        for slow, records in traces.get("slower", {}).items():
            seen, spent = verdicts(unchanged, runs_of(records), 1.0, pairs // 10, known, budget_s)
            print(line(f"recorded: {slow}, {calibrated}", seen, pairs // 10, spent, ""))
    return missed


def line(name: str, seen: Counter[str], pairs: int, spent: list[float], target: str) -> str:
    shares = [f"{100 * seen[verdict] / pairs:6.1f}%" for verdict in ("pass", "fail", "inconclusive")]
    took = f"{statistics.fmean(spent):10.0f}"
    return f"{name:54}{shares[0]}{shares[1]}{shares[2]:>8}{took}   {target}"


def verdicts(
    befores: list[Run],
    afters: list[Run],
    speed: float,
    pairs: int,
    noise: Noise | None,
    budget_s: float,
) -> tuple[Counter[str], list[float]]:
    """How often which verdict came, and the seconds that each side took, half of those of both."""
    source = random.Random(SEED)
    seen: Counter[str] = Counter()
    spent = []
    for _ in range(pairs):
        before = source.choice(befores)
        after = source.choice([run for run in afters if run is not before])
        verdict, took = Pair(befores, afters, before, after, speed, source, noise, budget_s).judged()
        seen[verdict] += 1
        spent.append(took)
    return seen, spent


class Pair:
    """One switch whose two sides are drawn from recorded runs."""

    def __init__(
        self,
        befores: list[Run],
        afters: list[Run],
        before: Run,
        after: Run,
        speed: float,
        source: random.Random,
        noise: Noise | None,
        budget_s: float,
    ) -> None:
        self.noise = noise
        self.speed = speed
        self.criteria = Criteria(
            concurrency=tuple(phase.concurrency for phase in before.record.phases),
            quality=False,
            budget_s=budget_s,
        )
        first = [before, *going_on(befores, before, [after])]
        second = [after, *going_on(afters, after, first)]
        # What each side would measure, one place after the other: the same number of its own run.
        drawn = [
            (one, other, number)
            for one, other in zip(first, second, strict=False)
            for number in source.sample(
                common(one.record, other.record), math.ceil(KEPT * len(common(one.record, other.record)))
            )
        ]
        self.before = Side([(one.record, number) for one, _, number in drawn], 1.0)
        self.after = Side([(other.record, number) for _, other, number in drawn], speed)

    def judged(self) -> tuple[str, float]:
        most = self.criteria.longest_s
        count = self.measured(self.before, len(self.before.rounds), most)
        before = self.before.record(range(count), count, self.criteria)
        places = list(range(self.measured(self.after, count, self.criteria.budget_s)))
        after = self.after.record(places, count, self.criteria)
        verdict = self.verdict(before, after)
        while gate.wants_more(verdict, before, after, self.criteria):
            more = range(len(places), min(count, len(places) + max(1, count // 4)))
            if not more:  # the same again, as far as the trace has it
                break
            places += more
            after = self.after.record(places, count, self.criteria)
            verdict = self.verdict(before, after)
        return verdict.verdict, ((before.spent_s or 0.0) + (after.spent_s or 0.0)) / 2

    def verdict(self, before: Record, after: Record) -> Verdict:
        return gate.judge(before, after, self.criteria, noise=self.noise)

    def measured(self, side: Side, most: int, limit_s: float) -> int:
        """How many rounds are measured before it is known precisely enough, or its time is up."""
        for count in range(1, most):
            found = side.record(range(count), count, self.criteria)
            longest = max(side.seconds[:count])
            late = (found.spent_s or 0.0) + longest > limit_s
            if late or precision.settled(found.phases, self.criteria, self.noise):
                return count
        return most


class Side:
    """Rounds of recorded runs, at that share of their speed, in the places where they are measured."""

    def __init__(self, rounds: list[tuple[Record, int]], speed: float) -> None:
        self.rounds = rounds
        self.first = rounds[0][0]
        self.phases = [
            [
                redrawn(record.phases[index], number, place, speed)
                for place, (record, number) in enumerate(rounds)
            ]
            for index in range(len(self.first.phases))
        ]
        self.seconds = [
            sum(phase[place][0].duration_s for phase in self.phases) for place in range(len(rounds))
        ]

    def record(self, places: Iterable[int], planned: int, criteria: Criteria) -> Record:
        places = list(places)
        phases = []
        for phase, found in zip(self.first.phases, self.phases, strict=True):
            rounds = tuple(found[place][0] for place in places)
            requests = tuple(item for place in places for item in found[place][1])
            duration_s = sum(item.duration_s for item in rounds)
            phases.append(replace(phase, rounds=rounds, requests=requests, duration_s=duration_s))
        spent_s = WARM_UP * criteria.budget_s + sum(self.seconds[place] for place in places)
        plan = replace(self.first.plan or Plan(), rounds=planned)
        return replace(self.first, plan=plan, phases=tuple(phases), spent_s=spent_s)


def going_on(runs: list[Run], first: Run, taken: list[Run]) -> list[Run]:
    """The other runs of the same start: what the server would have shown, had it been measured on."""
    return [run for run in runs if run.start == first.start and run is not first and run not in taken]


def common(before: Record, after: Record) -> list[int]:
    return [
        number
        for number in range((before.plan or Plan()).rounds)
        if all(has_round(phase, number) for record in (before, after) for phase in record.phases)
    ]


def has_round(phase: Phase, number: int) -> bool:
    return any(item.round == number and item.complete for item in phase.rounds)


def redrawn(phase: Phase, number: int, place: int, speed: float) -> tuple[Round, list[Request]]:
    """One round at that share of its speed, with its requests. Prompts are renamed: each draw is its own."""
    whole = next(item for item in phase.rounds if item.round == number)
    requests = [
        replace(
            request,
            prompt=f"{place}/{request.prompt}",
            round=place,
            ttft_s=request.ttft_s / speed,
            e2e_s=request.e2e_s / speed,
        )
        for request in phase.requests
        if request.round == number
    ]
    return replace(whole, round=place, duration_s=whole.duration_s / speed), requests


if __name__ == "__main__":
    sys.exit(main())
