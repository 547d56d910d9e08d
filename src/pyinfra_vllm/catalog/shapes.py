"""Reads a model's size from its config.json: layers, heads, quantization. Pure; reads no weights.

Hugging Face's keys are kept as they are; multimodal configs keep the text model's under `text_config`. A key
that a config leaves out has the value of its configuration class (class_defaults.json).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from pyinfra_vllm.catalog import layers as kept
from pyinfra_vllm.catalog import table
from pyinfra_vllm.catalog.contexts import Contexts, derive
from pyinfra_vllm.errors import DeclarationError

CT = "compressed-tensors"
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
QUANTIZED_NAME = re.compile(r"(.+?)[-_.](?:awq|int4|4bit|w4a16)\b.*", re.IGNORECASE)
LARGEST = kept.LARGEST  # no model is near it, and arithmetic stays within floats
MOST_LAYERS = 10_000
# Other names that older architectures and repositories with code of their own have for a key; `a.b`: b in a.
OTHER_NAMES = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "max_position_embeddings": ("n_positions", "max_seq_len"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_key_value_heads": (
        *("num_kv_heads", "n_head_kv", "multi_query_group_num", "num_attention_groups"),
        "attn_config.kv_n_heads",
    ),
    "head_dim": ("kv_channels", "hidden_size_per_head", "attention_head_dim"),
    "intermediate_size": ("n_inner", "ffn_hidden_size", "ffn_dim"),
    "vocab_size": ("padded_vocab_size",),
    "layer_types": ("layers_block_type",),
    "num_experts": ("moe_num_experts", "ffn_config.moe_num_experts"),
    "moe_intermediate_size": ("expert_ffn_hidden_size", "ffn_config.ffn_hidden_size"),
}
OF_EXPERTS = ("num_experts", "moe_intermediate_size")  # a list in Ernie 4.5 VL: for text, and for images
QUANTIZATION_KEYS = ("quantization_config", "compression_config")  # the second: compressed-tensors' older one
# AutoRound's integers, which vLLM serves as GPTQ's where they are packed like them (quantization/inc, 0.32.0;
# auto_round.py before). Packed like AWQ's they have no line in the log up to 0.18.
AUTO_ROUND, GPTQ_PACKED = ("auto-round", "auto_round", "inc"), "auto_round:auto_gptq"
FP4 = ("nvfp4", "mxfp4")
MIXED = (None, "nvfp4", "wna16", "fp8_block", "fp8", "int8")  # which of several a checkpoint is known by
# By modelopt's `quant_algo`; the mixed one is FP8 and NVFP4, whose lines both name a kernel.
MODELOPT = {"FP8": "fp8", "NVFP4": "nvfp4", "MIXED_PRECISION": "nvfp4"}
FACTOR = 4  # of an MLP whose width older classes do not say (falcon, gpt2, mpt, bloom)
# Where a multimodal config.json has its text model's part; the keys of the newer ones first.
TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config.text_config")
# Types whose latent attention keeps the latent; of any other type vLLM keeps the heads that it makes of it
# (transformers_utils/model_arch_config_convertor.py is_deepseek_mla, 0.32.0).
LATENT = frozenset(
    (
        *("axk1", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4"),
        *("deepseek_v41", "dots3_note", "glm4_moe_lite", "glm5_next", "glm5_next_text", "glm_moe_dsa"),
        *("hy_v4", "kimi_k2", "kimi_linear", "longcat_flash", "pangu_ultra_moe"),
    )
)
# Ends of names of classes that don't generate text (vllm/config/model.py _SUFFIX_TO_DEFAULTS, 0.32.0), and
# the classes that do in spite of theirs (model_executor/models/registry.py).
NOT_GENERATING = (
    *("ForSequenceClassification", "ForTokenClassification", "ForAudioClassification"),
    *("ForImageClassification", "ForVideoClassification", "ClassificationModel", "ForTextEncoding"),
    *("EmbeddingModel", "ForRewardModeling", "RewardModel", "ForMaskedLM", "ForRetrieval", "ForRanking"),
    "Model",
)
GENERATING = (
    *("ChatModel", "LMHeadModel", "LMModel", "ChatGLMModel", "OmniModel", "UltravoxModel", "AudioModel"),
    *("LlamaModel", "MistralModel", "Qwen2Model", "Gemma2Model"),  # served as their ...ForCausalLM
)
VISION_PARTS = ("vision_config", "thinker_config.vision_config")
ONE_KV_HEAD = "multi_query"  # one KV head, unless Falcon's newer decoder says how many


@dataclass(frozen=True)
class Quantization:
    """How the linear layers are stored. `group_size` is in input channels; -1 for one group per column."""

    method: str
    bits: int = 4
    group_size: int = 128
    zero_point: bool = True
    fp8_kv_cache: bool = False  # with scales of the KV cache: vLLM keeps it in FP8
    form: str = ""  # of compressed-tensors, such as nvfp4-pack-quantized
    block: int = 0  # of FP8 with scales by block: the channels that one is wide and high
    kernels: str | None = "wna16"  # which kernels of gpus.yaml take it: see `_kernels_of`; None: unknown ones


@dataclass(frozen=True)
class Shape:
    """The sizes that decide memory and which splits are possible.

    Layers with linear attention keep no KV cache.
    """

    name: str
    model_type: str
    layers: int
    attention_layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int  # of K; that of V is `value_dim` where it differs
    vocabulary: int
    tied: bool
    dtype: str = "float16"
    quantization: Quantization | None = None
    experts: int = 0
    expert_intermediate: int = 0
    latent_kv: int = 0  # values per token and layer of a compressed latent (MLA); 0 where K and V are kept
    linear_keys: int = 0  # key and value channels of one linear-attention layer
    linear_values: int = 0
    linear_heads: int = 0
    linear_kernel: int = 0
    mtp_layers: int = 0
    vision: bool = False
    weights_bytes: int | None = None  # of the checkpoint's tensors, where they were counted
    family: Mapping[str, Any] = field(default_factory=dict)
    value_dim: int = 0
    attention_parameters: int = 0  # of one layer, where queries, keys and values are projected in two steps
    kv_caches: tuple[kept.Cached, ...] = ()  # where not all attention layers keep the same; see `caches`
    state: kept.State | None = None
    uncounted: tuple[str, ...] = ()  # kinds of layers that keep something whose size isn't known here
    contexts: Contexts = field(default_factory=Contexts)
    architecture: str = ""  # the class in `architectures`; "" where none is named

    @property
    def max_position(self) -> int:
        """The longest context that may be declared, by the newest vLLM."""
        return self.contexts.newer.longest

    @property
    def hybrid(self) -> bool:
        return self.state is not None

    @property
    def caches(self) -> tuple[kept.Cached, ...]:
        """The attention layers by the KV cache that they keep."""
        if self.kv_caches:
            return self.kv_caches
        values = self.latent_kv or self.head_dim + (self.value_dim or self.head_dim)
        return (kept.Cached(self.attention_layers, 1 if self.latent_kv else self.kv_heads, values),)


def from_config(name: str, config: Mapping[str, Any], weights_bytes: int | None = None) -> Shape:
    """The shape that a config.json describes.

    + name: the repository, for messages and the catalog's family data
    + config: the parsed config.json
    + weights_bytes: the sum of the checkpoint's tensors, where known

    Raises DeclarationError naming a missing or impossible key.
    """
    text = _text(config, name)
    heads = _need(text, "num_attention_heads", name)
    hidden = _need(text, "hidden_size", name)
    count = _need(text, "num_hidden_layers", name)
    _refuse_the_impossible(name, heads, hidden, count)

    def number(*keys: str) -> int:
        return _number(text, keys, name)

    kinds = kept.kinds(number, text, count)
    state = kept.state(number, text, kinds)
    attention_layers = sum(kind in kept.ATTENTION for kind in kinds)
    latent_kv = _latent_values(number, text)
    kv_heads, head_dim = _key_heads(number, text, heads, hidden, latent_kv)
    return Shape(
        name=name,
        model_type=str(config.get("model_type", "unknown")),
        layers=count,
        attention_layers=attention_layers,
        hidden=hidden,
        intermediate=_intermediate(number, text, count, hidden),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=number("v_head_dim"),
        attention_parameters=_latent_parameters(number, hidden, heads),
        kv_caches=_kv_caches(number, text, kinds, kv_heads, head_dim, latent_kv),
        state=state,
        uncounted=kept.uncounted(text, kinds, state),
        vocabulary=_need(text, "vocab_size", name),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        contexts=derive(text, name),
        dtype=_dtype(config, text),
        quantization=_quantization(config, text, name),
        experts=kept.most_of_blocks(text, "n_routed_experts")
        or number("num_experts", "n_routed_experts", "num_local_experts"),
        expert_intermediate=kept.most_of_blocks(text, "moe_intermediate_size")
        or number("moe_intermediate_size"),
        latent_kv=latent_kv,
        linear_keys=number("linear_num_key_heads") * number("linear_key_head_dim"),
        linear_values=number("linear_num_value_heads") * number("linear_value_head_dim"),
        linear_heads=number("linear_num_value_heads"),
        linear_kernel=number("linear_conv_kernel_dim"),
        mtp_layers=number("mtp_num_hidden_layers", "num_nextn_predict_layers"),
        vision=any(_at(config, key) is not None for key in VISION_PARTS),
        weights_bytes=weights_bytes,
        family=family_of(name),
        architecture=architecture_of(config),
    )


def generates(architecture: str) -> bool:
    """Whether vLLM serves models of this class for generating text, where nothing else is declared."""
    return architecture.endswith(GENERATING) or not architecture.endswith(NOT_GENERATING)


def _latent_values(number: Callable[..., int], text: Mapping[str, Any]) -> int:
    """Values per token and layer of a compressed latent; 0 where attention keeps K and V."""
    latent = number("kv_lora_rank") if str(text.get("model_type")).lower() in LATENT else 0
    return latent + (number("qk_rope_head_dim") if latent else 0)


def _key_heads(
    number: Callable[..., int], text: Mapping[str, Any], heads: int, hidden: int, latent_kv: int
) -> tuple[int, int]:
    """Heads of K that are kept, and the width of each: every head with both of its parts where queries and
    keys are projected in two steps and no latent is kept.
    """
    kv_heads = number("num_key_value_heads") or kept.most_kv_heads(number, text) or heads
    head_dim = number("head_dim") or hidden // heads
    wide = number("qk_nope_head_dim") + number("qk_rope_head_dim")
    return (heads, wide) if number("kv_lora_rank") and wide and not latent_kv else (kv_heads, head_dim)


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class that config.json names first."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def _refuse_the_impossible(name: str, heads: int, hidden: int, layers: int) -> None:
    """Raise DeclarationError for numbers with which layers can't be counted or channels divided."""
    if layers > MOST_LAYERS:
        raise DeclarationError(
            f"{name}: `num_hidden_layers` in its config.json is {layers}, and {MOST_LAYERS} is the most that"
            " is counted"
        )
    if heads > hidden:
        raise DeclarationError(
            f"{name}: `num_attention_heads` in its config.json is {heads}, more than the {hidden} of"
            " `hidden_size`"
        )


