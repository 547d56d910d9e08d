"""The GPUs of a host and who uses them, as nvidia-smi tells it."""

from __future__ import annotations

from pyinfra.api import StringCommand
from typing_extensions import override

from pyinfra_vllm import answers
from pyinfra_vllm.facts import _script
from pyinfra_vllm.facts._told import Told


class Gpus(Told[answers.Gpus]):
    """
    The NVIDIA GPUs of a host: every card, followed by its MIG instances (see on_host/inspect_gpus.py). None
    of them where there is no nvidia-smi; `problem` says why they can't be told where it doesn't answer.

    .. code:: python

        {"problem": None, "gpus": [{
            "index": 0, "uuid": "GPU-...", "name": "NVIDIA H200", "memory_mib": 143771, "used_mib": 130010,
            "driver": "580.159.04", "compute_capability": "9.0", "ecc": "Enabled",
            "card": 0, "instance": None, "split": False,
            "processes": [{"pid": 4711, "unit": "vllm-chat.service", "used_mib": 130000, "name":
            "VLLM::EngineCore"}],
        }]}
    """

    kind = answers.Gpus

    @staticmethod
    @override
    def default() -> answers.Gpus:
        return {"gpus": [], "problem": "this host could not be asked for its GPUs"}

    @override
    def command(self) -> StringCommand:
        return _script.python("inspect_gpus", needs=("nvidia", "cgroup"))
