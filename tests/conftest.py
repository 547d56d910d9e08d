"""For all tests: no time limits for single examples, and Python's own standard library under them.

pyinfra's command line replaces sockets, threads and subprocesses by gevent's when it is imported. The
programs under test run without that on a host, so they are tested without it; where the real command line is
meant, tests start it.
"""

from __future__ import annotations

import importlib
import os
import time
from unittest.mock import patch

import pytest
from hypothesis import settings

with patch("gevent.monkey.patch_all"):
    importlib.import_module("pyinfra_cli")


# Unix time after which no test of `make test-full` begins: .ci/run sets it, whose machines differ in speed.
UNTIL = float(os.environ.get("PYINFRA_VLLM_TESTS_UNTIL", "inf"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.time() > UNTIL and item.get_closest_marker("full"):
        pytest.skip("no time is left for it here; `make test-full` runs it")


@pytest.fixture(autouse=True)
def no_inventory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process has one inventory, which its messages name; one test's must not be in another's."""
    monkeypatch.setattr("pyinfra_vllm.inventory._typed", "")


settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
