"""Shared by the tests on real hosts: the lab itself, and the command line as an operator uses it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lab import session
from lab.machine import Host
from lab.session import Lab

# Minutes each, the longest first; whoever runs two labs side by side begins with them, so that both end at
# about the same time.
LONG = (
    "test_lab_turns.py",
    "test_real_compile_cache.py",
    "test_rollout.py",
    "test_lab_swarm.py",
    "test_faults.py",
    "test_lab_standby_rollout.py",
    "test_lab_debian.py",
    "test_lab_waves.py",
    "test_lab_night.py",
    "test_lab_runbook.py",
    "test_lab_doctor.py",
    "test_faults_standby.py",
    "test_hostile_servers.py",
    "test_real_quality.py",
    "test_lab_security.py",
    "test_lab_first_hour.py",
    "test_lab_upgrade.py",
    "test_lab_tune.py",
    "test_lab_compile_cache.py",
    "test_forged_log.py",
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "own_lab: starts labs of its own, before the one that tests share")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is here.

    Tests with labs of their own come first, before the one that tests share, then what takes long.
    """
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)
    items.sort(key=lambda item: (item.get_closest_marker("own_lab") is None, _turn(item.path.name)))


def _turn(file: str) -> int:
    return LONG.index(file) if file in LONG else len(LONG)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A lab on the real vLLM, without hosts at first; `inventory/lab.py` lists those that run."""
    os.umask(0o022)
    with session.lab() as running:
        yield running


@pytest.fixture(scope="session")
def solo(lab: Lab) -> Host:
    """The host that most tests share."""
    return lab.add("solo")[0]
