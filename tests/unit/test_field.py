"""Public reports of people who serve models, rebuilt: each with its right value and where that is from.

tests/fixtures/field/models.json: configurations with the bytes of the weights. kv_cache.json: configurations
with the bytes of one request of so many tokens, as vLLM 0.32.0 itself says (scripts/ask_kv_cache.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from resolving import resolve, values

from pyinfra_vllm import fit
from pyinfra_vllm.catalog import gpus, shapes, versions
from pyinfra_vllm.catalog.shapes import Shape
from pyinfra_vllm.hub import facts_of
from pyinfra_vllm.kv_layout import Layout
from pyinfra_vllm.on_host.inspect import runtime as inspect_runtime
from pyinfra_vllm.on_host.server import kernel
from pyinfra_vllm.tuning.resolution import Resolution

FIELD = Path(__file__).parents[1] / "fixtures/field"
LISTED = json.loads((FIELD / "models.json").read_text())
MODELS = {each["repo"].removeprefix("acme/"): each for each in LISTED}
REQUESTS = json.loads((FIELD / "kv_cache.json").read_text())


def shape(name: str) -> Shape:
    model = MODELS[name]
    return shapes.from_config(model["repo"], model["config"], model["bytes"])


def resolved(model: str, gpu: str, runtime: str = "0.32.0", **asked: Any) -> Resolution:
    known = shape(model) if model in MODELS else model
    return resolve(model=known, gpu=gpu, runtime=runtime, **asked)


def layout_of(model: Shape) -> Layout:
    return fit.layout(model, fit.Load(1, 4096, 0.9, 8192, 64, dtype="bfloat16"))


def request_gib(found: Resolution) -> float:
    assert found.fit is not None
    return found.fit.request_bytes / gpus.GIB


# The KV cache of one request


@pytest.mark.parametrize("row", REQUESTS, ids=lambda row: row["name"])
@pytest.mark.parametrize("length", ["1000", "4096", "16384", "65536"])
def test_a_request_takes_what_vllm_itself_says(row: dict[str, Any], length: str) -> None:
    model = shapes.from_config(row["name"], row["config"])
    load = fit.Load(1, int(length), 0.9, row["in_flight"], 64, dtype="bfloat16")
    found = fit.layout(model, load).request_bytes(int(length))
    assert found == pytest.approx(row["requests"][length], rel=0.001)


def test_layers_that_were_searched_for_keep_what_each_of_them_keeps() -> None:
    """Nemotron-NAS (models/nemotron_nas.py, 0.32.0): heads in a group by layer, and layers without attention.

    Its configuration class is the repository's own code, so vLLM's classes can't be asked here.
    """
    blocks = [
        {"attention": {"n_heads_in_group": 4, "no_op": False}, "ffn": {"ffn_mult": 2.625, "no_op": False}},
        {"attention": {"n_heads_in_group": None, "no_op": True}, "ffn": {"ffn_mult": 0.5}},
        {"attention": {"n_heads_in_group": 8}, "ffn": {"no_op": True}},
        {"attention": {"n_heads_in_group": None, "replace_with_linear": True}, "ffn": {}},
    ]
    config = {
        "model_type": "nemotron-nas", "num_hidden_layers": 4, "hidden_size": 4096, "vocab_size": 1000,
        "num_attention_heads": 32, "num_key_value_heads": None, "intermediate_size": None,
        "block_configs": blocks, "max_position_embeddings": 8192,
    }  # fmt: skip
    model = shapes.from_config("a/b", facts_of(config))
    assert (model.attention_layers, model.kv_heads) == (2, 8)
    assert model.intermediate == 7168  # 2 x 2.625 x 4096 / 3, a multiple of 256
    assert layout_of(model).request_bytes(1600) == (8 + 4) * 2 * 128 * 2 * 1600
    halves = fit.layout(model, fit.Load(2, 1600, 0.9, 8192, 64, dtype="bfloat16"))
    assert halves.request_bytes(1600) == (4 + 2) * 2 * 128 * 2 * 1600


def test_an_index_is_kept_beside_latent_attention() -> None:
    """DeepSeek V3.2 (models/deepseek_v2.py DeepseekV32IndexerCache, 0.32.0): 576 values of 16 bits, and a key
    of 128 bytes with a scale of 4. The CPU build refuses sparse attention, so this is arithmetic.
    """
    config = {"model_type": "deepseek_v32", "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 64}
    model = shapes.from_config("a/b", config)
    assert model.attention_layers == 61
    assert layout_of(model).request_bytes(4096) == 61 * (576 * 2 + 132) * 4096
    every_fourth = shapes.from_config("a/b", {**config, "index_topk_freq": 4})
    with_index = len([layer for layer in range(61) if max(layer - 1, 0) % 4 == 0])
    assert layout_of(every_fourth).request_bytes(4096) == (61 * 576 * 2 + with_index * 132) * 4096
    without = shapes.from_config("a/b", {**config, "model_type": "deepseek_v3", "index_topk": None})
    assert layout_of(without).request_bytes(4096) == 61 * 576 * 2 * 4096
    fp8 = resolve(model=model, gpu="B300", gpu_count=8, runtime="0.32.0", variants=["fp8_kv_cache"])
    assert "576 or 656 bytes for a token" in str(fp8.warnings)


def test_delta_attention_keeps_a_state_of_32_bits_beside_latent_attention() -> None:
    """Kimi Linear 48B (kda_state_shape, kda_state_dtype; update_block_size_for_backend: blocks of 128 tokens
    and at least a state, 0.32.0). Its class needs CUDA's packages, so this is arithmetic.
    """
    full = [4, 8, 12, 16, 20, 24, 27]
    heads = {"head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4}
    delta = {**heads, "full_attn_layers": full, "kda_layers": sorted({*range(1, 28)} - {*full})}
    model = shapes.from_config("a/b", {"model_type": "kimi_linear", "linear_attn_config": delta})
    assert (model.attention_layers, model.uncounted) == (7, ())
    state = 3 * 4096 * 3 * 2 + 32 * 128 * 128 * 4
    load = fit.Load(1, 4096, 0.9, 8192, 64, dtype="bfloat16")
    assert model.state is not None and fit.state_bytes(model, load) == state
    block = -(-state // (128 * 1152)) * 128
    assert block == 1920
    laid = layout_of(model)  # one group of 7 layers with attention, three of 7, 7 and 6 with states
    assert (len(laid.groups), laid.block_bytes) == (4, 7 * 1920 * 1152)
    assert laid.request_bytes(65536) == (35 + 3) * 7 * 1920 * 1152


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"] * 16}, ()),
        ({"model_type": "lfm2", "full_attn_idxs": [2, 5, 8]}, ()),
        ({"model_type": "jamba"}, ()),
        ({"model_type": "jamba", "attn_layer_period": 4, "attn_layer_offset": 1}, ()),
        ({"model_type": "zamba2"}, ("linear_attention",)),
        ({"model_type": "kimi_linear"}, ("linear_attention",)),
        ({"model_type": "deepseek_v3", "compress_ratios": [4, 128]}, ("compressed_attention",)),
    ],
)
def test_what_layers_keep_is_known_or_said_not_to_be(config: dict[str, Any], kinds: tuple[str, ...]) -> None:
    model = shapes.from_config("a/b", config, 10**9)
    assert model.uncounted == kinds
    warnings = str(resolve(model=model, gpu="B300", runtime="0.32.0").warnings)
    assert ("whose size isn't known here" in warnings) is bool(kinds)


def test_a_config_s_own_pattern_goes_before_its_class_s() -> None:
    """Jamba's class has attention in each eighth layer."""
    config = {"model_type": "jamba", "num_hidden_layers": 32}
    assert shapes.from_config("a/b", config).attention_layers == 4
    own = {**config, "attn_layer_period": 16, "attn_layer_offset": 7}
    assert shapes.from_config("a/b", own).attention_layers == 2
    listed = shapes.from_config("a/b", {"model_type": "lfm2", "full_attn_idxs": [2, 5, 8]})
    assert listed.attention_layers == 3


