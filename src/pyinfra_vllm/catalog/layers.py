"""Which layers of a model keep something for each request, and how much: KV cache for every token, for the
last ones only, or a state of one size. Pure.

Layers are told apart as vLLM's model classes do (model_executor/models, 0.32.0); how their caches share the
memory is in fit.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

SLIDING, CHUNKED = "sliding_attention", "chunked_attention"
INDEXED = "indexed_attention"  # DeepSeek V3.2: an index chooses the tokens that are looked at
ATTENTION = ("full_attention", "attention", SLIDING, CHUNKED, INDEXED, "hybrid")
STATES = ("linear_attention", "mamba", "conv", "hybrid")
NOTHING = ("mlp", "moe", "no_op")  # layers of their own in Nemotron-H; without attention in Nemotron-NAS
COMPRESSED = "compressed_attention"  # DeepSeek V4 (compress_ratios)
NEMOTRON = {"M": "mamba", "*": "full_attention", "-": "mlp", "E": "moe"}
MLP_STEP, MOST_FACTOR = 256, 64  # Nemotron-NAS: channels are multiples; factors are 0.25 to 5.25
LARGEST = 2**31 - 1  # of any number in a config.json
WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}

Number = Callable[..., int]


@dataclass(frozen=True)
class Cached:
    """Attention layers that keep the same for a token: `values` of K and V for each KV head.

    `window`: a sliding window keeps only so many tokens. `chunk`: the same for chunked attention. 0: all.
    `index_bytes`: for each token beside the values, whatever the cache's type is. `head_bytes`: of a head's
    values of one token, where the cache's type alone doesn't say it.
    """

    layers: int
    kv_heads: int
    values: int
    window: int = 0
    chunk: int = 0
    index_bytes: int = 0
    head_bytes: float = 0


@dataclass(frozen=True)
class State:
    """Layers that keep a state of one size for each request (Mamba, gated delta nets, short convolutions).

    + channels, kernel: of the convolution, which keeps its last `kernel` - 1 inputs
    + values, width: of the recurrent state; bytes of one, 0 for the type that the model is served in
    """

    layers: int
    channels: int
    kernel: int
    values: int
    width: int = 0


def kinds(number: Number, text: Mapping[str, Any], count: int) -> list[str]:
    """The kind of each layer that is there, in order.

    + number: reads a whole number of the config by its key; 0 for none
    + text: the text model's config.json with its class's defaults
    """
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str) and set(pattern) <= set(NEMOTRON):
        return [NEMOTRON[letter] for letter in pattern][:count]
    given = _given(number, text, count)
    shared = number("num_kv_shared_layers")
    if 0 < shared < count:  # the last layers read another one's cache (gemma3n)
        given = given[: count - shared]
    if text.get("use_sliding_window") is False or not number("sliding_window"):
        return ["full_attention" if kind == SLIDING else kind for kind in given]
    return given


def _given(number: Number, text: Mapping[str, Any], count: int) -> list[str]:
    """The kinds as the config has them; a pattern of its own goes before its class's `layer_types`."""
    blocks = _heads_of_blocks(number, text)
    if blocks:
        return ["full_attention" if heads else "no_op" for heads in blocks][:count]
    delta = _delta_attention(text).get("kda_layers")
    if _is_list(delta):  # kimi_linear; counted from 1
        return ["linear_attention" if index + 1 in delta else "full_attention" for index in range(count)]
    period, offset = number("attn_layer_period"), number("attn_layer_offset")
    if period:  # jamba
        return ["full_attention" if index % period == offset else "mamba" for index in range(count)]
    listed = text.get("layer_types")
    if _is_list(listed) and listed and all(isinstance(kind, str) for kind in listed):
        return [listed[index % len(listed)] for index in range(count)]
    interval = number("full_attention_interval")
    if interval:
        return _every(interval, "full_attention", "linear_attention", count)
    if text.get("model_type") == "falcon_h1":  # attention and Mamba side by side in each layer
        return ["hybrid"] * count
    full = text.get("full_attn_idxs")
    if _is_list(full):  # lfm2
        return ["full_attention" if index in full else "conv" for index in range(count)]
    return [SLIDING if number("sliding_window") else "full_attention"] * count


