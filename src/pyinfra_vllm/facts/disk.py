"""The file system that a path on a host lives on."""

from __future__ import annotations

from pyinfra.api import StringCommand
from typing_extensions import override

from pyinfra_vllm import answers
from pyinfra_vllm.facts import _script
from pyinfra_vllm.facts._told import Told


class Filesystem(Told[answers.Filesystem | None]):
    """
    Free bytes and inodes where a path is, or would be, written; the path need not exist.

    + path: absolute path on the host

    .. code:: python

        {"path": "/srv", "mount": "/srv", "device": "/dev/nvme0n1p2", "type": "ext4", "read_only": False,
         "free_bytes": 1200000000000, "total_bytes": 1900000000000, "free_inodes": 120000000}
    """

    kind = answers.Filesystem

    @override
    def command(self, path: str) -> StringCommand:
        return _script.python("inspect_disk", path)
