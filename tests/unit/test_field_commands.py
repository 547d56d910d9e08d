"""Public reports, asked as an operator asks: by `pyinfra-vllm resolve`, `validate`, `lock` and `windows`.

The rows of tests/fixtures/field/models.json by the number that their issue gives them; more of the same kinds
below, each with the source of its right value.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, serving
from seen import installed
from test_field import MODELS
from test_foreseen import Host
from test_planning import ROOT, gpu, service

from pyinfra_vllm import fit, hub_endpoint
from pyinfra_vllm.catalog import gpus, shapes
from pyinfra_vllm.catalog.quantization import Quantization
from pyinfra_vllm.checkpoint import LOCK_FILE, Checkpoint, File, Lock
from pyinfra_vllm.config import Runtime
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.hub import facts_of
from pyinfra_vllm.operations.util.planning import plan

LLAMA = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
    "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN = {
    "model_type": "qwen2", "num_hidden_layers": 64, "hidden_size": 5120, "num_attention_heads": 40,
    "num_key_value_heads": 8, "intermediate_size": 27648, "vocab_size": 152064, "torch_dtype": "float16",
    "max_position_embeddings": 32768, "quantization_config": shapes.AWQ,
}  # fmt: skip
W4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
TOKENS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True}


def checkpoint(name: str, config: dict[str, Any], size: int) -> Checkpoint:
    file = File(path="model.safetensors", size=size, sha256="c" * 64)
    return Checkpoint(
        repo=f"acme/{name}", revision="main", commit="a" * 40, files=(file,), config=facts_of(config)
    )


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory whose lock has the models of all reports."""
    monkeypatch.chdir(tmp_path)
    Path("inventory").mkdir()
    Lock([checkpoint(name, row["config"], row["bytes"]) for name, row in MODELS.items()]).dump()


@pytest.fixture
def resolve(run: Any) -> Any:
    """`pyinfra-vllm resolve --json`, on vLLM 0.32.0 unless said; a `config` is locked first."""

    def resolve(
        model: str, card: str, *more: str, config: dict[str, Any] | None = None, runtime: str = "0.32.0"
    ) -> dict[str, Any]:
        if config is not None:
            Lock([checkpoint(model, config, 18_000_000_000)]).dump()
        asked = ("--model", f"acme/{model}", "--gpu", card, "--runtime", runtime, "--json")
        found: dict[str, Any] = run("resolve", *asked, *more).json
        return found

    return resolve


def flags(answer: dict[str, Any]) -> dict[str, Any]:
    return {flag["flag"]: flag["value"] for flag in answer["flags"]}


def declare(**settings: Any) -> None:
    service = {"model": "acme/QwQ-32B-AWQ", "port": 8000, "runtime": {"version": "0.32.0"}, "gpus": [0]}
    both = {**service, "gpu": "H100", "max_model_len": 8192, **settings}
    Path("inventory/prod.py").write_text(f"gpu = [('gpu1.example', {{'services': {{'chat': {both!r}}}}})]\n")


# Row by row


def test_row_1_windows_are_bounded(resolve: Any) -> None:
    answer = resolve("gemma-3-27b-it-w4a16", "RTX 4090", "--max-model-len", "16384", runtime="0.25.1")
    assert "one request of max_model_len 16384 needs 2.66 GiB" in str(answer["errors"])
    few = ("--max-model-len", "16384", "--flag", "max-num-seqs=16")
    assert resolve("gemma-3-27b-it-w4a16", "RTX 4090", *few)["fit"]["fits"]
    oss = resolve("gpt-oss-120b", "H100", "--max-model-len", "131072")
    assert oss["errors"] == [] and oss["kernel"] == ["TRITON Mxfp4"]
    # 18 layers of 8 heads x 2 x 64 values of 16 bits keep all tokens, and 18 the last 128
    assert oss["fit"]["kv_bytes_per_token"] == 18 * 8 * 2 * 64 * 2


