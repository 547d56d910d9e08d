"""A fleet's recorded nights: the real transaction and gate on simulated hosts, with a clock and measurements
of a believable size. What the report is tested with, and what its screenshot in docs/ shows.
"""

from __future__ import annotations

import copy
import getpass
import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import seen
from simulated import SimulatedHost

from pyinfra_vllm import answers
from pyinfra_vllm.asking import Answer
from pyinfra_vllm.on_host.bench.record import Record
from pyinfra_vllm.on_host.inspect.gpus import Gpu, Process
from pyinfra_vllm.on_host.server import release as releases
from pyinfra_vllm.on_host.server import service
from pyinfra_vllm.on_host.state import durable, observe, recall, running
from pyinfra_vllm.on_host.state import journal as journals
from pyinfra_vllm.on_host.switch import base, recovery, rollback
from pyinfra_vllm.release import Release
from pyinfra_vllm.report.looking import Look, Wish

LOG = [
    "INFO 11-21 02:13:09 [api_server.py:1411] vLLM API server version 0.33.0",
    "INFO 11-21 02:13:31 [kernel.py:88] Using MarlinLinearKernel for AutoAWQMarlinLinearMethod",
    "INFO 11-21 02:13:44 [gpu_worker.py:298] Available KV cache memory: 12.41 GiB",
]


