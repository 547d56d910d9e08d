"""The plan of one host, made from its facts: everything that a run would refuse is told at once."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from seen import installed, seen
from test_planning import ROOT, STRANGER, gpu, locked, service

from pyinfra_vllm.checkpoint import Lock
from pyinfra_vllm.config import Declared, Overrides, Runtime, Service
from pyinfra_vllm.facts.checkpoint import Checkpoints
from pyinfra_vllm.facts.disk import Filesystem
from pyinfra_vllm.facts.gpu import Gpus
from pyinfra_vllm.facts.runtime import Runtime as RuntimeFact
from pyinfra_vllm.facts.service import Host as HostFact
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.inspect import disk as inspect_disk
from pyinfra_vllm.on_host.inspect.checkpoints import Stored
from pyinfra_vllm.on_host.inspect.gpus import Found
from pyinfra_vllm.on_host.inspect.host import Installation
from pyinfra_vllm.on_host.state.observed import Observed
from pyinfra_vllm.operations import program
from pyinfra_vllm.operations.util.foreseen import host_plan, service_plan
from pyinfra_vllm.operations.util.planning import plan
from pyinfra_vllm.rollout import plans
from pyinfra_vllm.rollout.plans import HostPlan, ServicePlan
from pyinfra_vllm.rollout.progress import Progress, Wanted

sys.path.insert(0, str(Path(__file__).parents[1]))

OF_HOST = Installation([3, 11, 2], "x86_64", 252, None, None, None, machine="", users={"vllm": True})
DISK = inspect_disk.Filesystem("/srv", "/srv", "/dev/sdb1", "ext4", 10**12, 10**13, 10**7, read_only=False)


class Host:
    """As much of a pyinfra host as is asked here: its facts, and how often each was asked for."""

    name = print_prefix = "gpu-1"

    def __init__(self, **facts: Any) -> None:
        self.facts = facts

    def get_fact(self, fact: Any, **_: Any) -> Any:
        known = {
            HostFact: ("host", OF_HOST),
            Checkpoints: ("stored", []),
            Filesystem: ("disk", DISK),
            RuntimeFact: ("runtime", None),
            Gpus: ("gpus", [gpu()]),
        }
        name, default = known.get(fact, ("observed", seen()))
        found = self.facts.get(name, default)
        return Found(tuple(found), self.facts.get("problem")) if fact is Gpus else found


@pytest.fixture(autouse=True)
def one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "PROGRESS", Progress())


def foreseen(*services: Service, overrides: Overrides | None = None, **facts: Any) -> HostPlan:
    lock = Lock([locked()])
    declared = Declared("gpu-1", services or (service(),), ROOT)
    return host_plan(Host(**facts), declared, lock, overrides or Overrides())  # type: ignore[arg-type]


def one(*services: Service, **facts: Any) -> ServicePlan:
    found = foreseen(*services, **facts)
    assert not found.reasons
    return found.services[0]


def of_release(wanted: Wanted, **changes: Any) -> Observed:
    """The facts of a host that runs this release."""
    id_ = wanted.release.id
    release = {
        "id": id_, "argv": list(wanted.release.argv), "environment": dict(wanted.release.environment),
        "checkpoint": dict(wanted.release.checkpoint), "runtime": dict(wanted.release.runtime), "secrets": [],
    }  # fmt: skip
    return seen(current=id_, running=id_, proven=id_, staged=[id_], release={**release, **changes})


def wanted(**settings: Any) -> Wanted:
    return plan(Host(), ROOT, service(**settings), locked())  # type: ignore[arg-type]


OTHER_RUNTIME = installed("0.31.0")
REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no python3": ({"host": None}, {}, "python3 is not there"),
    "old python3": ({"host": replace(OF_HOST, python=[3, 7, 0])}, {}, "its python3 is 3.7.0"),
    "no systemd": ({"host": replace(OF_HOST, systemd=None)}, {}, "not booted with systemd"),
    "old systemd": ({"host": replace(OF_HOST, systemd=219)}, {}, "its systemd is 219"),
    "a loose folder": ({"host": replace(OF_HOST, loose="/srv")}, {}, "others than root may write to /srv"),
    "no GPU": ({"gpus": []}, {}, "this host has no GPU"),
    "a driver that is dead": ({"gpus": [], "problem": "no answer"}, {}, "its GPUs are unknown: no answer"),
    "an old driver": ({"gpus": [gpu(driver="535.104.05")]}, {}, "driver 535.104.05 is too old"),
    "a GPU in use": ({"gpus": [gpu(processes=[STRANGER])]}, {}, "in use by python3 (process 4711"),
    "another card": ({}, {"gpu": "NVIDIA H200"}, "gpu: NVIDIA H200 is declared"),
    "a model that doesn't fit": ({}, {"max_model_len": 40960}, "doesn't fit on 1 x"),
    "a misspelt flag": ({}, {"flags": {"--max-num-seq": 8}}, "did you mean --max-num-seqs?"),
    "a full disk": ({"disk": replace(DISK, free_bytes=0)}, {}, "short: it has 0 B free"),
    "a read-only disk": ({"disk": replace(DISK, read_only=True)}, {}, "is read-only"),
    "no vLLM at its path": ({}, {"runtime": Runtime(path="/opt/none")}, "no vLLM is installed at /opt/none"),
    "another runtime": (
        {"runtime": OTHER_RUNTIME},
        {},
        "holds vllm 0.31.0, declared is vllm 0.33.0",
    ),
    "held by somebody": (
        {"observed": seen(lock={"holder": "ann@desk", "since": "02:00", "purpose": "a rollout"})},
        {},
        "ann@desk has held it since",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("facts", "settings", "says"), REFUSALS.values(), ids=REFUSALS)
def test_every_refusal_of_a_run_is_foreseen(
    facts: dict[str, Any], settings: dict[str, Any], says: str
) -> None:
    found = foreseen(service(**settings), **facts)
    assert says in "\n".join((*found.reasons, *found.services[0].reasons))
    assert found.services[0].action == plans.REFUSED
    assert plans.exit_code([found]) == 1
    assert plans.exit_code([foreseen()]) == 0, "the same host without it"


def test_everything_that_is_wrong_is_told_at_once() -> None:
    cards = [gpu(driver="535.104.05", processes=[STRANGER])]
    found = foreseen(
        service(flags={"--max-num-seq": 8}),
        host=replace(OF_HOST, systemd=None),
        disk=replace(DISK, free_bytes=0),
        gpus=cards,
    )
    assert [says in "\n".join(found.reasons) for says in ("systemd", "short")] == [True, True]
    reasons = "\n".join(found.services[0].reasons)
    assert all(says in reasons for says in ("too old", "in use by", "--max-num-seqs"))


def test_without_a_card_the_flags_are_checked_all_the_same() -> None:
    reasons = foreseen(service(flags={"--max-num-seq": 8}), gpus=[]).services[0].reasons
    assert len(reasons) == 2 and "did you mean --max-num-seqs?" in reasons[1]


def test_a_first_release_brings_everything() -> None:
    found = one()
    assert (found.action, found.old, found.new) == (plans.INSTALL, None, wanted().release.id)
    assert found.download_bytes == locked().total_bytes and found.installs == "vllm 0.33.0"
    assert found.model == (None, "acme/32b-awq@aaaaaaaaaaaa") and found.runtime == (None, "0.33.0")
    assert found.memory["fits"] and found.window == "no window is declared, so it may begin now"


def test_two_services_of_one_checkpoint_download_it_once() -> None:
    found = foreseen(service(gpus=(0,)), service(name="code", port=8001, gpus=(1,)), gpus=[gpu(0), gpu(1)])
    assert [item.download_bytes for item in found.services] == [locked().total_bytes, 0]


def test_what_an_interrupted_download_has_is_not_downloaded_again() -> None:
    directory = locked().directory(ROOT) + ".partial"
    partial = Stored(directory, "acme--32b-awq", locked().commit, "partial", [], 10**9, [])
    assert one(stored=[partial]).download_bytes == locked().total_bytes - 10**9


def test_a_host_that_runs_what_is_declared_is_unchanged() -> None:
    now = wanted()
    found = one(observed=of_release(now))
    assert (found.action, found.old, found.new) == (plans.UNCHANGED, now.release.id, now.release.id)


def test_a_switch_names_each_flag_before_and_after() -> None:
    before = wanted(flags={"--max-num-seqs": 8, "--enforce-eager": True})
    found = one(service(flags={"--max-num-seqs": 16, "--seed": 1}), observed=of_release(before))
    assert found.action == plans.SWITCH
    assert found.flags["--max-num-seqs"] == ("8", "16")
    assert found.flags["--enforce-eager"] == (True, None)
    assert found.flags["--seed"] == (None, "1")
    assert found.model[0] == found.model[1] and found.runtime == ("0.33.0", "0.33.0")


def shut() -> dict[str, str]:
    """A window that is closed at this moment."""
    hour = (datetime.now(UTC) + timedelta(hours=12)).hour
    return {"cron": f"0 {hour} * * *", "duration": "2h", "timezone": "UTC"}


def test_outside_its_window_a_switch_is_deferred_and_at_once_on_demand() -> None:
    windowed = service(window=(shut(),))
    before = of_release(wanted(flags={"--max-num-seqs": 8}))
    assert one(windowed, observed=before).action == plans.DEFERRED
    assert "the window is closed" in one(windowed, observed=before).window
    assert one(windowed, observed=before, overrides=Overrides(switch_now=True)).action == plans.SWITCH


def test_a_rejected_release_is_refused_until_somebody_says_otherwise() -> None:
    new = wanted()
    worse = seen(rejected={new.release.id: {"at": "2026-11-27", "reason": "slower"}})
    assert "was found worse at 2026-11-27 (slower)" in one(observed=worse).reasons[0]
    assert one(observed=worse, overrides=Overrides(retry_rejected=True)).action == plans.INSTALL


def test_a_release_that_failed_its_gate_may_be_tried_again_under_another_one() -> None:
    new = wanted()
    failed = {"at": "2026-11-27", "reason": "slower", "criteria": Criteria().as_dict()}
    assert one(observed=seen(rejected={new.release.id: failed})).action == plans.REFUSED
    elsewhere = {**failed["criteria"], "quality_prompts": "/srv/pyinfra-vllm/chat/prompts.jsonl"}
    same = {**failed, "criteria": elsewhere}
    assert one(observed=seen(rejected={new.release.id: same})).action == plans.REFUSED
    stricter = {**failed, "criteria": Criteria(throughput_margin=0.01).as_dict()}
    assert one(observed=seen(rejected={new.release.id: stricter})).action == plans.INSTALL


@pytest.mark.thorough
def test_who_only_looks_needs_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pull request no secrets are set: what runs as declared is unchanged, all else has no name."""
    secret = service(secrets={"VLLM_API_KEY": "CHAT_KEY"})
    monkeypatch.setenv("CHAT_KEY", "hunter2")
    release = plan(Host(), ROOT, secret, locked())  # type: ignore[arg-type]
    unit = release.release._started_from()["unit"]
    now = of_release(release, secrets=["VLLM_API_KEY"], unit=unit)
    assert one(secret, observed=now).action == plans.UNCHANGED
    monkeypatch.delenv("CHAT_KEY")
    assert one(secret, observed=now).action == plans.UNCHANGED
    first = one(secret)
    assert (first.action, first.new) == (plans.INSTALL, None)
    assert "CHAT_KEY not set in this environment" in first.warnings[-1]
    assert "hunter2" not in str(plans.as_json([foreseen(secret)]))


def test_a_service_plan_asks_nobody() -> None:
    made = service_plan(wanted(), Overrides())
    assert made.action == plans.INSTALL and made.installs == ""


def test_the_plan_says_whether_a_host_has_standby() -> None:
    has, lacks = one(service(standby=True)), one(service(standby=True, flags={"--api-server-count": 2}))
    assert (has.as_dict()["standby"], one().as_dict()["standby"]) == ({"possible": True, "because": ""}, None)
    assert lacks.as_dict()["standby"]["possible"] is False  # type: ignore[index]
    told = "\n".join(plans.lines([HostPlan("gpu-1", (lacks,))], 300))
    assert "standby   no, because --api-server-count 2 has several processes" in told
    assert "standby   the old release sleeps" in "\n".join(plans.lines([HostPlan("gpu-1", (has,))], 300))
