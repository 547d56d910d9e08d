"""How often turns cry wolf, and how often they see a slowdown: simulated, and on rounds of real servers.

`simulate.py [--draws 2000]` (this is `make bench-turns`)

A world has noise in each round, noise that lasts (autoregressive), a drift over the whole measurement,
and starts of one release that differ. In each world an equal release and one that is 3 % slower are
judged by turns, with one start of each side and with two, and one after the other: all rounds of the
old release, then all of the new one, as many as the turns took, with the same limits and a t interval of
the two means. The recorded rounds are those of `benchmarks/gate/traces`: of one unchanged server, in the
order in which they were measured, so that their noise is what a machine really has; which of them get
the new release's name is drawn anew. Live blocks are those of switches between equal releases on a GPU
(`pack.py`), drawn with replacement, with the difference that their two starts really had. Exits with 1 when a
target is missed in a world that has one.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyinfra_vllm.on_host.bench.record import Record
from pyinfra_vllm.on_host.bench.stats import t_quantile
from pyinfra_vllm.on_host.gate import turns
from pyinfra_vllm.on_host.gate.relative import by_round
from pyinfra_vllm.on_host.gate.turns import FAIL, INCONCLUSIVE, PASS, Block, Finding, Limits

TRACES = Path(__file__).resolve().parents[1] / "gate/traces"
LIVE = Path(__file__).resolve().parent / "traces"
BUDGET_S = 120.0  # the gate's default
SEED = 20261129
LIMITS = Limits()
SLOWER = math.log1p(0.03)
MOST_BLOCKS = 24  # of the default budget: 96 rounds of 0.6 s and 60 changes of 1 s are two minutes on an H200
ONE, TWO, AFTER = "turns", "turns, 2 starts", "one after the other"


@dataclass(frozen=True)
class World:
    """All as standard deviations of logarithms, but `drift`: what is gained or lost over the measurement.

    lasting: noise that keeps nine tenths of itself from one round to the next
    target: whether the project's targets must be met in it, by turns with two starts
    """

    name: str
    round: float
    lasting: float
    drift: float
    starts: float
    target: bool


WORLDS = (
    World("data centre, quiet", 0.0015, 0.0, 0.0, 0.0057, target=True),
    World("data centre, starts alike", 0.0015, 0.0, 0.0, 0.0015, target=True),
    World("data centre, drifts by 3 %", 0.002, 0.003, 0.03, 0.0057, target=True),
    World("shared machine", 0.012, 0.02, 0.05, 0.0057, target=False),
)


def rounds(world: World, count: int, chance: random.Random) -> list[float]:
    """Simulated times of an unchanged server, one for each round; less is better."""
    lasting, found = chance.gauss(0, world.lasting), []
    drift = chance.choice((-1, 1)) * world.drift
    for number in range(count):
        lasting = 0.9 * lasting + math.sqrt(1 - 0.9**2) * chance.gauss(0, world.lasting)
        found.append(drift * number / count + lasting + chance.gauss(0, world.round))
    return found


def in_turns(
    noise: list[float], loss: float, starts: Callable[[str, int], float], pairs: int, chance: random.Random
) -> tuple[Finding, int]:
    """The finding and how many rounds it took."""
    sides = turns.orders(len(noise) // 4, str(chance.random()))
    blocks: list[Block] = []
    for number, order in enumerate(sides):
        # The second starts come when the first have been measured.
        pair = number * pairs // len(sides)
        values = [
            value + starts(side, pair) + (loss if side == turns.NEW else 0.0)
            for side, value in zip(order, noise[4 * number : 4 * number + 4], strict=True)
        ]
        blocks.append(Block(order, values, (pair, pair)))
        if pairs == 1 and turns.settled(blocks, LIMITS):
            break
    return turns.judge(blocks, LIMITS), 4 * len(blocks)


def one_after_the_other(noise: list[float], loss: float, starts: Callable[[str, int], float]) -> Finding:
    half = len(noise) // 2
    old = [value + starts(turns.OLD, 0) for value in noise[:half]]
    new = [value + starts(turns.NEW, 0) + loss for value in noise[half:]]
    change = statistics.fmean(new) - statistics.fmean(old)
    square = (statistics.variance(old) + statistics.variance(new)) / half + 2 * turns.START_SPREAD**2
    found = Finding(change, math.sqrt(square), turns.STARTS_KNOWN, 0.0, half // 2)
    return decided(found)


def decided(found: Finding) -> Finding:
    """By the limits of `turns.judge`."""
    verdict = INCONCLUSIVE
    if found.loss >= LIMITS.detect / 2:
        verdict = FAIL if found.loss > found.bound(LIMITS.false_alarms) else INCONCLUSIVE
    elif found.loss + found.bound(LIMITS.missed) < LIMITS.detect:
        verdict = PASS
    return Finding(found.loss, found.error, found.degrees, found.by_starts, found.blocks, verdict)


@dataclass
class Seen:
    """The verdicts, interval widths and numbers of rounds of one way of measuring."""

    verdicts: Counter[str]
    widths: list[float]
    rounds: list[int]

    def line(self) -> str:
        total = self.verdicts.total()
        shares = " | ".join(f"{self.verdicts[word] / total:.1%}" for word in (PASS, FAIL, INCONCLUSIVE))
        return f"{shares} | {statistics.median(self.widths):.2%} | {statistics.median(self.rounds):.0f}"


def simulated(world: World, draws: int, loss: float) -> dict[str, Seen]:
    chance = random.Random(f"{SEED} {world.name} {loss}")
    found = {how: Seen(Counter(), [], []) for how in (ONE, TWO, AFTER)}
    for _ in range(draws):
        shifts = {(side, start): chance.gauss(0, world.starts) for side in "AB" for start in (0, 1)}

        def starts(side: str, start: int, shifts: dict[tuple[str, int], float] = shifts) -> float:
            return shifts[side, start]

        noise = rounds(world, 4 * MOST_BLOCKS, chance)
        one, took = in_turns(noise, loss, starts, 1, chance)
        # Two starts of each: as many blocks again, and no fewer than ten.
        two, took_two = in_turns(noise[: max(40, 2 * took)], loss, starts, 2, chance)
        for how, finding, count in ((ONE, one, took), (TWO, two, took_two)):
            note(found[how], finding, count)
        note(found[AFTER], one_after_the_other(noise[:took], loss, starts), took)
    return found


def note(seen: Seen, finding: Finding, count: int) -> None:
    seen.verdicts[finding.verdict] += 1
    seen.widths.append(t_quantile(0.975, max(1, finding.degrees)) * finding.error)
    seen.rounds.append(count)


def recorded() -> Iterator[tuple[str, list[list[float]]]]:
    """Of each trace and metric, the rounds of runs in the order in which they were measured."""
    for path in sorted(TRACES.glob("*.json.xz")):
        traces: dict[str, Any] = json.loads(lzma.decompress(path.read_bytes()))
        records = [Record.read(value, path.name) for value in traces["unchanged"]]
        for number, phase in enumerate(records[0].phases):
            for metric in ("tokens_per_s", *(("tpot_s",) if phase.name == "c1" else ())):
                sign = -1 if metric == "tokens_per_s" else 1
                runs = [
                    [sign * value for value in by_round(record.phases[number], metric).values()]
                    for record in records
                ]
                yield f"{path.name.split('.')[0]}, {phase.name} {metric}", same_prompts(runs)


def same_prompts(runs: list[list[float]]) -> list[list[float]]:
    """Without what a round's own prompts make of it: both sides of a block are asked the same ones.

    What the runs' common mean takes of their noise is given back.
    """
    means = [statistics.fmean(values) for values in zip(*runs, strict=False)]
    factor = math.sqrt(len(runs) / (len(runs) - 1))
    return [[factor * (value - mean) for value, mean in zip(run, means, strict=False)] for run in runs]


def replayed(runs: list[list[float]], draws: int, loss: float) -> dict[str, Seen]:
    """The rounds of three runs, one after the other: 24 of them in a row, which get the two names."""
    chance = random.Random(f"{SEED} {loss}")
    found = {how: Seen(Counter(), [], []) for how in (ONE, AFTER)}
    for _ in range(draws):
        place = chance.randrange(len(runs) - 2)
        noise = [value for run in runs[place : place + 3] for value in run]
        first = chance.randrange(len(noise) - 24 + 1)
        noise = noise[first : first + 24]
        finding, took = in_turns(noise, loss, lambda *_: 0.0, 1, chance)
        note(found[ONE], finding, took)
        note(found[AFTER], one_after_the_other(noise, loss, lambda *_: 0.0), 24)
    return found


def live() -> Iterator[tuple[str, float, list[list[float]]]]:
    """Of each live trace and metric: the seconds of a block, and of each switch the losses of its blocks."""
    for path in sorted(LIVE.glob("*.json.xz")):
        trace: dict[str, Any] = json.loads(lzma.decompress(path.read_bytes()))
        names = ("c1 tokens_per_s", "c1 tpot_s", "c8 tokens_per_s", "c64 tokens_per_s")
        for name in names:
            found = [
                [
                    Block("".join(one["side"] for one in block), [one["values"][name] for one in block]).loss
                    for block in switch
                ]
                for switch in trace["switches"]
            ]
            yield f"{trace['where']}: {name}", trace["block_s"], found


def drawn(switches: list[list[float]], block_s: float, draws: int, loss: float) -> dict[str, Seen]:
    """As many blocks as the default budget has, shared between one start of each side or two; and where
    those leave it open, more of the last start, until they are precise enough or three budgets are over.
    """
    chance = random.Random(f"{SEED} {loss}")
    found = {how: Seen(Counter(), [], []) for how in (ONE, TWO)}
    few, most = (max(turns.LEAST_BLOCKS, int(times * BUDGET_S / block_s)) for times in (1, 3))
    for _ in range(draws):
        for how, pairs in ((ONE, 1), (TWO, 2)):
            switch = [chance.choice(switches) for _ in range(pairs)]

            def block(pair: int, switch: list[list[float]] = switch) -> Block:
                worse = chance.choice(switch[pair]) + loss
                return Block("ABBA", (0.0, worse, worse, 0.0), (pair, pair))

            blocks = [block(pair) for pair in range(pairs) for _ in range(few // pairs)]
            finding = turns.judge(blocks, LIMITS)
            if finding.verdict == INCONCLUSIVE:
                last = few // pairs
                while last < most // pairs and not turns.settled(blocks[-last:], LIMITS):
                    blocks.append(block(pairs - 1))
                    last += 1
                finding = turns.judge(blocks, LIMITS)
            note(found[how], finding, 4 * len(blocks))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=2000)
    draws = parser.parse_args().draws
    missed = 0
    for world in WORLDS:
        header(world.name)
        for name, loss in (("equal", 0.0), ("3 % slower", SLOWER)):
            found = simulated(world, draws, loss)
            print("".join(f"| {how} | {name} | {seen.line()} |\n" for how, seen in found.items()), end="")
            if world.target:
                failed = found[TWO].verdicts[FAIL] / draws
                missed += failed > 0.01 if not loss else failed < 0.95
    for name, runs in recorded():
        header(name)
        for what, loss in (("equal", 0.0), ("3 % slower", SLOWER)):
            found = replayed(runs, draws, loss)
            print("".join(f"| {how} | {what} | {seen.line()} |\n" for how, seen in found.items()), end="")
    for name, block_s, switches in live():
        header(name)
        for what, loss in (("equal", 0.0), ("3 % slower", SLOWER)):
            told = drawn(switches, block_s, draws, loss)
            print("".join(f"| {how} | {what} | {seen.line()} |\n" for how, seen in told.items()), end="")
    print(f"\ntargets missed: {missed}")
    return int(missed > 0)


def header(name: str) -> None:
    print(
        f"\n| {name} | release | pass | fail | unclear | half width | rounds |\n|---|---|---|---|---|---|---|"
    )


if __name__ == "__main__":
    sys.exit(main())