class Clock:
    """Stands for journal.now, for datetime and for time's monotonic clock; it moves when it is told to."""

    def __init__(self, start: str) -> None:
        self.at = datetime.fromisoformat(start)

    def now(self, tz: Any = None) -> datetime:
        return self.at

    def text(self) -> str:
        self.at += timedelta(milliseconds=7)
        return self.at.isoformat(timespec="milliseconds")

    def monotonic(self) -> float:
        return self.at.timestamp()

    def go(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


class Speed:
    """How a release serves: factors on time to first token and on time per token, and the answers it gets
    wrong.
    """

    def __init__(
        self, first: float = 1.0, per_token: float = 1.0, wrong: frozenset[str] = frozenset()
    ) -> None:
        self.first, self.per_token, self.wrong = first, per_token, wrong


class NightHost(SimulatedHost):
    """A simulated host whose clock and luck are the test's."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, seed: int) -> None:
        self.clock, self.random = clock, random.Random(seed)
        self.speeds: dict[str, Speed] = {}
        super().__init__(root, monkeypatch)
        monkeypatch.setattr(journals, "now", clock.text)
        monkeypatch.setattr(base, "datetime", clock)
        timed = SimpleNamespace(monotonic=clock.monotonic, sleep=lambda s: None)
        monkeypatch.setattr(recovery, "time", timed)
        monkeypatch.setattr(rollback, "time", timed)
        monkeypatch.setattr(service, "time", timed)
        monkeypatch.setattr(service.Service, "log", lambda this, cursor: LOG)

    def stage_release(
        self, model: str, commit: str, flags: tuple[str, ...] = (), version: str = "0.33.0"
    ) -> str:
        root = str(self.paths.root)
        directory = f"{root}/checkpoints/{model.replace('/', '--')}/{commit}"
        venv = self.paths.root / "venv"
        (venv / "bin").mkdir(parents=True, exist_ok=True)
        (venv / "bin/vllm").touch()  # what a rollback needs is looked for
        made = Release(
            service="chat",
            root=root,
            user=getpass.getuser(),
            bind="127.0.0.1",
            port=8000,
            served_model_name="chat",
            argv=(f"{venv}/bin/vllm", "serve", directory, "--port", "8000", *flags),
            environment={},
            checkpoint={"repo": model, "revision": "main", "commit": commit, "directory": directory},
            runtime={"version": version, "path": str(venv)},
            stop_limit_s=60,
            kernel=["Marlin"],
        )
        payload = self.paths.root / "payload.json"
        payload.write_text(json.dumps({"id": made.id, "user": made.user, "files": made.files()}))
        return releases.stage(self.paths, payload)

    def adopt(self, release_id: str) -> None:
        """The release runs, as an earlier rollout left it."""
        durable.point(self.paths.current, self.paths.release(release_id))
        self.running = release_id

    def _start(self, unit: str) -> None:
        self.clock.go(self.random.uniform(38, 52))
        super()._start(unit)

    def _stop(self, unit: str, limit_s: float) -> None:
        self.clock.go(self.random.uniform(3, 7))
        super()._stop(unit, limit_s)

    def _measure(self, client: Any, settings: Any, **how: Any) -> Record:
        self.clock.go(self.random.uniform(96, 112))
        found = measured(self.random, self.speeds.get(self.running or "", Speed()))
        return Record.read(found, "record")

    def look(self, wishes: tuple[Wish, ...] | None = None) -> Look:
        root = self.paths.root
        told = recall.recall(root, 50, 10**8, [])
        with patch.object(running, "release", lambda unit, shown: self.running):
            observed = observe.observe(root, [])
        return Look(answers.observed(observed), {item["service"]: item for item in told}, wishes)


def measured(source: random.Random, speed: Speed, rounds: int = 10) -> dict[str, Any]:
    """A record as on_host/bench/probe.py makes them: two phases in rounds, graded answers, some noise."""
    phases = [_phase(source, speed, concurrency, count, rounds) for concurrency, count in ((1, 4), (8, 24))]
    quality = [{"prompt": f"q{n:03}", "passed": f"q{n:03}" not in speed.wrong} for n in range(60)]
    return {
        "schema": "pyinfra-vllm/bench/1",
        "model": "chat",
        "server": {"version": "0.33.0"},
        "phases": phases,
        "quality": quality,
        "spent_s": 110.0,
    }


def _phase(source: random.Random, speed: Speed, concurrency: int, count: int, rounds: int) -> dict[str, Any]:
    requests, done = [], []
    for number in range(rounds):
        mood = source.lognormvariate(0, 0.012)
        own = [_request(source, speed, concurrency, number * count + place, mood) for place in range(count)]
        duration = sum(request["e2e_s"] for request in own) / concurrency * 1.03
        tokens = sum(request["output_tokens"] for request in own)
        done.append({"round": number, "duration_s": duration, "output_tokens": tokens, "complete": True})
        requests += [{**request, "round": number} for request in own]
    return {
        "name": f"c{concurrency}",
        "concurrency": concurrency,
        "duration_s": sum(item["duration_s"] for item in done),
        "requests": requests,
        "rounds": done,
    }


def _request(
    source: random.Random, speed: Speed, concurrency: int, number: int, mood: float
) -> dict[str, Any]:
    words = (24, 190, 760)[number % 3]
    busy = 1.0 if concurrency == 1 else 1.9
    first = (0.021 + words * 0.00006) * busy * speed.first * mood * source.lognormvariate(0, 0.09)
    per_token = 0.0094 * (1 + (busy - 1) * 0.35) * speed.per_token * mood * source.lognormvariate(0, 0.03)
    return {
        "prompt": f"c{concurrency}-{number:04}",
        "ok": True,
        "ttft_s": first,
        "e2e_s": first + per_token * 63,
        "input_tokens": int(words * 1.3),
        "output_tokens": 64,
    }


NEW_MODEL, OLD_MODEL = "Qwen/Qwen3-32B-AWQ", "Qwen/Qwen2.5-32B-Instruct-AWQ"
OLD_COMMIT, NEW_COMMIT = (
    "5c7cb76a268fc6cfbb9c4777eb24ba6e27f9ee6c",
    "2b7a9b4e1d0c4f9e8a6b3c5d7e9f1a2b4c6d8e0f",
)


def fleet(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[Answer[Look]]:
    """Three nights of three hosts, one of which is down in the morning: kept, gone back for speed, kept, gone
    back for its answers.
    """
    monkeypatch.setattr(
        observe,
        "unit_state",
        lambda unit: {"ActiveState": "active", "MainPID": "1", "ActiveEnterTimestamp": ""},
    )
    order = {"operator": "schedule@control", "reason": "ticket 4711: Qwen3", "ready_timeout_s": 300.0}
    answers: list[Answer[Look]] = []
    for number, name in enumerate(("gpu-01.example.net", "gpu-02.example.net")):
        clock = Clock(f"2026-11-19T01:0{2 + number * 4}:11+00:00")
        host = NightHost(root / name, monkeypatch, clock, seed=number)
        old = host.stage_release(OLD_MODEL, OLD_COMMIT, ("--max-model-len", "16384"))
        slow = host.stage_release(NEW_MODEL, NEW_COMMIT, ("--max-model-len", "32768", "--enforce-eager"))
        good = host.stage_release(NEW_MODEL, NEW_COMMIT, ("--max-model-len", "32768"))
        odd = host.stage_release(
            NEW_MODEL, NEW_COMMIT, ("--max-model-len", "32768", "--kv-cache-dtype", "fp8")
        )
        host.adopt(old)
        host.speeds = {
            slow: Speed(first=1.1, per_token=1.42),
            good: Speed(first=0.82, per_token=0.93, wrong=frozenset({"q017"})),
            odd: Speed(first=0.71, per_token=0.87, wrong=frozenset(f"q{n:03}" for n in range(3, 60, 4))),
            old: Speed(wrong=frozenset({"q005", "q041"})),
        }
        wanted = good
        if number == 0:
            host.switch(slow, **order)
        clock.at = clock.at.replace(day=20)
        host.switch(good, **order)
        if number == 0:
            clock.at = clock.at.replace(day=21, hour=1)
            host.switch(odd, **order, overrides=("switch_now",))
            wanted = odd
        answers.append(Answer(name, host.look((Wish("chat", NEW_MODEL, wanted),))))
    problem = "not reached: Could not connect (timed out)"
    return [*answers, Answer("box-01.example.net", problem=problem)]


def fleet_of_24(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[Answer[Look]]:
    """The same three nights on 24 hosts: two went back last night, one is down, one serves nothing."""
    went_back, kept, down = fleet(root, monkeypatch)
    assert went_back.value is not None and kept.value is not None
    stopped = copy.deepcopy(kept.value)
    stopped.running[0] = replace(stopped.running[0], running=None, active="failed")
    others = {
        3: Answer("", went_back.value),
        9: down,
        17: Answer("", went_back.value),
        20: Answer("", stopped),
    }
    found = [replace(others.get(number, kept), host=f"gpu-{number:02}") for number in range(1, 25)]
    return [replace(one, value=one.value and replace(one.value, gpus=(gpu(),))) for one in found]


def gpu(used_mib: int | None = 62668, unit: str | None = "vllm-chat.service") -> Gpu:
    """One card with one process on it."""
    process = Process(4711, unit, used_mib, "VLLM::EngineCore")
    card = seen.gpu(name="NVIDIA H100 80GB HBM3", memory_mib=81559, used_mib=used_mib)
    return replace(card, processes=(process,))


MORNING = datetime(2026, 11, 21, 7, 30, tzinfo=UTC)
