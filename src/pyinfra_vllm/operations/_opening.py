"""Whether a service's switch may begin now, asked of its windows at the moment of the question."""

from __future__ import annotations

from datetime import UTC, datetime

from pyinfra_vllm import window
from pyinfra_vllm.config import Overrides, Service


def opening(service: Service, overrides: Overrides) -> window.WindowState | None:
    """The state of the service's windows; None where nothing limits it (no window, or overridden)."""
    if not service.window or overrides.switch_now:
        return None
    return window.state(service.window, datetime.now(UTC), service.switch_estimate)


def explain(service: Service, overrides: Overrides) -> str:
    """One clause for the operator: open or closed, until when, and when next."""
    if service.window and overrides.switch_now:
        return "the window is overridden by switch_now"
    found = opening(service, overrides)
    if found is None:
        return "no window is declared, so it may begin now"
    if found.open and found.closes and found.last_start:
        return (
            f"the window is open until {found.closes.isoformat()}, last start {found.last_start.isoformat()}"
        )
    following = found.next[0].isoformat() if found.next else "none"
    return f"the window is closed: {found.reason}; next opening {following}"
