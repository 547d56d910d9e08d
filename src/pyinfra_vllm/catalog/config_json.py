"""Reads the keys of a model's config.json: under whatever name they are, with the defaults of its class.

Hugging Face's keys are kept as they are; multimodal configs keep the text model's under `text_config`. A key
that a config leaves out has the value of its configuration class (class_defaults.json).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pyinfra_vllm.catalog import layers, table
from pyinfra_vllm.errors import DeclarationError

LARGEST = layers.LARGEST  # no model is near it, and arithmetic stays within floats
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
EXPERT_COUNTS = ("num_experts", "n_routed_experts", "num_local_experts")  # of which a config.json has one
OF_EXPERTS = ("num_experts", "moe_intermediate_size")  # a list in Ernie 4.5 VL: for text, and for images
# Where a multimodal config.json has its text model's part; the keys of the newer ones first.
TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config.text_config")
ONE_KV_HEAD = "multi_query"  # one KV head, unless Falcon's newer decoder says how many


def text_model(config: Mapping[str, Any], name: str) -> dict[str, Any]:
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
    found = _renamed(text)
    if any(found.get(key) is not None for key in EXPERT_COUNTS):
        row = {key: value for key, value in row.items() if key not in EXPERT_COUNTS}
    return {**row, **found}


def _text_part(config: Mapping[str, Any]) -> Any:
    return next((part for key in TEXT_PARTS if (part := at(config, key))), None)


def is_part(config: Mapping[str, Any]) -> bool:
    """Whether the text model is a part of this config.json, beside towers."""
    return _text_part(config) is not None


def _renamed(text: Mapping[str, Any]) -> dict[str, Any]:
    """A text model's config.json with its keys under the names of most."""
    found = dict(text)
    for key, others in OTHER_NAMES.items():
        if found.get(key) is None:
            values = (at(text, other) for other in others)
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


def at(text: Mapping[str, Any], name: str) -> Any:
    first, _, rest = name.partition(".")
    value = text.get(first)
    if not rest:
        return value
    return value.get(rest) if isinstance(value, Mapping) else None


def need(config: Mapping[str, Any], key: str, name: str) -> int:
    value = whole_number(config, (key,), name)
    if not value:
        raise DeclarationError(
            f"{name}: its config.json has no `{key}`, so flags and memory can't be worked out"
        )
    return value


def whole_number(config: Mapping[str, Any], keys: Iterable[str], name: str) -> int:
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
