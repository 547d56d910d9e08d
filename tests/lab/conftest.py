"""What tests on real hosts share: the lab itself, and the command line as an operator uses it."""

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)


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
