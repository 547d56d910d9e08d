"""An operator's commands, run from the checkout: `pyinfra` and `pyinfra-vllm`, as real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .layout import PROJECT, STATE

CHECKOUT = Path(__file__).resolve().parents[3]
FILES = ("deploy.py", "rollback.py", "config.py", "inventory", "group_data", "templates", "tests")
INVENTORY = "inventory/lab.py"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a command: this Python's programs first, no colours, nothing of the Hub's from
    outside.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    path = f"{Path(sys.executable).parent}:{kept.get('PATH', '')}"
    lab = {"PYINFRA_VLLM_LAB_STATE": str(STATE)}
    return {**kept, "PATH": path, "NO_COLOR": "1", "COLUMNS": "160", **lab, **(extra or {})}


def project() -> Path:
    """The directory in which commands are given: this checkout's files, and a lock file that is no
    operator's.
    """
    PROJECT.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if not (PROJECT / name).is_symlink():
            (PROJECT / name).symlink_to(CHECKOUT / name)
    return PROJECT


def declared(release: str, **settings: Any) -> dict[str, str]:
    """The variables by which group_data/lab.py declares one of its releases with `settings` over it."""
    return {"PYINFRA_VLLM_LAB_RELEASE": release, "PYINFRA_VLLM_LAB_SETTINGS": json.dumps(settings)}


def spawn(*argv: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """A command under way, in a session of its own, so that a test may kill it; stderr is
    joined to stdout.
    """
    return subprocess.Popen(
        argv,
        cwd=project(),
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(
    *argv: str, env: Mapping[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """A command to its end; the caller judges its exit code."""
    return subprocess.run(
        argv,
        cwd=project(),
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@contextmanager
def own_lock_file() -> Iterator[Path]:
    """A lock file for the body, which is forgotten afterwards."""
    path = project() / "checkpoints.lock.yaml"
    kept = path.read_bytes() if path.exists() else None
    try:
        yield path
    finally:
        if kept is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(kept)


def pyinfra(
    *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run `pyinfra inventory/lab.py ARGUMENTS`."""
    return run("pyinfra", INVENTORY, *arguments, env=env, timeout=timeout)


def deploy(
    *arguments: str, release: str | None = None, env: Mapping[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run `pyinfra inventory/lab.py deploy.py -y` with one of the releases of group_data/lab.py."""
    chosen = {"PYINFRA_VLLM_LAB_RELEASE": release} if release else {}
    return pyinfra("deploy.py", "-y", *arguments, env={**chosen, **(env or {})}, timeout=timeout)


def pyinfra_vllm(
    *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    return run("pyinfra-vllm", *arguments, env=env, timeout=timeout)
