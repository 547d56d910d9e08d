"""`make bench-accuracy`: the comparison of accuracy.py on a host of the lab, with the real vLLM on this machine's cores.

Server and clients share those cores, so nothing else should run beside it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/lab"))

from lab import serving, session

ACCURACY = Path(__file__).with_name("accuracy.py")
MODEL = "lab/good-a"
PORT = 8000


def main() -> int:
    with session.lab("accuracy") as lab, tempfile.TemporaryDirectory() as folder:
        host, checkpoint = lab.hosts["accuracy"], lab.parts.checkpoints[MODEL]
        serving.send(host, checkpoint, f"/srv/{MODEL}")
        serving.serve(host, "vllm", f"/srv/{MODEL}", PORT, "--host", "0.0.0.0", "--no-enable-prefix-caching")
        serving.wait_healthy(host, "vllm", PORT)
        url = f"http://{host.address}:{PORT}"
        python = f"{lab.parts.runtime}/bin/python"
        words = [python, str(ACCURACY), url, "tiny", str(checkpoint), f"{folder}/out.json"]
        return subprocess.call([*words, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
