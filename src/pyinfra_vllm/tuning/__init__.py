"""The right vLLM flags for a model, a GPU, a runtime and an objective, each with its reason and source.

Layers, later ones winning: base, GPU, model, objective, variants, the operator's own; then the rules that
join them. All of them are data (`catalog/`). Where a profile was measured for exactly this (profiles/), it
stands in the place of the objective's layer. Asks no host and no network; decides nothing that the data
doesn't say.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pyinfra_vllm import fit
from pyinfra_vllm.catalog import flags as flag_table
from pyinfra_vllm.catalog import gpus, shapes, table, versions
from pyinfra_vllm.catalog.conditions import holds, needed, possible
from pyinfra_vllm.catalog.gpus import Gpu
from pyinfra_vllm.catalog.shapes import Shape
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.tuning import declared as operator
from pyinfra_vllm.tuning import devices, measured, security, values
from pyinfra_vllm.tuning.facts import (
    GPUS_OF_A_HOST,
    Facts,
    batch_defaults,
    of_request,
    pipeline_parallel_size,
    speculation,
    splits,
    tensor_parallel_choices,
)
from pyinfra_vllm.tuning.measured import Measured, Settings
from pyinfra_vllm.tuning.preflight import preflight
from pyinfra_vllm.tuning.profile import Flag, Profile, apply
from pyinfra_vllm.tuning.resolution import Resolution, tokens
from pyinfra_vllm.tuning.values import DEEPEST

if TYPE_CHECKING:
    from pyinfra_vllm.checkpoint import Checkpoint
    from pyinfra_vllm.config import Service
    from pyinfra_vllm.config.profiles import MeasuredProfile

__all__ = [
    "DEEPEST",
    "MOST_GPUS",
    "OBJECTIVES",
    "Flag",
    "Resolution",
    "Settings",
    "flag_problems",
    "for_service",
    "preflight",
    "resolve",
    "tokens",
]

OBJECTIVES = ("latency", "throughput", "balanced")
LAYERS = ("base", "gpu", "model", "objective")
UNMEASURED = ("objective",)  # the layers that a measured profile replaces
# Facts about card, model and version that no flag changes and that have few values.
SETTLED = (
    *("platform", "compute_capability", "vllm", "objective", "model_type", "experts", "hybrid", "vision"),
    *("quantized", "quantization", "quantization_bits", "quantization_group_size", "zero_points"),
    *("known_kernels", "fp8_kv_checkpoint", "weights_counted", "indexed", "uncounted"),
)
LOOPBACK = ("127.", "::1", "localhost")
MOST_GPUS = 1024  # of one service; a larger number is a slip
LEAST_CONTEXT = 1024  # tokens; a shorter one is not worth offering
HIGHEST_SHARE = 0.95
# Ways of drafting beside which scheduling doesn't run ahead (config/vllm.py, 0.32.0).
NOT_AHEAD = ("ngram", "medusa", "mlp_speculator", "suffix")
STATES_SHARE = 0.95  # of the blocks predicted for states: the prediction may be 5 % too high
FEW_SEQUENCES = 16
SIXTEEN_BITS = 2  # bytes
TENSOR_PARALLEL, PIPELINE_PARALLEL = "--tensor-parallel-size", "--pipeline-parallel-size"
# What --linear-backend takes for 4-bit weights (kernels/linear/__init__.py); any other is warned of and
# passed over.
LINEAR_BACKENDS = {
    "marlin": "Marlin",
    "machete": "Machete",
    "humming": "Humming",
    "triton": "TritonW4A16",
    "conch": "Conch",
    "exllama": "Exllama",
}


@dataclass(frozen=True)
class _Request:
    """The request after parsing: everything that decides a profile."""

    shape: Shape
    card: Gpu
    version: str
    gpu_count: int
    objective: str
    max_model_len: int | None
    variants: tuple[str | Mapping[str, Any], ...]
    flags: Mapping[str, Any]
    environment: Mapping[str, str]
    runtime_flags: Collection[str] | None
    exposed: bool
    reason: str | None
    shutdown_timeout_s: int | None
    ready_timeout_s: float | None
    profiles: tuple[MeasuredProfile, ...]
    instead: Settings | None


@dataclass(frozen=True)
class _Decided:
    """A profile with what follows from it. No fit where the model can't be split among the GPUs at all."""

    profile: Profile
    measured: Measured | None
    facts: Facts
    kernels: list[str]
    load: fit.Load | None
    fit: fit.Fit | None


