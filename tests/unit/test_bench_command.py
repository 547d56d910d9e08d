"""`pyinfra-vllm bench`, `compare` and `calibrate` as a person calls them: files, output and exit codes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from bench_records import failed, phase, record
from openai_server import serving
from rich.console import Console

from pyinfra_vllm.commands import compare

pytestmark = pytest.mark.alone  # it has a time limit against a live server


def written(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


# bench

NOWHERE = ("--url", "http://127.0.0.1:1", "--model", "m")


def test_bench_writes_a_record_that_compares(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    out = tmp_path / "one.json"
    with serving(api_key="sesame") as server:
        ended = run(
            "bench", "--url", server.url, "--model", "m", "--out", out, "--budget", "5", "--no-quality",
            "--concurrency", "1", "--concurrency", "2", "--json",
        )  # fmt: skip
    assert ended.code == 0 and ended.json["out"] == str(out)
    assert set(ended.json["summary"]) == {"c1", "c2"}
    assert "sesame" not in out.read_text() + ended.out + ended.err
    assert "warm-up" in ended.err
    assert run("compare", out, out, "--json").json["verdict"] in ("pass", "inconclusive")


def test_bench_against_nothing_fails_and_writes_nothing(run: Any, tmp_path: Path) -> None:
    with serving() as server:
        url = server.url
    ended = run("bench", "--url", url, "--model", "m", "--out", tmp_path / "x.json")
    assert ended.code == 1 and "nothing was measured" in ended.err
    assert not (tmp_path / "x.json").exists()


def test_bench_of_a_wedged_server_ends_in_time_with_a_record_and_code_1(run: Any, tmp_path: Path) -> None:
    with serving(wedged=True) as server:
        ended = run(
            "bench", "--url", server.url, "--model", "m", "--out", tmp_path / "x.json", "--budget", "5"
        )
    assert ended.code == 1 and "no request was answered" in ended.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--url", "nonsense://", "--model", "m"), "is not the URL of a server"),
        (("--url", "http://127.0.0.1:1", "--model", "m", "--prompts", "/nowhere.jsonl"), "/nowhere.jsonl"),
        (("--url", "http://127.0.0.1:1"), "--model"),
        ((*NOWHERE, "--budget", "1"), "--budget"),
        ((*NOWHERE, "--budget", "inf"), "--budget"),
        ((*NOWHERE, "--budget", "nan"), "'--budget': nan is not a number of seconds"),
        ((*NOWHERE, "--concurrency", "1", "--concurrency", "1"), "--concurrency 1 is given twice"),
        (("--url", "http://[::1", "--model", "m"), "--url 'http://[::1' is not the URL of a server (Invalid"),
        (
            ("--url", "http://h:99999", "--model", "m"),
            "--url 'http://h:99999' is not the URL of a server (Port",
        ),
        (("--url", "http://h:0", "--model", "m"), "--url 'http://h:0' is not the URL"),
        ((*NOWHERE, "--out", "/proc/none/x.json"), "--out /proc/none/x.json can't be written: No such file"),
        ((*NOWHERE, "--out", "/proc/version"), "--out /proc/version can't be written"),
    ],
)
def test_bench_called_wrongly_is_2(run: Any, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    ended = run("bench", "--out", tmp_path / "x.json", *arguments)
    assert ended.code == 2 and said in ended.err
    assert not (tmp_path / "x.json").exists()


PLAN = {"words": {"s": 5}, "output_tokens": 8, "rounds": 2, "requests": {"c1": 1}}


@pytest.mark.parametrize(
    ("like", "arguments", "said"),
    [
        ([], (), "like.json: record: not a benchmark record but list"),
        (record(), (), "like.json: record.plan is missing"),
        ({**record(), "phases": []}, (), "like.json: record.phases is empty"),
        (record(plan={**PLAN, "words": 3}), (), "like.json: record.plan.words must be a mapping, not 3"),
        (record(plan={"rounds": 2}), (), "like.json: record.plan.words is missing"),
        (record(phase(1), phase(8), plan=PLAN), (), "like.json: record.plan.requests.c8 is missing"),
        (record(plan=PLAN), ("--concurrency", "4"), "--concurrency 4: --like"),
    ],
)
def test_a_record_that_none_can_be_measured_like_is_2_before_the_server_is_asked(
    run: Any, tmp_path: Path, like: Any, arguments: tuple[str, ...], said: str
) -> None:
    path = written(tmp_path / "like.json", like)
    ended = run("bench", *NOWHERE, "--out", tmp_path / "x.json", "--like", path, *arguments)
    assert ended.code == 2 and said in ended.err and "like.json" in ended.err


@pytest.mark.parametrize("key", ["sesame\n", "s\u00e9same"])
def test_a_key_that_no_header_can_carry_is_2_and_not_shown(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", key)
    ended = run("bench", *NOWHERE, "--out", tmp_path / "x.json")
    assert ended.code == 2 and "VLLM_API_KEY holds more than" in ended.err and "same" not in ended.err


def test_like_a_record_means_at_its_concurrencies(run: Any, tmp_path: Path) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    with serving() as server:
        words = ("bench", "--url", server.url, "--model", "m", "--budget", "5", "--no-quality")
        assert run(*words, "--out", before, "--concurrency", "2").code == 0
        assert run(*words, "--out", after, "--like", before).code == 0
    assert [item["name"] for item in json.loads(after.read_text())["phases"]] == ["c2"]


def test_a_record_that_is_there_is_kept_until_another_is_whole(run: Any, tmp_path: Path) -> None:
    out = written(tmp_path / "x.json", "kept")
    assert run("bench", *NOWHERE, "--out", out).code == 1
    assert out.read_text() == "kept"


# compare

VERDICTS = {
    "pass": (record(phase(1), phase(8)), record(phase(1), phase(8)), 0),
    "fail": (record(phase(1)), record(phase(1, slower=1.3)), 1),
    "inconclusive": (record(phase(1, 6, noise=0.5, seed=1)), record(phase(1, 6, noise=0.5, seed=3)), 3),
    "errors": (
        record(phase(1)),
        record({**phase(1), "requests": [*phase(1)["requests"], failed("p999")]}),
        1,
    ),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_every_verdict_has_its_code(run: Any, tmp_path: Path, name: str) -> None:
    before, after, code = VERDICTS[name]
    files = written(tmp_path / "before.json", before), written(tmp_path / "after.json", after)
    ended = run("compare", *files, "--json")
    assert ended.code == code
    assert set(ended.json) == {"verdict", "metrics", "reasons"}
    for row in ended.json["metrics"]:
        assert {"name", "phase", "before", "after", "ratio", "interval", "limit", "verdict"} <= set(row)
        assert row["verdict"] in ("pass", "fail", "inconclusive")
    shown = run("compare", *files)
    assert shown.code == code and ended.json["verdict"] in shown.out


@pytest.mark.parametrize("width", [40, 80])
def test_no_cell_of_a_verdict_is_cut_off(tmp_path: Path, width: int) -> None:
    path = written(tmp_path / "record.json", record())
    _, verdict = compare.run(path, path)
    shown = io.StringIO()
    Console(file=shown, width=width).print(compare.table(verdict))
    assert "\u2026" not in shown.getvalue()
    assert width < 80 or all(row.name in shown.getvalue() for row in verdict.metrics)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "after.json is not JSON"),
        ("[]", "not a benchmark record"),
        (json.dumps({**record(), "phases": []}), "after.phases is empty"),
        (json.dumps(record()).replace('"ttft_s": 0.05', '"ttft_s": NaN', 1), "ttft_s is nan"),
        (json.dumps(record()).replace('"output_tokens": 101', '"output_tokens": 0', 1), "zero tokens"),
        (json.dumps(record()).replace("p000", "other", 1), "mismatched prompts"),
        (json.dumps(record()).replace('"e2e_s"', '"e2e"', 1), "e2e_s is missing"),
        (json.dumps(record(phase(1, 1))).replace("1.05", "1" + "0" * 400), "not a number one can compare"),
        ("[" * 100_000 + "]" * 100_000, "after.json is not JSON"),
        ('{"benchmarks": []}', "after.schema is"),
    ],
)
def test_a_record_that_cannot_be_judged_is_2_and_named(
    run: Any, tmp_path: Path, text: str, said: str
) -> None:
    ended = run(
        "compare", written(tmp_path / "before.json", record()), written(tmp_path / "after.json", text)
    )
    assert ended.code == 2 and said in ended.err
    assert ended.err.count("\n") == 1 and len(ended.err) < 500


def test_brackets_in_a_record_are_no_markup(run: Any, tmp_path: Path) -> None:
    file = written(tmp_path / "odd.json", record({**phase(1), "name": "[/c1]"}))
    ended = run("compare", file, file)
    assert ended.code == 0 and "[/c1]" in ended.out


def test_a_missing_file_is_2(run: Any, tmp_path: Path) -> None:
    ended = run("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert ended.code == 2 and "a.json can't be read" in ended.err


def test_the_gate_file_decides(run: Any, tmp_path: Path) -> None:
    files = (
        written(tmp_path / "b.json", record(phase(1))),
        written(tmp_path / "a.json", record(phase(1, slower=1.3))),
    )
    wide = written(tmp_path / "gate.yaml", "throughput_margin: 0.5\ntpot_margin: 0.5\nttft_margin: null\n")
    assert run("compare", *files, "--gate", wide).code == 0
    limit = written(
        tmp_path / "limit.yaml", "gate:\n  throughput_margin: 0.5\n  min_tokens_per_s: {c1: 90}\n"
    )
    assert run("compare", *files, "--gate", limit).code == 1
    wrong = run("compare", *files, "--gate", written(tmp_path / "wrong.yaml", "throughput_margn: 0.5\n"))
    assert wrong.code == 2 and "did you mean 'throughput_margin'?" in wrong.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"throughput_margin: \xff", "is not YAML: 'utf-8' codec"),
        (b"a: [1\nb: 2\n", "is not YAML: while parsing"),
        (b"[" * 20_000, "is not YAML"),
        (b"min_evaluation: {1: 5}", "gate setting min_evaluation = {1: 5} can't be used"),
        (b"soak_s: .inf", "gate setting soak_s = inf can't be used: allowed is a number"),
        (b"budget_s: 1" + b"0" * 400, "gate setting budget_s"),
        (b"max_gpu_memory_mib: -1", "allowed is a whole number of at least 1"),
        (b"- 1", "must be a mapping"),
    ],
)
def test_a_gate_file_that_cannot_be_used_is_2_on_one_line(
    run: Any, tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "gate.yaml").write_bytes(content)
    one = written(tmp_path / "r.json", record())
    ended = run("compare", one, one, "--gate", tmp_path / "gate.yaml")
    assert ended.code == 2 and said in ended.err and ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        ([], "noise must be a mapping, not []"),
        (record(), "noise.schema is 'pyinfra-vllm/bench/1', not 'pyinfra-vllm/noise/1'"),
        ({"schema": "pyinfra-vllm/noise/1", "runs": 5}, "noise.phases is missing"),
        ({"schema": "pyinfra-vllm/noise/1", "runs": 5, "phases": {"c1": 3}}, "noise.phases.c1 must be a map"),
        (
            {"schema": "pyinfra-vllm/noise/1", "runs": 5, "phases": {"c1": {"e2e_s": "x"}}},
            "noise.phases.c1.e2e_s must be a number, not 'x'",
        ),
    ],
)
def test_invalid_noise_file_exits_2_and_is_named(run: Any, tmp_path: Path, noise: Any, said: str) -> None:
    one = written(tmp_path / "r.json", record())
    ended = run("compare", one, one, "--noise", written(tmp_path / "noise.json", noise))
    assert ended.code == 2 and f"noise.json: {said}" in ended.err


# calibrate


def test_calibrate_finds_the_noise_and_compare_takes_it(run: Any, tmp_path: Path) -> None:
    runs = [
        written(tmp_path / f"r{number}.json", record(phase(1, slower=slower)))
        for number, slower in enumerate((1.0, 1.02, 0.98, 1.01))
    ]
    noise = tmp_path / "noise.json"
    ended = run("calibrate", *runs, "--out", noise, "--json")
    assert ended.code == 0 and ended.json == json.loads(noise.read_text())
    assert ended.json["runs"] == 4 and 0.05 < ended.json["phases"]["c1"]["tokens_per_s"] < 0.2
    slower = written(tmp_path / "slower.json", record(phase(1, slower=1.08)))
    assert run("compare", runs[0], slower).code == 1
    assert run("compare", runs[0], slower, "--noise", noise).code == 0
    assert "4 runs of an unchanged service" in run("calibrate", *runs).out


def test_calibration_needs_three_runs(run: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "r.json", record())
    other = written(tmp_path / "other.json", record())
    ended = run("calibrate", path, other)
    assert ended.code == 2 and "at least 3 runs" in ended.err


def test_calibration_counts_no_run_twice(run: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "r.json", record())
    ended = run("calibrate", path, path, path)
    assert ended.code == 2 and "r.json is named twice" in ended.err
