"""Asking hosts: in parallel, in the inventory's order, and whatever happens to one is told of
that one alone.
"""

from __future__ import annotations

import time
from pathlib import Path

import gevent
import pytest

from pyinfra_vllm.asking import Host, Hosts, fact
from pyinfra_vllm.errors import DeclarationError, HostError
from pyinfra_vllm.facts.record import Running


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """This machine under three names, and a port where nobody listens."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hosts.py"
    nobody = {"ssh_hostname": "127.0.0.1", "ssh_port": 1}
    path.write_text(f"here = ['@local']\naway = [('away', {nobody!r}), ('gone', {nobody!r})]\n")
    return str(path)


def test_what_happens_on_one_host_is_its_own_answer(inventory: str) -> None:
    with Hosts(inventory) as hosts:
        answers = {answer.host: answer for answer in hosts.ask(lambda host: host.name.upper())}
    assert answers["@local"].value == "@LOCAL" and answers["@local"].problem == ""
    assert answers["away"].value is None and answers["away"].problem.startswith("not reached: ")
    assert list(answers) == ["@local", "away", "gone"]


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (HostError("no disk"), "no disk"),
        (EOFError(), "not reached: the connection was closed"),
        (OSError("reset"), "not reached: reset"),
        (ValueError(), "not reached: ValueError"),
    ],
)
def test_each_failure_has_its_words(inventory: str, error: Exception, problem: str) -> None:
    def question(host: Host) -> None:
        raise error

    with Hosts(inventory, ["here"]) as hosts:
        (answer,) = hosts.ask(question)
        assert (answer.value, answer.problem) == (None, problem)
        (again,) = hosts.ask(lambda host: "back")
        assert again.value == "back"


def test_a_host_that_hangs_is_given_up(inventory: str) -> None:
    began = time.monotonic()
    with Hosts(inventory, ["here"]) as hosts:
        (answer,) = hosts.ask(lambda host: gevent.sleep(30), limit_s=0.2)
    assert answer.problem == "not reached: no answer within 0.2 s"
    assert time.monotonic() - began < 5


def test_a_fact_that_cannot_be_read_is_an_error_of_that_host(
    inventory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(self: Running, root: str) -> str:
        return "exit 3"

    monkeypatch.setattr(Running, "command", nothing)
    with Hosts(inventory, ["here"]) as hosts:
        (answer,) = hosts.ask(lambda host: fact(host, Running, root="/srv/x"))
    assert "running could not be read" in answer.problem and "/srv/x" in answer.problem


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("here = [", "never closed"),
        ("import nothing_of_that_name", "nothing_of_that_name"),
        ("here = 5 / 0", "ZeroDivisionError"),
    ],
)
def test_an_inventory_that_cannot_be_loaded_is_refused(inventory: str, text: str, says: str) -> None:
    broken = Path(inventory).with_name(f"broken{len(text)}.py")
    broken.write_text(text)
    with pytest.raises(DeclarationError, match=says):
        Hosts(str(broken))