def resolve(
    *,
    model: str | Shape,
    gpu: str | Gpu,
    runtime_version: str,
    gpu_count: int = 1,
    objective: str = "balanced",
    max_model_len: int | None = None,
    variants: Sequence[str | Mapping[str, Any]] = (),
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    runtime_flags: Collection[str] | None = None,
    exposed: bool = False,
    reason: str | None = None,
    shutdown_timeout_s: int | None = None,
    ready_timeout_s: float | None = None,
    profiles: Sequence[MeasuredProfile] = (),
    instead: Settings | None = None,
) -> Resolution:
    """The profile for one service.

    + model: a name in the catalog, or a shape read from a config.json
    + gpu: a name as nvidia-smi prints it, "cpu", or a GPU of the catalog
    + runtime_version: vLLM's version, such as "0.25.1"
    + gpu_count: GPUs of the service; the tensor-parallel size
    + max_model_len: tokens; None: the model's own
    + variants, flags, environment: what the operator declares
    + runtime_flags: the flags that the installed vLLM knows (on_host/inspect/flags.py); None: the catalog's
    + exposed: bound to more than the loopback address
    + reason: why a runtime below the security floor is accepted
    + shutdown_timeout_s, ready_timeout_s: seconds
    + profiles: measured ones, of which the one for exactly this is used
    + instead: settings to try in the place of a measured profile and of the objective's

    Raises DeclarationError for a model, GPU, objective or version that can't be understood. Everything that
    is understood and can't work is in `errors`.
    """
    shape = _shape(model)
    card = gpus.find(gpu) if isinstance(gpu, str) else gpu
    _check_request(objective, runtime_version, gpu_count, max_model_len)
    request = _Request(
        shape=shape,
        card=card,
        version=runtime_version,
        gpu_count=gpu_count,
        objective=objective,
        max_model_len=max_model_len,
        variants=tuple(variants),
        flags=flags or {},
        environment=environment or {},
        runtime_flags=runtime_flags,
        exposed=exposed,
        reason=reason,
        shutdown_timeout_s=shutdown_timeout_s,
        ready_timeout_s=ready_timeout_s,
        profiles=() if instead else tuple(profiles),
        instead=instead,
    )
    decided = _decide(request)
    _judge_fit(request, decided)
    return _resolution(decided)


def _decide(request: _Request) -> _Decided:
    """The layers, the operator's own and the rules, for one request.

    Says nothing of whether the model fits.
    """
    shape, card, version = request.shape, request.card, request.version
    profile = Profile()
    fixed = of_request(shape, card, version) | {
        "gpu_count": request.gpu_count,
        "objective": request.objective,
        "max_model_len": request.max_model_len,
        "shutdown_timeout_s": request.shutdown_timeout_s,
        "ready_timeout_s": int(request.ready_timeout_s) if request.ready_timeout_s else None,
    }
    facts = Facts(fixed, profile, shape, card)
    known = _known_flags(version, request.runtime_flags, profile)
    settled = tuple(fixed[name] for name in SETTLED)
    found = _measured(request, profile)
    instead = found.settings if found else request.instead
    for _, entry in _possible("layers.yaml", settled, UNMEASURED if instead else ()):
        apply(entry, facts, profile)
    settings = _apply_instead(instead, request, known, profile)
    operator.apply_variants(request.variants, facts, profile)
    operator.apply_flags(request.flags, known, version, profile)
    operator.check_names(request.flags, request.environment, facts["draft_model"], profile)
    operator.apply_environment(request.environment, version, profile)
    for names, rule in _possible("rules.yaml", settled):
        for name in names:
            if name not in profile.flags and name not in profile.environment:
                break
        else:
            apply(rule, facts, profile)
    operator.keep_known(profile, known, version)
    _add_refusals(card, version, request.exposed, request.reason, profile)
    kernels = _kernels(shape, card, facts)
    load = _load(facts, kernels)
    predicted = fit.predict(shape, card, load) if load else None
    if load and predicted and _keeps_to_states(load, predicted, facts):
        load = _load(facts, kernels)
        predicted = fit.predict(shape, card, load) if load else None
    if found:
        for text in measured.differences(found, settings, facts["length"], profile):
            profile.warn(text)
    return _Decided(profile, found, facts, kernels, load, predicted)


def _measured(request: _Request, profile: Profile) -> Measured | None:
    """The measured profile for this request, after saying which ones are not for it."""
    if not request.profiles:
        return None
    found, unused = measured.valid(
        request.profiles,
        model=request.shape.name,
        card=request.card,
        gpu_count=request.gpu_count,
        version=versions.parse(request.version),
        objective=request.objective,
    )
    for text in unused:
        profile.warn(text)
    return found


