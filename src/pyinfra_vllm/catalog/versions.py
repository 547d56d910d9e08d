"""vLLM version numbers as tuples that compare: (0, 25, 1). Local parts and pre-release marks don't count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from packaging import version as packaging

Version = tuple[int, ...]


@lru_cache(maxsize=1024)
def parse(text: str) -> Version:
    """`0.25.1`, `v0.32.0+cpu` or `0.33.0rc1` as numbers. Raises ValueError for anything else."""
    try:
        found = packaging.Version(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a version number such as 0.25.1") from error
    if found.epoch or len(found.release) < 2:
        raise ValueError(f"{text!r} is not a version number such as 0.25.1")
    return found.release


def build(version: str, torch: str | None) -> str:
    """A vLLM version with the local part that says which CUDA it is built for: its own, else its torch's."""
    local = (torch or "").partition("+")[2]
    return version if "+" in version or not local else f"{version}+{local}"


@lru_cache(maxsize=4096)
def below(version: Version, limit: str) -> bool:
    """Whether a version comes before a limit; 0.24.0 is not below "0.24"."""
    return packaging.Version(".".join(map(str, version))) < packaging.Version(limit)


def first(rows: Iterable[Mapping[str, Any]], version: Version) -> Mapping[str, Any]:
    """The first row of a version table whose `below` (if any) lies above the version."""
    for row in rows:
        if "below" not in row or below(version, str(row["below"])):
            return row
    raise LookupError(f"no row for version {version}: the last row of a version table must have no `below`")
