"""Replays recorded traces through the gate: how often it cries wolf, and how often it sees a real slowdown.

`replay.py [--pairs 1000] [--traces FILE.json.xz ...]` (this is `make bench-gate`)

A pair is two runs of one unchanged service, mostly with a restart between them, and four fifths of their rounds, drawn
anew and taken in another order: a thousand pairs from a handful of runs. No round counts twice in a pair, for that would
add noise to what the machine really had (with replacement a fifth more, on the lab). The second run is
judged as a switch would: half of its rounds first, more while the gate wants more. Exits with 1 when a
target of the project is missed.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyinfra_vllm.on_host import gate
from pyinfra_vllm.on_host.calibration import calibration

HERE = Path(__file__).resolve().parent
Record = dict[str, Any]
SEED = 20261121
KEPT = 0.8  # of the rounds of a run
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
    missed = 0
    print(f"\n{name}: {traces['about']}")
    print(f"{'':54}{'pass':>7}{'fail':>7}{'unclear':>8}   target")
    for calibrated, known in (("not calibrated", None), ("calibrated", noise)):
        for scenario, (speed, words, holds) in TARGETS.items():
            seen = verdicts(unchanged, unchanged, speed, pairs, known)
            good = holds(seen, pairs)
            missed += not good
            target = f"{words}: {'met' if good else 'MISSED'}"
            print(line(f"{scenario}, {calibrated}", seen, pairs, target))
        for slow, records in traces.get("slower", {}).items():
            seen = verdicts(unchanged, records, 1.0, pairs // 10, known)
            print(line(f"recorded: {slow}, {calibrated}", seen, pairs // 10, ""))
    return missed


def line(name: str, seen: Counter[str], pairs: int, target: str) -> str:
    shares = [f"{100 * seen[verdict] / pairs:6.1f}%" for verdict in ("pass", "fail", "inconclusive")]
    return f"{name:54}{shares[0]}{shares[1]}{shares[2]:>8}   {target}"


def verdicts(
    befores: list[Record], afters: list[Record], speed: float, pairs: int, noise: dict[str, Any] | None
) -> Counter[str]:
    source = random.Random(SEED)
    seen: Counter[str] = Counter()
    for _ in range(pairs):
        before, after = source.choice(befores), source.choice(afters)
        while before is after:
            after = source.choice(afters)
        seen[one(before, after, speed, source, noise)] += 1
    return seen


def one(
    before: Record, after: Record, speed: float, source: random.Random, noise: dict[str, Any] | None
) -> str:
    """The verdict of one switch whose two sides are drawn from two recorded runs."""
    criteria = gate.Criteria(
        concurrency=tuple(phase["concurrency"] for phase in before["phases"]), quality=False
    )
    common = [
        number
        for number in range(before["plan"]["rounds"])
        if all(has_round(phase, number) for record in (before, after) for phase in record["phases"])
    ]
    rounds = math.ceil(KEPT * len(common))
    drawn = source.sample(common, rounds)
    first = redrawn({**before, "plan": {**before["plan"], "rounds": rounds}}, drawn, 1.0)
    for count in range((rounds + 1) // 2, rounds + 1):
        second = redrawn(after, drawn[:count], speed)
        verdict = gate.judge(first, second, criteria, noise=noise)
        if not gate.wants_more(verdict, first, second, criteria):
            break
    return str(verdict["verdict"])


def has_round(phase: dict[str, Any], number: int) -> bool:
    return any(item["round"] == number and item["complete"] for item in phase["rounds"])


def redrawn(record: Record, drawn: list[int], speed: float) -> Record:
    """The record made of those rounds, at that share of its speed. Prompts are renamed: each draw is its own."""
    phases = []
    for phase in record["phases"]:
        by_round: dict[int, list[dict[str, Any]]] = {}
        for request in phase["requests"]:
            by_round.setdefault(request.get("round", -1), []).append(request)
        whole = {item["round"]: item for item in phase["rounds"]}
        rounds = [
            {**whole[number], "round": place, "duration_s": whole[number]["duration_s"] / speed}
            for place, number in enumerate(drawn)
        ]
        requests = [
            {**slowed(request, speed), "prompt": f"{place}/{request['prompt']}", "round": place}
            for place, number in enumerate(drawn)
            for request in by_round[number]
        ]
        duration = sum(item["duration_s"] for item in rounds)
        phases.append({**phase, "rounds": rounds, "requests": requests, "duration_s": duration, "cut": False})
    return {**record, "phases": phases, "spent_s": 0.0}


def slowed(request: dict[str, Any], speed: float) -> dict[str, Any]:
    if not request["ok"]:
        return request
    return {**request, "ttft_s": request["ttft_s"] / speed, "e2e_s": request["e2e_s"] / speed}


if __name__ == "__main__":
    sys.exit(main())
