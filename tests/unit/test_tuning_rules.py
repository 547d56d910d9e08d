"""The resolver's rules, and the combinations that vLLM refuses at its start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from resolving import resolve, values

from pyinfra_vllm.catalog import gpus, shapes, table
from pyinfra_vllm.catalog.layers import Cached
from pyinfra_vllm.catalog.quantization import Quantization
from pyinfra_vllm.tuning.resolution import Resolution

GEMMA = shapes.from_config(
    "a/gemma",
    {"model_type": "gemma3_text", "hidden_size": 640, "num_hidden_layers": 6, "num_attention_heads": 4},
)

INDEXED = Cached(6, 1, 576, index_bytes=132)


def packed(**changes: Any) -> shapes.Shape:
    return replace(GEMMA, quantization=Quantization(**{"method": "awq", **changes}))


SCALED_CACHE = replace(
    packed(method="modelopt", bits=4, kernels="nvfp4", fp8_kv_cache=True), model_type="llama"
)
MXFP4 = replace(packed(method="mxfp4", kernels="mxfp4"), model_type="gpt_oss")
LOCKED_WITH_VISION = replace(shapes.find("Qwen/Qwen3.5-4B") or pytest.fail(), weights_bytes=9 * gpus.GIB)


# One case for each rule, by its name: what is asked, and what must be in the answer

RULES: dict[str, tuple[dict[str, Any], str]] = {
    "tensor-parallelism-takes-the-other-gpus": (
        {"gpu_count": 4, "flags": {"data-parallel-size": 2}},
        "('--tensor-parallel-size', 2)",
    ),
    "turing-has-no-bfloat16": (
        {"model": "Qwen/Qwen3-4B", "gpu": "Tesla T4", "max_model_len": 4096},
        "('--dtype', 'half')",
    ),
    "turing-marlin-from-0.14": (
        {"model": "Qwen/Qwen3-4B-AWQ", "gpu": "Tesla T4", "runtime": "0.13.0"},
        "use runtime 0.14",
    ),
    "fp8-kv-needs-ampere": (
        {"gpu": "Tesla T4", "variants": ["fp8_kv_cache"]},
        "kv-cache-dtype: fp8}, or the variant fp8_kv_cache: no attention",
    ),
    "fp8-kv-of-the-checkpoint-needs-ampere": (
        {"model": SCALED_CACHE, "gpu": "Tesla T4"},
        "declare flags: {kv-cache-dtype: float16}",
    ),
    "fp8-kv-of-a-latent-needs-ada": (
        {"model": replace(SCALED_CACHE, latent_kv=576), "gpu": "A100-SXM4-80GB"},
        "declare flags: {kv-cache-dtype: bfloat16}",
    ),
    "fp8-cache-of-triton-needs-ada": (
        {"gpu": "A40", "flags": {"kv-cache-dtype": "fp8_per_token_head"}},
        "declare int8_per_token_head",
    ),
    "fp8-kv-on-hopper-needs-bfloat16": ({"variants": ["fp8_kv_cache"]}, "('--dtype', 'bfloat16')"),
    "fp8-kv-on-ampere-needs-flashinfer": (
        {"gpu": "A40", "variants": ["fp8_kv_cache"]},
        "('--attention-backend', 'FLASHINFER')",
    ),
    "fp8-kv-on-ampere-before-0.13": (
        {"gpu": "A40", "runtime": "0.12.0", "variants": ["fp8_kv_cache"]},
        "('VLLM_ATTENTION_BACKEND', 'FLASHINFER')",
    ),
    "fp8-kv-on-ada-and-blackwell": ({"gpu": "L40S", "variants": ["fp8_kv_cache"]}, "TRITON_ATTN"),
    "awq-flag-is-slow": ({"runtime": "0.23.0", "flags": {"quantization": "awq"}}, "about ten times slower"),
    "quantization-comes-from-the-checkpoint": (
        {"runtime": "0.24.0", "flags": {"quantization": "awq"}},
        "--quantization is left out",
    ),
    "not-a-quantized-checkpoint": (
        {"model": "Qwen/Qwen3-8B", "flags": {"quantization": "awq"}},
        "quantization: awq} for Qwen/Qwen3-8B",
    ),
    "slow-linear-backend": ({"gpu": "L40S", "flags": {"linear-backend": "Triton"}}, "the gate fails it"),
    "machete-needs-hopper": (
        {"gpu": "L40S", "flags": {"linear-backend": "machete"}},
        "on L40S vLLM finds none",
    ),
    "batch-invariance-is-slow": ({"environment": {"VLLM_BATCH_INVARIANT": "1"}}, "slow AWQ kernel"),
    "quantization-without-known-kernels": (
        {"model": packed(kernels=None, method="mxfp8")},
        "is quantized as mxfp8, whose kernels",
    ),
    "fp8-kernels-are-named-from-0.15": (
        {"model": packed(method="fp8", kernels="fp8"), "runtime": "0.14.1"},
        "use runtime 0.15",
    ),
    "fp8-blocks-are-named-from-0.20": (
        {"model": packed(method="fp8", kernels="fp8_block"), "runtime": "0.19.1"},
        "scales by block take, so the gate could never pass a/gemma: use runtime 0.20",
    ),
    "fp8-takes-marlin-before-ada": (
        {"model": packed(method="fp8", kernels="fp8"), "gpu": "A40", "runtime": "0.29.0"},
        "('--linear-backend', 'marlin')",
    ),
    "modelopt-s-kernels-are-named-from-0.20": (
        {"model": packed(method="modelopt", kernels="fp8"), "runtime": "0.19.1"},
        "modelopt's FP8 weights",
    ),
    "fp4-kernels-are-named-from-0.20": (
        {"model": packed(method="mxfp4", kernels="mxfp4"), "runtime": "0.19.1"},
        "use runtime 0.20",
    ),
    "fp8-on-ampere-is-named-from-0.20": (
        {"model": packed(method="fp8", kernels="fp8"), "gpu": "A40", "runtime": "0.19.1"},
        "use runtime 0.20",
    ),
    "compressed-fp8-needs-ada": (
        {"model": packed(method="compressed-tensors", kernels="fp8"), "gpu": "A40", "runtime": "0.32.0"},
        "or a card from Ada on",
    ),
    "awq-has-four-bits": ({"model": packed(bits=8)}, "is AWQ of 8 bits"),
    "gptq-has-four-or-eight-bits": ({"model": packed(bits=3, method="gptq")}, "is gptq of 3 bits"),
    "fast-kernels-have-group-sizes": ({"model": packed(group_size=16)}, "quantized in groups of 16"),
    "awq-has-zero-points": ({"model": packed(zero_point=False)}, "is AWQ without zero points"),
    "gptq-is-symmetric": ({"model": packed(method="gptq")}, "is gptq with zero points"),
    "gpus-are-enough": (
        {"gpu_count": 4, "flags": {"pipeline-parallel-size": 2, "tensor-parallel-size": 4}},
        "size is 8 and the service has 4 GPUs",
    ),
    "tensor-parallel-divides-heads": (
        {"gpu_count": 3},
        "3 GPUs can't share the 64 attention heads of Qwen/Qwen3-32B-AWQ: use 1, 2, 4 or 8 GPUs",
    ),
    "tensor-parallel-divides-kv-heads": (
        {"model": "Qwen/Qwen2.5-32B-Instruct", "gpu_count": 5},
        "8 KV heads",
    ),
    "tensor-parallel-divides-mlp": (
        {"model": "Qwen/Qwen2.5-32B-Instruct", "gpu_count": 5},
        "the MLP of Qwen/Qwen2.5-32B-Instruct (27648 channels)",
    ),
    "tensor-parallel-divides-groups": (
        {"model": "Qwen/Qwen3-4B-AWQ", "gpu_count": 8},
        "quantization groups of Qwen/Qwen3-4B-AWQ: use 1, 2 or 4 GPUs",
    ),
    "tensor-parallel-divides-expert-groups": (
        {"model": "Qwen/Qwen3-30B-A3B-AWQ", "gpu_count": 4},
        "enable-expert-parallel",
    ),
    "graph-size-agrees-with-speculation": (
        {"variants": [{"ngram": 4}, {"batched_graphs": 8}], "flags": {"max-cudagraph-capture-size": 32}},
        "must be a multiple of 5 (1 + speculative tokens): use 40",
    ),
    "graph-size-covers-speculation": (
        {"variants": [{"ngram": 4}, {"batched_graphs": 8}], "flags": {"max-cudagraph-capture-size": 20}},
        "without a CUDA graph",
    ),
    "graph-limit-is-a-captured-size": (
        {"variants": [{"batched_graphs": 30}]},
        "so up to 24 where --max-cudagraph-capture-size is 30",
    ),
    "graph-sizes-agree-with-the-largest": (
        {"variants": [{"batched_graphs": 32}], "flags": {"cudagraph-capture-sizes": [1, 2, 4, 8]}},
        (
            "graph sizes is 8, and --max-cudagraph-capture-size (which the variant batched_graphs sets, too)"
            " is 32"
        ),
    ),
    "graph-sizes-hold-a-decode-step": (
        {"variants": [{"ngram": 4}], "flags": {"cudagraph-capture-sizes": [1, 2, 4]}},
        "is 4, and one sequence decodes 5 tokens at a time",
    ),
    "graph-sizes-agree-with-speculation": (
        {"variants": [{"ngram": 4}], "flags": {"cudagraph-capture-sizes": [1, 2, 4, 8, 16]}},
        "16, is no multiple of 5",
    ),
    "speculation-is-declared-once": (
        {"variants": ["ngram"], "flags": {"spec-tokens": 2}},
        "--spec-tokens and --speculative-config",
    ),
    "draft-model-is-not-counted": (
        {"variants": [{"eagle3": {"model": "/srv/draft"}}]},
        "the draft model /srv/draft takes GPU memory",
    ),
    "vision-tower-is-counted": (
        {"model": LOCKED_WITH_VISION, "runtime": "0.33.0", "variants": ["text_only"], "max_model_len": 4096},
        "still counts the vision tower",
    ),
    "a-step-holds-every-sequence": (
        {"flags": {"max-num-seqs": 64, "max-num-batched-tokens": 32}},
        "one step has 32 tokens (--max-num-batched-tokens) and --max-num-seqs is 64",
    ),
    "a-step-holds-a-whole-prompt": (
        {"max_model_len": 8192, "flags": {"enable-chunked-prefill": False, "max-num-batched-tokens": 4096}},
        "is 4096 and the context 8192",
    ),
    "family-needs-version": ({"model": "Qwen/Qwen3.5-4B", "runtime": "0.16.0"}, "needs vLLM 0.17 or newer"),
    "float16-is-refused-by-some-models": (
        {"model": GEMMA, "gpu": "Tesla T4", "max_model_len": 4096},
        "vLLM refuses it for gemma3_text",
    ),
    "mxfp4-needs-bfloat16": (
        {"model": MXFP4, "gpu": "A10G", "flags": {"dtype": "float16"}},
        "{dtype: half} can't be with the MXFP4 weights",
    ),
    "quantized-weights-need-16-bits": (
        {"flags": {"dtype": "float32"}},
        "{dtype: float32} can't be with the awq weights",
    ),
    "layers-of-an-unknown-kind": (
        {"model": replace(GEMMA, uncounted=("conv",))},
        "of kind conv keep something",
    ),
    "fp8-kv-beside-an-index": (
        {"model": replace(GEMMA, kv_caches=(INDEXED,)), "variants": ["fp8_kv_cache"]},
        "576 or 656 bytes for a token",
    ),
    "context-longer-than-trained": ({"max_model_len": 50_000}, "more than the 40960 positions"),
    "memory-share-is-at-most-one": ({"flags": {"gpu-memory-utilization": 92}}, "0.92, not 92"),
    "text-is-what-the-gate-measures": (
        {"model": replace(GEMMA, architecture="Gemma3TextModel")},
        "is a Gemma3TextModel, which vLLM serves for embeddings",
    ),
    "no-pooling": ({"flags": {"runner": "pooling"}}, "serves embeddings or scores"),
    "no-conversion-to-pooling": ({"flags": {"convert": "embed"}}, "makes a model for embeddings or scores"),
    "staged-weights-are-safetensors": ({"flags": {"load-format": "pt"}}, "loads other files"),
    "quantized-while-loading": (
        {"model": "Qwen/Qwen3-8B", "flags": {"quantization": "fp8"}},
        "quantizes Qwen/Qwen3-8B while it is loaded",
    ),
    "bitsandbytes-is-a-plugin-from-0.28": (
        {"model": "Qwen/Qwen3-8B", "flags": {"quantization": "bitsandbytes"}},
        "add that to runtime.packages",
    ),
    "tool-choice-needs-a-parser": ({"flags": {"enable-auto-tool-choice": True}}, "needs a tool-call-parser"),
    "tool-call-parser-exists": (
        {"runtime": "0.32.0", "flags": {"enable-auto-tool-choice": True, "tool-call-parser": "qwen25"}},
        "tool-call-parser: qwen25} is none of vLLM 0.32.0",
    ),
    "reasoning-parser-exists": (
        {"runtime": "0.32.0", "flags": {"reasoning-parser": "qwen"}},
        "reasoning-parser: qwen} is none of vLLM 0.32.0",
    ),
    "adapters-need-lora": ({"flags": {"lora-modules": ["sql=/srv/sql"]}}, "needs enable-lora: true"),
    "lora-ranks": ({"flags": {"enable-lora": True, "max-lora-rank": 24}}, "vLLM takes 1, 8, 16, 32, 64"),
    "experts-are-dealt-out-where-there-are-some": (
        {"flags": {"enable-expert-parallel": True}},
        "has no experts, and vLLM ends",
    ),
    "context-parallel-divides-tensor-parallel": (
        {"flags": {"decode-context-parallel-size": 2}},
        "must divide the tensor-parallel size, which is 1",
    ),
    "attention-backend-exists": (
        {"runtime": "0.32.0", "flags": {"attention-backend": "XFORMERS"}},
        "attention-backend: xformers} is none that vLLM 0.32.0 has",
    ),
    "attention-backend-of-another-version": (
        {"runtime": "0.33.0", "flags": {"attention-backend": "XFORMERS"}},
        "xformers} is none for CUDA: so it is in vLLM 0.32.0, and that of 0.33.0 isn't known",
    ),
    "attention-backends-of-turing": (
        {"gpu": "Tesla T4", "runtime": "0.32.0", "flags": {"attention-backend": "FLASHINFER"}},
        "flashinfer} can't run on",
    ),
    "attention-backends-for-a-latent": (
        {"flags": {"attention-backend": "FLASHMLA"}},
        "flashmla} is for latent attention",
    ),
    "attention-backends-for-heads": (
        {"model": replace(GEMMA, latent_kv=576), "flags": {"attention-backend": "FLASH_ATTN"}},
        "flash_attn} has no latent attention",
    ),
    "blocks-of-at-least-16": ({"flags": {"block-size": 8}}, "takes blocks of 16 tokens"),
    "fp8-cache-of-other-devices": ({"flags": {"kv-cache-dtype": "fp8_inc"}}, "is for Intel's Gaudi"),
    "fp8-cache-of-sparse-attention": (
        {"flags": {"kv-cache-dtype": "fp8_ds_mla"}},
        "is for sparse latent attention",
    ),
    "nvfp4-cache-needs-blackwell": ({"flags": {"kv-cache-dtype": "nvfp4"}}, "needs Blackwell, and"),
    "e5m2-cache-beside-fp8-weights": (
        {"model": packed(method="fp8", bits=8, kernels="fp8"), "flags": {"kv-cache-dtype": "fp8_e5m2"}},
        "can't be with the FP8 weights",
    ),
    "speculation-has-a-method": (
        {"runtime": "0.32.0", "flags": {"speculative-config": {"method": "eagle4", "model": "/srv/draft"}}},
        "eagle4 is no method of vLLM 0.32.0",
    ),
    "speculation-of-another-version": (
        {"runtime": "0.33.0", "flags": {"speculative-config": {"method": "eagle4", "model": "/srv/draft"}}},
        "eagle4 is no method of vLLM: so it is in vLLM 0.32.0, and that of 0.33.0 isn't known",
    ),
    "multi-token-prediction-needs-its-layers": (
        {
            "model": replace(GEMMA, model_type="qwen3"),
            "flags": {"speculative-config": {"method": "mtp", "num_speculative_tokens": 1}},
        },
        "has no layers for multi-token prediction",
    ),
    "packed-weights-have-four-or-eight-bits": (
        {"model": packed(method="compressed-tensors", bits=2)},
        "is packed with 2 bits",
    ),
    "pipeline-stages-need-the-class-s-support": (
        {
            "model": replace(GEMMA, architecture="Gemma3nForCausalLM"),
            "gpu_count": 2,
            "flags": {"pipeline-parallel-size": 2, "tensor-parallel-size": 1},
        },
        "can't serve a Gemma3nForCausalLM in pipeline stages",
    ),
    "memory-share-leaves-the-context": (
        {"flags": {"gpu-memory-utilization": 1.0}},
        "its own CUDA context takes some",
    ),
    "declared-cache-fits-beside-weights": (
        {"flags": {"kv-cache-memory-bytes": 200 * 10**9}},
        "bytes that H200 has beside the weights",
    ),
    "logged-outputs-need-logged-requests": (
        {"flags": {"enable-log-outputs": True}},
        "needs enable-log-requests: true",
    ),
    "balanced-experts-are-dealt-out": (
        {"model": "Qwen/Qwen3-30B-A3B", "flags": {"enable-eplb": True}},
        "needs enable-expert-parallel: true",
    ),
    "transcriptions-are-no-answers": (
        {"model": replace(GEMMA, architecture="WhisperForConditionalGeneration")},
        "serves for transcriptions alone",
    ),
}


def said(found: Resolution) -> str:
    decided = [*values(found).items(), *found.environment.items()]
    return " ".join(map(str, (*decided, *found.warnings, *found.errors)))


def test_every_rule_has_a_case() -> None:
    assert [rule["rule"] for rule in table("rules.yaml")] == list(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    asked, expected = RULES[rule]
    assert expected in said(resolve(**asked))


@pytest.mark.parametrize("rule", ["fp8-kv-on-hopper-needs-bfloat16", "turing-has-no-bfloat16"])
def test_a_rule_does_not_overrule_the_operator_silently(rule: str) -> None:
    asked, _ = RULES[rule]
    found = resolve(**asked, flags={"dtype": "float32"})
    assert "can't be" in str(found.errors)


def test_another_spelling_of_what_a_rule_wants_is_no_contradiction() -> None:
    assert not resolve("Qwen/Qwen3-4B-AWQ", "Tesla T4", max_model_len=4096, flags={"dtype": "float16"}).errors
    found = resolve(
        gpu="A40",
        variants=["fp8_kv_cache"],
        max_model_len=4096,
        flags={"attention-backend": "flashinfer"},
    )
    assert not found.errors
    assert values(found)["--attention-backend"] == "flashinfer"  # argv says what was declared


@pytest.mark.parametrize("dtype", ["fp8", "fp8_e5m2", "fp8_per_token_head", "fp8_inc", "fp8_ds_mla"])
def test_no_cache_of_8_bits_before_ampere(dtype: str) -> None:
    told = f"flags: {{kv-cache-dtype: {dtype}}}, or the variant fp8_kv_cache: no attention backend"
    assert told in str(resolve(gpu="Tesla T4", flags={"kv-cache-dtype": dtype}).errors)


def test_the_cache_that_a_checkpoint_brings_is_no_variant() -> None:
    """NVIDIA's FP4 checkpoints have an FP8 cache that nobody declared: the error says what to declare."""
    (error,) = resolve(SCALED_CACHE, "Tesla T4").errors
    assert "brings an FP8 KV cache" in error and "take" not in error
    assert not resolve(SCALED_CACHE, "Tesla T4", flags={"kv-cache-dtype": "float16"}).errors


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_mxfp4_is_served_in_bfloat16(dtype: str) -> None:
    assert not resolve(MXFP4, "A10G", flags={"dtype": dtype}).errors


