"""Results of `vllm bench serve` as records: what they become, and what is refused with a reason."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from pyinfra_vllm import second_opinion
from pyinfra_vllm.commands import compare
from pyinfra_vllm.errors import DeclarationError, HostError
from pyinfra_vllm.on_host.bench.record import Record


def vllm_result(concurrency: int = 8, slower: float = 1.0) -> dict[str, Any]:
    """The keys of `vllm bench serve --save-result --save-detailed` (0.32.0) that matter here."""
    return {
        "model_id": "m",
        "max_concurrency": concurrency,
        "duration": 4.2 * slower,
        "output_throughput": 40 * 11 / 4.2,
        "input_lens": [256] * 40,
        "output_lens": [11] * 40,
        "ttfts": [0.1 * slower] * 40,
        "itls": [[0.01 * slower] * 10] * 40,
        "errors": [""] * 40,
    }


def test_vllm_bench_becomes_a_record() -> None:
    found = second_opinion.from_vllm_bench([vllm_result(1), vllm_result(8)])
    record = Record.read(found.as_dict(), "it")
    assert record == found and [phase.name for phase in record.phases] == ["c1", "c8"]
    first = record.phases[0].requests[0]
    assert first.ttft_s == 0.1 and first.e2e_s == pytest.approx(0.2) and first.output_tokens == 11


def test_a_failed_request_stays_a_failed_request() -> None:
    result = vllm_result()
    result["errors"][3] = "Traceback\nConnectionError: gone"
    request = second_opinion.from_vllm_bench([result]).phases[0].requests[3]
    assert request.ok is False and "gone" in request.error


def test_compare_reads_results_of_vllm_bench_as_they_are(tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.json" for name in ("before", "same", "slower")}
    for name, path in paths.items():
        path.write_text(json.dumps(vllm_result(slower=1.3 if name == "slower" else 1.0)))
    assert compare.run(paths["before"], paths["same"])[0] == 0
    assert compare.run(paths["before"], paths["slower"])[0] == 1


def without(value: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in keys}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (without(vllm_result(), "ttfts", "itls"), "--save-detailed"),
        (without(vllm_result(), "input_lens"), "lacks 'input_lens'"),
    ],
)
def test_what_is_missing_is_named(value: dict[str, Any], said: str) -> None:
    with pytest.raises(DeclarationError) as error:
        second_opinion.converted(value, "x.json")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({**vllm_result(), "itls": [[0.01]] * 39}, "itls has 39 entries and ttfts has 40"),
        ({**vllm_result(), "ttfts": [0.1] * 39 + ["soon"]}, "ttfts[39] must be a number, not 'soon'"),
        ({**vllm_result(), "itls": [[0.1, None]] * 40}, "itls[0][1] must be a number, not None"),
        ({**vllm_result(), "ttfts": [float("nan")] * 40}, "ttfts[0] is nan"),
        ({**vllm_result(), "max_concurrency": "inf"}, "max_concurrency must be a number, not 'inf'"),
    ],
)
def test_what_can_not_be_measured_is_named_by_its_key(value: dict[str, Any], said: str) -> None:
    with pytest.raises(DeclarationError) as error:
        second_opinion.converted(value, "x.json")
    assert said in str(error.value) and "x.json" in str(error.value)


def program(tmp_path: Path, script: str) -> str:
    path = tmp_path / "vllm"
    path.write_text(f"#!/usr/bin/env python3\nimport json, pathlib, sys\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


BENCH_SERVE = f"""
arguments = dict(zip(sys.argv[3::1], sys.argv[4::1]))
result = {vllm_result()!r}
result["max_concurrency"] = int(arguments["--max-concurrency"])
pathlib.Path(arguments["--result-dir"], arguments["--result-filename"]).write_text(json.dumps(result))
"""


def test_the_runtime_s_own_benchmark_is_run_once_per_concurrency(tmp_path: Path) -> None:
    vllm = program(tmp_path, BENCH_SERVE)
    record = second_opinion.run_vllm_bench(vllm, "http://x", "m", "/ck", (1, 32))
    assert [phase.name for phase in record.phases] == ["c1", "c32"]
    assert record.engine == "vllm bench serve"


def test_the_key_reaches_it_through_its_environment_only(tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    keeping = (
        f"import os\npathlib.Path({str(told)!r}).write_text(json.dumps([sys.argv,"
        " os.environ['OPENAI_API_KEY']]))"
    )
    vllm = program(tmp_path, keeping + BENCH_SERVE)
    record = second_opinion.run_vllm_bench(vllm, "http://x", "m", "/ck", (1,), api_key="sesame")
    argv, key = json.loads(told.read_text())
    assert key == "sesame" and "sesame" not in str(argv) + json.dumps(record.as_dict())


@pytest.mark.thorough
def test_bench_hands_it_the_key_of_the_environment(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    checking = "import os\nassert os.environ['OPENAI_API_KEY'] == 'sesame' and 'sesame' not in str(sys.argv)"
    words = (
        "bench",
        "--url",
        "http://x",
        "--model",
        "m",
        "--out",
        tmp_path / "out.json",
        "--tokenizer",
        "/ck",
    )
    ended = run(*words, "--engine", "vllm-bench", "--vllm", program(tmp_path, checking + BENCH_SERVE))
    assert ended.code == 0, ended.err
    assert "sesame" not in (tmp_path / "out.json").read_text() + ended.out + ended.err


def test_unreadable_result_of_vllm_bench_is_an_error(tmp_path: Path) -> None:
    damaged = BENCH_SERVE.replace(
        'result["max_concurrency"]', 'result["ttfts"][0] = "x"\nresult["max_concurrency"]'
    )
    with pytest.raises(HostError, match=r"wrote what can't be read: .*ttfts\[0\]"):
        second_opinion.run_vllm_bench(program(tmp_path, damaged), "http://x", "m", "/ck", (1,))


def test_its_failure_carries_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="exited with 3: no such tokenizer"):
        second_opinion.run_vllm_bench(
            program(tmp_path, "print('no such tokenizer', file=sys.stderr); sys.exit(3)"),
            "http://x",
            "m",
            "/ck",
            (1,),
        )
    with pytest.raises(HostError, match="did not come to an end"):
        second_opinion.run_vllm_bench(str(tmp_path / "nothing"), "http://x", "m", "/ck", (1,))


@pytest.mark.thorough
def test_bench_writes_its_record_like_any_other(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = ("bench", "--url", "http://x", "--model", "m", "--out", out, "--engine", "vllm-bench")
    assert "needs --tokenizer" in run(*words).err and not out.exists()
    ended = run(*words, "--vllm", program(tmp_path, BENCH_SERVE), "--tokenizer", "/ck", "--json")
    assert ended.code == 0 and set(ended.json["summary"]) == {"c1", "c8", "c64"}
    assert run("compare", out, out).code == 0