def test_row_2_sequences_keep_to_the_blocks_for_states(resolve: Any) -> None:
    asked = ("--max-model-len", "262144")
    answer = resolve("Qwen3.8-27B-AWQ-INT4", "H100", *asked, runtime="0.29.0")
    assert not answer["errors"] and 0 < flags(answer)["--max-num-seqs"] <= 969
    more = resolve("Qwen3.8-27B-AWQ-INT4", "H100", *asked, "--flag", "max-num-seqs=1024", runtime="0.29.0")
    assert "ends its start: declare at most" in str(more["errors"])


def test_row_3_two_cards_share_latent_attention(resolve: Any) -> None:
    asked = ("--gpu-count", "2", "--max-model-len", "65536")
    answer = resolve("GLM-4.7-Flash-AWQ-4bit", "RTX 4090", *asked)
    assert answer["errors"] == [] and flags(answer)["--tensor-parallel-size"] == 2


def test_row_4_cuda_counts_by_the_bus() -> None:
    """gpustack#1633: CUDA's own order is fastest first."""
    cards = [
        gpu(0, name="NVIDIA GeForce RTX 5090", memory_mib=32607, compute_capability="12.0"),
        gpu(
            1,
            name="NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
            memory_mib=97887,
            compute_capability="12.0",
        ),
    ]
    found = plan(Host(gpus=cards), ROOT, service(gpus=(1,)), checkpoint("32b-awq", QWEN, 18 * 10**9))  # type: ignore[arg-type]
    assert found.gpu == cards[1].name
    assert found.release.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert found.release.environment["CUDA_VISIBLE_DEVICES"] in (cards[1].uuid, "1")


def test_row_5_a_short_config_has_its_class_s_values(resolve: Any) -> None:
    assert resolve("gemma-3-27b-it-w4a16-short", "RTX 5090", "--max-model-len", "8192")["errors"] == []


def test_row_6_float16_is_refused_by_gemma(resolve: Any) -> None:
    asked = ("--gpu-count", "4", "--max-model-len", "4096")
    assert "vLLM refuses it for gemma3" in str(resolve("gemma-3-27b-it-w4a16", "T4", *asked)["errors"])


