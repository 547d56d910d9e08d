"""Worse is: beyond the margin of its phase, beyond its floor, and not by a few slow requests
alone.
"""

from __future__ import annotations

import copy
import math
import random
import re
from typing import Any

import pytest
from bench_records import judge, phase, record, row
from hypothesis import given, settings
from hypothesis import strategies as st

from pyinfra_vllm.on_host.bench.criteria import Criteria, CriteriaError
from pyinfra_vllm.on_host.gate.relative import LATENCIES

ORDER = {"pass": 0, "inconclusive": 1, "fail": 2}


def slower(record: dict[str, Any], factor: float, *, ttft: float | None = None) -> dict[str, Any]:
    """The same requests, each so many times as long; the first token by a factor of its own where one is
    given.
    """
    made = copy.deepcopy(record)
    for item in made["phases"]:
        for request in item["requests"]:
            rest = request["e2e_s"] - request["ttft_s"]
            request["ttft_s"] *= factor if ttft is None else ttft
            request["e2e_s"] = request["ttft_s"] + rest * factor
        item["duration_s"] *= factor
    return made


def test_first_token_difference_below_its_floor_passes() -> None:
    """The 8B on an H200: 20.6 ms and 20.6 ms by their medians, a ratio of means of 1.078 and an interval up
    to 1.169.
    """
    before = record(phase(1))
    for item in before["phases"][0]["requests"]:
        item["ttft_s"] = 0.0206
    after = slower(before, 1.0, ttft=3.0)  # 41 ms later
    found = row(judge(before, after), "ttft_s")
    assert found["verdict"] == "pass" and found["limit"] == pytest.approx(1 + 0.05 / 0.0206, abs=1e-4)
    assert row(judge(before, after, Criteria(ttft_floor_s=0.02)), "ttft_s")["verdict"] == "fail"
    assert row(judge(before, slower(before, 1.0, ttft=4.0)), "ttft_s")["verdict"] == "fail"


def test_a_floor_only_ever_allows_more_than_the_margin() -> None:
    before = record(phase(1))  # the first token after 50 ms
    assert row(judge(before, before, Criteria(ttft_floor_s=0.001)), "ttft_s")["limit"] == 1.1


@pytest.mark.parametrize(
    ("floor", "expected"),
    [({}, "fail"), ({"throughput_floor": 20}, "pass"), ({"throughput_floor": 10}, "fail")],
)
def test_a_floor_of_tokens_per_second(floor: dict[str, float], expected: str) -> None:
    before = record(phase(1))  # 96 tokens/s
    others = {"tpot_margin": None, "ttft_margin": None, "e2e_floor_s": 10}
    assert judge(before, slower(before, 1.2), Criteria(**others, **floor))["verdict"] == expected
    huge = Criteria(throughput_floor=1e6, **others)
    assert row(judge(before, slower(before, 100), huge), "tokens_per_s")["limit"] == 0


def test_a_margin_by_phase_and_metric_makes_a_trade_in_that_phase_alone() -> None:
    before, after = record(phase(1), phase(64)), record(phase(1), phase(64, slower=1.6))
    assert judge(before, after)["verdict"] == "fail"
    traded = {"tokens_per_s": 0.45, "e2e_s": 0.9}
    assert judge(before, after, Criteria(margins={"max": traded}))["verdict"] == "pass"
    assert judge(before, after, Criteria(concurrency=(1, 64), margins={"c64": traded}))["verdict"] == "pass"
    assert judge(before, after, Criteria(margins={"c1": traded}))["verdict"] == "fail"
    assert (
        judge(record(phase(1)), record(phase(1, slower=1.6)), Criteria(margins={"max": traded}))["verdict"]
        == "fail"
    )


def test_a_margin_of_none_shows_a_metric_and_lets_it_never_decide() -> None:
    before, after = record(phase(8)), record(phase(8, slower=1.6))
    unseen = dict.fromkeys(("tokens_per_s", "e2e_s"), None)
    verdict = judge(before, after, Criteria(margins={"c8": unseen}))
    assert verdict["verdict"] == "pass"
    assert row(verdict, "tokens_per_s", "c8")["decides"] is False


