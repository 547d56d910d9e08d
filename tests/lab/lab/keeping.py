"""Things built once and kept in the cache: whole or not there at all, and built by one process at a time."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

from .shell import timed


def kept(place: Path, what: str, build: Callable[[Path], None]) -> Path:
    """`place`, built by `build(directory)` first when it is missing.

    It is built beside its final name and renamed last, so what an interrupted build leaves is never taken for
    whole.
    """
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(place.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            partial = place.with_name(place.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            with timed(what):
                build(partial)
            partial.rename(place)
    return place
