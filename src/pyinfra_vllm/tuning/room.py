"""Whether the model fits, and if not, the changes that would make it: each is tried before it is offered."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

from pyinfra_vllm import fit
from pyinfra_vllm.catalog import gpus
from pyinfra_vllm.catalog.quantization import Quantization
from pyinfra_vllm.tuning import declared as operator
from pyinfra_vllm.tuning.decision import Decision, decide
from pyinfra_vllm.tuning.facts import GPUS_OF_A_HOST, splits, tensor_parallel_choices
from pyinfra_vllm.tuning.request import Request

LEAST_CONTEXT = 1024  # tokens; a shorter one is not worth offering
HIGHEST_SHARE = 0.95
FEW_SEQUENCES = 16
TENSOR_PARALLEL, PIPELINE_PARALLEL = "--tensor-parallel-size", "--pipeline-parallel-size"


def judge(request: Request, decision: Decision) -> None:
    """Says whether the model fits, and if not, what would make it: each way is tried before it is offered."""
    shape, card, profile, predicted = request.shape, request.card, decision.profile, decision.fit
    if decision.facts["length"] is None:
        profile.fail(f"max_model_len: the config.json of {shape.name} names no length; declare one")
    if predicted is None and not card.rejected:
        _offer_stages(request, decision)
    if predicted is None or predicted.fits or card.rejected:
        return
    if card.platform == "cpu":
        profile.warn(
            f"the KV cache holds {predicted.kv_tokens} tokens, less than max_model_len"
            f" {predicted.max_model_len}: raise environment: {{VLLM_CPU_KVCACHE_SPACE: ...}} (GiB) or lower"
            " max_model_len"
        )
        return
    ways = list(_ways(request, decision))
    if not ways and not _refused_anyway(request, decision):
        ways = ["a smaller model or a GPU with more memory"]
    told = f". What would make it fit: {'; '.join(ways)}" if ways else ""
    profile.fail(_does_not_fit(request, predicted) + told)


def _ways(request: Request, decision: Decision) -> Iterator[str]:
    """Changes that make a model fit which doesn't, nearest first, each tried by the resolver itself."""
    assert decision.load and decision.fit
    if not _weights_leave_room(request, decision.load, decision.load.tensor_parallel_size):
        yield from _more_gpus(request, decision)
        return
    for reserve in (fit.uncertain_bytes(decision.fit.requested_bytes), 0):  # not tightly, where that can be
        longest = fit.longest(request.shape, decision.fit, decision.load, reserve)
        if longest >= LEAST_CONTEXT:
            break
    if longest >= LEAST_CONTEXT and _works(replace(request, max_model_len=longest), decision):
        yield f"max_model_len: {longest}"
    eight_bits = replace(request, variants=(*request.variants, "fp8_kv_cache"))
    if decision.load.kv_cache_dtype == "auto" and _works(eight_bits, decision):
        yield "the variant fp8_kv_cache"
    kept = {
        name: value
        for name, value in request.flags.items()
        if operator.spelled(name) != "--gpu-memory-utilization"
    }
    more = replace(request, flags={**kept, "gpu-memory-utilization": HIGHEST_SHARE})
    if decision.load.utilization < HIGHEST_SHARE and _works(more, decision):
        yield f"flags: {{gpu-memory-utilization: {HIGHEST_SHARE}}} on a GPU that nothing else uses"
    few = replace(request, flags={**request.flags, "max-num-seqs": FEW_SEQUENCES})
    if decision.load.max_num_seqs > FEW_SEQUENCES and _works(few, decision):
        yield f"flags: {{max-num-seqs: {FEW_SEQUENCES}}} (less memory for CUDA graphs)"
    one_step = replace(request, flags={**request.flags, "async-scheduling": False})
    bounded = any(cache.window or cache.chunk for cache in request.shape.caches)
    if bounded and decision.load.batches_in_flight > 1 and _works(one_step, decision):
        yield "flags: {async-scheduling: false} (one step's tokens fewer in each window)"
    yield from _more_gpus(request, decision)


