"""Who may write to a file that the timer reads its secrets from, or hands out the packages that we use."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from lab import control

from .people import Attacked

pytestmark = pytest.mark.full


@pytest.mark.parametrize("kind", ["missing", "for all to write", "another user's", "a fifo", "a link to one"])
def test_a_timers_secrets_come_from_no_file_that_others_decide_about(
    attacked: Attacked, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "night.env"
    if kind == "a fifo":
        os.mkfifo(path, 0o600)
    elif kind != "missing":
        path.write_text("HF_TOKEN=hf_private\n")
        path.chmod(0o600 if kind == "another user's" else 0o666)
    if kind == "another user's":
        os.chown(path, 12345, 0)
    if kind == "a link to one":
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    done = control.pyinfra_vllm("schedule", control.INVENTORY, "--environment-file", str(path))
    assert "EnvironmentFile=" not in done.stdout
    assert done.returncode == 2 and "No timer was written." in done.stderr


BACKEND = """
import os
open(os.environ["RAN"], "w").write("the index's code")
raise SystemExit("as any build backend, it may do what it likes")
"""


def wheel(place: Path, name: str, version: str, files: dict[str, str]) -> None:
    name = re.sub(r"[-_.]+", "_", name).lower()
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(place / f"{name}-{version}-py3-none-any.whl", "w") as packed:
        for path, text in files.items():
            packed.writestr(path, text)


def test_another_file_under_a_packages_name_is_not_installed(tmp_path: Path) -> None:
    """An index that has every package that we pin, by its name and version, with other content."""
    index, project = tmp_path / "index", tmp_path / "project"
    index.mkdir()
    project.mkdir()
    pins = next(
        path
        for name in ("requirements.lock", "constraints.txt")
        if (path := control.CHECKOUT / name).exists()
    )
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", pins.read_text(), re.M):
        wheel(index, name, version, {})
    for name, module in (("hatchling", "hatchling/build.py"), ("hatchling", "hatchling/__init__.py")):
        wheel(index, name, "99", {module: BACKEND, "hatchling/build.py": BACKEND})
    for each in ("Makefile", "pyproject.toml", pins.name, "README.md", "LICENSE"):
        shutil.copy(control.CHECKOUT / each, project)
    ran = tmp_path / "ran"
    offline = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "PIP_CONFIG_FILE": os.devnull,
        "RAN": str(ran),
    }
    done = subprocess.run(
        ["make", ".venv/complete", f"PYTHON={sys.executable}"],
        cwd=project,
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
    )
    assert not ran.exists(), "code of the index ran"
    assert done.returncode and "DO NOT MATCH THE HASHES" in done.stderr, done.stderr[-2000:]
    assert not list(project.glob(".venv/lib/*/site-packages/click*"))