def _intermediate(number: Callable[..., int], text: Mapping[str, Any], count: int, hidden: int) -> int:
    """Channels of the widest MLP."""
    own = kept.widest_of_layers(text, count) or number("intermediate_size") or kept.widest_mlp(text, hidden)
    return own or FACTOR * hidden


def _kv_caches(
    number: Callable[..., int],
    text: Mapping[str, Any],
    kinds: list[str],
    kv_heads: int,
    head_dim: int,
    latent_kv: int,
) -> tuple[kept.Cached, ...]:
    """The attention layers by what they keep; () where all keep the same: see `Shape.caches`."""
    attention = sum(kind in kept.ATTENTION for kind in kinds)
    if latent_kv:
        return kept.indexed_caches(number, text, attention, latent_kv)
    if number("kv_lora_rank"):  # V is padded to the width of K (models/minicpm3.py)
        return (kept.Cached(attention, kv_heads, 2 * head_dim),)
    return kept.caches(number, text, kinds, kv_heads, head_dim)


@lru_cache(maxsize=256)
def find(name: str) -> Shape | None:
    """The catalog's shape for a repository (or its name without the organisation); None if unknown."""
    found = _entry(name)
    if not found:
        return None
    entry, quantized = found
    config = dict(entry["config"])
    if quantized:
        config["quantization_config"] = entry.get("quantization_config", AWQ)
        if config["quantization_config"]["quant_method"] == "awq":
            config["torch_dtype"] = "float16"  # what AWQ repositories say
    return replace(from_config(name, config), family=_family(entry))


