"""More public reports, tried against the commands after those of tests/fixtures/field/ were right.

Each names its report. The right answer is the report's own, or that of vLLM 0.32.0's code, run or read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, serving
from test_field_commands import LLAMA, checkpoint, declare

from pyinfra_vllm.catalog import gpus
from pyinfra_vllm.checkpoint import Lock
from pyinfra_vllm.errors import DeclarationError

CAUSAL = {**LLAMA, "architectures": ["LlamaForCausalLM"]}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("inventory").mkdir()


@pytest.fixture
def resolve(run: Any) -> Any:
    """`pyinfra-vllm resolve --json` of a locked config.json, on one L40S and vLLM 0.32.0 unless said."""

    def resolve(
        config: dict[str, Any],
        *more: str,
        card: str = "L40S",
        runtime: str = "0.32.0",
        size: int = 18 * 10**9,
    ) -> Any:
        Lock([checkpoint("new", config, size)]).dump()
        asked = ("--model", "acme/new", "--gpu", card, "--runtime", runtime, "--json")
        return run("resolve", *asked, *more).json

    return resolve


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """The files of acme/new at the Hub."""
    files = {"config.json": json.dumps(CAUSAL).encode(), "tokenizer.json": b"{}"}
    declare(model="acme/new")
    with serving(HubServer(repositories={"acme/new": files})) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield files


# Cards


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA L40S-12C",  # NVIDIA's vGPU software: 12 GB of a card of 48
        "NVIDIA A40-8Q",
        "NVIDIA H100-20C",
        "RTX 4090 Mobile",  # 16 GB, as `Laptop GPU` (aixcl issue 694 is of such a card)
        "A6000 Ada",  # there is an A6000 of Ampere, and a 6000 Ada
        "NVIDIA GeForce RTX 2080 Ti with Max-Q Design",
    ],
)
def test_a_part_of_a_card_is_not_the_card(name: str) -> None:
    with pytest.raises(DeclarationError, match="is not in the catalog"):
        gpus.find(name)
    assert gpus.find(name, "8.9", 12288).memory_mib == 12288  # a host says how much there is


@pytest.mark.parametrize("name", ["RTX 4000", "RTX 5000", "RTX 6000"])
def test_a_name_of_two_generations_is_asked_back(name: str) -> None:
    """Of Turing and of Ada, with other memory; vllm issue 9096 says "RTX Quadro 8000"."""
    with pytest.raises(DeclarationError, match="is the name of several cards: declare one of Quadro RTX"):
        gpus.find(name)
    assert gpus.find(f"Quadro {name}").compute_capability == "7.5"
    assert gpus.find(f"NVIDIA {name} Ada Generation").compute_capability == "8.9"


# Variables


def variable(run: Any, setting: str, runtime: str = "0.32.0") -> Any:
    asked = ("--model", "Qwen/Qwen3-14B-AWQ", "--gpu", "L40S", "--runtime", runtime, "--json")
    return run("resolve", *asked, "--max-model-len", "8192", "--env", setting)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        # vllm issues 15613 and 34199; vllm/envs.py get_vllm_port
        ("VLLM_PORT=tcp://10.43.1.39:8000", "VLLM_PORT must be a whole number"),
        # worker-vllm issue 101 is of yes and no in variables; vllm/envs.py bool(int(...))
        ("VLLM_USE_FLASHINFER_SAMPLER=true", "must be a whole number (1 for yes, 0 for no), not 'true'"),
        ("VLLM_SERVER_DEV_MODE=False", "must be a whole number (1 for yes, 0 for no), not 'False'"),
        ("VLLM_ENGINE_READY_TIMEOUT_S=10m", "must be a whole number"),
        ("VLLM_LOG_STATS_INTERVAL=often", "must be a number, not 'often'"),
        ("VLLM_WORKER_MULTIPROC_METHOD=threads", "must be one of spawn, fork, not 'threads'"),
        ("VLLM_KV_CACHE_LAYOUT=XYZ", "must be one of LBNHC"),
    ],
)
def test_a_variable_s_value_that_ends_the_start(run: Any, setting: str, said: str) -> None:
    answer = variable(run, setting)
    assert answer.code == 2 and said in str(answer.json["errors"])
    older = variable(run, setting, "0.25.1")
    assert older.code == 0 and "and that of 0.25.1 isn't known" in str(older.json["warnings"])


@pytest.mark.parametrize(
    "setting",
    [
        *("VLLM_USE_FLASHINFER_SAMPLER=0", "VLLM_PORT=8001", "VLLM_LOG_STATS_INTERVAL=2.5"),
        *("VLLM_WORKER_MULTIPROC_METHOD=spawn", "VLLM_ALLOW_LONG_MAX_MODEL_LEN=true", "NCCL_DEBUG=INFO"),
    ],
)
def test_a_variable_s_value_that_is_read(run: Any, setting: str) -> None:
    answer = variable(run, setting)
    assert answer.code == 0 and setting.partition("=")[0] not in str(answer.json["warnings"])


def test_a_variable_that_is_gone_is_not_said_to_mean_itself(run: Any) -> None:
    """Vllm issue 50292 is of such variables; this one was in 0.25.1."""
    warnings = str(variable(run, "VLLM_ENGINE_ITERATION_TIMEOUT_S=60").json["warnings"])
    assert "doesn't read VLLM_ENGINE_ITERATION_TIMEOUT_S: delete it" in warnings


# Models and flags with which the gate could never pass, or the server never start


@pytest.mark.parametrize(
    "architecture",
    [
        "LlamaForSequenceClassification",  # vllm issue 11671, of a quantized Qwen2ForSequenceClassification
        "Qwen2ForRewardModel",
        "Qwen3Model",
        "BertModel",  # gpustack issue 3991 is of an embedding model, and `--task=embed`
        "XLMRobertaForSequenceClassification",
        "JinaVLForRanking",
    ],
)
def test_a_model_that_does_not_generate_text(resolve: Any, architecture: str) -> None:
    answer = resolve({**LLAMA, "architectures": [architecture]})
    assert f"is a {architecture}, which vLLM serves for embeddings" in str(answer["errors"])


@pytest.mark.parametrize(
    "architectures",
    [
        *(["LlamaForCausalLM"], ["ChatGLMModel"], ["InternVLChatModel"], ["GPT2LMHeadModel"], [], None),
        ["LlamaModel"],  # vllm issue 10481; served as LlamaForCausalLM
        *(["Qwen2_5OmniModel"], ["UltravoxModel"], ["MiniCPMV"], ["Qwen2_5_VLForConditionalGeneration"]),
    ],
)
def test_a_model_that_generates_text(resolve: Any, architectures: list[str] | None) -> None:
    """vllm/model_executor/models/registry.py, 0.32.0: _TEXT_GENERATION_MODELS and _MULTIMODAL_MODELS."""
    assert resolve({**LLAMA, "architectures": architectures})["errors"] == []


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("enable-auto-tool-choice=true", "needs a tool-call-parser"),  # vllm issues 9986 and 17792
        ("max-lora-rank=24", "vLLM takes 1, 8, 16, 32, 64"),  # prime-rl pull request 1408
        ("enable-expert-parallel=true", "has no experts"),
        ("decode-context-parallel-size=2", "must divide the tensor-parallel size"),  # vllm issue 54665
        ("attention-backend=XFORMERS", "is none that vLLM 0.32.0 has"),  # vllm issue 12724
        ("attention-backend=FLASHMLA", "is for latent attention"),
        ("block-size=8", "takes blocks of 16 tokens"),  # vllm pull request 10938
        ("kv-cache-dtype=fp8_ds_mla", "is for sparse latent attention"),  # vllm issue 42587
        ("kv-cache-dtype=fp8_inc", "is for Intel's Gaudi"),
        ("kv-cache-dtype=nvfp4", "needs Blackwell"),
        # vllm issue 17210: a repository in Hugging Face's form; nothing but safetensors is staged
        ("load-format=pt", "loads other files than the safetensors"),
        ("load-format=dummy", "loads other files than the safetensors"),
        # vllm pull request 12755: R1's distilled models have no MTP module
        (
            'speculative-config={"method": "mtp", "num_speculative_tokens": 1}',
            "has no layers for multi-token",
        ),
        ("gpu-memory-utilization=1.0", "its own CUDA context takes some"),  # vllm issue 10797
        ("kv-cache-memory-bytes=60G", "has beside the weights"),
        ("enable-log-outputs=true", "needs enable-log-requests"),
        ("prefill-context-parallel-size=2", "is 2 and the service has 1 GPUs"),
        ("chat-template=./tool.jinja", "must be an absolute path"),  # vllm issue 9986
        ("tokenizer=../tokenizer", "must be an absolute path"),
        ("ssl-certfile=/etc/tls/server.pem", "the gate asks the server over plain HTTP"),
        ("headless=true", "leaves no server that the gate could ask"),
        ("nnodes=2", "a service is one server on one host"),
    ],
)
def test_flags_that_end_the_start_or_the_gate(resolve: Any, flag: str, said: str) -> None:
    assert said in str(resolve(CAUSAL, "--max-model-len", "8192", "--flag", flag)["errors"])


def test_an_unknown_parser_is_warned_of_whatever_the_version(resolve: Any) -> None:
    """Vllm issue 14359: no parser for phi-4-mini then. A warning, for the rehearsal asks vLLM itself."""
    asked = ("--max-model-len", "8192", "--flag", "enable-auto-tool-choice=true")
    unknown = (*asked, "--flag", "tool-call-parser=phi4_mini")
    told = "tool-call-parser: phi4_mini} is none of vLLM 0.32.0, which ends"
    for runtime in ("0.31.0", "0.32.0", "0.33.0"):
        assert told in str(resolve(CAUSAL, *unknown, runtime=runtime)["warnings"])
    plugin = ("--flag", "tool-parser-plugin=/srv/parser.py")
    assert "phi4_mini" not in str(resolve(CAUSAL, *unknown, *plugin)["warnings"])


def test_adapters_without_lora_are_warned_of(resolve: Any) -> None:
    """lm-evaluation-harness pull request 3132: `enable_lora` is a switch of its own."""
    asked = ("--max-model-len", "8192", "--flag", "lora-modules=sql=/srv/loras/sql")
    assert "needs enable-lora: true" in str(resolve(CAUSAL, *asked)["warnings"])
    assert "enable-lora" not in str(resolve(CAUSAL, *asked, "--flag", "enable-lora=true")["warnings"])


def test_weights_that_are_quantized_while_loading_are_said_to_be_reckoned_in_full(resolve: Any) -> None:
    answer = resolve(CAUSAL, "--max-model-len", "8192", "--flag", "quantization=fp8")
    assert answer["errors"] == [] and "the memory fit counts weights of 16 bits" in str(answer["warnings"])


def test_pipeline_stages_are_not_offered_where_the_class_has_none(resolve: Any) -> None:
    """Vllm issues 33685 and 9015: `Pipeline parallelism is not supported for this model`."""
    wide = {**LLAMA, "num_attention_heads": 30, "hidden_size": 3840, "num_key_value_heads": 10}
    asked = ("--gpu-count", "4", "--max-model-len", "4096")
    told = str(resolve({**wide, "architectures": ["LlamaForCausalLM"]}, *asked)["errors"])
    assert "pipeline stages" in told
    told = str(resolve({**wide, "architectures": ["Gemma3nForCausalLM"]}, *asked)["errors"])
    assert "can't share" in told and "pipeline stages" not in told


# Checkpoints


def test_two_sets_of_the_same_weights_are_refused(run: Any, hub: dict[str, bytes]) -> None:
    """vllm/model_loader/default_loader.py: `Using both breaks`, and only an index tells them apart."""
    hub |= {f"model-0000{number}-of-00002.safetensors": bytes(6000) for number in (1, 2)}
    assert run("lock", "inventory/prod.py").code == 0
    hub["model.safetensors"] = bytes(6000)
    refused = run("lock", "inventory/prod.py")
    assert refused.code and "holds model in 2 sets (00002, one file)" in refused.err
    named = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    hub["model.safetensors.index.json"] = json.dumps({"weight_map": named}).encode()
    assert run("lock", "inventory/prod.py").code == 0


def test_weights_beside_the_model_s_are_no_second_set(run: Any, hub: dict[str, bytes]) -> None:
    hub |= {"model.safetensors": bytes(6000), "mtp.safetensors": bytes(6000)}
    assert run("lock", "inventory/prod.py").code == 0


def test_a_checkpoint_for_mlx_is_refused(run: Any, hub: dict[str, bytes]) -> None:
    """Vllm issues 7580 and 13283."""
    hub["model.safetensors"] = bytes(6000)
    hub["config.json"] = json.dumps({**CAUSAL, "quantization": {"group_size": 64, "bits": 4}}).encode()
    refused = run("lock", "inventory/prod.py")
    assert refused.code and "is packed for MLX (Apple)" in refused.err


@pytest.mark.parametrize(
    ("flag", "file", "told"),
    [
        # vllm issue 17210, pull request 17132: `Failed to load mistral 'params.json' config`
        ("config-format", "params.json", "locked without params.json"),
        # vllm issue 17210: `Found 0 files matching the pattern ... tekken.json`
        ("tokenizer-mode", "tekken.json", "locked without tekken.json or tokenizer.model.v"),
    ],
)
def test_mistral_s_forms_need_mistral_s_files(
    run: Any, hub: dict[str, bytes], flag: str, file: str, told: str
) -> None:
    hub["model.safetensors"] = bytes(6000)
    declare(model="acme/new", flags={flag: "mistral"})
    run("lock", "inventory/prod.py")
    refused = run("validate", "inventory/prod.py", "--json")
    assert refused.code == 2 and told in str(refused.json)
    hub[file] = b"{}"
    run("lock", "inventory/prod.py")
    assert run("validate", "inventory/prod.py").code == 0


# Spellings


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("-tp=2", "--tensor-parallel-size"),  # gpt-oss issue 275 has it as a variable; `vllm serve -tp 2`
        ("pp=2", "--pipeline-parallel-size"),
        ("-ep=true", "--enable-expert-parallel"),
        ("-O=3", "--optimization-level"),
        ("-O3=true", "--optimization-level"),
        ("gpu-memory-util=0.9", "--gpu-memory-utilization"),  # llm-scaler issue 264
        ("tensor-parallel=2", "--tensor-parallel-size"),  # vllm issue 26328
    ],
)
def test_a_short_form_is_named_in_full(resolve: Any, flag: str, meant: str) -> None:
    assert f"did you mean {meant}?" in str(resolve(CAUSAL, "--flag", flag)["errors"])


@pytest.mark.parametrize(
    ("given", "number"), [("16k", 16000), ("16K", 16384), ("4096", None), ("2.5k", 2500), ("2.5K", None)]
)
def test_sizes_as_vllm_reads_them(resolve: Any, given: str, number: int | None) -> None:
    """vllm/utils/argparse_utils.py human_readable_int, 0.32.0; a text without a unit stays a text."""
    asked = ("--max-model-len", "4096", "--flag", f'max-num-batched-tokens="{given}"')
    answer = resolve(CAUSAL, *asked)
    found = {flag["flag"]: flag["value"] for flag in answer["flags"]}.get("--max-num-batched-tokens")
    assert found == number and bool(answer["errors"]) is (number is None)


def test_bits_of_an_unknown_quantization_are_not_read(resolve: Any) -> None:
    """exllamav2 writes 4.0, 2.5 and the like."""
    exl2 = {**CAUSAL, "quantization_config": {"quant_method": "exl2", "bits": 4.0}}
    assert "is quantized as exl2, whose kernels" in str(resolve(exl2)["errors"])


def test_sentence_transformers_are_models_for_embeddings(run: Any, hub: dict[str, bytes]) -> None:
    """Gpustack issue 3991, of Qwen3-Embedding, whose architecture is Qwen3ForCausalLM."""
    hub |= {"model.safetensors": bytes(6000), "modules.json": b"[]"}
    run("lock", "inventory/prod.py")
    refused = run("validate", "inventory/prod.py", "--json")
    assert refused.code == 2 and "is a model for embeddings" in str(refused.json)
    declare(model="acme/new", flags={"runner": "generate"})
    assert run("validate", "inventory/prod.py").code == 0


# Contexts


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("overrides", "runtime", "asked", "allowed"),
    [
        # gpustack issue 4236, with 0.13.0: the advice that was given there
        ({"rope_scaling": YARN}, "0.25.1", "32768", True),
        # run with 0.32.0: YaRN's factor isn't applied to the positions any more
        ({"rope_scaling": YARN}, "0.32.0", "32768", False),
        ({"rope_scaling": YARN, "max_position_embeddings": 32768}, "0.32.0", "32768", True),
        ({"rope_scaling": YARN, "max_position_embeddings": 32768}, "0.32.0", "32769", False),
        ({"text_config": {"max_position_embeddings": 32768}}, "0.32.0", "32768", True),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "0.32.0", "16384", True),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "0.32.0", "16385", False),
        ({"architectures": ["LlamaForCausalLM"]}, "0.32.0", "32768", False),
    ],
)
def test_a_context_under_overrides(
    resolve: Any, overrides: dict[str, Any], runtime: str, asked: str, allowed: bool
) -> None:
    flag = ("--flag", f"hf-overrides={json.dumps(overrides)}")
    answer = resolve(CAUSAL, "--max-model-len", asked, *flag, runtime=runtime)
    assert ("positions of acme/new" not in str(answer["errors"])) is allowed


def test_longrope_begins_at_the_original_length_of_its_class(resolve: Any) -> None:
    """Run with 0.32.0: transformers 5 writes the original length into rope_parameters, and vLLM reads the
    class's.
    """
    scaling = {"rope_type": "longrope", "long_factor": [1.0], "original_max_position_embeddings": 8192}
    phi = {**LLAMA, "model_type": "phi3", "max_position_embeddings": 131072, "rope_parameters": scaling}
    fit = resolve(phi)["fit"]
    assert fit["max_concurrency"] == pytest.approx(fit["kv_tokens"] / 4096, rel=0.01)


# Shared by several GPUs


MOE = {
    **LLAMA, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "head_dim": 128,
    "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128, "moe_intermediate_size": 768,
}  # fmt: skip
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    ("wide", "count", "fits"),
    [
        # vllm issue 54178: 320 channels and blocks of 128
        (320, "2", False),
        # vllm pull request 44763: 768 / 4 = 192
        (768, "4", False),
        (768, "2", True),
        # vllm issue 52997 and sglang issue 3345 are of the same check
        (1536, "8", False),
        (1536, "4", True),
    ],
)
def test_blocks_of_fp8_are_not_cut(resolve: Any, wide: int, count: str, fits: bool) -> None:
    """vllm/model_executor/layers/quantization/utils/fp8_utils.py validate_fp8_block_shape_moe, 0.32.0."""
    config = {**MOE, "moe_intermediate_size": wide, "quantization_config": BLOCKS}
    answer = resolve(config, "--gpu-count", count, "--max-model-len", "4096")
    assert ("cut through the quantization groups of the experts" not in str(answer["errors"])) is fits


def test_blocks_of_fp8_are_not_cut_in_a_dense_model(resolve: Any) -> None:
    config = {**CAUSAL, "intermediate_size": 13824, "quantization_config": BLOCKS}  # 108 blocks
    assert resolve(config, "--gpu-count", "4", "--max-model-len", "4096")["errors"] == []
    answer = resolve({**config, "intermediate_size": 13696}, "--gpu-count", "2", "--max-model-len", "4096")
    assert "cut through the quantization groups" in str(answer["errors"])


def test_a_declaration_that_can_not_be_read_is_not_said_to_be_missing(run: Any) -> None:
    """Not a report: beside each problem of form, `validate` asked whether this is the project's directory."""
    declare(port="8000")
    told = run("validate", "inventory/prod.py", "--json").json
    assert told["problems"] and told["warnings"] == []
    Path("inventory/empty.py").write_text("gpu = ['gpu1.example']\n")
    (told,) = run("validate", "inventory/empty.py", "--json").json["problems"]
    assert told["fix"].startswith("nothing is declared for any of its hosts; run in the project's directory")
