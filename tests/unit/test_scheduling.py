"""The probe's threads run before what they measure, where the kernel lets them, and only as long as they
measure.
"""

from __future__ import annotations

import os
import threading

import pytest

from pyinfra_vllm.on_host.bench import scheduling


def elsewhere() -> str:
    """How a thread that is started now is scheduled."""
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(scheduling.current()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="real-time scheduling takes root")
def test_threads_of_a_measurement_are_real_time_and_nothing_after_it_is() -> None:
    with scheduling.first_in_line():
        assert (scheduling.current(), elsewhere()) == (scheduling.REAL_TIME, scheduling.REAL_TIME)
    assert (scheduling.current(), elsewhere()) == (scheduling.ORDINARY, scheduling.ORDINARY)


def test_a_measurement_that_fails_gives_its_place_back() -> None:
    with pytest.raises(ZeroDivisionError), scheduling.first_in_line():
        raise ZeroDivisionError
    assert scheduling.current() == scheduling.ORDINARY


def test_without_the_right_to_it_all_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with scheduling.first_in_line():
        assert scheduling.current() == scheduling.ORDINARY


def test_a_system_without_it_is_measured_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setscheduler")
    monkeypatch.delattr(os, "sched_getscheduler")
    with scheduling.first_in_line():
        assert scheduling.current() == scheduling.ORDINARY
