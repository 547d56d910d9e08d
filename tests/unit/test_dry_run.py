"""`pyinfra INVENTORY deploy.py --dry` as a real command: what a run would refuse is told, and counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_fleet import entry

from pyinfra_vllm.checkpoint import Lock

PROJECT = Path(__file__).parents[2]
MISSPELT = "did you mean --max-num-seqs?"
SERVICES = """
services = {
    "chat": {
        "model": "acme/tiny-awq", "runtime": {"version": "0.33.0"}, "port": 8000, "flags": {"max-num-seq": 8},
    }
}
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine as the only host, without any way to serve what is declared for it."""
    monkeypatch.chdir(tmp_path)
    for folder in ("inventory", "group_data"):
        Path(folder).mkdir()
    Path("inventory/prod.py").write_text('here = ["@local"]\n')
    Path("group_data/all.py").write_text(f"{SERVICES}root = {str(tmp_path / 'root')!r}\n")
    for name in ("config.py", "deploy.py"):
        Path(name).write_text((PROJECT / name).read_text())
    Lock([entry("acme/tiny-awq")]).dump()
    return tmp_path


def pyinfra(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "pyinfra"), "inventory/prod.py", "deploy.py", *words]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("words", [("--dry",), ("--dry", "-y")], ids=" ".join)
def test_a_dry_run_tells_what_the_run_would_refuse_and_ends_with_1(
    project: Path, words: tuple[str, ...]
) -> None:
    told = pyinfra(*words)
    assert told.returncode == 1, told.stderr
    assert "[@local] would be refused: chat: " in told.stderr
    assert told.stderr.count(MISSPELT) == 1, "each cause once, however many operations meet it"
    assert (
        "--> Dry run: 1 of 1 hosts would be refused or did not answer, as said above: @local" in told.stderr
    )
    assert "Traceback" not in told.stderr
    assert not (project / "root").exists()


def test_a_host_that_is_down_ends_a_dry_run_without_a_question() -> None:
    Path("inventory/prod.py").write_text('here = ["@local"]\naway = ["gpu-1.invalid"]\n')
    told = pyinfra("--dry")
    assert told.returncode == 1 and "Traceback" not in told.stderr, told.stderr
    assert MISSPELT in told.stderr, "the others are looked at all the same"
    assert "2 of 2 hosts would be refused or did not answer" in told.stderr
    assert "Press enter" not in told.stderr


def test_a_question_without_a_terminal_ends_a_run_in_one_line() -> None:
    Path("inventory/prod.py").write_text('here = ["@local"]\naway = ["gpu-1.invalid"]\n')
    told = pyinfra()
    assert told.returncode == 1 and "Traceback" not in told.stderr, told.stderr
    assert 'there is no terminal to answer "One of more hosts failed to connect, continue?" at' in told.stderr
    assert not Path("pyinfra-debug.log").exists()
    Path("inventory/prod.py").write_text('here = ["@local"]\n')
    told = pyinfra()
    assert told.returncode == 1 and "Traceback" not in told.stderr, told.stderr
    assert "there is no terminal to answer" in told.stderr


def test_swapped_arguments_get_the_right_order() -> None:
    command = [str(Path(sys.executable).parent / "pyinfra"), "deploy.py", "inventory/prod.py"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert told.returncode == 2
    assert "comes first: `pyinfra inventory/prod.py deploy.py`" in told.stderr