def test_sliding_windows_are_bounded() -> None:
    """vllm#16199: 10 layers full, 52 a window of 1024. 2.66 GiB with one step in flight (run on the CPU
    build); on a GPU vLLM counts two from 0.26 on (vllm#49878), unless async scheduling is off.
    """
    asked: dict[str, Any] = {"model": "gemma-3-27b-it-w4a16", "gpu": "RTX 4090", "max_model_len": 16384}
    off = {"async-scheduling": False}
    assert request_gib(resolved(**asked, flags=off)) == pytest.approx(2.66, abs=0.01)
    assert request_gib(resolved(**asked, variants=[{"ngram": 4}])) == pytest.approx(2.66, abs=0.01)
    assert request_gib(resolved(**asked, runtime="0.25.1")) == pytest.approx(2.66, abs=0.01)
    assert request_gib(resolved(**asked)) == pytest.approx(3.60, abs=0.01)
    assert "flags: {max-num-seqs: 16}" in str(resolved(**asked).errors)
    assert resolved(**asked, flags={"max-num-seqs": 16}).fit.fits  # type: ignore[union-attr]


def test_windows_are_counted_in_full_without_the_hybrid_manager() -> None:
    found = resolved("gpt-oss-120b", "H200", flags={"disable-hybrid-kv-cache-manager": True})
    assert request_gib(found) == pytest.approx(36 * 2048 * 131072 / gpus.GIB, rel=0.001)