SHARDS = {"config.json": b'{"model_type": "qwen3"}', "tokenizer.json": b"{}"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """The files of acme/new at the Hub."""
    files = dict(SHARDS)
    hub_endpoint.endpoint.cache_clear() if hasattr(hub_endpoint.endpoint, "cache_clear") else None
    declare(model="acme/new")
    with serving(HubServer(repositories={"acme/new": files})) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield files


def test_row_7_a_gap_in_shards_is_refused(run: Any, hub: dict[str, bytes]) -> None:
    hub |= {f"model-0000{number}-of-00003.safetensors": bytes(90) for number in (1, 3)}
    refused = run("lock", "inventory/prod.py")
    assert refused.code and "model-00002-of-00003.safetensors is not there (1 of 3" in refused.err


def test_a_quantization_beside_the_config(run: Any, hub: dict[str, bytes]) -> None:
    """transformers_utils/config.py, 0.32.0: modelopt's file is read, those of AutoGPTQ and AutoAWQ aren't."""
    hub["model.safetensors"] = bytes(90)
    hub["hf_quant_config.json"] = b'{"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}'
    assert run("lock", "inventory/prod.py").code == 0
    config = Lock.load(LOCK_FILE).get("acme/new").config
    assert shapes.from_config("acme/new", {**LLAMA, **config}).quantization == Quantization(
        "modelopt", bits=8, group_size=-1, zero_point=False, kernels="fp8"
    )
    del hub["hf_quant_config.json"]
    hub["quantize_config.json"] = b'{"bits": 4}'
    refused = run("lock", "inventory/prod.py")
    assert refused.code and "quantize_config.json says how the weights are quantized" in refused.err


def test_row_8_mistral_s_own_form_is_kept_for_its_loader(run: Any, hub: dict[str, bytes]) -> None:
    hub |= {"model.safetensors": bytes(90), "consolidated.safetensors": bytes(90), "params.json": b"{}"}
    declare(model="acme/new", flags={"load-format": "mistral"})
    assert run("lock", "inventory/prod.py").code == 0
    files = {file.path for file in Lock.load(LOCK_FILE).get("acme/new").files}
    assert {"consolidated.safetensors", "params.json"} <= files and "model.safetensors" not in files


@pytest.mark.parametrize(("torch", "allowed"), [("2.11.0+cu129", True), ("2.11.0+cu130", False)])
def test_row_9_the_driver_is_held_against_the_venv_s_cuda(torch: str, allowed: bool) -> None:
    runtime = installed("0.25.1", torch=torch)
    host = Host(gpus=[gpu(driver="570.133.20")], runtime=runtime)
    asked = service(runtime=Runtime(path="/opt/vllm"))
    if allowed:
        plan(host, ROOT, asked, checkpoint("32b-awq", QWEN, 18 * 10**9))  # type: ignore[arg-type]
    else:
        with pytest.raises(HostError, match=r"driver 570\.133\.20 is too old for vLLM 0\.25\.1"):
            plan(host, ROOT, asked, checkpoint("32b-awq", QWEN, 18 * 10**9))  # type: ignore[arg-type]


BLACKWELL = {"name": "NVIDIA GeForce RTX 5090", "memory_mib": 32607, "compute_capability": "12.0"}


@pytest.mark.parametrize(
    ("torch", "driver", "card", "needed"),
    [
        # docs.nvidia.com/deploy/cuda-compatibility: any driver of a CUDA's line from its first on
        ("2.8.0+cu128", "535.104.05", {}, None),
        ("2.8.0+cu126", "525.60.13", {}, None),
        ("2.8.0+cu126", "520.61.05", {}, "525"),
        ("2.8.0+cu128", "565.57.01", BLACKWELL, "570"),
        ("2.8.0+cu128", "570.26", BLACKWELL, None),
        ("2.9.0+cu130", "580.65.06", {}, None),
        ("2.9.0+cu130", "575.51.03", {}, "580"),
    ],
)
def test_more_drivers(torch: str, driver: str, card: dict[str, Any], needed: str | None) -> None:
    told = installed("0.25.1", torch=torch)
    host = Host(gpus=[gpu(driver=driver, **card)], runtime=told)
    asked = service(runtime=Runtime(path="/opt/vllm"))
    try:
        plan(host, ROOT, asked, checkpoint("32b-awq", QWEN, 18 * 10**9))  # type: ignore[arg-type]
        refused = None
    except HostError as error:
        refused = str(error)
    assert (refused is None) is (needed is None)
    assert needed is None or f"install driver {needed} or newer" in str(refused)


def test_row_10_offloaded_weights_leave_the_card_s_memory(resolve: Any) -> None:
    asked = ("--max-model-len", "8192")
    assert resolve("llama-3.3-70b-instruct-awq", "A100 40GB", *asked)["errors"]
    more = resolve("llama-3.3-70b-instruct-awq", "A100 40GB", *asked, "--flag", "cpu-offload-gb=10")
    assert more["errors"] == []


def test_row_11_a_level_is_no_compilation_config(run: Any) -> None:
    asked = ("--model", "Qwen/Qwen3-14B-AWQ", "--gpu", "L40S", "--runtime", "0.32.0", "--json")
    answer = run("resolve", *asked, "--flag", "compilation-config=3")
    assert answer.code == 2 and "must be a map or the JSON text of one" in str(answer.json["errors"])


@pytest.mark.thorough
@pytest.mark.parametrize("variable", ["VLLM_ATTENTION_BACKEND", "VLLM_USE_V1"])
def test_row_12_variables_that_nobody_reads_are_told(run: Any, resolve: Any, variable: str) -> None:
    answer = resolve("QwQ-32B-AWQ", "H100", "--max-model-len", "8192", "--env", f"{variable}=1")
    assert f"vLLM 0.32.0 doesn't read {variable}" in str(answer["warnings"])
    declare(environment={variable: "1"})
    told = run("validate", "inventory/prod.py", "--json")
    assert told.code == 0 and f"vLLM 0.32.0 doesn't read {variable}" in str(told.json["warnings"])


def test_row_13_a_flag_that_is_gone(run: Any) -> None:
    declare(flags={"enable-reasoning": True})
    (problem,) = run("validate", "inventory/prod.py", "--json").json["problems"]
    assert "gone since 0.10: delete it" in problem["fix"]


def test_row_14_the_context_that_vllm_derives(resolve: Any) -> None:
    answer = resolve("deepseek-coder-33b-instruct-AWQ", "RTX 5090")
    assert "one request of max_model_len 65536" in str(answer["errors"])
    asked = ("--max-model-len", "65536")
    assert resolve("QwQ-32B-AWQ", "H100", *asked)["errors"]
    own_word = resolve("QwQ-32B-AWQ", "H100", *asked, "--env", "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1")
    assert own_word["errors"] == []


@pytest.mark.parametrize(
    ("model", "card", "kernel"),
    [
        ("Qwen3-32B-FP8", "H100", ["DeepGemmFp8BlockScaledMM"]),
        ("Qwen3-32B-W8A8", "L40S", ["CutlassInt8ScaledMM"]),
        ("Qwen3-32B-GPTQ-Int4", "L40S", ["Marlin"]),
        ("GLM-4.5-Air-AWQ-g32", "L40S", ["Marlin", "Marlin"]),
    ],
)
def test_row_15_kernels_by_quantization(resolve: Any, model: str, card: str, kernel: list[str]) -> None:
    assert resolve(model, card)["kernel"] == kernel


def test_row_15_awq_of_eight_bits_is_refused(resolve: Any) -> None:
    assert "vLLM takes AWQ of 4 bits only" in str(resolve("Mine-32B-w8", "H100")["errors"])


def test_row_18_several_names(run: Any) -> None:
    declare(served_model_name=["chat", "gpt-4o"])
    assert run("validate", "inventory/prod.py").code == 0
    names = service(served_model_name=("chat", "gpt-4o"))
    found = plan(Host(), ROOT, names, checkpoint("32b-awq", QWEN, 18 * 10**9))  # type: ignore[arg-type]
    argv = found.release.argv
    assert argv[argv.index("--served-model-name") + 1 :][:2] == ("chat", "gpt-4o")


def test_row_19_names_on_the_hub_and_missing_tokenizers(run: Any, hub: dict[str, bytes]) -> None:
    hub["model.safetensors"] = bytes(90)
    del hub["tokenizer.json"]
    assert "acme/new@main has no tokenizer files" in run("lock", "inventory/prod.py").err
    Lock([checkpoint("QwQ-32B-AWQ", MODELS["QwQ-32B-AWQ"]["config"], 19_300_000_000)]).dump()
    declare(flags={"tokenizer": "Qwen/Qwen3-14B", "lora-modules": ["sql=acme/sql-lora"]})
    told = str(run("validate", "inventory/prod.py", "--json").json["problems"])
    assert told.count("is a name on the Hub, and a service starts offline") == 2


WINDOW = {"cron": "0 2 * * *", "duration": "30m", "timezone": "Europe/Berlin"}
DENIED = [WINDOW, {**WINDOW, "cron": "0 1 * * *", "duration": "5h", "deny": True}]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("window", "said"), [([WINDOW], "is never open for longer than 30m"), (DENIED, "never opens again")]
)
def test_row_22_windows_in_which_no_switch_can_begin(run: Any, window: Any, said: str) -> None:
    declare(window=window, switch_estimate="45m")
    told = run("validate", "inventory/prod.py", "--json")
    assert told.code == 2 and said in str(told.json["problems"])
    shown = run("windows", "inventory/prod.py", "--at", "2026-06-01T00:00:00Z")
    assert f"no switch can ever begin, because the window {said}" in " ".join(shown.out.split())
    assert "next  " not in shown.out and "last start" not in shown.out


