"""Compares our probe with `vllm bench serve` on one live server, both taking turns.

`accuracy.py URL MODEL TOKENIZER OUT.json [--words 180] [--output 128] [--turns 4] [--concurrency 1 8 32]`
Both send the same prompts, so that the server has the same work: serve with `--no-enable-prefix-caching`, for
their requests have no salt. Each turn is compared for itself, so that what a machine does over minutes meets
both, and they take turns at being first. Runs under the runtime's own Python, where `vllm` can be imported
(its benchmark is called in this process).
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

from pyinfra_vllm.on_host.bench import load, prompts, scheduling
from pyinfra_vllm.on_host.openai.client import Client

BATCHES = {1: 8, 8: 8, 32: 3}  # requests of a turn, in units of the concurrency


def asked(arguments: argparse.Namespace, concurrency: int, count: int, turn: str) -> list[prompts.Prompt]:
    return prompts.series(f"{turn}-c{concurrency}", 0, count, {"m": arguments.words})


class ServerClock:
    """The server's own mean time to the first token, over the requests since this was made."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.client = Client(arguments.url, arguments.model)
        self.before = self.client.metrics()

    def mean_ms(self) -> float:
        after = self.client.metrics()
        total, count = (
            after[name] - self.before.get(name, 0.0)
            for name in ("vllm:time_to_first_token_seconds_sum", "vllm:time_to_first_token_seconds_count")
        )
        return 1000 * total / count


def ours(arguments: argparse.Namespace, concurrency: int, count: int, turn: str) -> dict[str, float]:
    client = Client(arguments.url, arguments.model)
    series = asked(arguments, concurrency, count, turn)
    cpu, began = time.process_time(), time.perf_counter()
    server = ServerClock(arguments)
    limits = load.Limits(time.perf_counter() + 300, 120)
    with scheduling.first_in_line():
        done = load.run(client, series, concurrency, arguments.output, turn, limits)
    wall = time.perf_counter() - began
    return {
        "tokens_per_s": done.output_tokens / done.duration_s,
        "ttft_ms": 1000 * statistics.median(item.ttft_s for item in done.answered),
        "tpot_ms": 1000 * statistics.median(item.tpot_s or 0.0 for item in done.answered),
        "mean_ttft_ms": 1000 * statistics.fmean(item.ttft_s for item in done.answered),
        "server_ttft_ms": server.mean_ms(),
        "input_tokens": statistics.fmean(item.input_tokens for item in done.answered),
        "failed": len(done.requests) - len(done.answered),
        "client_cpu_share": (time.process_time() - cpu) / wall,
    }


def theirs(arguments: argparse.Namespace, concurrency: int, count: int, turn: str) -> dict[str, float]:
    from vllm.benchmarks import serve

    series = asked(arguments, concurrency, count, turn)
    dataset = arguments.out.with_suffix(".prompts.jsonl")
    dataset.write_text("".join(json.dumps({"prompt": prompt.text}) + "\n" for prompt in series))
    server = ServerClock(arguments)
    parser = argparse.ArgumentParser()
    serve.add_cli_args(parser)
    options = parser.parse_args(
        [
            *("--backend", "openai", "--base-url", arguments.url, "--model", arguments.model),
            *("--tokenizer", arguments.tokenizer, "--dataset-name", "custom", "--dataset-path", str(dataset)),
            *("--skip-chat-template", "--disable-shuffle", "--custom-output-len", str(arguments.output)),
            *("--num-prompts", str(count), "--max-concurrency", str(concurrency), "--ignore-eos"),
            *("--temperature", "0", "--disable-tqdm"),
        ]
    )
    cpu, began = time.process_time(), time.perf_counter()
    with scheduling.first_in_line():
        result: dict[str, Any] = asyncio.run(serve.main_async(options))
    wall = time.perf_counter() - began
    return {
        "tokens_per_s": result["output_throughput"],
        "ttft_ms": result["median_ttft_ms"],
        "tpot_ms": result["median_tpot_ms"],
        "mean_ttft_ms": result["mean_ttft_ms"],
        "server_ttft_ms": server.mean_ms(),
        "input_tokens": result["total_input_tokens"] / result["completed"],
        "failed": result.get("failed", 0),
        "client_cpu_share": (time.process_time() - cpu) / wall,
    }


CLIENTS = (("ours", ours), ("vllm", theirs))
SHOWN = ("tokens_per_s", "tpot_ms", "ttft_ms", "client_cpu_share")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("tokenizer")
    parser.add_argument("out", type=Path)
    parser.add_argument("--words", type=int, default=180)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    arguments = parser.parse_args()
    run = os.urandom(4).hex()
    rows = []
    for concurrency in arguments.concurrency:
        count = BATCHES.get(concurrency, 6) * concurrency
        ours(arguments, concurrency, concurrency, f"{run}-warm")
        for turn in range(arguments.turns):
            for who, measure in CLIENTS if turn % 2 else reversed(CLIENTS):
                measured = measure(arguments, concurrency, count, f"{run}-{turn}")
                rows.append({"concurrency": concurrency, "turn": turn, "who": who, **measured})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            arguments.out.write_text(json.dumps(rows, indent=1))
    print(table(rows, arguments.concurrency))


def table(rows: list[dict[str, Any]], concurrencies: list[int]) -> str:
    """Medians over the turns, and ours over theirs: the median of the turns' ratios and the middle half of
    them.
    """
    lines = [
        "| streams | | ours | theirs | ours over theirs, by turn | middle half |",
        "|---|---|--:|--:|--:|---|",
    ]
    for concurrency in concurrencies:
        at = [row for row in rows if row["concurrency"] == concurrency]
        for key in SHOWN:
            mine, other = ([row[key] for row in at if row["who"] == who] for who, _ in CLIENTS)
            changes = [100 * (a / b - 1) for a, b in zip(mine, other, strict=True)]
            low, middle, high = statistics.quantiles(changes, n=4) if len(changes) > 1 else changes * 3
            lines.append(
                f"| {concurrency} | {key} | {statistics.median(mine):.4g} | {statistics.median(other):.4g} "
                f"| {middle:+.1f} % | {low:+.1f} to {high:+.1f} % |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