def test_a_reported_growth_of_gemma_4_is_predicted() -> None:
    """vllm#49878: 45.79 GiB up to 0.25, 70.79 GiB from 0.26, with 32768 tokens a step."""
    row = next(row for row in REQUESTS if row["name"] == "gemma-4-31b")
    model = shapes.from_config(row["name"], row["config"])
    for runtime, gib in (("0.25.1", 45.79), ("0.26.0", 70.79)):
        found = resolve(
            model=model, gpu="B300", runtime=runtime, max_model_len=262144,
            flags={"max-num-batched-tokens": 32768},
        )  # fmt: skip
        assert request_gib(found) == pytest.approx(gib, rel=0.001)


def test_no_more_sequences_than_blocks_for_their_states() -> None:
    """vllm#49064: 969 blocks of 49 MiB in 0.90 of an H100, and 1024 sequences end the start."""
    asked: dict[str, Any] = {
        "model": "Qwen3.8-27B-AWQ-INT4", "gpu": "H100", "runtime": "0.29.0", "max_model_len": 262144,
    }  # fmt: skip
    share = {"gpu-memory-utilization": 0.9}
    found = resolved(**asked, flags=share)
    assert found.fit is not None and found.fit.sequences is not None
    load = fit.Load(1, 262144, 0.9, 8192, 1024)
    assert fit.layout(shape("Qwen3.8-27B-AWQ-INT4"), load).block_bytes == 49 * 2**20
    assert found.fit.sequences == pytest.approx(969, rel=0.05)
    assert values(found)["--max-num-seqs"] <= 969
    assert "ends its start: declare at most" in str(resolved(**asked, flags={"max-num-seqs": 1024}).errors)


# What a config says, or leaves to its class


def test_what_a_config_leaves_out_is_its_class_s() -> None:
    short = shape("gemma-3-27b-it-w4a16-short")
    assert (short.vocabulary, short.max_position, short.tied) == (262208, 131072, True)
    assert short.caches == shape("gemma-3-27b-it-w4a16").caches
    assert not resolved("gemma-3-27b-it-w4a16-short", "RTX 5090", max_model_len=8192).errors


