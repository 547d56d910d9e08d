"""Public configurations, tried after those of test_field_commands.py and test_field_more.py were right.

Each names its source. The right answer is the report's own, or that of vLLM's code, read.
"""

# ruff: noqa: F811

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import resolving
from test_field_more import CAUSAL, project, resolve  # noqa: F401  # resolve and project are fixtures

from pyinfra_vllm import fit
from pyinfra_vllm.catalog import shapes
from pyinfra_vllm.hub import facts_of
from pyinfra_vllm.on_host.server import kernel

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
    """`--json-arg.key1.key2` in vLLM's docs; vllm issue 8793 is of such a context."""
    yarn = {"rope_type": "yarn", "factor": "4.0", "original_max_position_embeddings": "32768"}
    dotted = [
        word for key, value in yarn.items() for word in ("--flag", f"hf-overrides.rope_scaling.{key}={value}")
    ]
    config = {**CAUSAL, "max_position_embeddings": 32768}
    asked = ("--max-model-len", "131072")
    assert resolve(config, *asked, card="H200", runtime="0.28.0")["errors"]
    assert resolve(config, *asked, *dotted, card="H200", runtime="0.28.0")["errors"] == []


def test_parts_of_a_map_are_emitted_as_the_map() -> None:
    """The recipe of MiniMax-M3: `--attention_config.use_trtllm_attention true`. vLLM 0.32's parser takes the
    next flag for a part without a value, and parts together in the place of the map itself.
    """
    parts = {
        "attention_config.use_trtllm_attention": True,
        "attention_config.flash_attn_version": 3,
        "compilation-config": {"pass_config": {"fuse_norm_quant": False}},
        "compilation-config.pass_config.eliminate_noops": "true",
        "compilation-config.cudagraph_mode": "PIECEWISE",
    }
    argv = resolving.resolve("Qwen/Qwen3-14B-AWQ", "H100", "0.32.0", max_model_len=8192, flags=parts).argv()
    given = {argv[at]: json.loads(argv[at + 1]) for at, word in enumerate(argv) if word.endswith("-config")}
    assert given == {
        "--attention-config": {"flash_attn_version": 3, "use_trtllm_attention": True},
        "--compilation-config": {
            "cudagraph_mode": "PIECEWISE",
            "pass_config": {"eliminate_noops": True, "fuse_norm_quant": False},
        },
    }


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


# Flags


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        # DeepSeek's and Qwen3's public commands for many GPUs, of 0.10 and 0.11
        ("num-redundant-experts=32", "is called --eplb-config.num_redundant_experts"),
        # Qwen2.5-VL's and InternVL's, of 0.10 and 0.11
        ("enable-multimodal-encoder-data-parallel=true", "use --mm-encoder-tp-mode data"),
        ("disable-mm-preprocessor-cache=true", "use --mm-processor-cache-gb 0"),
        ("lora-extra-vocab-size=256", "adapters can't add tokens any more"),
    ],
)
def test_flags_of_older_public_commands(resolve: Any, flag: str, said: str) -> None:
    assert said in str(resolve(CAUSAL, "--max-model-len", "8192", "--flag", flag))


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        # the recipe of Ring-1T, and public commands of vLLM 0.10 and 0.11: refused by vLLM 0.32's own parser
        (
            'compilation-config={"use_inductor": false}',
            "has no key 'use_inductor' in vLLM 0.32.0; it has backend",
        ),
        ('compilation-config={"full_cuda_graph": true}', "has no key 'full_cuda_graph'"),
        ('compilation-config={"level": 3}', "has no key 'level'"),
        ("compilation-config.cudagraph_modes=PIECEWISE", "did you mean cudagraph_mode?"),
        # meta's command for Llama 4 (vLLM pull request 25704), of 0.11
        (
            'compilation-config={"pass_config": {"enable_fusion": true}}',
            "has no key 'pass_config.enable_fusion'",
        ),
        ("compilation-config.pass_config.enable_noop=true", "has no key 'pass_config.enable_noop'"),
        ('compilation-config={"pass_config": {"fuse_norm_quant": true}}', None),
        ("compilation-config.pass_config.fuse_norm_quant=true", None),
        ('kv-transfer-config={"kv_connectors": "LMCacheConnectorV1"}', "did you mean kv_connector?"),
        ('compilation-config={"mode": 3, "cudagraph_mode": "PIECEWISE"}', None),
        ("compilation-config.cudagraph-mode=PIECEWISE", "did you mean cudagraph_mode?"),
        ("eplb-config.num_redundant_experts=32", None),
        ('hf-overrides={"whatever": 1}', None),
    ],
)
def test_keys_of_maps_as_the_parser_takes_them(resolve: Any, flag: str, said: str | None) -> None:
    asked = ("--max-model-len", "8192", "--flag", flag)
    errors = resolve(CAUSAL, *asked)["errors"]
    assert said in str(errors) if said else errors == []
    assert resolve(CAUSAL, *asked, runtime="0.31.0")["errors"] == []  # another minor version isn't known


