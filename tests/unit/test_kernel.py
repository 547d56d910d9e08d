"""Each version's wording, healthy and not, and the real logs of an H200."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pyinfra_vllm.on_host.server import kernel

LOGS = Path(__file__).parent.parent / "fixtures" / "kernel"

CONVERTED = (
    "(EngineCore_DP0 pid=71) INFO 10-03 11:02:55 [awq_marlin.py:119] The model is convertible to awq_marlin"
    " during runtime. Using awq_marlin kernel."
)
FORCED = (
    "(APIServer pid=1) INFO 10-03 11:02:55 [awq_marlin.py:123] Detected that the model can run with"
    " awq_marlin, however you specified quantization=awq explicitly, so forcing awq. Use"
    " quantization=awq_marlin for faster inference"
)
UNOPTIMIZED = (
    "WARNING [auto_awq.py:325] Layer 'model.layers.0.mlp.down_proj' is not supported by AutoAWQMarlin. "
    "Falling back to unoptimized AWQ kernels."
)
UNOPTIMIZED_BEFORE = UNOPTIMIZED.replace("AutoAWQMarlin", "AWQMarlin")
MOE_FALLBACK = (
    "WARNING [awq_marlin.py:293] Layer 'model.layers.0.mlp.experts' is not supported by AWQMoeMarlin. "
    "Falling back to Moe WNA16 kernels."
)


def using(name: str, method: str = "AutoAWQMarlinLinearMethod") -> str:
    return f"(EngineCore pid=1596) INFO 11-21 05:25:56 [auto_awq.py:473] Using {name} for {method}"


@pytest.mark.parametrize(
    ("version", "lines", "kernels"),
    [
        ("0.11.0", [CONVERTED], ["Marlin"]),
        ("0.13.0", [CONVERTED], ["Marlin"]),
        ("0.18.0", [CONVERTED], ["Marlin"]),
        ("0.11.0", [using("MarlinLinearKernel", "CompressedTensorsWNA16")], ["Marlin"]),
        ("0.19.1", [CONVERTED, using("MarlinLinearKernel", "AWQMarlinLinearMethod")], ["Marlin"]),
        ("0.23.0", [CONVERTED, using("MacheteLinearKernel", "AWQMarlinLinearMethod")], ["Machete"]),
        ("0.24.0", [using("MarlinLinearKernel")], ["Marlin"]),
        ("0.28.0", [using("MacheteLinearKernel")], ["Machete"]),
        ("0.32.0", [using("HummingLinearKernel")], ["Humming"]),
        ("0.33.0", [using("MarlinLinearKernel", "mixed-precision linear")], ["Marlin"]),
        ("0.33.0", [using("MarlinLinearKernel", "CompressedTensorsWNA16")], ["Marlin"]),
        ("0.28.0", [using("MarlinLinearKernel"), "Using 'MARLIN' WNA16 MoE backend."], ["Marlin"]),
        (
            "0.33.0",
            [using("MacheteLinearKernel"), "Using 'HUMMING' WNA16 MoE backend."],
            ["Machete", "Humming"],
        ),
        ("0.32.0", [using("CPUWNA16LinearKernel")], ["CPUWNA16"]),
    ],
)
def test_fast_kernels_pass(version: str, lines: list[str], kernels: list[str]) -> None:
    found = kernel.check(lines, version)
    assert (found["verdict"], found["kernels"], found["lines"]) == ("pass", kernels, lines)


@pytest.mark.parametrize(
    ("version", "lines", "reason"),
    [
        ("0.11.0", [FORCED], "13.68"),
        ("0.23.0", [FORCED], "remove the flag"),
        (
            "0.23.0",
            [CONVERTED, using("MarlinLinearKernel", "AWQMarlinLinearMethod"), UNOPTIMIZED_BEFORE],
            "unoptimized",
        ),
        ("0.28.0", [using("MarlinLinearKernel"), UNOPTIMIZED], "unoptimized"),
        ("0.18.0", [CONVERTED, MOE_FALLBACK], "experts"),
        ("0.28.0", [using("TritonW4A16LinearKernel")], "TritonW4A16"),
        ("0.28.0", [using("MarlinLinearKernel"), using("TritonW4A16LinearKernel")], "TritonW4A16"),
        ("0.33.0", [using("ExllamaLinearKernel", "mixed-precision linear")], "Exllama"),
        ("0.28.0", [using("MarlinLinearKernel"), "Using 'TRITON' WNA16 MoE backend."], "MoE TRITON"),
    ],
)
def test_slow_kernels_fail_even_without_a_baseline(version: str, lines: list[str], reason: str) -> None:
    found = kernel.check(lines, version)
    assert found["verdict"] == "fail"
    assert reason in str(found["reasons"])


MIXTURE = "Using 'MARLIN' WNA16 MoE backend."


@pytest.mark.parametrize("version", ["0.20.0", "0.33.0", "v0.28.0", None])
def test_experts_that_are_expected_must_be_named(version: str | None) -> None:
    linear = using("MarlinLinearKernel")
    found = kernel.check([linear], version, ["Marlin", "Marlin"])
    assert found["verdict"] == "inconclusive"
    assert "kernel of the experts" in str(found["reasons"])
    assert kernel.check([linear, MIXTURE], version, ["Marlin", "Marlin"])["verdict"] == "pass"
    assert kernel.check([linear], version, ["Marlin"])["verdict"] == "pass"
    slow = [using("TritonW4A16LinearKernel")]
    assert kernel.check(slow, version, ["Marlin", "Marlin"])["verdict"] == "fail"


def test_experts_had_no_line_before_0_20() -> None:
    linear = [CONVERTED, using("MarlinLinearKernel", "AWQMarlinLinearMethod")]
    assert kernel.check(linear, "0.19.1", ["Marlin", "Marlin"])["verdict"] == "pass"
    assert kernel.check([CONVERTED], "0.18.0", ["Marlin", "Marlin"])["verdict"] == "pass"


def test_no_line_is_inconclusive_and_names_the_version() -> None:
    found = kernel.check(["INFO Application startup complete."], "0.34.0", ["Marlin"])
    assert found["verdict"] == "inconclusive"
    assert "0.34.0" in str(found["reasons"])


@pytest.mark.parametrize("version", ["0.19.1", "0.23.0", "0.28.0"])
def test_convertible_alone_proves_nothing_where_the_kernel_is_chosen_later(version: str) -> None:
    assert kernel.check([CONVERTED], version)["verdict"] == "inconclusive"


def test_the_version_in_the_log_wins_over_the_one_given() -> None:
    engine = (
        "INFO [core.py:77] Initializing a V1 LLM engine (v0.18.0) with config: quantization=awq_marlin,"
        " seed=0"
    )
    assert kernel.check([engine, CONVERTED], "0.28.0")["verdict"] == "pass"


def test_padding_is_told_but_passes() -> None:
    padded = (
        "WARNING [marlin_utils.py:239] Marlin requires thread-tile padding for some weight shapes in this"
        " model."
    )
    found = kernel.check([using("MarlinLinearKernel"), padded], "0.32.0")
    assert found["verdict"] == "pass"
    assert "part of its speed lost" in str(found["reasons"])


def test_a_cpu_kernel_fails_where_a_gpu_kernel_is_expected() -> None:
    lines = [using("CPUWNA16LinearKernel")]
    assert kernel.check(lines, "0.32.0", ["Marlin"])["verdict"] == "fail"
    assert kernel.check(lines, "0.32.0", ["CPUWNA16"])["verdict"] == "pass"


def test_another_fast_kernel_than_expected_passes_and_says_so() -> None:
    found = kernel.check([using("MacheteLinearKernel")], "0.25.1", ["Marlin"])
    assert found["verdict"] == "pass"
    assert "expects Marlin" in str(found["reasons"])


ENGINE_UNQUANTIZED = (
    "Initializing a V1 LLM engine (v0.28.0) with config: model='/m', quantization=None, seed=0"
)


def test_an_unquantized_model_has_nothing_to_check() -> None:
    assert kernel.check([], "0.28.0", [])["verdict"] == "pass"
    found = kernel.check([ENGINE_UNQUANTIZED], "0.28.0")
    assert found["verdict"] == "pass"
    assert "not quantized" in str(found["reasons"])


def test_an_unquantized_model_where_a_kernel_is_expected_fails() -> None:
    assert kernel.check([ENGINE_UNQUANTIZED], "0.28.0", ["Marlin"])["verdict"] == "fail"


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("h200-vllm0.25.1-qwen3-32b-awq", ["Machete"]),  # --quantization awq: harmless from 0.24 on
        ("h200-vllm0.25.1-qwen3-32b-marlin", ["Machete"]),  # --quantization awq_marlin
        ("h200-vllm0.25.1-qwen3-32b-fp8kv", ["Machete"]),
        ("h200-vllm0.25.1-qwen3-32b-nomachete", ["Marlin"]),
        ("h200-vllm0.25.1-qwen3-8b-auto", ["Machete"]),
        ("h200-vllm0.25.1-resolved-latency", ["Marlin"]),
        ("h200-vllm0.25.1-resolved-throughput", ["Machete"]),
        ("h200-vllm0.25.1-resolved-balanced", ["Humming"]),
        ("h200-vllm0.25.1-house-2b-fp8", ["CutlassFP8ScaledMM"]),
        ("h200-vllm0.25.1-house-2b-gptq", ["Machete"]),
        ("h100-vllm0.25.1-resolved-latency", ["Marlin"]),
        ("h100-vllm0.25.1-resolved-throughput", ["Machete"]),
        ("h100-vllm0.25.1-resolved-balanced", ["Humming"]),
        ("cpu-vllm0.32.0-tiny-awq", ["CPUWNA16"]),
    ],
)
def test_real_logs(log: str, expected: list[str]) -> None:
    lines = (LOGS / f"{log}.log").read_text(encoding="utf-8").splitlines()
    found = kernel.check(lines, None, expected)
    assert (found["verdict"], found["kernels"]) == ("pass", expected)


def test_evidence_is_bounded() -> None:
    lines = [using("MarlinLinearKernel") + " " * 10_000 + "x"] * 1_000
    evidence = kernel.check(lines, "0.28.0")["lines"]
    assert isinstance(evidence, list)
    assert len(evidence) == kernel.MAX_LINES
    assert all(len(line) <= kernel.MAX_LINE_LENGTH for line in evidence)


@pytest.mark.parametrize("words", ["Selected " + "ScaledMM" * 2000, "Using " + "NvFp4" * 3200])
def test_a_line_that_is_made_to_take_long_does_not(words: str) -> None:
    began = time.process_time()
    assert kernel.check([words] * 4)["kernels"] == []
    assert time.process_time() - began < 1
