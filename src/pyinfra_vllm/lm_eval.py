"""The operator's own lm-evaluation-harness: run against a server, and what it wrote read as scores.

Judges nothing. It takes hours where the probe takes minutes, so it is for outside the window.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from .errors import DeclarationError, HostError, one_line

PROGRAM = "lm_eval"
CONCURRENT = 16
MOST = 1e12  # a record holds no larger number
Scores = dict[str, dict[str, float]]


def run(url: str, model: str, tasks: str, tokenizer: str | None = None, api_key: str | None = None) -> Scores:
    """Run the installed lm_eval and return its scores; what it says goes to standard error as it goes.

    + tasks: its names of tasks, separated by commas
    + tokenizer: directory of the checkpoint; without it only tasks that generate text can be run (over chat)
    + api_key: reaches it through the environment

    Raises DeclarationError where lm_eval is not installed and HostError where it fails.
    """
    check_installed()
    environment = {**os.environ, **({"OPENAI_API_KEY": api_key} if api_key else {})}
    with tempfile.TemporaryDirectory(prefix="pyinfra-vllm-") as folder:
        done = subprocess.run(
            command(url, model, tasks, tokenizer, folder),
            stdout=subprocess.DEVNULL,
            env=environment,
            check=False,
        )
        results = sorted(Path(folder).rglob("results_*.json"))
        if done.returncode or not results:
            raise HostError(
                f"`{PROGRAM}` exited with {done.returncode} and {len(results)} results: it says why above"
            )
        return read(results[-1])


def check_installed() -> None:
    """Raises DeclarationError, before anyone has waited for anything."""
    if shutil.which(PROGRAM) is None:
        raise DeclarationError(
            f"--lm-eval needs `{PROGRAM}` on the PATH: install lm-evaluation-harness with `pip install"
            " 'lm_eval[api]'`"
        )


def command(url: str, model: str, tasks: str, tokenizer: str | None, folder: str) -> list[str]:
    """Its command line (0.4.8 and newer).

    Likelihoods need plain completions and a tokenizer; chat needs neither.
    """
    kind, path = (
        ("local-completions", "completions") if tokenizer else ("local-chat-completions", "chat/completions")
    )
    arguments: dict[str, Any] = {
        "model": model,
        "base_url": f"{url.rstrip('/')}/v1/{path}",
        "num_concurrent": CONCURRENT,
        **({"tokenizer": tokenizer, "tokenizer_backend": "huggingface"} if tokenizer else {}),
    }
    return [
        *(PROGRAM, "--model", kind, "--model_args", json.dumps(arguments), "--apply_chat_template"),
        *("--tasks", tasks, "--output_path", folder),
    ]


def read(path: Path) -> Scores:
    """The scores in a `results_*.json` of lm_eval. Raises DeclarationError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DeclarationError(f"{path} can't be read as results of lm_eval: {one_line(error)}") from error
    results = value.get("results") if isinstance(value, dict) else None
    scores = _scores(results) if isinstance(results, dict) else {}
    if not scores:
        raise DeclarationError(f"{path} holds no results of lm_eval: `results` must map tasks to metrics")
    return scores


def _scores(results: dict[str, Any]) -> Scores:
    """`TASK/METRIC` -> value and standard error, from lm_eval's `name,filter` (`none` is left out)."""
    found: Scores = {}
    for task, metrics in results.items():
        for key, value in metrics.items() if isinstance(metrics, dict) else ():
            metric, _, answers = key.partition(",")
            if metric.endswith("_stderr") or not _number(value) or not answers:
                continue
            error = metrics.get(f"{metric}_stderr,{answers}")  # "N/A" where it has none
            name = f"{task}/{metric}" if answers == "none" else f"{task}/{metric},{answers}"
            found[name] = {"value": value, **({"stderr": error} if _number(error) else {})}
    return found


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MOST
