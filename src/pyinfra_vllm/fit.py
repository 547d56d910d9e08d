"""How much memory a model takes on a GPU, and how many tokens of KV cache are left. Arithmetic only.

All figures are for one GPU: of a tensor-parallel group, and of the fullest pipeline stage. The formulas are
vLLM's own where it has one (KV cache pages, the share of memory it takes) and estimates fitted to its logs
elsewhere (`runtimes.yaml`, section memory). How a request's KV cache is laid out: kv_layout.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyinfra_vllm import kv_layout
from pyinfra_vllm.catalog import table
from pyinfra_vllm.catalog.gpus import GIB, MIB, Gpu
from pyinfra_vllm.catalog.layers import Cached
from pyinfra_vllm.catalog.quantization import FP4
from pyinfra_vllm.catalog.shapes import Shape
from pyinfra_vllm.kv_layout import Layout

DTYPE_BYTES = {"float16": 2, "half": 2, "bfloat16": 2, "float32": 4, "float": 4}
KV_BYTES = {"fp8": 1.0, "int8": 1.0, "int4": 0.5, "nvfp4": 0.5625}
# Bits of K and V (model_executor/layers/quantization/turboquant/config.py TQ_PRESETS, 0.32.0).
TURBOQUANT = {
    "turboquant_k8v4": (8, 4),
    "turboquant_4bit_nc": (4, 4),
    "turboquant_k3v4_nc": (3, 4),
    "turboquant_3bit_nc": (3, 3),
}
# Bytes of one value of a linear layer that is quantized while it is loaded, by --quantization; embeddings
# stay as they are (model_executor/layers/quantization/online/base.py, 0.32.0).
ONLINE = {"fp8": 1.0, "fp8_per_tensor": 1.0, "fp8_per_block": 1.0, "fp8_per_channel": 1.0, "mxfp8": 33 / 32}
STEP = 256  # tokens: a context length that is offered is a multiple of it
SCALE_BYTES = 2  # float16 scale of one group of one column
# Two float32 scales of each token and head (v1/attention/backends/triton_attn.py customize_spec, 0.32.0).
PER_TOKEN_HEAD, TOKEN_SCALES_BYTES = "_per_token_head", 8


@dataclass(frozen=True)
class Load:
    """The decided settings that change a server's memory."""

    tensor_parallel_size: int
    max_model_len: int
    utilization: float
    max_num_batched_tokens: int
    max_num_seqs: int
    kv_cache_dtype: str = "auto"
    dtype: str = "auto"
    prefix_caching: bool = False
    speculative_tokens: int = 0
    draft_layers: int = 0  # of multi-token prediction, where it drafts
    text_only: bool = False
    graph_limit: int | None = None  # --max-cudagraph-capture-size
    eager: bool = False
    kernels: tuple[str, ...] = ()
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1  # ranks, which share the experts among them
    kv_cache_bytes: int | None = None  # fixed by --kv-cache-memory-bytes or, on CPU, VLLM_CPU_KVCACHE_SPACE
    batches_in_flight: int = 1  # steps that are scheduled before the first of them has ended
    bounded_caches: bool = True  # False: --disable-hybrid-kv-cache-manager
    offload_bytes: int = 0  # of weights on each GPU, kept in the host's memory (--cpu-offload-gb)
    lora_ranks: int = 0  # of all adapters at a time: --max-loras times --max-lora-rank
    context_shards: int = 1  # GPUs that share the tokens of a request (--decode-context-parallel-size)
    convolution_dtype: str = "auto"  # --mamba-cache-dtype
    state_dtype: str = "auto"  # --mamba-ssm-cache-dtype
    linear_bytes: float = 0  # of a linear layer's value that is quantized while it is loaded; 0: none is


