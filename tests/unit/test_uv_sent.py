"""The uv that a host gets is the one that was sent, or none: the real shell and sha256sum, this machine in a
host's place.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pyinfra_vllm.errors import HostError
from pyinfra_vllm.operations import runtime
from pyinfra_vllm.operations.util.remote import Remote

OURS = b"#!/bin/sh\necho uv 0.13.8\n"


class Here(Remote):
    """A host without a uv of its own; what is sent goes through somebody else's hands."""

    name, print_prefix = "gpu1", ""

    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        self.change, self.sent = change, 0

    def run(self, *words: str, stdin: str | Sequence[str] | None = None, timeout_s: int | None = None) -> str:
        arrived = None
        if stdin is not None:
            self.sent += 1
            total, *lines = stdin
            content = self.change(b"".join(map(base64.b64decode, lines)))
            arrived = f"{total}\n{base64.b64encode(content).decode()}\n"
        environment = {"PATH": "/usr/bin:/bin"}
        done = subprocess.run(words, input=arrived, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise HostError(done.stderr.strip() or "failed")
        return done.stdout


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if shutil.which("uv", path="/usr/bin:/bin"):
        pytest.skip("this machine has a uv of its own")
    (tmp_path / "uv").write_bytes(OURS)
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr("uv.find_uv_bin", lambda: str(tmp_path / "uv"))
    monkeypatch.setattr(runtime, "Remote", lambda host: host)
    return tmp_path


def sent(host: Any, root: Path) -> str:
    return runtime._uv(host, str(root))


def test_a_uv_that_arrives_as_it_was_sent_is_used_and_not_sent_again(root: Path) -> None:
    host = Here(lambda content: content)
    assert sent(host, root) == sent(host, root) == f"{root}/bin/uv"
    assert host.sent == 1 and (root / "bin/uv").read_bytes() == OURS
    assert (root / "bin/uv").stat().st_mode & 0o777 == 0o755


def test_a_uv_that_was_swapped_on_its_way_is_refused_and_stays_unused(root: Path) -> None:
    with pytest.raises(HostError, match="did not arrive as it was sent"):
        sent(Here(lambda content: content + b"evil\n"), root)
    assert not (root / "bin/uv").exists()


def test_a_uv_that_was_changed_where_it_lies_is_replaced(root: Path) -> None:
    host = Here(lambda content: content)
    sent(host, root)
    (root / "bin/uv").write_bytes(b"#!/bin/sh\necho evil\n")
    sent(host, root)
    assert host.sent == 2 and (root / "bin/uv").read_bytes() == OURS
