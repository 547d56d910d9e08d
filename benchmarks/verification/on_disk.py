"""Reading every byte of a checkpoint, as a host does with `verify=true`, against sha256sum on all cores.

    on_disk.py [--gigabytes 10] [--rounds 5] [--folder DIR]

Both take turns over the same files. Ends with 1 where ours is slower than 80 % of sha256sum's speed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pyinfra_vllm.on_host.state import manifest

LEAST_SHARE = 0.8
SHARDS = 8
CHUNK = 16 << 20
OURS = (
    "import sys, pathlib; from pyinfra_vllm.on_host.state import manifest;"
    " sys.exit(len(manifest.full_check(pathlib.Path(sys.argv[1]))))"
)


def lay_down(folder: Path, total: int) -> list[str]:
    """Files of random bytes with their manifest."""
    entries = []
    for number in range(SHARDS):
        path = folder / f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        with path.open("wb") as file:
            left = total // SHARDS
            while left:
                left -= file.write(os.urandom(min(CHUNK, left)))
        path.chmod(0o644)
        entries.append(manifest.describe(folder, path.name, manifest.hash_file(path)))
    manifest.write(folder, manifest.Manifest("acme/random", "a" * 40, tuple(entries)))
    manifest.mark(folder)
    return [entry.path for entry in entries]


def timed(command: Sequence[str], folder: Path, given: str = "") -> float:
    began = time.monotonic()
    subprocess.run(command, cwd=folder, input=given, text=True, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    total = int(options.gigabytes * 1e9)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        files = "\n".join(lay_down(folder, total))
        os.sync()
        shares = []
        for number in range(options.rounds):
            theirs = timed(["xargs", "-P", str(os.cpu_count()), "-n", "1", "sha256sum"], folder, files)
            ours = timed([sys.executable, "-c", OURS, str(folder)], folder)
            shares.append(theirs / ours)
            print(
                f"{number + 1}: ours {total / ours / 1e9:.2f} GB/s,"
                f" sha256sum {total / theirs / 1e9:.2f} GB/s: {shares[-1]:.0%}",
                flush=True,
            )
    print(
        f"median {statistics.median(shares):.0%} of parallel sha256sum ({min(shares):.0%} to"
        f" {max(shares):.0%}; at least {LEAST_SHARE:.0%})"
    )
    return int(statistics.median(shares) < LEAST_SHARE)


if __name__ == "__main__":
    sys.exit(main())
