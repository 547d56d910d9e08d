"""For all unit tests: the real command line, called as a person calls it, and a simulated host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nights
import pytest
from simulated import NEW, OLD, SimulatedHost

from pyinfra_vllm import cli
from pyinfra_vllm.asking import Answer
from pyinfra_vllm.report.looking import Look


class Ended:
    """How a command ended: its exit code and what it printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """`pyinfra-vllm` with these words."""

    def run(*arguments: str | Path) -> Ended:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, out, err)

    return run


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedHost:
    return SimulatedHost(tmp_path, monkeypatch)


@pytest.fixture
def serving(host: SimulatedHost) -> SimulatedHost:
    """The old release serves and the new one is staged."""
    host.install(OLD)
    host.stage(NEW)
    return host


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> list[Answer[Look]]:
    """24 hosts with the switches of three nights; tests copy whatever they change of it."""
    with pytest.MonkeyPatch.context() as patch:
        return nights.fleet_of_24(tmp_path_factory.mktemp("fleet"), patch)
