"""The resolver's choices: founding cases, the whole table, objectives, kernels, and the rest of an answer."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib import resources
from typing import Any

import pytest
import yaml
from resolving import resolve, values

from pyinfra_vllm.catalog import flags as flag_table
from pyinfra_vllm.catalog import gpus, shapes, table
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.tuning import resolver, room
from pyinfra_vllm.tuning.request import OBJECTIVES

VERSIONS = ("0.11.0", "0.18.0", "0.23.0", "0.24.0", "0.28.0", "0.32.0", "0.33.0")
GPUS = (*table("gpus.yaml")["gpus"], "cpu")
A10G_STACK = (
    "fp8_kv_cache",
    {"chunked_prefill": 2048},
    "prefix_caching",
    {"batched_graphs": {"max_num_seqs": 32}},
    {"mtp": {"tokens": 1}},
    "qk_norm_rope_fusion",
    "no_thinking",
)

# Readings of the table of cards: 0.9 s where the walk took 0.85 and was 19 of them. It is 16 now.
SECOND = 20


# The whole table


# What may keep a cataloged model from a cataloged GPU without anything declared; any other error is the
# resolver's own.
ALLOWED = (
    r"V100 \(compute capability 7\.0\) is not supported",
    r"doesn't fit on 1 x ",
    r"needs vLLM 0\.17 or newer",
    r"AWQ on .* takes the slow kernel up to vLLM 0\.13",
)


@pytest.mark.thorough
@pytest.mark.parametrize("version", VERSIONS)
def test_every_model_on_every_gpu(version: str) -> None:
    known = flag_table.known(version)
    fitting = 0
    for gpu in GPUS:
        for index, model in enumerate(shapes.names()):
            found = resolve(model, gpu, version, objective=OBJECTIVES[index % 3], max_model_len=4096)
            assert {flag.flag for flag in found.flags} <= known, (gpu, model)
            assert "--quantization" not in values(found)
            assert all(flag.reason and flag.source for flag in (*found.flags, *found.settings))
            assert found.errors or (found.fit and found.fit.fits), (gpu, model)
            assert all(any(re.search(kind, text) for kind in ALLOWED) for text in found.errors), found.errors
            room_alone = [text for text in found.errors if "doesn't fit on" in text] == list(found.errors)
            assert ("What would make it fit: " in str(found.errors)) is (bool(found.errors) and room_alone)
            assert bool(found.kernel) == ("AWQ" in model.upper() and not gpu.startswith("v100"))
            fitting += not found.errors
    assert fitting > len(GPUS) * len(shapes.names()) / 2


@pytest.mark.alone
def test_all_models_on_all_gpus_take_less_than_a_second() -> None:
    """For one version, and on a machine that reads the table of cards in 0.045 s: machines differ by more
    than two, and one by half from second to second, so the walk is measured in readings, in turns with it.
    The better of two.
    """
    assert min(readings_of_a_walk(), readings_of_a_walk()) < SECOND


def readings_of_a_walk() -> float:
    cards = (resources.files("pyinfra_vllm.catalog") / "gpus.yaml").read_text(encoding="utf-8")
    walk, readings = 0.0, []
    for index, gpu in enumerate(GPUS):
        walk += time_of(partial(resolve_all, gpu))
        if index % 3 == 0:
            readings.append(time_of(lambda: yaml.load(cards, yaml.SafeLoader)))
    return walk / statistics.mean(readings)


def resolve_all(gpu: str) -> None:
    for model in shapes.names():
        resolve(model, gpu, VERSIONS[-1], max_model_len=4096)


def time_of(work: Callable[[], object]) -> float:
    """Seconds of the processor."""
    began = time.process_time()
    work()
    return time.process_time() - began


def test_no_setting_is_tried_where_the_weights_alone_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """One resolution for the question, and one for each number of GPUs that can hold the weights."""
    asked = []
    decide = resolver.decide

    def counted(request: Any) -> Any:
        asked.append(request.gpu_count)
        return decide(request)

    monkeypatch.setattr(resolver, "decide", counted)
    monkeypatch.setattr(room, "decide", counted)
    (error,) = resolve("Qwen/Qwen3-32B", "RTX 3090", max_model_len=4096).errors
    assert "What would make it fit: 4 GPUs" in error  # 66 GB of weights
    assert asked == [1, 4, 3, 1]  # 3: as stages, too small for one step; 1: its AWQ checkpoint


# What was measured on an H200 (docs/tuning.md): arguments, variables, kernel and predicted tokens, to the
# byte

STARTED = ["--gpu-memory-utilization", "0.92", "--max-model-len", "4096"]
NO_ACCESS_LOG = "--disable-uvicorn-access-log"  # came later, and changes no number
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_COLOR": "0", "VLLM_NO_USAGE_STATS": "1"}
MEASURED: list[tuple[dict[str, Any], list[str], dict[str, str], str, int]] = [
    ({"objective": "throughput"}, STARTED, QUIET, "Machete", 434_480),
    (
        {"objective": "latency"},
        STARTED,
        {**QUIET, "VLLM_DISABLED_KERNELS": "MacheteLinearKernel"},
        "Marlin",
        435_888,
    ),
    (
        {"objective": "balanced"},
        [*STARTED[:2], "--linear-backend", "humming", *STARTED[2:]],
        QUIET,
        "Humming",
        435_888,
    ),
    (
        {"objective": "throughput", "variants": ["fp8_kv_cache"]},
        ["--dtype", "bfloat16", *STARTED[:2], "--kv-cache-dtype", "fp8", *STARTED[2:]],
        QUIET,
        "Machete",
        868_960,
    ),
    (
        {"objective": "throughput", "flags": {"max-num-batched-tokens": 16384}},
        [*STARTED, "--max-num-batched-tokens", "16384"],
        QUIET,
        "Machete",
        428_400,
    ),
]


def without_log(argv: list[str]) -> list[str]:
    assert argv.count(NO_ACCESS_LOG) == 1
    return [word for word in argv if word != NO_ACCESS_LOG]


@pytest.mark.parametrize(("asked", "argv", "environment", "kernel", "tokens"), MEASURED)
def test_what_was_measured_on_an_h200_is_emitted_unchanged(
    asked: dict[str, Any], argv: list[str], environment: dict[str, str], kernel: str, tokens: int
) -> None:
    found = resolve("Qwen/Qwen3-32B-AWQ", "NVIDIA H200", "0.25.1", max_model_len=4096, **asked)
    assert without_log(found.argv()) == argv
    assert found.environment == environment
    assert found.kernel == (kernel,)
    assert found.fit is not None
    assert (found.fit.kv_tokens, found.fit.kv_bytes_per_token) == (
        tokens,
        131072 if "variants" in asked else 262144,
    )


@pytest.mark.parametrize(("objective", "tokens"), [("throughput", 205_744), ("latency", 207_152)])
def test_on_an_h100_the_same_is_emitted_and_the_cache_is_its_own(objective: str, tokens: int) -> None:
    measured = resolve(
        "Qwen/Qwen3-32B-AWQ", "NVIDIA H100 80GB HBM3", "0.25.1", max_model_len=4096, objective=objective
    )
    (row,) = [row for row in MEASURED if row[0] == {"objective": objective}]
    assert (without_log(measured.argv()), measured.environment, measured.kernel) == (
        row[1],
        row[2],
        (row[3],),
    )
    assert measured.fit is not None
    assert measured.fit.kv_tokens == tokens


# The founding cases


@pytest.mark.parametrize("model", ["Qwen/Qwen3-32B-AWQ", "rinna/qwen2.5-bakeneko-32b-instruct-awq"])
@pytest.mark.parametrize("runtime", ["0.11.0", "0.23.0", "0.33.0"])
def test_a_32b_awq_model_on_one_rtx_4090(model: str, runtime: str) -> None:
    found = resolve(model, "NVIDIA GeForce RTX 4090", runtime, max_model_len=4096)
    assert not found.errors
    assert found.kernel == ("Marlin",)
    assert values(found)["--max-num-seqs"] == 16  # graphs for 256 sequences would eat the cache
    assert found.fit is not None
    assert 17.8 < found.fit.weights_bytes / gpus.GIB < 18.6
    assert 4096 <= found.fit.kv_tokens < 14_000


def test_the_4090_s_tenfold_loss_is_refused_with_its_price() -> None:
    found = resolve(gpu="RTX 4090", runtime="0.23.0", max_model_len=4096, flags={"quantization": "awq"})
    assert "13.68 instead of 126.70" in str(found.errors)
    assert "--quantization" not in found.argv()


def test_qwen3_14b_awq_on_one_rtx_4090() -> None:
    found = resolve("Qwen/Qwen3-14B-AWQ", "NVIDIA GeForce RTX 4090", "0.23.0", max_model_len=16384)
    assert not found.errors
    assert found.fit is not None
    assert 9.0 < found.fit.weights_bytes / gpus.GIB < 9.8
    assert found.fit.kv_tokens > 45_000
    assert "--max-num-seqs" not in values(found)


def test_the_fp16_coder_moved_to_awq_on_an_rtx_pro_6000() -> None:
    gpu = "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"
    whole = resolve("Qwen/Qwen2.5-Coder-32B-Instruct", gpu, "0.24.0", max_model_len=32000)
    packed = resolve("Qwen/Qwen2.5-Coder-32B-Instruct-AWQ", gpu, "0.24.0", max_model_len=32000)
    assert whole.fit and packed.fit
    assert 60 < whole.fit.weights_bytes / gpus.GIB < 63  # "a 62 GB FP16 model"
    assert packed.fit.weights_bytes * 3 < whole.fit.weights_bytes
    assert packed.fit.kv_tokens > 2.5 * whole.fit.kv_tokens


def test_the_coder_s_reported_50_gb_on_an_rtx_pro_6000() -> None:
    """VLLM takes its share of the memory whatever the model needs: 50 GB is a share of one half, at most 3.4
    requests.
    """
    found = resolve(
        "Qwen/Qwen2.5-Coder-32B-Instruct-AWQ",
        "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        "0.24.0",
        max_model_len=32000,
        flags={"max-num-seqs": 512, "gpu-memory-utilization": 0.5},
    )
    assert not found.errors
    assert found.fit is not None
    assert found.fit.requested_bytes / 1e9 == pytest.approx(50, rel=0.05)
    assert 2.5 < found.fit.max_concurrency < 4


def test_qwen3_5_4b_on_an_a10g_with_the_variant_stack() -> None:
    found = resolve("Qwen/Qwen3.5-4B-AWQ", "NVIDIA A10G", "0.33.0", max_model_len=8192, variants=A10G_STACK)
    assert not found.errors
    assert values(found) == {
        "--attention-backend": "FLASHINFER",
        "--compilation-config": {"pass_config": {"enable_qk_norm_rope_fusion": True}},
        "--default-chat-template-kwargs": {"enable_thinking": False},
        NO_ACCESS_LOG: True,
        "--enable-chunked-prefill": True,
        "--enable-prefix-caching": True,
        "--gpu-memory-utilization": 0.92,
        "--kv-cache-dtype": "fp8",
        "--max-cudagraph-capture-size": 64,
        "--max-model-len": 8192,
        "--max-num-batched-tokens": 2048,
        "--max-num-seqs": 32,
        "--speculative-config": {"method": "mtp", "num_speculative_tokens": 1},
    }
    assert found.fit is not None
    # 8 bits of the 8 full-attention layers of 32, and of the one that drafts (vllm/models/qwen3_5_mtp.py:
    # `layer_type`)
    assert found.fit.kv_bytes_per_token == 9 * 2048


def test_the_stack_on_a_runtime_without_some_of_its_flags() -> None:
    found = resolve(
        "Qwen/Qwen3-4B-AWQ",
        "A10G",
        "0.11.0",
        variants=[{"batched_graphs": 32}, "fp8_kv_cache"],
        max_model_len=4096,
    )
    assert not found.errors
    assert values(found)["--cuda-graph-sizes"] == 32
    assert "--attention-backend" not in values(found)
    assert found.environment["VLLM_ATTENTION_BACKEND"] == "FLASHINFER"


# Objectives


def test_latency_on_hopper_takes_marlin_and_throughput_machete() -> None:
    latency, throughput = (resolve(runtime="0.25.1", objective=each) for each in ("latency", "throughput"))
    assert latency.environment["VLLM_DISABLED_KERNELS"] == "MacheteLinearKernel"
    assert latency.kernel == ("Marlin",)
    assert "VLLM_DISABLED_KERNELS" not in throughput.environment
    assert throughput.kernel == ("Machete",)


def test_balanced_on_hopper_takes_humming_where_it_was_measured() -> None:
    found = resolve(runtime="0.25.1")
    assert values(found)["--linear-backend"] == "humming"
    assert found.kernel == ("Humming",)
    for other in (
        resolve(runtime="0.23.0"),
        resolve(gpu="L40S"),
        resolve("Qwen/Qwen3-8B"),
        resolve(objective="throughput"),
    ):
        assert "--linear-backend" not in values(other)


def test_latency_on_hopper_before_machete_needs_nothing() -> None:
    found = resolve(runtime="0.18.0", objective="latency")
    assert "VLLM_DISABLED_KERNELS" not in found.environment
    assert found.kernel == ("Marlin",)


def test_latency_on_hopper_after_humming_passes_it_by() -> None:
    found = resolve(runtime="0.33.0", objective="latency")
    assert found.environment["VLLM_DISABLED_KERNELS"] == "MacheteLinearKernel,HummingLinearKernel"
    assert found.kernel == ("Marlin",)


def test_an_unquantized_model_has_no_kernel_to_expect() -> None:
    found = resolve("Qwen/Qwen3-8B", objective="latency")
    assert found.kernel == ()
    assert "VLLM_DISABLED_KERNELS" not in found.environment


def test_experts_have_a_kernel_of_their_own() -> None:
    assert resolve("Qwen/Qwen3-30B-A3B-AWQ", runtime="0.33.0").kernel == ("Machete", "Humming")


# Kernels that nobody would get


@pytest.mark.parametrize(
    ("gpu", "disabled"),
    [
        ("H200", "MacheteLinearKernel,MarlinLinearKernel"),
        ("L40S", "MarlinLinearKernel"),
        ("cpu", "CPUWNA16LinearKernel"),
    ],
)
@pytest.mark.parametrize("model", ["Qwen/Qwen3-32B-AWQ", "Qwen/Qwen3-30B-A3B-AWQ"])
def test_a_quantized_model_without_any_fast_kernel_is_an_error(model: str, gpu: str, disabled: str) -> None:
    found = resolve(
        model,
        gpu,
        objective="throughput",
        max_model_len=2048,
        environment={"VLLM_DISABLED_KERNELS": disabled},
    )
    assert "disables every fast kernel" in str(found.errors)


def test_a_backend_that_is_asked_for_and_disabled_is_no_kernel() -> None:
    disabled = {"VLLM_DISABLED_KERNELS": "HummingLinearKernel"}
    found = resolve(flags={"linear-backend": "humming"}, environment=disabled)
    assert "disables every fast kernel" in str(found.errors)


def test_a_backend_without_kernels_for_4_bits_leaves_the_choice_to_vllm() -> None:
    assert resolve(gpu="L40S", flags={"linear-backend": "cutlass"}).kernel == ("Marlin",)


def test_experts_are_expected_beside_the_linear_layers_even_on_the_same_kernel() -> None:
    assert resolve("Qwen/Qwen3-30B-A3B-AWQ", "L40S").kernel == ("Marlin", "Marlin")


def test_expert_parallelism_lifts_the_experts_rule() -> None:
    found = resolve("Qwen/Qwen3-30B-A3B-AWQ", gpu_count=4, flags={"enable-expert-parallel": True})
    assert not found.errors


# The rest of the answer


def test_a_tiny_model_outside_the_catalog_on_a_cpu_host() -> None:
    config = {
        "model_type": "qwen3", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512,
        "tie_word_embeddings": True, "max_position_embeddings": 2048, "torch_dtype": "float16",
        "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True},
    }  # fmt: skip
    found = resolve(
        model=shapes.from_config("lab/tiny", config, 300_000),
        gpu="cpu",
        gpu_count=0,
        runtime="0.32.0",
        max_model_len=512,
        shutdown_timeout_s=30,
    )
    assert not found.errors
    assert found.argv() == [NO_ACCESS_LOG, "--max-model-len", "512", "--shutdown-timeout", "30"]
    assert found.environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert found.kernel == ("CPUWNA16",)
    assert found.fit is not None and found.fit.kv_bytes_per_token == 2 * 2 * 2 * 32 * 2


def test_a_v100_is_rejected_with_the_reason() -> None:
    found = resolve("Qwen/Qwen3-8B-AWQ", "Tesla V100-SXM2-32GB", "0.18.0")
    assert "need 7.5" in str(found.errors)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"runtime": "0.18.0"}, "warnings"),
        ({"runtime": "0.18.0", "exposed": True}, "errors"),
        ({"runtime": "0.18.0", "exposed": True, "reason": "behind a firewall"}, "warnings"),
    ],
)
def test_the_security_floor(settings: dict[str, Any], where: str) -> None:
    found = resolve(**settings)
    assert "CVE-2026-48746" in str(getattr(found, where))
    assert ("Accepted: behind a firewall" in str(found.warnings)) is ("reason" in settings)


def test_a_vulnerability_that_is_known_for_one_version_only() -> None:
    assert "CVE-2026-9540" in str(resolve(runtime="0.19.0").warnings)
    for version in ("0.18.0", "0.20.0", "0.33.0"):
        assert "CVE-2026-9540" not in str(resolve(runtime=version).warnings)


# Settings that open a server to whoever reaches it (security.yaml)

DEVELOPMENT = {"VLLM_SERVER_DEV_MODE": "1"}
PICKLE = {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}


def test_development_endpoints_are_never_opened() -> None:
    for settings in ({}, {"exposed": True}, {"exposed": True, "reason": "behind a firewall"}):
        (error,) = resolve(environment=DEVELOPMENT, **settings).errors
        assert error.startswith("environment: {VLLM_SERVER_DEV_MODE: 1} opens the development endpoints")
        assert error.endswith("take it out")
    assert "DEV_MODE" not in str(resolve(environment={"VLLM_SERVER_DEV_MODE": "0"}).errors)


def test_unpickling_is_refused_where_others_reach_the_server() -> None:
    assert "INSECURE" in str(resolve(environment=PICKLE).warnings)
    (error,) = resolve(environment=PICKLE, exposed=True).errors
    assert error.startswith("environment: {VLLM_ALLOW_INSECURE_SERIALIZATION: 1} ")
    assert 'Or record why it is accepted: runtime: {reason: "..."}' in error
    accepted = resolve(environment=PICKLE, exposed=True, reason="one user")
    assert not accepted.errors
    assert "INSECURE_SERIALIZATION: 1} " in str(accepted.warnings)
    assert "Accepted: one user" in str(accepted.warnings)


@pytest.mark.parametrize(
    ("asked", "harmless", "told"),
    [
        (
            {"environment": {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}},
            {"environment": {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0"}},
            "declare the adapters as flags: {lora-modules: ...}",
        ),
        (
            {"flags": {"allowed-local-media-path": "/"}},
            {"flags": {"allowed-local-media-path": ""}},
            "every file below / that the service's user can read",
        ),
        (
            {"flags": {"trust_request_chat_template": True}},
            {"flags": {"trust-request-chat-template": False}},
            "flags: {trust-request-chat-template: true} lets any request bring",
        ),
        (
            {"flags": {"enable-prompt-embeds": True}},
            {"flags": {"no-enable-prompt-embeds": True}},
            "of a wrong shape",
        ),
        (
            {"runtime": "0.33.0", "flags": {"trust-request-mm-kwargs": True}},
            {"runtime": "0.33.0", "flags": {"trust-request-mm-kwargs": False}},
            "unless every client is trusted",
        ),
        ({"flags": {"enable-mm-embeds": True}}, {"flags": {"enable-mm-embeds": False}}, "of a wrong shape"),
        (
            {"flags": {"worker-extension-cls": "mine.Extension"}},
            {"flags": {"worker-extension-cls": ""}},
            "flags: {worker-extension-cls: mine.Extension}",
        ),
    ],
)
def test_dangerous_settings_are_warned_of(asked: dict[str, Any], harmless: dict[str, Any], told: str) -> None:
    for settings in ({}, {"exposed": True}):
        found = resolve(**asked, **settings)
        assert told in str(found.warnings)
        assert not found.errors
    assert "take it out" not in str(resolve(**harmless, exposed=True).warnings)


def test_a_runtime_newer_than_the_catalog_is_a_warning() -> None:
    found = resolve(runtime="0.40.0")
    assert "newer than the flag catalog" in str(found.warnings)
    assert not found.errors


def test_runtime_older_than_catalog_is_refused() -> None:
    for version in ("0.6.0", "0.10"):
        found = resolve(runtime=version, max_model_len=4096)
        assert "older than the flag catalog" in str(found.errors)
        assert "is left out" not in str(found.warnings)


@pytest.mark.parametrize(
    "asked",
    [
        {"model": "nobody/nothing"},
        {"gpu": "Voodoo 2"},
        {"runtime": "latest"},
        {"objective": "speed"},
        {"max_model_len": 0},
        {"max_model_len": 10**400},
        {"gpu_count": -1},
        {"gpu_count": 10**12},
        {"runtime": "0.25.l"},
        {"runtime": "0.33.x"},
        {"runtime": "0.25.1 or so"},
    ],
)
def test_questions_that_cannot_be_understood(asked: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError):
        resolve(**asked)
