"""Public configurations, tried after those of test_field_commands.py and test_field_more.py were right.

Each names its source. The right answer is the report's own, or that of vLLM's code, read.
"""

# ruff: noqa: F811

from __future__ import annotations

from typing import Any

import pytest
from test_field_more import CAUSAL, project, resolve  # noqa: F401  # resolve and project are fixtures

MOE = {
    "model_type": "glm4_moe", "architectures": ["Glm4MoeForCausalLM"], "num_hidden_layers": 46,
    "hidden_size": 4096, "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 128,
    "vocab_size": 151552, "max_position_embeddings": 131072, "dtype": "bfloat16",
}  # fmt: skip


def flags(answer: dict[str, Any]) -> dict[str, Any]:
    return {flag["flag"]: flag["value"] for flag in answer["flags"]}


# Parallelism


@pytest.mark.parametrize(
    ("count", "asked", "size"),
    [
        # vllm issue 22140: GLM-4.5-Air on three cards in three stages
        ("3", "pipeline-parallel-size=3", None),
        # vllm-project/recipes DeepSeek-V4-Flash.yaml, vllm issue 18567: ranks of one card each
        ("4", "data-parallel-size=4", None),
        ("4", "pipeline-parallel-size=2", 2),
        ("8", "data-parallel-size=2", 4),
    ],
)
def test_tensor_parallelism_takes_what_stages_and_ranks_leave(
    resolve: Any,
    count: str,
    asked: str,
    size: int | None,
) -> None:
    answer = resolve(MOE, "--gpu-count", count, "--max-model-len", "8192", "--flag", asked, card="B200")
    assert answer["errors"] == [] and flags(answer).get("--tensor-parallel-size") == size


# Maps in several words, and what they put over config.json


def test_maps_in_dotted_names_are_one_map(resolve: Any) -> None:
    """As vLLM's own docs have them (serving/openai_compatible_server, `--json-arg.key1.key2`); vllm issue 8793 is of such
    a context.
    """
    yarn = {"rope_type": "yarn", "factor": "4.0", "original_max_position_embeddings": "32768"}
    dotted = [
        word for key, value in yarn.items() for word in ("--flag", f"hf-overrides.rope_scaling.{key}={value}")
    ]
    config = {**CAUSAL, "max_position_embeddings": 32768}
    asked = ("--max-model-len", "131072")
    assert resolve(config, *asked, card="H200", runtime="0.28.0")["errors"]
    assert resolve(config, *asked, *dotted, card="H200", runtime="0.28.0")["errors"] == []


def test_overrides_name_the_class_that_is_served(resolve: Any) -> None:
    """Qwen3-Reranker's card, and deepseek-vl2's in vLLM's examples."""
    override = 'hf-overrides={{"architectures": ["{}"]}}'.format
    asked = ("--max-model-len", "8192", "--flag")
    told = str(resolve(CAUSAL, *asked, override("Qwen3ForSequenceClassification"))["errors"])
    assert "is a Qwen3ForSequenceClassification, which vLLM serves for embeddings" in told
    embedder = {**CAUSAL, "architectures": ["Qwen3Model"]}
    assert resolve(embedder, *asked, override("Qwen3ForCausalLM"))["errors"] == []


# Files


@pytest.mark.parametrize(
    ("flag", "relative"),
    [
        # vllm issue 47600, of the recipe for Gemma 4
        ("chat-template=examples/tool_chat_template_gemma4.jinja", True),
        ("chat-template=template_chatml.jinja", False),  # one of vLLM's own
        ('chat-template="{% for m in messages %}{{ m.content }}{% endfor %}"', False),
        ("chat-template=/etc/vllm/tool.jinja", False),
        # the cards of Nemotron Nano 2 and 3
        ("tool-parser-plugin=nemotron_toolcall_parser_no_streaming.py", True),
        ("reasoning-parser-plugin=nano_v3_reasoning_parser.py", True),
        ("reasoning-parser-plugin=our_parsers.nano", False),  # utils/import_utils.py import_plugin
    ],
)
def test_a_file_in_another_folder_is_refused(resolve: Any, flag: str, relative: bool) -> None:
    errors = resolve(CAUSAL, "--max-model-len", "8192", "--flag", flag)["errors"]
    assert ("must be an absolute path on the host" in str(errors)) is relative and bool(errors) is relative


# Variables


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        # vllm-project/recipes: NVFP4 variants of most models, Qwen3-Next and gpt-oss on Blackwell
        ("VLLM_USE_FLASHINFER_MOE_FP4", "or use flags: {moe-backend: ...}"),
        ("VLLM_FLASHINFER_MOE_BACKEND", "or use flags: {moe-backend: ...}"),
        ("VLLM_USE_TRTLLM_ATTENTION", "{attention-config: {use_trtllm_attention: ...}}"),
        ("VLLM_NVFP4_GEMM_BACKEND", "{linear-backend: ...}"),  # vllm pull request 49376
    ],
)
def test_a_variable_that_became_a_flag(resolve: Any, variable: str, said: str) -> None:
    warnings = resolve(CAUSAL, "--max-model-len", "8192", "--env", f"{variable}=1")["warnings"]
    assert said in str(warnings) and "did you mean" not in str(warnings)


# Memory


def test_what_does_not_fit_gets_no_advice_on_its_blocks(resolve: Any) -> None:
    """club-3090's composes of Qwen3.6-27B on one card of 24 GB, with its weights in 16 bits."""
    hybrid = {
        "model_type": "qwen3_5_text", "num_hidden_layers": 64, "hidden_size": 5120, "num_attention_heads": 24,
        "num_key_value_heads": 4, "intermediate_size": 17408, "linear_num_value_heads": 48,
        "max_position_embeddings": 262144, "dtype": "bfloat16",
    }  # fmt: skip
    asked = ("--max-model-len", "32768", "--flag", "max-num-seqs=2")
    (error,) = resolve(hybrid, *asked, card="RTX 3090", size=54 * 10**9)["errors"]
    assert "doesn't fit on 1 x GeForce RTX 3090" in error


def test_a_declared_cache_leaves_the_weights_their_room(resolve: Any) -> None:
    asked = ("--max-model-len", "4096", "--flag", "kv-cache-memory-bytes=820000000")
    (error,) = resolve(CAUSAL, *asked, card="RTX 3090", size=54 * 10**9)["errors"]
    assert "doesn't fit on 1 x GeForce RTX 3090" in error and "-" not in error.partition("bytes")[2][:3]
