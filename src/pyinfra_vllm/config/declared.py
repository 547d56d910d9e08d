"""Turns merged layers into the declaration of every host: `Declared`, and all of them together as `Fleet`.

Never raises on the first problem: everything wrong is collected in `Problems`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ..checkpoint import Checkpoint, Lock
from ..on_host.state.paths import PEER_USER
from . import cards, profiles
from .base import Declaration
from .checks import check_host
from .fields import AbsolutePath, Pin, Text, as_tuple
from .layers import ABSENT, Merged, Path, dotted, located, lookup, overlay, without_removed
from .models import Service
from .problems import Problems
from .reading import read
from .rollout import Rollout, Sources

DEFAULT_ROOT = "/srv/pyinfra-vllm"
# The keys of inventory and group data that are ours; every other key belongs to somebody else.
KEYS = ("services", "defaults", "root", "keep", "metrics", "window", "gate", "rollout", "sources")
# Those of them that hold for every service.
_SERVICE_WIDE = ("window", "gate", cards.KEY, profiles.KEY)
# Files of their own, beside the lock, that every command reads.
_FILES = {
    cards.KEY: f"describe cards in {cards.CARDS_FILE}",
    profiles.KEY: f"measured profiles are files in {profiles.FOLDER}/",
}


class Overrides(Declaration):
    """Overrides for this run only, given by `--data`; in a file they would stay."""

    switch_now: bool = Field(default=False, description="true or false")
    retry_rejected: bool = Field(default=False, description="true or false")
    verify: bool = Field(default=False, description="true or false")
    trial: bool = Field(default=False, description="true or false")
    operator: Text | None = Field(default=None, description="text")
    reason: Text | None = Field(default=None, description="text")

    @property
    def used(self) -> tuple[str, ...]:
        """The rules that this run sets aside, for the record."""
        return tuple(name for name in ("switch_now", "retry_rejected") if getattr(self, name))


class _HostWide(Declaration):
    root: AbsolutePath = Field(default=DEFAULT_ROOT, description="an absolute path")
    keep: Annotated[tuple[Pin, ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="a list of checkpoints and releases that `prune` must not remove"
    )
    metrics: AbsolutePath | None = Field(
        default=None, description="the absolute path of a directory, or None"
    )
    sources: Sources = Field(default_factory=Sources, description="a map with `path` or `swarm`")


@dataclass(frozen=True)
class Declared:
    """The declared state of one host."""

    host: str
    services: tuple[Service, ...] = ()
    root: str = DEFAULT_ROOT
    rollout: Rollout = field(default_factory=Rollout)
    keep: tuple[str, ...] = ()
    metrics: str | None = None
    sources: Sources = field(default_factory=Sources)

    @property
    def users(self) -> tuple[str, ...]:
        """The system users that the host needs: its services', and the one that talks to other hosts."""
        own = {service.user for service in self.services}
        return tuple(sorted(own | {PEER_USER} if self.sources.swarm else own))

    def service(self, name: str) -> Service:
        """The service of that name; raises KeyError."""
        for service in self.services:
            if service.name == name:
                return service
        raise KeyError(name)


