"""How vLLM lays out the KV cache of layers that keep different things: groups of layers that share blocks
of one size. Arithmetic only, after v1/core/kv_cache_utils.py and v1/kv_cache_interface.py, 0.32.0.

All sizes are for one GPU of a tensor-parallel group, and of the fullest pipeline stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyinfra_vllm.catalog.layers import Cached

BLOCK = 16  # tokens of a KV cache block on CUDA (config/cache.py); the sizes below are exact multiples of it
# A group has as many layers as the rarest kind, or as the most frequent one where that is not much more.
MUCH_MORE = 1.5
LATENT_BLOCK = 128  # beside layers with a state, blocks of latent attention are multiples of it


@dataclass(frozen=True)
class Settings:
    """The settings that decide the layout beside the layers.

    + width, scales_bytes: bytes of one value in the cache, and of what stands beside those of a head
    + in_flight: tokens that are scheduled and not yet done
    + states: that one request holds in each layer with a state
    + alignment: tokens that a block is a multiple of beside layers with a state
    """

    width: float
    tensor_parallel_size: int
    pipeline_parallel_size: int
    in_flight: int
    states: int
    alignment: int = BLOCK
    scales_bytes: float = 0


@dataclass(frozen=True)
class Group:
    """Layers that share blocks: of `tokens` tokens each, or of one state where `states` says how many."""

    layers: int
    tokens: int
    page_bytes: float
    window: int = 0
    chunk: int = 0
    states: int = 0

    def blocks(self, length: int, in_flight: int) -> int:
        """Blocks that a request of `length` tokens holds at most."""
        if self.states:
            return self.states
        if self.window:  # one more: a window may begin within a block
            return _blocks(min(self.window - 1 + in_flight, length), self.tokens) + 1
        if self.chunk:
            return _blocks(min(self.chunk + in_flight, length), self.tokens)
        return _blocks(length, self.tokens)


@dataclass(frozen=True)
class Layout:
    """The groups of a model, and the bytes of one block in all layers of a group."""

    groups: tuple[Group, ...]
    block_bytes: int
    in_flight: int

    @property
    def plain(self) -> bool:
        """Whether a request is its tokens and nothing else."""
        return not any(group.window or group.chunk or group.states for group in self.groups)

    def blocks(self, length: int) -> int:
        return sum(group.blocks(length, self.in_flight) for group in self.groups)

    def request_bytes(self, length: int) -> int:
        """Bytes that one request of `length` tokens takes."""
        return self.blocks(length) * self.block_bytes


def caches(found: Sequence[Cached], draft_layers: int, bounded: bool) -> tuple[Cached, ...]:
    """The layers with those that draft added; not `bounded`: all that stand beside a full one are full."""
    kept = list(found)
    if draft_layers:
        kept[0] = replace(kept[0], layers=kept[0].layers + draft_layers)
    if not bounded and any(not (cache.window or cache.chunk) for cache in kept):
        kept = [replace(cache, window=0, chunk=0) for cache in kept]
    return tuple(kept)


def packed(found: Sequence[Cached], bits: tuple[int, int], layers: int, width: int) -> tuple[Cached, ...]:
    """The layers as TurboQuant keeps them: K and V of so many `bits`, and without packing the first and the
    last two layers (model_executor/layers/quantization/turboquant/config.py, 0.32.0).

    + layers: of a model without states; 0 for one with them, which has all packed
    + width: bytes of a value that isn't packed
    """
    widest = max(found, key=lambda cache: cache.kv_heads * cache.values)
    edges = min(2 * min(2, layers // 2), widest.layers)
    rows = [replace(cache, head_bytes=_slot_bytes(cache.values // 2, *bits)) for cache in found]
    rows[found.index(widest)] = replace(rows[found.index(widest)], layers=widest.layers - edges)
    rows.append(replace(widest, layers=edges, head_bytes=widest.values * width))
    return tuple(row for row in rows if row.layers) or tuple(rows[:1])


def _slot_bytes(channels: int, key_bits: int, value_bits: int) -> int:
    """K and V of one head: K of 8 bits, or fewer with its norm of 2 bytes; V with scale and zero point."""
    keys = -(-channels * key_bits // 8) + (0 if key_bits == 8 else 2)
    slot = keys + -(-channels * value_bits // 8) + 4
    return slot + slot % 2


def heads(cache: Cached, tensor_parallel_size: int) -> int:
    """KV heads on one GPU; a head is never split."""
    return max(1, cache.kv_heads // tensor_parallel_size)


def token_bytes(cache: Cached, tensor_parallel_size: int, width: float, scales_bytes: float = 0) -> float:
    """Bytes of one token in one layer on one GPU; `width`: of one value, `scales_bytes`: beside a head's."""
    of_head = cache.head_bytes or cache.values * width + scales_bytes
    return heads(cache, tensor_parallel_size) * of_head + cache.index_bytes


def layout(found: Sequence[Cached], state_layers: int, state_bytes: int, settings: Settings) -> Layout:
    """The layout of these layers.

    + state_layers, state_bytes: layers with a state, and the bytes of one of their states
    """
    of_token = [
        token_bytes(cache, settings.tensor_parallel_size, settings.width, settings.scales_bytes)
        for cache in found
    ]
    tokens = BLOCK
    if state_layers:  # a block of tokens is at least as large as a state (platforms/interface.py)
        tokens = settings.alignment
        tokens *= max(1, -(-state_bytes // int(tokens * of_token[0])))
    groups = [
        Group(cache.layers, tokens, size * tokens, cache.window, cache.chunk)
        for cache, size in zip(found, of_token, strict=True)
        if cache.layers or not state_layers  # a model may have no layer with attention
    ]
    page_bytes = of_token[0] * tokens
    if state_layers:  # without attention beside them nothing is padded
        page_bytes = page_bytes if groups else state_bytes
        groups.append(Group(state_layers, tokens, page_bytes, states=settings.states))
    stages = settings.pipeline_parallel_size
    if not any(group.window or group.chunk or group.states for group in groups):
        block = sum(-(-group.layers // stages) * group.page_bytes for group in groups)
        return Layout((replace(groups[0], layers=1),), int(block), settings.in_flight)
    if len(groups) == 1:
        block = -(-groups[0].layers // stages) * groups[0].page_bytes
        return Layout(tuple(groups), int(block), settings.in_flight)
    split = _split(_one_page_size(groups))
    block = max(-(-group.layers // stages) * group.page_bytes for group in split)
    return Layout(tuple(split), int(block), settings.in_flight)


def _one_page_size(groups: Sequence[Group]) -> list[Group]:
    """All pages as large as the largest, by more tokens or padding (unify_kv_cache_spec_page_size)."""
    largest = max(group.page_bytes for group in groups)
    return [
        replace(
            group,
            page_bytes=largest,
            tokens=group.tokens
            * (int(largest // group.page_bytes) if largest % group.page_bytes == 0 else 1),
        )
        for group in groups
    ]


def _split(groups: Sequence[Group]) -> list[Group]:
    """Groups of about the same number of layers (_get_kv_cache_groups_uniform_page_size)."""
    counts = [group.layers for group in groups]
    size = max(counts) if max(counts) < min(counts) * MUCH_MORE else min(counts)
    split = []
    for group in groups:
        parts = -(-group.layers // size)
        split += [replace(group, layers=-(-group.layers // parts))] * parts
    return split


def _blocks(tokens: int, size: int) -> int:
    return -(-tokens // size)