def test_a_card_without_bfloat16_is_not_told_to_change_a_flag_for_mxfp4() -> None:
    """The T4 has no kernel for it, and --dtype half there is the catalog's own."""
    (error,) = resolve(MXFP4, "Tesla T4").errors
    assert "has no kernel for such weights" in error


def test_compressed_tensors_are_served_in_float32() -> None:
    """compressed_tensors.py get_supported_act_dtypes, 0.32.0."""
    assert not resolve(packed(method="compressed-tensors"), flags={"dtype": "float32"}).errors


@pytest.mark.parametrize("gpu", ["A100-SXM4-80GB", "A10G"])
@pytest.mark.parametrize("runtime", ["0.12.0", "0.32.0"])
def test_a_latent_s_cache_of_8_bits_before_ada(gpu: str, runtime: str) -> None:
    """Nothing that the catalog adds itself is blamed, and what is advised works (triton_mla.py, 0.32.0)."""
    latent = replace(GEMMA, latent_kv=576)
    for flags in ({}, {"attention-backend": "TRITON_MLA"}):
        if runtime == "0.12.0" and flags:
            continue  # --attention-backend came in 0.13
        asked = {"model": latent, "gpu": gpu, "runtime": runtime}
        (error,) = resolve(**asked, flags={**flags, "kv-cache-dtype": "fp8"}).errors
        assert "needs a GPU from Ada on" in error and "declare flags: {kv-cache-dtype: bfloat16}" in error
        assert not resolve(**asked, flags={**flags, "kv-cache-dtype": "bfloat16"}).errors
    found = resolve(latent, "L40S", runtime, flags={"kv-cache-dtype": "fp8"})
    assert not found.errors and "TRITON_ATTN" not in str(found.warnings)


