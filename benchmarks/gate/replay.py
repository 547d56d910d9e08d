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
from pathlib import Path
from typing import Any

from pyinfra_vllm.on_host.gate import gate, precision
from pyinfra_vllm.on_host.gate.calibration import calibration
from pyinfra_vllm.on_host.gate.noise import Noise
from pyinfra_vllm.on_host.gate.verdict import Verdict

HERE = Path(__file__).resolve().parent
Record = dict[str, Any]
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


def replay(name: str, traces: dict[str, Any], pairs: int) -> int:
    """Print the table of one set of traces; returns how many targets it missed."""
    unchanged: list[Record] = traces["unchanged"]
    noise = calibration(unchanged) if len(unchanged) >= 3 else None
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
            seen, spent = verdicts(unchanged, records, 1.0, pairs // 10, known, budget_s)
            print(line(f"recorded: {slow}, {calibrated}", seen, pairs // 10, spent, ""))
    return missed


def line(name: str, seen: Counter[str], pairs: int, spent: list[float], target: str) -> str:
    shares = [f"{100 * seen[verdict] / pairs:6.1f}%" for verdict in ("pass", "fail", "inconclusive")]
    took = f"{statistics.fmean(spent):10.0f}"
    return f"{name:54}{shares[0]}{shares[1]}{shares[2]:>8}{took}   {target}"


def verdicts(
    befores: list[Record],
    afters: list[Record],
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
        after = source.choice([record for record in afters if record is not before])
        verdict, took = Pair(befores, afters, before, after, speed, source, noise, budget_s).judged()
        seen[verdict] += 1
        spent.append(took)
    return seen, spent


class Pair:
    """One switch whose two sides are drawn from recorded runs."""

    def __init__(
        self,
        befores: list[Record],
        afters: list[Record],
        before: Record,
        after: Record,
        speed: float,
        source: random.Random,
        noise: Noise | None,
        budget_s: float,
    ) -> None:
        self.noise = noise
        self.speed = speed
        self.criteria = gate.Criteria(
            concurrency=tuple(phase["concurrency"] for phase in before["phases"]),
            quality=False,
            budget_s=budget_s,
        )
        first = [before, *going_on(befores, before, {id(after)})]
        second = [after, *going_on(afters, after, set(map(id, first)))]
        # What each side would measure, one place after the other: the same number of its own run.
        drawn = [
            (one, other, number)
            for one, other in zip(first, second, strict=False)
            for number in source.sample(common(one, other), math.ceil(KEPT * len(common(one, other))))
        ]
        self.before = Side([(one, number) for one, _, number in drawn], 1.0)
        self.after = Side([(other, number) for _, other, number in drawn], speed)

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
        return verdict.verdict, (before["spent_s"] + after["spent_s"]) / 2

    def verdict(self, before: Record, after: Record) -> Verdict:
        return gate.judge(before, after, self.criteria, noise=self.noise)

    def measured(self, side: Side, most: int, limit_s: float) -> int:
        """How many rounds are measured before it is known precisely enough, or its time is up."""
        for count in range(1, most):
            found = side.record(range(count), count, self.criteria)
            longest = max(side.seconds[:count])
            late = found["spent_s"] + longest > limit_s
            if late or precision.settled(found["phases"], self.criteria, self.noise):
                return count
        return most


class Side:
    """Rounds of recorded runs, at that share of their speed, in the places where they are measured."""

    def __init__(self, rounds: list[tuple[Record, int]], speed: float) -> None:
        self.rounds = rounds
        self.first = rounds[0][0]
        self.phases = [
            [
                redrawn(record["phases"][index], number, place, speed)
                for place, (record, number) in enumerate(rounds)
            ]
            for index in range(len(self.first["phases"]))
        ]
        self.seconds = [
            sum(phase[place][0]["duration_s"] for phase in self.phases) for place in range(len(rounds))
        ]

    def record(self, places: Iterable[int], planned: int, criteria: gate.Criteria) -> Record:
        places = list(places)
        phases = []
        for phase, found in zip(self.first["phases"], self.phases, strict=True):
            rounds = [found[place][0] for place in places]
            requests = [item for place in places for item in found[place][1]]
            duration = sum(item["duration_s"] for item in rounds)
            phases.append({**phase, "rounds": rounds, "requests": requests, "duration_s": duration})
        spent = WARM_UP * criteria.budget_s + sum(self.seconds[place] for place in places)
        return {
            **self.first,
            "plan": {**self.first["plan"], "rounds": planned},
            "phases": phases,
            "spent_s": spent,
        }


def going_on(records: list[Record], first: Record, taken: set[int]) -> list[Record]:
    """The other runs of the same start: what the server would have shown, had it been measured on."""
    start = start_of(records, first)
    return [
        record
        for record in records
        if record is not first and id(record) not in taken and start_of(records, record) == start
    ]


def start_of(records: list[Record], record: Record) -> str:
    note = str(record.get("note") or "")
    place = next(index for index, item in enumerate(records) if item is record)
    return note.split(",")[0] if note else str(place // RUNS_OF_A_START)


def common(before: Record, after: Record) -> list[int]:
    return [
        number
        for number in range(before["plan"]["rounds"])
        if all(has_round(phase, number) for record in (before, after) for phase in record["phases"])
    ]


def has_round(phase: dict[str, Any], number: int) -> bool:
    return any(item["round"] == number and item["complete"] for item in phase["rounds"])


def redrawn(
    phase: dict[str, Any], number: int, place: int, speed: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One round at that share of its speed, with its requests. Prompts are renamed: each draw is its own."""
    whole = next(item for item in phase["rounds"] if item["round"] == number)
    made = {**whole, "round": place, "duration_s": whole["duration_s"] / speed}
    requests = [
        {**slowed(request, speed), "prompt": f"{place}/{request['prompt']}", "round": place}
        for request in phase["requests"]
        if request.get("round", -1) == number
    ]
    return made, requests


def slowed(request: dict[str, Any], speed: float) -> dict[str, Any]:
    if not request["ok"]:
        return request
    return {**request, "ttft_s": request["ttft_s"] / speed, "e2e_s": request["e2e_s"] / speed}


if __name__ == "__main__":
    sys.exit(main())
