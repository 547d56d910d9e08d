"""The commands of `pyinfra-vllm`, one module each: thin over the functions that do the work."""
