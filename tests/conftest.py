"""For all tests: no time limits for single examples, and gevent's patches before anything uses what they replace."""

from __future__ import annotations

import warnings

from hypothesis import settings

with warnings.catch_warnings():
    # a pytest plugin (anyio's) may have imported ssl already; no test uses that one
    warnings.simplefilter("ignore")
    import pyinfra_cli  # noqa: F401

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
