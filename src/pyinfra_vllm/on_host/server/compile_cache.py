"""Takes `VLLM_API_KEY`, which vLLM 0.12 to 0.28 wrote in clear text, out of a service's compile cache.

The service's user owns the cache, and root does this while that user's processes may run: so no link is
followed, nothing is opened but directories, and nothing is read. A name is removed, no more.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

# What went into the cache's key (vllm/compilation/backends.py): written for people, and read by nothing.
FACTORS = "cache_key_factors.json"
DEEPEST = 8  # folders below VLLM_CACHE_ROOT; vLLM's own are in the fourth
LIMIT_S = 30.0  # whoever fills the cache with folders must not hold up a switch
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def forget_keys(cache: Path) -> list[str]:
    """Remove every such file; returns what could not be looked through, in words."""
    problems: list[str] = []
    try:
        descriptor = os.open(cache, _DIRECTORY)
    except FileNotFoundError:
        return problems
    try:
        _forget_below("vllm", descriptor, str(cache), 0, time.monotonic() + LIMIT_S, problems)
    finally:
        os.close(descriptor)
    return problems


def _forget_below(name: str, parent: int, path: str, depth: int, until: float, problems: list[str]) -> None:
    path = f"{path}/{name}"
    try:
        folder = os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
        return
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if time.monotonic() > until:
                    problems.append(f"{path}: more folders than can be looked through in {LIMIT_S:.0f} s")
                    return
                if entry.is_dir(follow_symlinks=False):
                    if depth < DEEPEST:
                        _forget_below(entry.name, folder, path, depth + 1, until, problems)
                elif entry.name == FACTORS:
                    os.unlink(FACTORS, dir_fd=folder)
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
    finally:
        os.close(folder)
