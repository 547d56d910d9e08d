"""Which release a unit runs, as root and systemd know it: nothing that the server can write counts.

The unit has root write down, at each start, which release its text is and systemd's own id of that start.
Units of an earlier version don't: of them counts the text that systemd has loaded.
"""

from __future__ import annotations

import re
from pathlib import Path

STARTED = Path("/run/pyinfra-vllm/started")  # a file for each unit, see templates/vllm.service.j2
UNITS = Path("/etc/systemd/system")
INVOCATIONS = Path("/run/systemd/units")
PROPERTIES = (
    "ActiveState",
    "SubState",
    "MainPID",
    "NRestarts",
    "ActiveEnterTimestamp",
    "InvocationID",
    "Environment",
)
_LOADED = re.compile(r"(?:^| )PYINFRA_VLLM_RELEASE=([0-9a-f]+)(?: |$)")


def own_name(unit: str, units: Path = UNITS) -> str:
    """The unit's own name, where the given one is an alias of it: only systemd itself knows aliases."""
    try:
        target = (units / unit).readlink()
    except OSError:
        return unit
    return target.name if target.parent == units else unit


def release(unit: str, shown: dict[str, str], started: Path = STARTED) -> str | None:
    """The release that the unit runs now; None where it runs nothing.

    shown: systemd's PROPERTIES of the unit
    """
    if shown.get("MainPID", "0") == "0":
        return None
    return written_down(unit, shown, started) or _loaded(shown)


def written_down(unit: str, shown: dict[str, str], started: Path = STARTED) -> str | None:
    """The release that this very start was of; None where root did not write that down."""
    try:
        words = (started / own_name(unit)).read_text(errors="replace").split()
    except OSError:
        return None
    this = shown.get("InvocationID")
    return words[1] if this and len(words) == 2 and words[0] == this else None


def invocation(unit: str) -> str:
    """Systemd's id of the unit's present start, from the link that it keeps for journald, or empty."""
    try:
        return str((INVOCATIONS / f"invocation:{own_name(unit)}").readlink())
    except OSError:
        return ""


def _loaded(shown: dict[str, str]) -> str | None:
    found = _LOADED.search(shown.get("Environment", ""))
    return found[1] if found else None
