"""Which layers of a model keep something for each request, and how much: KV cache for every token, for the
last ones only, or a state of one size. Pure.

Layers are told apart as vLLM's model classes do (model_executor/models, 0.32.0); how their caches share the
memory is in fit.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SLIDING, CHUNKED = "sliding_attention", "chunked_attention"
ATTENTION = ("full_attention", "attention", SLIDING, CHUNKED, "hybrid")
STATES = ("linear_attention", "mamba", "hybrid")
NOTHING = ("mlp", "moe")  # layers of their own in Nemotron-H
NEMOTRON = {"M": "mamba", "*": "full_attention", "-": "mlp", "E": "moe"}
WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}

Number = Callable[..., int]


@dataclass(frozen=True)
class Cached:
    """Attention layers that keep the same for a token: `values` of K and V for each KV head.

    `window`: a sliding window keeps only so many tokens. `chunk`: the same for chunked attention. 0: all.
    """

    layers: int
    kv_heads: int
    values: int
    window: int = 0
    chunk: int = 0


@dataclass(frozen=True)
class State:
    """Layers that keep a state of one size for each request (Mamba 2, gated delta net).

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
    listed = text.get("layer_types")
    if isinstance(listed, list | tuple) and listed and all(isinstance(kind, str) for kind in listed):
        return [listed[index % len(listed)] for index in range(count)]
    interval = number("full_attention_interval")
    if interval:
        return _every(interval, "full_attention", "linear_attention", count)
    if text.get("model_type") == "falcon_h1":  # attention and Mamba side by side in each layer
        return ["hybrid"] * count
    period, offset = number("attn_layer_period"), number("attn_layer_offset")
    if period:  # jamba
        return ["full_attention" if index % period == offset else "mamba" for index in range(count)]
    return [SLIDING if number("sliding_window") else "full_attention"] * count


def _every(interval: int, one: str, others: str, count: int) -> list[str]:
    return [one if (index + 1) % interval == 0 else others for index in range(count)]


def caches(
    number: Number, text: Mapping[str, Any], kinds: Sequence[str], kv_heads: int, head_dim: int
) -> tuple[Cached, ...]:
    """The attention layers by what they keep; () where all keep every token and the same for it."""
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


def state(number: Number, text: Mapping[str, Any], kinds: Sequence[str]) -> State | None:
    """The layers with a state (model_executor/layers/mamba/mamba_utils.py MambaStateShapeCalculator)."""
    count = sum(kind in STATES for kind in kinds)
    width = WIDTHS.get(str(text.get("mamba_ssm_dtype") or text.get("mamba_ssm_cache_dtype")), 0)
    keys = number("linear_num_key_heads") * number("linear_key_head_dim")
    heads = number("linear_num_value_heads")
    values = heads * number("linear_value_head_dim")
    if count and keys and values:  # gated delta net: a matrix of keys x values for each value head
        kernel = number("linear_conv_kernel_dim")
        return State(count, 2 * keys + values, kernel, values * number("linear_key_head_dim"), width)
    heads = number("mamba_num_heads", "mamba_n_heads")
    inner = number("mamba_d_ssm") or heads * number("mamba_head_dim", "mamba_d_head")
    size = number("ssm_state_size", "mamba_d_state")
    if count and inner and size:  # Mamba 2
        channels = inner + 2 * number("n_groups", "mamba_n_groups") * size
        return State(count, channels, number("conv_kernel", "mamba_d_conv"), inner * size, width)
    return None


def uncounted(text: Mapping[str, Any], kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds of layers of which it isn't known here what they keep."""
    known = {*ATTENTION, *NOTHING}
    sizes = ("linear_num_value_heads", "mamba_num_heads", "mamba_n_heads")
    if any(text.get(key) for key in sizes):
        known |= set(STATES)
    return tuple(sorted(set(kinds) - known))