def test_null_in_a_config_is_kept() -> None:
    config = {"model_type": "mistral", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4}
    assert shapes.from_config("a/b", config).caches[0].window == 4096
    assert shapes.from_config("a/b", {**config, "sliding_window": None}).caches[0].window == 0


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        ({"type": "linear", "factor": 4.0}, 65536),
        ({"rope_type": "dynamic", "factor": 2.0}, 32768),
        ({"rope_type": "llama3", "factor": 8.0}, 16384),
        ({"rope_type": "yarn", "factor": 4.0}, 16384),
        ({"full_attention": {"rope_type": "linear", "factor": 8.0}}, 131072),
    ],
)
def test_the_context_that_vllm_derives(scaling: dict[str, Any], length: int) -> None:
    """vllm#2518: positions times the factor, but for types that have it in the positions."""
    config = {**MODELS["deepseek-coder-33b-instruct-AWQ"]["config"], "rope_scaling": scaling}
    assert shapes.from_config("a/b", config).max_position == length


def test_a_scaled_context_that_does_not_fit_is_refused() -> None:
    (error,) = resolved("deepseek-coder-33b-instruct-AWQ", "RTX 5090").errors
    assert "one request of max_model_len 65536 needs 15.50 GiB" in error


def test_a_longer_context_is_the_operator_s_word() -> None:
    asked: dict[str, Any] = {"model": "QwQ-32B-AWQ", "gpu": "H100", "max_model_len": 65536}
    assert resolved(**asked).errors
    assert not resolved(**asked, environment={"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}).errors


# What fits, and what is refused


def test_latent_attention_is_shared_by_its_value_heads() -> None:
    """vllm#33920: o_proj's input is heads x v_head_dim = 5120, 160 groups of 32."""
    found = resolved("GLM-4.7-Flash-AWQ-4bit", "RTX 4090", gpu_count=2, max_model_len=65536)
    assert not found.errors
    assert found.fit is not None and found.fit.fits


def test_some_classes_refuse_float16() -> None:
    """vllm#14817: a T4 has no bfloat16."""
    found = resolved("gemma-3-27b-it-w4a16", "T4", gpu_count=4, max_model_len=4096)
    assert "vLLM refuses it for gemma3" in str(found.errors)


def test_weights_in_the_host_s_memory_leave_the_gpu_s() -> None:
    """vllm#16538."""
    asked: dict[str, Any] = {"model": "llama-3.3-70b-instruct-awq", "gpu": "A100 40GB", "max_model_len": 8192}
    assert resolved(**asked).errors
    assert not resolved(**asked, flags={"cpu-offload-gb": 10}).errors


# Flags and variables


@pytest.mark.parametrize("config", [3, "3"])
def test_a_compilation_level_is_no_value_any_more(config: Any) -> None:
    """vector-inference#157: argparse wants JSON from 0.12 on."""
    asked: dict[str, Any] = {"model": "Qwen/Qwen3-14B-AWQ", "gpu": "L40S", "max_model_len": 8192}
    found = resolved(**asked, flags={"compilation-config": config})
    assert "compilation-config must be a map or the JSON text of one, not" in str(found.errors)
    assert not resolved(**asked, flags={"compilation-config": {"mode": 3}}).errors
    assert "compilation-config" not in str(
        resolved(**asked, runtime="0.11.0", flags={"compilation-config": 3}).errors
    )


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("VLLM_ATTENTION_BACKEND", "use flags: {attention-backend: ...}"),
        ("VLLM_USE_V1", "there is no other engine, so delete it"),
        ("VLLM_CPU_KVCACHE_SPCE", "did you mean VLLM_CPU_KVCACHE_SPACE?"),
        ("VLLM_NO_SUCH_THING_AT_ALL", "delete it"),
    ],
)
def test_a_variable_that_this_vllm_does_not_read(variable: str, said: str) -> None:
    """vllm#50292."""
    asked: dict[str, Any] = {"model": "Qwen/Qwen3-14B-AWQ", "gpu": "L40S", "environment": {variable: "1"}}
    for runtime in ("0.32.0", "0.33.0"):
        warnings = resolved(**asked, runtime=runtime).warnings
        assert f"environment: vLLM {runtime} doesn't read {variable}: {said}" in warnings
    assert "doesn't read" not in str(resolved(**asked, runtime="0.12.0").warnings)  # not scanned


