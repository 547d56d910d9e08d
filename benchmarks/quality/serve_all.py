"""Serves each variant of the real model with vLLM on GPUs, many at a time, and collects what each answers.

    python benchmarks/quality/serve_all.py VLLM CHECKPOINTS OUT [--gpus 0,1] [--at-once 26]

VLLM is the venv's `vllm`, CHECKPOINTS the directory that `tests/lab/lab/training/real_model.py` filled.
Harmless variants are asked RUNS times; AWQ ones also under each of the kernels that the GPU can use. One JSON
file for each, in OUT.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyinfra_vllm.on_host.client import Client

RUNS = 20
HARMLESS = ("float16", "rtn-8", "awq-g64", "awq-g64-as-float16", "awq-g32")
# vLLM tries kernels in its own order; switching off those before it leaves the next (vLLM 0.25.1).
KERNELS = {
    "machete": "",
    "marlin": "MacheteLinearKernel",
    "others": "MacheteLinearKernel,MarlinLinearKernel,AllSparkLinearKernel",
}
BY_KERNEL = ("awq-g64", "awq-g32")
READY_S = 240.0
TRIES = 3  # vLLM's memory profiling fails where a neighbour on the card lets memory go meanwhile
KV_BYTES = 1 << 30


def jobs(checkpoints: Path) -> list[tuple[str, Path, str, int]]:
    """(name, directory, kernels switched off, runs) of everything that is to be served."""
    found = [
        (path.name, path, "", RUNS if path.name in HARMLESS else 1)
        for path in sorted(checkpoints.iterdir())
        if (path / "config.json").is_file()
    ]
    return found + [
        (f"{name}@{kernel}", checkpoints / name, disabled, 3)
        for name in BY_KERNEL
        for kernel, disabled in KERNELS.items()
        if disabled
    ]


def one(
    vllm: Path, name: str, directory: Path, disabled: str, runs: int, port: int, gpu: str, out: Path
) -> str:
    for number in range(TRIES):
        told = attempt(vllm, name, directory, disabled, runs, port + 100 * number, gpu, out)
        if "did not start" not in told:
            break
    return told


def attempt(
    vllm: Path, name: str, directory: Path, disabled: str, runs: int, port: int, gpu: str, out: Path
) -> str:
    log = out / f"{name}.log"
    words = [vllm, "serve", directory, "--served-model-name", "m", "--port", port, "--max-model-len", 4096]
    words += ["--gpu-memory-utilization", 0.05, "--kv-cache-memory-bytes", KV_BYTES, "--enforce-eager"]
    words += ["--max-num-seqs", 96, "--dtype", "float16", "--disable-uvicorn-access-log"]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }
    if disabled:
        environment["VLLM_DISABLED_KERNELS"] = disabled
    with log.open("wb") as file:
        server = subprocess.Popen(
            [str(word) for word in words], stdout=file, stderr=file, env=environment, start_new_session=True
        )
    began = time.monotonic()
    client = Client(f"http://127.0.0.1:{port}", "m")
    try:
        while not client.health():
            if server.poll() is not None or time.monotonic() - began > READY_S:
                return f"{name}: did not start, see {log}"
            time.sleep(1)
        ready = time.monotonic() - began
        collect = [
            sys.executable,
            str(Path(__file__).with_name("collect.py")),
            "--url",
            f"http://127.0.0.1:{port}",
        ]
        collect += ["--model", "m", "--runs", str(runs), "--out", str(out / f"{name}.json")]
        done = subprocess.run(collect, capture_output=True, text=True, check=False)
        kernels = {line for line in log.read_text(errors="replace").splitlines() if "LinearKernel" in line}
        (out / f"{name}.kernel").write_text("\n".join(sorted(kernels)))
        return f"{name}: ready after {ready:.0f} s, {done.stderr.strip()[-300:] or 'collected'}"
    finally:
        os.killpg(server.pid, 15)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("vllm", type=Path)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gpus", default="0")
    parser.add_argument("--at-once", type=int, default=26)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    gpus = options.gpus.split(",")
    with ThreadPoolExecutor(options.at_once) as pool:
        lines = [
            pool.submit(one, options.vllm, *job, 9100 + number, gpus[number % len(gpus)], options.out)
            for number, job in enumerate(jobs(options.checkpoints))
        ]
        for line in lines:
            print(line.result(), flush=True)
    whole = {path.stem: json.loads(path.read_text()) for path in sorted(options.out.glob("*.json"))}
    (options.out / "all.json").write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
