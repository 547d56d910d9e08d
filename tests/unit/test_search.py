"""The search of a tuning: what comes next, resumed anywhere, and how often it is wrong."""

from __future__ import annotations

import json
import lzma
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.record import Phase, Record
from pyinfra_vllm.on_host.gate.calibration import calibration
from pyinfra_vllm.on_host.gate.noise import Noise
from pyinfra_vllm.on_host.gate.relative import compare
from pyinfra_vllm.tuning import search
from pyinfra_vllm.tuning.search import Done, Pair, Search, Trial

TRACES = Path(__file__).parents[2] / "benchmarks" / "gate" / "traces"
NAMES = [f"equal-{number}" for number in range(8)]
NIGHTS = 300
LOOKS_S = (20.0, 60.0, 120.0)
Draw = Callable[[random.Random, float], float]  # seconds of a look -> log ratio of an unchanged service


@cache
def unchanged(trace: str) -> tuple[Record, ...]:
    values = json.loads(lzma.decompress((TRACES / f"{trace}.json.xz").read_bytes()))["unchanged"]
    return tuple(Record.read(value, f"run {place}") for place, value in enumerate(values))


def one_stream(run: Record) -> Phase:
    return next(phase for phase in run.phases if phase.name == "c1")


def shortened(phase: Phase, rounds: list[int]) -> Phase:
    """The phase as if only these rounds had been measured."""
    kept = tuple(each for each in phase.rounds if each.round in rounds)
    requests = tuple(each for each in phase.requests if each.round in rounds)
    return replace(phase, rounds=kept, requests=requests, duration_s=sum(each.duration_s for each in kept))


@cache
def recorded(trace: str, budget_s: float) -> Draw:
    """Ratios of two runs of an unchanged server, by the gate's own comparison of tokens/s at one stream: of a
    short look only the first of some rounds, of a long one all of them.
    """
    phases = [one_stream(run) for run in unchanged(trace)]
    pairs = list(permutations(phases, 2))
    drawn: dict[tuple[int, int, int], float] = {}

    def draw(source: random.Random, look_s: float) -> float:
        place = source.randrange(len(pairs))
        before, after = pairs[place]
        common = sorted({each.round for each in before.rounds} & {each.round for each in after.rounds})
        count = max(2, min(len(common), round(len(common) * look_s / budget_s)))
        first = source.randrange(len(common) - count + 1)
        if (place, first, count) not in drawn:
            kept = common[first : first + count]
            rows = compare(shortened(before, kept), shortened(after, kept), Criteria(), {}, 0.0)
            (ratio,) = (row.ratio for row in rows if row.name == "tokens_per_s")
            assert ratio is not None
            drawn[place, first, count] = math.log(ratio)
        return drawn[place, first, count]

    return draw


def night(found: Search, draw: Draw, source: random.Random, true: dict[str, float], pair_s: float) -> Done:
    """One whole search against recorded noise. `true`: log gains; 0 for those that are not in it."""
    journal: list[dict[str, Any]] = []
    for _ in range(1000):
        step = found.next(journal)
        if isinstance(step, Done):
            return step
        gain = max(true.get(name, 0.0) for name in step.candidate.split(search.JOIN))
        seconds = step.look_s if isinstance(step, Trial) else pair_s
        ratio = math.exp(gain + draw(source, seconds))
        if isinstance(step, Trial):
            journal.append({"trial": step.candidate, "rung": step.rung, "ratio": ratio})
        else:
            journal.append({"pair": step.candidate, "ratio": ratio})
    raise AssertionError("the search has no end")


def searching(groups: dict[str, str], seed: int = 0, pairs: int = search.FEWEST_PAIRS) -> Search:
    return Search(groups, seed, pairs, LOOKS_S)


