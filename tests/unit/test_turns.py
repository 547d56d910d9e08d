"""The comparison of two servers that take turns: drift cancels, and equal releases fail rarely."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pyinfra_vllm.on_host.bench import stats
from pyinfra_vllm.on_host.gate import turns
from pyinfra_vllm.on_host.gate.turns import Block, Limits
from pyinfra_vllm.on_host.gate.verdict import FAIL, INCONCLUSIVE, PASS

LIMITS = Limits()
NUMBERS = st.floats(-3, 3, allow_nan=False)
SIDES = st.sampled_from(turns.ORDERS)
BLOCKS = st.lists(
    st.builds(Block, SIDES, st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS)), min_size=2, max_size=20
)


def blocks(
    loss: float = 0.0, noise: float = 0.002, count: int = 8, seed: int = 1, **starts: Any
) -> list[Block]:
    chance = random.Random(seed)
    pairs = starts.get("pairs", [(0, 0)])
    return [
        Block(
            sides,
            [chance.gauss(loss if side == "B" else 0.0, noise) for side in sides],
            pairs[number % len(pairs)],
        )
        for number, sides in enumerate(turns.orders(count, str(seed)))
    ]


def shifted(block: Block, by: Callable[[str, int], float]) -> Block:
    """The block with what `by` says of each side and its start added to that side's rounds."""
    add = {side: by(side, start) for side, start in zip("AB", block.pair, strict=True)}
    values = [value + add[side] for value, side in zip(block.values, block.sides, strict=True)]
    return Block(block.sides, values, block.pair)


def swapped(block: Block) -> Block:
    return Block(block.sides.translate(str.maketrans("AB", "BA")), block.values, block.pair)


@given(st.integers(0, 200), st.text())
def test_every_block_has_two_rounds_of_each_and_chance_is_repeatable(count: int, seed: str) -> None:
    found = turns.orders(count, seed)
    assert len(found) == count and set(found) <= {"ABBA", "BAAB"}
    assert found == turns.orders(count, seed)


def test_both_orders_come() -> None:
    found = turns.orders(400, "x")
    assert 140 < found.count("ABBA") < 260


@given(SIDES, NUMBERS, NUMBERS, st.floats(-1, 1))
def test_what_is_linear_in_a_block_cancels(sides: str, level: float, slope: float, loss: float) -> None:
    values = [level + slope * place + (loss if side == "B" else 0.0) for place, side in enumerate(sides)]
    assert Block(sides, values).loss == pytest.approx(loss, abs=1e-9)


@given(BLOCKS)
def test_swapping_the_sides_only_changes_the_sign(given_blocks: list[Block]) -> None:
    there, back = (
        turns.judge(each, LIMITS) for each in (given_blocks, [swapped(block) for block in given_blocks])
    )
    assert back.loss == pytest.approx(-there.loss, abs=1e-9)
    assert back.error == pytest.approx(there.error, rel=1e-6) and back.degrees == there.degrees


@given(BLOCKS, NUMBERS)
def test_a_unit_of_measure_changes_nothing(given_blocks: list[Block], scale: float) -> None:
    scaled = [
        Block(block.sides, [value + scale for value in block.values], block.pair) for block in given_blocks
    ]
    one, other = turns.judge(given_blocks, LIMITS), turns.judge(scaled, LIMITS)
    assert other.loss == pytest.approx(one.loss, abs=1e-9) and other.error == pytest.approx(
        one.error, rel=1e-6
    )


@pytest.mark.thorough
@given(BLOCKS, st.floats(0, 0.5))
def test_slower_candidate_never_gets_a_better_verdict(given_blocks: list[Block], more: float) -> None:
    worse = [shifted(block, lambda side, _: more if side == "B" else 0.0) for block in given_blocks]
    before, after = turns.judge(given_blocks, LIMITS), turns.judge(worse, LIMITS)
    assume(abs(before.loss - LIMITS.detect / 2) > 1e-9 and abs(after.loss - LIMITS.detect / 2) > 1e-9)
    order = [PASS, INCONCLUSIVE, FAIL]
    assert order.index(after.verdict) >= order.index(before.verdict)


@given(BLOCKS)
def test_the_verdict_is_what_the_interval_says(given_blocks: list[Block]) -> None:
    found = turns.judge(given_blocks, LIMITS)
    if found.verdict == FAIL:
        assert found.loss - found.bound(LIMITS.false_alarms) > 0 and found.loss >= LIMITS.detect / 2
    if found.verdict == PASS:
        assert found.loss + found.bound(LIMITS.missed) < LIMITS.detect and found.loss < LIMITS.detect / 2


