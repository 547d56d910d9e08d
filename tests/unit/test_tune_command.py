"""`pyinfra-vllm tune --plan`: what would be tried for each service, and in which nights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pyinfra_vllm import cli
from pyinfra_vllm.catalog import shapes, table
from pyinfra_vllm.checkpoint import Checkpoint, File, Lock
from pyinfra_vllm.errors import DeclarationError, LockError

MODEL = "Qwen/Qwen3-32B-AWQ"
CONFIG = {**table("models.yaml")["models"]["Qwen/Qwen3-32B"]["config"], "quantization_config": shapes.AWQ}
WINDOW = {"cron": "0 2 * * *", "duration": "3h", "timezone": "Europe/Berlin"}
CHAT: dict[str, Any] = {
    "model": MODEL, "runtime": {"version": "0.25.1", "reason": "a test"}, "port": 8000, "gpu": "NVIDIA H200",
    "gpus": [0], "max_model_len": 4096, "objective": "latency", "window": WINDOW, "switch_estimate": "30m",
}  # fmt: skip
RECORDED = (
    Path(__file__).parents[1] / "fixtures/gpu/h200-driver580-vllm0.25.1-qwen3-32b/metrics.txt"
).read_text()
STARTED = 1.79585067215e09
GROWING = ("vllm:request_prompt_tokens_", "vllm:request_generation_tokens_", "vllm:e2e_request")
NOON = ("--at", "2026-11-29T12:00")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("inventory", "group_data"):
        Path(folder).mkdir()
    Path("inventory/mine.py").write_text("h = ['gpu-1.invalid', 'gpu-2.invalid']\n")
    declare()
    file = File(path="model.safetensors", size=19_300_000_000, sha256="c" * 64)
    Lock([Checkpoint(repo=MODEL, revision="main", commit="a" * 40, files=(file,), config=CONFIG)]).dump()
    return tmp_path


def declare(**changes: Any) -> None:
    Path("group_data/mine.py").write_text(f"services = {{'chat': { ({**CHAT, **changes})!r}}}\n")


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(
        cli.cli, ["tune", "inventory/mine.py", *NOON, *arguments], standalone_mode=False
    )
    if done.exception:
        raise done.exception
    return done.return_value, done.stdout


def planned(*arguments: str) -> dict[str, Any]:
    (service,) = json.loads(run("--plan", "--json", *arguments)[1])["services"]
    found: dict[str, Any] = service
    return found


def test_plan_has_what_is_tried_what_is_not_and_when() -> None:
    found = planned()
    assert found["hosts"] == ["gpu-1.invalid", "gpu-2.invalid"]
    assert (found["gpu"], found["runtime"], found["objective"]) == ("H200", "0.25.1", "latency")
    assert found["against"] == "the catalog's flags for latency"
    tried = {each["name"]: each for each in found["candidates"]}
    assert tried["humming"]["changes"] == "--linear-backend humming"
    assert tried["fp8-kv-cache"]["answers"] == "may change"
    reasons = {each["name"]: each["because"] for each in found["ruled_out"]}
    assert reasons["marlin"] == "comes to the same as the current configuration"
    # 20 minutes of restarts and 2 x 2 of measuring: 7 in the three hours of a night
    first, *_ = found["nights"]
    assert first["starts"][:2] == ["2026-11-30T02:00:00+01:00", "2026-11-30T02:24:00+01:00"]
    assert len(first["starts"]) == 7
    assert sum(rung["trials"] for rung in found["rungs"]) + found["pairs"] == sum(
        len(night["starts"]) for night in found["nights"]
    )
    assert found["left"] == 0


def test_plan_reads_like_a_plan() -> None:
    code, told = run("--plan")
    words = " ".join(told.split())
    assert code == 0
    assert f"chat on gpu-1.invalid, gpu-2.invalid: {MODEL}, H200, vLLM 0.25.1, for latency" in words
    assert "Not tried: mtp-1: the model has no multi-token prediction layers" in words
    assert "Each restarts the service twice, 20m (two thirds of the estimate of a switch, declared)" in words
    assert "Mon 2026-11-30 02:00 until 05:00 CET: 7 trials" in words
    assert "9 pairs" in words


@pytest.mark.thorough
def test_windows_without_room_are_told() -> None:
    declare(window={**WINDOW, "duration": "21m"})
    assert planned()["nights"] == []
    assert "declare a longer one, or a shorter `switch_estimate`" in " ".join(run("--plan")[1].split())
    declare(window={**WINDOW, "duration": "25m"})
    found = planned()
    assert len(found["nights"]) == 14 and found["left"] > 0
    assert f"No room in the nights ahead for {found['left']}: the search goes on" in run("--plan")[1]


def test_without_a_window_all_of_it_follows_at_once() -> None:
    declare(window=[])
    (night,) = planned()["nights"]
    assert night["closes"] is None


def test_measured_profile_is_what_the_others_are_tried_against() -> None:
    Path("profiles").mkdir()
    Path("profiles/NVIDIA-H200--Qwen--Qwen3-32B-AWQ--0.25.1.yaml").write_text(
        "schema: pyinfra-vllm/profile/1\ncard: NVIDIA H200\nmodel: Qwen/Qwen3-32B-AWQ\nruntime: 0.25.1\n"
        "objectives:\n  latency:\n    flags: {linear-backend: humming}\n    measured: 2026-11-29\n"
        "    workload: {input_tokens: 512, output_tokens: 128, streams: [1]}\n"
        "    gain: {phase: c1, metric: tokens_per_s, before: 80, after: 96, ratio: 1.2, interval: [1, 2]}\n"
    )
    found = planned()
    assert found["against"].startswith("measured profile profiles/NVIDIA-H200--")
    reasons = {each["name"]: each["because"] for each in found["ruled_out"]}
    assert reasons["humming"] == "comes to the same as the current configuration"
    assert "marlin" in {each["name"] for each in found["candidates"]}
    (graphs,) = (each for each in found["candidates"] if each["name"] == "graphs-8")
    assert graphs["kernel"] == ["Humming"]


def test_what_only_hosts_know_is_said() -> None:
    declare(gpu=None)
    assert planned()["unknown"] == "only the hosts know what it runs on: declare `gpu`"
    declare(runtime={"path": "/opt/vllm"})
    assert "declare `runtime.version`" in run("--plan")[1]


def test_declaration_that_cannot_work_exits_with_one() -> None:
    declare(max_model_len=40_000_000)
    code, told = run("--plan")
    assert code == 1
    assert "Error: " in told


def saved(name: str, at: float, factor: float = 1.0) -> str:
    """Recorded metrics as saved at a time, their counters so many times as large."""
    lines = [
        f"{head} {factor * float(value)}" if head.startswith(GROWING) else f"{head} {value}"
        for head, _, value in (line.rpartition(" ") for line in RECORDED.splitlines())
    ]
    Path(name).write_text("\n".join(lines) + "\n")
    os.utime(name, (at, at))
    return name


def test_traffic_is_that_of_the_time_between_two_answers() -> None:
    """754.4 s of requests in 60 s are 12.6 at a time: not what `latency` is for."""
    files = ("--metrics", saved("one.txt", STARTED + 60), "--metrics", saved("two.txt", STARTED + 120, 2.0))
    found = planned(*files)
    assert found["traffic"]["requests"] == 458
    assert found["traffic"]["streams"] == pytest.approx(754.364 / 60)
    assert found["doubt"].startswith("on average 12.6 requests are served at a time")
    seen = found["traffic"]
    assert found["gate"] == {
        "prompt_tokens": [seen["input_tokens"], seen["input_tokens_p90"]],
        "answer_tokens": seen["output_tokens"],
    }
    told = " ".join(run("--plan", *files)[1].split())
    assert "Traffic: 458 requests: prompts of about" in told
    assert "and `latency` is for few: try `balanced` or `throughput`" in told


def test_traffic_of_one_answer_is_since_the_server_s_start() -> None:
    declare(objective="throughput")
    found = planned("--metrics", saved("one.txt", STARTED + 600))
    assert found["traffic"]["streams"] == pytest.approx(754.364 / 600, rel=0.01)
    assert "`throughput` is for many" in found["doubt"]
    declare(objective="balanced")
    assert planned("--metrics", "one.txt")["doubt"] == ""


def test_gate_that_is_proposed_fits_the_declared_context() -> None:
    declare(max_model_len=600)
    found = planned("--metrics", saved("one.txt", STARTED + 600))
    assert found["traffic"]["input_tokens_p90"] > 600
    assert max(found["gate"]["prompt_tokens"]) + found["gate"]["answer_tokens"] == 600
    told = run("--plan", "--metrics", "one.txt")[1]
    assert json.dumps(found["gate"]) in told
    declare(max_model_len=600, gate=found["gate"])
    assert run("--plan")[0] == 0


def test_metrics_that_say_nothing_are_refused() -> None:
    Path("empty.txt").write_text("")
    with pytest.raises(DeclarationError, match=r"--metrics empty\.txt: no process_start_time_seconds in it"):
        run("--plan", "--metrics", "empty.txt")
    with pytest.raises(DeclarationError, match=r"--metrics none\.txt: "):
        run("--plan", "--metrics", "none.txt")
    Path("down.txt").write_text("<html>502 Bad Gateway</html>")
    now = saved("now.txt", STARTED + 3600)
    for earlier in ("empty.txt", "down.txt"):
        os.utime(earlier, (STARTED + 60, STARTED + 60))
        with pytest.raises(
            DeclarationError, match=rf"--metrics {earlier}: no process_start.*[sS]ave it again"
        ):
            run("--plan", "--metrics", earlier, "--metrics", now)
    Path("cut.txt").write_text("\n".join(line for line in RECORDED.splitlines() if "_bucket" not in line))
    with pytest.raises(DeclarationError, match=r"--metrics cut\.txt: no buckets of vllm:request_prompt"):
        run("--plan", "--metrics", "cut.txt")
    later, earlier = saved("later.txt", STARTED + 120, 2.0), saved("earlier.txt", STARTED + 60)
    with pytest.raises(DeclarationError, match="must be the later one"):
        run("--plan", "--metrics", later, "--metrics", earlier)
    with pytest.raises(click.UsageError, match="not 3"):
        run("--plan", "--metrics", later, "--metrics", later, "--metrics", later)
    Path("group_data/mine.py").write_text(
        f"services = {{'chat': {CHAT!r}, 'two': { ({**CHAT, 'port': 8001, 'gpus': [1]})!r}}}\n"
    )
    with pytest.raises(click.UsageError, match="--metrics is of one service, and 2 are shown"):
        run("--plan", "--metrics", later)


def test_usage() -> None:
    for words in (
        ("--plan", "--dry"),
        ("--plan", "--anew"),
        ("--plan", "--service", "chat"),
        ("--plan", "--reason", "x"),
    ):
        with pytest.raises(click.UsageError, match="--plan asks no host"):
            run(*words)
    with pytest.raises(click.UsageError, match="go with --plan"):
        run()  # with --at
    Path("group_data/mine.py").write_text("services = {}")
    with pytest.raises(DeclarationError, match="declares no service"):
        run("--plan")
    declare()
    Path("checkpoints.lock.yaml").unlink()
    with pytest.raises(LockError):
        run("--plan")