def _more_gpus(request: Request, decision: Decision) -> Iterator[str]:
    """The ways that need other hardware or another checkpoint."""
    assert decision.load
    more = [count for count in GPUS_OF_A_HOST if count > request.gpu_count]
    kept = {name: value for name, value in request.flags.items() if operator.spelled(name) != TENSOR_PARALLEL}
    for count in tensor_parallel_choices(request.shape):
        if count not in more or not _weights_leave_room(request, decision.load, count):
            continue
        if _works(replace(request, gpu_count=count, flags=kept), decision):
            yield f"{count} GPUs" + ("" if kept == request.flags else " and another tensor-parallel-size")
            more = [fewer for fewer in more if fewer < count]
            break
    yield from itertools.islice(_stages(request, decision, more), 1)
    packed = replace(request.shape, quantization=Quantization("awq"), weights_bytes=None)
    if request.shape.quantization is None and _works(replace(request, shape=packed), decision):
        yield "the AWQ checkpoint of this model (about a third of the memory)"


def _stages(request: Request, decision: Decision, counts: Iterable[int]) -> Iterator[str]:
    """Fewest pipeline stages that work on so many GPUs, which tensor parallelism alone can't use."""
    if any(operator.spelled(name) in (TENSOR_PARALLEL, PIPELINE_PARALLEL) for name in request.flags):
        return  # the operator's own
    for count in counts:
        for stages in range(2, count + 1):
            size, rest = divmod(count, stages)
            if rest or not splits(request.shape, size) or request.shape.layers < stages:
                continue
            if decision.load and not _weights_leave_room(request, decision.load, size, stages):
                continue
            sizes = {PIPELINE_PARALLEL: stages, TENSOR_PARALLEL: size}
            if _works(replace(request, gpu_count=count, flags={**request.flags, **sizes}), decision):
                told = ", ".join(f"{name.removeprefix('--')}: {value}" for name, value in sizes.items())
                yield f"{count} GPUs in {stages} pipeline stages, flags: {{{told}}}"
                break


def _offer_stages(request: Request, decision: Decision) -> None:
    """Adds pipeline stages to the error that names the numbers of GPUs which can share the model."""
    ending = f"use {decision.facts['tensor_parallel_choices']} GPUs"
    for way in _stages(request, decision, {request.gpu_count}.intersection(GPUS_OF_A_HOST)):
        errors = decision.profile.errors
        errors[:] = [f"{text}, or {way}" if text.endswith(ending) else text for text in errors]


def _weights_leave_room(request: Request, load: fit.Load, size: int, stages: int = 1) -> bool:
    """Whether so many GPUs hold more than the weights: no setting helps where they don't.

    + size, stages: of tensor and pipeline parallelism; 1 stage: as many as are declared
    """
    most = replace(
        load,
        tensor_parallel_size=max(1, size),
        pipeline_parallel_size=max(stages, load.pipeline_parallel_size),
        kernels=(),
    )
    share = max(load.utilization, HIGHEST_SHARE)
    return fit.weights_bytes(request.shape, most) < request.card.usable_bytes * share


def _works(request: Request, before: Decision) -> bool:
    """Whether a model fits so, without an error that wasn't there before or is not the operator's own."""
    found = decide(request)
    return (
        bool(found.fit and found.fit.fits)
        and set(found.profile.errors) <= set(before.profile.errors)
        and not _refused_anyway(request, found)
    )


def _refused_anyway(request: Request, found: Decision) -> bool:
    """Whether something is refused that no setting of the operator's brought: model, card or version."""
    if not found.profile.errors:
        return False
    bare = decide(replace(request, flags={}, variants=(), environment={}))
    return not set(found.profile.errors).isdisjoint(bare.profile.errors)


def _does_not_fit(request: Request, predicted: fit.Fit) -> str:
    room = max(0, predicted.requested_bytes - predicted.weights_bytes - predicted.overhead_bytes)
    return (
        f"{request.shape.name} doesn't fit on {max(1, request.gpu_count)} x {request.card.title}: "
        f"{predicted.weights_bytes / gpus.GIB:.1f} GiB of weights and"
        f" {predicted.overhead_bytes / gpus.GIB:.1f} GiB beside them leave {room / gpus.GIB:.1f} of"
        f" {predicted.requested_bytes / gpus.GIB:.1f} GiB for the KV cache, {predicted.kv_tokens} tokens,"
        f" and one request of max_model_len {predicted.max_model_len} needs"
        f" {predicted.request_bytes / gpus.GIB:.2f} GiB"
    )
