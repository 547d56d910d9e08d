"""Serves each variant of the real model with vLLM on GPUs, many at a time, and collects what each answers.

    python benchmarks/quality/serve_all.py VLLM CHECKPOINTS OUT [--gpus 0,1] [--at-once 26] [--only NAME ...]

VLLM is the venv's `vllm`, CHECKPOINTS the directory that `tests/lab/lab/training/real_model.py` filled.
Harmless variants are asked RUNS times; AWQ ones also under each of the kernels that the GPU can use. One JSON
file for each, in OUT. With `--only` the named variants are asked once, each with the GPU to itself: how long
that takes a server that is alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from pyinfra_vllm.on_host.openai.client import Client

RUNS = 20
HARMLESS = ("float16", "rtn-8", "awq-g64", "awq-g64-as-float16", "awq-g32")
# vLLM tries kernels in its own order: switching off those before it leaves the next (vLLM 0.25.1). On Hopper
# its own choice is Machete for the layers whose shape allows it, and Marlin for the others.
KERNELS: dict[str, tuple[dict[str, str], list[str]]] = {
    "marlin": ({"VLLM_DISABLED_KERNELS": "MacheteLinearKernel,AllSparkLinearKernel"}, []),
    "humming": ({}, ["--linear-backend", "humming"]),
    "exllama": ({}, ["--linear-backend", "exllama"]),
}
BY_KERNEL = ("awq-g64", "awq-g32")
READY_S = 240.0
TRIES = 3  # vLLM's memory profiling fails where a neighbour on the card lets memory go meanwhile
KV_BYTES = 1 << 30


@dataclass(frozen=True)
class Job:
    """A checkpoint that is served once and asked `runs` times."""

    name: str
    directory: Path
    runs: int
    environment: dict[str, str] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


def jobs(checkpoints: Path) -> list[Job]:
    found = [
        Job(path.name, path, RUNS if path.name in HARMLESS else 1)
        for path in sorted(checkpoints.iterdir())
        if (path / "config.json").is_file()
    ]
    return found + [
        Job(f"{name}@{kernel}", checkpoints / name, 3, environment, flags)
        for name in BY_KERNEL
        for kernel, (environment, flags) in KERNELS.items()
    ]


def one(vllm: Path, job: Job, port: int, gpu: str, out: Path) -> str:
    for number in range(TRIES):
        told = attempt(vllm, job, port + 100 * number, gpu, out)
        if "did not start" not in told:
            break
    return told


def attempt(vllm: Path, job: Job, port: int, gpu: str, out: Path) -> str:
    name = job.name
    log = out / f"{name}.log"
    words = [
        vllm,
        "serve",
        job.directory,
        "--served-model-name",
        "m",
        "--port",
        port,
        "--max-model-len",
        4096,
    ]
    words += ["--gpu-memory-utilization", 0.05, "--kv-cache-memory-bytes", KV_BYTES, "--enforce-eager"]
    words += ["--max-num-seqs", 96, "--dtype", "float16", "--disable-uvicorn-access-log"]
    words += job.flags
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "CUDA_VISIBLE_DEVICES": gpu,
        **job.environment,
    }
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
        collect += ["--model", "m", "--runs", str(job.runs), "--out", str(out / f"{name}.json")]
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
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    gpus = options.gpus.split(",")
    chosen = jobs(options.checkpoints)
    if options.only:
        chosen = [replace(job, runs=1) for job in chosen if job.name in options.only]
    with ThreadPoolExecutor(1 if options.only else options.at_once) as pool:
        lines = [
            pool.submit(one, options.vllm, job, 9100 + number, gpus[number % len(gpus)], options.out)
            for number, job in enumerate(chosen)
        ]
        for line in lines:
            print(line.result(), flush=True)
    whole = {path.stem: json.loads(path.read_text()) for path in sorted(options.out.glob("*.json"))}
    (options.out / "all.json").write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
