"""The resolver with a model, a GPU and a runtime to begin with: for tests that are about something else."""

from __future__ import annotations

from typing import Any

from pyinfra_vllm.catalog import gpus
from pyinfra_vllm.catalog.gpus import Gpu
from pyinfra_vllm.catalog.shapes import Shape
from pyinfra_vllm.tuning import resolver
from pyinfra_vllm.tuning.request import Request, cataloged
from pyinfra_vllm.tuning.resolution import Resolution


def resolve(
    model: str | Shape = "Qwen/Qwen3-32B-AWQ",
    gpu: str | Gpu = "NVIDIA H200",
    runtime: str = "0.28.0",
    **settings: Any,
) -> Resolution:
    return resolver.resolve(asked(model, gpu, runtime, **settings))


def asked(model: str | Shape, gpu: str | Gpu, runtime: str, **settings: Any) -> Request:
    shape = cataloged(model) if isinstance(model, str) else model
    return Request(shape, gpus.find(gpu) if isinstance(gpu, str) else gpu, runtime, **settings)


def values(resolution: Resolution) -> dict[str, Any]:
    return {flag.flag: flag.value for flag in resolution.flags}
