"""The memory fit's input, from what is decided so far."""

from __future__ import annotations

from collections.abc import Sequence

from pyinfra_vllm import fit
from pyinfra_vllm.catalog import gpus, table, versions
from pyinfra_vllm.tuning.facts import (
    Facts,
    batch_defaults,
    linear_bytes,
    pipeline_parallel_size,
    speculation,
    splits,
)

# Ways of drafting beside which scheduling doesn't run ahead (config/vllm.py, 0.32.0).
NOT_AHEAD = ("ngram", "medusa", "mlp_speculator", "suffix")


def load_of(facts: Facts, kernels: Sequence[str]) -> fit.Load | None:
    """The input of the memory fit; None where there is no length, or no way to share the model."""
    length, size = facts["length"], facts["tensor_parallel_size"]
    if length is None or not splits(facts.shape, size, facts["--enable-expert-parallel"] is True):
        return None
    share = (
        facts["--gpu-memory-utilization"]
        or versions.first(table("runtimes.yaml")["gpu_memory_utilization"], facts.fixed["vllm"])["value"]
    )
    return fit.Load(
        tensor_parallel_size=size,
        max_model_len=length,
        utilization=float(share),
        max_num_batched_tokens=facts["batched_tokens"],
        max_num_seqs=int(facts["--max-num-seqs"] or facts.once(batch_defaults)["max_num_seqs"]),
        kv_cache_dtype=str(facts["--kv-cache-dtype"] or "auto"),
        dtype=str(facts["--dtype"] or "auto"),
        prefix_caching=_prefix_caching(facts),
        speculative_tokens=facts["speculative_tokens"],
        draft_layers=facts["draft_layers"],
        text_only=facts["--language-model-only"] is True,
        graph_limit=facts["graph_limit"] or facts["largest_graph"],
        eager=bool(facts["--enforce-eager"]),
        kernels=tuple(kernels),
        pipeline_parallel_size=facts.once(pipeline_parallel_size),
        data_parallel_size=int(facts["--data-parallel-size"] or 1),
        kv_cache_bytes=_fixed_cache_bytes(facts),
        batches_in_flight=_batches_in_flight(facts),
        bounded_caches=facts["--disable-hybrid-kv-cache-manager"] is not True,
        offload_bytes=int(float(facts["--cpu-offload-gb"] or 0) * gpus.GIB),
        lora_ranks=_lora_ranks(facts),
        context_shards=int(facts["--decode-context-parallel-size"] or 1),
        convolution_dtype=str(facts["--mamba-cache-dtype"] or "auto"),
        state_dtype=str(facts["--mamba-ssm-cache-dtype"] or "auto"),
        linear_bytes=facts.once(linear_bytes),
    )


def _batches_in_flight(facts: Facts) -> int:
    """Steps that may be scheduled before the first has ended: layers with a window keep their tokens, too
    (config/vllm.py max_in_flight_tokens; counted by vLLM from 0.26 on, issue 49878).
    """
    if versions.below(facts.fixed["vllm"], "0.26"):
        return 1
    stages = facts.once(pipeline_parallel_size)
    drafted = str(facts.once(speculation).get("method")) in NOT_AHEAD
    alone = facts.gpu.platform == "cpu" or facts["--async-scheduling"] is False or drafted
    return stages if alone else stages + 1


def _lora_ranks(facts: Facts) -> int:
    """Ranks of all adapters that are kept on a GPU (vllm/config/lora.py has the defaults)."""
    if facts["--enable-lora"] is not True:
        return 0
    return int(facts["--max-loras"] or 1) * int(facts["--max-lora-rank"] or 16)


def _prefix_caching(facts: Facts) -> bool:
    declared = facts["--enable-prefix-caching"]
    if declared is None and facts.shape.hybrid:
        row = versions.first(table("runtimes.yaml")["hybrid_prefix_caching"], facts.fixed["vllm"])
        return bool(row["value"])
    return declared is not False


def _fixed_cache_bytes(facts: Facts) -> int | None:
    fixed = facts["--kv-cache-memory-bytes"]
    if fixed:
        return int(fixed)
    if facts.gpu.platform == "cpu":
        return int(facts.profile.environment["VLLM_CPU_KVCACHE_SPACE"].value) * gpus.GIB
    return None
