"""The answers of a host, for tests: only what matters to one has to be said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pyinfra_vllm.answers import typed
from pyinfra_vllm.on_host.inspect.gpus import Gpu
from pyinfra_vllm.on_host.inspect.runtime import Installed
from pyinfra_vllm.on_host.state.observed import Observed, Summary

AT = "2026-11-20T02:00:00.000+00:00"


def switched(**values: Any) -> dict[str, Any]:
    """A switch in a host's `status`."""
    known: dict[str, Any] = {"tx": "t", "began": AT, "outcome": None, "reported": False, "turns": {}}
    return {**known, **values}


def summary(**values: Any) -> Summary:
    return typed(switched(**values), Summary, "test")


def document(**values: Any) -> dict[str, Any]:
    """A service in a host's `status`, without a release unless one is given."""
    known: dict[str, Any] = {
        "service": "chat",
        "current": None,
        "running": None,
        "proven": None,
        "release": None,
    }
    lists: dict[str, Any] = {"staged": [], "rejected": {}, "lock": None, "history": []}
    found = {**known, **lists, **values}
    return {**found, "last": found["history"][-1] if found["history"] else None}


def seen(**values: Any) -> Observed:
    return typed(document(**values), Observed, "test")


def gpu(index: int = 0, **values: Any) -> Gpu:
    """A card on which nothing runs."""
    known: dict[str, Any] = {
        "index": index, "uuid": f"GPU-{index}", "name": "NVIDIA GeForce RTX 4090", "memory_mib": 24564,
        "used_mib": 0, "driver": "580.95.05", "compute_capability": "8.9", "ecc": "[N/A]", "card": index,
        "instance": None, "split": False, "processes": [],
    }  # fmt: skip
    return replace(typed(known, Gpu, "test"), **values)


def installed(version: str, **values: Any) -> Installed:
    known = Installed("vllm", version, "/opt/vllm", "3.12", True, None, 1.0, None, None, None)
    return replace(known, **values)
