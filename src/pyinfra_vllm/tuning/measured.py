"""Applies a measured profile (profiles/*.yaml) where it is valid: this card, model, runtime and objective.

A card's name is no proof: a MIG instance prints that of its card, and an RTX 4090 of 48 GB that of 24.

It stands in the place of the catalog's entries for the objective, which it was measured against. The
operator's declaration and the rules go before it; a warning says where the two differ, because the file's
figures then hold no longer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pyinfra_vllm.catalog import gpus, table, versions
from pyinfra_vllm.catalog.gpus import Gpu
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.tuning import declared, values
from pyinfra_vllm.tuning.profile import Flag, Profile

if TYPE_CHECKING:
    from pyinfra_vllm.config.profiles import MeasuredProfile, Tuned
    from pyinfra_vllm.tuning.request import Request


@dataclass(frozen=True)
class Settings:
    """Flags and variables that stand in the place of the catalog's entries for the objective."""

    flags: Mapping[str, Any]
    environment: Mapping[str, str]
    reason: str
    source: str


@dataclass(frozen=True)
class Measured:
    """The part of one file that is about one objective."""

    file: str
    tuned: Tuned

    @property
    def settings(self) -> Settings:
        reason = f"measured {self.tuned.measured}: {self.tuned.gain}"
        return Settings(self.tuned.flags, self.tuned.environment, reason, self.file)

    def __str__(self) -> str:
        return f"{self.file}, measured {self.tuned.measured}: {self.tuned.gain}"


def valid(request: Request) -> tuple[Measured | None, list[str]]:
    """The profile that was measured for exactly this, the newest of several, and what is to be said of those
    of this model that are not used.
    """
    card, gpu_count, objective = request.card, request.gpu_count, request.objective
    version = versions.parse(request.version)
    ours = [each for each in request.profiles if each.model == request.shape.name]
    fitting = [each for each in ours if _same_card(each, card, gpu_count)]
    current = [each for each in fitting if versions.parse(each.runtime) == version]
    same = [each for each in current if objective in each.objectives]
    if same:
        used = max(same, key=lambda each: (each.objectives[objective].measured, each.card == card.title))
        rest = [_superseded(each, used) for each in same if each is not used]
        return Measured(used.file, used.objectives[objective]), rest
    if current:
        return None, []
    told = ".".join(map(str, version))
    if fitting:
        why = f"vLLM {' and '.join(each.runtime for each in fitting)}, and this is {told}"
        return None, [_unused(fitting, why)]
    if ours:
        memory_mib = card.memory_mib if any(each.memory_mib for each in ours) else None
        this = _counted(gpu_count, card.title, memory_mib)
        why = f"{' and '.join(_cards(each, card) for each in ours)}, and this is {this}"
        return None, [_unused(ours, why)]
    return None, []


def apply(given: Settings, request: Request, known: Collection[str], profile: Profile) -> dict[str, Flag]:
    """Adds these settings, less those that the operator declares. Returns all of them.

    + known: the flags that the runtime has
    """
    read = _read(given, known, request.version, profile)
    own = names_declared(request)
    for name, value in given.flags.items():
        if declared.spelled(name) not in own and value is None:
            profile.drop(declared.spelled(name))
    settings = {**read.flags, **read.environment}
    for name, setting in settings.items():
        if name not in own:
            profile.take(setting)
    return settings


def differences(
    found: Measured, measured: Mapping[str, Flag], max_model_len: int | None, profile: Profile
) -> list[str]:
    """Where this is not what was measured, by the operator's word or a rule's: the figures may not hold."""
    told = [
        f"{name} {values.short(flag.value)} was measured, and {_now(name, profile)}"
        for name, flag in measured.items()
        if values.meaning(name, _value(name, profile)) != values.meaning(name, flag.value)
    ]
    length = found.tuned.max_model_len
    if length and max_model_len and length != max_model_len:
        told.append(f"it was measured with max_model_len {length}, and here it is {max_model_len}")
    return [f"{found.file}: {text}: its figures may not hold for that" for text in told]


def _read(given: Settings, known: Collection[str], version: str, profile: Profile) -> Profile:
    """The settings, after the checks that an operator's own get; problems are told with their source."""
    read = Profile()
    declared.apply_flags(given.flags, known, version, read)
    declared.apply_environment(given.environment, version, read)
    for text in read.errors:
        profile.fail(f"{given.source}: {text}")
    for text in read.warnings:
        profile.warn(f"{given.source}: {text}")
    profile.understood = profile.understood and read.understood
    for setting in (*read.flags.values(), *read.environment.values()):
        read.take(replace(setting, reason=given.reason, source=given.source))
    return read


def names_declared(request: Request) -> set[str]:
    """The flags and variables that the operator declares, by whatever spelling or variant."""
    flags = {declared.spelled(name) for name in request.flags}
    return flags | touched(request.variants) | set(request.environment)


def touched(variants: Sequence[str | Mapping[str, Any]]) -> set[str]:
    """The flags that the operator's variants may set: two speculations are not merged into one."""
    rows = table("variants.yaml")
    names = [name for each in variants for name in ([each] if isinstance(each, str) else each)]
    entries = [entry for name in names for entry in rows.get(name, {}).get("entries", ())]
    return {flag for entry in entries for flag in entry.get("flags", ())}


def _same_card(profile: MeasuredProfile, card: Gpu, gpu_count: int) -> bool:
    """Whether the profile's name and memory mean this card. A file that doesn't say the memory means the card
    of the catalog that has this name.
    """
    return profile.gpus == gpu_count and _means(profile, profile.memory_mib, card)


def _means(profile: MeasuredProfile, memory_mib: int | None, card: Gpu) -> bool:
    own = (card,) if memory_mib else ()
    try:
        return gpus.find(profile.card, card.compute_capability, memory_mib, own).title == card.title
    except DeclarationError:
        return False  # a card that nobody knows here is another one


def _superseded(profile: MeasuredProfile, used: MeasuredProfile) -> str:
    return (
        f"{profile.file} is not used: {used.file} is valid for the same, and of several files the one that"
        " was measured last counts; remove one of the two"
    )


def _unused(profiles: Sequence[MeasuredProfile], why: str) -> str:
    files = ", ".join(each.file for each in profiles)
    used = "is not used: it was" if len(profiles) == 1 else "are not used: they were"
    return f"{files} {used} measured with {why}; the catalog's flags are used"


def _cards(profile: MeasuredProfile, card: Gpu) -> str:
    told = _counted(profile.gpus, profile.card, profile.memory_mib)
    unsaid = profile.memory_mib is None and not _means(profile, None, card)
    if unsaid and _means(profile, card.memory_mib, card):
        told += f" (add `memory_mib: {card.memory_mib}` to it if it was this card)"
    return told


def _counted(gpu_count: int, card: str, memory_mib: int | None) -> str:
    counted = f"{gpu_count} x {card}" if gpu_count else card
    return f"{counted} with {memory_mib} MiB" if memory_mib else counted


def _value(name: str, profile: Profile) -> Any:
    return profile.environment[name].value if name in profile.environment else profile.value(name)


def _now(name: str, profile: Profile) -> str:
    settings = {**profile.flags, **profile.environment}
    if name not in settings:
        return "is left out here"
    flag = settings[name]
    return f"here it is {values.short(flag.value)} ({flag.reason})"
