"""Packs recorded runs into one compact file of traces.

`pack.py OUT.json.xz ABOUT --unchanged A.json B.json ... [--slower NAME=FILE.json ...]`
Keeps what the gate reads; times to the microsecond.
"""

from __future__ import annotations

import argparse
import json
import lzma
from pathlib import Path
from typing import Any

KEPT = ("schema", "model", "server", "plan", "client", "traffic", "warm_up", "note")
REQUEST = ("prompt", "ok", "ttft_s", "e2e_s", "input_tokens", "output_tokens", "round", "kind", "error")


def compact(path: str) -> dict[str, Any]:
    record = json.loads(Path(path).read_text())
    phases = [
        {
            **{key: phase[key] for key in ("name", "concurrency", "duration_s", "rounds")},
            "requests": [{key: item[key] for key in REQUEST if key in item} for item in phase["requests"]],
        }
        for phase in record["phases"]
    ]
    return {**{key: record[key] for key in KEPT if key in record}, "phases": phases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("about")
    parser.add_argument("--unchanged", nargs="+", required=True)
    parser.add_argument("--slower", nargs="*", default=[])
    arguments = parser.parse_args()
    traces = {
        "about": arguments.about,
        "unchanged": [compact(path) for path in arguments.unchanged],
        "slower": {name: [compact(path)] for name, path in (item.split("=") for item in arguments.slower)},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(traces, separators=(",", ":")).encode()
    arguments.out.write_bytes(lzma.compress(data, preset=9))
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes from {len(data)}")


if __name__ == "__main__":
    main()
