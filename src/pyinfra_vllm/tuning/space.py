"""The configurations that tuning would try for one service, and the reasons against the others.

Pure: the catalog's space (space.yaml), pruned by the resolver. Each is the current configuration with one
change, and has been resolved, so its flags exist, agree with the rules and fit the card.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pyinfra_vllm import tuning
from pyinfra_vllm.catalog import space as catalog
from pyinfra_vllm.catalog.conditions import holds
from pyinfra_vllm.catalog.gpus import Gpu
from pyinfra_vllm.catalog.shapes import Shape
from pyinfra_vllm.catalog.space import Entry
from pyinfra_vllm.tuning import declared, measured
from pyinfra_vllm.tuning.facts import Facts, of_request
from pyinfra_vllm.tuning.measured import Settings
from pyinfra_vllm.tuning.profile import Profile
from pyinfra_vllm.tuning.resolution import Resolution

if TYPE_CHECKING:
    from pyinfra_vllm.config.profiles import MeasuredProfile

STOCK = Entry(
    name="stock",
    group="stock",
    about="vLLM's own choices",
    answers="same",
    source="vllm serve without tuned flags",
)
SOURCE = "catalog/space.yaml"
KERNEL_CHOICES = ("--linear-backend", "VLLM_DISABLED_KERNELS")


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
    """The current configuration, those that are tried against it, and those that are not."""

    current: Resolution
    candidates: tuple[Candidate, ...]
    ruled_out: tuple[RuledOut, ...]


def pruned(
    *,
    model: Shape,
    gpu: Gpu,
    gpu_count: int,
    runtime_version: str,
    objective: str,
    max_model_len: int | None = None,
    variants: Sequence[str | Mapping[str, Any]] = (),
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    runtime_flags: Collection[str] | None = None,
    profiles: Sequence[MeasuredProfile] = (),
    **more: Any,
) -> Space:
    """The space for one service; the arguments are those of `tuning.resolve`.

    + profiles: measured ones; where one is in use, it is what the others are tried against
    """
    ask = partial(
        tuning.resolve,
        model=model,
        gpu=gpu,
        gpu_count=gpu_count,
        runtime_version=runtime_version,
        objective=objective,
        max_model_len=max_model_len,
        flags=flags,
        environment=environment,
        runtime_flags=runtime_flags,
        **more,
    )
    current = ask(variants=variants, profiles=profiles)
    stock = ask(variants=variants, instead=_settings({}, {}))
    facts = Facts(
        of_request(model, gpu, runtime_version)
        | {"gpu_count": gpu_count, "objective": objective, "max_model_len": max_model_len},
        Profile(),
        model,
        gpu,
    )
    own = (
        {declared.spelled(name) for name in flags or {}} | set(environment or {}) | measured.touched(variants)
    )
    beneath = _difference(current, stock)
    seen = {_identity(current): "the current configuration"}
    candidates: list[Candidate] = []
    ruled_out: list[RuledOut] = []
    for entry in (STOCK, *catalog.entries()):
        because = _ruled_out(entry, objective, facts, own)
        if because is None:
            candidate = _candidate(entry, beneath, tuple(variants), ask)
            because = _refused(candidate.resolution, current) or _same(candidate.resolution, seen)
        if because is None:
            seen[_identity(candidate.resolution)] = entry.name
            candidates.append(candidate)
        else:
            ruled_out.append(RuledOut(entry.name, because))
    return Space(current, tuple(_most_promising_first(candidates)), tuple(ruled_out))


def _ruled_out(entry: Entry, objective: str, facts: Facts, own: Collection[str]) -> str | None:
    if objective not in entry.objectives:
        return f"not tried for {objective}"
    for row in entry.rules_out:
        if holds(row["when"], facts):
            return str(row["because"])
    ours = sorted((_touches(entry)) & set(own))
    return f"you declare {', '.join(ours)} yourself" if ours else None


def _touches(entry: Entry) -> set[str]:
    """The flags and variables that an entry sets."""
    return set(entry.flags) | set(entry.environment) | measured.touched(entry.variants)


def _candidate(
    entry: Entry,
    beneath: Settings,
    variants: tuple[str | Mapping[str, Any], ...],
    ask: Callable[..., Resolution],
) -> Candidate:
    """An entry on top of what is tuned now; `stock` is nothing at all."""
    replaced = {name for each in catalog.entries() if each.group == entry.group for name in _touches(each)}
    kept = entry is not STOCK
    settings = _settings(
        {name: value for name, value in beneath.flags.items() if kept and name not in replaced}
        | dict(entry.flags),
        {name: value for name, value in beneath.environment.items() if kept and name not in replaced}
        | dict(entry.environment),
        entry,
    )
    tried = (*variants, *entry.variants)
    return Candidate(entry, settings, tried, ask(variants=tried, instead=settings))


def _settings(flags: Mapping[str, Any], environment: Mapping[str, str], entry: Entry = STOCK) -> Settings:
    return Settings(flags, environment, entry.about, SOURCE)


def _difference(current: Resolution, stock: Resolution) -> Settings:
    """The settings that the objective or a measured profile adds to vLLM's own choices; None where a flag is
    taken out.
    """
    before = {flag.flag: flag.value for flag in stock.flags}
    now = {flag.flag: flag.value for flag in current.flags}
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
    argv = [token for flag in flags for token in tuning.tokens(flag.flag, flag.value)]
    return found.kernel, tuple(argv), tuple(sorted(variables))


def _most_promising_first(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that are known to matter, in the catalog's order, before those that nobody measured."""
    return sorted(candidates, key=lambda each: each.entry.matters is None)


def _shown(variant: str | Mapping[str, Any]) -> str:
    if isinstance(variant, str):
        return f"variant {variant}"
    return ", ".join(f"variant {name}: {value}" for name, value in variant.items())
