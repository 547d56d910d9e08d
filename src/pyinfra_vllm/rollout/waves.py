"""Which hosts switch together, and in which order: the canary, then wave by wave, then the rest. Pure.

The order depends on the order of the candidates and on the rollout, on nothing else: two runs plan the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pyinfra_vllm.config import Rollout


@dataclass(frozen=True)
class Candidate:
    """A host that may switch: hosts of the same GPU model and services are of one kind."""

    name: str
    gpu: str | None
    services: tuple[str, ...]


def plan(
    hosts: Sequence[Candidate],
    rollout: Rollout,
    serving: Mapping[str, Collection[str]] | None = None,
    away: Collection[str] = (),
) -> tuple[tuple[str, ...], ...]:
    """The waves, each a tuple of host names; every host is in exactly one.

    Raises ValueError for a name given twice.

    A wave never takes more hosts of a service than `max_unavailable` lets it beside those that are away, but
    always one, which `crowded` then finds; hosts that don't fit wait for the next. Canaries that were named
    but are not among the hosts (a `--limit`) are replaced by chosen ones when none is left.

    + serving: service -> every host that declares it; left out: the candidates
    + away: hosts that may serve nothing already
    """
    names = [host.name for host in hosts]
    if len(set(names)) != len(names):
        raise ValueError("a host is given twice")
    serving = serving or _by_service(hosts)
    caps = {
        service: max(1, cap - len(set(away).intersection(serving.get(service, ()))))
        for service, cap in _caps(rollout, serving).items()
    }
    chosen = _canary(hosts, rollout.canary)
    canaries = [host for host in hosts if host.name in chosen]
    rest = [host for host in hosts if host.name not in chosen]
    sizes = [_share(size, len(hosts)) for size in rollout.waves]
    waves = [*_fill(canaries, [], caps), *_fill(rest, sizes, caps)]
    return tuple(tuple(host.name for host in wave) for wave in waves)


def crowded(
    wave: Sequence[Candidate],
    rollout: Rollout,
    serving: Mapping[str, Collection[str]],
    away: Collection[str],
) -> str:
    """Why `max_unavailable` forbids this wave beside the hosts that are away; empty where it does not."""
    for service, cap in _caps(rollout, serving).items():
        going = {host.name for host in wave if service in host.services}
        gone = sorted(set(away).intersection(serving.get(service, ())) - going)
        if going and gone and len(going) + len(gone) > cap:
            return (
                f"max_unavailable lets {cap} of the {len(serving[service])} hosts of {service} be away at a"
                f" time, and {', '.join(gone)} may be already"
            )
    return ""


def _canary(hosts: Sequence[Candidate], canary: int | tuple[str, ...]) -> set[str]:
    """The named hosts, or the first so many of each kind."""
    if isinstance(canary, tuple):
        named = {host.name for host in hosts} & set(canary)
        return named or (_canary(hosts, 1) if canary else set())
    taken: Counter[tuple[str | None, frozenset[str]]] = Counter()
    chosen = set()
    for host in hosts:
        kind = (host.gpu, frozenset(host.services))
        if taken[kind] < canary:
            taken[kind] += 1
            chosen.add(host.name)
    return chosen


def _by_service(hosts: Sequence[Candidate]) -> dict[str, list[str]]:
    services = {service for host in hosts for service in host.services}
    return {service: [host.name for host in hosts if service in host.services] for service in services}


def _caps(rollout: Rollout, serving: Mapping[str, Collection[str]]) -> dict[str, int]:
    """How many hosts of each service may be away at a time."""
    return {
        service: _share(cap, len(serving.get(service, ())))
        for service, cap in rollout.max_unavailable.items()
    }


def _share(size: int | str, of: int) -> int:
    """A count, or a percentage rounded down; never less than one, or nothing would ever move."""
    return max(1, of * int(size.removesuffix("%")) // 100 if isinstance(size, str) else size)


def _fill(hosts: Sequence[Candidate], sizes: Sequence[int], caps: Mapping[str, int]) -> list[list[Candidate]]:
    """Waves of the given sizes, then one of the rest; each as full as the caps allow, in host order."""
    waves: list[list[Candidate]] = []
    waiting = list(hosts)
    while waiting:
        size = sizes[len(waves)] if len(waves) < len(sizes) else len(waiting)
        wave: list[Candidate] = []
        busy: Counter[str] = Counter()
        for host in waiting:
            if len(wave) < size and all(busy[name] < caps[name] for name in host.services if name in caps):
                wave.append(host)
                busy.update(set(host.services))
        waves.append(wave)
        waiting = [host for host in waiting if host not in wave]
    return waves