def test_max_is_the_phase_of_the_most_requests_and_its_own_name_wins() -> None:
    limits = Criteria(
        concurrency=(1, 16, "max"), min_tokens_per_s={"max": 10.0, "c16": 20.0}, max_ttft_s={"max": 2}
    )
    at = limits.at(16)
    assert (at.concurrency, at.min_tokens_per_s, at.max_ttft_s) == ((1, 16), {"c16": 20.0}, {"c16": 2})
    assert limits.at(64).min_tokens_per_s == {"c64": 10.0, "c16": 20.0}
    found = judge(None, record(phase(1), phase(64)), Criteria(min_tokens_per_s={"max": 1e6}))
    assert row(found, "min_tokens_per_s", "c64")["verdict"] == "fail"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"margins": {"c4": {"e2e_s": 0.1}}}, "margins.c4"),
        ({"margins": {"c8": {"ttft_s": 0.1}}}, "one of the metrics tokens_per_s, e2e_s"),
        ({"margins": {"c1": {"tokens_per_s": 1}}}, "margins.c1.tokens_per_s = 1 "),
        ({"margins": {"c1": {"e2e_s": -0.1}}}, "margins.c1.e2e_s = -0.1"),
        ({"margins": {"c1": 0.1}}, "a mapping of phases to metrics and shares"),
        ({"margins": {"c1": {"e2e_s": "much"}}}, "a mapping of phases to metrics and shares"),
        ({"concurrency": [1, "most"]}, '"max" for as many as the server admits'),
        ({"concurrency": ["max", "max"]}, "each number once"),
        ({"concurrency": [1, 8], "min_tokens_per_s": {"max": 3}}, "one of the phases c1, c8"),
        ({"budget_s": 100, "max_budget_s": 60}, "at least budget_s, 100"),
        ({"ttft_floor_s": -1}, "seconds from 0 on"),
        ({"throughput_floor": float("inf")}, "throughput_floor"),
    ],
)
def test_what_can_t_be_used_names_its_key_and_what_is_allowed(values: dict[str, Any], said: str) -> None:
    with pytest.raises(CriteriaError, match=re.escape(said)):
        Criteria.from_dict(values)


# The message names the key


@settings(max_examples=60, deadline=None)
@given(
    st.floats(1.06, 30),
    st.integers(3, 30),
    st.floats(0, 0.1),
    st.integers(0, 1000),
    st.sampled_from((1, 8, 64)),
)
def test_the_margin_that_a_rollback_names_would_have_allowed_it(
    factor: float, count: int, noise: float, seed: int, concurrency: int
) -> None:
    before = record(phase(concurrency, count, noise=noise, seed=seed))
    after = slower(record(phase(concurrency, count, noise=noise, seed=seed + 1)), factor)
    criteria = Criteria(ttft_floor_s=0)
    verdict = judge(before, after, criteria)
    named = re.findall(
        r"gate\.margins\.(\w+)\.(\w+) = ([\d.e+]+) would allow it", " ".join(verdict["reasons"])
    )
    margins: dict[str, dict[str, float]] = {}
    for where, metric, share in named:
        margins.setdefault(where, {})[metric] = float(share)
    open_ones = {
        item["name"]
        for item in verdict["metrics"]
        if item["decides"] and item["verdict"] == verdict["verdict"]
    }
    if verdict["verdict"] != "pass":
        assert {metric for _, metric, _ in named} == open_ones
        assert {where for where, _, _ in named} == {{1: "c1", 8: "c8", 64: "max"}[concurrency]}
    allowed = judge(before, after, Criteria(ttft_floor_s=0, margins=margins))
    for item in allowed["metrics"]:
        if item["name"] in {metric for _, metric, _ in named}:
            assert item["verdict"] == "pass"


def test_errors_and_answers_are_no_trade_and_name_no_key() -> None:
    before = record(quality=[{"prompt": f"q{n}", "passed": True} for n in range(40)])
    after = record(quality=[{"prompt": f"q{n}", "passed": n > 20} for n in range(40)])
    verdict = judge(before, after)
    assert verdict["verdict"] == "fail" and "margins" not in " ".join(verdict["reasons"])


# Medians that agree


def with_outliers(share: float, times: float) -> dict[str, Any]:
    made = record(phase(1, 40))
    for number, request in enumerate(made["phases"][0]["requests"]):
        if number < share * 40:
            request["ttft_s"] *= times
    return made


def test_medians_that_agree_are_not_called_worse_by_a_mean() -> None:
    criteria = Criteria(ttft_floor_s=0)
    found = row(judge(record(phase(1, 40)), with_outliers(0.3, 3.0), criteria), "ttft_s")
    assert found["ratio"] > 1.3 and found["interval"][1] > found["limit"]
    assert found["verdict"] == "pass"
    most = row(judge(record(phase(1, 40)), with_outliers(0.7, 3.0), criteria), "ttft_s")
    assert most["verdict"] == "fail"


def test_what_few_slow_requests_cost_is_in_tokens_per_second() -> None:
    before, after = record(phase(1, 40)), record(phase(1, 40))
    for request in after["phases"][0]["requests"][:12]:
        request["e2e_s"] *= 3
    after["phases"][0]["duration_s"] = sum(item["e2e_s"] for item in after["phases"][0]["requests"])
    verdict = judge(before, after)
    assert row(verdict, "e2e_s")["verdict"] == "pass" and row(verdict, "tokens_per_s")["verdict"] != "pass"
    assert verdict["verdict"] != "pass"


# Properties of the verdict

SHARE = st.floats(0, 0.5)


