"""As how many requests at once saturation is measured."""

from __future__ import annotations

from typing import Any

import pytest

from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.server.release import Release
from pyinfra_vllm.on_host.switch import saturation


def release(*argv: str, kv_tokens: int = 0, max_concurrency: float = 0) -> Release:
    fit = {"kv_tokens": kv_tokens, "max_concurrency": max_concurrency} if kv_tokens else None
    return Release({"argv": ["vllm", "serve", "/model", *argv], "fit": fit})


@pytest.mark.parametrize(
    ("releases", "expected"),
    [
        ([release()], 64),
        ([release("--max-num-seqs", "256")], 64),
        ([release("--max-num-seqs", "16")], 16),
        ([release("--max-num-seqs=16", "--port", "8000")], 16),
        ([release("--max-num-seqs", "16", "--max-num-seqs", "32")], 32),  # argparse takes the last
        ([release("--max-num-seqs", "48"), release("--max-num-seqs", "24")], 24),
        ([release(kv_tokens=9488, max_concurrency=2.32)], 15),  # an RTX 4090 with a 32B model
        ([release(kv_tokens=9488, max_concurrency=37)], 37),  # a context of 256 tokens shortens the prompts
        ([release(kv_tokens=300, max_concurrency=0.1)], 1),
        ([release(kv_tokens=434_480, max_concurrency=106), release("--max-num-seqs", "8")], 8),
        ([Release({"argv": ["vllm"]})], 64),  # staged before its fit was written down
    ],
)
def test_what_every_release_admits_counts(releases: list[Release], expected: int) -> None:
    assert saturation.admitted(*releases) == expected


@pytest.mark.parametrize(
    ("declared", "admitted", "phases"),
    [
        ((1, 8, "max"), 64, (1, 8, 64)),
        ((1, 8, "max"), 500, (1, 8, 64)),
        ((1, 8, "max"), 9, (1, 8, 9)),
        ((1, 8, "max"), 8, (1, 8)),
        ((1, 8, "max"), 3, (1, 8)),  # eight are saturation already
        (("max",), 3, (3,)),
        ((1, 128, "max"), 64, (1, 128)),
        ((1, 8), 64, (1, 8)),
    ],
)
def test_saturation_has_a_phase_of_its_own_where_no_declared_one_reaches_it(
    declared: tuple[Any, ...], admitted: int, phases: tuple[int, ...]
) -> None:
    assert Criteria(concurrency=declared).streams(admitted) == phases