def _apply_instead(
    given: Settings | None, request: _Request, known: Collection[str], profile: Profile
) -> dict[str, Flag]:
    if given is None:
        return {}
    return measured.apply(
        given,
        flags=request.flags,
        environment=request.environment,
        variants=request.variants,
        known=known,
        version=request.version,
        profile=profile,
    )


@lru_cache(maxsize=1024)
def _possible(
    name: str, settled: tuple[Any, ...], without: tuple[str, ...] = ()
) -> tuple[tuple[tuple[str, ...], Mapping[str, Any]], ...]:
    """The entries of a table that may apply for these facts, in order, each with the settings it is about.

    + without: layers that are left out

    Most are about another card, version or quantization, and one request is resolved many times.
    """
    known = dict(zip(SETTLED, settled, strict=True))
    rows = table(name)
    layers = [layer for layer in LAYERS if layer not in without]
    entries = [entry for layer in layers for entry in rows[layer]] if isinstance(rows, Mapping) else rows
    return tuple(
        (needed(entry.get("when")), entry) for entry in entries if possible(entry.get("when"), known)
    )


def _keeps_to_states(load: fit.Load, predicted: fit.Fit, facts: Facts) -> bool:
    """Emits fewer sequences where they would be more than the blocks for their states; whether it did.

    Each sequence holds a block of the layers with states, and vLLM ends its start where there are fewer
    (config/compilation.py resolve_cudagraph_mode_and_sizes).
    """
    most = predicted.sequences
    if most is None or load.max_num_seqs <= most or load.eager or facts.gpu.platform == "cpu":
        return False
    fewer = int(most * STATES_SHARE) // 8 * 8
    if "--max-num-seqs" in facts.profile.declared:
        facts.profile.fail(
            f"flags: {{max-num-seqs: {load.max_num_seqs}}} is more than the {most} blocks that the GPU has"
            f" for the states of {facts.shape.name}, and vLLM ends its start: declare at most {max(1, fewer)}"
        )
        return False
    if not fewer:
        return False  # it doesn't fit, which is said
    facts.profile.set(
        "--max-num-seqs",
        fewer,
        f"each sequence holds a block of the layers with states, and the GPU has about {most}: vLLM's own"
        f" default of {load.max_num_seqs} ends the start",
        "vllm/config/compilation.py, 0.32.0; vLLM issue 49064",
    )
    return True


def for_service(
    service: Service,
    checkpoint: Checkpoint,
    gpu_facts: Sequence[Mapping[str, Any]],
    runtime_version: str,
    runtime_flags: Collection[str] | None,
) -> Resolution:
    """The profile for a declared service on a host.

    + checkpoint: its entry in the lock; sizes and shape come from there
    + gpu_facts: the GPUs that `facts.gpu.Gpus` found; [] for a CPU host
    + runtime_version, runtime_flags: of the vLLM that is installed there
    """
    used = devices.chosen(service.gpus, gpu_facts)
    card = gpus.CPU
    if used:
        card = devices.smallest(used, service.own_cards)
    return resolve(
        model=shapes.from_config(service.model, checkpoint.config, checkpoint.weights_bytes),
        gpu=card,
        gpu_count=len(used),
        runtime_version=runtime_version,
        objective=service.objective,
        max_model_len=service.max_model_len,
        variants=service.variants,
        flags=service.flags,
        environment=service.environment,
        runtime_flags=runtime_flags,
        exposed=not service.bind.startswith(LOOPBACK),
        reason=service.runtime.reason,
        shutdown_timeout_s=service.shutdown_timeout_s,
        ready_timeout_s=service.ready_timeout_s,
        profiles=service.profiles,
    )


def flag_problems(
    declared: Mapping[str, Any], version: str, installed: Collection[str] | None = None
) -> list[tuple[str, str]]:
    """(flag, problem) of every declared flag that this runtime doesn't have or can't take, on whatever card.

    + installed: the flags of the vLLM on a host; None: those of the catalog
    """
    found: list[tuple[str, str]] = []
    for name, value in declared.items():
        profile = Profile()
        known = _known_flags(version, installed, Profile())
        operator.apply_flags({name: value}, known, version, profile)
        found += [(name, problem) for problem in profile.errors]
    return found