def test_the_backend_in_a_map_is_the_flag(resolve: Any) -> None:
    """vllm-project/recipes MiniMax-M3.yaml; with both vLLM ends (engine/arg_utils.py, 0.32.0)."""
    asked = ("--flag", "kv-cache-dtype=fp8", "--flag", "attention_config.backend=FLASHINFER")
    answer = resolve(CAUSAL, "--max-model-len", "8192", *asked, card="RTX 3090", size=16 * 10**9)
    assert answer["errors"] == []
    assert [name for name in flags(answer) if "attention" in name] == ["--attention-backend"]


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


# Quantizations


def auto_round(**method: Any) -> dict[str, Any]:
    """A config.json as Intel's AutoRound writes it."""
    own = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "data_type": "int"}
    return {**CAUSAL, "quantization_config": {**own, "packing_format": "auto_round:auto_gptq", **method}}


@pytest.mark.parametrize(
    ("method", "runtime", "said"),
    [
        # club-3090 issues 127, 295, 1339 and its composes: 3090s, vLLM 0.20 to 0.29
        ({}, "0.29.0", None),
        ({"bits": 8}, "0.21.0", None),
        ({"quant_method": "inc"}, "0.32.0", None),
        ({"sym": False}, "0.32.0", "with zero points (sym: false)"),
        ({"bits": 6}, "0.32.0", "is auto-round of 6 bits"),  # club-3090 issue 1120 needs a patched vLLM
        ({"data_type": "mx_fp", "bits": 4, "group_size": 32}, "0.32.0", "lines that aren't known here"),
    ],
)
def test_auto_round_is_served_by_gptq_s_kernels(
    resolve: Any, method: dict[str, Any], runtime: str, said: str | None
) -> None:
    """Vllm pull request 49039: inc_wna16_linear.py makes an AutoGPTQLinearMethod, whose kernel is logged."""
    answer = resolve(auto_round(**method), "--max-model-len", "8192", card="RTX 3090", runtime=runtime)
    assert answer["kernel"] == ["Marlin"] if said is None else said in str(answer["errors"])
    assert said or answer["errors"] == []


@pytest.mark.parametrize("method", ["gptq_marlin", "compressed-tensors", "auto_round"])
def test_a_name_does_not_quantize_the_base_model(resolve: Any, method: str) -> None:
    """Subnet45's vllm_deploy.sh and club-3090's composes name the method of a checkpoint that has it."""
    asked = ("--max-model-len", "8192", "--flag", f"quantization={method}")
    assert "declare the quantized repository instead" in str(resolve(CAUSAL, *asked)["errors"])


@pytest.mark.parametrize(("runtime", "plugin"), [("0.27.1", False), ("0.28.0", True), ("0.32.0", True)])
def test_bitsandbytes_left_vllm(resolve: Any, runtime: str, plugin: bool) -> None:
    """OpenReinforcedAgent's start_vllm.sh; runpod-workers/worker-vllm pull request 332."""
    asked = ("--flag", "quantization=bitsandbytes", "--flag", "load-format=bitsandbytes")
    answer = resolve(CAUSAL, "--max-model-len", "8192", *asked, runtime=runtime)
    assert answer["errors"] == [] and ("vllm-bnb-plugin" in str(answer["warnings"])) is plugin


