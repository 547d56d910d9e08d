"""The gate's statistics against values that anyone can look up or work out by hand."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_vllm.on_host.bench.stats import T99, chance, half_width, percentile, t_value


@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 12.706), (5, 2.571), (30, 2.042), (45, 2.042), (61, 1.960)]
)
def test_t_values_of_the_tables(degrees: int, value: float) -> None:
    assert t_value(degrees) == value


def test_one_value_has_no_spread() -> None:
    assert t_value(0) == math.inf and half_width([1.0]) == math.inf and half_width([]) == math.inf
    assert t_value(2, T99) == 6.965


def test_an_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    source = random.Random(7)
    samples = [[source.gauss(0, 1) for _ in range(6)] for _ in range(2000)]
    covered = sum(abs(sum(values) / 6) <= half_width(values) for values in samples)
    assert 0.93 < covered / 2000 < 0.97


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_lies_between_its_neighbours(values: list[float], share: float) -> None:
    assert min(values) - 1e-6 <= percentile(values, share) <= max(values) + 1e-6


def test_percentiles_as_numpy_has_them() -> None:
    assert percentile([1, 2, 3, 4], 0.5) == 2.5 and percentile([1, 2, 3, 4], 0.95) == pytest.approx(3.85)


@pytest.mark.parametrize(
    ("lost", "gained", "probability"), [(0, 0, 1.0), (1, 0, 0.5), (5, 0, 1 / 32), (3, 3, 42 / 64)]
)
def test_mcnemar_by_hand(lost: int, gained: int, probability: float) -> None:
    assert chance(lost, gained) == pytest.approx(probability)
