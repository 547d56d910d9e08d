"""The serving unit: its release, process, listeners, log, kernels, caches and memory."""