def planned(cards: list[dict[str, Any]], **settings: Any) -> Any:
    return plan(
        Host(gpus=cards),  # type: ignore[arg-type]
        ROOT,
        service(**settings),
        checkpoint("32b-awq", QWEN, 18 * 10**9),
    )


def test_last_row_cards_of_one_kind_serve_together() -> None:
    """A 3090 beside a 3090 Ti, with the smaller one's memory."""
    cards = [
        gpu(0, name="NVIDIA GeForce RTX 3090", memory_mib=24576, compute_capability="8.6"),
        gpu(1, name="NVIDIA GeForce RTX 3090 Ti", memory_mib=24564, compute_capability="8.6"),
    ]
    both = planned(cards, gpus=(0, 1), max_model_len=8192)
    assert both.release.argv[both.release.argv.index("--tensor-parallel-size") + 1] == "2"


def test_last_row_a_gb10_has_the_host_s_memory() -> None:
    """The fact reads the host's memory where nvidia-smi prints [N/A] (test_gpu_fact.py)."""
    found = planned([gpu(0, name="NVIDIA GB10", memory_mib=122_500, compute_capability="12.1")])
    assert found.gpu == "NVIDIA GB10"


def test_last_row_a_5090_d_v2_has_24_gb(resolve: Any) -> None:
    assert gpus.find("RTX 5090 D v2").memory_mib == 24463
    assert resolve("QwQ-32B-AWQ", "RTX 5090 D v2", "--max-model-len", "24576")["errors"]
    assert resolve("QwQ-32B-AWQ", "RTX 5090", "--max-model-len", "24576")["errors"] == []


