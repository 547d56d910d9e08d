"""The verdict by what a release must reach by itself, and by what its answers are worth."""

from __future__ import annotations

from typing import Any

import pytest
from bench_records import failed, graded, judge, phase, record, row

from pyinfra_vllm.on_host.bench.criteria import Criteria


def test_a_first_installation_has_the_absolute_criteria_only() -> None:
    verdict = judge(None, record(phase(1)), Criteria(min_tokens_per_s={"c1": 90}, max_ttft_s={"c1": 0.06}))
    assert verdict["verdict"] == "pass"
    assert [item["name"] for item in verdict["metrics"]] == ["error_rate", "min_tokens_per_s", "max_ttft_s"]


@pytest.mark.parametrize(
    ("criteria", "name"),
    [
        (Criteria(min_tokens_per_s={"c1": 97}), "min_tokens_per_s"),
        (Criteria(max_ttft_s={"c1": 0.049}), "max_ttft_s"),
    ],
)
def test_a_missed_limit_fails_with_its_measured_value(criteria: Criteria, name: str) -> None:
    verdict = judge(None, record(phase(1)), criteria)
    assert verdict["verdict"] == "fail"
    assert row(verdict, name)["verdict"] == "fail"
    assert name in verdict["reasons"][0] and str(row(verdict, name)["after"]) in verdict["reasons"][0]


@pytest.mark.parametrize(("used", "expected"), [(900, "pass"), (1001, "fail"), (None, "inconclusive")])
def test_gpu_memory(used: int | None, expected: str) -> None:
    assert (
        judge(None, record(), Criteria(max_gpu_memory_mib=1000), gpu_memory_mib=used)["verdict"] == expected
    )


def test_a_limit_for_a_phase_that_was_not_measured_is_not_shown_to_hold() -> None:
    criteria = Criteria(concurrency=(1, 8), min_tokens_per_s={"c8": 100})
    assert judge(None, record(phase(1)), criteria)["verdict"] == "inconclusive"


def test_one_failed_request_fails_by_default_and_passes_when_the_operator_allows_it() -> None:
    after = record(phase(1, 99))
    after["phases"][0]["requests"].append(failed("p099", "http_429", "HTTP 429: slow down"))
    verdict = judge(record(phase(1, 100)), after)
    assert verdict["verdict"] == "fail"
    assert "1 of 100 requests failed (1 http_429)" in verdict["reasons"][0]
    assert judge(record(phase(1, 100)), after, Criteria(max_error_rate=0.02))["verdict"] == "pass"


def test_a_server_that_answered_nothing_fails_and_one_without_usage_is_inconclusive() -> None:
    def silent(kind: str) -> dict[str, Any]:
        return record({**phase(1), "requests": [failed("first", kind, "no answer")] * 3})

    assert judge(record(phase(1)), silent("timeout"))["verdict"] == "fail"
    assert judge(record(phase(1)), silent("no_usage"))["verdict"] == "inconclusive"


def test_a_release_is_not_held_against_a_baseline_that_answered_nothing() -> None:
    before = record({**phase(1), "requests": [failed("first")] * 3})
    verdict = judge(before, record(phase(1)))
    assert verdict["verdict"] == "pass"
    assert any("the release before answered nothing" in reason for reason in verdict["reasons"])


def test_a_failed_kernel_fails_whatever_the_numbers_say() -> None:
    verdict = judge(
        record(), record(), kernel={"verdict": "fail", "reasons": ["the slow AWQ kernel is in use"]}
    )
    assert verdict["verdict"] == "fail"
    assert "kernel: the slow AWQ kernel is in use" in verdict["reasons"]


def test_a_kernel_that_the_log_does_not_name_is_inconclusive() -> None:
    verdict = judge(
        record(), record(), kernel={"verdict": "inconclusive", "kernels": [], "reasons": ["no kernel line"]}
    )
    assert verdict["verdict"] == "inconclusive"
    assert verdict["reasons"][0] == "kernel: no kernel line"


# Quality


def quality(right_before: int, right_after: int, total: int = 160, **more: Any) -> dict[str, Any]:
    before = record(phase(1), quality=graded(right_before, total))
    after = record(phase(1), quality=graded(right_after, total))
    return judge(before, after, **more)


