"""The observed state of a host, for tests: only what matters to one has to be said."""

from __future__ import annotations

from typing import Any

from pyinfra_vllm.on_host.state.observed import Observed, Summary

AT = "2026-11-20T02:00:00.000+00:00"


def switched(**values: Any) -> dict[str, Any]:
    """A switch in a host's `status`."""
    known = {"tx": "t", "began": AT, "outcome": None, "reported": False, "turns": {}}
    return {**known, **values}


def summary(**values: Any) -> Summary:
    return Summary.of(switched(**values))


def document(**values: Any) -> dict[str, Any]:
    """A service in a host's `status`, without a release unless one is given."""
    known = {"service": "chat", "current": None, "running": None, "proven": None, "release": None}
    lists = {"staged": [], "rejected": {}, "lock": None, "history": []}
    found = {**known, **lists, **values}
    return {**found, "last": found["history"][-1] if found["history"] else None}


def seen(**values: Any) -> Observed:
    return Observed.read(document(**values), "test")
