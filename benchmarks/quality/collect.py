"""Asks one server all that the quality criteria judge by, several times in other orders, and keeps it raw.

    python benchmarks/quality/collect.py --url URL --model NAME --runs N --out FILE

The order of the questions decides which of them share a batch, and so how sums are rounded. Answers are kept with their
text in the first run, and as graded entries in the others.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

from pyinfra_vllm.on_host import likelihood, quality
from pyinfra_vllm.on_host.client import Client

LONGEST_S = 300.0  # of one run


def collected(client: Client, runs: int, seed: int) -> dict[str, Any]:
    """`{"likelihood", "missing", "runs", "seconds"}`; a run is a list of graded entries."""
    began = time.perf_counter()
    texts = likelihood.builtin(("en", "ja"))
    measured, missing = likelihood.measure(client, texts, began + LONGEST_S)
    likelihood_s = time.perf_counter() - began
    found, seconds = [], []
    for number in range(runs):
        questions = quality.builtin() + quality.further()
        random.Random(seed + number).shuffle(questions)
        began = time.perf_counter()
        found.append(quality.ask_all(client, questions, began + LONGEST_S, keep_answers=number == 0))
        seconds.append(round(time.perf_counter() - began, 2))
    return {
        "likelihood": measured,
        "missing": missing,
        "likelihood_s": round(likelihood_s, 2),
        "runs": found,
        "seconds": seconds,
    }


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
