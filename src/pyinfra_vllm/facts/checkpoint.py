"""The checkpoints on a host."""

from __future__ import annotations

import json
from typing import Any

from pyinfra.api import FactBase, StringCommand
from typing_extensions import override

from pyinfra_vllm.facts import _script


class Checkpoints(FactBase[list[dict[str, Any]]]):
    """
    Every checkpoint below the root: complete, damaged or partial as the file system tells (no content is read), with
    the bytes it takes and the releases that refer to it.

    + root: where pyinfra-vllm keeps its files on the host

    .. code:: python

        [{"directory": "/srv/pyinfra-vllm/checkpoints/acme--tiny/<commit>", "name": "acme--tiny", "commit": "...",
          "state": "complete", "problems": [], "bytes": 19000000000, "referenced_by": ["chat/8d1f..."]}]
    """

    default = list

    @override
    def requires_command(self, *args: Any, **kwargs: Any) -> str:
        return "python3"

    @override
    def command(self, root: str) -> StringCommand:
        return _script.python("inspect_checkpoints", root, needs=("manifest", "durable"))

    @override
    def process(self, output: list[str]) -> list[dict[str, Any]]:
        return list(json.loads("".join(output)))
