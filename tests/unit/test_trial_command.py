"""`pyinfra-vllm trial`: deploy.py as a trial, and then what the hosts recorded of this run's trials alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from simulated import NEW, OLD
from told import Teller, teller

from pyinfra_vllm.asking import Answer
from pyinfra_vllm.checkpoint import Checkpoint, File, Lock
from pyinfra_vllm.commands import trial as command
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.on_host.switch.order import TRIAL
from pyinfra_vllm.report.looking import Wish

__all__ = ["teller"]  # a fixture

ALL = """
services = {"chat": {"model": "acme/tiny-awq", "runtime": {"version": "0.33.0"}, "port": 8000}}
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    (folder / "group_data").mkdir(parents=True)
    (folder / "group_data/all.py").write_text(ALL)
    (folder / "prod.py").write_text('prod = ["gpu1", "gpu2"]\n')
    (folder / "deploy.py").touch()
    monkeypatch.chdir(folder)
    files = tuple(File(path=path, size=1, sha256="0" * 64) for path in ("config.json", "model.safetensors"))
    locked = Checkpoint(repo="acme/tiny-awq", revision="main", commit="0" * 40, files=files)
    Lock([locked]).dump()
    return folder


class Fleet:
    """Two hosts: gpu1 is simulated and carries out what deploy.py orders, gpu2 can't be reached.

    deploy.py ends with 0 also where it put everything off.
    """

    declared, unreachable = NEW, False

    def __init__(self, teller: Teller, rate: float) -> None:
        self.teller, self.words = teller, list[list[str]]()
        teller.host.stage(NEW)
        teller.host.rates[NEW] = rate

    def __call__(self, *_: object) -> Fleet:
        return self

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, question: object) -> list[Answer[Any]]:
        told = [self.teller.answer("gpu1", wishes=(Wish("chat", release=self.declared),))]
        return told + [Answer("gpu2", None, "it can't be reached")] * self.unreachable

    def deploy(self, words: Sequence[str]) -> int:
        self.words.append(list(words))
        return 0 if self.teller.host.switch(purpose=TRIAL) == "tried" else 1


def fleet(teller: Teller, monkeypatch: pytest.MonkeyPatch, rate: float = 100.0) -> Fleet:
    made = Fleet(teller, rate)
    monkeypatch.setattr(command, "Hosts", made)
    monkeypatch.setattr(command.deploying, "run", made.deploy)
    return made


def tried(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(command.trial, ["prod.py", *words], standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.return_value, done.stdout


@pytest.mark.parametrize(("rate", "code", "verdict"), [(100.0, 0, "pass"), (50.0, 1, "fail")])
def test_its_verdict_decides_and_the_old_release_serves(
    teller: Teller, monkeypatch: pytest.MonkeyPatch, rate: float, code: int, verdict: str
) -> None:
    made = fleet(teller, monkeypatch, rate)
    ended, screen = tried("--now", "--reason", "ticket 7", "--restarts", "2")
    assert ended == code
    assert f"gpu1 chat: release {NEW} against {OLD}: {verdict}" in screen
    assert "Throughput" in screen and "change, 95 %" in screen
    assert teller.host.running == OLD
    ((_, *words),) = made.words
    assert words == [
        *("prod.py", "deploy.py", "-y", "--data", "trial=true"),
        *("--data", "switch_now=true", "--data", "reason=ticket 7", "--data", 'gate={"restarts": 2}'),
    ]


def test_what_was_tried_before_is_no_result_of_this_run(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fleet(teller, monkeypatch, 50.0)
    assert teller.host.switch(purpose=TRIAL) == "tried"
    monkeypatch.setattr(command.deploying, "run", lambda words: 0)  # its window is closed
    ended, screen = tried("--json")
    told = json.loads(screen)
    assert (ended, told["exit_code"], told["trials"]) == (4, 4, [])
    assert told["waiting"] == ["gpu1 chat"]
    monkeypatch.setattr(command.deploying, "run", made.deploy)
    ended, screen = tried("--json")
    (found,) = json.loads(screen)["trials"]
    assert (ended, found["host"], found["to"], found["verdict"]) == (1, "gpu1", NEW, "fail")
    assert found["outcome"] == "tried" and found["reasons"]
    assert {"title", "before", "after", "interval", "verdict"} <= set(found["criteria"][0])


def test_where_nothing_was_tried_it_says_why(teller: Teller, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fleet(teller, monkeypatch)
    monkeypatch.setattr(command.deploying, "run", lambda words: 0)
    waiting = command.run("prod.py")
    assert waiting.exit_code == 4 and "put off gpu1 chat, which serve what they served" in waiting.nothing
    made.declared = OLD
    same = command.run("prod.py")
    assert same.exit_code == 0 and "serves already" in same.nothing
    made.unreachable = True
    missing = command.run("prod.py")
    assert missing.exit_code == 1 and missing.missing == {"gpu2": "it can't be reached"}
    monkeypatch.setattr(command.deploying, "run", lambda words: 2)
    assert command.run("prod.py").exit_code == 2


def test_a_host_that_is_missing_is_named_beside_the_verdict(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fleet(teller, monkeypatch)
    made.unreachable = True
    ended, screen = tried("--json")
    assert (ended, list(json.loads(screen)["missing"])) == (0, ["gpu2"])


@pytest.mark.parametrize(("end", "code"), [("exit 4", 4), ("kill -9 $$", 1)])
def test_a_rollout_that_a_signal_ended_has_failed(end: str, code: int) -> None:
    assert command.deploying.run(["/bin/sh", "-c", end]) == code


def test_outside_of_a_project_and_with_a_wrong_declaration_nobody_is_asked(
    teller: Teller, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    made = fleet(teller, monkeypatch)
    monkeypatch.setattr(made, "ask", lambda question: pytest.fail("a host was asked"))
    (project / "group_data/all.py").write_text(ALL.replace("8000", "0"))
    with pytest.raises(DeclarationError, match="port"):
        tried()
    (project / "deploy.py").unlink()
    with pytest.raises(DeclarationError, match=r"There is no deploy\.py"):
        tried()
