"""vLLM version numbers as tuples that compare: (0, 25, 1). Local parts and pre-release marks don't count."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Version = tuple[int, ...]

# PEP 440 without epochs: `0.25.1`, `0.33.0rc1`, `0.25.2.dev3+g1a2b3c.cu130`
VERSION = re.compile(
    r"v?(\d{1,6}(?:\.\d{1,6})+)(?:(?:a|b|rc)\d+)?(?:\.post\d+)?(?:\.dev\d+)?(?:\+[a-z0-9]+(?:[._-][a-z0-9]+)*)?",
    re.ASCII | re.IGNORECASE,
)


def parse(text: str) -> Version:
    """`0.25.1`, `v0.32.0+cpu` or `0.33.0rc1` as numbers. Raises ValueError for anything else."""
    match = VERSION.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a version number such as 0.25.1")
    return tuple(int(part) for part in match.group(1).split("."))


def below(version: Version, limit: str) -> bool:
    """Whether a version comes before a limit; 0.24.0 is not below "0.24"."""
    wanted = parse(limit)
    width = max(len(version), len(wanted))
    return version + (0,) * (width - len(version)) < wanted + (0,) * (width - len(wanted))


def first(rows: Iterable[Mapping[str, Any]], version: Version) -> Mapping[str, Any]:
    """The first row whose `below` (if any) lies above the version: how version tables in the catalog are
    read.
    """
    for row in rows:
        if "below" not in row or below(version, str(row["below"])):
            return row
    raise LookupError(f"no row for version {version}: the last row of a version table must have no `below`")
