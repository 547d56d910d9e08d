"""Stories of hosts with real NVIDIA GPUs and the real vLLM."""
