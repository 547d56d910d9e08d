"""The file system that a path on a host lives on."""

from __future__ import annotations

from pyinfra.api import StringCommand
from typing_extensions import override

from pyinfra_vllm import answers
from pyinfra_vllm.facts import script
from pyinfra_vllm.facts.told import Told


class Filesystem(Told[answers.Filesystem | None]):
    """
    Free bytes and inodes where a path is, or would be, written; the path need not exist.

    + path: absolute path on the host
    """

    kind = answers.Filesystem

    @override
    def command(self, path: str) -> StringCommand:
        return script.python("inspect.disk", path)
