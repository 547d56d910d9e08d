"""The right vLLM flags for a model, a GPU, a runtime and an objective, each with its reason and source.

Layers, later ones winning: base, GPU, model, objective, variants, the operator's own; then the rules that join them.
All of them are data (`catalog/`). Asks no host and no network; decides nothing that the data doesn't say.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyinfra_vllm import fit
from pyinfra_vllm.catalog import flags as catalogue
from pyinfra_vllm.catalog import gpus, shapes, table, versions
from pyinfra_vllm.catalog.gpus import Gpu
from pyinfra_vllm.catalog.shapes import Shape
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.tuning import declared as operator
from pyinfra_vllm.tuning import security
from pyinfra_vllm.tuning.facts import Facts, of_request
from pyinfra_vllm.tuning.preflight import preflight
from pyinfra_vllm.tuning.profile import Flag, Profile, apply
from pyinfra_vllm.tuning.resolution import Resolution, tokens

if TYPE_CHECKING:
    from pyinfra_vllm.checkpoint import Checkpoint
    from pyinfra_vllm.config import Service

__all__ = ["OBJECTIVES", "Flag", "Resolution", "for_service", "preflight", "resolve", "tokens"]

OBJECTIVES = ("latency", "throughput", "balanced")
LAYERS = ("base", "gpu", "model", "objective")
LOOPBACK = ("127.", "::1", "localhost")


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
) -> Resolution:
    """The profile for one service.

    + model: a name in the catalog, or a shape read from a config.json
    + gpu: a name as nvidia-smi prints it, "cpu", or a GPU of the catalog
    + runtime_version: vLLM's version, such as "0.25.1"
    + gpu_count: GPUs of the service; the tensor-parallel size
    + max_model_len: tokens; None: the model's own
    + variants, flags, environment: what the operator declares
    + runtime_flags: the flags that the installed vLLM knows (`on_host/flags.py`); None: those of the catalog
    + exposed: bound to more than the loopback address
    + reason: why a runtime below the security floor is accepted
    + shutdown_timeout_s, ready_timeout_s: seconds

    Raises DeclarationError for a model, GPU, objective or version that can't be understood. Everything that is
    understood and can't work is in `errors`.
    """
    shape = _shape(model)
    card = gpus.find(gpu) if isinstance(gpu, str) else gpu
    _check_request(objective, runtime_version, gpu_count, max_model_len)
    profile = Profile()
    fixed = of_request(shape, card, runtime_version) | {
        "gpu_count": gpu_count,
        "objective": objective,
        "max_model_len": max_model_len,
        "shutdown_timeout_s": shutdown_timeout_s,
        "ready_timeout_s": int(ready_timeout_s) if ready_timeout_s else None,
    }
    facts = Facts(fixed, profile, shape, card)
    known = _known_flags(runtime_version, runtime_flags, profile)
    for entry in (entry for layer in LAYERS for entry in table("layers.yaml")[layer]):
        apply(entry, facts, profile)
    operator.apply_variants(variants, facts, profile)
    operator.apply_flags(flags or {}, known, runtime_version, profile)
    operator.apply_environment(environment or {}, profile)
    for rule in table("rules.yaml"):
        apply(rule, facts, profile)
    operator.keep_known(profile, known, runtime_version)
    _add_refusals(card, runtime_version, exposed, reason, profile)
    kernels = _kernels(shape, card, facts)
    predicted = _fit(shape, card, facts, kernels, profile)
    return _resolution(profile, predicted, kernels, facts)


def for_service(
    service: Service,
    checkpoint: Checkpoint,
    gpu_facts: Sequence[Mapping[str, Any]],
    runtime_version: str,
    runtime_flags: Collection[str] | None,
) -> Resolution:
    """The profile for a declared service on a host.

    + checkpoint: its entry in the lock; sizes and shape come from there
    + gpu_facts: what `facts.gpu.Gpus` found; [] for a CPU host
    + runtime_version, runtime_flags: of the vLLM that is installed there
    """
    used = [row for row in gpu_facts if service.gpus is None or row["index"] in service.gpus]
    card = gpus.CPU
    if used:
        first = used[0]
        card = gpus.find(first["name"], first["compute_capability"], first["memory_mib"])
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
    )


def _shape(model: str | Shape) -> Shape:
    if isinstance(model, Shape):
        return model
    found = shapes.find(model)
    if found is None:
        raise DeclarationError(
            f"model {model!r} is not in the catalog. Known: {', '.join(shapes.names())}. "
            "Any other model is read from its config.json once it is locked (`pyinfra-vllm lock`)"
        )
    return found


def _check_request(objective: str, runtime_version: str, gpu_count: int, max_model_len: int | None) -> None:
    if objective not in OBJECTIVES:
        raise DeclarationError(f"objective {objective!r} is not one of {', '.join(OBJECTIVES)}")
    try:
        versions.parse(runtime_version)
    except ValueError as error:
        raise DeclarationError(f"runtime: {error}") from None
    if gpu_count < 0 or (max_model_len is not None and max_model_len < 1):
        raise DeclarationError("gpu_count must be 0 or more, max_model_len 1 or more")


def _known_flags(version: str, installed: Collection[str] | None, profile: Profile) -> Collection[str]:
    if installed is not None:
        return installed
    if versions.parse(version)[:2] > catalogue.newest()[:2]:
        nearest = catalogue.nearest_scanned(version)
        profile.warn(f"vLLM {version} is newer than the flag catalogue; the flags of {nearest} are assumed")
    try:
        return catalogue.known(version)
    except ValueError as error:
        profile.fail(str(error))
        return frozenset()


def _add_refusals(card: Gpu, version: str, exposed: bool, reason: str | None, profile: Profile) -> None:
    if card.rejected:
        profile.fail(card.rejected)
    warnings, errors = security.check(version, exposed, reason)
    for text in warnings:
        profile.warn(text)
    for text in errors:
        profile.fail(text)


def _kernels(shape: Shape, card: Gpu, facts: Facts) -> list[str]:
    if shape.quantization is None:
        return []
    setting = facts.profile.environment.get("VLLM_DISABLED_KERNELS")
    disabled = setting.value.split(",") if setting else []
    chosen = facts["--linear-backend"]
    linear = str(chosen).title() if chosen and chosen != "auto" else None
    return card.kernels(facts.fixed["vllm"], disabled, linear, experts=shape.experts > 0)


def _fit(shape: Shape, card: Gpu, facts: Facts, kernels: Sequence[str], profile: Profile) -> fit.Fit | None:
    length = facts.fixed["max_model_len"] or shape.max_position
    if not length:
        profile.fail(f"max_model_len: the config.json of {shape.name} names no length; declare one")
        return None
    load = _load(facts, card, length, kernels)
    predicted = fit.predict(shape, card, load)
    if not predicted.fits and card.platform != "cpu":
        profile.fail(_does_not_fit(shape, card, load, predicted, facts))
    elif not predicted.fits:
        profile.warn(
            f"the KV cache holds {predicted.kv_tokens} tokens, less than max_model_len {length}: "
            "raise environment: {VLLM_CPU_KVCACHE_SPACE: ...} (GiB) or lower max_model_len"
        )
    return predicted


def _load(facts: Facts, card: Gpu, length: int, kernels: Sequence[str]) -> fit.Load:
    batch = _batch_defaults(card, facts.fixed["vllm"])
    share = (
        facts["--gpu-memory-utilization"]
        or versions.first(table("runtimes.yaml")["gpu_memory_utilization"], facts.fixed["vllm"])["value"]
    )
    sizes = facts["--cudagraph-capture-sizes"] or facts["--cuda-graph-sizes"]
    return fit.Load(
        tensor_parallel_size=facts["tensor_parallel_size"],
        max_model_len=length,
        utilization=float(share),
        max_num_batched_tokens=int(facts["--max-num-batched-tokens"] or batch["max_num_batched_tokens"]),
        max_num_seqs=int(facts["--max-num-seqs"] or batch["max_num_seqs"]),
        kv_cache_dtype=str(facts["--kv-cache-dtype"] or "auto"),
        speculative_tokens=facts["speculative_tokens"],
        graph_limit=facts["--max-cudagraph-capture-size"] or _largest(sizes),
        eager=bool(facts["--enforce-eager"]),
        kernels=tuple(kernels),
        kv_cache_bytes=_fixed_cache_bytes(facts, card),
    )


def _largest(sizes: Any) -> int | None:
    """The largest of --cudagraph-capture-sizes: a list, or one number; None where it says neither."""
    listed = sizes if isinstance(sizes, list | tuple) else [sizes]
    return max((size for size in listed if isinstance(size, int) and size > 0), default=None)


def _fixed_cache_bytes(facts: Facts, card: Gpu) -> int | None:
    fixed = facts["--kv-cache-memory-bytes"]
    if fixed:
        return int(fixed)
    if card.platform == "cpu":
        return int(facts.profile.environment["VLLM_CPU_KVCACHE_SPACE"].value) * gpus.GIB
    return None


def _batch_defaults(card: Gpu, version: versions.Version) -> Mapping[str, Any]:
    """vLLM's own batch sizes for a device: the first row of runtimes.yaml `batch` that applies."""
    for row in table("runtimes.yaml")["batch"]:
        named = row.get("not_name")
        if (
            row.get("platform", card.platform) == card.platform
            and card.usable_bytes >= row.get("memory_gib_at_least", 0) * gpus.GIB
            and not (named and named in card.title.lower())
            and not ("from" in row and versions.below(version, row["from"]))
        ):
            return dict(row)
    raise LookupError("runtimes.yaml: the last row of `batch` must apply to everything")