@pytest.mark.thorough
@pytest.mark.parametrize(("trace", "budget_s"), [("h200", 30.0), ("lab-cpu", 120.0)])
def test_equal_configurations_win_in_at_most_one_of_100_nights_and_5_percent_is_found(
    trace: str, budget_s: float
) -> None:
    deviation = search.deviation_of(calibration(list(unchanged(trace))), "c1")
    pairs, looks_s = search.pairs_needed(deviation), search.looks(budget_s, deviation)
    groups = {name: f"group-{place % 3}" for place, name in enumerate(NAMES)}
    draw = recorded(trace, budget_s)
    wins = found = 0
    for seed in range(NIGHTS):
        source = random.Random(seed)
        looking = Search(groups, seed, pairs, looks_s)
        wins += night(looking, draw, source, {}, budget_s).winner is not None
        planted = night(looking, draw, source, {NAMES[5]: math.log(1.05)}, budget_s)
        found += NAMES[5] in (planted.winner or "")
    assert wins <= 0.01 * NIGHTS, (wins, pairs)
    assert found >= 0.95 * NIGHTS, (found, pairs)


def test_gain_is_reported_from_the_pairs_alone() -> None:
    """A look that was lucky must not be in it."""
    journal: list[dict[str, Any]] = [{"trial": "one", "rung": 0, "ratio": 9.0}]
    looking = searching({"one": "kernel"})
    for ratio in (1.10, 1.12, 1.11, 1.11):
        assert isinstance(looking.next(journal), Pair)
        journal.append({"pair": "one", "ratio": ratio})
    done = looking.next(journal)
    assert isinstance(done, Done)
    assert done.winner == "one"
    assert done.ratio == pytest.approx(1.11, abs=0.001)
    assert done.interval and done.interval[0] < done.ratio < done.interval[1] < 1.13


def test_insignificant_gain_is_not_taken() -> None:
    logs = [math.log(each) for each in (1.02, 1.2, 0.99, 1.1)]
    assert search.verdict("one", logs).winner is None
    assert search.verdict("one", [math.log(1.005)] * 3 + [math.log(1.0051)]).winner is None


def test_nothing_better_ends_without_a_confirmation() -> None:
    done = searching({"one": "a", "two": "b"}).next(
        [{"trial": name, "rung": 0, "ratio": 0.98} for name in ("one", "two")]
    )
    assert done == Done(None, None, None, "nothing was better than the current configuration")


def test_best_of_each_group_are_tried_together() -> None:
    groups = {"marlin": "kernel", "humming": "kernel", "ngram": "speculation"}
    journal = [
        {"trial": "marlin", "rung": 0, "ratio": 1.2},
        {"trial": "humming", "rung": 0, "ratio": 1.1},
        {"trial": "ngram", "rung": 0, "ratio": 1.05},
    ]
    looking = searching(groups)
    step = looking.next(journal)
    assert step == Trial("marlin", 1, LOOKS_S[1])
    journal.append({"trial": "marlin", "rung": 1, "ratio": 1.2})
    assert looking.next(journal) == Trial("marlin + ngram", 1, LOOKS_S[1])


def test_configuration_that_failed_never_comes_back() -> None:
    journal: list[dict[str, Any]] = [
        {"trial": "one", "rung": 0, "ratio": 1.5},
        {"trial": "two", "rung": 0, "ratio": 1.1},
        {"trial": "one", "rung": 1, "failed": "did not start: out of memory"},
        {"trial": "one + two", "rung": 1, "failed": "did not start: out of memory"},
    ]
    groups = {"one": "a", "two": "b"}
    assert isinstance(searching(groups).next(journal), Done)
    assert searching(groups).next(journal[:2]) == Trial("one", 1, LOOKS_S[1])


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"trial": "one", "rung": 0},
        {"trial": "one", "ratio": 1.0},
        {"trial": "one", "rung": 0, "ratio": 0},
        {"trial": "one", "rung": 0, "ratio": True},
        {"pair": "one", "failed": 1},
        {"pair": "one", "trial": "one", "rung": 0, "ratio": 1.0},
        {"pair": "one", "ratio": math.inf},
    ],
)
def test_what_is_no_record_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no record of a search"):
        searching({"one": "a"}).next([record])


def test_looks_are_short_only_where_they_tell_something() -> None:
    assert search.looks(120.0, 0.008) == (20.0, 60.0, 120.0)
    assert search.looks(120.0, search.UNKNOWN_DEVIATION) == (120.0,)
    assert search.deviation_of(None, "c1") == search.UNKNOWN_DEVIATION
    assert search.deviation_of(Noise(3, {}), "c1") == search.UNKNOWN_DEVIATION


