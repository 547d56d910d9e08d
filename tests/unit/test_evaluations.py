"""lm-eval as a second opinion: how it is run, what its results become, and how a declared score is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_records import judge, record
from openai_server import serving

from pyinfra_vllm import lm_eval
from pyinfra_vllm.errors import DeclarationError, HostError
from pyinfra_vllm.on_host.bench.criteria import Criteria, CriteriaError
from pyinfra_vllm.on_host.state.values import RecordError

IFEVAL = "ifeval/prompt_level_strict_acc"
# As lm_eval 0.4.13 writes it; only `results` is read.
RESULTS: dict[str, Any] = {
    "results": {
        "ifeval": {
            "alias": "ifeval",
            "prompt_level_strict_acc,none": 0.75,
            "prompt_level_strict_acc_stderr,none": 0.0186,
            "inst_level_strict_acc,none": 0.81,
            "inst_level_strict_acc_stderr,none": "N/A",
        },
        "gsm8k": {
            "alias": "gsm8k",
            "exact_match,strict-match": 0.5,
            "exact_match_stderr,strict-match": 0.0138,
        },
    },
    "config": {"model": "local-chat-completions"},
}


def scored(value: float, stderr: float = 0.0) -> dict[str, Any]:
    return record(evaluations={IFEVAL: {"value": value, "stderr": stderr}})


def rows(before: Any, after: Any, **criteria: Any) -> list[dict[str, Any]]:
    verdict = judge(before, after, Criteria(**criteria))
    return [item for item in verdict["metrics"] if item["name"] == IFEVAL]


# Judged


@pytest.mark.parametrize(("value", "expected"), [(0.70, "pass"), (0.69, "fail")])
def test_a_score_must_reach_its_minimum(value: float, expected: str) -> None:
    (found,) = rows(None, scored(value), min_evaluation={IFEVAL: 0.7})
    assert (found["verdict"], found["after"], found["limit"], found["decides"]) == (
        expected,
        value,
        0.7,
        True,
    )


@pytest.mark.parametrize(
    ("after", "stderr", "expected"),
    [(0.73, 0.02, "pass"), (0.71, 0.02, "inconclusive"), (0.60, 0.02, "fail"), (0.70, 0.0, "fail")],
)
def test_a_drop_fails_where_chance_can_not_have_done_it(after: float, stderr: float, expected: str) -> None:
    (found,) = rows(scored(0.75, stderr), scored(after, stderr), max_evaluation_drop={IFEVAL: 0.03})
    assert found["verdict"] == expected


def test_a_switch_shows_that_a_declared_score_is_missing_and_decides_without_it() -> None:
    verdict = judge(record(), record(), Criteria(min_evaluation={IFEVAL: 0.7}))
    (found,) = [item for item in verdict["metrics"] if item["name"] == IFEVAL]
    assert (verdict["verdict"], found["decides"], found["verdict"]) == ("pass", False, "inconclusive")
    assert "bench --lm-eval" in found["note"]


def test_where_others_were_evaluated_a_missing_one_leaves_it_open() -> None:
    evaluated = record(evaluations={"gsm8k/exact_match,strict-match": {"value": 0.5}})
    verdict = judge(evaluated, evaluated, Criteria(max_evaluation_drop={IFEVAL: 0.03}))
    assert verdict["verdict"] == "inconclusive"


@pytest.mark.parametrize(
    ("evaluations", "said"),
    [
        ([], "before.evaluations is not a mapping"),
        ({IFEVAL: 0.7}, f"before.evaluations.{IFEVAL} is not a mapping"),
        ({IFEVAL: {}}, f"before.evaluations.{IFEVAL}.value is missing"),
        ({IFEVAL: {"value": float("nan")}}, "is nan"),
        ({IFEVAL: {"value": 0.7, "stderr": "N/A"}}, "must be a number"),
    ],
)
def test_damaged_scores_are_named(evaluations: Any, said: str) -> None:
    with pytest.raises(RecordError, match=said):
        judge(record(evaluations=evaluations), record(), Criteria())


def test_a_limit_without_a_metric_is_refused() -> None:
    with pytest.raises(
        CriteriaError, match=r"min_evaluation\.ifeval = 0\.7 .* ifeval/prompt_level_strict_acc"
    ):
        Criteria(min_evaluation={"ifeval": 0.7})


# Read and run


def test_results_become_scores(tmp_path: Path) -> None:
    (tmp_path / "results_x.json").write_text(json.dumps(RESULTS))
    assert lm_eval.read(tmp_path / "results_x.json") == {
        IFEVAL: {"value": 0.75, "stderr": 0.0186},
        "ifeval/inst_level_strict_acc": {"value": 0.81},
        "gsm8k/exact_match,strict-match": {"value": 0.5, "stderr": 0.0138},
    }


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        "[" * 100_000,
        '{"results": {"ifeval": {"alias": "ifeval"}}}',
        '{"results": {"ifeval": {"acc,none": 1' + "0" * 400 + "}}}",
    ],
)
def test_file_without_results_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DeclarationError, match=r"results\.json"):
        lm_eval.read(tmp_path / "results.json")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An lm_eval that keeps what it was called with beside it, and writes its results where the real one
    does.
    """
    program = tmp_path / "bin" / "lm_eval"
    program.parent.mkdir()
    program.write_text(f"""#!/usr/bin/env python3
import json, os, pathlib, sys
given = dict(zip(sys.argv[1:], sys.argv[2:]))
called = {{"argv": sys.argv, "key": os.environ.get("OPENAI_API_KEY")}}
pathlib.Path(__file__).with_name("called.json").write_text(json.dumps(called))
out = pathlib.Path(given["--output_path"], "m")
out.mkdir()
(out / "results_2026-11-21T03-00-00.json").write_text({json.dumps(RESULTS)!r})
sys.exit(given["--tasks"] == "broken")
""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return program.parent


def called(installed: Path) -> Any:
    return json.loads((installed / "called.json").read_text())


def test_tasks_that_generate_are_run_over_chat_and_the_key_stays_out_of_sight(installed: Path) -> None:
    scores = lm_eval.run("http://gpu1:8000/", "chat", "ifeval,gsm8k", api_key="sesame")
    assert scores[IFEVAL]["value"] == 0.75
    argv = called(installed)["argv"]
    assert called(installed)["key"] == "sesame" and "sesame" not in str(argv)
    assert argv[1:3] == ["--model", "local-chat-completions"] and "--apply_chat_template" in argv
    assert json.loads(argv[4])["base_url"] == "http://gpu1:8000/v1/chat/completions"


def test_with_a_tokenizer_likelihoods_can_be_asked_for_too(installed: Path) -> None:
    lm_eval.run("http://gpu1:8000", "chat", "mmlu", tokenizer="/srv/checkpoint")
    argv = called(installed)["argv"]
    given = json.loads(argv[4])
    assert argv[2] == "local-completions" and given["base_url"] == "http://gpu1:8000/v1/completions"
    assert given["tokenizer"] == "/srv/checkpoint"


def test_failure_of_lm_eval_fails_the_command(installed: Path) -> None:
    with pytest.raises(HostError, match="exited with 1"):
        lm_eval.run("http://gpu1:8000", "chat", "broken")


def test_without_lm_eval_nothing_is_measured(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = (
        "--url",
        "http://127.0.0.1:1",
        "--model",
        "m",
        "--out",
        tmp_path / "x.json",
        "--lm-eval",
        "ifeval",
    )
    ended = run("bench", *words)
    assert ended.code == 2 and "pip install 'lm_eval[api]'" in ended.err


@pytest.mark.alone
def test_what_was_measured_is_written_before_lm_eval_may_fail(
    run: Any, tmp_path: Path, installed: Path
) -> None:
    out = tmp_path / "x.json"
    with serving() as server:
        words = ("bench", "--url", server.url, "--model", "m", "--budget", "5", "--no-quality", "--out", out)
        ended = run(*words, "--concurrency", "1", "--lm-eval", "broken")
    assert ended.code == 1 and "exited with 1" in ended.err and f"{out} was written" in ended.err
    assert json.loads(out.read_text())["phases"][0]["requests"]


@pytest.mark.alone
def test_bench_writes_both_into_one_record_that_compare_judges(
    run: Any, tmp_path: Path, installed: Path
) -> None:
    old = tmp_path / "results_old.json"
    old.write_text(json.dumps(RESULTS).replace("0.75", "0.95"))
    with serving() as server:
        words = (
            "bench",
            "--url",
            server.url,
            "--model",
            "m",
            "--budget",
            "5",
            "--no-quality",
            "--concurrency",
            "1",
        )
        assert run(*words, "--out", tmp_path / "before.json", "--evaluations", old).code == 0
        more = ("--like", tmp_path / "before.json", "--lm-eval", "ifeval", "--json")
        ended = run(*words, "--out", tmp_path / "after.json", *more)
    assert ended.json["evaluations"][IFEVAL]["value"] == 0.75
    limits = tmp_path / "gate.json"
    limits.write_text(json.dumps({"max_evaluation_drop": {IFEVAL: 0.03}}))
    ended = run("compare", tmp_path / "before.json", tmp_path / "after.json", "--gate", limits, "--json")
    assert ended.code == 1 and any(IFEVAL in line for line in ended.json["reasons"])
