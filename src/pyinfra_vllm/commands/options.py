"""The arguments and options that several commands share."""

from __future__ import annotations

import math
from typing import Any

import click

DEFAULT_INVENTORY = "inventory/prod.py"

inventory = click.argument("inventory", default=DEFAULT_INVENTORY)
limit = click.option("--limit", multiple=True, metavar="HOST", help="Only these hosts or groups.")
group_data = click.option(
    "--group-data", multiple=True, help="Further group data folders or files, as for pyinfra."
)
json_wanted = click.option("--json", "json_wanted", is_flag=True, help="Print the result as JSON.")


class Seconds(click.FloatRange):
    """A duration between two bounds; click's range lets NaN through."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return seconds
