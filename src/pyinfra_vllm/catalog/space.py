"""The space of tuning: the entries of space.yaml, read and checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pyinfra_vllm.catalog import table

OBJECTIVES = ("latency", "throughput", "balanced")
ANSWERS = ("same", "may change")
NEEDED = ("name", "group", "about", "answers", "source")


@dataclass(frozen=True)
class Entry:
    """One change that may be tried. `matters` says in words what it was seen to do; None: unknown."""

    name: str
    group: str
    about: str
    answers: str
    source: str
    matters: str | None = None
    variants: tuple[str | Mapping[str, Any], ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    objectives: tuple[str, ...] = OBJECTIVES
    rules_out: tuple[Mapping[str, Any], ...] = ()

    @property
    def changes_answers(self) -> bool:
        return self.answers != "same"


STOCK = Entry(
    name="stock",
    group="stock",
    about="vLLM's own choices",
    answers="same",
    source="vllm serve without tuned flags",
)


def names() -> tuple[str, ...]:
    """The names of all configurations that may be tried."""
    return (STOCK.name, *(each.name for each in entries()))


@cache
def entries() -> tuple[Entry, ...]:
    """Every entry, in order. Raises ValueError for one that can't be right: a slip in the catalog."""
    found = tuple(entry(row) for row in table("space.yaml"))
    names = [each.name for each in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"space.yaml: {', '.join(sorted(twice))} is there more than once")
    return found


def entry(row: Mapping[str, Any]) -> Entry:
    """One row of space.yaml, checked. Raises ValueError that names it."""
    name = row.get("name", "an entry without a name")
    missing = [key for key in NEEDED if not row.get(key)]
    if missing:
        raise ValueError(f"space.yaml: {name}: lacks {', '.join(missing)}")
    unknown = row.keys() - Entry.__dataclass_fields__.keys()
    if unknown:
        raise ValueError(f"space.yaml: {name}: unknown {', '.join(sorted(unknown))}")
    if row["answers"] not in ANSWERS:
        raise ValueError(f"space.yaml: {name}: answers must be one of {', '.join(ANSWERS)}")
    others = [each for each in row.get("objectives", ()) if each not in OBJECTIVES]
    if others:
        raise ValueError(f"space.yaml: {name}: no objectives: {', '.join(others)}")
    if not any(row.get(key) for key in ("variants", "flags", "environment")):
        raise ValueError(f"space.yaml: {name}: changes nothing")
    if any(set(each) != {"when", "because"} for each in row.get("rules_out", ())):
        raise ValueError(f"space.yaml: {name}: each of rules_out has `when` and `because`, and nothing else")
    lists = {key: tuple(row[key]) for key in ("variants", "objectives", "rules_out") if key in row}
    return Entry(**{**row, **lists})