# More of the same kinds, of our own finding: contexts


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
PHI = {
    **LLAMA, "model_type": "phi3", "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096, "rope_scaling": {"type": "longrope", "long_factor": [1.0]},
}  # fmt: skip
COMMAND_R = {**LLAMA, "model_type": "cohere", "model_max_length": 131072}


@pytest.mark.parametrize(
    ("config", "runtime", "asked", "allowed"),
    [
        # vLLM pull request 56446: the factor of YaRN is applied to the original length up to 0.29 only
        ({**QWEN, "rope_scaling": YARN}, "0.29.0", "131072", True),
        ({**QWEN, "rope_scaling": YARN}, "0.30.0", "131072", False),
        ({**QWEN, "rope_scaling": YARN, "max_position_embeddings": 131072}, "0.30.0", "131072", True),
        # config/model.py _get_and_verify_max_len: longrope begins at the original length and allows all
        (PHI, "0.32.0", "131072", True),
        (PHI, "0.32.0", "131073", False),
        # model_arch_config_convertor.py: model_max_length goes before max_position_embeddings
        (COMMAND_R, "0.32.0", "131072", True),
    ],
)
def test_the_longest_context_by_version(
    resolve: Any, config: dict[str, Any], runtime: str, asked: str, allowed: bool
) -> None:
    answer = resolve("new", "H200", "--max-model-len", asked, config=config, runtime=runtime)
    assert (f"{asked} is more than the" not in str(answer["errors"])) is allowed


@pytest.mark.parametrize(
    ("config", "runtime", "length"),
    [
        ({**QWEN, "rope_scaling": YARN}, "0.29.0", 131072),
        ({**QWEN, "rope_scaling": YARN}, "0.30.0", 32768),
        (PHI, "0.32.0", 4096),
        (COMMAND_R, "0.32.0", 131072),
    ],
)
def test_the_context_where_none_is_declared(
    resolve: Any, config: dict[str, Any], runtime: str, length: int
) -> None:
    fit = resolve("new", "H200", config=config, runtime=runtime)["fit"]
    assert fit["max_concurrency"] == pytest.approx(fit["kv_tokens"] / length, rel=0.01)