def test_a_cache_that_only_triton_serves_needs_ada() -> None:
    asked = {"model": "Qwen/Qwen3-4B-AWQ", "max_model_len": 4096}
    for gpu in ("NVIDIA A10G", "NVIDIA A100-SXM4-80GB"):
        found = resolve(**asked, gpu=gpu, flags={"kv-cache-dtype": "fp8_per_token_head"})
        assert "declare int8_per_token_head" in str(found.errors)
        assert not resolve(**asked, gpu=gpu, flags={"kv-cache-dtype": "int8_per_token_head"}).errors
    assert not resolve(**asked, gpu="NVIDIA L4", flags={"kv-cache-dtype": "fp8_per_token_head"}).errors


BACKEND = {"gpu": "NVIDIA A10G", "runtime": "0.12.0", "variants": ["fp8_kv_cache"], "max_model_len": 4096}


def test_a_rule_does_not_overrule_a_declared_variable_silently() -> None:
    asked = {"model": "Qwen/Qwen3-4B-AWQ", **BACKEND}
    found = resolve(**asked, environment={"VLLM_ATTENTION_BACKEND": "FLASH_ATTN"})
    assert "environment: {VLLM_ATTENTION_BACKEND: FLASH_ATTN} can't be" in str(found.errors)
    for same in ("FLASHINFER", "flashinfer"):
        found = resolve(**asked, environment={"VLLM_ATTENTION_BACKEND": same})
        assert not found.errors
        assert found.environment["VLLM_ATTENTION_BACKEND"] == same


