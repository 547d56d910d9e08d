"""The plan of a run, host by host: as data, as JSON and as lines for a terminal. Pure.

operations/util/foreseen.py makes it from facts, with the checks that deploy.py makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyinfra_vllm.catalog.gpus import GIB
from pyinfra_vllm.printable import printable
from pyinfra_vllm.release import Pair
from pyinfra_vllm.text import counted, in_units, wrapped
from pyinfra_vllm.tuning import standby

INSTALL, SWITCH, UNCHANGED, DEFERRED, REFUSED = "install", "switch", "unchanged", "deferred", "refused"
# Each action in the order of the plan: its heading, and how it is counted in the first line.
ACTIONS = {
    REFUSED: ("Refused", "refused"),
    INSTALL: ("First releases", "to install"),
    SWITCH: ("Switches", "to switch"),
    DEFERRED: ("Staged now, switched by a run inside the window", "deferred"),
    UNCHANGED: ("Unchanged", "unchanged"),
}
WARNINGS = "Warnings"
LABEL = 10  # characters of a label such as `download`
_UNBROKEN = "\xa0"  # a space at which no line is broken
MOST_LINES = 3  # of host names beside one entry; --json has them all


@dataclass(frozen=True)
class ServicePlan:
    """The planned action for one service of one host. A pair is (before, after); None: there is none.

    reasons: why it is refused
    shared: whether the hosts that lack the checkpoint fetch it from each other
    installs: the runtime that would be installed; "" where it is there
    memory: the fit of one GPU, as `resolve --json` tells it
    standby: why it can't be had; "": it can; None: it is not asked for
    """

    service: str
    action: str
    old: str | None = None
    new: str | None = None
    flags: Mapping[str, Pair] = field(default_factory=dict)
    environment: Mapping[str, Pair] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    model: Pair = (None, None)
    runtime: Pair = (None, None)
    download_bytes: int = 0
    shared: bool = False
    installs: str = ""
    window: str = ""
    memory: Mapping[str, Any] = field(default_factory=dict)
    standby: str | None = None
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def as_dict(self, host_reasons: Sequence[str] = ()) -> dict[str, object]:
        return {
            "service": self.service,
            "action": self.action,
            "from": self.old,
            "to": self.new,
            "changes": {
                "flags": {name: list(pair) for name, pair in self.flags.items()},
                "environment": {name: list(pair) for name, pair in self.environment.items()},
                "secrets": list(self.secrets),
                "model": list(self.model),
                "runtime": list(self.runtime),
            },
            "download_bytes": self.download_bytes,
            "shared": self.shared,
            "installs": self.installs,
            "window": self.window,
            "memory": dict(self.memory),
            "standby": standby.as_dict(self.standby),
            "reasons": [*host_reasons, *self.reasons],
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class HostPlan:
    """One host. `reasons` refuse all of it: not reachable, or without a requirement of every service."""

    host: str
    services: tuple[ServicePlan, ...] = ()
    reasons: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        return {
            "host": self.host,
            "reasons": list(self.reasons),
            "services": [service.as_dict(self.reasons) for service in self.services],
        }


def exit_code(plans: Iterable[HostPlan]) -> int:
    """1 where anything is refused."""
    return int(any(plan.reasons or any(item.reasons for item in plan.services) for plan in plans))


def as_json(plans: Iterable[HostPlan]) -> dict[str, object]:
    return {"hosts": [plan.as_dict() for plan in plans]}


def lines(plans: Sequence[HostPlan], width: int) -> list[str]:
    """The plan for a person: an entry that many hosts share stands once, with their names."""
    everyone = [plan.host for plan in plans]
    made = _wrapped(_headline(plans), width, "")
    sections = {ACTIONS[REFUSED][0]: list(_reasons(plans, everyone, width))}
    for action in (INSTALL, SWITCH, DEFERRED, UNCHANGED):
        sections[ACTIONS[action][0]] = list(_blocks(plans, action, everyone, width))
    sections[WARNINGS] = list(_warnings(plans, everyone, width))
    for heading, found in sections.items():
        made += ["", heading, *found] if found else []
    return made


def _headline(plans: Sequence[HostPlan]) -> str:
    services = [item for plan in plans for item in plan.services]
    counts = {action: sum(item.action == action for item in services) for action in ACTIONS}
    told = ", ".join(f"{counts[action]} {word}" for action, (_, word) in ACTIONS.items() if counts[action])
    bare = sum(not plan.services for plan in plans)
    nothing = f"; {counted(bare, 'host')} without a service" if bare else ""
    size = f"{counted(len(plans), 'host')}, {counted(len(services), 'service')}"
    return f"{size}: {told or 'nothing to do'}{nothing}"


def _reasons(plans: Sequence[HostPlan], everyone: Sequence[str], width: int) -> Iterator[str]:
    told = [(reason, "", plan.host) for plan in plans for reason in plan.reasons]
    told += [
        (reason, item.service, plan.host)
        for plan in plans
        for item in plan.services
        for reason in item.reasons
    ]
    yield from _told(told, everyone, width)


def _warnings(plans: Sequence[HostPlan], everyone: Sequence[str], width: int) -> Iterator[str]:
    told = [
        (warning, item.service, plan.host)
        for plan in plans
        for item in plan.services
        for warning in item.warnings
    ]
    yield from _told(told, everyone, width)


def _told(told: Iterable[tuple[str, str, str]], everyone: Sequence[str], width: int) -> Iterator[str]:
    """Sentences, each once for all (service, host) that it is about; other numbers make no other sentence."""
    groups: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for sentence, service, host in told:
        groups.setdefault(_without_numbers(sentence), {}).setdefault(service, []).append((host, sentence))
    for services in groups.values():
        first_host, first = next(iter(services.values()))[0]
        alike = {sentence for about in services.values() for _, sentence in about}
        example = f" (the numbers are those of {first_host})" if len(alike) > 1 else ""
        yield from _wrapped(f"{first}{example}", width, "  ")
        for service, about in services.items():
            yield from _subject(service, [host for host, _ in about], everyone, width, "    ")


def _without_numbers(sentence: str) -> str:
    return re.sub(r"\d[\d.,]*", "#", sentence)


def _blocks(plans: Sequence[HostPlan], action: str, everyone: Sequence[str], width: int) -> Iterator[str]:
    """Each change once, with every host that it is the same for."""
    groups: dict[str, list[tuple[str, ServicePlan]]] = {}
    for plan in plans:
        for item in plan.services:
            if item.action == action:
                groups.setdefault(repr(_shared(item)), []).append((plan.host, item))
    for group in groups.values():
        item = group[0][1]
        yield from _subject(item.service, [host for host, _ in group], everyone, width, "  ")
        if action == UNCHANGED:
            continue
        olds = dict.fromkeys(each.old for _, each in group if each.old)
        for label, text in _details(item, list(olds)):
            yield from _wrapped(text, width, f"    {label:{LABEL}}", " " * (4 + LABEL))


def _shared(item: ServicePlan) -> Any:
    """Return the values that hosts of one block have in common. Warnings have a section of their own."""
    if item.action == UNCHANGED:
        return item.service
    content = item.as_dict()
    return {key: value for key, value in content.items() if key not in ("from", "warnings")}


def _details(item: ServicePlan, olds: Sequence[str]) -> Iterator[tuple[str, str | Sequence[str]]]:
    new = item.new or "one that can't be named here"
    yield "release", f"{', '.join(olds)} -> {new}" if olds else new
    for label, pair in (("model", item.model), ("runtime", item.runtime)):
        if pair[0] != pair[1]:
            yield label, f"{pair[0]} -> {pair[1]}" if pair[0] else str(pair[1])
    if item.flags:
        yield "flags", [_change(name, pair, " ") for name, pair in item.flags.items()]
    if item.environment:
        yield "variables", [_change(name, pair, "=") for name, pair in item.environment.items()]
    if item.secrets:
        yield "secrets", item.secrets
    if item.download_bytes:
        shared = ", shared with the other hosts" if item.shared else ""
        yield "download", in_units(item.download_bytes) + shared
    if item.installs:
        yield "install", item.installs
    if item.memory:
        yield "memory", memory(item.memory)
    if item.standby is not None:
        yield "standby", standby.told(item.standby)
    if item.window:
        yield "window", item.window


def _change(name: str, pair: Pair, joint: str) -> str:
    before, after = (None if value is None else "" if value is True else str(value) for value in pair)
    if before is None:
        return f"+ {name}{joint if after else ''}{after}"
    if after is None:
        return f"- {name}{joint if before else ''}{before}"
    return f"{name}{joint}{before} -> {after}"


def memory(fit: Mapping[str, Any]) -> str:
    """The predicted memory of one GPU, in a line."""
    cache = fit["kv_tokens"] * fit["kv_bytes_per_token"]
    tight = f"; fits tightly, {fit['reserve_bytes'] / GIB:.2f} GiB in reserve" if fit.get("tight") else ""
    return (
        f"{fit['weights_bytes'] / GIB:.1f} GiB of weights, {cache / GIB:.1f} GiB of KV cache"
        f" ({fit['kv_tokens']:,} tokens, {fit['max_concurrency']:g} requests of full length at a time){tight}"
    )


def _subject(
    service: str, hosts: Sequence[str], everyone: Sequence[str], width: int, indent: str
) -> list[str]:
    start = f"{service} on " if service else ""
    named = host_names(hosts, everyone)
    for shown in range(len(named), 0, -1):
        left = sum(count for _, count in named[shown:])
        names = ", ".join(text for text, _ in named[:shown]) + (f" and {left} more" if left else "")
        made = _wrapped(f"{start}{names}", width, indent, f"{indent}  ")
        if len(made) <= MOST_LINES:
            return made
    return made


def host_names(hosts: Sequence[str], everyone: Sequence[str] = ()) -> list[tuple[str, int]]:
    """Hosts as people write them, each text with how many it stands for: `gpu-01 to gpu-38`."""
    if len(hosts) > 2 and set(hosts) == set(everyone):
        return [(f"all {len(hosts)} hosts", len(hosts))]
    runs: list[list[str]] = []
    for host in hosts:
        if runs and _follows(runs[-1][-1], host):
            runs[-1].append(host)
        else:
            runs.append([host])
    named: list[tuple[str, int]] = []
    for run in runs:
        if len(run) > 2:
            named.append((f"{run[0]} to {run[-1]}", len(run)))
        else:
            named += [(host, 1) for host in run]
    return named


def _follows(host: str, following: str) -> bool:
    """Whether the second name is the first with its last number one higher."""
    parts = re.fullmatch(r"(.*?)(\d+)(\D*)", host)
    if parts is None:
        return False
    before, number, after = parts.groups()
    return following == f"{before}{int(number) + 1:0{len(number)}d}{after}"


def _wrapped(text: str | Sequence[str], width: int, indent: str, following: str | None = None) -> list[str]:
    """A text, or a list of which no item is broken, in lines of at most `width`."""
    whole = printable(text) if isinstance(text, str) else _list(text)
    made = wrapped(whole, width, indent, indent if following is None else following)
    return [line.replace(_UNBROKEN, " ") for line in made]


def _list(items: Sequence[str]) -> str:
    return ", ".join(printable(item).replace(" ", _UNBROKEN) for item in items)
