"""Judges the speed of two servers by rounds in which they took turns, instead of one after the other. Pure.

Each round of a block is one round of every phase, of the same prompts on both sides. A metric that decides
has a finding of its own (gate/turns.py), in the place of the row that compares the two records.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..bench.criteria import Criteria
from ..bench.record import Phase
from . import relative, turns
from .noise import Noise, of_phase
from .turns import Block, Finding, Limits
from .verdict import FAIL, INCONCLUSIVE, Row

METRICS = ("tokens_per_s", *relative.LATENCIES)
# What calibration tells is a quantile of two runs' difference (one in 100); a start's deviation is this part.
START_OF_NOISE = 1 / (2.33 * math.sqrt(2))
ONE_SIDED = 0.025  # of each end of the interval that people are shown

Key = tuple[str, str]  # phase and metric


@dataclass(frozen=True)
class Side:
    """One round of one server.

    who: turns.OLD or turns.NEW
    phases: with this round alone
    start: which start of its server this is, from 0 on
    """

    who: str
    phases: Sequence[Phase]
    start: int = 0

    def value(self, phase: str, metric: str) -> float | None:
        """The logarithm of what is less when it is better; None where the round has none."""
        for each in self.phases:
            found = relative.by_round(each, metric) if each.name == phase else {}
            for value in found.values():
                return -value if metric == "tokens_per_s" else value
        return None

    def as_dict(self, keys: Sequence[Key]) -> dict[str, object]:
        values = {f"{phase} {metric}": self.value(phase, metric) for phase, metric in keys}
        return {"side": self.who, "start": self.start, "values": values}


@dataclass(frozen=True)
class InTurns:
    """All blocks of a measurement in turns, four rounds each.

    turns: how often the servers changed
    ended: why there are no more, where they are too few
    """

    blocks: Sequence[Sequence[Side]]
    turns: int = 0
    ended: str = ""

    @property
    def enough(self) -> bool:
        """Whether there are as many blocks as a verdict needs."""
        return len(self.blocks) >= turns.LEAST_BLOCKS

    @property
    def starts(self) -> int:
        """How many starts of each side were measured."""
        return len({rounds[0].start for rounds in self.blocks})

    def of(self, key: Key) -> list[Block]:
        """The blocks of one metric; those in which a round has no value are left out."""
        found = []
        for rounds in self.blocks:
            values = [each.value(*key) for each in rounds]
            known = [value for value in values if value is not None]
            if len(known) == len(values):
                start = rounds[0].start
                found.append(Block("".join(each.who for each in rounds), known, (start, start)))
        return found

    def as_dict(self) -> dict[str, object]:
        """The record of it: the logarithm of every value, less is better."""
        names = sorted({phase.name for rounds in self.blocks for side in rounds for phase in side.phases})
        keys = [(name, metric) for name in names for metric in METRICS]
        return {
            "turns": self.turns,
            "blocks": [[side.as_dict(keys) for side in each] for each in self.blocks],
        }

    def line(self) -> str:
        """How it was measured, in words."""
        if not self.enough:
            return (
                f"not judged in turns: {len(self.blocks)} blocks of four rounds were measured, and a verdict"
                f" needs {turns.LEAST_BLOCKS} ({self.ended}). One release was judged after the other, so a"
                " drift of the machine may pass for a difference"
            )
        starts = f" and {self.starts} starts of each side" if self.starts > 1 else ""
        return (
            f"measured in {self.turns} turns: {len(self.blocks)} blocks of four rounds{starts}, in an order"
            " that chance chose, so that a drift of the machine can't pass for a difference"
        )


def settled(measured: InTurns, criteria: Criteria) -> bool:
    """Whether more blocks would not matter to any metric that decides, whichever side is better."""
    limits = _all_limits(measured, criteria)
    return bool(limits) and all(turns.settled(measured.of(key), each) for key, each in limits.items())


def left_open(measured: InTurns, criteria: Criteria, noise: Noise | None = None) -> bool:
    """Whether a metric is undecided, and none has failed: what more blocks may change."""
    verdicts = [
        _finding(measured.of(key), each, key, noise).verdict
        for key, each in _all_limits(measured, criteria).items()
    ]
    return INCONCLUSIVE in verdicts and FAIL not in verdicts


def rows(
    compared: Sequence[Row], measured: InTurns, criteria: Criteria, noise: Noise | None = None
) -> list[Row]:
    """The rows of the verdict, those of speed that decide by the blocks.

    + compared: by the two records, one after the other
    + noise: what calibration found, for the spread between two starts
    """
    limits = _all_limits(measured, criteria)
    return [
        _row(row, measured.of((row.phase or "", row.name)), limits[row.phase or "", row.name], noise)
        if (row.phase or "", row.name) in limits and row.decides and not row.hopeless
        else row
        for row in compared
    ]


def _all_limits(measured: InTurns, criteria: Criteria) -> Mapping[Key, Limits]:
    """Of each metric that decides: its margin and its floor count where they are wider than what turns can
    see, and all of them share the false alarms.
    """
    found: dict[Key, float] = {}
    names = sorted({phase.name for rounds in measured.blocks for side in rounds for phase in side.phases})
    for key in ((name, metric) for name in names for metric in METRICS):
        blocks = measured.of(key)
        allowed = criteria.allowed(*key, _typical(blocks, key[1])) if blocks else None
        if allowed is not None:
            found[key] = max(2 * allowed, Limits.detect)
    share = Limits.false_alarms / max(1, len(found))
    return {key: Limits(detect, share) for key, detect in found.items()}


def _typical(blocks: Sequence[Block], metric: str, who: str = turns.OLD) -> float:
    """The mean of one side's rounds in the metric's own unit."""
    values = [value for block in blocks for value, side in zip(block.values, block.sides) if side == who]
    mean = statistics.fmean(values)
    return math.exp(-mean if metric == "tokens_per_s" else mean)


def _finding(blocks: Sequence[Block], limits: Limits, key: Key, noise: Noise | None) -> Finding:
    known = of_phase(noise, key[0]).get(key[1])
    if known is None or noise is None:
        return turns.judge(blocks, limits)
    return turns.judge(blocks, limits, math.log1p(known) * START_OF_NOISE, noise.runs)


def _row(row: Row, blocks: Sequence[Block], limits: Limits, noise: Noise | None) -> Row:
    found = _finding(blocks, limits, (row.phase or "", row.name), noise)
    worse = -1 if row.name == "tokens_per_s" else 1
    width = found.bound(ONE_SIDED)
    ends = sorted(math.exp(worse * loss) for loss in (found.loss - width, found.loss + width))
    return replace(
        row,
        before=round(_typical(blocks, row.name, turns.OLD), 6),
        after=round(_typical(blocks, row.name, turns.NEW), 6),
        ratio=round(math.exp(worse * found.loss), 6),
        interval=(round(ends[0], 6), round(ends[1], 6)),
        limit=round(math.exp(worse * limits.detect / 2), 6),
        verdict=found.verdict,
        repeatable=False,
        detectable=None,
        needed=None,
        doubt="",
        by=f"turns, {found.blocks} blocks",
    )