def fp4(**method: Any) -> dict[str, Any]:
    return {**CAUSAL, "quantization_config": method}


PACKED = {
    "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized",
    "config_groups": {"group_0": {
        "weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        "input_activations": {"num_bits": 4, "type": "float", "dynamic": "local"},
    }},
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "card", "runtime", "expected"),
    [
        # vllm-project/recipes, of RedHatAI and Nvidia; club-3090 issues 612 (RTX 5090) and 1047 (A6000)
        (fp4(**PACKED), "RTX 5090", "0.24.0", "FlashInferCutlassNvFp4"),
        (fp4(quant_method="modelopt", quant_algo="NVFP4"), "A6000", "0.27.1", "MarlinNvFp4"),
        # as in hf_quant_config.json, beside config.json
        (
            fp4(producer={"name": "modelopt"}, quantization={"quant_algo": "NVFP4"}),
            "B200",
            "0.32.0",
            "FlashInferCutlassNvFp4",
        ),
        # Nvidia's Qwen3.6, attention in FP8 and the rest in FP4
        (fp4(quant_method="modelopt", quant_algo="MIXED_PRECISION"), "A40", "0.24.0", "MarlinNvFp4"),
        ({**MOE, "quantization_config": {"quant_method": "mxfp4"}}, "A100 80GB", "0.32.0", "MARLIN Mxfp4"),
    ],
)
def test_four_bit_floats_are_served(
    resolve: Any, config: dict[str, Any], card: str, runtime: str, expected: str
) -> None:
    answer = resolve(config, "--max-model-len", "8192", card=card, runtime=runtime)
    assert (answer["errors"], answer["kernel"]) == ([], [expected])
    older = resolve(config, "--max-model-len", "8192", card=card, runtime="0.19.1")
    assert "use runtime 0.20 or newer" in str(older["errors"])


FP8_GROUP = {
    "format": "float-quantized",
    "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
}
FP4_GROUP = {**PACKED["config_groups"]["group_0"], "format": "nvfp4-pack-quantized"}  # type: ignore[index]
INT4_GROUP = {
    "format": "pack-quantized",
    "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True},
}


@pytest.mark.parametrize(
    ("groups", "card", "expected"),
    [
        # Unsloth's Qwen3.6 and 3.8, RedHatAI's GLM-5.3; vLLM pull request 22468 reads each group's format
        ((FP8_GROUP, FP4_GROUP), "RTX 5090", "FlashInferCutlassNvFp4"),
        ((FP8_GROUP, FP4_GROUP), "RTX 3090", "MarlinNvFp4"),
        ((FP8_GROUP, INT4_GROUP), "L40S", "Marlin"),
        ((FP8_GROUP, {**INT4_GROUP, "format": "mxfp8-quantized"}), "B200", None),
    ],
)
def test_mixed_precision_is_known_by_all_of_its_groups(
    resolve: Any, groups: tuple[dict[str, Any], ...], card: str, expected: str | None
) -> None:
    named = {f"group_{number}": group for number, group in enumerate(groups)}
    config = fp4(quant_method="compressed-tensors", format="mixed-precision", config_groups=named)
    answer = resolve(config, "--max-model-len", "8192", card=card, runtime="0.29.0", size=9 * 10**9)
    assert answer["kernel"] == ([expected] if expected else [])
    assert bool(answer["errors"]) is (expected is None)


def test_four_bit_floats_are_shared_by_any_number_that_shares_the_heads(resolve: Any) -> None:
    """The recipe of gpt-oss on eight cards: 2880 channels are 90 groups of 32, which vLLM fills up."""
    oss = {
        **MOE,
        "num_attention_heads": 64,
        "hidden_size": 2880,
        "head_dim": 64,
        "moe_intermediate_size": 2880,
    }
    oss["quantization_config"] = {"quant_method": "mxfp4"}
    for count in ("4", "8"):
        assert resolve(oss, "--gpu-count", count, "--max-model-len", "8192", card="A100 80GB")["errors"] == []


