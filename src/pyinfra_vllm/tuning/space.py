"""The configurations that tuning would try for one service, and the reasons against the others.

Pure: the catalog's space (space.yaml), pruned by the resolver. Each is the current configuration with one
change, and has been resolved, so its flags exist, agree with the rules and fit the card.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pyinfra_vllm.catalog import space as catalog
from pyinfra_vllm.catalog.conditions import holds
from pyinfra_vllm.catalog.space import STOCK, Entry
from pyinfra_vllm.tuning import measured
from pyinfra_vllm.tuning.decision import fixed_facts
from pyinfra_vllm.tuning.facts import Facts
from pyinfra_vllm.tuning.measured import Settings
from pyinfra_vllm.tuning.profile import Profile
from pyinfra_vllm.tuning.request import Request
from pyinfra_vllm.tuning.resolution import Resolution, tokens
from pyinfra_vllm.tuning.resolver import resolve
from pyinfra_vllm.tuning.search import JOIN

SOURCE = "catalog/space.yaml"
KERNEL_CHOICES = ("--linear-backend", "VLLM_DISABLED_KERNELS")
DRAFT_HEAD = "$draft_head"  # in an entry's variants: the declared one


@dataclass(frozen=True)
class Candidate:
    """One configuration to try, with what it resolves to."""

    entry: Entry
    settings: Settings
    variants: tuple[str | Mapping[str, Any], ...]
    resolution: Resolution

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def changes(self) -> str:
        """Its change, as a person would declare it."""
        told = [_shown(each) for each in self.entry.variants]
        told += [f"{name} {value}" for name, value in self.entry.flags.items()]
        told += [f"{name}={value}" for name, value in self.entry.environment.items()]
        return ", ".join(told) or "no flags of the objective's"


@dataclass(frozen=True)
class RuledOut:
    """One configuration that isn't tried."""

    name: str
    because: str


@dataclass(frozen=True)
class Space:
    """The current configuration, those that are tried against it, and those that are not.

    + stock: vLLM's own choices, with what the operator declares
    + resolved: an entry on top of the current configuration
    """

    current: Resolution
    candidates: tuple[Candidate, ...]
    ruled_out: tuple[RuledOut, ...]
    stock: Resolution
    resolved: Callable[[Entry], Candidate] = field(compare=False, repr=False)

    def candidate(self, name: str) -> Candidate:
        """The candidate of that name: one of `candidates`, or several of them together (search.JOIN).

        Its flags may contradict each other: then its resolution has errors. Raises KeyError for no such name.
        """
        known = {each.name: each for each in self.candidates}
        if name in known:
            return known[name]
        return self.resolved(_together(name, [known[part].entry for part in name.split(JOIN)]))

    def settings(self, candidate: Candidate) -> Settings:
        """The flags and variables of a measured profile from which this candidate is resolved."""
        return _difference(candidate.resolution, self.stock)


def pruned(request: Request, draft_head: str | None = None, only: Collection[str] | None = None) -> Space:
    """The space for one service.

    + request: of the current configuration (or the measured profile in use), which others are tried against
    + draft_head: the folder of an EAGLE3 head of this model, on the host
    + only: the names of the configurations to try; None: all
    """
    current = resolve(request)
    stock = resolve(replace(request, instead=_settings({}, {})))
    facts = Facts(fixed_facts(request), Profile(), request.shape, request.card)
    own = measured.names_declared(request)
    resolved = partial(_candidate, beneath=_difference(current, stock), request=request)
    seen = {_identity(current): "the current configuration"}
    candidates: list[Candidate] = []
    ruled_out: list[RuledOut] = []
    for entry in (STOCK, *catalog.entries()):
        because = _ruled_out(entry, request.objective, facts, own, draft_head)
        if because is None and only is not None and entry.name not in only:
            because = "you try others alone (`tune: {only: [...]}`)"
        if because is None:
            candidate = resolved(_with_head(entry, draft_head))
            because = _refused(candidate.resolution, current) or _same(candidate.resolution, seen)
        if because is None:
            seen[_identity(candidate.resolution)] = entry.name
            candidates.append(candidate)
        else:
            ruled_out.append(RuledOut(entry.name, because))
    return Space(current, tuple(_most_promising_first(candidates)), tuple(ruled_out), stock, resolved)


