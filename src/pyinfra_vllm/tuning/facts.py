"""The facts that the catalog's `when:` and `$name` may name: about GPU, model, runtime and the flags so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pyinfra_vllm import fit
from pyinfra_vllm.catalog import versions
from pyinfra_vllm.catalog.gpus import GIB, Gpu
from pyinfra_vllm.catalog.shapes import Shape
from pyinfra_vllm.tuning.profile import Profile

GPUS_OF_A_HOST = (1, 2, 3, 4, 5, 6, 7, 8)
CPU_SEQUENCES = 4  # full-length requests that a CPU host's cache holds unless the operator says otherwise


def of_request(shape: Shape, gpu: Gpu, runtime_version: str) -> dict[str, Any]:
    """What is fixed from the start. None stands for "has none"."""
    family = shape.family
    on_cpu = gpu.platform == "cpu"
    return {
        "platform": gpu.platform,
        "gpu": gpu.title,
        "compute_capability": None if on_cpu else gpu.compute_capability,
        "memory_gib": None if on_cpu else round(gpu.usable_bytes / GIB, 1),
        "vllm": versions.parse(runtime_version),
        "vllm_text": runtime_version,
        "model": shape.name,
        "model_type": shape.model_type,
        "family": family.get("name"),
        "minimum_version": family.get("minimum_version", "0.0"),
        "qk_norm": bool(family.get("qk_norm", shape.model_type.startswith("qwen3"))),
        "reasoning": bool(family.get("reasoning", False)),
        "reasoning_parser": family.get("reasoning_parser"),
        "tool_call_parser": family.get("tool_call_parser"),
        "quantized": shape.quantization is not None,
        "quantization": shape.quantization.method if shape.quantization else None,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "intermediate": shape.intermediate,
        "experts": shape.experts,
        "quantization_groups": quantization_groups(shape),
        "expert_groups": expert_groups(shape),
        "mtp_layers": shape.mtp_layers,
        "hybrid": shape.hybrid,
        "vision": shape.vision,
        "max_position": shape.max_position or None,
    }


class Facts(Mapping[str, Any]):
    """What is fixed, what a variant was given, the flags so far (`--name`), and what follows from them."""

    def __init__(self, fixed: Mapping[str, Any], profile: Profile, shape: Shape, gpu: Gpu) -> None:
        self.fixed = dict(fixed)
        self.profile = profile
        self.shape = shape
        self.gpu = gpu

    def __getitem__(self, name: str) -> Any:
        if name.startswith("--"):
            return self.profile.value(name)
        if name in DERIVED:
            return DERIVED[name](self)
        return self.fixed[name]

    def __contains__(self, name: object) -> bool:
        return name in self.fixed or name in DERIVED

    def __iter__(self) -> Iterator[str]:
        return iter([*self.fixed, *DERIVED])

    def __len__(self) -> int:
        return len(self.fixed) + len(DERIVED)

    def given(self, parameters: Mapping[str, Any]) -> Facts:
        """The same with a variant's parameters; one that hides another fact is also `<name>_parameter`."""
        longer = {f"{name}_parameter": value for name, value in parameters.items()}
        model = self.fixed["model"]
        return Facts(
            {**self.fixed, **parameters, "model": model, **longer}, self.profile, self.shape, self.gpu
        )


def quantization_groups(shape: Shape) -> int:
    """The number that a tensor-parallel size must divide so that every GPU holds whole groups; 0 where nothing is grouped."""
    quantization = shape.quantization
    if not quantization or quantization.group_size <= 0:
        return 0
    groups = [shape.heads * shape.head_dim // quantization.group_size]
    if not shape.experts:
        groups.append(shape.intermediate // quantization.group_size)
    return math.gcd(*groups)


def expert_groups(shape: Shape) -> int:
    """The same for the experts of a mixture; 0 for a dense model."""
    quantization = shape.quantization
    if not quantization or quantization.group_size <= 0 or not shape.experts:
        return 0
    return shape.expert_intermediate // quantization.group_size


def tensor_parallel_choices(shape: Shape) -> list[int]:
    """The GPU counts of a host that split this model evenly."""
    numbers = [shape.heads, quantization_groups(shape), expert_groups(shape)]
    numbers.append(0 if shape.experts else shape.intermediate)
    return [
        count
        for count in GPUS_OF_A_HOST
        if all(number % count == 0 for number in numbers)
        and (shape.kv_heads % count == 0 or count % shape.kv_heads == 0)
    ]


def _tensor_parallel_size(facts: Facts) -> int:
    declared = facts["--tensor-parallel-size"]
    return int(declared) if declared else max(1, facts.fixed["gpu_count"])


def _speculative_tokens(facts: Facts) -> int:
    configured = facts["--speculative-config"]
    tokens = configured.get("num_speculative_tokens") if isinstance(configured, Mapping) else None
    return tokens if isinstance(tokens, int) else 0


def _decode_step(facts: Facts) -> int:
    return 1 + _speculative_tokens(facts)


def _decode_tokens(facts: Facts) -> int | None:
    sequences = facts["--max-num-seqs"]
    return int(sequences) * _decode_step(facts) if sequences else None


def _spare_gib(facts: Facts) -> float | None:
    """GiB of a GPU's share beside the weights and the CUDA context, before anything else is counted."""
    share = facts["--gpu-memory-utilization"]
    if share is None:
        return None
    load = fit.Load(_tensor_parallel_size(facts), 0, float(share), 1, 1)
    weights = fit.weights_bytes(facts.shape, load)
    return round((facts.gpu.usable_bytes * float(share) - weights) / GIB, 1)


def _cpu_kv_cache_gib(facts: Facts) -> int:
    tokens = (facts.fixed["max_model_len"] or facts.shape.max_position) * CPU_SEQUENCES
    load = fit.Load(1, tokens, 1.0, 1, 1)
    return max(1, math.ceil(tokens * fit.kv_bytes_per_token(facts.shape, load) / GIB))


def _choices(facts: Facts) -> str:
    numbers = [str(number) for number in tensor_parallel_choices(facts.shape)]
    return " or ".join(filter(None, (", ".join(numbers[:-1]), numbers[-1])))


DERIVED: dict[str, Callable[[Facts], Any]] = {
    "tensor_parallel_size": _tensor_parallel_size,
    "tensor_parallel_choices": _choices,
    "speculative_tokens": _speculative_tokens,
    "decode_step": _decode_step,
    "decode_tokens": _decode_tokens,
    "spare_gib": _spare_gib,
    "cpu_kv_cache_gib": _cpu_kv_cache_gib,
}
