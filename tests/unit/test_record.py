"""Records and verdicts as JSON: written as they are read, also those of older and newer versions."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from bench_records import judge, phase, record, row

from pyinfra_vllm.on_host.bench.record import Graded, Likelihood, Record
from pyinfra_vllm.on_host.gate.verdict import Row, Verdict
from pyinfra_vllm.on_host.state.values import RecordError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FULL: dict[str, Any] = {
    "schema": "pyinfra-vllm/bench/1",
    "model": "m",
    "server": {"version": "0.32.0", "max_model_len": None},
    "phases": [
        {
            "name": "c1",
            "concurrency": 1,
            "duration_s": 2.5,
            "requests": [
                {"prompt": "a", "at_s": 0.1, "ok": True, "ttft_s": 0.05, "e2e_s": 1.2, "input_tokens": 256,
                 "output_tokens": 128, "round": 0},
                {"prompt": "b", "at_s": 0.2, "ok": False, "kind": "timeout", "error": "none", "round": 0},
            ],
            "rounds": [{"round": 0, "duration_s": 2.5, "output_tokens": 128, "complete": True}],
            "cut": True,
        }
    ],
    "quality": [{"prompt": "q", "kind": "exact", "passed": False, "sane": False, "error": "x",
                 "error_kind": "timeout"}],
    "warm_up": {"requests": 3, "errors": [{"prompt": "first", "ok": False, "kind": "http_500", "error": "x"}],
                "steady": False},
    "client": {"cpu_s": 0.1, "wall_s": 2.0, "late_median_s": 0.0, "late_mean_s": 0.001, "late_p99_s": 0.01,
               "scheduling": "SCHED_OTHER"},
    "traffic": {"known": False},
    "plan": {"words": {"s": 5}, "output_tokens": 128, "rounds": 1, "requests": {"c1": 2}},
    "likelihood": [{"text": "t", "language": "en", "bits_per_byte": 0.8, "tokens": 3, "pieces": [2.0, 1.0]}],
    "likelihood_missing": {"u": "no g++"},
    "asked_over": {"endpoint": "completions", "refusal": "HTTP 404"},
    "quality_unanswered": 2,
    "spent_s": 30.5,
    "evaluations": {"ifeval/acc": {"value": 0.7, "stderr": 0.01}},
}  # fmt: skip


def test_a_record_is_written_byte_for_byte_as_it_was_read() -> None:
    assert json.dumps(Record.read(FULL, "it").as_dict()) == json.dumps(FULL)


def test_keys_of_a_newer_version_are_ignored() -> None:
    newer = {**FULL, "later": 1, "phases": [{**FULL["phases"][0], "later": [1]}]}
    assert Record.read(newer, "it") == Record.read(FULL, "it")


def test_recorded_answers_are_written_byte_for_byte_as_they_were_read() -> None:
    path = BENCHMARKS / "quality" / "answers-cpu-vllm0.32.0.json.xz"
    for kept in json.loads(lzma.decompress(path.read_bytes())).values():
        for entry in kept["runs"][0]:
            assert json.dumps(Graded.of(entry).as_dict()) == json.dumps(entry)
        for entry in kept["likelihood"]:
            assert json.dumps(Likelihood.of(entry).as_dict()) == json.dumps(entry)


def test_a_verdict_is_read_back_as_it_was_written() -> None:
    written = judge(record(phase(1), phase(8)), record(phase(1), phase(8, slower=1.2)))
    assert json.loads(json.dumps(Verdict.read(written, "verdict").as_dict())) == written


def test_a_single_pair_has_no_interval_and_says_so_by_null() -> None:
    verdict = judge(record(phase(1, 1)), record(phase(1, 1)))
    compared, tail = row(verdict, "e2e_s"), row(verdict, "ttft_p95_s")
    assert compared["interval"] is compared["detectable"] is compared["needed"] is None
    assert tail["detectable"] is None and "needed" not in tail
    assert "detectable" not in row(verdict, "error_rate", None)


def test_a_row_of_an_older_version_has_no_optional_keys() -> None:
    old = {"name": "e2e_s", "phase": "c1", "before": 1, "after": 2, "ratio": 2.0, "limit": 1.05,
           "verdict": "fail", "decides": True}  # fmt: skip
    found = Row.read(old, "row")
    assert found.sentence() == "c1 e2e_s is 2, the limit is 1.05" and not found.repeatable


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"after": "2"}, "row.after must be a number, not '2'"),
        ({"interval": [1.0]}, r"row.interval must be two numbers, not \[1.0\]"),
        ({"decides": 1}, "row.decides must be true or false, not 1"),
        ({"doubt": None}, "row.doubt must be text, not None"),
    ],
)
def test_a_damaged_row_is_named(damage: dict[str, Any], said: str) -> None:
    found = row(judge(record(phase(1)), record(phase(1))), "e2e_s")
    with pytest.raises(RecordError, match=said):
        Row.read({**found, **damage}, "row")
