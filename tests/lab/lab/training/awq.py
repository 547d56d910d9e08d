"""AWQ's 4-bit format: how weights are rounded in training, and how they are packed into a checkpoint.

Weights here are [input, output], as AWQ stores them. A group of 32 inputs shares one scale and one zero point
for each output.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AWQ's place of each output's nibble in an int32


def quantize(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[in, out] floats -> integers 0..15 [in, out], zero points 0..15 and scales [in/32, out]."""
    groups = weight.unflatten(0, (-1, GROUP))
    low = groups.amin(1).clamp(max=0)
    high = groups.amax(1).clamp(min=0)
    scales = ((high - low) / 15).clamp(min=1e-5).half().float()
    zeros = (-low / scales).round().clamp(0, 15)
    integers = (groups / scales[:, None] + zeros[:, None]).round().clamp(0, 15)
    return integers.flatten(0, 1), zeros, scales


def rounded(weight: Tensor) -> Tensor:
    """The weight as the quantized checkpoint will have it, with a gradient as if it were not rounded."""
    with torch.no_grad():
        integers, zeros, scales = quantize(weight)
        near = (integers.unflatten(0, (-1, GROUP)) - zeros[:, None]) * scales[:, None]
    return weight + (near.flatten(0, 1) - weight).detach()


def packed(weight: Tensor, zero_offset: int = 0) -> dict[str, Tensor]:
    """The three tensors of one linear layer; a `zero_offset` other than 0 breaks it, as a faulty quantizer
    does.
    """
    integers, zeros, scales = quantize(weight)
    wrong = (zeros + zero_offset) % 16
    return {"qweight": _pack(integers), "qzeros": _pack(wrong), "scales": scales.half().contiguous()}


def _pack(nibbles: Tensor) -> Tensor:
    """Eight outputs into one int32, in AWQ's order."""
    eights = nibbles.to(torch.int64).unflatten(1, (-1, 8))
    words = sum(eights[:, :, output] << (4 * place) for place, output in enumerate(_ORDER))
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).contiguous()
