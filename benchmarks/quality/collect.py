"""Asks one server all that the quality criteria judge by, several times in other orders, and keeps it raw.

    python benchmarks/quality/collect.py --url URL --model NAME --runs N --out FILE

The order of the questions decides which of them share a batch, and so how sums are rounded. Answers are kept
with their text in the first run, and as graded entries in the others.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pyinfra_vllm.on_host.bench import likelihood, quality
from pyinfra_vllm.on_host.bench.questions import builtin, further
from pyinfra_vllm.on_host.openai.client import Client

LONGEST_S = 300.0  # of one run
AT_ONCE = 10  # runs under way together, after the first


def collected(client: Client, runs: int, seed: int) -> dict[str, Any]:
    """`{"likelihood", "missing", "likelihood_s", "runs", "alone_s"}`; a run is a list of graded entries.

    The first run has the server to itself, the others are under way together: no two batches are alike.
    """
    began = time.perf_counter()
    texts = likelihood.builtin(("en", "ja"))
    measured, missing = likelihood.measure(client, texts, began + LONGEST_S)
    likelihood_s = time.perf_counter() - began
    first, alone_s = _run(client, seed, 0)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        further = list(pool.map(lambda number: _run(client, seed, number)[0], range(1, runs)))
    return {
        "likelihood": [item.as_dict() for item in measured],
        "missing": missing,
        "likelihood_s": round(likelihood_s, 2),
        "runs": [first, *further],
        "alone_s": alone_s,
    }


def _run(client: Client, seed: int, number: int) -> tuple[list[dict[str, object]], float]:
    """The graded entries, and how many seconds they took."""
    questions = builtin() + further()
    random.Random(seed + number).shuffle(questions)
    began = time.perf_counter()
    found = quality.ask_all(client, questions, began + LONGEST_S, keep_answers=number == 0)
    return [item.as_dict() for item in found], round(time.perf_counter() - began, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = collected(Client(options.url, options.model), options.runs, options.seed)
    options.out.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
