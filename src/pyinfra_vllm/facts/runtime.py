"""The vLLM installed in a venv on a host."""

from __future__ import annotations

from pyinfra.api import StringCommand
from typing_extensions import override

from pyinfra_vllm import answers
from pyinfra_vllm.facts import script
from pyinfra_vllm.facts.told import Told


class Runtime(Told[answers.Runtime | None]):
    """
    Version and known flags of an installed vLLM, read from its files: it is neither run nor imported. None
    where the venv has no vLLM, or only the beginnings of one.

    + path: the venv's absolute path on the host
    """

    kind = answers.Runtime | None

    @override
    def command(self, path: str) -> StringCommand:
        return script.python("inspect.runtime", path)