def _shape(model: str | Shape) -> Shape:
    if isinstance(model, Shape):
        return model
    found = shapes.find(model)
    if found is None:
        by_lower = {name.lower(): name for name in shapes.names()}
        near = difflib.get_close_matches(model.lower(), by_lower, n=1, cutoff=0.85)
        meant = f"did you mean {by_lower[near[0]]}?" if near else f"known: {', '.join(by_lower.values())}."
        raise DeclarationError(
            f"model {model!r} is not in the catalog; {meant} Any other model is read from the config.json"
            " that `pyinfra-vllm lock` keeps in checkpoints.lock.yaml: declare it, lock it, and ask in the"
            " directory of that file"
        )
    return found


def _check_request(objective: str, runtime_version: str, gpu_count: int, max_model_len: int | None) -> None:
    if objective not in OBJECTIVES:
        raise DeclarationError(f"objective {objective!r} is not one of {', '.join(OBJECTIVES)}")
    try:
        versions.parse(runtime_version)
    except ValueError as error:
        raise DeclarationError(f"runtime: {error}") from None
    if not 0 <= gpu_count <= MOST_GPUS:
        raise DeclarationError(f"gpu_count must be 0 to {MOST_GPUS}, not {values.short(gpu_count)}")
    if max_model_len is not None and not 1 <= max_model_len <= values.LARGEST:
        raise DeclarationError(
            f"max_model_len must be 1 to {values.LARGEST}, not {values.short(max_model_len)}"
        )


def _known_flags(version: str, installed: Collection[str] | None, profile: Profile) -> Collection[str]:
    if installed is not None:
        return installed
    if versions.parse(version)[:2] > flag_table.newest()[:2]:
        nearest = flag_table.nearest_scanned(version)
        profile.warn(f"vLLM {version} is newer than the flag catalog; the flags of {nearest} are assumed")
    try:
        return flag_table.known(version)
    except ValueError as error:
        profile.fail(str(error))
        return flag_table.known(
            flag_table.oldest()
        )  # what is said of single flags is then true at least of those


def _add_refusals(card: Gpu, version: str, exposed: bool, reason: str | None, profile: Profile) -> None:
    if card.rejected:
        profile.fail(card.rejected)
    warnings, errors = security.check(version, exposed, reason)
    for text in warnings:
        profile.warn(text)
    for text in errors:
        profile.fail(text)


def _kernels(shape: Shape, card: Gpu, facts: Facts) -> list[str]:
    """The kernels to expect in the log; [] only for a model that isn't quantized, or beside an error."""
    kind = shape.quantization.kernels if shape.quantization else None
    if kind is None:
        return []
    disabled = str(facts["VLLM_DISABLED_KERNELS"] or "").split(",")
    chosen = LINEAR_BACKENDS.get(facts["--linear-backend"]) if card.platform == "cuda" else None
    found = card.kernels(facts.fixed["vllm"], disabled, chosen, experts=shape.experts > 0, kind=kind)
    if not found and kind != "wna16":
        facts.profile.fail(
            f"{card.title} has no kernel for weights and activations of 8 bits ({kind}) that is known here:"
            " take another card, or 4-bit weights"
        )
    elif not found and not card.rejected:
        facts.profile.fail(
            f"environment: {{VLLM_DISABLED_KERNELS: {','.join(disabled)}}} disables every fast kernel that "
            f"quantized weights have on {card.title}: take one out"
        )
    return found


def _judge_fit(request: _Request, decided: _Decided) -> None:
    """Says whether the model fits, and if not, what would make it: each way is tried before it is offered."""
    shape, card, profile, predicted = request.shape, request.card, decided.profile, decided.fit
    if decided.facts["length"] is None:
        profile.fail(f"max_model_len: the config.json of {shape.name} names no length; declare one")
    if predicted is None and not card.rejected:
        _offer_stages(request, decided)
    if predicted is None or predicted.fits or card.rejected:
        return
    if card.platform == "cpu":
        profile.warn(
            f"the KV cache holds {predicted.kv_tokens} tokens, less than max_model_len"
            f" {predicted.max_model_len}: raise environment: {{VLLM_CPU_KVCACHE_SPACE: ...}} (GiB) or lower"
            " max_model_len"
        )
        return
    ways = list(_ways(request, decided)) or ["a smaller model or a GPU with more memory"]
    profile.fail(f"{_does_not_fit(request, predicted)}. What would make it fit: {'; '.join(ways)}")


