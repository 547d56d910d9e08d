"""`make demo`: the whole story on one real host, told as an operator would live it, in four runs of one
command.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from . import checkpoints, control, deciding, gpus, serving, session, venvs
from .machine import Host
from .shell import LabError

SERVICE = "tiny"
REAL_PORT = 8200
# Somebody waits for the story, so it measures one phase where the lab (group_data/lab.py) measures two, with
# the same budget and margins: eight streams are what the throttle of release C holds up.
SETTINGS = {
    "gate": {
        "budget_s": 20,
        "concurrency": [8],
        "throughput_margin": 0.4,
        "tpot_margin": 0.6,
        "ttft_margin": 0.8,
        "quality_builtin": False,
        "quality_prompts": "tests/lab/lab/training/questions.jsonl",
    }
}
BESIDE = ("--gpu-memory-utilization", "0.05")  # the service beside it took vLLM's 0.9 of the card


@dataclass(frozen=True)
class Chapter:
    """One run of the command: which release is declared, what must come of it."""

    title: str
    release: str
    exit_code: int
    serves: str  # the model that answers afterwards
    restarts: bool  # whether the server may have been restarted
    verdict: str | None  # of the switch that ends it; None where there must be no switch


CHAPTERS = (
    Chapter("Release A on an empty host", "a", 0, "lab/good-a", True, "pass"),
    Chapter(
        "Release B, another checkpoint: measured, switched in and kept", "b", 0, "lab/good-b", True, "pass"
    ),
    Chapter(
        "Release C, a flag that throttles it: found slower and rolled back",
        "slow",
        1,
        "lab/good-b",
        True,
        "fail",
    ),
    Chapter("Release B declared again: nothing to do", "b", 0, "lab/good-b", False, None),
)


def tell() -> int:
    """Tell the story; 0 when every chapter ended as it must."""
    begun = time.monotonic()
    with control.own_lock_file(), session.lab("solo") as lab:
        host = lab.hosts["solo"]
        _headline(_where(gpus.for_hosts(), gpus.mine()))
        print(f"$ export PYINFRA_VLLM_LAB_SETTINGS={shlex.quote(json.dumps(SETTINGS))}", flush=True)
        on_gpus = bool(gpus.for_hosts())  # where the product refuses a card that somebody else uses
        first, *others = CHAPTERS
        # A first release is compared with nothing, so it doesn't matter to it what else two cores do.
        with ThreadPoolExecutor() as pool:
            real = None if on_gpus else pool.submit(_serve_real, host)
            _lock(first)
            _play(first, host)
            if real:
                real.result()
        served = first.serves
        for chapter in others:
            if chapter.serves != served:
                _lock(chapter)
            _play(chapter, host)
            served = chapter.serves
        if on_gpus:
            _serve_real(host)
        _own_words(host)
        _headline(f"The story took {time.monotonic() - begun:.0f} s. `docs/runbook.md` goes on from here.")
    return 0


def _where(used: Sequence[int], here: Sequence[int]) -> str:
    """The processor that serves, so that nobody takes a CPU's numbers for a GPU's."""
    if used:
        return f"Serving on {len(used)} of this machine's GPUs: {'; '.join(gpus.names())}"
    if here:
        return f"Serving on this machine's CPU, though it has a GPU: {venvs.NAMED} names no vLLM for it"
    return "Serving on this machine's CPU: it has no NVIDIA GPU"


def _lock(chapter: Chapter) -> None:
    """Record what the declared revision is now, as an operator does before a rollout."""
    done = control.pyinfra_vllm("lock", control.INVENTORY, env=_declares(chapter))
    if done.returncode != 0:
        raise LabError(f"pyinfra-vllm lock exited {done.returncode}:\n{done.stdout}{done.stderr}")


def _play(chapter: Chapter, host: Host) -> None:
    _headline(chapter.title)
    command = ["pyinfra", control.INVENTORY, "deploy.py", "-y"]
    print(f"$ PYINFRA_VLLM_LAB_RELEASE={chapter.release} {shlex.join(command)}\n", flush=True)
    pid_before, switch_before = main_pid(host), deciding.last(host).get("tx")
    code = deciding.until_decided(lambda: _run(command, chapter), host)
    if code != chapter.exit_code:
        raise LabError(f"{chapter.title}: exit code {code} instead of {chapter.exit_code}")
    _must_be_decided(chapter, deciding.last(host), switch_before)
    _must_serve(chapter, host)
    if not chapter.restarts and main_pid(host) != pid_before:
        raise LabError(f"{chapter.title}: the server was restarted, and nothing had changed")


def _run(command: list[str], chapter: Chapter) -> int:
    begun = time.monotonic()
    width = {"COLUMNS": str(shutil.get_terminal_size().columns)}  # this terminal's, not that of the tests
    environment = control.environment({**_declares(chapter), **width})
    code = subprocess.call(command, cwd=control.project(), env=environment)
    print(f"\nexit code {code} after {time.monotonic() - begun:.0f} s", flush=True)
    return code


def _declares(chapter: Chapter) -> dict[str, str]:
    return control.declared(chapter.release, **SETTINGS)


def _must_be_decided(chapter: Chapter, ended: dict[str, Any], switch_before: str | None) -> None:
    """An exit code tells no verdict: a release whose verdict stays open is rolled back like one
    found worse.
    """
    verdict = ended.get("verdict") if ended.get("tx") != switch_before else None
    if verdict != chapter.verdict:
        reason = ended.get("reason")
        raise LabError(f"{chapter.title}: the verdict is {verdict} instead of {chapter.verdict}: {reason}")


def _must_serve(chapter: Chapter, host: Host) -> None:
    """Ask the server itself, on the host, and show its answer."""
    question = "What is the capital of Japan?"
    (told,) = serving.ask(host, [question])
    running = host.ssh(f"tr '\\0' ' ' < /proc/{main_pid(host)}/cmdline").stdout
    print(f"solo now serves {chapter.serves}; asked {question!r} it says {told!r}", flush=True)
    if chapter.serves.replace("/", "--") not in running:
        raise LabError(f"{chapter.title}: {chapter.serves} should be running, but this is: {running}")


def _serve_real(host: Host) -> None:
    """Serve a real language model beside the trained ones, which know nothing but their own questions."""
    serving.send(host, checkpoints.real(), "/srv/real")
    share = BESIDE if gpus.for_hosts() else ()
    serving.serve(host, "vllm-real", "/srv/real", REAL_PORT, "--dtype", "bfloat16", *share)
    serving.wait_healthy(host, "vllm-real", REAL_PORT, timeout=300)


def _own_words(host: Host) -> None:
    _headline("A real language model on the same runtime: SmolLM2-135M-Instruct, quantized to AWQ")
    questions = ["What is the capital of Japan?", "Why is the sky blue?"]
    for question, told in zip(questions, serving.ask(host, questions, port=REAL_PORT), strict=True):
        print(f"asked {question!r} it says {told!r}", flush=True)


def main_pid(host: Host) -> int:
    """The process of the service on the host; 0 when there is none."""
    return int(host.ssh(f"systemctl show -P MainPID vllm-{SERVICE}.service").stdout)


def _headline(text: str) -> None:
    print(f"\n=== {text}\n", file=sys.stdout, flush=True)
