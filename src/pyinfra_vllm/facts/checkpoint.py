"""The checkpoints on a host."""

from __future__ import annotations

from typing import Any

from pyinfra.api import StringCommand
from typing_extensions import override

from pyinfra_vllm import answers
from pyinfra_vllm.facts import _script
from pyinfra_vllm.facts._told import Told
from pyinfra_vllm.on_host.values import list_of


class Checkpoints(Told[list[dict[str, Any]]]):
    """
    Every checkpoint below the root: complete, damaged or partial as the file system tells (no content is
    read), with the bytes it takes and the releases that refer to it.

    + root: where pyinfra-vllm keeps its files on the host

    .. code:: python

        [{"directory": "/srv/pyinfra-vllm/checkpoints/acme--tiny/<commit>", "name": "acme--tiny", "commit":
        "...",
          "state": "complete", "problems": [], "bytes": 19000000000, "referenced_by": ["chat/8d1f..."]}]
    """

    default = list
    check = list_of(answers.STORED)

    @override
    def command(self, root: str) -> StringCommand:
        return _script.python("inspect_checkpoints", root, needs=("manifest", "durable"))
