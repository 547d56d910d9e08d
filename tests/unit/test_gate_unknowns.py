"""The verdict where something was not seen, or was seen under noise or other traffic: what still decides, and
what is said.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_records import failed, graded, judge, phase, record, row

from pyinfra_vllm.commands import compare
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.record import Record
from pyinfra_vllm.on_host.gate import calibration

LENIENT = Criteria(max_error_rate=0.99)


def said(verdict: dict[str, Any], words: str) -> bool:
    return any(words in reason for reason in verdict["reasons"])


def silent(concurrency: int, *kinds: str) -> dict[str, Any]:
    return {**phase(concurrency), "requests": [failed(f"p{n:03d}", kind) for n, kind in enumerate(kinds)]}


# A phase without answers


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("timeout", "timeout"), "fail"),
        (("timeout", "no_usage"), "fail"),
        (("no_usage", "no_usage"), "inconclusive"),
        (("not_asked",), "inconclusive"),
    ],
)
def test_a_phase_that_nothing_answers_any_more_decides_however_many_errors_are_allowed(
    kinds: tuple[str, ...], expected: str
) -> None:
    verdict = judge(record(phase(1), phase(8)), record(phase(1), silent(8, *kinds)), LENIENT)
    found = row(verdict, "tokens_per_s", "c8")
    assert (verdict["verdict"], found["verdict"], found["decides"]) == (expected, expected, True)
    assert found["before"] > 0 and found["after"] == found["ratio"] == 0
    assert said(verdict, "phase c8: 20 requests answered before and none after")


def test_phase_unanswered_on_both_sides_is_not_compared() -> None:
    verdict = judge(record(phase(1), silent(8, "timeout")), record(phase(1), silent(8, "timeout")), LENIENT)
    assert verdict["verdict"] == "pass"


def test_a_phase_for_which_the_time_ran_out_before_shows_nothing() -> None:
    before = record(phase(1), silent(8, "not_asked"), traffic={"other_share": 0.0})
    for share in (0.0, 0.3):
        verdict = judge(before, record(phase(1), phase(8), traffic={"other_share": share}))
        assert verdict["verdict"] == "inconclusive" and row(verdict, "tokens_per_s", "c8")["ratio"] is None
    assert said(verdict, "phase c8: HTTP 500: boom, so there is nothing to compare with")
    twice = [record(phase(1), silent(8, "not_asked"))] * 3
    assert calibration.calibration([Record.read(item, "run") for item in twice]).phases["c8"] == {}


def test_other_traffic_saves_no_phase_without_answers() -> None:
    before = record(phase(1), phase(8), traffic={"other_share": 0.0})
    after = record(phase(1), silent(8, "timeout"), traffic={"other_share": 0.3})
    assert judge(before, after, LENIENT)["verdict"] == "fail"


def test_a_calibration_leaves_out_a_phase_that_a_run_did_not_answer() -> None:
    runs = [record(phase(1), phase(8)), record(phase(1), phase(8)), record(phase(1), silent(8, "timeout"))]
    found = calibration.calibration([Record.read(item, "run") for item in runs])
    assert found.phases["c8"] == {} and "tokens_per_s" in found.phases["c1"]


def test_a_release_of_which_only_a_part_answers_has_the_rate_that_was_measured() -> None:
    """Half of the requests fail after as long as an answer takes: it makes half of the tokens in the same
    time.
    """
    after = phase(1)
    after["requests"][10:] = [failed(item["prompt"], "timeout") for item in after["requests"][10:]]
    found = row(judge(record(phase(1)), record(after), LENIENT), "tokens_per_s")
    assert found["ratio"] == pytest.approx(0.5) and found["verdict"] == "fail"


def test_a_release_that_was_asked_only_a_part_is_compared_on_that_part() -> None:
    after = phase(1)
    after["requests"] = after["requests"][:10]
    assert row(judge(record(phase(1)), record(after)), "tokens_per_s")["ratio"] == pytest.approx(1.0)


# Noise


def noise(share: float) -> dict[str, Any]:
    metrics = ("tokens_per_s", "e2e_s", "tpot_s", "ttft_s")
    return {"runs": 5, "phases": {"c1": dict.fromkeys(metrics, share)}}


def test_what_noise_allows_is_a_ratio_in_both_directions() -> None:
    verdict = judge(record(phase(1)), record(phase(1, slower=1.35)), noise=noise(0.4))
    assert row(verdict, "tokens_per_s")["limit"] == pytest.approx(1 / 1.4, abs=1e-6)
    assert row(verdict, "e2e_s")["limit"] == 1.4
    assert verdict["verdict"] == "pass"
    assert judge(record(phase(1)), record(phase(1, slower=1.45)), noise=noise(0.4))["verdict"] == "fail"


@pytest.mark.parametrize("share", [0.51, 1.0, 147.0])
def test_a_machine_too_noisy_to_judge_passes_nothing(share: float) -> None:
    verdict = judge(record(phase(1)), record(phase(1)), noise=noise(share))
    assert verdict["verdict"] == "inconclusive"
    assert said(
        verdict, f"too noisy to judge: one run of the unchanged service may be {share:.0%} worse than another"
    )


def test_what_is_worse_than_any_noise_fails() -> None:
    assert judge(record(phase(1)), record(phase(1, slower=3)), noise=noise(1.0))["verdict"] == "fail"


def test_a_margin_that_is_wider_than_the_noise_is_the_operator_s_own() -> None:
    wide = Criteria(throughput_margin=0.9, tpot_margin=0.9, ttft_margin=0.9)
    assert judge(record(phase(1)), record(phase(1)), wide, noise=noise(0.6))["verdict"] == "pass"


@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_traffic_casts_doubt_on_throughput_and_times_alike_also_at_no_margin(margin: float) -> None:
    criteria = Criteria(throughput_margin=margin, tpot_margin=margin, ttft_margin=margin)
    before = record(phase(1), traffic={"other_share": 0.0})

    def verdict(slower: float, share: float, **more: Any) -> str:
        after = record(phase(1, slower=slower), traffic={"other_share": share})
        return str(judge(before, after, criteria, **more)["verdict"])

    assert verdict(1.1, 0.1) == "inconclusive"
    assert verdict(2.0, 0.1) == "fail"
    assert verdict(1.1, 0.1, noise=noise(1.0)) == "inconclusive"


# Absolute limits


@pytest.mark.parametrize(
    ("share", "slower", "expected"),
    [(0.0, 1.1, "fail"), (0.2, 1.1, "inconclusive"), (0.2, 2.0, "fail"), (0.2, 1.0, "pass")],
)
@pytest.mark.parametrize(
    "criteria", [Criteria(min_tokens_per_s={"c1": 95}), Criteria(max_ttft_s={"c1": 0.0501})]
)
def test_a_limit_missed_by_no_more_than_others_may_take_is_open(
    share: float, slower: float, expected: str, criteria: Criteria
) -> None:
    after = record(phase(1, slower=slower), traffic={"other_share": share})
    verdict = judge(None, after, criteria)
    assert verdict["verdict"] == expected
    assert said(verdict, "other traffic was 20% of the tokens") == (expected == "inconclusive")


def test_a_comparison_of_files_has_no_gpu_to_ask_and_says_so() -> None:
    criteria = Criteria(max_gpu_memory_mib=1000)
    verdict = judge(record(), record(), criteria, asks_gpus=False)
    assert verdict["verdict"] == "pass" and row(verdict, "gpu_memory_mib", None)["decides"] is False
    assert said(verdict, "gpu_memory_mib: not measured by compare")
    assert judge(record(), record(), criteria)["verdict"] == "inconclusive"


def test_compare_decides_without_the_gpu_s_memory(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("max_gpu_memory_mib: 1000\n")
    (tmp_path / "record.json").write_text(json.dumps(record()))
    code, verdict = compare.run(*[tmp_path / "record.json"] * 2, tmp_path / "gate.yaml")
    assert code == 0 and said(verdict.as_dict(), "gpu_memory_mib: not measured by compare")


# What is said beside


def test_traffic_that_one_side_only_knows_of_is_mentioned() -> None:
    known, unknown = record(traffic={"known": True, "other_share": 0.0}), record(traffic={"known": False})
    assert said(judge(known, unknown), "other traffic is known of the measurement before only")
    assert said(judge(unknown, known), "other traffic is known of the measurement after only")
    assert not said(judge(known, known), "is known of") and not said(judge(unknown, unknown), "is known of")


def test_requests_of_others_that_were_under_way_are_mentioned() -> None:
    busy = record(traffic={"other_share": 0.0, "running_at_start": 3.0})
    assert said(judge(record(), busy), "3 requests of others were under way when the measurement after began")
    assert said(judge(None, busy), "3 requests of others were under way when the measurement began")


def test_a_warm_up_that_did_not_become_steady_is_mentioned() -> None:
    hurried = record(warm_up={"requests": 6, "errors": [], "steady": False})
    assert said(judge(hurried, record()), "the warm-up before had not become steady")
    assert not said(judge(record(), record()), "warm-up")


def test_a_budget_that_had_room_for_short_answers_only_is_told() -> None:
    short, long = (record(plan={"output_tokens": tokens}) for tokens in (8, 128))
    assert said(judge(short, record()), "answers of 8 tokens were asked for")
    assert not said(judge(long, record()), "tokens were asked for")


def test_two_models_are_mentioned_and_an_unknown_one_is_not() -> None:
    one, other = record(), {**record(), "model": "n"}
    assert said(judge(one, other), "two models were measured: m before and n after")
    assert not said(judge(one, {**record(), "model": "?"}), "two models")


def test_the_smallest_change_is_named_also_where_it_is_unknown() -> None:
    verdict = judge(record(phase(1, 1)), record(phase(1, 1)))
    assert said(verdict, "could see: c1 tokens_per_s unknown: a single pair was seen")


# Quality


def ending(ended: int, total: int = 100) -> list[dict[str, Any]]:
    items = graded(total, total)
    return [{**item, "sane": True, "ended": number < ended} for number, item in enumerate(items)]


@pytest.mark.parametrize(
    ("before", "after", "expected"), [(100, 100, "pass"), (100, 20, "fail"), (0, 0, "pass"), (0, 100, "pass")]
)
def test_answers_that_no_longer_end_are_degenerate(before: int, after: int, expected: str) -> None:
    verdict = judge(record(quality=ending(before)), record(quality=ending(after)))
    assert verdict["verdict"] == row(verdict, "sane_share", None)["verdict"] == expected
    assert said(verdict, "80 ran on until they were cut") == (expected == "fail")


def test_a_first_installation_of_a_model_that_never_ends_its_answers_is_not_held_against_it() -> None:
    assert judge(None, record(quality=ending(0)))["verdict"] == "pass"


CHAT = {"endpoint": "chat"}
PLAIN = {"endpoint": "completions", "refusal": "HTTP 400: no chat template"}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (CHAT, PLAIN, "fail"),
        (None, PLAIN, "pass"),
        (PLAIN, PLAIN, "pass"),
        (PLAIN, CHAT, "pass"),
        (CHAT, CHAT, "pass"),
    ],
)
def test_a_chat_endpoint_that_is_lost_fails_whatever_the_answers_are(
    before: dict[str, str] | None, after: dict[str, str], expected: str
) -> None:
    then = record(quality=graded(9, 9), **({"asked_over": before} if before else {}))
    verdict = judge(then, record(quality=graded(9, 9), asked_over=after))
    assert verdict["verdict"] == expected
    assert said(verdict, "chat: the chat endpoint answered before and refuses now (HTTP 400") == (
        expected == "fail"
    )
