"""The differences between the two releases of a switch, as their release.json tell them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ..answers import StagedRelease
from ..release import Value, changed_environment, changed_flags

SET, SECRET = "set", "set (secret)"  # of a flag without a value, and of a variable that nobody may read


@dataclass(frozen=True)
class Change:
    """A part of the release, before and after; empty where there was or is none."""

    name: str
    before: str
    after: str


def changes(old: StagedRelease, new: StagedRelease) -> tuple[Change, ...]:
    """Model, runtime, flags, variables and secrets that differ, in this order.

    A secret that has another value under the same name can't be seen.
    """
    pairs: list[tuple[str, Value, Value]] = [
        ("model", checkpoint(old), checkpoint(new)),
        ("vLLM", runtime(old), runtime(new)),
    ]
    pairs += [(name, *pair) for name, pair in changed_flags(old["argv"], new["argv"]).items()]
    pairs += [
        (name, *pair) for name, pair in changed_environment(_environment(old), _environment(new)).items()
    ]
    secrets = [dict.fromkeys(release.get("secrets", ()), SECRET) for release in (old, new)]
    pairs += [(name, *pair) for name, pair in changed_environment(*secrets).items()]
    return tuple(
        Change(name, _text(before), _text(after)) for name, before, after in pairs if before != after
    )


def checkpoint(release: StagedRelease) -> str:
    """`Qwen/Qwen3-32B-AWQ at 2b7a9b4e1d0c`."""
    found = release["checkpoint"]
    parts = (found.get("repo", ""), found.get("commit", "")[:12])
    return " at ".join(part for part in parts if part)


def runtime(release: StagedRelease) -> str:
    return release.get("runtime", {}).get("version", "")


def _environment(release: StagedRelease) -> dict[str, str]:
    """Without the runtime's own place, which changes with its version."""
    path = release.get("runtime", {}).get("path")
    found = release.get("environment", {})
    return {name: value.replace(path, "RUNTIME") if path else value for name, value in found.items()}


def _text(value: Value) -> str:
    return SET if value is True else str(value or "")