def _ways(request: _Request, decided: _Decided) -> Iterator[str]:
    """Changes that make a model fit which doesn't, nearest first, each tried by the resolver itself."""
    assert decided.load and decided.fit
    if not _weights_leave_room(request, decided.load, decided.load.tensor_parallel_size):
        yield from _more_gpus(request, decided)
        return
    for reserve in (fit.uncertain_bytes(decided.fit.requested_bytes), 0):  # not tightly, where that can be
        longest = fit.longest(request.shape, decided.fit, decided.load, reserve)
        if longest >= LEAST_CONTEXT:
            break
    if longest >= LEAST_CONTEXT and _works(replace(request, max_model_len=longest), decided):
        yield f"max_model_len: {longest}"
    eight_bits = replace(request, variants=(*request.variants, "fp8_kv_cache"))
    if decided.load.kv_cache_dtype == "auto" and _works(eight_bits, decided):
        yield "the variant fp8_kv_cache"
    kept = {
        name: value
        for name, value in request.flags.items()
        if operator.spelled(name) != "--gpu-memory-utilization"
    }
    more = replace(request, flags={**kept, "gpu-memory-utilization": HIGHEST_SHARE})
    if decided.load.utilization < HIGHEST_SHARE and _works(more, decided):
        yield f"flags: {{gpu-memory-utilization: {HIGHEST_SHARE}}} on a GPU that nothing else uses"
    few = replace(request, flags={**request.flags, "max-num-seqs": FEW_SEQUENCES})
    if decided.load.max_num_seqs > FEW_SEQUENCES and _works(few, decided):
        yield f"flags: {{max-num-seqs: {FEW_SEQUENCES}}} (less memory for CUDA graphs)"
    one_step = replace(request, flags={**request.flags, "async-scheduling": False})
    bounded = any(cache.window or cache.chunk for cache in request.shape.caches)
    if bounded and decided.load.batches_in_flight > 1 and _works(one_step, decided):
        yield "flags: {async-scheduling: false} (one step's tokens fewer in each window)"
    yield from _more_gpus(request, decided)


def _more_gpus(request: _Request, decided: _Decided) -> Iterator[str]:
    """The ways that need other hardware or another checkpoint."""
    assert decided.load
    more = [count for count in GPUS_OF_A_HOST if count > request.gpu_count]
    for count in tensor_parallel_choices(request.shape):
        if count not in more or not _weights_leave_room(request, decided.load, count):
            continue
        if _works(replace(request, gpu_count=count), decided):
            yield f"{count} GPUs"
            more = [fewer for fewer in more if fewer < count]
            break
    yield from itertools.islice(_stages(request, decided, more), 1)
    packed = replace(request.shape, quantization=shapes.Quantization("awq"), weights_bytes=None)
    if request.shape.quantization is None and _works(replace(request, shape=packed), decided):
        yield "the AWQ checkpoint of this model (about a third of the memory)"


def _stages(request: _Request, decided: _Decided, counts: Iterable[int]) -> Iterator[str]:
    """Pipeline stages that work on so many GPUs, which tensor parallelism alone can't use: as few stages as
    there can be.
    """
    if any(operator.spelled(name) in (TENSOR_PARALLEL, PIPELINE_PARALLEL) for name in request.flags):
        return  # the operator's own
    for count in counts:
        for stages in range(2, count + 1):
            size, rest = divmod(count, stages)
            if rest or not splits(request.shape, size) or request.shape.layers < stages:
                continue
            if decided.load and not _weights_leave_room(request, decided.load, size, stages):
                continue
            sizes = {PIPELINE_PARALLEL: stages, TENSOR_PARALLEL: size}
            if _works(replace(request, gpu_count=count, flags={**request.flags, **sizes}), decided):
                told = ", ".join(f"{name.removeprefix('--')}: {value}" for name, value in sizes.items())
                yield f"{count} GPUs in {stages} pipeline stages, flags: {{{told}}}"
                break


def _offer_stages(request: _Request, decided: _Decided) -> None:
    """Adds pipeline stages to the error that names the numbers of GPUs which can share the model."""
    ending = f"use {decided.facts['tensor_parallel_choices']} GPUs"
    for way in _stages(request, decided, {request.gpu_count}.intersection(GPUS_OF_A_HOST)):
        errors = decided.profile.errors
        errors[:] = [f"{text}, or {way}" if text.endswith(ending) else text for text in errors]


def _weights_leave_room(request: _Request, load: fit.Load, size: int, stages: int = 1) -> bool:
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