def test_clear_cases() -> None:
    assert turns.judge(blocks(0.0), LIMITS).verdict == PASS
    assert turns.judge(blocks(-0.2), LIMITS).verdict == PASS
    assert turns.judge(blocks(0.04), LIMITS).verdict == FAIL
    wide = [Block("ABBA", (0.0, loss, loss, 0.0)) for loss in (0.1, -0.1, 0.1, -0.1, 0.1, -0.1)]
    assert turns.judge(wide, LIMITS).verdict == INCONCLUSIVE
    assert turns.judge(blocks(0.0, count=1), LIMITS).verdict == INCONCLUSIVE


def test_no_number_of_blocks_shows_how_much_starts_differ() -> None:
    few, many = turns.judge(blocks(count=8), LIMITS), turns.judge(blocks(count=800), LIMITS)
    least = math.sqrt(2) * turns.START_SPREAD
    assert few.error > many.error > least and many.error == pytest.approx(least, rel=0.02)
    assert many.by_starts > 0.95
    two = turns.judge(blocks(count=800, pairs=[(0, 0), (1, 1)]), LIMITS)
    assert two.error == pytest.approx(turns.START_SPREAD, rel=0.05)


def test_the_error_counts_the_start_that_has_fewer_blocks() -> None:
    """As the losses of many such measurements really differ."""
    drawn = []
    for seed in range(1, 400):
        first = blocks(noise=0.02, count=3, seed=seed)
        second = blocks(noise=0.02, count=17, seed=-seed, pairs=[(1, 1)])
        drawn.append(turns.judge([*first, *second], LIMITS, spread=1e-6))
    expected = statistics.stdev(found.loss for found in drawn)
    assert statistics.fmean(found.error for found in drawn) == pytest.approx(expected, rel=0.1)


def test_starts_that_differ_much_make_the_interval_wide() -> None:
    equal = blocks(0.0, count=20, pairs=[(0, 0), (1, 1)])
    apart = [
        shifted(block, lambda side, start: 0.05 if (side, start) == ("B", 1) else 0.0) for block in equal
    ]
    found = turns.judge(apart, LIMITS, known=2)
    assert found.loss == pytest.approx(0.025, abs=0.002)
    assert found.error > 2 * turns.judge(equal, LIMITS, known=2).error
    assert found.verdict == INCONCLUSIVE


def test_more_blocks_are_wanted_until_they_are_precise_whichever_side_is_better() -> None:
    assert not turns.settled(blocks(count=turns.LEAST_BLOCKS - 1, noise=0.0001), LIMITS)
    assert turns.settled(blocks(count=turns.LEAST_BLOCKS, noise=0.0001), LIMITS)
    assert not turns.settled(blocks(noise=0.02), LIMITS) and turns.settled(
        blocks(noise=0.02, count=300), LIMITS
    )
    for loss in (-0.1, 0.1):
        assert turns.settled(blocks(loss), LIMITS) == turns.settled(blocks(0.0), LIMITS)


@pytest.mark.thorough
@pytest.mark.parametrize("pairs", [[(0, 0)], [(0, 0), (1, 1)]])
def test_equal_releases_fail_rarely(pairs: list[tuple[int, int]]) -> None:
    """Starts that differ as the default says; benchmarks/turns has more worlds and more draws."""
    chance = random.Random(7)
    failed = 0
    for seed in range(1500):
        starts = {
            (side, pair["AB".index(side)]): chance.gauss(0, turns.START_SPREAD)
            for pair in pairs
            for side in "AB"
        }
        found = [
            shifted(block, lambda side, start, starts=starts: starts[side, start])  # type: ignore[misc]
            for block in blocks(seed=seed, pairs=pairs)
        ]
        failed += turns.judge(found, LIMITS).verdict == FAIL
    assert failed <= 15 + 12  # 1 %, and three standard deviations of that count


@given(st.sampled_from([0.975, 0.99]), st.integers(1, 30))
@settings(max_examples=60)
def test_the_quantile_is_the_tables(share: float, degrees: int) -> None:
    table = stats.T95 if share == 0.975 else stats.T99
    assert stats.t_quantile(share, degrees) == pytest.approx(table[degrees - 1], abs=6e-4)


def test_the_quantile_at_its_ends() -> None:
    assert stats.t_quantile(0.99, 0) == math.inf
    assert stats.t_quantile(0.5, 5) == 0
    assert stats.t_quantile(0.99, 100_000) == pytest.approx(2.3264, abs=1e-3)