def test_deviation_is_what_the_calibration_was_made_of() -> None:
    runs = unchanged("h200")
    phases = [one_stream(run) for run in runs]
    logs = []
    for phase in phases:
        ratios = [
            row.ratio for row in compare(phases[0], phase, Criteria(), {}, 0.0) if row.name == "tokens_per_s"
        ]
        assert ratios[0]
        logs.append(math.log(ratios[0]))
    found = search.deviation_of(calibration(list(runs)), "c1")
    assert found == pytest.approx(statistics.stdev(logs) * math.sqrt(2), rel=1e-3)


def test_pairs_follow_the_calibrated_noise() -> None:
    assert search.pairs_needed(0.0) == search.FEWEST_PAIRS
    assert search.pairs_needed(1.0) == search.MOST_PAIRS
    counts = [search.pairs_needed(deviation / 1000) for deviation in range(60)]
    assert counts == sorted(counts)


SIZES = st.integers(1, 20)
RATIOS = st.floats(0.5, 2.0)


@pytest.mark.thorough
@settings(max_examples=80, deadline=None)
@given(count=SIZES, seed=st.integers(0, 99), source=st.randoms(use_true_random=False))
def test_every_search_ends_within_its_outline_and_each_look_is_taken_once(
    count: int, seed: int, source: random.Random
) -> None:
    groups = {f"c{number}": f"g{number % 4}" for number in range(count)}
    looking = searching(groups, seed)
    journal: list[dict[str, Any]] = []
    steps: list[Trial | Pair] = []
    while not isinstance(step := looking.next(journal), Done):
        steps.append(step)
        if isinstance(step, Trial) and source.random() < 0.1:
            journal.append({"trial": step.candidate, "rung": step.rung, "failed": "x"})
        elif isinstance(step, Trial):
            journal.append({"trial": step.candidate, "rung": step.rung, "ratio": source.uniform(0.8, 1.3)})
        else:
            journal.append({"pair": step.candidate, "ratio": source.uniform(0.8, 1.3)})
    trials = [step for step in steps if isinstance(step, Trial)]
    assert len({(step.candidate, step.rung) for step in trials}) == len(trials)
    for rung, most in enumerate(search.outline(count, LOOKS_S)):
        assert sum(step.rung == rung for step in trials) <= most.trials
    assert max(step.rung for step in trials) < len(search.outline(count, LOOKS_S))
    assert {step.candidate for step in trials if step.rung == 0} == set(groups)
    assert sum(isinstance(step, Pair) for step in steps) in (0, looking.pairs)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), extra=st.integers(0, 5))
def test_search_cut_off_anywhere_goes_on_as_if_it_had_not_been(seed: int, extra: int) -> None:
    """The journal is all there is: a new Search over a copy of it, read back from JSON, says the same."""
    groups = {f"c{number}": f"g{number % 3}" for number in range(4 + extra)}
    source = random.Random(seed)
    journal: list[dict[str, Any]] = []
    while not isinstance(step := searching(groups, seed).next(journal), Done):
        again = searching(dict(groups), seed).next(json.loads(json.dumps(journal)))
        assert again == step
        ratio = source.uniform(0.9, 1.2)
        if isinstance(step, Trial):
            journal.append({"trial": step.candidate, "rung": step.rung, "ratio": ratio})
        else:
            journal.append({"pair": step.candidate, "ratio": ratio})


@given(count=SIZES, seed=st.integers(0, 99))
def test_order_is_the_seed_s_within_threes(count: int, seed: int) -> None:
    names = [f"c{number}" for number in range(count)]
    order = searching(dict.fromkeys(names, "g"), seed).first()
    assert sorted(order, key=names.index) == names
    assert all(abs(names.index(name) - place) < search.KEPT for place, name in enumerate(order))


def test_seeds_differ() -> None:
    groups = dict.fromkeys(NAMES, "g")
    assert len({tuple(searching(groups, seed).first()) for seed in range(20)}) > 5
