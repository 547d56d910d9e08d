"""The command lines that the resolver makes of public ones: the parser of the lab's own vLLM takes them.

No host is needed.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from lab import runtime

from pyinfra_vllm.catalog import gpus, shapes
from pyinfra_vllm.tuning.request import Request
from pyinfra_vllm.tuning.resolver import resolve

pytestmark = pytest.mark.full
SCRIPT = Path(__file__).parents[2] / "scripts/ask_parser.py"
COMMANDS = json.loads((Path(__file__).parents[1] / "fixtures/field/commands.json").read_text())
VERSION = "0.32.0"
LIMIT_S = 600


def asked(lines: list[list[str]]) -> list[str | None]:
    done = subprocess.run(
        [runtime.venv() / "bin/python", SCRIPT],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[str | None] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_vllm_s_own_parser_takes_what_is_emitted() -> None:
    model = shapes.find("Qwen/Qwen3-30B-A3B")
    assert model is not None
    card = gpus.find("NVIDIA H200")
    lines = {
        str(row["flags"]): resolve(Request(model, card, VERSION, gpu_count=8, flags=row["flags"])).argv()
        for row in COMMANDS
        if row["refused"] is None
    }
    refused = {flags: told for flags, told in zip(lines, asked([*lines.values()]), strict=True) if told}
    assert refused == {}


def test_the_parser_is_asked() -> None:
    """It refuses a key that is gone, and a part of a map without a value."""
    gone = ["--compilation-config", '{"use_inductor":false}']
    bare = ["--attention-config.use_trtllm_attention", "--enforce-eager"]
    answers = asked([gone, bare, ["--enforce-eager"]])
    assert "use_inductor" in str(answers[0]) and answers[1] and answers[2] is None
