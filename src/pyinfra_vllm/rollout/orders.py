"""Builds every order that a host gets, and says whether the service's window lets it begin now."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyinfra_vllm.config import Overrides, Service
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.switch.order import CALIBRATION, ROLLBACK, ROLLOUT, TRIAL, Order
from pyinfra_vllm.rollout.estimate import Estimate, History
from pyinfra_vllm.rollout.opening import baseline_s, in_words, last_start, measure_until, opening, shut
from pyinfra_vllm.window import WindowState

STAGED, NOT_RESTARTED = "everything is staged", "nothing was restarted"


@dataclass(frozen=True)
class Prepared:
    """An order that is ready to be sent.

    prompts: the text of the operator's own quality prompts, which the host reads from a file; or None
    deferred: why the window does not let it begin now, and it must not be sent; None where it may
    """

    order: Order
    prompts: str | None = None
    deferred: str | None = None


def rollout(
    root: str, service: Service, release: str, overrides: Overrides, history: History = ()
) -> Prepared:
    """The switch of a service to a staged release.

    Raises HostError where its quality prompts can't be read.
    """
    asleep_s = service.standby_for.total_seconds() if service.standby_for else 0.0
    found = opening(service, overrides, history)
    how = {"purpose": ROLLOUT, "hooks": service.hooks.document(), "standby_for_s": asleep_s}
    return _measured(root, service, release, overrides, found, STAGED, history, **how)


def trial(
    root: str,
    service: Service,
    release: str,
    overrides: Overrides,
    history: History = (),
    needed: Estimate | None = None,
) -> Prepared:
    """The trial of a staged release: the same measurements as a rollout, and always the way back.

    + needed: the time that it takes; None: that of a rollout

    Raises HostError where its quality prompts can't be read.
    """
    found = opening(service, overrides, history, needed)
    how = {"purpose": TRIAL, "hooks": service.hooks.document()}
    return _measured(root, service, release, overrides, found, STAGED, history, **how)


def calibration(root: str, service: Service, release: str, overrides: Overrides, runs: int) -> Prepared:
    """The calibration of a service's current release.

    Raises HostError where its quality prompts can't be read.
    """
    found = opening(service, overrides)
    return _measured(root, service, release, overrides, found, NOT_RESTARTED, purpose=CALIBRATION, runs=runs)


def rollback(
    service: str, release: str, overrides: Overrides, reason: str, ready_timeout_s: float
) -> Prepared:
    """A rollback to an earlier release: no window, and no measurement."""
    order = Order(
        service=service,
        release=release,
        operator=overrides.operator or "",
        purpose=ROLLBACK,
        reason=reason,
        ready_timeout_s=ready_timeout_s,
    )
    return Prepared(order)


def _measured(
    root: str,
    service: Service,
    release: str,
    overrides: Overrides,
    found: WindowState | None,
    untouched: str,
    history: History = (),
    **more: Any,
) -> Prepared:
    """An order that measures and restarts, so it has the service's gate and keeps to its window.

    + untouched: what is so where the window defers it
    """
    criteria, prompts = _with_prompts(service.gate.criteria(), f"{root}/{service.name}/prompts.jsonl")
    order = Order(
        service=service.name,
        release=release,
        operator=overrides.operator or "",
        reason=overrides.reason or "",
        last_start=last_start(found),
        measure_until=measure_until(service, found, history),
        baseline_s=baseline_s(service, found),
        overrides=overrides.used,
        criteria=criteria.as_dict(),
        ready_timeout_s=service.ready_timeout_s,
        **more,
    )
    return Prepared(order, prompts, f"{untouched}; {in_words(found)}" if found and shut(found) else None)


def _with_prompts(criteria: Criteria, there: str) -> tuple[Criteria, str | None]:
    """The operator's own prompts are a file here; the host reads its copy.

    Raises HostError where it is there no more.
    """
    if criteria.quality_prompts is None:
        return criteria, None
    try:
        text = Path(criteria.quality_prompts).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        words = (
            f"the prompts in {criteria.quality_prompts} could be read when this run began, and can't now:"
            f" {error}"
        )
        raise HostError(f"{words}. Nothing was touched.") from error
    return dataclasses.replace(criteria, quality_prompts=there), text
