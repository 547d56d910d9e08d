"""The vLLM installed in a venv on a host."""

from __future__ import annotations

from pyinfra.api import StringCommand
from typing_extensions import override

from pyinfra_vllm.facts import script
from pyinfra_vllm.facts.told import Told
from pyinfra_vllm.on_host.inspect.runtime import Installed


class Runtime(Told[Installed | None]):
    """
    Version and known flags of an installed vLLM, read from its files: it is neither run nor imported. None
    where the venv has no vLLM, or only the beginnings of one.

    + path: the venv's absolute path on the host
    """

    kind = Installed | None

    @override
    def command(self, path: str) -> StringCommand:
        return script.python("inspect.runtime", path)
