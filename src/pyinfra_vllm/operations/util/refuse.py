"""Fail one host with a sentence, without touching the others.

An exception in an operation would end the run for every host; a command that fails ends one host's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from typing import ParamSpec

from pyinfra import host, logger, state
from pyinfra.api import FunctionCommand, Host, State
from pyinfra.api.command import PyinfraCommand
from pyinfra.context import ctx_host

from pyinfra_vllm import pyinfra_command
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.facts.told import forget
from pyinfra_vllm.printable import printable
from pyinfra_vllm.rollout.progress import PROGRESS
from pyinfra_vllm.text import sentence

P = ParamSpec("P")
Commands = Generator[PyinfraCommand | str, None, None]


def alone(operation: Callable[P, Commands]) -> Callable[P, Commands]:
    """An operation that ends for this host alone where a host's answer can't be used.

    Stands below `@operation()`.
    """

    @functools.wraps(operation)
    def commands(*args: P.args, **kwargs: P.kwargs) -> Commands:
        try:
            for command in operation(*args, **kwargs):
                try:
                    yield command
                finally:
                    if state.is_executing:
                        forget(host)
        except HostError as error:
            yield refuse(f"{sentence(str(error))} Nothing was changed.")
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            what = f"{type(error).__name__}: {error}"
            yield refuse(f"internal error (bug in pyinfra-vllm) over what this host told: {what}")

    return commands


def refuse(message: str) -> FunctionCommand:
    """A command that only says `message` and fails. Yield it, then return.

    While operations are only prepared, as in a dry run, it is said at once: no command is carried out then.
    """
    if not state.is_executing:
        foretell(message)
    return FunctionCommand(_fail, (message,), {})


def foretell(message: str) -> None:
    """Say, once, why a run would refuse this host. A dry run counts it as failed, as the run would."""
    if PROGRESS.foretell(host.name, message):
        logger.warning(f"{host.print_prefix}would be refused: {printable(message)}")
    if pyinfra_command.is_dry():
        state.failed_hosts.add(ctx_host.get())


def _fail(state: State, host: Host, message: str) -> bool:
    """With this signature pyinfra takes False for a failure of this host; it prints no traceback."""
    logger.error(f"{host.print_prefix}{printable(message)}")
    return False
