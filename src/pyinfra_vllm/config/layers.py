"""Merges layers of plain data, general to particular, and remembers where each value came from.

Maps are merged key by key; any other value replaces the one below. `None` removes the one below
(`without_removed`), except where it has a meaning of its own and stands: a vLLM flag of `None` is one that
the resolver may not choose, a margin of `None` is one that never decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Path = tuple[str | int, ...]
ABSENT = object()
_KEEPS_NONE = "flags"


@dataclass(frozen=True)
class Layer:
    """Values of one file (or `--data`), labelled the way a message names it: `group_data/all.py`."""

    source: str
    values: Mapping[str, Any]


@dataclass
class Merged:
    """The merged values, and the layer of each path in them."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[Path, str] = field(default_factory=dict)

    def source(self, path: Sequence[str | int]) -> str:
        """The layer that declared `path`, or else the one of its nearest declared parent."""
        for length in range(len(path), 0, -1):
            found = self.sources.get(tuple(path[:length]))
            if found is not None:
                return found
        return next(iter(self.sources.values()), "group_data")


def merge(layers: Sequence[Layer]) -> Merged:
    """Merges in order: a later layer wins."""
    merged = Merged()
    for layer in layers:
        _merge_map(merged, merged.values, layer.values, (), layer.source)
    return merged


def _merge_map(
    merged: Merged, into: dict[str, Any], values: Mapping[str, Any], at: Path, source: str
) -> None:
    for raw_key, value in values.items():
        key = normal_flag(raw_key) if at and at[-1] == _KEEPS_NONE else raw_key
        path = (*at, key)
        if isinstance(value, Mapping):
            if not isinstance(into.get(key), dict):
                _forget(merged, path)
                into[key] = {}
            merged.sources[path] = source
            _merge_map(merged, into[key], value, path, source)
        else:
            _forget(merged, path)
            into[key] = value
            merged.sources[path] = source


def _forget(merged: Merged, path: Path) -> None:
    for known in [known for known in merged.sources if known[: len(path)] == path]:
        del merged.sources[known]


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> Mapping[str, Any]:
    """Both maps as one, `above` winning; neither is changed."""
    both = dict(below)
    for key, value in above.items():
        under = both.get(key)
        both[key] = (
            overlay(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
        )
    return both


def without_removed(values: Mapping[str, Any], keep_none: bool = False) -> Mapping[str, Any]:
    """The values without those that are `None`, except of flags and of the gate's own settings."""
    return {
        key: without_removed(value, key == "gate")
        if isinstance(value, Mapping) and key != _KEEPS_NONE
        else value
        for key, value in values.items()
        if value is not None or keep_none
    }


def lookup(values: Any, path: Sequence[str | int]) -> Any:
    """The value at `path`, or `ABSENT`."""
    at = values
    for step in path:
        if not _has(at, step):
            return ABSENT
        at = at[step]
    return at


def _has(values: Any, step: str | int) -> bool:
    if isinstance(values, Mapping):
        return step in values
    return isinstance(values, (list, tuple)) and isinstance(step, int) and step < len(values)


def dotted(path: Sequence[str | int]) -> str:
    """The path as a message names it, like `services.chat.port`."""
    return ".".join(map(str, path))


def located(merged: Merged, service: str, path: Path) -> tuple[str, str]:
    """File and dotted key of a service's setting: its own, or that of `defaults` or of every service."""
    places: tuple[Path, ...] = (("services", service), ("defaults",), ())
    declaring = (place for place in places if lookup(merged.values, (*place, *path)) is not ABSENT)
    whole = (*next(declaring, places[0]), *path)
    return merged.source(whole), dotted(whole)


def normal_flag(name: Any) -> Any:
    """`max_num_seqs` and `--max-num-seqs` are one flag; a JSON field after a dot keeps its spelling."""
    if not isinstance(name, str):
        return name
    head, dot, rest = name.removeprefix("--").partition(".")
    return f"--{head.replace('_', '-')}{dot}{rest}"
