"""The verdict: what passes, what fails, what can't be told, and which records are refused."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
from bench_records import failed, graded, phase, record, request
from hypothesis import given, settings
from hypothesis import strategies as st

from pyinfra_vllm.on_host import gate
from pyinfra_vllm.on_host.gate import Criteria, CriteriaError, RecordError

CRITERIA = Criteria()


def judge(before: Any, after: Any, criteria: Criteria = CRITERIA, **more: Any) -> dict[str, Any]:
    return gate.judge(before, after, criteria, **more)


def row(verdict: dict[str, Any], name: str, phase_name: str | None = "c1") -> dict[str, Any]:
    (found,) = [item for item in verdict["metrics"] if item["name"] == name and item["phase"] == phase_name]
    return found


# Relative


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
    assert judge(record(phase(1)), record(after))["verdict"] == "fail"
    assert judge(record(phase(1)), record(after), Criteria(ttft_margin=None))["verdict"] == "pass"


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


def test_rounds_are_the_unit_of_chance() -> None:
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


# Absolute


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


def test_a_score_of_zero_on_both_sides_says_that_there_was_nothing_to_lose() -> None:
    assert "nothing to lose" in row(quality(0, 0), "quality_points", None)["note"]


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


def test_mostly_insane_answers_fail_a_first_installation() -> None:
    answers = [{**item, "sane": number < 20} for number, item in enumerate(graded(0, 100))]
    verdict = judge(None, record(phase(1), quality=answers))
    assert verdict["verdict"] == "fail" and "20 of 100 answers are sane" in verdict["reasons"][0]


@pytest.mark.parametrize(("bits", "expected"), [(0.82, "pass"), (1.2, "fail")])
def test_likelihood_of_the_fixed_texts(bits: float, expected: str) -> None:
    before = record(phase(1), likelihood=[{"text": "en-1", "bits_per_byte": 0.8}])
    after = record(phase(1), likelihood=[{"text": "en-1", "bits_per_byte": bits}])
    assert judge(before, after)["verdict"] == expected


@pytest.mark.parametrize("after", [None, [], [{"text": "ja-1", "bits_per_byte": 0.8}]])
def test_a_likelihood_that_was_measured_before_only_is_shown(after: Any) -> None:
    before = record(phase(1), likelihood=[{"text": "en-1", "bits_per_byte": 0.8}])
    verdict = judge(before, record(phase(1), likelihood=after))
    found = row(verdict, "bits_per_byte", None)
    assert (verdict["verdict"], found["verdict"], found["decides"]) == ("pass", "inconclusive", False)
    assert "before and not after" in found["note"]


# What follows from a verdict


def test_what_may_stay() -> None:
    keep = Criteria(on_inconclusive="keep")
    assert gate.may_stay({"verdict": "pass"}, CRITERIA) and not gate.may_stay({"verdict": "fail"}, keep)
    assert gate.may_stay({"verdict": "inconclusive"}, keep)
    assert not gate.may_stay({"verdict": "inconclusive"}, CRITERIA)


def test_a_run_that_is_not_clear_wants_more_while_there_are_rounds_and_time() -> None:
    before = record(rounds([100] * 6), plan={"rounds": 6})
    after = record(rounds([100, 60, 130]), spent_s=50.0)
    unclear = {"verdict": "inconclusive", "metrics": []}
    assert gate.wants_more(unclear, before, after, CRITERIA)
    assert not gate.wants_more({"verdict": "pass"}, before, after, CRITERIA)
    assert not gate.wants_more(unclear, before, {**after, "spent_s": 119.5}, CRITERIA)
    assert not gate.wants_more(unclear, None, after, CRITERIA)
    assert not gate.wants_more(unclear, before, record(rounds([100] * 6), spent_s=50.0), CRITERIA)


def test_a_release_that_never_got_to_a_plan_cannot_be_measured_further() -> None:
    before = record(rounds([100] * 6), plan={"rounds": 6})
    after = record({**phase(1), "requests": [failed("first", "no_usage", "none")] * 3}, spent_s=5.0)
    verdict = judge(before, after)
    assert verdict["verdict"] == "inconclusive"
    assert not gate.wants_more(verdict, before, after, CRITERIA)


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
    assert gate.wants_more(verdict, before, after, CRITERIA) is wants


# Records that can't be judged

GOOD: dict[str, Any] = record(phase(1), phase(8))


MISSING = object()


def broken(path: list[Any], value: Any = MISSING) -> dict[str, Any]:
    damaged = copy.deepcopy(GOOD)
    place: Any = damaged
    for key in path[:-1]:
        place = place[key]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return damaged


REQUEST = ["phases", 1, "requests", 3]


@pytest.mark.parametrize(
    ("damaged", "named"),
    [
        ([], "after: not a benchmark record but list"),
        (broken(["schema"]), "after.schema is missing"),
        (broken(["schema"], "other/1"), "after.schema is 'other/1'"),
        (broken(["model"]), "after.model is missing"),
        (broken(["phases"]), "after.phases is missing"),
        (broken(["phases"], []), "after.phases is empty"),
        (broken(["phases", 0, "requests"], []), "after.phases[0] (c1).requests is empty"),
        (broken(["phases", 0, "duration_s"]), "after.phases[0] (c1).duration_s is missing"),
        (broken(["phases", 0, "duration_s"], 0), "after.phases[0] (c1).duration_s is 0"),
        (broken(["phases", 1, "name"], "c1"), "after.phases[1].name: 'c1' is there twice"),
        (broken([*REQUEST, "prompt"]), "after.phases[1] (c8).requests[3].prompt is missing"),
        (broken([*REQUEST, "ok"], "yes"), "after.phases[1] (c8).requests[3].ok must be true or false"),
        (broken([*REQUEST, "ttft_s"]), "after.phases[1] (c8).requests[3].ttft_s is missing"),
        (broken([*REQUEST, "ttft_s"], math.nan), "after.phases[1] (c8).requests[3].ttft_s is nan"),
        (broken([*REQUEST, "e2e_s"], math.inf), "after.phases[1] (c8).requests[3].e2e_s is inf"),
        (broken([*REQUEST, "e2e_s"], 0.001), "e2e_s is 0.001, less than its ttft_s"),
        (broken([*REQUEST, "e2e_s"], "1.2"), "e2e_s must be a number, not '1.2'"),
        (broken([*REQUEST, "output_tokens"], 0), "output_tokens is 0: an answer with zero tokens is not ok"),
        (
            broken([*REQUEST, "input_tokens"], 9),
            "mismatched prompts: 'p003' has 256 input tokens before and 9 after",
        ),
        (broken(["phases", 1]), "phase 'c8' is in the before record and not in the after record"),
        (broken(["quality"], [{"prompt": "q1"}]), "after.quality[0].passed is missing"),
    ],
)
def test_what_is_wrong_with_a_record_is_named(damaged: Any, named: str) -> None:
    with pytest.raises(RecordError) as error:
        judge(GOOD, damaged)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["traffic"], 3, "after.traffic must be a mapping, not 3"),
        (["traffic"], {"other_share": "x"}, "after.traffic.other_share must be a number, not 'x'"),
        (["traffic"], {"other_share": 1.5}, "after.traffic.other_share must be a share from 0 to 1"),
        (["client"], None, "after.client must be a mapping, not None"),
        (["client"], {"late_mean_s": [0.1]}, "after.client.late_mean_s must be a number"),
        (["warm_up"], 4, "after.warm_up must be a mapping, not 4"),
        (["warm_up"], {"requests": "9"}, "after.warm_up.requests must be a number"),
        (["warm_up"], {"errors": [7]}, "after.warm_up.errors[0] must be a mapping"),
        (["warm_up"], {"errors": [{"kind": ["a"]}]}, "after.warm_up.errors[0].kind must be text"),
        (["server"], "0.32", "after.server must be a mapping"),
        (["plan"], {"words": {}}, "after.plan.words is empty"),
        (["plan"], {"rounds": 0}, "after.plan.rounds must be a whole number of at least 1, not 0"),
        (["likelihood"], [{"text": "a"}], "after.likelihood[0].bits_per_byte is missing"),
        (["likelihood"], {"a": 1}, "after.likelihood must be a list"),
        (["spent_s"], "long", "after.spent_s must be a number"),
        (["model"], 7, "after.model must be text"),
        (["model"], "\ud800", "after.model must be text, not '\\ud800'"),
        (["phases", 0, "name"], "c1\nc2", "name must be text on one line, not 'c1\\nc2'"),
        (["evaluations"], {"a\nb": {"value": 1}}, "a name in after.evaluations must be text on one line"),
        (["quality"], [{"prompt": "q", "passed": True, "sane": "yes"}], "after.quality[0].sane must be true"),
        (["quality"], [{"prompt": "q", "passed": True, "error": 5}], "after.quality[0].error must be text"),
        ([*REQUEST, "round"], [1], "(c8).requests[3].round must be a number"),
        ([*REQUEST, "ttft_s"], 10**400, "requests[3].ttft_s is 1000"),
        (["phases", 0, "rounds"], 5, "(c1).rounds must be a list"),
        (["phases", 0, "rounds"], [{"round": 0}], "(c1).rounds[0].duration_s is missing"),
        (
            ["phases", 0, "rounds"],
            [{"round": 0, "duration_s": 0, "output_tokens": 5, "complete": True}],
            "(c1).rounds[0].duration_s is 0: a round takes time",
        ),
    ],
)
def test_a_known_key_of_the_wrong_type_is_named(path: list[Any], value: Any, said: str) -> None:
    with pytest.raises(RecordError) as error:
        judge(GOOD, broken(path, value))
    assert said in str(error.value) and len(str(error.value)) < 300


def test_mismatched_prompts_are_named_on_both_sides() -> None:
    after = copy.deepcopy(GOOD)
    after["phases"][0]["requests"][0]["prompt"] = "other"
    with pytest.raises(RecordError, match="mismatched prompts: 'p000' only before, 'other' only after"):
        judge(GOOD, after)


def test_unknown_keys_are_ignored() -> None:
    after = copy.deepcopy(GOOD)
    after["flavour"] = after["phases"][0]["colour"] = after["phases"][0]["requests"][0]["taste"] = "new"
    assert judge(GOOD, after)["verdict"] == "pass"


# Criteria


def test_criteria_come_back_from_their_own_values() -> None:
    criteria = Criteria(concurrency=(1, 32), min_tokens_per_s={"c32": 900.0}, quality_prompts="/q.jsonl")
    assert Criteria.from_dict(json.loads(json.dumps(criteria.as_dict()))) == criteria


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"budget": 3}, "unknown gate setting 'budget': did you mean 'budget_s'?"),
        ({"quality": 1}, "quality = 1 can't be used: allowed is true or false"),
        ({"concurrency": [0]}, "concurrency = (0,) can't be used"),
        ({"concurrency": [8, 8]}, "each number once"),
        ({"min_tokens_per_s": 50}, "a mapping of names to numbers, such as {c1: 50}"),
        ({"min_tokens_per_s": {"c9": 1}}, "one of the phases c1, c8"),
        ({"throughput_margin": 5}, "a share from 0 up to 1 (0.05 is 5 %)"),
        ({"on_inconclusive": "maybe"}, "allowed is rollback or keep"),
        ({"budget_s": math.nan}, "a number"),
        ({"soak_s": -1}, "seconds from 0 to 604800"),
        ({"soak_max_errors": -1}, "a whole number of at least 0"),
        ({"min_evaluation": {1: 5}}, "a mapping of names to numbers"),
        ({"max_ttft_s": {"c1": 10**400}}, "a mapping of names to numbers"),
        ([], "must be a mapping"),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(values: Any, said: str) -> None:
    with pytest.raises(CriteriaError) as error:
        Criteria.from_dict(values)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"soak_s": math.inf},
        {"budget_s": math.inf},
        {"soak_stall_s": math.nan},
        {"max_gpu_memory_mib": -1},
        {"min_tokens_per_s": {"c1": math.inf}},
        {"max_evaluation_drop": {"a/b": math.nan}},
    ],
)
def test_a_limit_that_nothing_can_meet_or_miss_is_refused_however_it_came(values: Any) -> None:
    with pytest.raises(CriteriaError):
        Criteria(**values)
