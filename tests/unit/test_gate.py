"""The verdict on two records: what passes, what fails, what can't be told, and what follows from it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from bench_records import failed, judge, phase, record, request, row
from hypothesis import given, settings
from hypothesis import strategies as st

from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.record import Record
from pyinfra_vllm.on_host.gate import gate, precision
from pyinfra_vllm.on_host.gate.verdict import Verdict

CRITERIA = Criteria()
GRADED = [{"prompt": f"q{number}", "passed": True} for number in range(20)]


def test_the_same_record_twice_passes_with_its_numbers() -> None:
    verdict = judge(record(phase(1), phase(8)), record(phase(1), phase(8)))
    assert verdict["verdict"] == "pass"
    rate = row(verdict, "tokens_per_s")
    assert rate["ratio"] == 1 and rate["interval"] == [1, 1] and rate["limit"] == 0.95
    assert rate["before"] == rate["after"] == pytest.approx(101 / 1.05)
    json.dumps(verdict, allow_nan=False)


def test_a_slower_server_fails_and_the_reason_has_both_numbers() -> None:
    verdict = judge(record(phase(1)), record(phase(1, slower=1.2)))
    assert verdict["verdict"] == "fail"
    assert row(verdict, "tokens_per_s")["ratio"] == pytest.approx(1 / 1.2, abs=1e-5)
    assert row(verdict, "tpot_s")["ratio"] == pytest.approx(1.2, abs=1e-5)
    assert any(
        "tokens_per_s: worse: 96.1905 before, 80.1587 after" in reason for reason in verdict["reasons"]
    )


def test_a_faster_server_passes() -> None:
    assert judge(record(phase(1)), record(phase(1, slower=0.7)))["verdict"] == "pass"


@pytest.mark.parametrize(("slower", "expected"), [(1.04, "pass"), (1.06, "fail")])
def test_the_margin_decides_where_there_is_no_noise(slower: float, expected: str) -> None:
    assert judge(record(phase(1)), record(phase(1, slower=slower)))["verdict"] == expected


def test_noise_wider_than_the_margin_is_inconclusive() -> None:
    verdict = judge(
        record(phase(1, 6, noise=0.5, seed=1)),
        record(phase(1, 6, noise=0.5, seed=3)),
        Criteria(concurrency=(1,)),
    )
    assert verdict["verdict"] == "inconclusive"
    assert any("smallest change that this run could see" in reason for reason in verdict["reasons"])


def test_one_request_has_no_interval_and_decides_nothing() -> None:
    verdict = judge(record(phase(1, 1)), record(phase(1, 1)))
    assert verdict["verdict"] == "inconclusive"
    assert row(verdict, "tokens_per_s")["interval"] is None


def test_concurrent_ttft_and_tpot_are_shown_and_never_decide() -> None:
    after = phase(8)
    for item in after["requests"]:
        item["ttft_s"] *= 1.5
    verdict = judge(record(phase(8)), record(after))
    assert verdict["verdict"] == "pass"
    assert row(verdict, "ttft_s", "c8")["verdict"] == "fail"
    assert row(verdict, "ttft_s", "c8")["decides"] is False


def test_ttft_at_one_stream_decides_unless_its_margin_is_taken_away() -> None:
    after = phase(1)
    for item in after["requests"]:
        item["ttft_s"] *= 1.3
    strict = {"ttft_floor_s": 0.0}
    assert judge(record(phase(1)), record(after), Criteria(**strict))["verdict"] == "fail"
    assert judge(record(phase(1)), record(after), Criteria(ttft_margin=None, **strict))["verdict"] == "pass"


def test_answers_that_arrive_in_one_piece_say_nothing_about_their_first_token() -> None:
    after = phase(1)
    for item in after["requests"]:
        item["ttft_s"] = item["e2e_s"] - 0.0001
    verdict = judge(record(phase(1)), record(after))
    assert verdict["verdict"] == "inconclusive"
    assert any("whole answers arrive in one piece" in reason for reason in verdict["reasons"])
    assert (
        judge(record(phase(1)), record(after), Criteria(tpot_margin=None, ttft_margin=None))["verdict"]
        == "pass"
    )


def rounds(rates: list[float], prompts: int = 6) -> dict[str, Any]:
    """A phase of whole rounds with these tokens/s."""
    requests, durations = [], []
    for number, rate in enumerate(rates):
        tpot = 1 / rate
        items = [
            request(f"c1-{number * prompts + i:04d}s", 10 * tpot, tpot, round=number) for i in range(prompts)
        ]
        requests += items
        durations.append(sum(item["e2e_s"] for item in items))
    return {
        "name": "c1",
        "concurrency": 1,
        "duration_s": sum(durations),
        "requests": requests,
        "rounds": [
            {"round": number, "duration_s": took, "output_tokens": 101 * prompts, "complete": True}
            for number, took in enumerate(durations)
        ],
    }


def test_intervals_are_computed_over_rounds() -> None:
    """Many requests of few rounds that disagree prove nothing."""
    verdict = judge(record(rounds([100, 100, 100])), record(rounds([130, 70, 80])))
    assert row(verdict, "tokens_per_s")["verdict"] == "inconclusive"
    assert judge(record(rounds([100, 100, 100])), record(rounds([80, 81, 80])))["verdict"] == "fail"


def test_a_side_with_fewer_rounds_is_compared_on_the_common_ones() -> None:
    verdict = judge(record(rounds([100, 100, 100, 10])), record(rounds([100, 100, 100])))
    assert verdict["verdict"] == "pass"
    assert row(verdict, "tokens_per_s")["before"] == pytest.approx(row(verdict, "tokens_per_s")["after"])


def test_calibrated_noise_widens_the_margin_and_never_tightens_it() -> None:
    before, after = record(phase(1)), record(phase(1, slower=1.08))
    assert judge(before, after)["verdict"] == "fail"
    noise = {"runs": 5, "phases": {"c1": {"tokens_per_s": 0.1, "tpot_s": 0.1, "ttft_s": 0.0, "e2e_s": 0.1}}}
    assert judge(before, after, noise=noise)["verdict"] == "pass"
    tight = {"runs": 5, "phases": {"c1": {"tokens_per_s": 0.001}}}
    assert row(judge(before, before, noise=tight), "tokens_per_s")["limit"] == 0.95


def test_without_calibration_a_small_change_in_noisy_rounds_is_no_failure() -> None:
    before, after = record(rounds([100] * 4)), record(rounds([91, 96, 90, 95]))  # 7 % slower, within 5 %
    assert judge(before, after, noise=NOISE)["verdict"] == "fail"
    verdict = judge(before, after)
    assert verdict["verdict"] == "inconclusive"
    assert "not calibrated, and two runs of an unchanged service may differ by more" in verdict["reasons"][0]
    assert judge(before, record(rounds([80, 84, 79, 83])))["verdict"] == "fail"


def test_lateness_of_the_probe_itself_makes_a_close_call_inconclusive_and_saves_no_slow_server() -> None:
    late = {"late_mean_s": 0.2}
    assert judge(record(phase(1)), record(phase(1), client=late))["verdict"] == "inconclusive"
    assert judge(record(phase(1)), record(phase(1, slower=3), client=late))["verdict"] == "fail"


@pytest.mark.parametrize(("share", "expected"), [(0.04, "pass"), (0.06, "inconclusive")])
def test_probe_lateness_is_overlooked_up_to_a_twentieth_of_what_was_measured(
    share: float, expected: str
) -> None:
    late = {"late_mean_s": share * request("p")["ttft_s"]}  # the shortest time that decides at one stream
    before, after = record(phase(1)), record(phase(1), client=late)
    verdict = judge(before, after, Criteria(ttft_margin=0.03, ttft_floor_s=0.0))
    assert row(verdict, "ttft_s")["verdict"] == expected


def test_other_traffic_on_one_side_only_makes_the_comparison_inconclusive() -> None:
    busy, idle = {"other_share": 0.3}, {"other_share": 0.0}
    verdict = judge(record(phase(1), traffic=idle), record(phase(1, slower=1.5), traffic=busy))
    assert verdict["verdict"] == "inconclusive"
    assert any(
        "other traffic was 0% of the tokens before and 30% after" in reason for reason in verdict["reasons"]
    )


@settings(max_examples=60, deadline=None)
@given(st.floats(0.2, 5.0), st.integers(2, 30), st.floats(0, 0.3), st.integers(0, 10_000))
def test_faster_never_fails_and_the_interval_holds_the_ratio(
    factor: float, count: int, noise: float, seed: int
) -> None:
    before = record(phase(1, count, noise=noise, seed=seed))
    after = copy.deepcopy(before)
    for item in after["phases"][0]["requests"]:
        item["ttft_s"] *= factor
        item["e2e_s"] *= factor
    after["phases"][0]["duration_s"] *= factor
    verdict = judge(before, after)
    if factor <= 1:
        assert verdict["verdict"] == "pass"
    if factor > 1.11:
        assert verdict["verdict"] == "fail"
    for item in verdict["metrics"]:
        if item["interval"]:
            assert item["interval"][0] <= item["ratio"] <= item["interval"][1]


# What follows from a verdict


def wants_more(verdict: dict[str, Any], before: Any, after: Any, criteria: Criteria) -> bool:
    first = None if before is None else Record.read(before, "before")
    return gate.wants_more(Verdict.read(verdict, "verdict"), first, Record.read(after, "after"), criteria)


def test_which_verdicts_keep_the_release() -> None:
    keep = Criteria(on_inconclusive="keep")
    passed, failed, unclear = (Verdict(word, (), ()) for word in ("pass", "fail", "inconclusive"))
    assert gate.may_stay(passed, CRITERIA) and not gate.may_stay(failed, keep)
    assert gate.may_stay(unclear, keep)
    assert not gate.may_stay(unclear, CRITERIA)


def test_a_run_that_is_not_clear_wants_more_while_there_is_time() -> None:
    before = record(rounds([100] * 6), plan={"rounds": 6})
    after = record(rounds([100, 60, 130]), spent_s=50.0)
    unclear = judge(before, after)
    assert unclear["verdict"] == "inconclusive"
    assert wants_more(unclear, before, after, CRITERIA)
    assert not wants_more({**unclear, "verdict": "pass"}, before, after, CRITERIA)
    assert not wants_more(unclear, None, after, CRITERIA)


@pytest.mark.parametrize(
    ("criteria", "spent_s", "wants"),
    [
        ({}, 119.5, True),  # beyond its budget for doubt alone, up to three times
        ({}, 359.5, False),
        ({"max_budget_s": 200}, 198.0, True),
        ({"max_budget_s": 200}, 199.5, False),
        ({"on_inconclusive": "keep"}, 100.0, True),
        ({"on_inconclusive": "keep"}, 119.5, False),  # doubt alone takes nothing back
    ],
)
def test_undecided_comparison_is_measured_up_to_the_longest_budget(
    criteria: dict[str, Any], spent_s: float, wants: bool
) -> None:
    before = record(rounds([100] * 6), plan={"rounds": 6})
    after = record(rounds([100, 60, 130, 90, 70, 140]), spent_s=spent_s)
    chosen = Criteria(**criteria)
    assert wants_more(judge(before, after, chosen), before, after, chosen) is wants


def test_a_window_that_closes_ends_the_measuring_beyond_its_budget_and_never_within() -> None:
    criteria = Criteria()
    early, late = (Record.read(record(spent_s=spent_s), "record") for spent_s in (100.0, 400.0))
    assert precision.left_s(criteria, early) == 260
    assert precision.left_s(criteria, early, until_s=90) == 90
    assert precision.left_s(criteria, early, until_s=-500) == 20
    assert precision.left_s(criteria, late, until_s=500) < 0


def test_undecidable_criteria_are_not_measured_further() -> None:
    before = record(rounds([100] * 6), plan={"rounds": 6}, quality=GRADED)
    after = record(rounds([100, 60, 130]), spent_s=50.0, quality=[])
    verdict = judge(before, after)
    assert verdict["verdict"] == "inconclusive" and row(verdict, "quality_points", None)["verdict"] != "pass"
    assert not wants_more(verdict, before, after, CRITERIA)


def test_a_release_that_never_got_to_a_plan_cannot_be_measured_further() -> None:
    before = record(rounds([100] * 6), plan={"rounds": 6})
    after = record({**phase(1), "requests": [failed("first", "no_usage", "none")] * 3}, spent_s=5.0)
    verdict = judge(before, after)
    assert verdict["verdict"] == "inconclusive"
    assert not wants_more(verdict, before, after, CRITERIA)


NOISE = {"runs": 5, "phases": {"c1": dict.fromkeys(("tokens_per_s", "tpot_s", "ttft_s", "e2e_s"), 0.01)}}


@pytest.mark.parametrize(
    ("rates", "more", "wants"),
    [
        ([93, 95, 94], {}, True),  # the interval reaches from 0.92 to 0.97
        ([80, 81, 80], {}, False),
        ([93, 95, 94], {"quality": [{"prompt": "q", "passed": False, "sane": False}] * 160}, False),
    ],
)
def test_a_release_that_failed_by_little_is_asked_further_and_one_beyond_doubt_is_not(
    rates: list[float], more: dict[str, Any], wants: bool
) -> None:
    before = record(rounds([100] * 6), plan={"rounds": 6})
    after = record(rounds(rates), spent_s=50.0, **more)
    verdict = judge(before, after, noise=NOISE)
    assert verdict["verdict"] == "fail"
    assert wants_more(verdict, before, after, CRITERIA) is wants