@dataclass(frozen=True)
class Fit:
    """The prediction, in bytes for one GPU and tokens.

    `max_concurrency` is full-length requests at a time. `reserve_bytes` is the room beside one such request:
    below 0 it is missing. `tight`: it fits, and has less in reserve than the prediction may be off by.
    """

    weights_bytes: int
    kv_bytes_per_token: int
    kv_tokens: int
    max_concurrency: float
    fits: bool
    request_bytes: int = 0  # KV cache and states of one request of max_model_len
    # The most at a time, where each holds blocks with states; None: no such limit.
    sequences: int | None = None
    overhead_bytes: int = 0
    requested_bytes: int = 0
    kv_room_bytes: int = 0
    max_model_len: int = 0
    reserve_bytes: int = 0
    tight: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {
            "weights_bytes": self.weights_bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_tokens": self.kv_tokens,
            "max_concurrency": self.max_concurrency,
            "fits": self.fits,
            "tight": self.tight,
            "reserve_bytes": self.reserve_bytes,
        }


def predict(shape: Shape, gpu: Gpu, load: Load) -> Fit:
    """The memory of one GPU: weights, allowances, and what remains for the KV cache."""
    weights = weights_bytes(shape, load)
    per_token = kv_bytes_per_token(shape, load)
    overhead = 0 if gpu.platform == "cpu" else overhead_bytes(shape, load)
    requested = int(gpu.usable_bytes * load.utilization)
    left = load.kv_cache_bytes if load.kv_cache_bytes is not None else requested - weights - overhead
    room = max(0, left)
    laid = layout(shape, load)
    tokens = _kv_tokens(laid, load, room, per_token)
    concurrency = tokens / load.max_model_len if load.max_model_len else 0.0
    loads = gpu.platform == "cpu" or weights < gpu.usable_bytes
    fits = loads and load.max_model_len > 0 and tokens >= load.max_model_len
    request = laid.request_bytes(load.max_model_len)
    predicted = load.kv_cache_bytes is None  # and not declared
    return Fit(
        weights_bytes=weights,
        kv_bytes_per_token=per_token,
        kv_tokens=tokens,
        max_concurrency=round(concurrency, 2),
        fits=fits,
        request_bytes=request,
        sequences=room // laid.block_bytes if shape.state and laid.block_bytes else None,
        overhead_bytes=overhead,
        requested_bytes=requested,
        kv_room_bytes=room,
        max_model_len=load.max_model_len,
        reserve_bytes=left - request,
        tight=fits and predicted and left - request < uncertain_bytes(requested),
    )


def uncertain_bytes(requested_bytes: int) -> int:
    """By how much the prediction for a server that takes so much memory may be off."""
    return int(requested_bytes * table("runtimes.yaml")["memory"]["uncertain_share"])


def weights_bytes(shape: Shape, load: Load) -> int:
    """Bytes of weights on one GPU: the checkpoint's tensors, what loading adds, what the kernel repacks."""
    memory = table("runtimes.yaml")["memory"]
    total = float(_loaded_bytes(shape, load)) - _saved_bytes(shape, load)
    quantization = shape.quantization
    if "Machete" in load.kernels and quantization and quantization.zero_point and quantization.group_size > 0:
        total += memory["machete_zero_point_bytes"] * linear_parameters(shape) / quantization.group_size
    if load.data_parallel_size > 1:
        total -= _expert_bytes(shape, load, total) * (1 - 1 / load.data_parallel_size)
    if load.pipeline_parallel_size > 1:
        # The first stage embeds and the last has the head, which may be the same tensor.
        layers = total - _embedding_parameters(shape) * value_bytes(load)
        total = layers * _of_stage(shape.layers, load) / shape.layers
        total += shape.vocabulary * shape.hidden * value_bytes(load)
    on_gpu = int(total * (1 + memory["loading_share"]) / load.tensor_parallel_size)
    return max(0, on_gpu - load.offload_bytes)


def _expert_bytes(shape: Shape, load: Load, total: float) -> float:
    """Bytes of all experts, which data-parallel ranks share as tensor-parallel ones do, dealt out or cut
    (fused_moe/config.py flatten_tp_across_dp_and_pcp, 0.32.0): at most what isn't attention or embeddings.
    """
    width = shape.quantization.bits / 8 if shape.quantization else load.linear_bytes or value_bytes(load)
    with_experts = shape.layers - shape.dense_layers
    experts = with_experts * shape.experts * 3 * shape.hidden * shape.expert_intermediate
    rest = (linear_parameters(shape) - experts) * width + _embedding_parameters(shape) * value_bytes(load)
    return max(0.0, min(experts * width, total - rest))


