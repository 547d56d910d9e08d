"""`pyinfra INVENTORY deploy.py --dry` as a real command: what a run would refuse is told, and counts."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from test_fleet import entry

from pyinfra_vllm import pyinfra_command
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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_a_host_that_is_down_ends_a_dry_run_without_a_question() -> None:
    Path("inventory/prod.py").write_text('here = ["@local"]\naway = ["gpu-1.invalid"]\n')
    told = pyinfra("--dry")
    assert told.returncode == 1 and "Traceback" not in told.stderr, told.stderr
    assert MISSPELT in told.stderr, "the others are looked at all the same"
    assert "2 of 2 hosts would be refused or did not answer" in told.stderr
    assert "Press enter" not in told.stderr


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_a_question_with_standard_input_closed_ends_a_run_in_one_line() -> None:
    command = f"{Path(sys.executable).parent / 'pyinfra'} inventory/prod.py deploy.py <&-"
    told = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=300)
    assert told.returncode == 1 and "Traceback" not in told.stderr, told.stderr
    assert "there is no terminal to answer" in told.stderr


@pytest.mark.thorough
def test_swapped_arguments_get_the_right_order() -> None:
    command = [str(Path(sys.executable).parent / "pyinfra"), "deploy.py", "inventory/prod.py"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert told.returncode == 2
    assert "comes first: `pyinfra inventory/prod.py deploy.py`" in told.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_while_it_connects_has_not_rolled_out(number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        data = {"ssh_hostname": "127.0.0.1", "ssh_port": silent.getsockname()[1]}
        Path("inventory/prod.py").write_text(f'away = [("gpu-1", {data!r})]\n')
        command = [str(Path(sys.executable).parent / "pyinfra"), "inventory/prod.py", "deploy.py", "-y"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
            silent.settimeout(60)
            connection, _ = silent.accept()
            with connection:
                run.send_signal(number)
                _, told = run.communicate(timeout=60)
    assert run.returncode == 1 and "The run was ended before it was done." in told, told


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        pyinfra_command.end_on_signals()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is pyinfra_command.end_run
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
