"""Where the running `pyinfra` command would mislead, and what it does instead. Changes pyinfra's own module, once for a process.

Called from config.py, before pyinfra loads the inventory (`fleet.check`).
"""  # noqa: E501

from __future__ import annotations

import atexit
import functools
import gc
import inspect
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click
import pyinfra
from pyinfra.api import arguments, util
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.inventory import Inventory
from pyinfra.context import ctx_state
from pyinfra_cli import cli
from pyinfra_cli.exceptions import CliError
from typing_extensions import override

from . import inventory as inventories
from .rollout.progress import PROGRESS

_dry = False


class NoTerminal(CliError, PyinfraError):  # type: ignore[misc]  # pyinfra_cli is untyped
    """pyinfra asks a question where nobody can answer. Both bases, as for fleet.InvalidDeclaration."""

    exit_code = 1

    @override
    def show(self, file: Any = None) -> None:
        click.echo(f"--> {click.style('Not answered', 'red', bold=True)}: {self.message}", err=True)


def is_dry() -> bool:
    """Whether the running command only looks."""
    return _dry


def watch_over(given: Mapping[str, Any]) -> None:
    """For deploy files: a dry run looks at everything and asks nothing; a question without a terminal ends in
    one line.

    + given: the parameters of the running command
    """
    global _dry
    _dry = bool(given.get("dry") or (given.get("json_output") and not given.get("yes")))
    if not hasattr(cli._do_confirm, "__wrapped__"):
        cli._do_confirm = _answered(cli._do_confirm)
    end_on_signals()
    _spare_work()
    if _dry:
        # pyinfra skips that with -y: nothing at all would be looked at.
        ctx_state.get().check_for_changes = True


def end_on_signals() -> None:
    """Have Ctrl-C, SIGTERM and a closed terminal end the run with exit code 1; pyinfra itself ends it with 0
    on Ctrl-C, as if all were done. A signal that is ignored (nohup) stays ignored.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end_run)


def end_run(number: int, frame: Any) -> None:
    """Ends the run, never the switches that hosts have begun: reports them, and exits with 1."""
    try:
        for line in ["The run was ended before it was done.", *PROGRESS.under_way()]:
            click.echo(line, err=True)
    finally:
        sys.exit(1)


def _spare_work() -> None:
    """For each operation of each host pyinfra reads the source around all frames, of which it uses only the
    line numbers, and works out its own arguments' types; and at the end Python looks through all that
    is about to go anyway. Ten hosts with nothing to do: 0.9 of 1.9 s of a core (2026-11-29).
    """
    if not hasattr(arguments.all_global_arguments, "__wrapped__"):
        util.stack = functools.partial(inspect.stack, 0)
        util.getframeinfo = functools.partial(inspect.getframeinfo, context=0)
        arguments.all_global_arguments = functools.cache(arguments.all_global_arguments)
        atexit.register(gc.freeze)


def _answered(ask: Callable[[str], bool]) -> Callable[[str], bool]:
    @functools.wraps(ask)
    def answered(question: str) -> bool:
        if _dry:
            return True  # to go on without the hosts that failed: nothing is done to the others
        try:
            return ask(question)
        except (EOFError, RuntimeError):  # standard input has nothing, or is closed
            click.echo(err=True)
            raise NoTerminal(
                f'there is no terminal to answer "{question}" at. Run with -y to go on without asking, or'
                " with --dry to look only."
            ) from None

    return answered


def order_groups() -> None:
    """From now on the running command reads group data in our order: the inventory's file before those of its groups."""  # noqa: E501
    if not hasattr(cli.make_inventory, "__wrapped__"):
        cli.make_inventory = _in_order(cli.make_inventory)


def given() -> Mapping[str, Any]:
    """The command line as it was typed, for a project whose config.py does not call `fleet.check`."""
    if not pyinfra.is_cli:
        return {"inventory": "inventory"}
    parameters: Mapping[str, Any] = cli.cli.make_context(
        "pyinfra", sys.argv[1:], resilient_parsing=True
    ).params
    return parameters


def _in_order(make: Callable[..., Inventory]) -> Callable[..., Inventory]:
    @functools.wraps(make)
    def made(inventory: str, *rest: Any, **more: Any) -> Inventory:
        return inventories.in_order(make(inventory, *rest, **more), inventory)

    return made