# Names of keys: older architectures, and those with code of their own


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (
            {"model_type": "gpt_bigcode", "n_embd": 6144, "n_layer": 40, "n_head": 48, "n_inner": 24576,
             "n_positions": 8192, "multi_query": True, "vocab_size": 49152},
            (40, 6144, 1, 8192),
        ),
        (
            {"model_type": "falcon", "hidden_size": 8192, "num_hidden_layers": 60, "vocab_size": 65024,
             "num_attention_heads": 128, "num_kv_heads": 8, "new_decoder_architecture": True,
             "multi_query": True},
            (60, 8192, 8, 2048),
        ),
        (
            {"model_type": "dbrx", "d_model": 6144, "n_layers": 40, "n_heads": 48, "max_seq_len": 32768,
             "vocab_size": 100352, "attn_config": {"kv_n_heads": 8}, "ffn_config": {"moe_num_experts": 16}},
            (40, 6144, 8, 32768),
        ),
        (
            {"model_type": "chatglm", "num_layers": 40, "hidden_size": 4096, "num_attention_heads": 32,
             "multi_query_group_num": 2, "kv_channels": 128, "ffn_hidden_size": 13696,
             "padded_vocab_size": 151552, "seq_length": 131072},
            (40, 4096, 2, 131072),
        ),
        (
            {"model_type": "exaone", "num_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
             "num_key_value_heads": 8, "vocab_size": 102400, "max_position_embeddings": 32768},
            (32, 4096, 8, 32768),
        ),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)  # fmt: skip
def test_other_names_of_keys(config: dict[str, Any], sizes: tuple[int, ...]) -> None:
    """The published configurations; vLLM reads them by transformers' attribute_map or its own classes."""
    found = shapes.from_config("a/b", facts_of(config))
    assert (found.layers, found.hidden, found.kv_heads, found.max_position) == sizes


def test_longcat_has_two_attention_layers_in_each() -> None:
    """LongCat-Flash's config.json has `num_layers` 28; models/longcat_flash.py builds self_attn.0 and .1."""
    config = {"model_type": "longcat_flash", "num_layers": 28, "ffn_hidden_size": 12288}
    found = shapes.from_config("a/b", config)
    assert (found.layers, found.attention_layers, found.latent_kv) == (56, 56, 576)


# Values of flags, by vLLM 0.32's own parser (catalog/flag_types.json)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("dtype=bf16", "must be one of auto, bfloat16, float, float16, float32, half, not 'bf16'"),
        ("kv-cache-dtype=fp16", "must be one of auto, bfloat16, float16, fp8,"),
        ("limit-mm-per-prompt=image=2", "must be a map or a list, or the JSON text of one, not 'image=2'"),
        ("enable-lora=1", "must be true or false, not 1"),
        ("max-loras=many", "must be a whole number, not 'many'"),
        ("max-loras=true", "must be a whole number, not True"),
        ("scheduling-policy=fair", "must be one of fcfs, priority, not 'fair'"),
        ("kv-transfer-config=[1]", "must be a map or the JSON text of one, not [1]"),
        ("mm-processor-cache-gb=much", "must be a number, not 'much'"),
    ],
)
def test_values_that_the_parser_refuses(run: Any, flag: str, said: str) -> None:
    asked = ("--model", "Qwen/Qwen3-14B-AWQ", "--gpu", "L40S", "--runtime", "0.32.0", "--json")
    answer = run("resolve", *asked, "--max-model-len", "8192", "--flag", flag)
    assert answer.code == 2 and said in str(answer.json["errors"])


@pytest.mark.thorough
@pytest.mark.parametrize(
    "flag",
    [
        *("dtype=HALF", "dtype=bfloat16", 'limit-mm-per-prompt={"image": 2}', "max-loras=2", "seed=-1"),
        *("max-log-len=10", "mm-processor-cache-gb=0.5", "kv-transfer-config={}", "enable-lora=true"),
        *("long-prefill-token-threshold=2048", "max-num-queued-tokens=8k", "numa-bind-nodes=[0, 1]"),
    ],
)
def test_values_that_the_parser_takes(run: Any, flag: str) -> None:
    asked = ("--model", "Qwen/Qwen3-14B-AWQ", "--gpu", "L40S", "--runtime", "0.32.0", "--json")
    answer = run("resolve", *asked, "--max-model-len", "8192", "--flag", flag)
    assert (answer.code, answer.json["errors"]) == (0, [])