# Combinations that vLLM refuses at its start, wherever they were said


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"flags": {"compilation-config": {"cudagraph_capture_sizes": [1, 2]}}}, "decodes 5 tokens"),
        ({"flags": {"compilation-config": '{"cudagraph_capture_sizes": [1, 2]}'}}, "decodes 5 tokens"),
        ({"flags": {"compilation-config.cudagraph_capture_sizes": [1, 2]}}, "decodes 5 tokens"),
        ({"flags": {"compilation-config": {"max_cudagraph_capture_size": 32}}}, "must be a multiple of 5"),
        ({"runtime": "0.11.0", "flags": {"cuda-graph-sizes": [1, 2]}}, "decodes 5 tokens"),
        (
            {"flags": {"cudagraph-capture-sizes": [4, 8], "max-cudagraph-capture-size": 40}},
            "sizes is 8, and --max-cudagraph-capture-size",
        ),
    ],
)
def test_graph_sizes_and_drafts_that_do_not_agree(asked: dict[str, Any], message: str) -> None:
    assert message in str(resolve(**asked, variants=[{"ngram": 4}]).errors)


@pytest.mark.parametrize(
    "drafts",
    [
        {"spec-tokens": 4, "spec-method": "ngram"},
        {"speculative-config": '{"method": "ngram", "num_speculative_tokens": 4}'},
        {"speculative-config": {"method": "ngram", "num-speculative-tokens": 4}},
        {"speculative-config.method": "ngram", "speculative-config.num_speculative_tokens": 4},
    ],
)
def test_drafted_tokens_are_seen_wherever_they_are_declared(drafts: dict[str, Any]) -> None:
    flags = {**drafts, "max-cudagraph-capture-size": 32}
    assert "must be a multiple of 5" in str(resolve(flags=flags).errors)


