"""The file system that a path on a host lives on."""

from __future__ import annotations

from pyinfra.api import StringCommand
from typing_extensions import override

from pyinfra_vllm.facts import script
from pyinfra_vllm.facts.told import Told
from pyinfra_vllm.on_host.inspect import disk as inspect_disk


class Filesystem(Told[inspect_disk.Filesystem | None]):
    """
    Free bytes and inodes where a path is, or would be, written; the path need not exist.

    + path: absolute path on the host
    """

    kind = inspect_disk.Filesystem

    @override
    def command(self, path: str) -> StringCommand:
        return script.python("inspect.disk", path)
