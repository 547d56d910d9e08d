"""Watching a rollout: each host in its wave, at its step; and the command that looks again and again."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from simulated import NEW
from told import Teller, teller

from pyinfra_vllm.asking import Answer
from pyinfra_vllm.commands.watch import watch
from pyinfra_vllm.config import Rollout
from pyinfra_vllm.on_host.state.observed import Holder
from pyinfra_vllm.report.looking import Look, Wish
from pyinfra_vllm.report.watching import lives, sentence, table

__all__ = ["teller"]

WISHES = (Wish("chat", "org/model", NEW, gpu="NVIDIA H200"),)
ROLLOUT = Rollout(canary=1, waves=(1,))


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def staged(teller: Teller) -> Teller:
    teller.host.stage(NEW)
    return teller


def test_hosts_that_wait_have_their_waves(staged: Teller) -> None:
    answers = [staged.answer(name, wishes=WISHES) for name in ("a", "b", "c", "d")]
    found = lives(answers, ROLLOUT, now())
    assert [(item.host, item.wave, item.state) for item in found] == [
        ("a", 1, "waiting"), ("b", 2, "waiting"), ("c", 3, "waiting"), ("d", 3, "waiting"),
    ]  # fmt: skip


def test_a_switch_under_way_shows_its_step_and_what_it_says(staged: Teller) -> None:
    staged.host.switch()
    look = staged.look(WISHES)
    told = look.record["chat"]
    entries = told["transactions"][0]["entries"]
    place = next(
        n for n, entry in enumerate(entries) if (entry["step"], entry["state"]) == ("ready", "intended")
    )
    told["transactions"][0]["entries"] = entries[: place + 1]
    told["progress"] = "2026-11-21T02:00:00+00:00 waiting for tokens: 12 s of 240 s"
    look.running[0] = replace(look.running[0], lock=Holder("alice"))
    later = datetime.fromisoformat(entries[place]["at"]) + timedelta(seconds=12)
    (item,) = lives([Answer("a", look)], ROLLOUT, later)
    assert (item.state, item.step, item.since_s, item.wave) == (
        "switching",
        "wait for tokens",
        12.0,
        1,
    )
    assert item.said == "waiting for tokens: 12 s of 240 s"
    assert sentence(item) == "wave 1, a chat: switching, wait for tokens"


def test_what_ended_keeps_its_wave_for_the_night(staged: Teller) -> None:
    waiting = staged.answer("b", wishes=WISHES)
    staged.host.switch()
    answers: list[Answer[Look]] = [staged.answer("a", wishes=WISHES), waiting]
    found = lives(answers, ROLLOUT, now())
    assert [(item.host, item.wave, item.state) for item in found] == [
        ("a", 1, "committed"),
        ("b", 2, "waiting"),
    ]
    tomorrow = lives(answers, ROLLOUT, now() + timedelta(days=1))
    assert [(item.host, item.wave, item.state) for item in tomorrow] == [
        ("b", 1, "waiting"),
        ("a", None, "runs"),
    ]


def test_the_last_line_that_a_switch_said_is_sent(staged: Teller) -> None:
    staged.host.switch()
    tx = staged.host.journal()[0]["tx"]
    path = staged.host.paths.evidence / tx / "progress.log"
    path.write_text("2026-11-21T02:00:00+00:00 one\n2026-11-21T02:00:01+00:00 two\n")
    assert staged.look().record["chat"]["progress"] == "2026-11-21T02:00:01+00:00 two"


def test_a_host_that_is_down_comes_last(staged: Teller) -> None:
    answers = [Answer[Look]("a", problem="not reached"), staged.answer("b", wishes=WISHES)]
    assert [item.host for item in lives(answers, ROLLOUT, now())] == ["b", "a"]


def test_the_table_fits_a_screen(staged: Teller) -> None:
    screen = Console(width=80)
    long = Answer[Look]("gpu-02.example.net", problem="not reached: " + "it was tried again " * 20)
    with screen.capture() as captured:
        screen.print(table(lives([staged.answer("gpu-01.example.net", wishes=WISHES), long], ROLLOUT, now())))
    lines = captured.get().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "gpu-01.example.net  chat     waiting" in lines[1] and "gpu-02.example.net" in lines[2]


@pytest.fixture
def inventory(teller: Teller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    settings = {"model": "org/model", "runtime": {"version": "0.33.0"}, "port": 8000}
    data = {"root": str(tmp_path), "services": {"chat": settings}}
    path = work / f"{tmp_path.name}.py"
    path.write_text(f"here = [('@local', {data!r})]\n")
    return path


@pytest.mark.thorough
def test_one_look_as_json(inventory: Path) -> None:
    done = CliRunner().invoke(watch, [str(inventory), "--json"], standalone_mode=False)
    assert done.return_value == 0, done.output
    (item,) = json.loads(done.stdout)
    assert (item["host"], item["service"], item["state"]) == ("@local", "chat", "waiting")
    assert "lock" in item["said"]  # nothing is locked here, so what is declared has no release yet
    once = CliRunner().invoke(watch, [str(inventory), "--once"], standalone_mode=False)
    assert once.stdout.splitlines()[1].split()[1:4] == ["@local", "chat", "waiting"]


@pytest.mark.thorough
def test_without_a_terminal_each_change_is_a_line(inventory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("pyinfra_vllm.commands.watch.time.sleep", sleep)
    done: Any = CliRunner().invoke(watch, [str(inventory), "--every", "0.1"], standalone_mode=False)
    assert looks == 3 and done.return_value == 0
    assert len([line for line in done.stdout.splitlines() if "@local chat: waiting" in line]) == 1
