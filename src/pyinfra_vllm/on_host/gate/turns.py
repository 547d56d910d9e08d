"""Compares two servers that take turns on one card, round by round. Pure: numbers in, a finding out.

Rounds come in blocks of four, ABBA or BAAB by chance (A is the old release, B the new one). A drift that is
linear within a block cancels, and so does whatever lasts longer. Blocks say nothing about how much two starts
of one release differ: that spread has its own part in the interval, and more starts make it smaller.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..bench.stats import t_quantile
from .verdict import FAIL, INCONCLUSIVE, PASS

OLD, NEW = "A", "B"
ORDERS = ("ABBA", "BAAB")
LEAST_BLOCKS = 6
# Of the budget, for one round: eight blocks fit it where turns take the other three tenths.
ROUND_SHARE = 0.7 / (4 * 8)
# Blocks are enough when this many standard errors of theirs fit into half of the loss to be seen: the
# quantiles of both error rates, 2.33 + 1.64.
ENOUGH = 4.0
# Logarithms: two starts of one release on an H200 differ by 0.8 % (tokens/s at one stream, one standard
# deviation; benchmarks/gate/README.md), so one start by 0.8 / sqrt(2). Counts as so many starts.
START_SPREAD, STARTS_KNOWN = 0.0057, 30


@dataclass(frozen=True)
class Block:
    """Four rounds.

    sides: who was awake in each, such as "ABBA"
    values: of each round the logarithm of what is less when it is better, such as seconds per token
    pair: which start of A and which start of B these are
    """

    sides: str
    values: Sequence[float]
    pair: tuple[int, int] = (0, 0)

    @property
    def loss(self) -> float:
        """By how much B is worse than A, as a logarithm."""
        new, old = (
            statistics.fmean(value for value, side in zip(self.values, self.sides) if side == wanted)
            for wanted in (NEW, OLD)
        )
        return new - old


@dataclass(frozen=True)
class Limits:
    """The error rates and the detectable loss that the rounds are planned for.

    detect: the loss that must be seen, as a logarithm; a verdict is decided at half of it
    false_alarms: how often an equal release may fail
    missed: how often one that is worse by `detect` may pass
    """

    detect: float = math.log1p(0.03)
    false_alarms: float = 0.01
    missed: float = 0.05


@dataclass(frozen=True)
class Finding:
    """The loss with its standard error and the verdict.

    by_starts: the share of the error's square that only more starts can make smaller
    """

    loss: float
    error: float
    degrees: int
    by_starts: float
    blocks: int
    verdict: str = INCONCLUSIVE

    def bound(self, chance: float) -> float:
        """One-sided error bound of the loss at this error probability."""
        return t_quantile(1 - chance, self.degrees) * self.error


def orders(blocks: int, seed: str) -> list[str]:
    """Which side is awake in each round of each block, drawn at random from a seed that the record keeps."""
    chosen = random.Random(seed)
    return [chosen.choice(ORDERS) for _ in range(blocks)]


def settled(blocks: Sequence[Block], limits: Limits) -> bool:
    """Whether more blocks would not matter: decided by their spread alone, whichever side is better."""
    if len(blocks) < LEAST_BLOCKS:
        return False
    within, _ = _within(blocks)
    return ENOUGH * math.sqrt(within / len(blocks)) <= limits.detect / 2


def judge(
    blocks: Sequence[Block], limits: Limits, spread: float = START_SPREAD, known: int = STARTS_KNOWN
) -> Finding:
    """Decides when all blocks are measured: interim looks raise the false-positive rate (the one that there
    is, at the end of the budget, where this leaves it open, by a few in a thousand: benchmarks/turns).

    + spread, known: standard deviation between starts of one release, and how many starts it was seen in
    """
    found = _estimate(blocks, spread, known)
    if found.loss >= limits.detect / 2:
        decided = found.loss > found.bound(limits.false_alarms)
        return _with(found, FAIL if decided else INCONCLUSIVE)
    decided = found.loss + found.bound(limits.missed) < limits.detect
    return _with(found, PASS if decided else INCONCLUSIVE)


def _with(found: Finding, verdict: str) -> Finding:
    return Finding(found.loss, found.error, found.degrees, found.by_starts, found.blocks, verdict)


def _estimate(blocks: Sequence[Block], spread: float, known: int) -> Finding:
    means = _means(blocks)
    loss = statistics.fmean(means)
    within, free = _within(blocks)
    counts = Counter(block.pair for block in blocks).values()
    by_blocks = within * sum(1 / count for count in counts) / len(counts) ** 2
    # The difference of two starts varies twice as much as one start. The blocks' own part of it is not
    # subtracted, so the interval is rather too wide.
    seen = sum((mean - loss) ** 2 for mean in means) / 2
    between, starts_free = (known * spread**2 + seen) / (known + len(means) - 1), known + len(means) - 1
    by_starts = between * sum(1 / len({block.pair[side] for block in blocks}) for side in (0, 1))
    square = by_blocks + by_starts
    # Welch and Satterthwaite, rounded down
    degrees = square**2 / (by_blocks**2 / max(free, 1) + by_starts**2 / starts_free) if square else free
    return Finding(
        loss, math.sqrt(square), int(degrees) if free else 0, by_starts / (square or 1.0), len(blocks)
    )


def _means(blocks: Sequence[Block]) -> list[float]:
    """The mean loss of each pair of starts."""
    pairs = sorted({block.pair for block in blocks})
    return [statistics.fmean(block.loss for block in blocks if block.pair == pair) for pair in pairs]


def _within(blocks: Sequence[Block]) -> tuple[float, int]:
    """The variance of blocks of one pair of starts, and its degrees of freedom."""
    pairs = sorted({block.pair for block in blocks})
    squares = 0.0
    for pair in pairs:
        losses = [block.loss for block in blocks if block.pair == pair]
        squares += sum((loss - statistics.fmean(losses)) ** 2 for loss in losses)
    free = len(blocks) - len(pairs)
    return (squares / free, free) if free > 0 else (math.inf, 0)
