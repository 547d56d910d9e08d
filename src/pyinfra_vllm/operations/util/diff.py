"""Shows for `--diff` how a service's unit file would change, line by line.

Reads one file of the host; changes nothing.
"""

from __future__ import annotations

from pyinfra import logger
from pyinfra.api import Host
from pyinfra.facts.files import FileContents
from pyinfra.operations.util.files import generate_color_diff

from pyinfra_vllm.facts.told import asked
from pyinfra_vllm.rollout.progress import Wanted

UNIT = "vllm.service"


def show(host: Host, item: Wanted) -> None:
    """The changes from the host's unit to the planned one; all of it for a first release."""
    path = f"{item.root}/{item.service.name}/current/{UNIT}"
    before = asked(host, FileContents, path=path) or []
    logger.info(f"{host.print_prefix}{item.service.name}: changes of {path}:")
    for line in generate_color_diff(before, item.release.files()[UNIT].splitlines()):
        logger.info(f"    {line}")
