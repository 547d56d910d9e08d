"""Secrets belong to their release: a new value is a new release, each is asked with its own key, none shows
anywhere else.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from seen import seen
from simulated import NEW, OLD, SimulatedHost
from test_release import make
from test_unit import FakeHost

from pyinfra_vllm import release as releases
from pyinfra_vllm.config import Overrides, Runtime, Service
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.on_host.server.service import Service as HostService
from pyinfra_vllm.on_host.staging import prune
from pyinfra_vllm.on_host.staging.prune import Keep
from pyinfra_vllm.operations import release as operation
from pyinfra_vllm.operations import switch
from pyinfra_vllm.operations.util import planning
from pyinfra_vllm.report import looking
from pyinfra_vllm.rollout.progress import Wanted

KEY = {"VLLM_API_KEY": "hunter2"}
ROTATED = {"VLLM_API_KEY": "hunter3"}
WITH_KEY = Service.model_validate({
    "name": "chat", "model": "org/model", "runtime": {"version": "0.33.0"}, "port": 8000,
    "secrets": {"VLLM_API_KEY": "CHAT_KEY"},
})  # fmt: skip


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedHost:
    return SimulatedHost(tmp_path, monkeypatch)


# What a release is named by


@pytest.mark.thorough
@pytest.mark.parametrize(
    "secrets", [{}, ROTATED, {"OTHER_KEY": "hunter2"}, {**KEY, "WEBHOOK": "http://x"}, {"VLLM_API_KEY": ""}]
)
def test_another_secret_is_another_release(secrets: dict[str, str]) -> None:
    assert make(secrets=secrets).id != make(secrets=KEY).id == make(secrets=dict(KEY)).id


@pytest.mark.thorough
def test_the_same_value_means_something_else_in_another_service() -> None:
    names = {releases._digest(service, tuple(KEY.items())) for service in ("chat", "code")}
    assert len(names) == 2


def test_the_value_is_in_its_own_file_and_its_digest_is_nowhere() -> None:
    made = make(secrets=KEY)
    files = made.files()
    assert files.pop("secrets.env") == 'VLLM_API_KEY="hunter2"\n'
    shown = "".join(files.values()) + repr(made)
    assert "hunter2" not in shown and releases._digest("chat", tuple(KEY.items())) not in shown
    assert json.loads(files["release.json"])["secrets"] == ["VLLM_API_KEY"]
    assert (
        f"\nEnvironmentFile=/srv/pyinfra-vllm/chat/releases/{made.id}/secrets.env\n" in files["vllm.service"]
    )


def test_without_secrets_there_is_no_file_and_no_line_that_would_do_without_it() -> None:
    files = make().files()
    assert "secrets.env" not in files and files["vllm.service"].count("EnvironmentFile=") == 1
    assert "EnvironmentFile=-" not in make(secrets=KEY).files()["vllm.service"]


# What a plan says


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (KEY, KEY, []),
        ({}, {}, []),
        (KEY, ROTATED, ["another value of VLLM_API_KEY"]),
        ({}, KEY, ["+ VLLM_API_KEY"]),
        (KEY, {}, ["- VLLM_API_KEY"]),
        (KEY, {**KEY, "B": "b"}, ["+ B"]),
        (KEY, {**ROTATED, "B": "b"}, ["+ B", "another value of VLLM_API_KEY"]),
        ({**KEY, "B": "b"}, ROTATED, ["- B", "perhaps another value of VLLM_API_KEY"]),
    ],
)
def test_what_changes_is_told_by_name(
    before: dict[str, str], after: dict[str, str], expected: list[str]
) -> None:
    document = json.loads(make(secrets=before).files()["release.json"])
    new = make(secrets=after, argv=("/opt/vllm/bin/vllm", "serve", "/srv/y"))
    assert releases.difference_of_secrets(document, new) == expected
    assert not any(value in line for line in expected for value in (*before.values(), *after.values()))


def test_a_release_of_before_releases_had_secrets_is_read_as_one_without() -> None:
    document = json.loads(make().files()["release.json"])
    del document["secrets"], document["unit"]
    assert releases.difference_of_secrets(document, make(secrets=KEY)) == ["+ VLLM_API_KEY"]


def test_a_dry_run_tells_it_in_its_one_line() -> None:
    service = Service(name="chat", model="org/model", runtime=Runtime(version="0.33.0"), port=8000)
    old = json.loads(make(secrets=KEY).files()["release.json"])
    observed = seen(release=old)
    item = Wanted("gpu-1", "/srv/pyinfra-vllm", service, make(secrets=ROTATED), observed, "cpu")
    line = switch.preview(item, Overrides())
    assert f"replace release {old['id']}; secrets: another value of VLLM_API_KEY;" in line
    assert "hunter" not in line and "hunter" not in repr(item)


def test_a_dry_run_tells_which_variables_change() -> None:
    """Which cards a service has is nowhere in its command line."""
    service = Service(name="chat", model="org/model", runtime=Runtime(version="0.33.0"), port=8000)
    old = json.loads(make(environment={"CUDA_VISIBLE_DEVICES": "0", "A": "1"}).files()["release.json"])
    new = make(environment={"CUDA_VISIBLE_DEVICES": "GPU-1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "A": "1"})
    item = Wanted(
        "gpu-1",
        "/srv/pyinfra-vllm",
        service,
        new,
        seen(release=old),
        "NVIDIA H200",
    )
    changes = "- CUDA_VISIBLE_DEVICES=0, + CUDA_DEVICE_ORDER=PCI_BUS_ID, + CUDA_VISIBLE_DEVICES=GPU-1"
    assert f"; environment: {changes};" in switch.preview(item, Overrides())


def test_a_release_whose_secrets_are_not_at_hand_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_KEY", "hunter2")
    assert planning._secrets(WITH_KEY) == KEY
    monkeypatch.delenv("CHAT_KEY")
    with pytest.raises(HostError, match="chat: the environment variable CHAT_KEY is not set here"):
        planning._secrets(WITH_KEY)


@pytest.mark.parametrize(
    ("key", "running", "expected"),
    [
        ("hunter2", {"secrets": KEY}, KEY),
        ("hunter3", {"secrets": KEY}, ROTATED),
        (None, {"secrets": KEY}, KEY),
        (None, {"secrets": KEY, "stop_limit_s": 90}, None),
        (None, {"secrets": {**KEY, "B": "b"}}, None),
        (None, {}, None),
        (None, None, None),
    ],
)
def test_who_only_looks_needs_no_values(
    monkeypatch: pytest.MonkeyPatch,
    key: str | None,
    running: dict[str, Any] | None,
    expected: dict[str, str] | None,
) -> None:
    """The release that is wanted is the one with the `expected` secrets."""
    current = json.loads(make(**running).files()["release.json"]) if running is not None else None

    def plan(host: Any, root: str, service: Service, checkpoint: Any, secrets: Any = None) -> Wanted:
        values = planning._secrets(service) if secrets is None else secrets
        return Wanted("gpu-1", root, service, make(secrets=values), seen(release=current), "cpu")

    monkeypatch.setattr(planning, "plan", plan)
    monkeypatch.setattr(
        looking, "Lock", SimpleNamespace(load=lambda path: SimpleNamespace(get=lambda *key: None))
    )
    monkeypatch.setenv("CHAT_KEY", key) if key else monkeypatch.delenv("CHAT_KEY", raising=False)
    wish = looking._wish(None, "/srv/pyinfra-vllm", WITH_KEY)  # type: ignore[arg-type]
    assert wish.release == (make(secrets=expected).id if expected else None)
    assert ("it depends on CHAT_KEY, not set" in wish.problem) == (expected is None)


# How it comes to a host


def test_values_travel_on_standard_input_into_memory() -> None:
    host: Any = FakeHost([({}, "inactive")])
    made = make(secrets=KEY)
    assert operation.stage(SimpleNamespace(), host, "/srv/pyinfra-vllm", made)  # type: ignore[arg-type]
    assert not any("hunter2" in command for command in host.commands)
    (written,) = [n for n, text in enumerate(host.stdin) if "hunter2" in text]
    assert f"sh /run/pyinfra-vllm/stage-chat-{made.id}.json 600" in host.commands[written]


def test_the_host_keeps_them_for_root_alone_and_leaves_no_other_trace(host: SimulatedHost) -> None:
    host.stage(NEW, KEY)
    modes = {path.name: path.stat().st_mode & 0o777 for path in host.paths.release(NEW).iterdir()}
    assert (modes.pop("secrets.env"), modes.pop("cache")) == (0o600, 0o700) and set(modes.values()) == {0o644}
    holding = [p for p in host.paths.root.rglob("*") if p.is_file() and "hunter2" in p.read_text()]
    assert holding == [host.paths.secrets(NEW)]


# Which key a release is asked with


def test_each_release_is_asked_with_its_own_key_while_a_key_is_changed(host: SimulatedHost) -> None:
    host.install(OLD, KEY)
    host.stage(NEW, ROTATED)
    assert host.switch() == "committed"
    assert host.asked == [(OLD, "hunter2"), (NEW, "hunter3")]


def test_a_key_that_is_declared_no_more_is_gone_with_the_release_that_had_it(host: SimulatedHost) -> None:
    host.install(OLD, KEY)
    host.stage(NEW)
    assert host.switch() == "committed"
    assert host.asked == [(OLD, "hunter2"), (NEW, None)]
    assert not host.paths.secrets(NEW).exists()


def test_rollback_uses_the_old_key(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.install(OLD, KEY)
    host.stage(NEW, ROTATED)
    host.rates[NEW] = 10.0
    flow, asked = HostService._generation_problem, []

    def noted(this: HostService, release: Any, timeout_s: float = 60.0) -> str:
        asked.append((release.id, this.client(release)._api_key))
        return flow(this, release, timeout_s)

    monkeypatch.setattr(HostService, "_generation_problem", noted)
    assert host.switch() == "rolled_back"
    assert asked[-1] == (OLD, "hunter2") and (NEW, "hunter3") in asked


# What must be there before anything is touched


@pytest.mark.parametrize("left", [None, "", 'VLLM_API_KEY=""\n', 'OTHER="x"\n'])
@pytest.mark.parametrize("which", [OLD, NEW])
def test_a_release_without_its_key_is_refused(host: SimulatedHost, which: str, left: str | None) -> None:
    host.install(OLD, KEY)
    host.stage(NEW, ROTATED)
    path = host.paths.secrets(which)
    path.unlink() if left is None else path.write_text(left)
    assert host.switch() == "refused"
    assert host.starts == [] and host.running == OLD
    reason = host.journal()[-1]["reason"]
    assert f"release {which} has no value for VLLM_API_KEY in {path}: write it there again" in reason
    assert "hunter" not in json.dumps(host.journal())


# Whose secrets hooks get: those of the release whose order declared them


@pytest.mark.thorough
def test_hooks_get_the_newest_secrets_also_on_the_way_back(host: SimulatedHost, tmp_path: Path) -> None:
    told = tmp_path / "told"
    command = ["/bin/sh", "-c", f'echo "$VLLM_API_KEY" >> {told}']
    host.stage(OLD, KEY)
    host.switch(OLD, hooks={"notify": {"argv": command}, "timeout_s": 5})
    assert set(told.read_text().split()) == {"hunter2"}, "a first release has no other one to take them from"
    told.unlink()
    host.stage(NEW, ROTATED)
    host.switch(NEW, hooks={"notify": {"argv": command}, "timeout_s": 5})
    host.switch(OLD, purpose="rollback")
    assert set(told.read_text().split()) == {"hunter3"}


def test_prune_keeps_the_release_whose_secrets_hooks_take(host: SimulatedHost) -> None:
    host.install(OLD, KEY)
    host.stage(NEW, ROTATED)
    host.paths.hooks.write_text(json.dumps({"notify": {"url_env": "WEBHOOK"}, "release": NEW}))
    host.stage("c" * 12)
    assert prune._stays(host.paths, Keep()) >= {OLD, NEW, "c" * 12}
