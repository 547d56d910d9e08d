"""Our probe and `vllm bench serve` against the same live server, taking turns: do they measure the same?

`accuracy.py URL MODEL TOKENIZER OUT.json [--input 256] [--output 128] [--turns 2] [--concurrency 1 8 32]`
Runs under the runtime's own Python, where `vllm` can be imported (its benchmark is called in this process).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from pyinfra_vllm.on_host import load, prompts
from pyinfra_vllm.on_host.client import Client
from pyinfra_vllm.on_host.relative import tpot

BATCHES = {1: 8, 8: 8, 32: 6}  # requests of a turn, in units of the concurrency


def ours(arguments: argparse.Namespace, concurrency: int, count: int, turn: str) -> dict[str, float]:
    client = Client(arguments.url, arguments.model)
    words = {"m": arguments.words}
    series = prompts.series(f"{turn}-c{concurrency}", 0, count, words)
    cpu, began = time.process_time(), time.perf_counter()
    done = load.run(
        client, series, concurrency, arguments.output, turn, load.Limits(time.perf_counter() + 300, 120)
    )
    wall = time.perf_counter() - began
    return {
        "tokens_per_s": done.output_tokens / done.duration_s,
        "ttft_ms": 1000 * statistics.median(item["ttft_s"] for item in done.answered),
        "tpot_ms": 1000 * statistics.median(tpot(item) or 0.0 for item in done.answered),
        "input_tokens": statistics.fmean(item["input_tokens"] for item in done.answered),
        "failed": len(done.requests) - len(done.answered),
        "client_cpu_share": (time.process_time() - cpu) / wall,
    }


def theirs(arguments: argparse.Namespace, concurrency: int, count: int, seed: int) -> dict[str, float]:
    from vllm.benchmarks import serve

    parser = argparse.ArgumentParser()
    serve.add_cli_args(parser)
    options = parser.parse_args(
        [
            *("--backend", "openai", "--base-url", arguments.url, "--model", arguments.model),
            *("--tokenizer", arguments.tokenizer, "--dataset-name", "random", "--seed", str(seed)),
            *("--random-input-len", str(arguments.input), "--random-output-len", str(arguments.output)),
            *("--num-prompts", str(count), "--max-concurrency", str(concurrency), "--ignore-eos"),
            *("--temperature", "0", "--disable-tqdm"),
        ]
    )
    cpu, began = time.process_time(), time.perf_counter()
    result: dict[str, Any] = asyncio.run(serve.main_async(options))
    wall = time.perf_counter() - began
    return {
        "tokens_per_s": result["output_throughput"],
        "ttft_ms": result["median_ttft_ms"],
        "tpot_ms": result["median_tpot_ms"],
        "input_tokens": result["total_input_tokens"] / result["completed"],
        "failed": result.get("failed", 0),
        "client_cpu_share": (time.process_time() - cpu) / wall,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("tokenizer")
    parser.add_argument("out", type=Path)
    parser.add_argument("--input", type=int, default=256)
    parser.add_argument(
        "--words", type=int, default=256, help="of our prompts: as many as give --input tokens"
    )
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    arguments = parser.parse_args()
    run = os.urandom(4).hex()
    rows = []
    for concurrency in arguments.concurrency:
        count = BATCHES.get(concurrency, 6) * concurrency
        ours(arguments, concurrency, concurrency, f"{run}-warm")
        for turn in range(arguments.turns):
            for who, measured in (
                ("ours", ours(arguments, concurrency, count, f"{run}-{turn}")),
                (
                    "vllm",
                    theirs(arguments, concurrency, count, int(run, 16) % 100000 + 10 * concurrency + turn),
                ),
            ):
                rows.append({"concurrency": concurrency, "turn": turn, "who": who, **measured})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            arguments.out.write_text(json.dumps(rows, indent=1))
    for concurrency in arguments.concurrency:
        print(concurrency, json.dumps(ratios(rows, concurrency)))


def ratios(rows: list[dict[str, Any]], concurrency: int) -> dict[str, float]:
    """Ours over theirs: the median over the turns of each."""
    found = {}
    for key in ("tokens_per_s", "ttft_ms", "tpot_ms", "client_cpu_share"):
        by = {
            who: statistics.median(
                r[key] for r in rows if r["who"] == who and r["concurrency"] == concurrency
            )
            for who in ("ours", "vllm")
        }
        found[key] = round(by["ours"] / by["vllm"], 4)
    return found


if __name__ == "__main__":
    main()
