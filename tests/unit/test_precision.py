"""When a side has been measured long enough: by the spread of its own rounds, whatever they are compared
with.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from bench_records import request
from hypothesis import given, settings
from hypothesis import strategies as st

from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.record import Phase, Request
from pyinfra_vllm.on_host.gate import precision
from pyinfra_vllm.on_host.gate.noise import Noise

CRITERIA = Criteria(budget_s=20.0)


def phase(rounds: int, spread: float = 0.0, concurrency: int = 1, speed: float = 1.0, seed: int = 0) -> Phase:
    """Rounds of three requests, each as fast as its round: a log-normal factor with this spread."""
    source = random.Random(seed)
    requests, made = [], []
    for number in range(rounds):
        factor = float(2.718281828 ** source.gauss(0, spread)) / speed
        items = [request(f"{number}-{i}", 0.05 * factor, 0.01 * factor, round=number) for i in range(3)]
        requests += items
        took = sum(item["e2e_s"] for item in items) / concurrency
        made.append({"round": number, "duration_s": took, "output_tokens": 303, "complete": True})
    duration = sum(item["duration_s"] for item in made)
    name = f"c{concurrency}"
    return Phase.of(
        {
            "name": name,
            "concurrency": concurrency,
            "duration_s": duration,
            "requests": requests,
            "rounds": made,
        }
    )


@pytest.mark.parametrize(("rounds", "expected"), [(1, False), (4, False), (5, True), (12, True)])
def test_low_variance_needs_five_rounds(rounds: int, expected: bool) -> None:
    assert precision.settled([phase(rounds)], CRITERIA) is expected


def test_a_spread_that_the_margin_can_not_resolve_needs_more_rounds() -> None:
    assert not precision.settled([phase(8, spread=0.05)], CRITERIA)
    assert precision.settled([phase(60, spread=0.05)], CRITERIA)
    assert precision.settled(
        [phase(8, spread=0.05)], Criteria(budget_s=20, throughput_margin=0.4, tpot_margin=0.4)
    )


def test_every_phase_must_be_precise_and_have_its_share_of_the_time() -> None:
    assert not precision.settled([phase(8), phase(8, spread=0.05, concurrency=8)], CRITERIA)
    assert precision.settled([phase(8), phase(8, concurrency=8)], CRITERIA)
    assert not precision.settled([phase(8), phase(8, concurrency=8)], Criteria(budget_s=120.0))


def test_calibrated_noise_asks_for_no_more_precision_than_it_leaves() -> None:
    noise = Noise(5, {"c1": dict.fromkeys(("tokens_per_s", "e2e_s", "tpot_s", "ttft_s"), 0.4)})
    assert precision.settled([phase(8, spread=0.05)], CRITERIA, noise)


def test_what_never_decides_and_a_phase_without_answers_hold_nothing_up() -> None:
    silent = replace(phase(6), requests=(Request("p", ok=False),))
    assert precision.settled([silent], CRITERIA)
    shown = {"c1": dict.fromkeys(("tokens_per_s", "e2e_s", "tpot_s"), None)}
    assert precision.settled([phase(8, spread=0.05)], Criteria(budget_s=20, margins=shown))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.floats(0, 0.1), st.integers(0, 1000), st.floats(0.5, 2.0))
def test_how_fast_the_side_is_does_not_matter(rounds: int, spread: float, seed: int, speed: float) -> None:
    """The rule can't prefer a verdict: a side of any other speed with the same spread stops at the same
    round.
    """
    criteria = Criteria(budget_s=5.0, ttft_floor_s=0)
    one, other = phase(rounds, spread, seed=seed), phase(rounds, spread, seed=seed, speed=speed)
    assert precision.settled([one], criteria) is precision.settled([other], criteria)