@pytest.mark.parametrize(
    ("card", "runtime", "backend", "expected"),
    [
        ("A100 80GB", "0.29.0", "marlin", "MarlinFP8ScaledMM"),  # vllm issue 55008: it ends by itself
        ("A100 80GB", "0.32.0", None, "MarlinFP8ScaledMM"),  # pull request 55884
        ("B200", "0.29.0", None, "FlashInferFP8ScaledMM"),  # vllm issue 49723, pull request 53400
    ],
)
def test_modelopt_s_fp8_is_served(
    resolve: Any, card: str, runtime: str, backend: str | None, expected: str
) -> None:
    """Nvidia's Llama-3.1-8B-Instruct-FP8; `for ModelOptFp8LinearMethod` is in logs of 0.22 to 0.29."""
    config = fp4(quant_method="modelopt", quant_algo="FP8")
    answer = resolve(config, "--max-model-len", "8192", card=card, runtime=runtime)
    assert (answer["errors"], answer["kernel"]) == ([], [expected])
    assert flags(answer).get("--linear-backend") == backend


def test_modelopt_s_own_cache_is_counted(resolve: Any) -> None:
    """Nvidia's NVFP4 checkpoints say `kv_cache_quant_algo: FP8` (utils/torch_utils.py, 0.32.0)."""
    config = fp4(quant_method="modelopt", quantization={"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"})
    answer = resolve(config, "--max-model-len", "8192", card="B200")
    assert flags(answer)["--kv-cache-dtype"] == "fp8"
    assert answer["fit"]["kv_bytes_per_token"] == 32 * 8 * 256


OUT_OF = "out of potential backends: ['FLASHINFER_TRTLLM', 'MARLIN', 'EMULATION']."


@pytest.mark.parametrize(
    ("version", "lines", "verdict", "kernels"),
    [
        # vllm issue 43507
        (
            "0.24.0",
            [
                "Using CutlassNvFp4LinearKernel for NVFP4 GEMM",
                f"Using 'MARLIN' NvFp4 MoE backend {OUT_OF}",
                "Your GPU does not have native support for FP4 computation but FP4 quantization is used.",
            ],
            "pass",
            ["CutlassNvFp4", "MARLIN NvFp4"],
        ),
        # vllm issue 31085
        (
            "0.22.0",
            [f"(EngineCore pid=274) INFO [nvfp4.py:222] Using 'FLASHINFER_B12X' NvFp4 MoE backend {OUT_OF}"],
            "pass",
            ["FLASHINFER_B12X NvFp4"],
        ),
        ("0.26.0", ["Using 'FLASHINFER_TRTLLM_MXFP4_BF16' Mxfp4 MoE backend."], "pass",
         ["FLASHINFER_TRTLLM_MXFP4_BF16 Mxfp4"]),
        ("0.32.0", ["Using 'EMULATION' Mxfp4 MoE backend."], "fail", ["EMULATION Mxfp4"]),
        ("0.32.0", ["Using EmulationNvFp4LinearKernel for NVFP4 GEMM"], "fail", ["EmulationNvFp4"]),
        ("0.32.0", ["Using FLASH_ATTN attention backend out of potential backends"], "inconclusive", []),
    ],
)  # fmt: skip
def test_kernels_of_four_bit_floats_are_read(
    version: str, lines: list[str], verdict: str, kernels: list[str]
) -> None:
    found = kernel.check(lines, version, ["MARLIN Mxfp4"])
    assert (found["verdict"], found["kernels"]) == (verdict, kernels)


# What flags make of the cache


def test_scales_beside_each_head_are_counted(resolve: Any) -> None:
    """club-3090 issue 446; triton_attn.py customize_spec, 0.32.0: two float32 beside 2 x 128 values."""
    asked = ("--max-model-len", "8192", "--flag", "kv-cache-dtype={}")
    sizes = {}
    for kind in ("fp8", "int8_per_token_head"):
        words = [word.format(kind) for word in asked]
        sizes[kind] = resolve(CAUSAL, *words)["fit"]["kv_bytes_per_token"]
    assert sizes == {"fp8": 32 * 8 * 256, "int8_per_token_head": 32 * 8 * (256 + 8)}


