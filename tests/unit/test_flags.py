"""Flags read from a runtime's sources, wherever its version keeps them, and without importing any of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyinfra_vllm.on_host.inspect import flags

ENGINE = """
raise ImportError("the sources are read, never run")

class EngineArgs:
    model: str = "not a flag: only the frontend's fields are"

    @staticmethod
    def add_cli_args(parser):
        group = parser.add_argument_group(title="ModelConfig")
        group.add_argument("--max-model-len", **kwargs["max_model_len"])
        group.add_argument("--quantization", "-q", **kwargs["quantization"])
        parser.add_argument("positional")
        for arg, type in [("--guided-decoding-backend", str), ("--guided-decoding-disable-fallback", bool)]:
            group.add_argument(arg, type=type, help="--not-a-flag")
        parser.add_argument(f"--{name}")
        parser.add_argument(
            "--gpu-memory-utilization", "--device-memory-utilization", **kwargs["gpu_memory_utilization"]
        )
"""
FRONTEND = '''
class BaseFrontendArgs:
    chat_template: str | None = None
    def from_cli_args(self): ...

class FrontendArgs(BaseFrontendArgs):
    """Docs."""
    host: str | None = None
    ssl_keyfile: str | None = None

class SomethingElse:
    not_a_flag: int = 1

def make_arg_parser(parser):
    parser.add_argument("--headless", action="store_true")
'''
EXPECTED = [
    "--chat-template",
    "--device-memory-utilization",
    "--gpu-memory-utilization",
    "--guided-decoding-backend",
    "--guided-decoding-disable-fallback",
    "--headless",
    "--host",
    "--max-model-len",
    "--quantization",
    "--ssl-keyfile",
]


def runtime(root: Path, frontend: str) -> Path:
    for path, text in ((flags.ENGINE, ENGINE), (frontend, FRONTEND)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize("frontend", flags.FRONTEND)
def test_every_place_of_the_frontend_arguments(tmp_path: Path, frontend: str) -> None:
    assert flags.known_flags(str(runtime(tmp_path, frontend))) == EXPECTED


def test_runs_as_a_file_of_its_own(tmp_path: Path) -> None:
    runtime(tmp_path, flags.FRONTEND[0])
    command = [sys.executable, "-I", str(flags.__file__), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("--") == len(EXPECTED)


def test_no_vllm_there(tmp_path: Path) -> None:
    with pytest.raises(flags.FlagsUnreadable, match=r"arg_utils\.py does not exist"):
        flags.known_flags(str(tmp_path))


def test_frontend_somewhere_else(tmp_path: Path) -> None:
    runtime(tmp_path, "vllm/entrypoints/new_place/cli_args.py")
    with pytest.raises(flags.FlagsUnreadable, match="elsewhere"):
        flags.known_flags(str(tmp_path))
