"""The two measurements of a live server, made on a host of the lab with the real vLLM on this machine's
cores.

`on_lab.py accuracy [arguments of accuracy.py]`     the probe beside vLLM's own benchmark (`make
    bench-accuracy`)
`on_lab.py record FOLDER [arguments of record.py]`  nine runs of one unchanged server: three starts, three
    runs each

Server and clients share those cores, so nothing else should run beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/lab"))

from lab import packages, runtime, serving, session
from lab.session import Lab

HERE = Path(__file__).resolve().parent
MODEL = "lab/good-a"
PORT = 8000
STARTS, RUNS = 3, 3
ACCURACY = ("--no-enable-prefix-caching", "--max-model-len", "4096", "--max-num-batched-tokens", "4096")
PANDAS = "pandas==3.1.1"  # what vLLM's own benchmark imports and vLLM does not bring


@contextmanager
def lab() -> Iterator[Lab]:
    with session.lab("bench") as running:
        serving.send(running.hosts["bench"], running.parts.checkpoints[MODEL], f"/srv/{MODEL}")
        yield running


@contextmanager
def server(lab: Lab, unit: str, *flags: str) -> Iterator[str]:
    """The URL of a server that was just started."""
    host = lab.hosts["bench"]
    serving.serve(host, unit, f"/srv/{MODEL}", PORT, "--host", "0.0.0.0", *flags)
    serving.wait_healthy(host, unit, PORT)
    yield f"http://{host.address}:{PORT}"
    host.ssh(f"systemctl stop {unit}")


def run(lab: Lab, script: str, *words: str, beside: str = "") -> None:
    """One of the scripts here, under the Python that has vLLM, with the packages in the folder `beside`."""
    python = f"{lab.parts.runtime}/bin/python"
    subprocess.run([python, str(HERE / script), *words], env={**os.environ, "PYTHONPATH": beside}, check=True)


def accuracy(*more: str) -> None:
    with tempfile.TemporaryDirectory() as beside, lab() as running:
        wanted = ("--target", beside, f"--constraints={runtime.CONSTRAINTS}", PANDAS)
        packages.install(running.parts.runtime / "bin/python", *wanted)
        with server(running, "vllm", *ACCURACY) as url:
            tokenizer = str(running.parts.checkpoints[MODEL])
            out = f"{beside}/accuracy.json"
            run(running, "accuracy.py", url, "tiny", tokenizer, out, *more, beside=beside)


def record(folder: str, *more: str) -> None:
    first = Path(folder) / "0-0.json"
    first.parent.mkdir(parents=True, exist_ok=True)
    with lab() as running:
        for start in range(STARTS):
            with server(running, f"vllm-{start}") as url:
                for number in range(RUNS):
                    like = ["--like", str(first)] if first.exists() else []
                    run(running, "record.py", url, "tiny", f"{folder}/{start}-{number}.json", *like, *more)


if __name__ == "__main__":
    {"accuracy": accuracy, "record": record}[sys.argv[1]](*sys.argv[2:])