def _does_not_fit(shape: Shape, card: Gpu, load: fit.Load, predicted: fit.Fit, facts: Facts) -> str:
    room = max(0, predicted.requested_bytes - predicted.weights_bytes - predicted.overhead_bytes)
    ways = fit.suggestions(shape, card, load, facts.fixed["gpu_count"])
    return (
        f"{shape.name} doesn't fit on {max(1, facts.fixed['gpu_count'])} x {card.title}: "
        f"{predicted.weights_bytes / gpus.GIB:.1f} GiB of weights and {predicted.overhead_bytes / gpus.GIB:.1f} GiB "
        f"beside them leave {room / gpus.GIB:.1f} of {predicted.requested_bytes / gpus.GIB:.1f} GiB for the KV cache, "
        f"{predicted.kv_tokens} tokens, and max_model_len is {load.max_model_len}. "
        f"What would make it fit: {'; '.join(ways)}"
    )


def _resolution(
    profile: Profile, predicted: fit.Fit | None, kernels: Sequence[str], facts: Facts
) -> Resolution:
    return Resolution(
        flags=tuple(profile.flags[name] for name in sorted(profile.flags)),
        settings=tuple(profile.environment[name] for name in sorted(profile.environment)),
        fit=predicted,
        kernel=tuple(kernels),
        warnings=tuple(profile.warnings),
        errors=tuple(profile.errors),
        asked={name: facts[name] for name in ("model", "gpu", "gpu_count", "vllm_text", "objective")},
    )
