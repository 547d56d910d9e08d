"""`doctor`: each probe on files and answers of a host, the control machine's own checks, and the command."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from seen import gpu, installed
from simulated import NEW, OLD, SimulatedHost

from pyinfra_vllm.commands import doctor as command
from pyinfra_vllm.config.models import Service
from pyinfra_vllm.facts.gpu import Gpus
from pyinfra_vllm.facts.runtime import Runtime
from pyinfra_vllm.on_host import doctor
from pyinfra_vllm.on_host.inspect import driver as inspect_driver
from pyinfra_vllm.on_host.inspect import nvidia
from pyinfra_vllm.on_host.inspect import packages as inspect_packages
from pyinfra_vllm.on_host.inspect.gpus import Found
from pyinfra_vllm.on_host.server import hooks
from pyinfra_vllm.on_host.server import release as releases
from pyinfra_vllm.on_host.state import manifest, observe
from pyinfra_vllm.on_host.switch import standby
from pyinfra_vllm.operations import doctor as declared_doctor
from pyinfra_vllm.operations.doctor import clock, reachable
from pyinfra_vllm.report.checkup import Examined

OPEN_MODULE = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC: 12\n"
OLD_MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"


# The driver


@pytest.mark.parametrize(
    ("text", "version"),
    [(OPEN_MODULE, "580.95.05"), (OLD_MODULE, "535.183.01"), ("?", "of an unknown version")],
)
def test_the_modules_version_is_read(tmp_path: Path, text: str, version: str) -> None:
    (tmp_path / "version").write_text(text)
    assert inspect_driver.loaded(tmp_path / "version") == version
    assert inspect_driver.loaded(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("kernel", "user", "disk", "says"),
    [
        (None, None, None, ""),
        ("580.95.05", "580.95.05", None, ""),
        ("580.95.05", "580.95.05", "580.95.05", ""),
        ("580.95.05", None, None, "nvidia-smi is not there"),
        ("570.10.01", "580.95.05", None, "module 570.10.01, the libraries are 580.95.05"),
        ("580.95.05", "580.95.05", "590.10", "the next boot would load the NVIDIA module 590.10"),
    ],
)
def test_the_two_halves_of_the_driver_must_agree(
    monkeypatch: pytest.MonkeyPatch, kernel: str | None, user: str | None, disk: str | None, says: str
) -> None:
    for name, value in {"loaded": kernel, "libraries": user, "on_disk": disk}.items():
        monkeypatch.setattr(inspect_driver, name, lambda value=value: value)
    found = inspect_driver.problem()
    assert says in found and bool(found) == bool(says)


def test_a_driver_that_fails_is_told_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise nvidia.NoAnswer("`nvidia-smi` exited with 18: Driver/library version mismatch")

    monkeypatch.setattr(inspect_driver, "libraries", fail)
    monkeypatch.setattr(inspect_driver, "loaded", lambda: "580.95.05")
    assert "Driver/library version mismatch (the kernel has module 580.95.05)" in inspect_driver.problem()


# What was installed


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    packages = tmp_path / "lib/python3.11/site-packages"
    (packages / "vllm").mkdir(parents=True)
    (packages / "vllm/engine.py").write_text("x = 1\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"x = 1\n").digest()).decode().rstrip("=")
    (packages / "vllm-1.0.dist-info").mkdir()
    (packages / "vllm-1.0.dist-info/RECORD").write_text(
        f"vllm/engine.py,sha256={digest},6\nvllm/__pycache__/engine.cpython-311.pyc,,\nvllm-1.0.dist-info/RECORD,,\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("content", "quick", "deep"),
    [
        ("x = 1\n", "", ""),
        ("", "is empty", "is empty"),
        ("x = 2\n", "", "has other content"),
        (None, "is missing", "is missing"),
    ],
)
def test_a_file_of_a_package_is_compared_with_its_list(
    venv: Path, content: str | None, quick: str, deep: str
) -> None:
    file = venv / "lib/python3.11/site-packages/vllm/engine.py"
    file.unlink() if content is None else file.write_text(content)
    for found, says in (
        (inspect_packages.problems(venv), quick),
        (inspect_packages.problems(venv, deep=True), deep),
    ):
        assert says in "".join(found) and bool(found) == bool(says)


# The checkpoint's content


def checkpoint(directory: Path, size: int) -> Path:
    content = os.urandom(size)
    (directory / "weights").write_bytes(content)
    (directory / "weights").chmod(0o644)
    entry = manifest.describe(directory, "weights", hashlib.sha256(content).hexdigest())
    manifest.write(directory, manifest.Manifest("acme/tiny", "a" * 40, (entry,)))
    manifest.mark(directory)
    return directory / "weights"


def changed_in_place(file: Path) -> None:
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_spot_check_reads_small_files_whole_and_a_full_one_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = checkpoint(tmp_path, 5000)
    assert manifest.spot_check(tmp_path) == manifest.full_check(tmp_path) == []
    changed_in_place(file)
    assert manifest.quick_check(tmp_path) == []
    assert "has other content" in manifest.spot_check(tmp_path)[0]
    monkeypatch.setattr(manifest, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(manifest, "PLACE_BYTES", 100)
    assert manifest.spot_check(tmp_path) == []
    assert "has other content" in manifest.full_check(tmp_path)[0]


def test_a_disk_that_can_not_read_a_place_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path, 5000)

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(manifest, "hash_file", fail)
    assert manifest.spot_check(tmp_path) == [f"{tmp_path / 'weights'} can't be read (Input/output error)"]


# Hooks


def hook(tmp_path: Path, body: str) -> list[str]:
    program = tmp_path / "lb"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return [str(program), "drain"]


@pytest.mark.parametrize(
    ("body", "check", "says"),
    [
        ("exit 0", True, ""),
        ('test "$1 $2" = "drain --check"', True, ""),
        ("echo no token; exit 1", True, "asked with --check: the drain hook failed: status 1: no token"),
        ("touch $(dirname $0)/called", False, ""),
    ],
)
def test_a_hooks_program_is_asked_only_where_it_is_declared_to_answer(
    serving: SimulatedHost, tmp_path: Path, body: str, check: bool, says: str
) -> None:
    declared = {"drain": {"argv": hook(tmp_path, body)}, "check": check}
    serving.paths.hooks.write_text(json.dumps(declared))
    assert "; ".join(hooks.problems(serving.paths)) == says
    assert not (tmp_path / "called").exists()


def test_a_hooks_program_or_secret_that_is_gone_is_told(serving: SimulatedHost) -> None:
    declared = {
        "drain": {"argv": ["/no/such/lb"]},
        "notify": {"url_env": "WEBHOOK"},
        "undrain": {"url": "http://a/b"},
    }
    serving.paths.hooks.write_text(json.dumps(declared))
    lost, unset = hooks.problems(serving.paths)
    assert "/no/such/lb is not there" in lost and unset.endswith("among the service's secrets: WEBHOOK")


def test_check_is_declared_with_the_hooks() -> None:
    lb = ["/usr/local/bin/lb"]
    service = Service.model_validate(
        {
            "name": "chat",
            "model": "a/b",
            "runtime": {"version": "0.33.0"},
            "port": 1,
            "hooks": {"drain": lb, "undrain": lb, "check": True},
        }
    )
    assert service.hooks is not None and service.hooks.document()["check"] is True


# The host as a whole


@pytest.fixture
def healthy(serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> SimulatedHost:
    """It went from the old release to the new one; what is not about its services is well."""
    assert serving.switch() == "committed"
    for name in ("_program", "_folders", "_runtime", "_content", "_port", "_process"):
        monkeypatch.setattr(doctor, name, lambda *arguments: "")
    for name in ("_recovery", "_driver"):
        monkeypatch.setattr(doctor, name, lambda: "")
    monkeypatch.setattr(doctor.releases, "out_of_reach", lambda release: None)
    monkeypatch.setattr(doctor, "_memory", lambda found: "")
    return serving


def wrong(host: SimulatedHost, spare_bytes: int = 0) -> dict[str, str]:
    checks = doctor.examine(host.paths.root, spare_bytes, units=host.paths.units)
    return {check.name: check.detail for check in checks if not check.ok}


def test_all_checks_pass_on_a_healthy_host(healthy: SimulatedHost) -> None:
    assert wrong(healthy) == {}


def test_missing_rollback_target_of_a_first_release_passes(healthy: SimulatedHost) -> None:
    healthy.paths.previous.unlink()
    assert set(wrong(healthy)) == {"chat: rollback"}, "another one served before"
    healthy.paths.journal.unlink()
    assert wrong(healthy) == {}


def test_both_releases_are_looked_at(healthy: SimulatedHost) -> None:
    (healthy.paths.release(NEW) / "argv").unlink()
    (healthy.paths.release(OLD) / "env").unlink()
    assert wrong(healthy) == {
        "chat: current files": f"release {NEW} has lost its file argv",
        "chat: rollback files": f"release {OLD} has lost its file env",
    }


def test_a_link_that_is_gone_is_told_with_the_command(healthy: SimulatedHost) -> None:
    healthy.paths.wants_link.unlink()
    (detail,) = wrong(healthy).values()
    assert f"ln -sfn {healthy.paths.unit_link} {healthy.paths.wants_link}" in detail


def test_too_little_space_is_told_with_what_helps(healthy: SimulatedHost) -> None:
    (detail,) = wrong(healthy, spare_bytes=1 << 60).values()
    assert "pyinfra-vllm prune" in detail


def test_while_a_switch_runs_its_service_is_left_alone(
    healthy: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "holder", lambda path: {"holder": "ann"})
    (healthy.paths.release(NEW) / "argv").unlink()
    assert wrong(healthy) == {}


def test_a_link_that_somebody_made_a_folder_is_told(healthy: SimulatedHost) -> None:
    healthy.paths.previous.unlink()
    healthy.paths.previous.mkdir()
    assert "Invalid argument" in wrong(healthy)["chat: links"]


def test_exception_in_one_check_does_not_hide_the_others(
    healthy: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_driver", lambda: {}["nothing"])
    (healthy.paths.release(NEW) / "argv").unlink()
    found = wrong(healthy)
    assert set(found) == {"driver", "chat: current files"} and found["driver"].startswith("internal error")


@pytest.mark.parametrize(("available", "ok"), [(8 << 20, True), (100, False)])
def test_memory_is_for_all_starts_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: int, ok: bool
) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {available} kB\n")
    monkeypatch.setattr(doctor, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(doctor, "_anonymous_bytes", lambda units: 0)
    paths = doctor.ServicePaths(tmp_path, "chat")
    result = doctor._answer("memory", lambda: doctor._memory([paths]))
    assert result.ok is ok and "of memory" in result.detail


# The control machine's own checks


@pytest.mark.parametrize(
    ("now", "says"), [(100.0, ""), (95.0, ""), (50.0, "50 s behind"), (150.0, "48 s ahead of")]
)
def test_a_clock_that_is_off_is_told(now: float, says: str) -> None:
    found = clock(now, earliest=100.0, latest=102.0)
    assert found.ok == (not says) and says in found.detail


def service(*windows: dict[str, Any], **more: Any) -> Service:
    return Service.model_validate(
        {
            "name": "chat",
            "model": "a/b",
            "runtime": {"version": "0.33.0"},
            "port": 1,
            "window": list(windows),
            **more,
        }
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("declared", "says"),
    [
        (service(), ""),
        (service({"cron": "0 2 * * *", "duration": "3h", "timezone": "UTC"}), ""),
        (service({"cron": "0 2 * * *", "duration": "30m", "timezone": "UTC"}), "none of the next"),
        (service({"cron": "0 2 * * *", "duration": "30m", "timezone": "UTC"}, switch_estimate="20m"), ""),
        (
            service(
                {"cron": "0 2 * * *", "duration": "3h", "timezone": "UTC"},
                {"cron": "0 0 * * *", "duration": "24h", "timezone": "UTC", "deny": True},
            ),
            "it never opens",
        ),
    ],
)
def test_a_window_that_no_switch_fits_is_told(declared: Service, says: str) -> None:
    found = reachable(declared, datetime(2026, 11, 21, 12, tzinfo=UTC))
    assert found.ok == (not says) and says in found.detail


# The command


def test_the_json_is_the_contract_and_a_host_that_is_down_has_failed(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    good: dict[str, Any] = {"name": "clock", "ok": True, "detail": ""}
    found = [Examined("gpu-1", (doctor.Check(**good),)), Examined("gpu-2", problem="not reached: timed out")]
    monkeypatch.setattr(command, "run", lambda *arguments, **options: found)
    ended = run("doctor", "inventory/x.py", "--json")
    assert ended.code == 1
    assert ended.json == {
        "hosts": [
            {"host": "gpu-1", "ok": True, "checks": [good]},
            {
                "host": "gpu-2",
                "ok": False,
                "checks": [{"name": "reached", "ok": False, "detail": "not reached: timed out"}],
            },
        ]
    }
    found.pop()
    assert run("doctor", "inventory/x.py").code == 0


@pytest.mark.thorough
def test_a_real_host_is_asked_and_answers(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is sent and runs on this machine, installs nothing, and misses what was never installed."""
    if os.geteuid() != 0:
        pytest.skip("it asks as root")
    monkeypatch.chdir(tmp_path)
    Path("here.py").write_text(f"hosts = [('@local', {{'root': {str(tmp_path / 'none')!r}}})]\n")
    ended = run("doctor", "here.py", "--json")
    (host,) = ended.json["hosts"]
    found = {check["name"]: check for check in host["checks"]}
    assert ended.code == 1 and not found["program"]["ok"] and "can't be run" in found["program"]["detail"]
    assert found["clock"]["ok"] and not (tmp_path / "none").exists()


