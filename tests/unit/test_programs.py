"""Programs are found where the shell finds them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pyinfra_vllm.on_host.inspect import programs


@pytest.mark.parametrize("kind", ["program", "no right to run it", "a folder", "nothing"])
def test_it_finds_what_shutil_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("PATH", f"/nowhere:{tmp_path}")
    file = tmp_path / "nvidia-smi"
    if kind == "a folder":
        file.mkdir()
    elif kind != "nothing":
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755 if kind == "program" else 0o644)
    found = shutil.which("nvidia-smi") is not None
    assert programs.there("nvidia-smi") is found is (kind == "program")
