"""The vLLM installed in a venv on a host."""

from __future__ import annotations

from pyinfra.api import StringCommand
from typing_extensions import override

from pyinfra_vllm import answers
from pyinfra_vllm.facts import _script
from pyinfra_vllm.facts._told import Told


class Runtime(Told[answers.Runtime | None]):
    """
    Version and known flags of an installed vLLM, read from its files: it is neither run nor imported. None
    where the venv has no vLLM, or only the beginnings of one.

    + path: the venv's absolute path on the host

    .. code:: python

        {"path": "/srv/pyinfra-vllm/runtimes/0.33.0", "version": "0.33.0", "distribution": "vllm", "python":
        "3.12",
         "executable": True, "flags": ["--max-model-len", ...], "problem": None, "built": {...} | None,
         "compiled": 1.0, "torch": "2.9.0+cu129"}
    """

    kind = answers.Runtime | None

    @override
    def command(self, path: str) -> StringCommand:
        return _script.python("inspect_runtime", path, needs=("flags",))