def names() -> list[str]:
    """Every repository in the catalog, quantized ones included."""
    models: dict[str, Any] = table("models.yaml")["models"]
    return [name for base, entry in models.items() for name in (base, *entry.get("quantized", ()))]


def family_of(name: str) -> Mapping[str, Any]:
    """The catalog's entry of a model's family (parsers, thinking, MTP); empty for an unknown model."""
    found = _entry(name)
    return _family(found[0]) if found else {}


def _family(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"name": entry["family"], **table("models.yaml")["families"][entry["family"]]}


def _entry(name: str) -> tuple[Mapping[str, Any], bool] | None:
    """The catalog's entry for a name, and whether the name is that of 4-bit weights."""
    models: dict[str, Any] = table("models.yaml")["models"]
    wanted = _short(name)
    for base, entry in models.items():
        if wanted in [_short(each) for each in (base, *entry.get("matches", ()))]:
            return entry, False
        if wanted in [_short(each) for each in entry.get("quantized", ())]:
            return entry, True
    without = QUANTIZED_NAME.fullmatch(wanted)
    if without:
        found = _entry(without.group(1))
        return (found[0], True) if found else None
    return None


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1].lower()


def _need(config: Mapping[str, Any], key: str, name: str) -> int:
    value = _number(config, (key,), name)
    if not value:
        raise DeclarationError(
            f"{name}: its config.json has no `{key}`, so flags and memory can't be worked out"
        )
    return value