@pytest.mark.parametrize("variable", ["VLLM_API_KEY", "VLLM_LOGGING_LEVEL", "NCCL_DEBUG", "HF_HOME"])
def test_a_variable_that_is_read_or_another_program_s(variable: str) -> None:
    found = resolved("Qwen/Qwen3-14B-AWQ", "L40S", environment={variable: "1"})
    assert "doesn't read" not in str(found.warnings)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("enable-reasoning", "gone since 0.10: delete it"),
        (
            "num-scheduler-steps",
            "gone before vLLM 0.11.0: the V1 engine has no multi-step scheduling, so delete it",
        ),
        ("speculative-model", "gone before vLLM 0.11.0: declare it under --speculative-config"),
        ("device", "gone before vLLM 0.11.0: vLLM finds the device itself, so delete it"),
    ],
)
def test_a_flag_gone_long_ago_has_advice(flag: str, said: str) -> None:
    """vllm#18538: it was told to mean --enable-prefix-caching."""
    errors = str(resolved("Qwen/Qwen3-14B-AWQ", "L40S", flags={flag: True}).errors)
    assert said in errors
    assert "did you mean" not in errors


@pytest.mark.parametrize("flag", ["enable-thinking", "max-tokens", "quantize", "enable-cuda-graphs"])
def test_only_a_close_misspelling_is_suggested(flag: str) -> None:
    assert "did you mean" not in str(resolved("Qwen/Qwen3-14B-AWQ", "L40S", flags={flag: True}).errors)


@pytest.mark.parametrize(
    "flags",
    [
        {"tokenizer": "Qwen/Qwen3-14B"},
        {"lora-modules": ["sql=acme/sql-lora"]},
        {"lora-modules": [{"name": "sql", "path": "acme/sql-lora"}]},
        {"hf-config-path": "acme/config"},
        {"speculative-config": {"method": "eagle3", "model": "acme/eagle3", "num_speculative_tokens": 3}},
        {"default-mm-loras": {"image": "acme/image-lora"}},
    ],
)
def test_a_name_on_the_hub_can_not_be_loaded_offline(flags: dict[str, Any]) -> None:
    """vllm#3719."""
    asked: dict[str, Any] = {
        "model": "Qwen/Qwen3-14B-AWQ",
        "gpu": "L40S",
        "max_model_len": 8192,
        "flags": flags,
    }
    assert "is a name on the Hub, and a service starts offline" in str(resolved(**asked).errors)
    assert not resolved(**asked, environment={"HF_HOME": "/srv/hf"}).errors


@pytest.mark.parametrize(
    "flags",
    [
        {"tokenizer": "/srv/tokenizers/qwen3"},
        {"lora-modules": ["sql=/srv/loras/sql"]},
        {"tokenizer-mode": "slow"},
    ],
)
def test_a_path_can_be_loaded_offline(flags: dict[str, Any]) -> None:
    assert not resolved("Qwen/Qwen3-14B-AWQ", "L40S", max_model_len=8192, flags=flags).errors


# Kernels by quantization (recipes#810, vllm PR 16038)


@pytest.mark.parametrize(
    ("model", "gpu", "kernels"),
    [
        ("Qwen3-32B-FP8", "H100", ("DeepGemmFp8BlockScaledMM",)),
        ("Qwen3-32B-W8A8", "L40S", ("CutlassInt8ScaledMM",)),
        ("Qwen3-32B-GPTQ-Int4", "H100", ("Machete",)),
        ("Qwen3-32B-GPTQ-Int4", "L40S", ("Marlin",)),
    ],
)
def test_each_quantization_has_its_own_kernels(model: str, gpu: str, kernels: tuple[str, ...]) -> None:
    assert resolved(model, gpu, runtime="0.25.1").kernel == kernels


def test_a_quantization_without_kernels_is_refused_before_staging() -> None:
    said = "is AWQ of 8 bits, and vLLM takes AWQ of 4 bits only"
    assert said in str(resolved("Mine-32B-w8", "H100").errors)


