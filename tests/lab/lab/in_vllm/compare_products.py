"""Run by the real vLLM's Python: products of 4-bit weights, compared with those of the dequantized weights.

Prints as JSON, for each case, the largest error as a share of the largest product.
"""

from __future__ import annotations

import json

import torch
import vllm.model_executor.parameter as parameter
from torch import Tensor
from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig, AutoAWQMarlinLinearMethod
from vllm.plugins import load_general_plugins

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output that each four bits of an int32 belong to, the lowest first
INPUTS, OUTPUTS = 256, 160


def plain(qweight: Tensor, qzeros: Tensor, scales: Tensor, symmetric: bool) -> Tensor:
    """The weight [in, out] in float64."""
    integers, zeros = nibbles(qweight), nibbles(qzeros)
    group = len(integers) // len(scales)
    weight = torch.empty(integers.shape, dtype=torch.float64)
    for row in range(len(weight)):
        zero = 8 if symmetric else zeros[row // group]
        weight[row] = (integers[row] - zero) * scales[row // group].double()
    return weight


def nibbles(packed: Tensor) -> Tensor:
    found = torch.empty(len(packed), packed.shape[1] * 8, dtype=torch.float64)
    for place, output in enumerate(ORDER):
        found[:, output::8] = (packed.long() >> (4 * place) & 15).double()
    return found


def error(kind: torch.dtype, group: int, symmetric: bool, with_bias: bool) -> float:
    quantization = {"bits": 4, "group_size": group, "zero_point": not symmetric}
    method = AutoAWQMarlinLinearMethod(AutoAWQConfig.from_config(quantization))
    layer = torch.nn.Module()
    layer.bias = None
    method.create_weights(
        layer, INPUTS, [OUTPUTS // 2, OUTPUTS // 2], INPUTS, OUTPUTS, kind, weight_loader=None
    )
    for packed in (layer.qweight, layer.qzeros):
        packed.data.copy_(torch.randint(-(2**31), 2**31, packed.shape))
    layer.scales.data.copy_(torch.rand(layer.scales.shape) / 64)
    weight = plain(layer.qweight.data, layer.qzeros.data, layer.scales.data, symmetric)
    method.process_weights_after_loading(layer)
    worst = 0.0
    for shape in ((1, INPUTS), (37, INPUTS), (2, 5, INPUTS)):
        given = torch.randn(shape).to(kind)
        bias = torch.randn(OUTPUTS).to(kind) if with_bias else None
        wanted = given.double() @ weight + (bias.double() if with_bias else 0)
        made = method.apply(layer, given, bias).double()
        worst = max(worst, ((made - wanted).abs().max() / wanted.abs().max()).item())
    return worst


def main() -> None:
    torch.manual_seed(0)
    parameter.get_tensor_model_parallel_rank = lambda: 0
    parameter.get_tensor_model_parallel_world_size = lambda: 1
    load_general_plugins()
    cases = {
        f"{kind} {group} {symmetric} {with_bias}": error(kind, group, symmetric, with_bias)
        for kind in (torch.float16, torch.bfloat16)
        for group in (32, 128, -1)
        for symmetric in (False, True)
        for with_bias in (False, True)
    }
    print(json.dumps(cases))


if __name__ == "__main__":
    main()