@pytest.mark.parametrize(
    ("before", "after", "total", "expected"),
    [
        (150, 150, 160, "pass"),
        (150, 145, 160, "pass"),  # 3 points
        (150, 120, 160, "fail"),
        (40, 0, 40, "fail"),
        (10, 8, 10, "inconclusive"),  # 20 points, and chance does that often
        (0, 0, 160, "pass"),
        (100, 140, 160, "pass"),
    ],
)
def test_lost_answers(before: int, after: int, total: int, expected: str) -> None:
    assert quality(before, after, total)["verdict"] == expected


def test_score_of_zero_on_both_sides_is_noted() -> None:
    assert "too few to lose" in row(quality(0, 0), "quality_points", None)["note"]


def test_quality_switched_off_is_not_judged() -> None:
    assert quality(150, 0, criteria=Criteria(quality=False))["verdict"] == "pass"


def partly(answered: int, total: int = 160, right: int = 150, **more: Any) -> dict[str, Any]:
    """A record in which so many of the questions were answered in time."""
    answers = graded(right, total)[:answered]
    return record(phase(1), quality=answers, quality_unanswered=total - answered, **more)


@pytest.mark.parametrize(
    ("answered", "expected"), [(160, "pass"), (144, "pass"), (143, "inconclusive"), (0, "inconclusive")]
)
def test_questions_that_a_release_does_not_answer_are_not_overlooked(answered: int, expected: str) -> None:
    verdict = judge(partly(160), partly(answered))
    found = row(verdict, "quality_points", None)
    assert (verdict["verdict"], found["verdict"], found["decides"]) == (expected, expected, True)
    if expected == "inconclusive":
        assert f"{answered or 'none'} of the 160 questions" in found["note"] and "budget_s" in found["note"]
        assert f"quality_points: {found['note']}" == verdict["reasons"][0]


def test_other_questions_than_before_show_nothing() -> None:
    before, after = record(quality=graded(40, 40, "old")), record(quality=graded(40, 40, "new"))
    assert judge(before, after)["verdict"] == "inconclusive"


def test_what_was_lost_among_few_questions_fails_all_the_same() -> None:
    after = partly(100)
    for item in after["quality"]:
        item["passed"] = False
    assert judge(partly(160), after)["verdict"] == "fail"


def test_a_baseline_that_answered_fewer_is_compared_on_those_and_says_so() -> None:
    verdict = judge(partly(100), partly(160))
    assert verdict["verdict"] == "pass"
    assert any("60 of 160 questions were not answered in time before" in line for line in verdict["reasons"])


@pytest.mark.parametrize("after", [partly(160), partly(0)])
def test_a_baseline_without_answers_is_a_reason_and_no_criterion(after: dict[str, Any]) -> None:
    for before in (record(phase(1)), partly(0)):
        verdict = judge(before, after)
        assert verdict["verdict"] == "pass"
        assert any("no question was answered before" in line for line in verdict["reasons"])
        assert "quality_points" not in [item["name"] for item in verdict["metrics"]]


def test_records_without_questions_have_no_rung_and_no_reason() -> None:
    verdict = judge(record(phase(1)), record(phase(1)))
    assert not any("question" in line for line in verdict["reasons"])
    assert {item["name"] for item in verdict["metrics"]}.isdisjoint({"quality_points", "sane_share"})


def test_a_first_installation_that_answers_no_question_is_inconclusive() -> None:
    verdict = judge(None, partly(0))
    assert verdict["verdict"] == "inconclusive" and "none of 160 questions" in verdict["reasons"][0]
    assert judge(None, partly(0), Criteria(quality=False))["verdict"] == "pass"
    assert judge(None, record(phase(1)))["verdict"] == "pass"


def test_mostly_degenerate_answers_fail_a_first_installation() -> None:
    answers = [{**item, "sane": number < 20} for number, item in enumerate(graded(0, 100))]
    verdict = judge(None, record(phase(1), quality=answers))
    assert verdict["verdict"] == "fail" and "20 of 100 answers are not degenerate" in verdict["reasons"][0]
