"""The resolver with a model, a GPU and a runtime to begin with: for tests that are about something else."""

from __future__ import annotations

from typing import Any

from pyinfra_vllm import tuning
from pyinfra_vllm.catalog.gpus import Gpu
from pyinfra_vllm.catalog.shapes import Shape
from pyinfra_vllm.tuning import Resolution


def resolve(
    model: str | Shape = "Qwen/Qwen3-32B-AWQ",
    gpu: str | Gpu = "NVIDIA H200",
    runtime: str = "0.28.0",
    **settings: Any,
) -> Resolution:
    return tuning.resolve(model=model, gpu=gpu, runtime_version=runtime, **settings)


def values(resolution: Resolution) -> dict[str, Any]:
    return {flag.flag: flag.value for flag in resolution.flags}