@st.composite
def criteria(draw: st.DrawFn) -> Criteria:
    margins = {"c1": {name: draw(SHARE) for name in ("tokens_per_s", *LATENCIES) if draw(st.booleans())}}
    return Criteria(
        throughput_margin=draw(SHARE),
        tpot_margin=draw(st.none() | SHARE),
        ttft_margin=draw(st.none() | SHARE),
        margins=margins,
        ttft_floor_s=draw(st.floats(0, 0.1)),
        e2e_floor_s=draw(st.floats(0, 1)),
        throughput_floor=draw(st.floats(0, 50)),
    )


@pytest.mark.thorough
@settings(max_examples=150, deadline=None)
@given(
    criteria(),
    st.floats(0.5, 3),
    st.floats(1, 3),
    st.integers(2, 30),
    st.floats(0, 0.2),
    st.integers(0, 1000),
)
def test_a_release_that_is_slower_throughout_never_gets_a_better_verdict(
    limits: Criteria, factor: float, more: float, count: int, noise: float, seed: int
) -> None:
    before = record(phase(1, count, noise=noise, seed=seed))
    after = slower(record(phase(1, count, noise=noise, seed=seed + 1)), factor)
    first, second = (judge(before, item, limits)["verdict"] for item in (after, slower(after, more)))
    assert ORDER[second] >= ORDER[first]


@pytest.mark.thorough
@settings(max_examples=150, deadline=None)
@given(criteria(), SHARE, st.floats(0.5, 3), st.integers(2, 30), st.floats(0, 0.2), st.integers(0, 1000))
def test_a_wider_margin_or_a_higher_floor_never_gives_a_worse_verdict(
    limits: Criteria, wider: float, factor: float, count: int, noise: float, seed: int
) -> None:
    before = record(phase(1, count, noise=noise, seed=seed))
    after = slower(record(phase(1, count, noise=noise, seed=seed + 1)), factor)
    values = limits.as_dict()
    loose = Criteria.from_dict(
        {
            **values,
            "throughput_margin": min(0.99, limits.throughput_margin + wider),
            "tpot_margin": None if limits.tpot_margin is None else limits.tpot_margin + wider / 2,
            "margins": {
                "c1": {name: (share or 0) + wider / 2 for name, share in limits.margins["c1"].items()}
            },
            "ttft_floor_s": limits.ttft_floor_s + wider,
            "throughput_floor": limits.throughput_floor + wider,
        }
    )
    assert ORDER[judge(before, after, loose)["verdict"]] <= ORDER[judge(before, after, limits)["verdict"]]


@pytest.mark.thorough
@settings(max_examples=100, deadline=None)
@given(st.floats(0, 0.2), st.floats(0.5, 3), st.integers(2, 30), st.integers(0, 1000))
def test_a_difference_below_its_floor_is_never_worse(
    floor: float, factor: float, count: int, seed: int
) -> None:
    before = record(phase(1, count, seed=seed))
    after = slower(before, 1.0, ttft=factor)
    found = row(judge(before, after, Criteria(ttft_floor_s=floor)), "ttft_s")
    if 0.05 * (factor - 1) < floor - 1e-9:
        assert found["verdict"] == "pass"
    elif factor > 1.11 and 0.05 * (factor - 1) > floor + 1e-9:
        assert found["verdict"] == "fail"


def test_repeated_rounds_of_the_same_prompts_count_with_their_mean() -> None:
    """A candidate that is measured further has less noise, round by round."""
    source = random.Random(4)

    def rounds(numbers: list[int], spread: float) -> dict[str, Any]:
        made, requests = [], []
        for number in numbers:
            factor = math.exp(source.gauss(0, spread))
            made.append({"round": number, "duration_s": 3.0 * factor, "output_tokens": 300, "complete": True})
            requests += [
                {
                    "prompt": f"p{number}-{i}",
                    "ok": True,
                    "ttft_s": 0.05 * factor,
                    "e2e_s": 1.0 * factor,
                    "input_tokens": 9,
                    "output_tokens": 100,
                    "round": number,
                }
                for i in range(3)
            ]
        duration = sum(item["duration_s"] for item in made)
        return {"name": "c1", "concurrency": 1, "duration_s": duration, "requests": requests, "rounds": made}

    before = record(rounds(list(range(6)), 0.0), plan={"rounds": 6})
    first = rounds(list(range(6)), 0.06)
    once = record(copy.deepcopy(first), spent_s=30.0)
    again = record(copy.deepcopy(first), spent_s=90.0)
    for _ in range(4):
        more = rounds(list(range(6)), 0.06)
        for key in ("requests", "rounds"):
            again["phases"][0][key] += more[key]
        again["phases"][0]["duration_s"] += more["duration_s"]
    seen, later = (row(judge(before, item), "tokens_per_s") for item in (once, again))
    assert later["detectable"] < 0.7 * seen["detectable"]
