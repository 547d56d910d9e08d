"""The checkpoints on a host."""

from __future__ import annotations

from pyinfra.api import StringCommand
from typing_extensions import override

from pyinfra_vllm.facts import script
from pyinfra_vllm.facts.told import Told
from pyinfra_vllm.on_host.inspect.checkpoints import Stored


class Checkpoints(Told[list[Stored]]):
    """
    Every checkpoint below the root: complete, damaged or partial as the file system tells (no content is
    read), with the bytes it takes and the releases that refer to it.

    + root: where pyinfra-vllm keeps its files on the host
    """

    default = list
    kind = list[Stored]

    @override
    def command(self, root: str) -> StringCommand:
        return script.python("inspect.checkpoints", root)