def _every(interval: int, one: str, others: str, count: int) -> list[str]:
    return [one if (index + 1) % interval == 0 else others for index in range(count)]


def _delta_attention(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config about Kimi's delta attention; {} where there is none."""
    found = text.get("linear_attn_config")
    return found if isinstance(found, Mapping) else {}


def _heads_of_blocks(number: Number, text: Mapping[str, Any]) -> list[int]:
    """KV heads of each layer of a model whose layers were searched for (models/nemotron_nas.py); 0 for one
    without attention; [] for any other model.
    """
    blocks = text.get("block_configs")
    if not _is_list(blocks):
        return []
    parts = [block.get("attention") if isinstance(block, Mapping) else None for block in blocks]
    if not any(isinstance(part, Mapping) for part in parts):
        return []
    return [_kv_heads(number("num_attention_heads"), part) for part in parts]


def _kv_heads(heads: int, attention: Any) -> int:
    if not isinstance(attention, Mapping) or attention.get("no_op"):
        return 0
    group = _whole(attention.get("n_heads_in_group"))
    return heads // group if group else 0


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _whole(value: Any) -> int:
    """A number above 0 of a nested map that nobody has checked; 0 for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST:
        return value
    return 0


def most_kv_heads(number: Number, text: Mapping[str, Any]) -> int:
    """KV heads of the layer of Nemotron-NAS that has most; 0 for any other model."""
    return max(_heads_of_blocks(number, text), default=0)


def most_of_blocks(text: Mapping[str, Any], key: str) -> int:
    """The largest number under this key of the blocks with experts of Nemotron-H Puzzle
    (model_arch_config_convertor.py get_num_experts_from_block_configs); 0 for any other model.
    """
    blocks = text.get("block_configs")
    rows = [block for block in blocks if isinstance(block, Mapping)] if _is_list(blocks) else []
    return max((_whole(row.get(key)) for row in rows if row.get("block_type") == "moe"), default=0)


def widest_of_layers(text: Mapping[str, Any], count: int) -> int:
    """Channels of the widest MLP where the config has one number for each layer (gemma3n); 0 elsewhere."""
    given = text.get("intermediate_size")
    if _is_list(given) and len(given) == count and all(_whole(each) for each in given):
        return max(map(_whole, given))
    return 0


def widest_mlp(text: Mapping[str, Any], hidden: int) -> int:
    """Channels of the widest MLP of Nemotron-NAS (_ffn_mult_to_intermediate_size); 0 for other models."""
    blocks = text.get("block_configs")
    parts = [block.get("ffn") for block in blocks if isinstance(block, Mapping)] if _is_list(blocks) else []
    return max((_mlp(part, hidden) for part in parts if isinstance(part, Mapping)), default=0)


def _mlp(part: Mapping[str, Any], hidden: int) -> int:
    factor = part.get("ffn_mult")
    if isinstance(factor, int | float) and 0 < factor < MOST_FACTOR:
        return -(-int(2 * factor * hidden / 3) // MLP_STEP) * MLP_STEP
    return _whole(part.get("intermediate_size"))


def caches(
    number: Number, text: Mapping[str, Any], kinds: Sequence[str], kv_heads: int, head_dim: int
) -> tuple[Cached, ...]:
    """The attention layers by what they keep; () where all keep every token and the same for it."""
    by_heads = Counter(heads for heads in _heads_of_blocks(number, text) if heads)
    if len(by_heads) > 1:
        return tuple(Cached(layers, heads, 2 * head_dim) for heads, layers in by_heads.items())
    full = sum(kind in ("full_attention", "attention", "hybrid") for kind in kinds)
    window, chunk = number("sliding_window"), number("attention_chunk_size")
    sliding = kinds.count(SLIDING)
    chunked = kinds.count(CHUNKED) if chunk else 0
    full += kinds.count(CHUNKED) - chunked
    wide, few = number("global_head_dim"), number("num_global_key_value_heads")
    if not (sliding or chunked or wide):
        return ()
    values = 2 * head_dim
    whole = Cached(full, few or kv_heads, 2 * wide or values)
    bounded = (Cached(sliding, kv_heads, values, window), Cached(chunked, kv_heads, values, chunk=chunk))
    return tuple(each for each in (whole, *bounded) if each.layers)


def indexed_caches(number: Number, text: Mapping[str, Any], layers: int, latent: int) -> tuple[Cached, ...]:
    """The layers of latent attention with an index (models/deepseek_v2.py Indexer: a key of 8 bits with one
    32-bit scale for each 128 values); () for a model without one.
    """
    width = number("index_head_dim") if number("index_topk") else 0
    if not width:
        return ()
    own = sum(_has_index(number, text, layer) for layer in range(layers))
    rows = (Cached(own, 1, latent, index_bytes=width + width // 128 * 4), Cached(layers - own, 1, latent))
    return tuple(row for row in rows if row.layers)


def _has_index(number: Number, text: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer has an index of its own, or reads that of one before it."""
    pattern = text.get("index_topk_pattern")
    if isinstance(pattern, str | list | tuple):
        return layer >= len(pattern) or bool(pattern[layer] != "S")
    offset = text.get("index_skip_topk_offset")
    past = max(layer - (offset if isinstance(offset, int) else 2) + 1, 0)
    return past % (number("index_topk_freq") or 1) == 0


def state(number: Number, text: Mapping[str, Any], kinds: Sequence[str]) -> State | None:
    """The layers with a state (model_executor/layers/mamba/mamba_utils.py MambaStateShapeCalculator)."""
    count = sum(kind in STATES for kind in kinds)
    if "conv" in kinds:  # lfm2: short convolutions, which keep their last inputs and nothing else
        return State(count, number("conv_dim", "hidden_size"), number("conv_L_cache") or 3, 0)
    delta = _delta_attention(text)
    head = _whole(delta.get("head_dim"))
    inner = _whole(delta.get("num_heads")) * head
    if count and inner:  # kimi_linear: a matrix of head x head in 32 bits for each head (kda_state_shape)
        kernel = _whole(delta.get("short_conv_kernel_size"))
        return State(count, 3 * inner, kernel, inner * head, WIDTHS["float32"])
    width = WIDTHS.get(str(text.get("mamba_ssm_dtype") or text.get("mamba_ssm_cache_dtype")), 0)
    keys = number("linear_num_key_heads") * number("linear_key_head_dim")
    heads = number("linear_num_value_heads")
    values = heads * number("linear_value_head_dim")
    if count and keys and values:  # gated delta net: a matrix of keys x values for each value head
        kernel = number("linear_conv_kernel_dim")
        return State(count, 2 * keys + values, kernel, values * number("linear_key_head_dim"), width)
    if count and text.get("model_type") == "jamba":  # Mamba 1; its class's defaults
        inner = (number("mamba_expand") or 2) * number("hidden_size")
        values = inner * (number("mamba_d_state") or 16)
        return State(count, inner, number("mamba_d_conv") or 4, values, width)
    heads = number("mamba_num_heads", "mamba_n_heads")
    inner = number("mamba_d_ssm") or heads * number("mamba_head_dim", "mamba_d_head")
    size = number("ssm_state_size", "mamba_d_state")
    if count and inner and size:  # Mamba 2
        channels = inner + 2 * number("n_groups", "mamba_n_groups") * size
        return State(count, channels, number("conv_kernel", "mamba_d_conv"), inner * size, width)
    return None


def uncounted(text: Mapping[str, Any], kinds: Sequence[str], state: State | None) -> tuple[str, ...]:
    """The kinds of layers whose part of the KV cache isn't known here."""
    found = set(kinds) - {*ATTENTION, *NOTHING, *(STATES if state else ())}
    return tuple(sorted(found | ({COMPRESSED} if text.get("compress_ratios") else set())))