@pytest.mark.parametrize("method", ["bitsandbytes", "modelopt", "mxfp8", "torchao", "quark"])
def test_what_is_not_known_is_refused(method: str) -> None:
    config = {**MODELS["Qwen3-32B-FP8"]["config"], "quantization_config": {"quant_method": method}}
    model = shapes.from_config("a/b", config, 20_000_000_000)
    assert f"is quantized as {method}, whose kernels" in str(resolved_shape(model).errors)


def resolved_shape(model: Shape) -> Resolution:
    return resolve(model=model, gpu="H100", runtime="0.32.0")


@pytest.mark.parametrize(
    ("version", "lines", "expected", "kernels"),
    [
        ("0.25.1", ["Using MarlinLinearKernel for AutoGPTQLinearMethod"], ["Marlin"], ["Marlin"]),
        ("0.19.1", ["Using MarlinLinearKernel for GPTQMarlinLinearMethod"], ["Marlin"], ["Marlin"]),
        (
            "0.32.0",
            ["Selected CutlassFP8ScaledMMLinearKernel for Fp8LinearMethod"],
            ["CutlassFP8ScaledMM"],
            ["CutlassFP8ScaledMM"],
        ),
        (
            "0.32.0",
            ["Selected DeepGemmFp8BlockScaledMMKernel for Fp8LinearMethod"],
            ["DeepGemmFp8BlockScaledMM"],
            ["DeepGemmFp8BlockScaledMM"],
        ),
        (
            "0.12.0",
            ["Using CutlassScaledMMLinearKernel for CompressedTensorsW8A8Int8"],
            ["CutlassInt8ScaledMM"],
            ["CutlassScaledMM"],
        ),
        (
            "0.25.1",
            ["Selected CutlassInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8"],
            ["CutlassInt8ScaledMM"],
            ["CutlassInt8ScaledMM"],
        ),
    ],
)
def test_a_kernel_of_another_quantization_passes(
    version: str, lines: list[str], expected: list[str], kernels: list[str]
) -> None:
    found = kernel.check(lines, version, expected)
    assert (found["verdict"], found["kernels"]) == ("pass", kernels)


def test_a_kernel_that_only_emulates_fails() -> None:
    line = "Selected BlockWiseTorchFP8ScaledMMLinearKernel for Fp8LinearMethod"
    assert kernel.check([line], "0.32.0", ["DeepGemmFp8BlockScaledMM"])["verdict"] == "fail"


def test_experts_on_the_slow_path_fail() -> None:
    """The same name is the fast one's from 0.20 on."""
    lines = ["Using MarlinLinearKernel for CompressedTensorsWNA16", "Using CompressedTensorsWNA16MoEMethod"]
    found = kernel.check(lines, "0.17.1", ["Marlin", "Marlin"])
    assert found["verdict"] == "fail" and "experts" in str(found["reasons"])
    fast = ["Using CompressedTensorsWNA16MarlinMoEMethod", lines[0]]
    assert kernel.check(fast, "0.17.1", ["Marlin", "Marlin"])["verdict"] == "pass"
    newer = [*lines, "Using 'MARLIN' WNA16 MoE backend."]
    assert kernel.check(newer, "0.25.1", ["Marlin", "Marlin"])["verdict"] == "pass"


def test_the_cuda_of_a_venv_is_its_torch_s(tmp_path: Path) -> None:
    """vllm#42756: CUDA 12.9, for which driver 570 is enough."""
    packages = tmp_path / "lib/python3.11/site-packages"
    for name in ("vllm-0.25.1", "torch-2.11.0+cu129"):
        (packages / f"{name}.dist-info").mkdir(parents=True)
        (packages / f"{name}.dist-info/METADATA").write_text(f"Version: {name.partition('-')[2]}\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch()
    found = inspect_runtime.runtime(tmp_path)
    assert found is not None
    assert versions.build(found.version, found.torch) == "0.25.1+cu129"