def test_words_are_known_of_the_scanned_version_alone(run: Any) -> None:
    asked = ("--model", "Qwen/Qwen3-14B-AWQ", "--gpu", "L40S", "--max-model-len", "8192", "--json")
    for runtime, code in (("0.32.0", 2), ("0.31.0", 0), ("0.33.0", 0)):
        answer = run("resolve", *asked, "--runtime", runtime, "--flag", "scheduling-policy=fair")
        assert answer.code == code


# Quantizations


def packed(form: str, weights: dict[str, Any], inputs: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    method = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    return {**LLAMA, "quantization_config": {**method, **more}}


def quantized(**method: Any) -> dict[str, Any]:
    return {**LLAMA, "quantization_config": method}


UNKNOWN = "whose kernels vLLM names in lines that aren't known here"


@pytest.mark.parametrize(
    ("config", "card", "runtime", "said"),
    [
        # compressed_tensors.py _get_scheme_from_parts, 0.32.0: W4A8 and W8A16 are schemes of their own
        (packed("pack-quantized", W4, {**TOKENS, "type": "int"}), "H100", "0.32.0", UNKNOWN),
        (packed("int-quantized", W4, {**TOKENS, "type": "int"}), "H100", "0.32.0", UNKNOWN),
        (packed("float-quantized", FP8, None), "H100", "0.32.0", UNKNOWN),
        (packed("float-quantized", FP8, TOKENS), "A40", "0.32.0", "or a card from Ada on"),
        (packed("nvfp4-pack-quantized", W4, None), "B200", "0.32.0", UNKNOWN),
        (packed("mixed-precision", W4, None), "H100", "0.32.0", UNKNOWN),
        (quantized(quant_method="fp8", weight_block_size=[128, 128]), "H100", "0.18.0", "runtime 0.20"),
        (quantized(quant_method="fp8"), "H100", "0.14.1", "use runtime 0.15"),
        (quantized(quant_method="auto-round", bits=8, data_type="mx_fp"), "H100", "0.32.0", UNKNOWN),
        (quantized(quant_method="gptq", bits=4, group_size=128, sym=False), "L40S", "0.32.0", "sym: false"),
        (quantized(quant_method="gptq", bits=3, group_size=128, sym=True), "L40S", "0.32.0", "of 3 bits"),
        (quantized(**{**shapes.AWQ, "group_size": 16}), "L40S", "0.32.0", "in groups of 16"),
        (quantized(**{**shapes.AWQ, "zero_point": False}), "L40S", "0.32.0", "without zero points"),
    ],
)
def test_quantizations_that_the_gate_could_never_pass(
    resolve: Any, config: dict[str, Any], card: str, runtime: str, said: str
) -> None:
    assert said in str(resolve("new", card, config=config, runtime=runtime)["errors"])


@pytest.mark.parametrize(
    ("config", "card", "runtime", "kernel"),
    [
        (packed("float-quantized", FP8, TOKENS), "L40S", "0.32.0", ["CutlassFP8ScaledMM"]),
        (quantized(quant_method="gptq", bits=8, group_size=-1, sym=True), "L40S", "0.32.0", ["Marlin"]),
        ({**LLAMA, "compression_config": packed("pack-quantized", W4, None)["quantization_config"]}, "L40S",
         "0.32.0", ["Marlin"]),
        (quantized(quant_method="fp8"), "A40", "0.32.0", ["MarlinFP8ScaledMM"]),
    ],
)  # fmt: skip
def test_quantizations_that_pass(
    resolve: Any, config: dict[str, Any], card: str, runtime: str, kernel: list[str]
) -> None:
    answer = resolve("new", card, config=config, runtime=runtime)
    assert (answer["errors"], answer["kernel"]) == ([], kernel)


def test_a_checkpoint_with_scales_of_an_fp8_cache_has_one(resolve: Any) -> None:
    """model_executor/layers/attention/attention.py, 0.20 to 0.32: `auto` means FP8 then."""
    scheme = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    both = {form: packed("float-quantized", FP8, TOKENS, kv_cache_scheme=form and scheme) for form in (0, 1)}
    without, scaled = (resolve("new", "H100", config=both[form])["fit"] for form in (0, 1))
    assert scaled["kv_bytes_per_token"] * 2 == without["kv_bytes_per_token"]
    own = resolve("new", "H100", "--flag", "kv-cache-dtype=bfloat16", config=both[1])["fit"]
    assert own["kv_bytes_per_token"] == without["kv_bytes_per_token"]


# Parts of a config, and what layers keep: found by asking vLLM 0.32.0 about every class of transformers 5.19


def test_latent_attention_of_other_types_keeps_its_heads() -> None:
    """MiniCPM3 (models/minicpm3.py): 40 heads of 64 + 32, V padded to them; 0.95 GB for 1000 tokens."""
    model = shapes.from_config("a/b", {"model_type": "minicpm3"})
    assert model.latent_kv == 0
    load = fit.Load(1, 1000, 0.9, 8192, 64, dtype="bfloat16")
    assert fit.layout(model, load).request_bytes(1000) == 959938560


def test_a_low_rank_without_the_widths_of_its_heads_keeps_the_model_s_heads() -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    model = shapes.from_config("a/b", {"model_type": "qwen3", "kv_lora_rank": 1, **heads})
    assert (model.kv_heads, model.head_dim) == (2, 32)


def test_gemma_3n_has_one_width_for_each_layer() -> None:
    """The published config.json of gemma-3n-E4B-it."""
    config = {"model_type": "gemma3n_text", "num_hidden_layers": 35, "intermediate_size": [16384] * 35}
    assert shapes.from_config("a/b", config).intermediate == 16384


def test_gemma_4_has_wider_heads_in_its_full_layers() -> None:
    """Its class's: 256 in layers with a window and 512 in the others (configuration_gemma4.py)."""
    model = shapes.from_config("a/b", {"model_type": "gemma4_text"})
    load = fit.Load(1, 65536, 0.9, 8192, 64, dtype="bfloat16")
    assert fit.layout(model, load).request_bytes(65536) == 3578920960


@pytest.mark.parametrize("part", ["text_config", "llm_config", "language_config"])
def test_the_text_model_of_a_multimodal_one(part: str) -> None:
    """InternVL has `llm_config`, DeepSeek-VL2 `language_config` (transformers' get_text_config)."""
    model = shapes.from_config("a/b", {"model_type": "x", part: LLAMA, "vision_config": {"depth": 27}})
    assert (model.layers, model.kv_heads, model.vision) == (32, 8, True)


def test_the_text_model_of_an_omni_model() -> None:
    omni = {"thinker_config": {"text_config": LLAMA, "vision_config": {"depth": 32}}}
    model = shapes.from_config("a/b", {"model_type": "qwen2_5_omni", **omni})
    assert (model.layers, model.hidden, model.vision) == (32, 4096, True)


def test_states_alone_are_not_padded() -> None:
    """Granite's class has no layer with attention; as vLLM 0.32.0 says."""
    sizes = {"n_heads": 128, "n_groups": 1, "d_state": 256, "d_head": 64, "d_conv": 4}
    mamba = {f"mamba_{name}": size for name, size in sizes.items()}
    model = shapes.from_config("a/b", {"model_type": "granitemoehybrid", "layer_types": ["mamba"], **mamba})
    load = fit.Load(1, 4096, 0.9, 8192, 64, dtype="bfloat16")
    assert fit.layout(model, load).request_bytes(4096) == 135888896
