"""Checks a release's chat template before anything is switched, with the runtime that will render it.

A template that adds no assistant's turn, or ends an answer with another token than the model, breaks every
chat while the weights are in order; some models answer half of it right all the same. Runs as a user of its
own, without a network.
"""

from __future__ import annotations

import json
import pkgutil
import subprocess
from typing import Any

from ..server.release import NotReady, Release

TIMEOUT_S = 120
# The sandbox of the child: it may read the checkpoint; no writing, no network.
PROPERTIES = (
    "DynamicUser=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "PrivateNetwork=yes",
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "Nice=10",
    "WorkingDirectory=/",
    f"RuntimeMaxSec={TIMEOUT_S}",
)
ENVIRONMENT = ("HF_HUB_OFFLINE=1", "HOME=/tmp", "CUDA_VISIBLE_DEVICES=", "PYTHONNOUSERSITE=1")


def check(release: Release) -> dict[str, Any]:
    """Check the template and return notes for the journal, `{"chat_template": [notes]}`.

    Raises NotReady if it is broken.
    """
    argv = release.argv
    if _value(argv, "--tokenizer-mode") == "mistral" or "--skip-tokenizer-init" in argv:
        return {"chat_template": ["not checked: the tokenizer is not transformers' own"]}
    order = {
        "directory": str(release.checkpoint),
        "tokenizer": _value(argv, "--tokenizer") or str(release.checkpoint),
        "template": _value(argv, "--chat-template"),
        "kwargs": _kwargs(_value(argv, "--default-chat-template-kwargs")),
    }
    answer = _run(release, order)
    if answer["problems"]:
        raise NotReady(
            f"the chat template of release {release.id} is broken: {'; '.join(answer['problems'])}. Take a"
            " revision of the checkpoint whose template is right, or give one with the flag chat-template"
        )
    return {"chat_template": answer["notes"] or ["in order"]}


def _value(argv: list[str], flag: str) -> str | None:
    for place, word in enumerate(argv):
        if word == flag and place + 1 < len(argv):
            return argv[place + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _kwargs(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:  # vLLM itself says what is wrong with it
        return {}
    return found if isinstance(found, dict) else {}


def _run(release: Release, order: dict[str, Any]) -> dict[str, list[str]]:
    code = (pkgutil.get_data("pyinfra_vllm.in_runtime", "chat_template.py") or b"").decode()
    python = release.executable.with_name("python")
    words = ["systemd-run", "--pipe", "--wait", "--collect", "--quiet"]
    words += [f"--property={line}" for line in PROPERTIES] + [f"--setenv={line}" for line in ENVIRONMENT]
    try:
        done = subprocess.run(
            [*words, str(python), "-I", "-c", code],
            input=json.dumps(order) + "\n",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S + 30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return _not_checked(str(error))
    lines = done.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
        return {key: [str(item)[:500] for item in answer[key]] for key in ("problems", "notes")}
    except (IndexError, ValueError, KeyError, TypeError):
        return _not_checked((done.stderr.strip().splitlines() or ["no answer"])[-1])


def _not_checked(reason: str) -> dict[str, list[str]]:
    """Note why the template could not be checked. The switch goes on, since the gate asks over chat."""
    return {"problems": [], "notes": [f"not checked: {reason[:300]}"]}
