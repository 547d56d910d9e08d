"""What a model's config.json says about its size: layers, heads, quantization. Pure; reads no weights.

Hugging Face's keys are kept as they are; multimodal configs keep the text model's under `text_config`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pyinfra_vllm.catalog import table
from pyinfra_vllm.errors import DeclarationError

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
QUANTIZED_NAME = re.compile(r"(.+?)[-_.](?:awq|int4|4bit|w4a16)\b.*", re.IGNORECASE)
LINEAR = "linear_attention"


@dataclass(frozen=True)
class Quantization:
    """How the linear layers are stored. `group_size` is in input channels; -1 for one group per column."""

    method: str
    bits: int = 4
    group_size: int = 128
    zero_point: bool = True


@dataclass(frozen=True)
class Shape:
    """The sizes that decide memory and which splits are possible. Layers with linear attention keep no KV cache."""

    name: str
    model_type: str
    layers: int
    attention_layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
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

    @property
    def hybrid(self) -> bool:
        return self.attention_layers < self.layers


def from_config(name: str, config: Mapping[str, Any], weights_bytes: int | None = None) -> Shape:
    """The shape that a config.json describes.

    + name: the repository, for messages and the catalog's family data
    + config: the parsed config.json
    + weights_bytes: the sum of the checkpoint's tensors, where known

    Raises DeclarationError naming a missing key.
    """
    text: Mapping[str, Any] = config.get("text_config") or config
    heads = _need(text, "num_attention_heads", name)
    hidden = _need(text, "hidden_size", name)
    layers = _need(text, "num_hidden_layers", name)
    return Shape(
        name=name,
        model_type=str(config.get("model_type", "unknown")),
        layers=layers,
        attention_layers=_attention_layers(text, layers),
        hidden=hidden,
        intermediate=text.get("intermediate_size") or 0,
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or hidden // heads,
        vocabulary=_need(text, "vocab_size", name),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        max_position=text.get("max_position_embeddings") or 0,
        dtype=_dtype(config, text),
        quantization=_quantization(config, text),
        experts=text.get("num_experts") or text.get("n_routed_experts") or text.get("num_local_experts") or 0,
        expert_intermediate=text.get("moe_intermediate_size") or 0,
        latent_kv=(text.get("kv_lora_rank") or 0)
        + (text.get("qk_rope_head_dim") or 0 if text.get("kv_lora_rank") else 0),
        linear_keys=(text.get("linear_num_key_heads") or 0) * (text.get("linear_key_head_dim") or 0),
        linear_values=(text.get("linear_num_value_heads") or 0) * (text.get("linear_value_head_dim") or 0),
        linear_heads=text.get("linear_num_value_heads") or 0,
        linear_kernel=text.get("linear_conv_kernel_dim") or 0,
        mtp_layers=text.get("mtp_num_hidden_layers") or text.get("num_nextn_predict_layers") or 0,
        vision="vision_config" in config,
        weights_bytes=weights_bytes,
        family=family_of(name),
    )


def find(name: str) -> Shape | None:
    """The catalog's shape for a repository (or its name without the organisation), or None when it isn't there."""
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
    """What the catalog says of a model's family (parsers, thinking, MTP); empty for an unknown model."""
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
    if not isinstance(config.get(key), int):
        raise DeclarationError(
            f"{name}: its config.json has no `{key}`, so flags and memory can't be worked out"
        )
    return int(config[key])


def _attention_layers(text: Mapping[str, Any], layers: int) -> int:
    kinds = text.get("layer_types")
    if kinds:
        return sum(kind != LINEAR for kind in kinds)
    interval = text.get("full_attention_interval")
    return layers // interval if interval else layers


def _dtype(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    for source in (config, text):
        named = source.get("dtype") or source.get("torch_dtype")
        if named:
            return str(named).removeprefix("torch.")
    return "float32"  # Hugging Face's meaning of a missing dtype


def _quantization(config: Mapping[str, Any], text: Mapping[str, Any]) -> Quantization | None:
    found = config.get("quantization_config") or text.get("quantization_config")
    if not found:
        return None
    method = str(found.get("quant_method", "unknown")).lower()
    weights = _packed_weights(found)
    return Quantization(
        method=method,
        bits=weights.get("bits") or weights.get("w_bit") or weights.get("num_bits") or 4,
        group_size=weights.get("group_size") or weights.get("q_group_size") or -1,
        zero_point=bool(weights.get("zero_point", not weights.get("symmetric", True))),
    )


def _packed_weights(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """compressed-tensors keeps the numbers under config_groups.<any>.weights."""
    for group in (found.get("config_groups") or {}).values():
        if group.get("weights"):
            weights: Mapping[str, Any] = group["weights"]
            return weights
    return found
