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
from pyinfra_vllm.errors import DeclarationError

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
QUANTIZED_NAME = re.compile(r"(.+?)[-_.](?:awq|int4|4bit|w4a16)\b.*", re.IGNORECASE)
LARGEST = kept.LARGEST  # no model is near it, and arithmetic stays within floats


@dataclass(frozen=True)
class Quantization:
    """How the linear layers are stored. `group_size` is in input channels; -1 for one group per column."""

    method: str
    bits: int = 4
    group_size: int = 128
    zero_point: bool = True
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
    max_position: int
    dtype: str = "float16"
    quantization: Quantization | None = None
    experts: int = 0
    expert_intermediate: int = 0
    latent_kv: int = (
        0  # values per token and layer where attention keeps a compressed latent (MLA) instead of K and V
    )
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

    Raises DeclarationError naming a missing key.
    """
    text = _text(config, name)
    heads = _need(text, "num_attention_heads", name)
    hidden = _need(text, "hidden_size", name)
    count = _need(text, "num_hidden_layers", name)

    def number(*keys: str) -> int:
        return _number(text, keys, name)

    latent = number("kv_lora_rank")
    kinds = kept.kinds(number, text, count)
    state = kept.state(number, text, kinds)
    attention_layers = sum(kind in kept.ATTENTION for kind in kinds)
    latent_kv = latent + (number("qk_rope_head_dim") if latent else 0)
    kv_heads = number("num_key_value_heads") or kept.most_kv_heads(number, text) or heads
    head_dim = number("head_dim") or hidden // heads
    return Shape(
        name=name,
        model_type=str(config.get("model_type", "unknown")),
        layers=count,
        attention_layers=attention_layers,
        hidden=hidden,
        intermediate=number("intermediate_size") or kept.widest_mlp(text, hidden),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=number("v_head_dim"),
        attention_parameters=_latent_parameters(number, hidden, heads) if latent else 0,
        kv_caches=kept.indexed_caches(number, text, attention_layers, latent_kv)
        if latent
        else kept.caches(number, text, kinds, kv_heads, head_dim),
        state=state,
        uncounted=kept.uncounted(text, kinds, state),
        vocabulary=_need(text, "vocab_size", name),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        max_position=_context(text, number("max_position_embeddings"), name),
        dtype=_dtype(config, text),
        quantization=_quantization(config, text, name),
        experts=number("num_experts", "n_routed_experts", "num_local_experts"),
        expert_intermediate=number("moe_intermediate_size"),
        latent_kv=latent_kv,
        linear_keys=number("linear_num_key_heads") * number("linear_key_head_dim"),
        linear_values=number("linear_num_value_heads") * number("linear_value_head_dim"),
        linear_heads=number("linear_num_value_heads"),
        linear_kernel=number("linear_conv_kernel_dim"),
        mtp_layers=number("mtp_num_hidden_layers", "num_nextn_predict_layers"),
        vision="vision_config" in config,
        weights_bytes=weights_bytes,
        family=family_of(name),
    )


@lru_cache(maxsize=256)
def find(name: str) -> Shape | None:
    """The catalog's shape for a repository (or its name without the organisation), or None when it isn't
    there.
    """
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
    text = config.get("text_config") or config
    if not isinstance(text, Mapping):
        raise DeclarationError(f"{name}: `text_config` in its config.json is no map")
    kind = str(text.get("model_type"))
    row = defaults.get(kind, {})
    if "text" in row:  # the class of a multimodal model: its text model's class
        row = defaults.get(str(row["text"]), {})
    elif not row:
        row = defaults.get(str(defaults.get(str(config.get("model_type")), {}).get("text")), {})
    return {**row, **text}


def _latent_parameters(number: Callable[..., int], hidden: int, heads: int) -> int:
    """Parameters of one layer of multi-head latent attention (models/deepseek_v2.py)."""
    queries, latent, rope = number("q_lora_rank"), number("kv_lora_rank"), number("qk_rope_head_dim")
    nope, values = number("qk_nope_head_dim"), number("v_head_dim")
    to_queries = queries or hidden
    return (
        hidden * queries
        + to_queries * heads * (nope + rope)
        + hidden * (latent + rope)
        + latent * heads * (nope + values)
        + heads * values * hidden
    )


# Types of rope scaling whose factor is in max_position_embeddings already (config/model.py
# _get_and_verify_max_len, 0.32.0); gemma3 is one, whatever the type.
SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


def _context(text: Mapping[str, Any], positions: int, name: str) -> int:
    """The context that vLLM derives: the positions, times the factor of a rope scaling that isn't in them."""
    scaling = text.get("rope_scaling") or text.get("rope_parameters")
    if not isinstance(scaling, Mapping) or "gemma3" in str(text.get("model_type")):
        return positions
    rows = [row for row in scaling.values() if isinstance(row, Mapping)] or [scaling]
    factor = 1.0
    for row in rows:
        kind = row.get("rope_type", row.get("type", "default"))
        given = row.get("factor")
        if kind in SCALED_ALREADY or isinstance(given, bool) or not isinstance(given, int | float):
            continue
        if not 0 < given <= LARGEST:
            raise DeclarationError(f"{name}: `factor` of the rope scaling in its config.json is {given}")
        factor = float(given)
    original = text.get("original_max_position_embeddings") if _longrope(rows) else None
    return int(original) if isinstance(original, int) and original > 0 else int(positions * factor)


