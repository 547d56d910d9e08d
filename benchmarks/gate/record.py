"""Records a trace: one full measurement of a live server, all rounds, as a benchmark record.

`record.py URL MODEL OUT.json [--like FIRST.json] [--budget S] [--concurrency 1 8 32] [--note TEXT]`
Standard library only: it runs wherever the probe runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from pyinfra_vllm.on_host.bench import phases, probe
from pyinfra_vllm.on_host.bench.plan import Settings
from pyinfra_vllm.on_host.bench.record import read_with_plan
from pyinfra_vllm.on_host.openai.client import Client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--like", type=Path)
    parser.add_argument("--budget", type=float, default=Settings.budget_s, help="seconds")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--note", default="")
    arguments = parser.parse_args()
    settings = Settings(concurrency=tuple(arguments.concurrency), budget_s=arguments.budget, quality=False)
    like = read_with_plan(json.loads(arguments.like.read_text()), "like") if arguments.like else None
    client = Client(arguments.url, arguments.model)
    record = probe.measure(client, settings, progress=lambda line: print(line, file=sys.stderr), like=like)
    wanted = like.plan.rounds if like and like.plan else 0
    while max(len(phase.rounds) for phase in record.phases) < wanted:
        before = sum(phase.duration_s for phase in record.phases)
        record = probe.measure(client, settings, extend=record)
        if sum(phase.duration_s for phase in record.phases) == before:
            break
    written = {**record.as_dict(), "note": arguments.note}
    arguments.out.write_text(json.dumps(written, separators=(",", ":")))
    print(arguments.out.name, json.dumps(phases.summary(record)), json.dumps(written["client"]))


if __name__ == "__main__":
    main()
