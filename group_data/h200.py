"""Settings of the H200 hosts alone: a bigger model, checked to be on that GPU."""

services = {
    "chat": {
        "model": "Qwen/Qwen3-32B-AWQ",
        "gpu": "NVIDIA H200",
        "objective": "throughput",
        "flags": {"max-num-seqs": 256},
        "gate": {"min_tokens_per_s": {"c1": 70}},
    },
}