@pytest.mark.thorough
def test_the_result_is_among_the_metrics_where_they_are_declared(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written by the host, here this machine; where that fails, a check says so."""
    if os.geteuid() != 0:
        pytest.skip("it asks as root")
    monkeypatch.chdir(tmp_path)
    collector = tmp_path / "collector"
    Path("config.py").write_text("")
    Path("here.py").write_text(
        f"hosts = [('@local', {{'root': {str(tmp_path / 'none')!r}, 'metrics': {str(collector)!r},"
        " 'services': {}})]\n"
    )
    (host,) = run("doctor", "here.py", "--json").json["hosts"]
    assert "can't be written" in {c["name"]: c["detail"] for c in host["checks"]}["metrics"]
    collector.mkdir()
    (host,) = run("doctor", "here.py", "--json").json["hosts"]
    assert host["checks"][-1] == {"name": "metrics", "ok": True, "detail": ""}
    text = (collector / "pyinfra-vllm-doctor.prom").read_text()
    failed = [check["name"] for check in host["checks"] if not check["ok"]]
    assert failed and all(f'{{check="{name}"}} 1.0' in text for name in failed)


def test_the_doctor_says_whether_the_current_release_can_sleep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = SimulatedHost(tmp_path, monkeypatch)
    host.stage(OLD)
    plain = releases.load(host.paths, OLD)
    assert doctor._standby(plain).startswith("no: the current release has none")
    host.stage(NEW, sockets=str(host.paths.sockets_folder(NEW)))
    sleeper = releases.load(host.paths, NEW)
    monkeypatch.setattr(standby, "host_problem", lambda old, new: "systemd is 247, 252 or newer is needed")
    assert doctor._standby(sleeper).startswith("no, because systemd is 247")
    monkeypatch.setattr(standby, "host_problem", lambda old, new: "")
    assert doctor._standby(sleeper).startswith("yes")


def test_the_doctor_says_whether_what_is_declared_can_have_standby(monkeypatch: pytest.MonkeyPatch) -> None:
    facts: dict[Any, Any] = {Runtime: installed("0.24.0"), Gpus: Found((gpu(name="NVIDIA H200"),), None)}
    monkeypatch.setattr(declared_doctor, "asked", lambda host, fact, **_: facts[fact])
    service = Service.model_validate(
        {"name": "chat", "model": "o/m", "runtime": {"version": "0.24.0"}, "port": 1, "standby": True}
    )
    told = declared_doctor._standby(None, "/srv", service)  # type: ignore[arg-type]
    assert told.ok and told.detail.startswith("no, because vLLM 0.24.0 can't be sent to sleep")
    facts[Runtime] = installed("0.33.0")
    told = declared_doctor._standby(None, "/srv", service)  # type: ignore[arg-type]
    assert told.ok and told.detail.startswith("the old release sleeps")
