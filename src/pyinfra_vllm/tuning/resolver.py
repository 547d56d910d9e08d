"""The right vLLM flags for a model, a GPU, a runtime and an objective, each with its reason and source.

Layers, later ones winning: base, GPU, model, objective, variants, the operator's own; then the rules that
join them. All of them are data (`catalog/`). Where a profile was measured for exactly this (profiles/), it
stands in the place of the objective's layer. Asks no host and no network; the data alone decides.
"""

from __future__ import annotations

from typing import Any

from pyinfra_vllm import fit
from pyinfra_vllm.catalog import table
from pyinfra_vllm.catalog.conditions import holds
from pyinfra_vllm.tuning import room
from pyinfra_vllm.tuning.decision import Decision, decide
from pyinfra_vllm.tuning.facts import size_is_unknown
from pyinfra_vllm.tuning.request import Request
from pyinfra_vllm.tuning.resolution import Resolution

SIXTEEN_BITS = 2  # bytes


def resolve(request: Request) -> Resolution:
    """The profile for one service. Everything that can't work is in `errors`."""
    decision = decide(request)
    room.judge(request, decision)
    return _resolution(decision)


def _predicted(decision: Decision) -> dict[str, Any]:
    """The settings that vLLM should derive from all this, by the rehearsal's names (in_runtime/rehearsal.py).

    Types of 32 bits are left out: vLLM casts them to the one of 16 bits that the device prefers.
    """
    load, facts, shape = decision.load, decision.facts, decision.facts.shape
    if load is None:
        return {}
    dtype = load.dtype if load.dtype != "auto" else shape.dtype
    return {
        **({} if fit.DTYPE_BYTES.get(dtype) != SIXTEEN_BITS else {"dtype": dtype}),
        "quantization": facts["quantization"],
        "max_model_len": load.max_model_len,
        "kv_cache_dtype": load.kv_cache_dtype,
        "max_num_seqs": load.max_num_seqs,
        "max_num_batched_tokens": load.max_num_batched_tokens,
        "tensor_parallel_size": load.tensor_parallel_size,
        "pipeline_parallel_size": load.pipeline_parallel_size,
    }


def _resolution(decision: Decision) -> Resolution:
    profile, facts = decision.profile, decision.facts
    predicted = decision.fit
    if predicted and not predicted.fits and size_is_unknown(facts):
        predicted = None  # a prediction of other weights: room.py says what is known
    asked = ("model", "gpu", "gpu_count", "vllm_text", "objective", "quantized")
    return Resolution(
        flags=tuple(profile.flags[name] for name in sorted(profile.flags)),
        settings=tuple(profile.environment[name] for name in sorted(profile.environment)),
        fit=predicted,
        kernel=tuple(decision.kernels),
        warnings=tuple(profile.warnings),
        errors=tuple(profile.errors),
        understood=profile.understood,
        asked={name: facts[name] for name in asked},
        predicted=_predicted(decision),
        measured=str(decision.measured) if decision.measured else None,
        trades=next((entry for entry in table("trades.yaml") if holds(entry["when"], facts)), None),
    )
