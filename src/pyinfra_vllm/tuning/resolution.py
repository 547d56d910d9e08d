"""The resolver's answer: the profile, its memory fit, the expected kernel, and what must be said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyinfra_vllm.fit import Fit
from pyinfra_vllm.tuning.profile import Flag


@dataclass(frozen=True)
class Resolution:
    """A profile for one service. With `errors`, nothing may be staged from it."""

    flags: tuple[Flag, ...] = ()
    settings: tuple[Flag, ...] = ()  # the environment, with reasons
    fit: Fit | None = None
    kernel: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    understood: bool = True  # False: among the errors is a value that says nothing
    asked: Mapping[str, Any] = field(default_factory=dict)  # for the table's heading
    predicted: Mapping[str, Any] = field(default_factory=dict)  # what vLLM should derive: see `rehearsal`
    measured: str | None = None  # the measured profile that was used, and its gain, in words
    trades: Mapping[str, Any] | None = None  # what is known of the kernels here (catalog/trades.yaml)

    @property
    def values(self) -> dict[str, Any]:
        """The flags by name."""
        return {flag.flag: flag.value for flag in self.flags}

    @property
    def environment(self) -> dict[str, str]:
        return {setting.flag: setting.value for setting in self.settings}

    def argv(self) -> list[str]:
        """Arguments of `vllm serve` after model, name, address and port; sorted, so equal profiles match."""
        return [token for flag in self.flags for token in tokens(flag.flag, flag.value)]

    def as_dict(self) -> dict[str, Any]:
        """DESIGN's `resolve --json`; with `measured` beside it where a measured profile was used."""
        return {
            "flags": [
                {"flag": flag.flag, "value": flag.value, "reason": flag.reason, "source": flag.source}
                for flag in self.flags
            ],
            "environment": self.environment,
            "fit": self.fit.as_dict() if self.fit else None,
            "kernel": list(self.kernel),
            "warnings": list(self.warnings),
            "errors": list(self.errors),
            **({"measured": self.measured} if self.measured else {}),
        }


def tokens(flag: str, value: Any) -> list[str]:
    """One flag as arguments: `--x`, `--no-x`, `--x VALUE`, `--x A B` or `--x {"json":1}`."""
    if value is True:
        return [flag]
    if value is False:
        return [f"--no-{flag.removeprefix('--')}"]
    if isinstance(value, Mapping):
        return [flag, _json(value)]
    if isinstance(value, list | tuple):
        return [flag, *(_json(each) if isinstance(each, Mapping | list) else str(each) for each in value)]
    return [flag, str(value)]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