PATTERN = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"  # Nemotron 3 Nano
BLOCKS = [{"M": "mamba", "E": "moe", "*": "attention"}[letter] for letter in PATTERN]
NEMOTRON = {
    "model_type": "nemotron_h", "hidden_size": 2688, "num_attention_heads": 32, "num_key_value_heads": 2,
    "head_dim": 128, "mamba_num_heads": 64, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8,
    "conv_kernel": 4, "moe_intermediate_size": 1856, "n_routed_experts": 128, "vocab_size": 131072,
}  # fmt: skip


def test_nemotron_h_names_its_blocks() -> None:
    """Vllm issue 44691 has such a config.json; transformers takes the list's length for the layers."""
    named = shapes.from_config("a/b", facts_of({**NEMOTRON, "layers_block_type": BLOCKS}))
    letters = {"num_hidden_layers": len(PATTERN), "hybrid_override_pattern": PATTERN}
    assert named == shapes.from_config("a/b", facts_of({**NEMOTRON, **letters}))
    assert (named.layers, named.attention_layers, named.state and named.state.layers) == (52, 6, 23)


def test_nemotron_puzzle_has_experts_in_its_blocks() -> None:
    """Vllm pull request 32549; club-3090's compose of Nemotron 3 Puzzle has `--enable-expert-parallel`."""
    own = {"moe": {"n_routed_experts": 96, "moe_intermediate_size": 1280}}
    blocks = [{"block_type": kind, **own.get(kind, {})} for kind in BLOCKS]
    letters = {"num_hidden_layers": len(PATTERN), "hybrid_override_pattern": PATTERN}
    config = {key: value for key, value in NEMOTRON.items() if "exp" not in key and "moe" not in key}
    model = shapes.from_config("a/b", facts_of({**config, **letters, "block_configs": blocks}))
    assert (model.experts, model.expert_intermediate) == (96, 1280)


def test_adapters_take_memory(resolve: Any) -> None:
    """Vllm issue 17822: no memory is left for Qwen3-32B with an adapter."""
    few, many = ((rank, loras) for rank, loras in ((16, 1), (256, 4)))
    asked = ("--max-model-len", "8192", "--flag", "enable-lora=true")
    found = {}
    for rank, loras in (few, many):
        sizes = ("--flag", f"max-lora-rank={rank}", "--flag", f"max-loras={loras}")
        found[rank] = resolve(CAUSAL, *asked, *sizes, size=16 * 10**9)["fit"]["reserve_bytes"]
    channels = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert found[16] - found[256] == (256 * 4 - 16) * 32 * channels * 2
    assert resolve(CAUSAL, *asked, size=16 * 10**9)["fit"]["reserve_bytes"] == found[16]


def test_context_parallelism_shares_a_request_s_tokens(resolve: Any) -> None:
    """vllm-project/recipes Kimi-K3.yaml; kv_cache_interface.py max_memory_usage_bytes: length / size."""
    latent = {
        "model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 64,
        "num_experts": 384, "moe_intermediate_size": 2048, "max_position_embeddings": 262144,
    }  # fmt: skip
    asked = ("--gpu-count", "8", "--max-model-len", "262144")
    alone = resolve(latent, *asked, card="H200")["fit"]
    shared = resolve(latent, *asked, "--flag", "decode-context-parallel-size=8", card="H200")["fit"]
    assert shared["kv_tokens"] == pytest.approx(8 * alone["kv_tokens"], rel=0.01)


