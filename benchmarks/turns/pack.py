"""Packs the rounds in turns that stories on a GPU left into a trace for `simulate.py`.

`pack.py RESULTS/standby-8B-kept --where "H200, ..." --into traces/h200-8b-beside-clients.json.xz`
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
from datetime import datetime
from pathlib import Path
from typing import Any


def block_s(story: Path, step: str) -> float:
    """Seconds of a block of four rounds, turns included, by the newest transaction's journal."""
    lines = (story / f"{step}-chat-journal.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    at = {
        entry["state"]: datetime.fromisoformat(entry["at"])
        for entry in entries
        if entry["step"] == "turns" and entry["tx"] == entries[-1]["tx"]
    }
    (blocks,) = [
        entry["blocks"]
        for entry in entries
        if (entry["step"], entry["state"], entry["tx"]) == ("turns", "done", entries[-1]["tx"])
    ]
    return (at["done"] - at["intended"]).total_seconds() / float(blocks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("story", type=Path)
    parser.add_argument("--where", required=True)
    parser.add_argument("--into", type=Path, required=True)
    options = parser.parse_args()
    files = sorted(options.story.glob("*-chat-turns.json"))
    switches = [json.loads(file.read_text())["blocks"] for file in files]
    seconds = [block_s(options.story, file.name.partition("-")[0]) for file in files]
    trace: dict[str, Any] = {
        "where": options.where,
        "block_s": round(sum(seconds) / len(seconds), 1),
        "switches": switches,
    }
    options.into.write_bytes(lzma.compress(json.dumps(trace).encode()))
    print(f"{len(switches)} switches, {trace['block_s']} s a block")
    return 0


if __name__ == "__main__":
    sys.exit(main())