def _number(config: Mapping[str, Any], keys: Iterable[str], name: str) -> int:
    """The first of these that is there and not 0, else 0."""
    for key in keys:
        value = config.get(key)
        if value is None or value is False:
            continue
        if not isinstance(value, int) or value is True or not 0 <= value <= LARGEST:
            raise DeclarationError(
                f"{name}: `{key}` in its config.json is {str(value)[:60]!r} and must be a whole number, "
                "so flags and memory can't be worked out"
            )
        if value:
            return value
    return 0


def _text(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The text model's part of a config.json, with its class's value for each key that it leaves out."""
    defaults: Mapping[str, Mapping[str, Any]] = table("class_defaults.json")["defaults"]
    text = _text_part(config) or config
    if not isinstance(text, Mapping):
        raise DeclarationError(f"{name}: `text_config` in its config.json is no map")
    kind = str(text.get("model_type"))
    row = defaults.get(kind, {})
    if "text" in row:  # the class of a multimodal model: its text model's class
        row = defaults.get(str(row["text"]), {})
    elif not row:
        row = defaults.get(str(defaults.get(str(config.get("model_type")), {}).get("text")), {})
    return {**row, **_renamed(text)}


def _text_part(config: Mapping[str, Any]) -> Any:
    return next((part for key in TEXT_PARTS if (part := _at(config, key))), None)


def is_part(config: Mapping[str, Any]) -> bool:
    """Whether the text model is a part of this config.json, beside towers."""
    return _text_part(config) is not None


def _renamed(text: Mapping[str, Any]) -> dict[str, Any]:
    """A text model's config.json with its keys under the names of most."""
    found = dict(text)
    for key, others in OTHER_NAMES.items():
        if found.get(key) is None:
            values = (_at(text, other) for other in others)
            value = next((value for value in values if value is not None), None)
            if value is not None:
                found[key] = value
    kinds = text.get("layers_block_type")
    if isinstance(kinds, list) and found.get("num_hidden_layers") is None:
        found["num_hidden_layers"] = len(kinds)  # nemotron_h
    blocks = text.get("num_layers")
    if (
        text.get("model_type") == "longcat_flash"
        and isinstance(blocks, int)
        and "num_hidden_layers" not in text
    ):
        found["num_hidden_layers"] = 2 * blocks  # two attention layers in each (models/longcat_flash.py)
    for key in OF_EXPERTS:
        if isinstance(found.get(key), list) and found[key]:
            found[key] = found[key][0]
    if text.get(ONE_KV_HEAD) is True and not text.get("new_decoder_architecture"):
        found["num_key_value_heads"] = 1
    return found


def _at(text: Mapping[str, Any], name: str) -> Any:
    first, _, rest = name.partition(".")
    value = text.get(first)
    if not rest:
        return value
    return value.get(rest) if isinstance(value, Mapping) else None


def _latent_parameters(number: Callable[..., int], hidden: int, heads: int) -> int:
    """Parameters of one layer of multi-head latent attention (models/deepseek_v2.py); 0 for any other."""
    queries, latent, rope = number("q_lora_rank"), number("kv_lora_rank"), number("qk_rope_head_dim")
    if not latent:
        return 0
    nope, values = number("qk_nope_head_dim"), number("v_head_dim")
    to_queries = queries or hidden
    return (
        hidden * queries
        + to_queries * heads * (nope + rope)
        + hidden * (latent + rope)
        + latent * heads * (nope + values)
        + heads * values * hidden
    )


def _dtype(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    for source in (config, text):
        named = source.get("dtype") or source.get("torch_dtype")
        if named:
            return str(named).removeprefix("torch.")
    return "float32"  # Hugging Face's meaning of a missing dtype


def _quantization(config: Mapping[str, Any], text: Mapping[str, Any], name: str) -> Quantization | None:
    places = ((part, key) for part in (config, text) for key in QUANTIZATION_KEYS)
    found = next((part[key] for part, key in places if part.get(key)), None)
    if not found:
        return None
    if not isinstance(found, Mapping):
        raise DeclarationError(f"{name}: `quantization_config` in its config.json is no map")
    weights = _main_group(found).get("weights") or found
    group_size = weights.get("group_size", weights.get("q_group_size"))
    producer = found.get("producer")
    made_by = producer.get("name") if isinstance(producer, Mapping) else None
    method = str(found.get("quant_method") or made_by or "unknown").lower().replace("compressed_tensors", CT)
    kernels = _kernels_of(method, found)
    refused = kernels is None and method != "unknown"  # by name, whatever its numbers are
    usual = 8 if kernels in ("fp8", "fp8_block", "int8") else 4
    padded = group_size == -1 or kernels in FP4  # what tensor parallelism cuts, vLLM fills up
    return Quantization(
        method=method,
        kernels=kernels,
        bits=usual if refused else _number(weights, ("bits", "w_bit", "num_bits"), name) or usual,
        group_size=-1 if padded else _number(weights, ("group_size", "q_group_size"), name) or -1,
        form=str(found.get("format", "")) if method == CT else "",
        block=_block(found.get("weight_block_size") or weights.get("block_structure"))
        if kernels == "fp8_block"
        else 0,
        fp8_kv_cache=_fp8_cache(method, found),
        zero_point=bool(weights.get("zero_point", not weights.get("symmetric", weights.get("sym", True)))),
    )


def _fp8_cache(method: str, found: Mapping[str, Any]) -> bool:
    """Whether vLLM keeps the KV cache in FP8 where nothing is declared (utils/torch_utils.py
    get_kv_cache_quant_algo_string, 0.32.0; compressed-tensors' of whatever type).
    """
    scheme = found.get("kv_cache_scheme")
    if method == CT or not method.startswith("modelopt"):
        return method == CT and isinstance(scheme, Mapping)
    if isinstance(scheme, Mapping):
        return scheme.get("num_bits") == 8
    return str(_of_modelopt(found).get("kv_cache_quant_algo")).upper() == "FP8"


def _of_modelopt(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """What modelopt says; in a file of its own that is a part (hf_quant_config.json)."""
    inner = found.get("quantization")
    return inner if isinstance(inner, Mapping) else found


def _block(sizes: Any) -> int:
    """The larger side of a block such as [128, 128]; 0 for anything else."""
    known = isinstance(sizes, list) and all(isinstance(size, int) and size > 0 for size in sizes)
    return max(sizes, default=0) if known else 0


def _kernels_of(method: str, found: Mapping[str, Any]) -> str | None:
    """Which kernels of vLLM take such weights: those for integers of few bits and 16-bit activations (wna16),
    for FP8 by tensor or channel (fp8) or by block (fp8_block), for 8-bit integers on both sides (int8), for
    FP4 (nvfp4; mxfp4 of experts).

    Others (MXFP8, bitsandbytes, ...) have kernels whose lines in the log aren't known here.
    """
    if method in ("awq", "awq_marlin", "auto_awq", "gptq", "gptq_marlin", "auto_gptq"):
        return "wna16"
    if method == "mxfp4":
        return "mxfp4"
    if method.startswith("modelopt"):
        return MODELOPT.get(str(_of_modelopt(found).get("quant_algo")))
    if method in AUTO_ROUND and found.get("data_type", "int") == "int":
        return "wna16" if found.get("packing_format", GPTQ_PACKED) == GPTQ_PACKED else None
    if method == "fp8":
        return "fp8_block" if found.get("weight_block_size") else "fp8"
    return _kernels_of_group(_main_group(found), found) if method == CT else None


def _main_group(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The group of compressed-tensors' `config_groups` by whose kernels a checkpoint is known: one of mixed
    precision has several, such as FP4 beside FP8. One whose kernels aren't known comes first. {} for none.
    """
    groups = found.get("config_groups")
    rows = groups.values() if isinstance(groups, Mapping) else ()
    told = [
        group for group in rows if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping)
    ]
    kinds = {_kernels_of_group(group, found): group for group in told}
    return next((kinds[kind] for kind in MIXED if kind in kinds), {})


def _kernels_of_group(group: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """The same for one group of llm-compressor's checkpoints, after compressed_tensors.py
    _get_scheme_from_parts, 0.32.0: of weights of 4 bits with activations of 8 (W4A8) and FP8 weights with
    16-bit activations (W8A16) it names no kernel that is known here.
    """
    weights, inputs = group.get("weights") or found, group.get("input_activations")
    form = group.get("format") or found.get(
        "format", "pack-quantized" if weights.get("num_bits") == 4 else None
    )
    if form == "pack-quantized":
        return None if inputs else "wna16"
    if form == "nvfp4-pack-quantized":
        return "nvfp4" if inputs else None
    if weights.get("num_bits", 8) != 8:
        return None
    if form == "float-quantized" and inputs:
        return "fp8_block" if weights.get("strategy") == "block" else "fp8"
    return "int8" if form == "int-quantized" and inputs else None
