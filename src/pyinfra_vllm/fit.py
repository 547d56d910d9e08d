"""How much memory a model takes on a GPU, and how many tokens of KV cache are left. Arithmetic only.

All figures are for one GPU of a tensor-parallel group. The formulas are vLLM's own where it has one (KV cache pages,
the share of memory it takes) and estimates fitted to its logs elsewhere (`runtimes.yaml`, section memory).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pyinfra_vllm.catalog import table
from pyinfra_vllm.catalog.gpus import GIB, MIB, Gpu
from pyinfra_vllm.catalog.shapes import Shape

BLOCK = 16  # tokens of a KV cache block on CUDA (config/cache.py); the sizes below are exact multiples of it
DTYPE_BYTES = {"float16": 2, "half": 2, "bfloat16": 2, "float32": 4, "float": 4, "auto": 2}
KV_BYTES = {"fp8": 1.0, "int8": 1.0, "int4": 0.5, "nvfp4": 0.5625, "turboquant": 0.5}
SCALE_BYTES = 2  # float16 scale of one group of one column


@dataclass(frozen=True)
class Load:
    """What was decided about a server that changes its memory."""

    tensor_parallel_size: int
    max_model_len: int
    utilization: float
    max_num_batched_tokens: int
    max_num_seqs: int
    kv_cache_dtype: str = "auto"
    speculative_tokens: int = 0
    graph_limit: int | None = None  # --max-cudagraph-capture-size
    eager: bool = False
    kernels: tuple[str, ...] = ()
    kv_cache_bytes: int | None = None  # fixed by --kv-cache-memory-bytes or, on CPU, VLLM_CPU_KVCACHE_SPACE


@dataclass(frozen=True)
class Fit:
    """The prediction, in bytes for one GPU and tokens. `max_concurrency` is full-length requests at a time."""

    weights_bytes: int
    kv_bytes_per_token: int
    kv_tokens: int
    max_concurrency: float
    fits: bool
    overhead_bytes: int = 0
    requested_bytes: int = 0
    max_model_len: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "weights_bytes": self.weights_bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_tokens": self.kv_tokens,
            "max_concurrency": self.max_concurrency,
            "fits": self.fits,
        }


def predict(shape: Shape, gpu: Gpu, load: Load) -> Fit:
    """The memory of one GPU: weights, allowances, and what remains for the KV cache."""
    weights = weights_bytes(shape, load)
    per_token = kv_bytes_per_token(shape, load)
    overhead = 0 if gpu.platform == "cpu" else overhead_bytes(shape, load)
    requested = int(gpu.usable_bytes * load.utilization)
    room = load.kv_cache_bytes if load.kv_cache_bytes is not None else requested - weights - overhead
    room = max(0, room)
    tokens = _kv_tokens(shape, load, room, per_token)
    concurrency = tokens / load.max_model_len if load.max_model_len else 0.0
    return Fit(
        weights_bytes=weights,
        kv_bytes_per_token=per_token,
        kv_tokens=tokens,
        max_concurrency=round(concurrency, 2),
        fits=load.max_model_len > 0 and tokens >= load.max_model_len,
        overhead_bytes=overhead,
        requested_bytes=requested,
        max_model_len=load.max_model_len,
    )


def weights_bytes(shape: Shape, load: Load) -> int:
    """Bytes of weights on one GPU: the checkpoint's tensors, what loading adds, and what the kernel repacks."""
    memory = table("runtimes.yaml")["memory"]
    total = float(shape.weights_bytes or checkpoint_bytes(shape))
    quantization = shape.quantization
    if "Machete" in load.kernels and quantization and quantization.zero_point and quantization.group_size > 0:
        total += memory["machete_zero_point_bytes"] * linear_parameters(shape) / quantization.group_size
    return int(total * (1 + memory["loading_share"]) / load.tensor_parallel_size)


def checkpoint_bytes(shape: Shape) -> int:
    """Bytes of a checkpoint's tensors by its shape: for models that have not been locked (else sizes are known)."""
    dtype = DTYPE_BYTES.get(shape.dtype, 2)
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2) * dtype
    if shape.vision:
        embeddings += table("models.yaml")["vision_tower_parameters"] * dtype
    quantization = shape.quantization
    if quantization is None:
        return embeddings + linear_parameters(shape) * dtype
    per_parameter = quantization.bits / 8
    if quantization.group_size > 0:
        zero = quantization.bits / 8 if quantization.zero_point else 0
        per_parameter += (SCALE_BYTES + zero) / quantization.group_size
    return int(embeddings + linear_parameters(shape) * per_parameter)


def linear_parameters(shape: Shape) -> int:
    """Parameters of all linear layers; norms and biases are too small to count."""
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    if shape.hybrid:  # gated attention: the query projection also carries a gate of its own size
        attention += shape.hidden * shape.head_dim * shape.heads
    linear = shape.hidden * (2 * shape.linear_keys + 3 * shape.linear_values)
    if shape.experts:
        mlp = shape.experts * 3 * shape.hidden * shape.expert_intermediate + shape.hidden * shape.experts
    else:
        mlp = 3 * shape.hidden * shape.intermediate
    linear_layers = shape.layers - shape.attention_layers
    return shape.attention_layers * attention + linear_layers * linear + shape.layers * mlp


