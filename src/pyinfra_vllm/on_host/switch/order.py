"""The order by which the control machine has a host switch, try or calibrate a service; from a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..gate.noise import LEAST_RUNS
from ..state import durable

ROLLOUT = "rollout"
ROLLBACK = "rollback"
CALIBRATION = "calibration"
TRIAL = "trial"
PURPOSES = (ROLLOUT, ROLLBACK, CALIBRATION, TRIAL)


class BadOrder(Exception):
    """The order can't be read. Nothing was touched."""


@dataclass(frozen=True)
class Order:
    """One switch of one service, or one calibration.

    release: the id of a staged release; of the current one for a calibration
    purpose: `rollout` judges the new release; `rollback` asks only for the generation check; `calibration`
        changes nothing; `trial` judges the new release as a rollout does, and always goes back
    runs: how often a calibration measures; it restarts the service once less
    operator, reason: who asked and why, for the record
    last_start: Unix time after which the switch must not begin, long past where the window is closed; None
        without a window, or if overridden
    measure_until: Unix time until which measuring may go on beyond its budget: the window's end less the time
        of a rollback; long past and None as above
    overrides: what the operator overrode (`switch_now`, `retry_rejected`), for the record
    criteria: the gate's limits (on_host.bench.criteria)
    hooks: whom to tell (on_host.hooks); None keeps what the last order said
    ready_timeout_s: how long a release may take from its start to its first tokens
    standby_for_s: how long the old release sleeps on after the commit, at most until its soak ends
    baseline_s: seconds after `last_start` until which the old release may still be measured before it is
        stopped: the estimate behind `last_start` has them
    """

    service: str
    release: str
    operator: str
    purpose: str = ROLLOUT
    reason: str = ""
    last_start: float | None = None
    measure_until: float | None = None
    overrides: tuple[str, ...] = ()
    criteria: dict[str, Any] = field(default_factory=dict)
    hooks: dict[str, Any] | None = None
    ready_timeout_s: float = 1800.0
    runs: int = LEAST_RUNS
    standby_for_s: float = 0.0
    baseline_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def load(path: Path) -> Order:
    value = durable.read_json(path)
    if not isinstance(value, dict):
        raise BadOrder(f"{path} holds no order")
    known = {item.name for item in fields(Order)}
    unknown = sorted(set(value) - known)
    if unknown:
        raise BadOrder(
            f"{path} has the unknown keys {unknown}: the host's program is older than the control machine's"
        )
    if value.get("purpose", ROLLOUT) not in PURPOSES:
        raise BadOrder(f"{path}: purpose is {value['purpose']!r}, not one of {', '.join(PURPOSES)}")
    try:
        return Order(**{**value, "overrides": tuple(value.get("overrides", ()))})
    except TypeError as error:
        raise BadOrder(f"{path}: {error}") from error
