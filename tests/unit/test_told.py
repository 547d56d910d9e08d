"""All that a run asks of a host comes in one answer: run for real by the python3 that is here."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyinfra_vllm.errors import HostError
from pyinfra_vllm.facts import script, told
from pyinfra_vllm.facts.checkpoint import Checkpoints
from pyinfra_vllm.facts.disk import Filesystem
from pyinfra_vllm.facts.runtime import Runtime
from pyinfra_vllm.facts.told import Together, ask_together, asked, current, forget
from pyinfra_vllm.operations.util import refuse
from pyinfra_vllm.operations.util.archive import archive, program_name


class Host:
    """As much of a pyinfra host as facts need: it runs their commands here, and counts them."""

    name = "gpu-1"

    def __init__(self, broken: bool = False) -> None:
        self.ran: list[str] = []
        self.broken = broken

    def get_fact(self, what: Any, _ignore_errors: bool = False, _timeout: int = 0, **arguments: Any) -> Any:
        fact = what()
        by_installed = bool(arguments.get("installed"))
        self.ran.append("installed" if by_installed else what.__name__)
        if self.broken and what is Together:
            return fact.default()
        command = fact.command(**arguments).get_raw_value()
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, cwd="/")
        answered = done.returncode == 0 and done.stdout
        return fact.process(done.stdout.splitlines()) if answered else fact.default()


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(told, "_expected", {})
    monkeypatch.setattr(told, "_answers", {})
    yield


def known(host: Any, root: Path) -> None:
    ask_together(host, [(Filesystem, {"path": str(root)}), (Checkpoints, {"root": str(root)})])


def test_facts_that_were_asked_together_take_one_command(tmp_path: Path) -> None:
    host: Any = Host()
    known(host, tmp_path)
    assert asked(host, Filesystem, path=str(tmp_path)).path == str(tmp_path)
    assert asked(host, Checkpoints, root=str(tmp_path), _ignore_errors=True) == []
    assert asked(host, Checkpoints, root=str(tmp_path)) == []
    assert host.ran == ["Together"]


def test_a_fact_with_other_arguments_is_asked_alone(tmp_path: Path) -> None:
    host: Any = Host()
    known(host, tmp_path)
    asked(host, Filesystem, path="/")
    assert host.ran == ["Together", "Filesystem"]


def test_without_a_list_each_is_asked_alone(tmp_path: Path) -> None:
    host: Any = Host()
    asked(host, Filesystem, path=str(tmp_path))
    asked(host, Filesystem, path=str(tmp_path))
    assert host.ran == ["Filesystem", "Filesystem"]


def test_a_host_that_was_changed_is_asked_anew(tmp_path: Path) -> None:
    host: Any = Host()
    known(host, tmp_path)
    before = current(host)
    (tmp_path / "checkpoints/acme--tiny" / ("a" * 40 + ".partial")).mkdir(parents=True)
    assert asked(host, Checkpoints, root=str(tmp_path)) == []
    forget(host)
    assert current(host) is None
    assert [item.state for item in asked(host, Checkpoints, root=str(tmp_path))] == ["partial"]
    assert host.ran == ["Together", "Together"] and current(host) is not before


@pytest.mark.parametrize("executing", [True, False])
def test_an_operation_that_changes_a_host_has_it_asked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executing: bool
) -> None:
    host: Any = Host()
    monkeypatch.setattr(refuse, "host", host)
    monkeypatch.setattr(refuse, "state", SimpleNamespace(is_executing=executing))

    @refuse.alone
    def changes() -> Iterator[str]:
        yield "true"

    known(host, tmp_path)
    assert list(changes()) == ["true"]
    assert (current(host) is None) is executing


def test_an_answer_counts_for_a_limited_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host: Any = Host()
    known(host, tmp_path)
    late = told.time.monotonic() + told.MAX_AGE_S + 1
    monkeypatch.setattr(told.time, "monotonic", lambda: late)
    assert current(host) is None
    asked(host, Filesystem, path=str(tmp_path))
    assert host.ran == ["Together", "Together"]


def test_a_question_that_fails_is_asked_alone_and_spoils_no_other(tmp_path: Path) -> None:
    host: Any = Host()
    release = tmp_path / "chat/releases/1/release.json"
    release.parent.mkdir(parents=True)
    release.write_text("{")
    known(host, tmp_path)
    assert asked(host, Filesystem, path=str(tmp_path)).path == str(tmp_path)
    assert asked(host, Checkpoints, root=str(tmp_path)) == []  # its default, as pyinfra gave the host up
    assert host.ran == ["Together", "Checkpoints"]


def test_a_host_that_can_answer_nothing_together_is_asked_one_by_one(tmp_path: Path) -> None:
    host: Any = Host(broken=True)
    known(host, tmp_path)
    assert asked(host, Filesystem, path=str(tmp_path)).path == str(tmp_path)
    assert host.ran == ["Together", "Filesystem"]


def test_invalid_answer_names_its_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host: Any = Host()
    monkeypatch.setattr(Together, "process", lambda self, output: ['{"path": 1}', "[]"])
    known(host, tmp_path)
    with pytest.raises(HostError, match="its answer"):
        asked(host, Filesystem, path=str(tmp_path))


@pytest.mark.thorough
@pytest.mark.parametrize("answer", ["", "no JSON", "[1]", "{}", "[" * 100_000])
def test_invalid_answer_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    host: Any = Host()
    made = Together.process
    monkeypatch.setattr(Together, "process", lambda self, output: made(self, [answer]))
    known(host, tmp_path)
    assert asked(host, Filesystem, path=str(tmp_path)).path == str(tmp_path)
    assert host.ran == ["Together", "Filesystem"]


def test_a_runtime_that_is_not_there_is_an_answer(tmp_path: Path) -> None:
    host: Any = Host()
    ask_together(host, [(Runtime, {"path": str(tmp_path / "none")})])
    assert asked(host, Runtime, path=str(tmp_path / "none")) is None
    assert host.ran == ["Together"]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a host that was prepared: with the program, and a unit of root's that runs it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / program_name()).write_bytes(archive())
    unit = tmp_path / "due.service"
    unit.write_text(f'ExecStart=/usr/bin/env python3 -I "{tmp_path}/bin/on-host.pyz" recover --due\n')
    monkeypatch.setattr(script, "DUE_UNIT", str(unit))
    return tmp_path


def known_by_installed(host: Any, root: Path) -> None:
    facts: Any = [(Filesystem, {"path": str(root)}), (Checkpoints, {"root": str(root)})]
    ask_together(host, facts, installed=(str(root), program_name()))
    assert asked(host, Filesystem, path=str(root)).path == str(root)
    assert asked(host, Checkpoints, root=str(root)) == []


def test_the_program_that_is_there_answers(prepared: Path) -> None:
    host: Any = Host()
    known_by_installed(host, prepared)
    assert host.ran == ["installed"]
    question = Together().command((("inspect.disk", "/"),), (str(prepared), program_name()))
    assert len(question.get_raw_value()) < 1000, "nothing is sent along"


@pytest.mark.parametrize("missing", ["the program", "the unit", "the root in the unit"])
def test_a_program_comes_along_where_none_is_there_that_root_runs_anyway(
    prepared: Path, missing: str
) -> None:
    program, unit = prepared / "bin" / program_name(), prepared / "due.service"
    program.write_text(f"open('{prepared}/was-run', 'w')")
    if missing == "the program":
        program.unlink()
    elif missing == "the unit":
        unit.unlink()
    else:
        unit.write_text(
            f'ExecStart=/usr/bin/env python3 -I "/data{prepared}/bin/on-host.pyz" recover --due\n'
        )
    host: Any = Host()
    known_by_installed(host, prepared)
    assert host.ran == ["installed", "Together"]
    assert not (prepared / "was-run").exists()


def test_a_damaged_program_spoils_no_answer(prepared: Path) -> None:
    (prepared / "bin" / program_name()).write_bytes(archive()[:100_000])
    host: Any = Host()
    known_by_installed(host, prepared)
    assert host.ran == ["installed", "Together"]
