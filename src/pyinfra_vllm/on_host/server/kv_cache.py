"""How large the server's KV cache really is, by its own figures: /metrics where it says so, else its log."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ..state.values import MOST

INFO = "vllm:cache_config_info"
# The labels that carry a size (vLLM 0.24 and newer; older ones have the blocks only).
NUMBERS = {
    "kv_cache_size_tokens": "tokens",
    "kv_cache_max_concurrency": "max_concurrency",
    "num_gpu_blocks": "blocks",
    "block_size": "block_size",
}
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_LOGGED = re.compile(r"KV cache size: ([0-9][0-9,]{0,20}) tokens")


def measured(metrics: Iterable[str], log: Iterable[str]) -> dict[str, Any]:
    """The server's report: `tokens` and, where known, `max_concurrency`, `blocks`, `block_size`; else {}.

    + metrics: the names of the samples, labels included
    + log: its lines since its start
    """
    found: dict[str, Any] = {}
    for name in metrics:
        if name.startswith(INFO + "{"):
            labels = dict(_LABEL.findall(name))
            found.update(
                {ours: _number(labels[theirs]) for theirs, ours in NUMBERS.items() if theirs in labels}
            )
    for line in log:
        said = _LOGGED.search(line)
        if said and not found.get("tokens"):
            found["tokens"] = int(said[1].replace(",", ""))
    return {name: value for name, value in found.items() if value is not None}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:  # "None" where the server does not know it
        return None
    if not 0 <= value <= MOST:
        return None
    return int(value) if value.is_integer() else value