def _ruled_out(
    entry: Entry, objective: str, facts: Facts, own: Collection[str], draft_head: str | None
) -> str | None:
    if objective not in entry.objectives:
        return f"not tried for {objective}"
    if draft_head is None and DRAFT_HEAD in str(entry.variants):
        return "you declare no draft head for this model (`tune: {draft_head: DIR}`)"
    for row in entry.rules_out:
        if holds(row["when"], facts):
            return str(row["because"])
    ours = sorted((_touches(entry)) & set(own))
    return f"you declare {', '.join(ours)} yourself" if ours else None


def _touches(entry: Entry) -> set[str]:
    """The flags and variables that an entry sets."""
    return set(entry.flags) | set(entry.environment) | measured.touched(entry.variants)


def _with_head(entry: Entry, draft_head: str | None) -> Entry:
    """The entry with the declared draft head in its place."""
    if DRAFT_HEAD not in str(entry.variants):
        return entry
    variants = tuple(
        each
        if isinstance(each, str)
        else {
            name: {key: draft_head if item == DRAFT_HEAD else item for key, item in value.items()}
            for name, value in each.items()
        }
        for each in entry.variants
    )
    return replace(entry, variants=variants)


def _together(name: str, parts: Sequence[Entry]) -> Entry:
    """Entries of different groups as one."""
    return Entry(
        name=name,
        group=JOIN.join(each.group for each in parts),
        about="; ".join(each.about for each in parts),
        answers=next((each.answers for each in parts if each.changes_answers), "same"),
        source=SOURCE,
        variants=tuple(variant for each in parts for variant in each.variants),
        flags={name: value for each in parts for name, value in each.flags.items()},
        environment={name: value for each in parts for name, value in each.environment.items()},
    )


def _candidate(entry: Entry, beneath: Settings, request: Request) -> Candidate:
    """An entry on top of what is tuned now; `stock` is nothing at all."""
    groups = entry.group.split(JOIN)
    replaced = {name for each in catalog.entries() if each.group in groups for name in _touches(each)}
    kept = STOCK.group not in groups
    settings = _settings(
        {name: value for name, value in beneath.flags.items() if kept and name not in replaced}
        | dict(entry.flags),
        {name: value for name, value in beneath.environment.items() if kept and name not in replaced}
        | dict(entry.environment),
        entry,
    )
    tried = (*request.variants, *entry.variants)
    asked = replace(request, variants=tried, instead=settings)
    return Candidate(entry, settings, tried, resolve(asked))


def _settings(flags: Mapping[str, Any], environment: Mapping[str, str], entry: Entry = STOCK) -> Settings:
    return Settings(flags, environment, entry.about, SOURCE)


def _difference(current: Resolution, stock: Resolution) -> Settings:
    """The settings that the objective or a profile adds to vLLM's choices; None where a flag goes."""
    before, now = stock.values, current.values
    flags = {name: value for name, value in now.items() if before.get(name) != value}
    gone: dict[str, Any] = dict.fromkeys(before.keys() - now.keys())
    variables = {
        name: value for name, value in current.environment.items() if stock.environment.get(name) != value
    }
    return _settings(flags | gone, variables)


def _refused(found: Resolution, current: Resolution) -> str | None:
    """The resolver's first error that the current configuration hasn't: also that it doesn't fit."""
    return next((text for text in found.errors if text not in current.errors), None)


def _same(found: Resolution, seen: Mapping[Any, str]) -> str | None:
    same = seen.get(_identity(found))
    return f"comes to the same as {same}" if same else None


def _identity(found: Resolution) -> tuple[Any, ...]:
    """Flags and variables; of those that choose a kernel, the kernel that they come to."""
    flags = [flag for flag in found.flags if not found.kernel or flag.flag not in KERNEL_CHOICES]
    variables = [
        each for each in found.environment.items() if not found.kernel or each[0] not in KERNEL_CHOICES
    ]
    argv = [token for flag in flags for token in tokens(flag.flag, flag.value)]
    return found.kernel, tuple(argv), tuple(sorted(variables))


def _most_promising_first(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that are known to matter, in the catalog's order, before those that nobody measured."""
    return sorted(candidates, key=lambda each: each.entry.matters is None)


def _shown(variant: str | Mapping[str, Any]) -> str:
    if isinstance(variant, str):
        return f"variant {variant}"
    return ", ".join(f"variant {name}: {value}" for name, value in variant.items())
