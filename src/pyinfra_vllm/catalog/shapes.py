"""A model's size by its config.json: layers, heads, quantization. Pure; reads no weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from pyinfra_vllm.catalog import config_json, quantization, table
from pyinfra_vllm.catalog import layers as kept
from pyinfra_vllm.catalog.contexts import Contexts, derive
from pyinfra_vllm.catalog.quantization import Quantization
from pyinfra_vllm.errors import DeclarationError

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
QUANTIZED_NAME = re.compile(r"(.+?)[-_.](?:awq|int4|4bit|w4a16)\b.*", re.IGNORECASE)
MOST_LAYERS = 10_000
FACTOR = 4  # of an MLP whose width older classes do not say (falcon, gpt2, mpt, bloom)
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
# Classes whose attention has sinks, and keys that say so of others' (model_executor/models gpt_oss.py,
# granite.py, laguna.py and mimo_v2.py, 0.32.0).
SINKS = ("gpt_oss", "openai_privacy_filter")
SINK_KEYS = (
    *("attention_sinks", "swa_attention_sink_enabled"),
    *("add_swa_attention_sink_bias", "add_full_attention_sink_bias"),
)
SINKS_WITH_LAYER_TYPES = ("granite", "granitemoe")
# Types whose attention sees an image's tokens both ways (transformers_utils/model_arch_config_convertor.py
# is_mm_prefix_lm, 0.32.0).
PREFIX_OF_IMAGES = ("bagel", "gemma3", "molmo2", "moondream3", "paligemma")
# Types whose experts are as wide as `intermediate_size` (model_executor/models, 0.32.0).
EXPERTS_AS_MLP = frozenset(
    (
        *("cohere2_moe", "gpt_oss", "granitemoe", "granitemoehybrid", "granitemoeshared", "jamba"),
        *("llama4_text", "minimax_m2", "mixtral", "olmoe", "openai_privacy_filter", "phimoe"),
    )
)
USUAL_EXPERTS = 8  # that a token is sent to, where the config doesn't say
# Layers of multi-token prediction where the config says none, by type or class (config/speculative.py
# hf_config_override and models/qwen3_next_mtp.py, 0.32.0).
MTP_LAYERS = {
    **dict.fromkeys(("qwen3_next", "longcat_flash", "step3p5", "dots3_note", "minimax_m3_vl"), 1),
    **dict.fromkeys(("MiMoV2ForCausalLM", "MiMoV2OmniForCausalLM", "MiMoV2FlashForCausalLM"), 1),
}
MTP_KEYS = ("mtp_num_hidden_layers", "num_nextn_predict_layers")
MTP_KEYS_BY_TYPE = {"minimax_m3_vl": ("num_mtp_modules",)}
VISION_PARTS = ("vision_config", "thinker_config.vision_config")


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
    experts_per_token: int = USUAL_EXPERTS
    dense_layers: int = 0  # of a model with experts: those with one MLP in their place
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
    sinks: bool = False  # attention has sinks
    image_prefix: bool = False  # attention sees an image's tokens both ways

    @property
    def max_position(self) -> int:
        """The longest context that may be declared, by the newest vLLM."""
        return self.contexts.newer.longest

    @property
    def hybrid(self) -> bool:
        return self.state is not None

    @property
    def head_sizes(self) -> set[int]:
        """Channels of the heads of attention; they differ where layers keep different things (gemma4)."""
        return {cache.values // 2 for cache in self.kv_caches} or {self.head_dim}

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
    text = config_json.text_model(config, name)
    heads = config_json.need(text, "num_attention_heads", name)
    hidden = config_json.need(text, "hidden_size", name)
    count = config_json.need(text, "num_hidden_layers", name)
    _refuse_the_impossible(name, heads, hidden, count)

    def number(*keys: str) -> int:
        return config_json.whole_number(text, keys, name)

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
        vocabulary=config_json.need(text, "vocab_size", name),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        contexts=derive(text, name),
        dtype=_dtype(config, text),
        quantization=quantization.read(config, text, name),
        experts=kept.most_of_blocks(text, "n_routed_experts") or number(*config_json.EXPERT_COUNTS),
        expert_intermediate=kept.most_of_blocks(text, "moe_intermediate_size")
        or number("moe_intermediate_size", *_as_mlp(text)),
        experts_per_token=number("num_experts_per_tok", "experts_per_token") or USUAL_EXPERTS,
        dense_layers=_dense_layers(number, text, count),
        latent_kv=latent_kv,
        linear_keys=number("linear_num_key_heads") * number("linear_key_head_dim"),
        linear_values=number("linear_num_value_heads") * number("linear_value_head_dim"),
        linear_heads=number("linear_num_value_heads"),
        linear_kernel=number("linear_conv_kernel_dim"),
        mtp_layers=_mtp_layers(number, config, text),
        vision=any(config_json.at(config, key) is not None for key in VISION_PARTS),
        weights_bytes=weights_bytes,
        family=family_of(name),
        architecture=architecture_of(config),
        sinks=_sinks(text),
        image_prefix=_image_prefix(config, text),
    )


def _sinks(text: Mapping[str, Any]) -> bool:
    kind = text.get("model_type")
    by_layers = kind in SINKS_WITH_LAYER_TYPES and bool(text.get("layer_types"))
    return (
        kind in SINKS
        or any(text.get(key) for key in SINK_KEYS)
        or (by_layers and text.get("attention_sinks") is not False)
    )


def _image_prefix(config: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    kind = str(config.get("model_type"))
    if kind.startswith("gemma4"):
        return text.get("use_bidirectional_attention") == "vision"
    return bool(config.get("is_mm_prefix_lm", kind in PREFIX_OF_IMAGES))


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
    own = kept.widest_of_layers(text, count) or number("intermediate_size_mlp", "intermediate_size")
    return own or kept.widest_mlp(text, hidden) or FACTOR * hidden


def _as_mlp(text: Mapping[str, Any]) -> tuple[str, ...]:
    """The key of the experts' width in classes that have none for it alone."""
    return ("intermediate_size",) if str(text.get("model_type")) in EXPERTS_AS_MLP else ()


def _dense_layers(number: Callable[..., int], text: Mapping[str, Any], count: int) -> int:
    """Layers without experts between those that have some (models/llama4.py, models/jamba.py)."""
    if text.get("model_type") == "jamba":
        return count - count // (number("expert_layer_period") or 2)
    return count - count // (number("interleave_moe_layer_step") or 1)


def _mtp_layers(number: Callable[..., int], config: Mapping[str, Any], text: Mapping[str, Any]) -> int:
    keys = MTP_KEYS_BY_TYPE.get(str(config.get("model_type")), MTP_KEYS)
    if any(text.get(key) is not None for key in keys):
        return number(*keys)
    names = (text.get("model_type"), config.get("model_type"), architecture_of(config))
    return next((MTP_LAYERS[name] for name in map(str, names) if name in MTP_LAYERS), 0)


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
