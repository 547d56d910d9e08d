"""Whether a service's servers can sleep on this card, and if not, why (docs/standby.md). Pure.

Only the conditions that are known beforehand. The host adds its own (on_host/switch/standby.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyinfra_vllm.catalog import versions
from pyinfra_vllm.on_host.inspect.gpus import UNIFIED
from pyinfra_vllm.tuning.resolution import Resolution

if TYPE_CHECKING:
    from pyinfra_vllm.config import Service

FROM = "0.25"  # before, sleeping under load kills the engine (vLLM pull request 45520)
LORA_FROM = "0.33"  # until 0.32 LoRA's buffers lie among the weights (53888)
FP8_CACHE_FROM = "0.27"  # until 0.26 a wake fails with Mamba layers and an FP8 KV cache (41564)
# One control socket in one process; each of these makes several, or none.
SEVERAL_PROCESSES = ("--api-server-count", "--data-parallel-size")
CONNECTORS = ("--kv-transfer-config", "--kv-offloading-size", "--kv-offloading-backend")
RUST = "VLLM_USE_RUST_FRONTEND"
UNTRIED = (
    "standby: this project has tried it on one GPU with one model, else on servers without a GPU"
    " (docs/standby.md, State): try it on a host that may fail"
)


def of_service(
    service: Service,
    version: str,
    gpus: Sequence[str],
    resolution: Resolution,
    has_state_layers: bool,
) -> str | None:
    """Why a declared service can't have it on this host; empty where it can, None where it is not asked for.

    + gpus: the names of those that the service uses
    """
    if not service.standby:
        return None
    shared = ("gpu_sharing_reason: a wake needs memory that the other service may have taken",)
    found = hindrances(version, gpus, resolution.values, resolution.environment, has_state_layers)
    return "; ".join((*(shared if service.gpu_sharing_reason else ()), *found))


def told(problem: str | None) -> str:
    """The answer of `of_service` for a person; empty where nobody asked for it."""
    if problem is None:
        return ""
    if problem:
        return f"no, because {problem}: the old release is stopped, as without it"
    return "the old release sleeps while the new one is judged, from the second switch on"


def as_dict(problem: str | None) -> dict[str, object] | None:
    """The same as JSON: {"possible": bool, "because": text}."""
    return None if problem is None else {"possible": not problem, "because": problem}


def hindrances(
    version: str,
    gpus: Sequence[str],
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    has_state_layers: bool = False,
) -> tuple[str, ...]:
    """Why not; () where nothing that is known here stands against it.

    + gpus: the names of those that the service uses
    + flags: all flags of the command line with their values
    + has_state_layers: the model keeps a state beside its KV cache (Mamba, DeltaNet)
    """
    return (
        *_of_version(version),
        *_of_cards(gpus),
        *_of_flags(flags, environment),
        *_of_faults(versions.parse(version), flags, has_state_layers),
    )


def _of_version(version: str) -> Iterator[str]:
    if versions.below(versions.parse(version), FROM):
        yield f"vLLM {version} can't be sent to sleep under load, {FROM} and newer can"


def _of_cards(gpus: Sequence[str]) -> Iterator[str]:
    if not gpus:
        yield "there is no NVIDIA GPU whose memory a server that sleeps could give back"
    for name in sorted(set(filter(UNIFIED.search, gpus))):
        yield f"{name} shares its memory with the host, where a wake can take the host down"


def _of_flags(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[str]:
    for flag in SEVERAL_PROCESSES:
        if str(flags.get(flag, 1)) != "1":
            yield f"{flag} {flags[flag]} has several processes for clients, and only one is asked to sleep"
    for flag in CONNECTORS:
        if flag in flags:
            yield f"{flag}: with a KV connector a server that slept may crash"
    if "--speculative-config" in flags:
        yield "--speculative-config: with speculative decoding nobody has tried it"
    if any(flag.startswith("--ssl-") for flag in flags):
        yield "vLLM's own TLS: a server that sleeps leads its clients to the other one in plain HTTP"
    if environment.get(RUST, "0") not in ("", "0"):
        yield f"{RUST}: the Rust frontend loads no middleware"


def _of_faults(version: versions.Version, flags: Mapping[str, Any], has_state_layers: bool) -> Iterator[str]:
    if flags.get("--enable-lora") and versions.below(version, LORA_FROM):
        yield f"--enable-lora: before vLLM {LORA_FROM} a sleep can damage LoRA adapters"
    fp8 = str(flags.get("--kv-cache-dtype", "")).startswith("fp8")
    if fp8 and has_state_layers and versions.below(version, FP8_CACHE_FROM):
        yield f"--kv-cache-dtype {flags['--kv-cache-dtype']}: before vLLM {FP8_CACHE_FROM} the wake fails"