def kv_bytes_per_token(shape: Shape, load: Load) -> int:
    """vLLM's page size per token (v1/kv_cache_interface.py): layers x KV heads x (K + V) x bytes; heads are never split."""
    width = kv_value_bytes(shape, load.kv_cache_dtype)
    if shape.latent_kv:
        return int(shape.attention_layers * shape.latent_kv * width)
    heads = max(1, shape.kv_heads // load.tensor_parallel_size)
    return int(shape.attention_layers * heads * 2 * shape.head_dim * width)


def kv_value_bytes(shape: Shape, kv_cache_dtype: str) -> float:
    """Bytes of one value in the cache."""
    for prefix, width in KV_BYTES.items():
        if kv_cache_dtype.startswith(prefix):
            return width
    named = shape.dtype if kv_cache_dtype == "auto" else kv_cache_dtype
    return float(DTYPE_BYTES.get(named, 2))


def state_bytes_per_sequence(shape: Shape, load: Load) -> int:
    """What the linear-attention layers keep for each sequence: convolution window in 16 bits, state in 32 bits."""
    if not shape.hybrid or not shape.linear_heads:
        return 0
    convolution = (2 * shape.linear_keys + shape.linear_values) * max(0, shape.linear_kernel - 1) * 2
    head_keys = shape.linear_values // shape.linear_heads
    state = shape.linear_values * head_keys * 4
    return (shape.layers - shape.attention_layers) * (convolution + state) // load.tensor_parallel_size


def overhead_bytes(shape: Shape, load: Load) -> int:
    """Estimated bytes beside weights and KV cache: CUDA context, the peak of one profiled step, CUDA graphs."""
    memory = table("runtimes.yaml")["memory"]
    return int(memory["context_gib"] * GIB + peak_bytes(shape, load) + graph_bytes(shape, load))


def peak_bytes(shape: Shape, load: Load) -> float:
    """The larger of the widest MLP step and the sampler's logits (16 bits, then a 32-bit copy)."""
    width = max(shape.intermediate, shape.expert_intermediate * 8)
    step = load.max_num_batched_tokens * (3 * width + 4 * shape.hidden) * 2 / load.tensor_parallel_size
    rows = min(load.max_num_seqs * (1 + load.speculative_tokens), load.max_num_batched_tokens)
    return max(step, rows * shape.vocabulary * 6)


def graph_bytes(shape: Shape, load: Load) -> float:
    """Memory of the captured CUDA graphs; vLLM counts it in the KV budget since 0.20."""
    if load.eager:
        return 0.0
    per_size: float = table("runtimes.yaml")["memory"]["graph_mib"]
    return captured_sizes(load) * shape.layers * per_size * MIB


def captured_sizes(load: Load) -> int:
    """How many batch sizes are captured: 1, 2, 4, then by 8 up to 255, then by 16."""
    ceiling: int = table("runtimes.yaml")["max_cudagraph_capture_size"]
    largest = load.graph_limit or min(load.max_num_seqs * 2 * (1 + load.speculative_tokens), ceiling)
    largest = min(largest, load.max_num_batched_tokens)
    small = sum(size <= largest for size in (1, 2, 4))
    return small + max(0, min(largest, 248) // 8) + max(0, (largest - 240) // 16)


def longest(shape: Shape, fit: Fit) -> int:
    """The largest max_model_len that this much cache serves, in steps of 256 tokens."""
    return min(fit.kv_tokens, shape.max_position or fit.kv_tokens) // 256 * 256


def suggestions(shape: Shape, gpu: Gpu, load: Load, gpu_count: int) -> list[str]:
    """What would make a model fit that doesn't, nearest first: each one is tried before it is offered."""
    found = []
    shorter = longest(shape, predict(shape, gpu, load))
    if shorter >= 1024:
        found.append(f"max_model_len: {shorter}")
    smaller = replace(load, kv_cache_dtype="fp8")
    if _has_fp8_cache(gpu) and load.kv_cache_dtype == "auto" and predict(shape, gpu, smaller).fits:
        found.append("the variant fp8_kv_cache")
    if load.utilization < 0.95 and predict(shape, gpu, replace(load, utilization=0.95)).fits:
        found.append("flags: {gpu-memory-utilization: 0.95} on a GPU that nothing else uses")
    for count in (2, 4, 8):
        wider = replace(load, tensor_parallel_size=count)
        if count > gpu_count and shape.heads % count == 0 and predict(shape, gpu, wider).fits:
            found.append(f"{count} GPUs")
            break
    if shape.quantization is None:
        found.append("the AWQ checkpoint of this model (about a third of the memory)")
    return found or ["a smaller model or a GPU with more memory"]


def _has_fp8_cache(gpu: Gpu) -> bool:
    return gpu.compute_capability not in ("cpu", "7.0", "7.5")


def _kv_tokens(shape: Shape, load: Load, room: int, per_token: int) -> int:
    if per_token == 0:
        return 0
    state = state_bytes_per_sequence(shape, load)
    if state and load.max_model_len:
        # from 0.22 vLLM reports tokens as full-length requests x max_model_len, and each holds one state
        sequences = room / (load.max_model_len * per_token + state)
        return int(sequences * load.max_model_len)
    return room // (per_token * BLOCK) * BLOCK
