"""Reads from a config.json how linear layers are stored, and which of vLLM's kernels take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyinfra_vllm.catalog.config_json import whole_number
from pyinfra_vllm.errors import DeclarationError

CT = "compressed-tensors"
QUANTIZATION_KEYS = ("quantization_config", "compression_config")  # the second: compressed-tensors' older one
# AutoRound's integers, which vLLM serves as GPTQ's where they are packed like them (quantization/inc, 0.32.0;
# auto_round.py before). Packed like AWQ's they have no line in the log up to 0.18.
AUTO_ROUND, GPTQ_PACKED = ("auto-round", "auto_round", "inc"), "auto_round:auto_gptq"
FP4 = ("nvfp4", "mxfp4")
MIXED = (None, "nvfp4", "wna16", "fp8_block", "fp8", "int8")  # which of several a checkpoint is known by
# By modelopt's `quant_algo`; the mixed one is FP8 and NVFP4, whose lines both name a kernel.
MODELOPT = {"FP8": "fp8", "NVFP4": "nvfp4", "MIXED_PRECISION": "nvfp4"}


@dataclass(frozen=True)
class Quantization:
    """How the linear layers are stored. `group_size` is in input channels; -1 for one group per column."""

    method: str
    bits: int = 4
    group_size: int = 128
    zero_point: bool = True
    fp8_kv_cache: bool = False  # with scales of the KV cache: vLLM keeps it in FP8
    form: str = ""  # of compressed-tensors, such as nvfp4-pack-quantized
    block: int = 0  # of FP8 with scales by block: the channels that one is wide and high
    kernels: str | None = "wna16"  # which kernels of gpus.yaml take it: see `_kernels_of`; None: unknown ones


def read(config: Mapping[str, Any], text: Mapping[str, Any], name: str) -> Quantization | None:
    """How a config.json, or its text model's part, says that weights are quantized; None where they are not.

    Raises DeclarationError for values that can't be understood.
    """
    places = ((part, key) for part in (config, text) for key in QUANTIZATION_KEYS)
    found = next((part[key] for part, key in places if part.get(key)), None)
    if not found:
        return None
    if not isinstance(found, Mapping):
        raise DeclarationError(f"{name}: `quantization_config` in its config.json is no map")
    weights = _main_group(found).get("weights") or found
    group_size = weights.get("group_size", weights.get("q_group_size"))
    producer = found.get("producer")
    made_by = producer.get("name") if isinstance(producer, Mapping) else None
    method = str(found.get("quant_method") or made_by or "unknown").lower().replace("compressed_tensors", CT)
    kernels = _kernels_of(method, found)
    refused = kernels is None and method != "unknown"  # by name, whatever its numbers are
    usual = 8 if kernels in ("fp8", "fp8_block", "int8") else 4
    padded = group_size == -1 or kernels in FP4  # what tensor parallelism cuts, vLLM fills up
    return Quantization(
        method=method,
        kernels=kernels,
        bits=usual if refused else whole_number(weights, ("bits", "w_bit", "num_bits"), name) or usual,
        group_size=-1 if padded else whole_number(weights, ("group_size", "q_group_size"), name) or -1,
        form=str(found.get("format", "")) if method == CT else "",
        block=_block(found.get("weight_block_size") or weights.get("block_structure"))
        if kernels == "fp8_block"
        else 0,
        fp8_kv_cache=_fp8_cache(method, found),
        zero_point=bool(weights.get("zero_point", not weights.get("symmetric", weights.get("sym", True)))),
    )


def _fp8_cache(method: str, found: Mapping[str, Any]) -> bool:
    """Whether vLLM keeps the KV cache in FP8 where nothing is declared (utils/torch_utils.py
    get_kv_cache_quant_algo_string, 0.32.0; compressed-tensors' of whatever type).
    """
    scheme = found.get("kv_cache_scheme")
    if method == CT or not method.startswith("modelopt"):
        return method == CT and isinstance(scheme, Mapping)
    if isinstance(scheme, Mapping):
        return scheme.get("num_bits") == 8
    return str(_of_modelopt(found).get("kv_cache_quant_algo")).upper() == "FP8"


def _of_modelopt(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that modelopt wrote: in hf_quant_config.json they are under `quantization`."""
    inner = found.get("quantization")
    return inner if isinstance(inner, Mapping) else found


def _block(sizes: Any) -> int:
    """The larger side of a block such as [128, 128]; 0 for anything else."""
    known = isinstance(sizes, list) and all(isinstance(size, int) and size > 0 for size in sizes)
    return max(sizes, default=0) if known else 0


def _kernels_of(method: str, found: Mapping[str, Any]) -> str | None:
    """Which kernels of vLLM take such weights: those for integers of few bits and 16-bit activations (wna16),
    for FP8 by tensor or channel (fp8) or by block (fp8_block), for 8-bit integers on both sides (int8), for
    FP4 (nvfp4; mxfp4 of experts).

    Others (MXFP8, bitsandbytes, ...) have kernels whose lines in the log aren't known here.
    """
    if method in ("awq", "awq_marlin", "auto_awq", "gptq", "gptq_marlin", "auto_gptq"):
        return "wna16"
    if method == "mxfp4":
        return "mxfp4"
    if method.startswith("modelopt"):
        return MODELOPT.get(str(_of_modelopt(found).get("quant_algo")))
    if method in AUTO_ROUND and found.get("data_type", "int") == "int":
        return "wna16" if found.get("packing_format", GPTQ_PACKED) == GPTQ_PACKED else None
    if method == "fp8":
        return "fp8_block" if found.get("weight_block_size") else "fp8"
    return _kernels_of_group(_main_group(found), found) if method == CT else None


def _main_group(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The group of compressed-tensors' `config_groups` by whose kernels a checkpoint is known: one of mixed
    precision has several, such as FP4 beside FP8. One whose kernels aren't known comes first. {} for none.
    """
    groups = found.get("config_groups")
    rows = groups.values() if isinstance(groups, Mapping) else ()
    told = [
        group for group in rows if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping)
    ]
    kinds = {_kernels_of_group(group, found): group for group in told}
    return next((kinds[kind] for kind in MIXED if kind in kinds), {})


def _kernels_of_group(group: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """The same for one group of llm-compressor's checkpoints, after compressed_tensors.py
    _get_scheme_from_parts, 0.32.0: of weights of 4 bits with activations of 8 (W4A8) and FP8 weights with
    16-bit activations (W8A16) it names no kernel that is known here.
    """
    weights, inputs = group.get("weights") or found, group.get("input_activations")
    form = group.get("format") or found.get(
        "format", "pack-quantized" if weights.get("num_bits") == 4 else None
    )
    if form == "pack-quantized":
        return None if inputs else "wna16"
    if form == "nvfp4-pack-quantized":
        return "nvfp4" if inputs else None
    if weights.get("num_bits", 8) != 8:
        return None
    if form == "float-quantized" and inputs:
        return "fp8_block" if weights.get("strategy") == "block" else "fp8"
    return "int8" if form == "int-quantized" and inputs else None
