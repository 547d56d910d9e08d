"""A switch on the page: why it went back and what changed stand above the numbers, in people's units."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import nights
import pytest
from simulated import NEW, OLD
from told import Teller, teller

from pyinfra_vllm import answers as allowed
from pyinfra_vllm.asking import Answer
from pyinfra_vllm.on_host.state import durable, recall
from pyinfra_vllm.report.changes import Change, changes
from pyinfra_vllm.report.criteria import criteria
from pyinfra_vllm.report.evidence import Shown
from pyinfra_vllm.report.looking import Look
from pyinfra_vllm.report.page import render, shown_switches

__all__ = ["teller"]

METRIC = {"phase": None, "before": None, "ratio": None, "interval": None, "verdict": "pass", "decides": True}
DOCUMENT = {
    "id": OLD,
    "argv": ["/r/1/bin/vllm", "serve", "/c/m", "--port", "8000", "--enforce-eager"],
    "checkpoint": {"repo": "Qwen/Qwen3-8B-AWQ", "commit": "0123456789abcdef", "directory": "/c/m"},
    "runtime": {"version": "0.32.0", "path": "/r/1"},
    "environment": {"PATH": "/r/1/bin:/bin", "VLLM_USE_V1": "1"},
    "secrets": ["HF_TOKEN"],
}


def of_host(fleet: list[Answer[Look]], host: str) -> list[Shown]:
    return shown_switches([answer for answer in fleet if answer.host == host])


# What changed


def test_everything_that_differs_is_named_with_both_values() -> None:
    new = {
        **DOCUMENT,
        "argv": ["/r/2/bin/vllm", "serve", "/c/n", "--port", "8000", "--max-model-len", "32768"],
        "checkpoint": {"repo": "Qwen/Qwen3-8B-AWQ", "commit": "fedcba9876543210"},
        "runtime": {"version": "0.33.0", "path": "/r/2"},
        "environment": {"PATH": "/r/2/bin:/bin", "VLLM_USE_V1": "0"},
        "secrets": [],
    }
    assert changes(DOCUMENT, new) == (
        Change("model", "Qwen/Qwen3-8B-AWQ at 0123456789ab", "Qwen/Qwen3-8B-AWQ at fedcba987654"),
        Change("vLLM", "0.32.0", "0.33.0"),
        Change("--enforce-eager", "set", ""),
        Change("--max-model-len", "", "32768"),
        Change("VLLM_USE_V1", "1", "0"),
        Change("HF_TOKEN", "set (secret)", ""),
    )
    assert changes(DOCUMENT, DOCUMENT) == ()


def test_every_night_of_a_host_says_what_changed(fleet: list[Answer[Look]]) -> None:
    last, kept, first = of_host(fleet, "gpu-03")
    assert last.changes == (Change("--kv-cache-dtype", "", "fp8"),)
    assert kept.changes is not None and first.changes is not None
    assert [change.name for change in kept.changes] == ["model", "--max-model-len"]
    assert [(change.name, change.before, change.after) for change in first.changes][1:] == [
        ("--enforce-eager", "", "set"),
        ("--max-model-len", "16384", "32768"),
    ]


def test_the_release_before_is_told_while_it_is_staged(teller: Teller) -> None:
    teller.host.stage(NEW)
    teller.host.switch()
    told = allowed.evidence(recall.recall(teller.host.paths.root, 1, 10**7, []))
    assert told[0]["transactions"][0]["evidence"]["old"]["id"] == OLD
    durable.write_text(teller.host.paths.release(OLD) / "release.json", '{"id": 3}')
    spoilt = allowed.evidence(recall.recall(teller.host.paths.root, 1, 10**7, []))
    assert "can't be read" in spoilt[0]["transactions"][0]["left_out"]["old"]
    look = replace(teller.look(), record={"chat": spoilt[0]})
    (line,) = shown_switches([Answer("a", look)])[0].missing
    assert line.startswith("release.json of the release before: it can't be read")
    (teller.host.paths.release(OLD) / "release.json").unlink()
    (item,) = shown_switches([teller.answer()])
    assert item.changes is None
    assert "What changed is not known" in render("x", [teller.answer()], nights.MORNING)


# Why it went back


def test_the_failing_criterion_and_what_changed_stand_above_the_numbers(fleet: list[Answer[Look]]) -> None:
    text = render("x", [answer for answer in fleet if answer.host == "gpu-03"], nights.MORNING)
    switch = text[text.index('<details class="card switch" open') :].partition('<details class="card switch"')
    page = switch[1] + switch[2]
    order = [
        "Right answers: 98.3 of 100 before, 75 of 100 after, -23.3 points, allowed is at most 5 points fewer",
        "<h3>What changed</h3>",
        "--kv-cache-dtype",
        "<h3>Timeline</h3>",
        "<h3>Measured before and after</h3>",
        "<h3>The verdict's evidence</h3>",
    ]
    places = [page.find(part) for part in order]
    assert -1 not in places and places == sorted(places)


def test_a_slow_release_is_shown_by_the_distribution_of_what_failed(fleet: list[Answer[Look]]) -> None:
    slow = of_host(fleet, "gpu-03")[-1]
    names = [(item.title, item.failed) for item in slow.criteria]
    assert names[0] == ("Throughput, 1 stream", True)
    failed = [flag for _, flag in names]
    assert failed == sorted(failed, reverse=True) and not all(failed)
    assert [item.title for item in slow.against] == [title for title, flag in names if flag]
    assert slow.proof is not None and slow.proof.title == "Throughput, 1 stream"
    assert slow.samples[0] is slow.proof and slow.reason == ""
    assert len(slow.remarks) == len(slow.reasons) - len(slow.against) > 0
    assert "gate.margins.c1.tokens_per_s = " in slow.against[0].note


def test_a_criterion_without_a_value_is_explained_by_its_note(fleet: list[Answer[Look]]) -> None:
    text = render("x", [answer for answer in fleet if answer.host == "gpu-01"], nights.MORNING)
    assert 'Kernel <span class="soft">the server runs Marlin</span>' in text


def test_a_release_that_was_kept_has_nothing_against_it(fleet: list[Answer[Look]]) -> None:
    (kept,) = of_host(fleet, "gpu-01")
    assert kept.good and kept.against == [] and kept.proof is None and kept.reason


def test_its_distribution_stands_beside_the_first_criterion(fleet: list[Answer[Look]]) -> None:
    (answer,) = [answer for answer in fleet if answer.host == "gpu-03"]
    text = render("x", [answer], nights.MORNING)
    slow = text.split('<details class="card switch"')[-1]
    parts = ["Throughput, 1 stream:", '<figure class="distribution">', "Time per output token, 1 stream:"]
    places = [slow.index(part) for part in (*parts, "<h3>What changed</h3>")]
    assert places == sorted(places)
    assert "worse: " not in slow.partition('<details class="inner">')[0]


def test_a_failed_start_is_shown_by_its_log_above_what_changed(teller: Teller) -> None:
    crash = ["(EngineCore pid=7) ValueError: the model's max seq len (40960) is larger than 18320"]
    teller.host.stage(NEW)
    teller.host.crashing[NEW] = crash
    assert teller.host.switch() == "rolled_back"
    (item,) = shown_switches([teller.answer()])
    assert item.against == [] and item.reason.startswith("vLLM ended by itself")
    text = render("x", [teller.answer()], nights.MORNING)
    shown = text.index('<details class="inner" open><summary>Why the start failed</summary>')
    assert (
        text.index('<p class="reason">')
        < shown
        < text.index("larger than 18320")
        < text.index("<h3>Timeline</h3>")
    )


def test_a_reason_that_no_criterion_gave_stays(fleet: list[Answer[Look]]) -> None:
    answer = copy.deepcopy(next(answer for answer in fleet if answer.host == "gpu-03"))
    assert answer.value is not None
    end = answer.value.record["chat"]["transactions"][-1]["entries"][-1]
    end["reason"] += "; traffic still stays away"
    assert shown_switches([answer])[0].reason == "traffic still stays away"
    end["reason"] = "the soak failed"
    last = shown_switches([answer])[0]
    assert (last.reason, last.against) == ("the soak failed", [])


@pytest.mark.parametrize(
    ("metric", "sentence"),
    [
        ({"name": "max_ttft_s", "phase": "c8", "after": 0.61234, "limit": 0.5, "before": 1.25},
         "Time to first token, 8 streams: 1.25 s before, 612 ms after, allowed is at most 500 ms"),
        ({"name": "tokens_per_s", "phase": "c1", "before": 82.4, "after": 57.1, "ratio": 0.7, "limit": 0.95},
         "Throughput, 1 stream: 82.4 tokens/s before, 57.1 tokens/s after, -30.0 %,"
         " allowed is at least -5.0 %"),
        ({"name": "gpu_memory_mib", "after": 62668, "limit": 40960},
         "GPU memory: 61.2 GiB after, allowed is at most 40.0 GiB"),
        ({"name": "error_rate", "before": 0.0, "after": 0.0125, "limit": 0.01},
         "Failed requests: 0 % before, 1.25 % after, allowed is at most 1 %"),
        ({"name": "kernel", "after": None, "limit": None}, "Kernel"),
        ({"name": "gsm8k <b>", "before": 0.81, "after": 0.7, "limit": -0.02},
         "gsm8k <b>: 0.81 before, 0.7 after, allowed is -0.02"),
    ],
)  # fmt: skip
def test_values_have_units(metric: dict[str, Any], sentence: str) -> None:
    (found,) = criteria([{**METRIC, **metric}])
    assert found.sentence == sentence


def test_numbers_that_do_not_belong_together_are_shown_and_decide_nothing() -> None:
    odd = {"name": "ttft_s", "after": 0.1, "limit": 1.1, "ratio": 2.0, "interval": [1, 2], "verdict": "odd"}
    (found,) = criteria([{**METRIC, **odd}])
    assert (found.told, found.failed, found.interval) == ("", False, "+0.0 % to +100.0 %")


# Answers


def test_lost_answers_are_shown_with_their_text_where_it_was_kept(fleet: list[Answer[Look]]) -> None:
    answer = copy.deepcopy(next(answer for answer in fleet if answer.host == "gpu-03"))
    assert answer.value is not None
    files = answer.value.record["chat"]["transactions"][-1]["evidence"]
    for side, said in (("before", "four"), ("after", "<script>five\ud800")):
        for item in files[side]["quality"]:
            item["answer"] = said
    text = render("x", [answer], nights.MORNING)
    assert "<pre>four</pre>" in text and "<pre>&lt;script&gt;five\\ud800</pre>" in text
    assert "<summary>q003</summary>" in text and "<summary>q001</summary>" not in text
