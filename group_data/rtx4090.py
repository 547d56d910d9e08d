"""Settings of the RTX 4090 hosts alone: 24 GB leave room for a shorter context."""

services = {
    "chat": {
        "gpu": "NVIDIA GeForce RTX 4090",
        "objective": "latency",
        "max_model_len": 8192,
        "flags": {"max-num-seqs": 8},
    },
}