@dataclass(frozen=True)
class Fleet:
    """Every declared host, the `selected` hosts of this run, and the operator's overrides."""

    hosts: dict[str, Declared]
    rollout: Rollout = field(default_factory=Rollout)
    lock: Lock = field(default_factory=Lock)
    overrides: Overrides = field(default_factory=Overrides)
    selected: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def waves(self) -> int:
        """The most waves that a rollout of this fleet can need."""
        return self.rollout.most_waves(len(self.hosts))

    @property
    def waves_back(self) -> int:
        """The most waves that may have to be taken back when the rollout stops; deploy.py asks."""
        return self.waves if self.rollout.on_failure == "rollback_all" else 0

    @property
    def serving(self) -> dict[str, tuple[str, ...]]:
        """Every declared service, and all hosts that declare it."""
        names = dict.fromkeys(item.name for host in self.hosts.values() for item in host.services)
        return {
            name: tuple(
                host.host for host in self.hosts.values() if name in {item.name for item in host.services}
            )
            for name in names
        }

    def checkpoint(self, service: Service) -> Checkpoint:
        """The locked checkpoint of a service; raises LockError."""
        return self.lock.get(service.model, service.revision)

    @property
    def shared(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that more than one host of this run may fetch from another, each once."""
        hosts: dict[str, set[str]] = {}
        found: dict[str, Checkpoint] = {}
        for name in self.selected or tuple(self.hosts):
            for service in self.hosts[name].services if self.hosts[name].sources.swarm else ():
                checkpoint = self.checkpoint(service)
                found[checkpoint.directory("")] = checkpoint
                hosts.setdefault(checkpoint.directory(""), set()).add(name)
        return tuple(found[key] for key in sorted(found) if len(hosts[key]) > 1)

    def served_by(self, host: str, checkpoint: Checkpoint) -> Service | None:
        """The first service of a host that serves from this checkpoint."""
        for service in self.hosts[host].services:
            own = self.checkpoint(service)
            if (own.repo, own.commit) == (checkpoint.repo, checkpoint.commit):
                return service
        return None

    def models(self) -> tuple[tuple[str, str], ...]:
        """Every declared (repository, revision), once, sorted."""
        return tuple(
            sorted({(item.model, item.revision) for host in self.hosts.values() for item in host.services})
        )


def declare(host: str, merged: Merged, problems: Problems) -> Declared | None:
    """The declaration of one host from the merged layers; None when a problem was found with it."""
    own = Problems()
    with own.about(host):
        found = _declare(host, merged, own)
    with problems.about(host):
        for problem in own.found:
            problems.add(problem.source, problem.key, problem.message, problem.value)
    return None if own.found else found


def _declare(host: str, merged: Merged, problems: Problems) -> Declared | None:
    wide = read(_HostWide, _top(merged, *_HostWide.model_fields), problems, _top_locator(merged))
    rollout = read(Rollout, _map(merged, "rollout", problems), problems, _top_locator(merged, "rollout"))
    services = [
        _service(merged, str(name), problems)
        for name, own in _map(merged, "services", problems).items()
        if own is not None
    ]
    found = tuple(service for service in services if service is not None)
    check_host(found, merged, problems)
    if wide is None or rollout is None:
        return None
    return Declared(host, found, wide.root, rollout, wide.keep, wide.metrics, wide.sources)


def _top(merged: Merged, *keys: str) -> Mapping[str, Any]:
    values = {key: merged.values[key] for key in keys if merged.values.get(key) is not None}
    return without_removed(values)


def _map(merged: Merged, key: str, problems: Problems) -> Mapping[str, Any]:
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
        return merged.source(whole), dotted(whole)

    return locate


def _service(merged: Merged, name: str, problems: Problems) -> Service | None:
    """One service: the settings of every service, then `defaults`, then its own."""
    values: Mapping[str, Any] = {key: merged.values[key] for key in _SERVICE_WIDE if key in merged.values}
    for place in (("defaults",), ("services", name)):
        settings = lookup(merged.values, place)
        if settings is ABSENT or settings is None:
            continue
        if not isinstance(settings, Mapping):
            problems.add(merged.source(place), dotted(place), "must be a map of settings", settings)
            return None
        for key in sorted(_FILES.keys() & settings.keys()):
            message = f"is no setting of a service: {_FILES[key]}, which every command reads"
            problems.add(merged.source((*place, key)), dotted((*place, key)), message)
        values = overlay(values, {key: value for key, value in settings.items() if key not in _FILES})
    if "name" in values:
        message = "unknown key; the name of a service is its key in `services`"
        problems.add(*located(merged, name, ("name",)), message, values["name"])

    def locate(path: Path) -> tuple[str, str]:
        if path[:1] == (cards.KEY,) and cards.KEY in merged.values:
            return merged.source(path), dotted(path)
        return located(merged, name, () if path == ("name",) else path)

    return read(Service, {**without_removed(values), "name": name}, problems, locate)