def _longrope(rows: Iterable[Mapping[str, Any]]) -> bool:
    return any(row.get("rope_type", row.get("type")) == "longrope" for row in rows)


def _dtype(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    for source in (config, text):
        named = source.get("dtype") or source.get("torch_dtype")
        if named:
            return str(named).removeprefix("torch.")
    return "float32"  # Hugging Face's meaning of a missing dtype


def _quantization(config: Mapping[str, Any], text: Mapping[str, Any], name: str) -> Quantization | None:
    found = config.get("quantization_config") or text.get("quantization_config")
    if not found:
        return None
    if not isinstance(found, Mapping):
        raise DeclarationError(f"{name}: `quantization_config` in its config.json is no map")
    weights = _packed_weights(found)
    group_size = weights.get("group_size", weights.get("q_group_size"))
    method = str(found.get("quant_method", "unknown")).lower()
    kernels = _kernels_of(method, found, weights)
    usual = 8 if kernels in ("fp8", "fp8_block", "int8") else 4
    return Quantization(
        method=method,
        kernels=kernels,
        bits=_number(weights, ("bits", "w_bit", "num_bits"), name) or usual,
        group_size=-1 if group_size == -1 else _number(weights, ("group_size", "q_group_size"), name) or -1,
        zero_point=bool(weights.get("zero_point", not weights.get("symmetric", True))),
    )


def _kernels_of(method: str, found: Mapping[str, Any], weights: Mapping[str, Any]) -> str | None:
    """Which kernels of vLLM take such weights: those for integers of few bits and 16-bit activations (wna16),
    for FP8 by tensor or channel (fp8) or by block (fp8_block), for 8-bit integers on both sides (int8).

    Others (MXFP4, NVFP4, bitsandbytes, ...) have kernels whose lines in the log aren't known here.
    """
    if method in ("awq", "awq_marlin", "auto_awq", "gptq", "gptq_marlin", "auto_gptq"):
        return "wna16"
    if method == "fp8":
        return "fp8_block" if found.get("weight_block_size") else "fp8"
    if method != "compressed-tensors":
        return None
    form = found.get("format", "pack-quantized" if weights.get("num_bits") == 4 else None)
    if form == "pack-quantized":
        return "wna16"
    if form == "float-quantized":
        return "fp8_block" if weights.get("strategy") == "block" else "fp8"
    return "int8" if form == "int-quantized" else None


def _packed_weights(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """compressed-tensors keeps the numbers under config_groups.<any>.weights."""
    groups = found.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and weights:
            return weights
    return found
