"""The GPUs of a host and who uses them, as nvidia-smi tells it."""

from __future__ import annotations

from pyinfra.api import StringCommand
from typing_extensions import override

from pyinfra_vllm.facts import script
from pyinfra_vllm.facts.told import Told
from pyinfra_vllm.on_host.inspect.gpus import Found


class Gpus(Told[Found]):
    """
    The NVIDIA GPUs of a host: every card, followed by its MIG instances; none without nvidia-smi. `problem`
    says why they are unknown where nvidia-smi does not answer.
    """

    kind = Found

    @staticmethod
    @override
    def default() -> Found:
        return Found((), "this host could not be asked for its GPUs")

    @override
    def command(self) -> StringCommand:
        return script.python("inspect.gpus")
