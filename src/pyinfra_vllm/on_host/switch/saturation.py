"""How many requests a release serves at once: what its scheduler admits and its KV cache has room for."""

from __future__ import annotations

from ..bench.criteria import MOST
from ..server.release import Release

FLAG = "--max-num-seqs"
REQUEST_TOKENS = 600  # of one of the probe's requests, prompt and answer, on average over its three shapes


def admitted(release: Release) -> int:
    """MOST if nothing says less (vLLM: 128 or more)."""
    return min(MOST, _scheduled(release), _cached(release))


def _scheduled(release: Release) -> int:
    limit = release.number(FLAG)
    return MOST if limit is None else max(1, limit)


def _cached(release: Release) -> int:
    """By what was predicted when the release was staged.

    A context that is shorter than our requests shortens them.
    """
    fit = release.predicted_fit
    tokens, requests = fit.get("kv_tokens"), fit.get("max_concurrency")
    if not tokens or not requests:
        return MOST
    return max(1, int(tokens / min(REQUEST_TOKENS, tokens / requests)))