def _of_stage(layers: int, load: Load) -> int:
    """Layers of the fullest pipeline stage: each has whole ones (distributed/utils.py get_pp_indices)."""
    return -(-layers // load.pipeline_parallel_size)


def value_bytes(load: Load) -> int:
    """Bytes of one unquantized value while it is served.

    `auto` is 16 bits whatever the checkpoint holds: 32 bits are cast to those (config/model.py
    _resolve_auto_dtype).
    """
    return DTYPE_BYTES.get(load.dtype, 2)


def _loaded_bytes(shape: Shape, load: Load) -> float:
    """The tensors in the type that they are served in; those of the checkpoint where they were counted."""
    width, counted = value_bytes(load), shape.weights_bytes
    if not counted:
        return checkpoint_bytes(shape, width, load.text_only) + draft_parameters(shape, load) * width
    if shape.quantization:  # only embeddings change their type, and AWQ repositories keep them in 16 bits
        return counted + _embedding_parameters(shape) * (width - 2)
    # A config.json without a dtype means float32 and often isn't true: the size tells.
    in_32_bits = shape.dtype == "float32" and counted > 3 * (
        _embedding_parameters(shape) + linear_parameters(shape)
    )
    return counted * width / (4 if in_32_bits else 2)


def _saved_bytes(shape: Shape, load: Load) -> float:
    """Bytes that quantizing while loading saves: of linear layers, which are at most what isn't embedded."""
    if not load.linear_bytes or shape.quantization:
        return 0.0
    width = value_bytes(load)
    most = _loaded_bytes(shape, load) / width - _embedding_parameters(shape)
    return max(0.0, min(linear_parameters(shape), most)) * (width - load.linear_bytes)


def loading_bytes(shape: Shape, load: Load) -> float:
    """Bytes of one layer that is loaded and not yet quantized (quantization/online/fp8.py: on the meta device
    until its weights come).
    """
    if not load.linear_bytes or shape.quantization:
        return 0.0
    return linear_parameters(shape) / shape.layers * value_bytes(load) / load.tensor_parallel_size


def checkpoint_bytes(shape: Shape, width: int = 2, text_only: bool = False) -> int:
    """Bytes of a checkpoint's tensors by its shape: for models that have not been locked (else known).

    + width: bytes of an unquantized value
    + text_only: without the vision tower
    """
    embeddings = _embedding_parameters(shape) * width
    if shape.vision and not text_only:
        embeddings += table("models.yaml")["vision_tower_parameters"] * width
    quantization = shape.quantization
    if quantization is None:
        return embeddings + linear_parameters(shape) * width
    per_parameter = quantization.bits / 8
    if quantization.group_size > 0:
        zero = quantization.bits / 8 if quantization.zero_point else 0
        per_parameter += (SCALE_BYTES + zero) / quantization.group_size
    return int(embeddings + linear_parameters(shape) * per_parameter)


def possible_bytes(shape: Shape) -> tuple[int, ...]:
    """Approximate sizes that a checkpoint's tensors may have; () for a model with parts that the shape does
    not describe: towers, layers that differ, experts whose width is another key's.
    """
    quantization = shape.quantization
    unlike = shape.vision or shape.uncounted or shape.attention_layers != shape.layers
    unknown = unlike or (quantization and quantization.kernels in (None, *FP4))
    if unknown or (shape.experts and not shape.expert_intermediate):
        return ()
    widths = {DTYPE_BYTES.get(shape.dtype, 2), 2}  # no dtype means 32 bits, and often isn't true
    return tuple(checkpoint_bytes(shape, width) for width in sorted(widths))


def draft_parameters(shape: Shape, load: Load) -> int:
    """Parameters of multi-token prediction: its layers and the projection of two hidden states to one."""
    if not load.draft_layers:
        return 0
    layer = _attention_parameters(shape) + _mlp_parameters(shape)
    return load.draft_layers * layer + 2 * shape.hidden * shape.hidden


def _embedding_parameters(shape: Shape) -> int:
    return shape.vocabulary * shape.hidden * (1 if shape.tied else 2)


def linear_parameters(shape: Shape) -> int:
    """Parameters of all linear layers; norms and biases are too small to count."""
    linear = shape.hidden * (2 * shape.linear_keys + 3 * shape.linear_values)
    linear_layers = shape.layers - shape.attention_layers
    return (
        shape.attention_layers * _attention_parameters(shape)
        + linear_layers * linear
        + (shape.layers - shape.dense_layers) * _mlp_parameters(shape)
        + shape.dense_layers * 3 * shape.hidden * shape.intermediate
    )


def _attention_parameters(shape: Shape) -> int:
    if shape.attention_parameters:
        return shape.attention_parameters
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    if shape.linear_heads:  # gated attention: the query projection also carries a gate of its own size
        attention += shape.hidden * shape.head_dim * shape.heads
    return attention


def _mlp_parameters(shape: Shape) -> int:
    if shape.experts:
        return shape.experts * 3 * shape.hidden * shape.expert_intermediate + shape.hidden * shape.experts
    return 3 * shape.hidden * shape.intermediate


def kv_bytes_per_token(shape: Shape, load: Load) -> int:
    """Bytes of one more token of a long request: the layers that keep every token, or where none does, all.

    A layer that drafts has full attention and a cache of its own (models/qwen3_5_mtp.py, `layer_type`).
    """
    caches = _caches(shape, load)
    whole = [cache for cache in caches if not (cache.window or cache.chunk)] or list(caches)
    return int(
        sum(
            _of_stage(cache.layers, load)
            * kv_layout.token_bytes(
                cache, load.tensor_parallel_size, kv_value_bytes(load), kv_scales_bytes(load)
            )
            / _shards(shape, load)
            for cache in whole
        )
    )


def _caches(shape: Shape, load: Load) -> tuple[Cached, ...]:
    found = kv_layout.caches(shape.caches, load.draft_layers, load.bounded_caches)
    bits = TURBOQUANT.get(load.kv_cache_dtype)
    if bits is None:
        return found
    return kv_layout.packed(found, bits, 0 if shape.state else shape.layers, value_bytes(load))


def layout(shape: Shape, load: Load) -> Layout:
    """How vLLM lays out what the layers keep for a request."""
    return kv_layout.layout(
        _caches(shape, load),
        shape.state.layers if shape.state else 0,
        state_bytes(shape, load),
        kv_layout.Settings(
            width=kv_value_bytes(load) / _shards(shape, load),
            scales_bytes=kv_scales_bytes(load) / _shards(shape, load),
            tensor_parallel_size=load.tensor_parallel_size,
            pipeline_parallel_size=load.pipeline_parallel_size,
            in_flight=load.batches_in_flight * load.max_num_batched_tokens,
            states=states_of_sequence(load),
            alignment=kv_layout.LATENT_BLOCK if shape.latent_kv else kv_layout.BLOCK,
        ),
    )


def kv_value_bytes(load: Load) -> float:
    """Bytes of one value in the cache."""
    for prefix, width in KV_BYTES.items():
        if load.kv_cache_dtype.startswith(prefix):
            return width
    return float(DTYPE_BYTES.get(load.kv_cache_dtype, value_bytes(load)))


def kv_scales_bytes(load: Load) -> int:
    """Bytes of scales that the cache keeps beside the values of one token and head."""
    return TOKEN_SCALES_BYTES if load.kv_cache_dtype.endswith(PER_TOKEN_HEAD) else 0


def _shards(shape: Shape, load: Load) -> int:
    """GPUs that share a request's tokens: layers with a window or a state keep theirs on each."""
    whole = shape.state is None and not any(cache.window or cache.chunk for cache in shape.caches)
    return load.context_shards if whole else 1


def state_bytes(shape: Shape, load: Load) -> int:
    """Bytes that one layer keeps for one state: the convolution's last inputs and the recurrent state.

    Each window also holds the drafted tokens (MambaStateShapeCalculator.gated_delta_net_state_shape).
    """
    state = shape.state
    if state is None:
        return 0
    window = max(0, state.kernel - 1 + load.speculative_tokens)
    inputs = DTYPE_BYTES.get(load.convolution_dtype, value_bytes(load))
    width = DTYPE_BYTES.get(load.state_dtype, state.width or inputs)
    return (state.channels * window * inputs + state.values * width) // load.tensor_parallel_size


def states_of_sequence(load: Load) -> int:
    """States that each layer keeps of a sequence (MambaSpec.max_memory_usage_bytes,
    v1/kv_cache_interface.py, 0.32.0): one for the sequence and one for each drafted token, and with prefix
    caching (cache mode `align`) one more.
    """
    return (2 if load.prefix_caching else 1) + load.speculative_tokens


def overhead_bytes(shape: Shape, load: Load) -> int:
    """Estimated bytes beside weights and KV cache: CUDA context, and a profiled step's peak with CUDA graphs,
    or a layer while it is loaded, if that is more.
    """
    memory = table("runtimes.yaml")["memory"]
    beside = peak_bytes(shape, load) + graph_bytes(shape, load) + adapter_bytes(shape, load)
    return int(memory["context_gib"] * GIB + max(beside, loading_bytes(shape, load)))


def adapter_bytes(shape: Shape, load: Load) -> float:
    """Buffers for adapters: two matrices of the rank beside each linear layer, in 16 bits and on every GPU
    (lora/layers/base_linear.py create_lora_weights, 0.32.0; those of experts are not counted).
    """
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = 2 * (hidden + queries) + 2 * (hidden + keys)
    mlp = 0 if shape.experts else 3 * (hidden + shape.intermediate)
    channels = shape.attention_layers * attention + shape.layers * mlp
    return load.lora_ranks * _of_stage(channels, load) * 2


def peak_bytes(shape: Shape, load: Load) -> float:
    """The larger of the widest MLP step and the sampler's logits (16 bits, then a 32-bit copy)."""
    width = max(shape.intermediate, shape.expert_intermediate * shape.experts_per_token)
    step = load.max_num_batched_tokens * (3 * width + 4 * shape.hidden) * 2 / load.tensor_parallel_size
    rows = min(load.max_num_seqs * (1 + load.speculative_tokens), load.max_num_batched_tokens)
    return max(step, rows * shape.vocabulary * 6)


def graph_bytes(shape: Shape, load: Load) -> float:
    """Memory of the captured CUDA graphs; vLLM counts it in the KV budget since 0.20."""
    if load.eager:
        return 0.0
    per_size: float = table("runtimes.yaml")["memory"]["graph_mib"]
    return captured_sizes(load) * _of_stage(shape.layers, load) * per_size * MIB


def captured_sizes(load: Load) -> int:
    """How many batch sizes are captured: 1, 2, 4, then by 8 up to 255, then by 16."""
    ceiling: int = table("runtimes.yaml")["max_cudagraph_capture_size"]
    largest = load.graph_limit or min(load.max_num_seqs * 2 * (1 + load.speculative_tokens), ceiling)
    largest = min(largest, load.max_num_batched_tokens)
    small = sum(size <= largest for size in (1, 2, 4))
    return small + max(0, min(largest, 248) // 8) + max(0, (largest - 240) // 16)


def longest(shape: Shape, fit: Fit, load: Load, reserve_bytes: int = 0) -> int:
    """The largest max_model_len, in steps of 256 tokens, of which one request has room where `fit` was
    predicted, with so much in reserve; at most the one that was asked for.
    """
    laid = layout(shape, load)
    room = fit.kv_room_bytes - reserve_bytes
    least, most = 0, load.max_model_len // STEP
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if laid.request_bytes(middle * STEP) <= room else (least, middle - 1)
    return least * STEP


def _kv_tokens(laid: Layout, load: Load, room: int, per_token: int) -> int:
    """Tokens as vLLM reports them: full-length requests x max_model_len where a request is more than its
    tokens (from 0.22), else the blocks' tokens.
    """
    if per_token == 0:
        return 0
    if laid.plain or not load.max_model_len:
        return room // (per_token * kv_layout.BLOCK) * kv_layout.BLOCK
    blocks = laid.blocks(load.max_model_len)
    return room // laid.block_bytes * load.max_model_len // blocks
