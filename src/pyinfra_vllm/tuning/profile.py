"""A profile while it is being put together: flags and variables, each with its reason and source.

Knows how an entry of the catalog is applied; knows nothing of GPUs, models or versions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyinfra_vllm.catalog.conditions import Facts
from pyinfra_vllm.tuning import values

NAME = re.compile(r"\$(--[a-z0-9-]+|[a-z_]+)")


@dataclass(frozen=True)
class Flag:
    """One flag of `vllm serve` with its value: text, a number, true or false, a list, or a mapping (JSON)."""

    flag: str
    value: Any
    reason: str
    source: str


class Profile:
    """Flags by name, environment by variable, and what was said about them.

    Later settings win; mappings merge. `changes` counts them: what follows from the settings is right until
    the next.
    """

    def __init__(self) -> None:
        self._flags: dict[str, Flag] = {}
        self._environment: dict[str, Flag] = {}
        self.flags: Mapping[str, Flag] = self._flags
        self.environment: Mapping[str, Flag] = self._environment
        self.changes = 0
        self.warnings: list[str] = []
        self.errors: list[str] = []
        self.understood = True  # every declared value was one
        self.declared: set[str] = set()  # flags and variables that the operator set

    def value(self, flag: str) -> Any:
        return self.flags[flag].value if flag in self.flags else None

    def set(self, flag: str, value: Any, reason: str, source: str) -> None:
        before = self.value(flag)
        merged = (
            _merge(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
        )
        self.take(Flag(flag, merged, reason, source))

    def take(self, setting: Flag) -> None:
        """A flag or a variable as it is, in the place of any before."""
        settings = self._flags if setting.flag.startswith("-") else self._environment
        settings[setting.flag] = setting
        self.changes += 1

    def drop(self, name: str) -> None:
        self._flags.pop(name, None)
        self._environment.pop(name, None)
        self.changes += 1

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def fail(self, text: str) -> None:
        if text not in self.errors:
            self.errors.append(text)

    def misread(self, text: str) -> None:
        """An error about a value that says nothing: the question, not its answer, is wrong."""
        self.understood = False
        self.fail(text)


def apply(entry: Mapping[str, Any], facts: Facts, profile: Profile) -> None:
    """Applies one entry of the catalog, whose `when` holds."""
    reason = fill(entry.get("reason", ""), facts)
    source = entry.get("source", "")
    for flag, value in entry.get("flags", {}).items():
        _set(flag, fill(value, facts), reason, source, profile)
    for name, value in entry.get("environment", {}).items():
        _set_variable(name, str(fill(value, facts)), reason, source, profile)
    for flag in entry.get("drop", ()):
        profile.drop(flag)
    if "warning" in entry:
        profile.warn(fill(entry["warning"], facts))
    if "error" in entry:
        profile.fail(fill(entry["error"], facts))


def fill(value: Any, facts: Facts) -> Any:
    """A value of the catalog with its `$name`s replaced: by the fact itself if alone, else by its text."""
    if isinstance(value, str):
        if "$" not in value:
            return value
        whole = NAME.fullmatch(value)
        return facts[whole.group(1)] if whole else NAME.sub(lambda name: str(facts[name.group(1)]), value)
    if isinstance(value, list):
        return [fill(each, facts) for each in value]
    if isinstance(value, Mapping):
        return {key: fill(each, facts) for key, each in value.items()}
    return value


def _set(flag: str, value: Any, reason: str, source: str, profile: Profile) -> None:
    """The operator's own value stays: where a rule needs another one, that is the operator's to resolve."""
    if flag in profile.declared and not isinstance(value, Mapping):
        if values.meaning(flag, profile.value(flag)) != values.meaning(flag, value):
            profile.fail(
                f"flags: {{{flag.removeprefix('--')}: {profile.value(flag)}}} can't be: {reason}. "
                f"Take it out or declare {value}"
            )
        return
    profile.set(flag, value, reason, source)


def _set_variable(name: str, value: str, reason: str, source: str, profile: Profile) -> None:
    """The same for a variable of the environment."""
    if name not in profile.declared:
        profile.take(Flag(name, value, reason, source))
        return
    own = profile.environment[name].value
    if values.meaning(name, own) != values.meaning(name, value):
        profile.fail(f"environment: {{{name}: {own}}} can't be: {reason}. Take it out or declare {value}")


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(merged.get(key), Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
