"""Fail one host with a sentence, without touching the others.

An exception in an operation would end the run for every host; a command that fails ends it for this host
alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from typing import ParamSpec

from pyinfra import host, logger, state
from pyinfra.api import FunctionCommand, Host, State
from pyinfra.api.command import PyinfraCommand

from pyinfra_vllm.errors import HostError
from pyinfra_vllm.printable import printable

P = ParamSpec("P")
Commands = Generator[PyinfraCommand | str, None, None]


def alone(operation: Callable[P, Commands]) -> Callable[P, Commands]:
    """An operation that ends for this host alone where a host's answer can't be used.

    Stands below `@operation()`.
    """

    @functools.wraps(operation)
    def commands(*args: P.args, **kwargs: P.kwargs) -> Commands:
        try:
            yield from operation(*args, **kwargs)
        except HostError as error:
            yield _refused(f"{error}. Nothing was changed.")
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            what = f"{type(error).__name__}: {error}"
            yield _refused(f"internal error (bug in pyinfra-vllm) over what this host told: {what}")

    return commands


def _refused(message: str) -> FunctionCommand:
    if not state.is_executing:
        logger.warning(f"{host.print_prefix}{printable(message)}")
    return refuse(message)


def refuse(message: str) -> FunctionCommand:
    """A command that only says `message` and fails. Yield it, then return."""
    return FunctionCommand(_fail, (message,), {})


def _fail(state: State, host: Host, message: str) -> bool:
    """With this signature pyinfra takes False for a failure of this host; it prints no traceback."""
    logger.error(f"{host.print_prefix}{printable(message)}")
    return False
