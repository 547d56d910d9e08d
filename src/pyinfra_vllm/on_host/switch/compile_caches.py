"""Carries compiled code to a release that was never started, and notes what the next one may take over."""

from __future__ import annotations

import shutil
from typing import Callable

from ..server import carried_cache
from ..server.release import Release
from ..staging import compiled
from ..state import durable
from ..state.paths import ServicePaths


def carry(paths: ServicePaths, old: Release | None, new: Release) -> dict[str, str]:
    """Compiled code for a release that never started: of a host that runs it, or of the old release."""
    brought = paths.carried_cache(new.id)
    donor = durable.read_json(brought / compiled.LISTED, {}).get("from")
    if donor is not None:
        noted, cache, origin = brought / compiled.LISTED, brought / compiled.FILES, f"host {donor}"
    elif old is not None:
        noted, cache = paths.noted_cache(old.id), paths.own_cache(old.id)
        origin = f"release {old.id}"
    else:
        return {}
    try:
        count, size = carried_cache.carry(noted, cache, paths.own_cache(new.id), new.user)
    except (OSError, ValueError, KeyError) as error:
        return {"cache": f"nothing was carried from {origin}: {error}"}
    finally:
        shutil.rmtree(brought, ignore_errors=True)
    return {"cache": f"{count} files, {size >> 20} MiB carried from {origin}"} if count else {}


def note(paths: ServicePaths, release: Release, say: Callable[[str], None]) -> None:
    """Notes the files that the next release may take over; later ones are not carried."""
    try:
        carried_cache.note(paths.own_cache(release.id), paths.noted_cache(release.id))
    except OSError as error:
        say(f"the cache could not be noted, so the next release compiles anew: {error}")