def test_default_steps_are_those_that_vllm_makes_of_the_other_flags() -> None:
    """engine/arg_utils.py: doubled for throughput, and as long as a prompt that isn't cut."""
    many = {"max-num-seqs": 4000}
    assert "one step has 2048 tokens" in str(resolve(gpu="L40S", flags=many).errors)
    for more in ({"performance-mode": "throughput"}, {"enable-chunked-prefill": False}):
        found = resolve(gpu="L40S", max_model_len=8192, flags={**many, **more}).errors
        assert "one step has" not in str(found)


@pytest.mark.parametrize(
    ("sequences", "captured"), [(3, 2), (4, None), (9, 8), (248, None), (264, 256), (272, None)]
)
def test_batches_beyond_the_last_captured_graph_are_told(sequences: int, captured: int | None) -> None:
    told = f"so up to {captured} where" if captured else "so up to"
    assert (told in str(resolve(variants=[{"batched_graphs": sequences}]).warnings)) is (captured is not None)


def test_sizes_that_agree_are_taken() -> None:
    found = resolve(
        variants=[{"batched_graphs": 8}], flags={"cudagraph-capture-sizes": [1, 2, 4, 8]}, max_model_len=4096
    )
    assert not found.errors
    eager = resolve(variants=[{"batched_graphs": 8}, "eager"], flags={"cudagraph-capture-sizes": [1]})
    assert not eager.errors  # vLLM looks at neither


@pytest.mark.parametrize(
    "flags",
    [
        {"pipeline-parallel-size": 2, "tensor-parallel-size": 2},
        {"data-parallel-size": 2, "tensor-parallel-size": 2},
        {"data-parallel-size": 8, "data-parallel-size-local": 2, "tensor-parallel-size": 2},
    ],
)
def test_sizes_whose_product_the_host_has(flags: dict[str, Any]) -> None:
    assert not resolve(gpu_count=4, flags=flags).errors
    assert "the service has 2 GPUs" in str(resolve(gpu_count=2, flags=flags).errors)
