"""A question to the resolver: everything that decides a profile, checked."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyinfra_vllm.catalog import gpus, shapes, versions
from pyinfra_vllm.catalog.gpus import Gpu
from pyinfra_vllm.catalog.shapes import Shape
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.on_host.inspect.gpus import Gpu as HostGpu
from pyinfra_vllm.tuning import devices, values
from pyinfra_vllm.tuning.measured import Settings

if TYPE_CHECKING:
    from pyinfra_vllm.checkpoint import Checkpoint
    from pyinfra_vllm.config import Service
    from pyinfra_vllm.config.profiles import MeasuredProfile

OBJECTIVES = ("latency", "throughput", "balanced")
MOST_GPUS = 1024  # of one service; a larger number is a slip


@dataclass(frozen=True)
class Request:
    """One question to the resolver.

    + version: vLLM's, such as "0.25.1"
    + gpu_count: GPUs of the service; the tensor-parallel size
    + max_model_len: tokens; None: the model's own
    + variants, flags, environment: what the operator declares
    + runtime_flags: the flags that the installed vLLM knows (on_host/inspect/flags.py); None: the catalog's
    + exposed: bound to more than the loopback address
    + reason: why a runtime below the security floor, or a dangerous setting, is accepted
    + shutdown_timeout_s, ready_timeout_s: seconds
    + profiles: measured ones, of which the one for exactly this is used
    + instead: settings to try in the place of a measured profile and of the objective's

    Raises DeclarationError for an objective, version, count or length that can't be understood.
    """

    shape: Shape
    card: Gpu
    version: str
    gpu_count: int = 1
    objective: str = "balanced"
    max_model_len: int | None = None
    variants: Sequence[str | Mapping[str, Any]] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    runtime_flags: Collection[str] | None = None
    exposed: bool = False
    reason: str | None = None
    shutdown_timeout_s: int | None = None
    ready_timeout_s: float | None = None
    profiles: Sequence[MeasuredProfile] = ()
    instead: Settings | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise DeclarationError(f"objective {self.objective!r} is not one of {', '.join(OBJECTIVES)}")
        try:
            versions.parse(self.version)
        except ValueError as error:
            raise DeclarationError(f"runtime: {error}") from None
        if not 0 <= self.gpu_count <= MOST_GPUS:
            raise DeclarationError(f"gpu_count must be 0 to {MOST_GPUS}, not {values.short(self.gpu_count)}")
        if self.max_model_len is not None and not 1 <= self.max_model_len <= values.LARGEST:
            raise DeclarationError(
                f"max_model_len must be 1 to {values.LARGEST}, not {values.short(self.max_model_len)}"
            )


def of_service(
    service: Service,
    checkpoint: Checkpoint,
    card: Gpu,
    version: str,
    gpu_count: int = 1,
    runtime_flags: Collection[str] | None = None,
) -> Request:
    """The request for a declared service.

    + checkpoint: its entry in the lock; sizes and shape come from there
    """
    return Request(
        shape=shapes.from_config(service.model, checkpoint.config, checkpoint.weights_bytes),
        card=card,
        version=version,
        gpu_count=gpu_count,
        objective=service.objective,
        max_model_len=service.max_model_len,
        variants=service.variants,
        flags=service.flags,
        environment=service.environment,
        runtime_flags=runtime_flags,
        exposed=service.open_to_network,
        reason=service.runtime.reason,
        shutdown_timeout_s=service.shutdown_timeout_s,
        ready_timeout_s=service.ready_timeout_s,
        profiles=service.profiles,
    )


def on_host(
    service: Service,
    checkpoint: Checkpoint,
    gpu_facts: Sequence[HostGpu],
    version: str,
    runtime_flags: Collection[str] | None,
) -> Request:
    """The request for a declared service on a host. Raises DeclarationError for an unknown card.

    + gpu_facts: the GPUs that `facts.gpu.Gpus` found; [] for a CPU host
    + version, runtime_flags: of the vLLM that is installed there
    """
    used = devices.chosen(service.gpus, gpu_facts)
    card = devices.smallest(used, service.own_cards) if used else gpus.CPU
    return of_service(service, checkpoint, card, version, len(used), runtime_flags)


def cataloged(model: str) -> Shape:
    """The shape of a model of the catalog. Raises DeclarationError, which names the nearest one."""
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