def _works(request: _Request, before: _Decided) -> bool:
    """Whether a model fits so, without an error that wasn't there before."""
    found = _decide(request)
    return bool(found.fit and found.fit.fits) and set(found.profile.errors) <= set(before.profile.errors)


def _does_not_fit(request: _Request, predicted: fit.Fit) -> str:
    room = max(0, predicted.requested_bytes - predicted.weights_bytes - predicted.overhead_bytes)
    return (
        f"{request.shape.name} doesn't fit on {max(1, request.gpu_count)} x {request.card.title}: "
        f"{predicted.weights_bytes / gpus.GIB:.1f} GiB of weights and"
        f" {predicted.overhead_bytes / gpus.GIB:.1f} GiB beside them leave {room / gpus.GIB:.1f} of"
        f" {predicted.requested_bytes / gpus.GIB:.1f} GiB for the KV cache, {predicted.kv_tokens} tokens,"
        f" and one request of max_model_len {predicted.max_model_len} needs"
        f" {predicted.request_bytes / gpus.GIB:.2f} GiB"
    )


def _load(facts: Facts, kernels: Sequence[str]) -> fit.Load | None:
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
        max_num_seqs=int(facts["--max-num-seqs"] or batch_defaults(facts)["max_num_seqs"]),
        kv_cache_dtype=str(facts["--kv-cache-dtype"] or "auto"),
        dtype=str(facts["--dtype"] or "auto"),
        prefix_caching=_prefix_caching(facts),
        speculative_tokens=facts["speculative_tokens"],
        draft_layers=facts["draft_layers"],
        text_only=facts["--language-model-only"] is True,
        graph_limit=facts["graph_limit"] or facts["largest_graph"],
        eager=bool(facts["--enforce-eager"]),
        kernels=tuple(kernels),
        pipeline_parallel_size=pipeline_parallel_size(facts),
        kv_cache_bytes=_fixed_cache_bytes(facts, facts.gpu),
        batches_in_flight=_batches_in_flight(facts),
        bounded_caches=facts["--disable-hybrid-kv-cache-manager"] is not True,
        offload_bytes=int(float(facts["--cpu-offload-gb"] or 0) * gpus.GIB),
    )


def _batches_in_flight(facts: Facts) -> int:
    """Steps that may be scheduled before the first has ended: layers with a window keep their tokens, too
    (config/vllm.py max_in_flight_tokens; counted by vLLM from 0.26 on, issue 49878).
    """
    if versions.below(facts.fixed["vllm"], "0.26"):
        return 1
    stages = pipeline_parallel_size(facts)
    drafted = str(speculation(facts).get("method")) in NOT_AHEAD
    alone = facts.gpu.platform == "cpu" or facts["--async-scheduling"] is False or drafted
    return stages if alone else stages + 1


def _prefix_caching(facts: Facts) -> bool:
    declared = facts["--enable-prefix-caching"]
    if declared is None and facts.shape.hybrid:
        row = versions.first(table("runtimes.yaml")["hybrid_prefix_caching"], facts.fixed["vllm"])
        return bool(row["value"])
    return declared is not False


def _fixed_cache_bytes(facts: Facts, card: Gpu) -> int | None:
    fixed = facts["--kv-cache-memory-bytes"]
    if fixed:
        return int(fixed)
    if card.platform == "cpu":
        return int(facts.profile.environment["VLLM_CPU_KVCACHE_SPACE"].value) * gpus.GIB
    return None


def _predicted(decided: _Decided) -> dict[str, Any]:
    """The settings that vLLM should derive from all this, by the rehearsal's names (in_runtime/rehearsal.py).

    Types of 32 bits are left out: vLLM casts them to the one of 16 bits that the device prefers.
    """
    load, facts, shape = decided.load, decided.facts, decided.facts.shape
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


def _resolution(decided: _Decided) -> Resolution:
    profile, facts = decided.profile, decided.facts
    asked = ("model", "gpu", "gpu_count", "vllm_text", "objective", "quantized")
    return Resolution(
        flags=tuple(profile.flags[name] for name in sorted(profile.flags)),
        settings=tuple(profile.environment[name] for name in sorted(profile.environment)),
        fit=decided.fit,
        kernel=tuple(decided.kernels),
        warnings=tuple(profile.warnings),
        errors=tuple(profile.errors),
        understood=profile.understood,
        asked={name: facts[name] for name in asked},
        predicted=_predicted(decided),
        measured=str(decided.measured) if decided.measured else None,
        trades=next((entry for entry in table("trades.yaml") if holds(entry["when"], facts)), None),
    )
