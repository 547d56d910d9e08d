"""Fail one host with a sentence, without touching the others.

An exception in an operation would end the run for every host; a command that fails ends it for this host alone.
"""

from __future__ import annotations

from pyinfra import logger
from pyinfra.api import FunctionCommand, Host, State


def refuse(message: str) -> FunctionCommand:
    """A command that does nothing but say `message` and fail: `yield refuse(...)`, then return."""
    return FunctionCommand(_fail, (message,), {})


def _fail(state: State, host: Host, message: str) -> bool:
    """With this signature pyinfra takes False for a failure of this host; it prints no traceback."""
    logger.error(f"{host.print_prefix}{message}")
    return False
