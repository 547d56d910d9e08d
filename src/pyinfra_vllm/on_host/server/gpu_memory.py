"""How much GPU memory is used now, as nvidia-smi says. Knows no limits and judges nothing."""

from __future__ import annotations

from collections.abc import Sequence

from ..inspect import gpus as inspect_gpus
from ..inspect import nvidia


def used_mib(names: Sequence[int | str] | None = None) -> int | None:
    """MiB in use on the fullest of the GPUs (every card without names); None where the host has no
    nvidia-smi, or it gives no answer for one of them.

    + names: indexes and UUIDs, as the service's release has them
    """
    try:
        rows = inspect_gpus.gpus()
    except nvidia.NoAnswer:
        return None
    if names is None:
        chosen = [row for row in rows if row.instance is None]
    else:
        chosen = [row for name in names for row in rows if called(row, name)]
        if len(chosen) < len(names):
            return None
    used = [row.used_mib for row in chosen if row.used_mib is not None]
    return max(used, default=None) if len(used) == len(chosen) else None


def called(row: inspect_gpus.Gpu, name: int | str) -> bool:
    """Whether a GPU is the one of that index or UUID."""
    return name in (row.index, row.uuid)
