"""Where the running `pyinfra` command would mislead, and what it does instead. Changes pyinfra's own module, once for a process.

Called from config.py, before pyinfra loads the inventory (`fleet.check`).
"""  # noqa: E501

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import pyinfra
from pyinfra.api.inventory import Inventory
from pyinfra_cli import cli

from . import inventory as inventories


def order_groups() -> None:
    """From now on the running command reads group data in our order: the inventory's file before those of its groups."""  # noqa: E501
    if not hasattr(cli.make_inventory, "__wrapped__"):
        cli.make_inventory = _in_order(cli.make_inventory)


def inventory_argument() -> str:
    """The inventory as it was typed, for a project whose config.py does not call `fleet.check`."""
    if not pyinfra.is_cli:
        return "inventory"
    given = cli.cli.make_context("pyinfra", sys.argv[1:], resilient_parsing=True).params
    return str(given["inventory"])


def _in_order(make: Callable[..., Inventory]) -> Callable[..., Inventory]:
    @functools.wraps(make)
    def made(inventory: str, *rest: Any, **more: Any) -> Inventory:
        return inventories.in_order(make(inventory, *rest, **more), inventory)

    return made
