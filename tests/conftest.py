"""For all tests: no time limits for single examples, and Python's own standard library under them.

pyinfra's command line replaces sockets, threads and subprocesses by gevent's when it is imported. The
programs under test run without that on a host, so they are tested without it; where the real command line is
meant, tests start it.
"""

from __future__ import annotations

import importlib
from unittest.mock import patch

from hypothesis import settings

with patch("gevent.monkey.patch_all"):
    importlib.import_module("pyinfra_cli")

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
