"""Whether a service's switch may begin now, by its windows."""

from __future__ import annotations

from datetime import UTC, datetime

from pyinfra_vllm import window
from pyinfra_vllm.config import Overrides, Service
from pyinfra_vllm.rollout.estimate import Estimate, History, estimate, way_back

PAST = 0.0  # Unix time: a moment that has passed

RECORDED = (
    "declare a longer one, or begin one switch with `--data switch_now=true`: once more are on record, a"
    " single slow one counts less"
)


def opening(
    service: Service, overrides: Overrides, history: History = (), needed: Estimate | None = None
) -> window.WindowState | None:
    """The state of the service's windows; None where nothing limits it (no window, or overridden).

    + needed: the time that it takes; None: a switch and its rollback
    """
    if not service.window or overrides.switch_now:
        return None
    needed = needed or estimate(service, history)
    return window.state(service.window, datetime.now(UTC), needed.length, needed.source)


def shut(found: window.WindowState | None) -> bool:
    """Whether a switch must not begin now: outside the window, or too late to be undone within it."""
    limit = last_start(found)
    return limit is not None and datetime.now(UTC).timestamp() > limit


def last_start(found: window.WindowState | None) -> float | None:
    """Unix time after which a switch must not begin: PAST where it is closed, None where no window closes."""
    if found is None:
        return None
    if not found.open:
        return PAST
    return found.last_start.timestamp() if found.last_start else None


def measure_until(service: Service, found: window.WindowState | None, history: History = ()) -> float | None:
    """Unix time until which a switch may go on measuring, so that the window leaves time for a rollback.

    PAST where it is closed, None where no window closes.
    """
    if found is None:
        return None
    if not found.open:
        return PAST
    if found.closes is None:
        return None
    return (found.closes - way_back(service, history)).timestamp()


def baseline_s(service: Service, found: window.WindowState | None) -> float:
    """Seconds of the estimate behind the last start that are for measuring the old release: as long as the
    gate may measure a side, and half of an estimate that is too short for both sides.
    """
    if found is None or found.closes is None or found.last_start is None:
        return 0.0
    estimate_s = (found.closes - found.last_start).total_seconds()
    return min(service.gate.criteria().longest_s, estimate_s / 2)


def never(service: Service, overrides: Overrides, at: datetime, history: History = ()) -> str:
    """Why no opening after `at` (aware) is as long as the host's own record asks for; empty where one is.

    What is declared alone is checked before any host is contacted.
    """
    if overrides.switch_now:
        return ""
    needed = estimate(service, history)
    why = window.never_begins(service.window, at, needed.length, needed.source, RECORDED)
    return why and f"its window {why}"


def explain(service: Service, overrides: Overrides, history: History = ()) -> str:
    """One clause for the operator: open or closed, until when, and when next."""
    if service.window and overrides.switch_now:
        return "the window is overridden by switch_now"
    found = opening(service, overrides, history)
    return in_words(found) if found else "no window is declared, so it may begin now"


def in_words(found: window.WindowState) -> str:
    """The same of declared windows that count."""
    if found.open and found.last_start:
        return f"the window is {found.reason}; last start {_minute(found.last_start)}"
    following = _minute(found.next[0]) if found.next else "none"
    return f"the window is closed: {found.reason}; next opening {following}"


def _minute(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M %Z}"