def test_states_have_the_declared_type(resolve: Any) -> None:
    """The cards of Nemotron Nano 2 (`--mamba_ssm_cache_dtype float32`); mamba_utils.py, 0.32.0."""
    hybrid = {
        "model_type": "falcon_h1", "num_hidden_layers": 44, "hidden_size": 3072, "num_attention_heads": 12,
        "num_key_value_heads": 2, "head_dim": 128, "mamba_d_ssm": 3072, "mamba_n_heads": 24,
        "mamba_d_head": 128, "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_n_groups": 1,
        "dtype": "bfloat16", "max_position_embeddings": 131072,
    }  # fmt: skip
    model = shapes.from_config("acme/new", hybrid)
    served = fit.Load(1, 8192, 0.9, 8192, 16, dtype="bfloat16")
    convolution, values = (3072 + 2 * 256) * 3, 3072 * 256
    assert fit.state_bytes(model, served) == 2 * (convolution + values)
    assert fit.state_bytes(model, replace(served, state_dtype="float32")) == 2 * convolution + 4 * values
    assert fit.state_bytes(model, replace(served, convolution_dtype="float32")) == 4 * (convolution + values)
    asked = ("--max-model-len", "8192", "--flag", "max-num-seqs=16")
    wide = resolve(hybrid, *asked, "--flag", "mamba_ssm_cache_dtype=float32")["fit"]
    assert wide["kv_tokens"] < resolve(hybrid, *asked)["fit"]["kv_tokens"]


DEEPSEEK = {
    "model_type": "deepseek_v32", "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "index_head_dim": 128, "index_topk": 2048, "n_routed_experts": 256,
    "moe_intermediate_size": 2048, "intermediate_size": 18432, "vocab_size": 129280,
    "max_position_embeddings": 163840, "dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip


def test_data_parallel_ranks_share_the_experts(resolve: Any) -> None:
    """The recipe of DeepSeek-V3.2: ranks of one GPU each on eight; LMCache pull request 2521 has it start
    with 2 GPUs a rank, and no room with one.
    """
    asked = ("--gpu-count", "8", "--flag", "enable-expert-parallel=true", "--flag")
    sizes = {}
    for ranks in (1, 4, 8):
        fit = resolve(DEEPSEEK, *asked, f"data-parallel-size={ranks}", card="H200", size=690 * 10**9)["fit"]
        sizes[ranks] = fit["weights_bytes"] / 10**9
        assert fit["fits"]
    assert sizes[1] == pytest.approx(87.5, abs=1) and sizes[1] < sizes[4] < sizes[8]
    assert sizes[8] == pytest.approx(101, abs=4)  # attention and embeddings on each, an eighth of the experts


def test_a_model_that_drafts_for_itself_has_no_name(resolve: Any) -> None:
    """The recipe of ERNIE 4.5: `"method": "ernie_mtp", "model": "baidu/ERNIE-4.5-21B-A3B-PT"`."""
    config = {**MOE, "num_nextn_predict_layers": 1}
    drafting = 'speculative-config={{"method": "mtp", {}"num_speculative_tokens": 1}}'.format
    asked = ("--max-model-len", "8192", "--flag")
    told = str(resolve(config, *asked, drafting('"model": "acme/new", '))["errors"])
    assert "acme/new is the served model itself" in told and "leave `model` out" in told
    assert resolve(config, *asked, drafting(""))["errors"] == []


def test_more_cards_are_offered_whatever_size_was_declared(resolve: Any) -> None:
    """The card of Devstral Small: `--tensor-parallel-size 2`; two of 24 GB hold its weights alone."""
    config = {**CAUSAL, "max_position_embeddings": 131072}
    asked = ("--gpu-count", "2", "--max-model-len", "65536", "--flag", "tensor-parallel-size=2")
    (error,) = resolve(config, *asked, card="RTX 4090", size=48 * 10**9)["errors"]
    assert "4 GPUs and another tensor-parallel-size" in error


# Flags of vllm-project/recipes (2026-08-21), as an operator writes them; in tests/lab/test_lab_parser.py
# vLLM's own parser reads what is emitted

COMMANDS = json.loads((Path(__file__).parents[1] / "fixtures/field/commands.json").read_text())
ANY = {**MOE, "num_attention_heads": 64, "num_hidden_layers": 4, "num_nextn_predict_layers": 1}


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: f"{row['source']} {' '.join(row['flags'])}")
def test_the_flags_of_recipes(row: dict[str, Any]) -> None:
    model = shapes.from_config("acme/new", ANY)
    ranks = row["flags"].get("tensor-parallel-size", row["flags"].get("data-parallel-size", 1))
    errors = resolving.resolve(model, "H200", "0.32.0", gpu_count=ranks, flags=row["flags"]).errors
    assert row["refused"] in str(errors) if row["refused"] else not errors
