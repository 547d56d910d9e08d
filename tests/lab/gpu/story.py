"""One story on one host: each step is a command as an operator gives it, with how it ended and how long
nobody was served.

The rows are printed as they come and kept as JSON, from which docs/gpu.md is generated (page.py).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab import control, deciding, gpus, shapes, venvs
from lab.machine import Host
from lab.session import Lab
from lab.shell import say, timed

from . import looks
from .pulse import Clients, GpuMemory, HostMemory, Load, Pulse

# where measurements and recorded outputs go; build/gpu of the checkout without it
RESULTS = "PYINFRA_VLLM_LAB_RESULTS"
PLACE = Path(os.environ.get(RESULTS) or control.CHECKOUT / "build/gpu").absolute()
# NVLink's multicast stays off: a program that dies with it can take the GPUs of a whole machine out of
# service.
ENVIRONMENT = {
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # it is compiled on the host, for sampling that nobody asks for
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
}
EXPOSURE = 2.0  # of systemd-analyze security, at most
CLOSE = 0.05  # what was predicted of memory is right within this share
QUIET_S = 15.0  # of load before something happens beside it
TUNING_S = 1500  # 25 minutes, as long as a search among few configurations may take
SETTLE_S = 2.0  # from the end of a restart until it counts as over


@dataclass
class Step:
    """A row of the table.

    `plain_s`: seconds without service of `systemctl restart` of the same release, in this story.
    """

    title: str
    seconds: float
    silent_s: float
    exit_code: int
    outcome: str | None = None  # of the switch that it made; None where it made none
    verdict: str | None = None
    reason: str = ""
    plain_s: float | None = None
    screen: list[str] = field(default_factory=list, repr=False)

    @property
    def times(self) -> float | None:
        """Without service, in plain restarts."""
        return round(self.silent_s / self.plain_s, 2) if self.plain_s else None

    def said(self, words: str) -> list[str]:
        """The lines on the screen from the first one with these words on."""
        first = next((n for n, line in enumerate(self.screen) if words in line), len(self.screen))
        return self.screen[first:]


@dataclass(frozen=True)
class Beside:
    """The clients, the card's memory and the machine's, watched during a rollout."""

    clients: Clients
    card: GpuMemory
    memory: HostMemory


@dataclass
class Story:
    """Steps on one host that serves `service` on `port`."""

    name: str
    host: Host
    services: dict[str, dict[str, Any]]
    service: str
    steps: list[Step] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(
        default_factory=list
    )  # what had to be and wasn't; the story goes on, for GPUs are dear
    ended: bool = False  # False where the run was cut off

    def __post_init__(self) -> None:
        self.pulse = Pulse(self.host, self.services[self.service]["port"])
        self.pulse.begin()
        self.place = PLACE / self.name
        self.place.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Story:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.pulse.end()
        self.ended = kind is None
        self.keep()
        if kind is None:
            assert not self.wrong, "\n".join(self.wrong)

    def must(self, true: bool, what: str, *told: object) -> None:
        """Require that this is true: else the story goes on, and is red at its end."""
        if not true:
            self.wrong.append(f"{what}: {'; '.join(map(str, told))}")
            say(f"{self.name}: NOT SO: {self.wrong[-1]}")
            self.keep()

    def ends(self, step: Step, exit_code: int, outcome: str | None, verdict: str | None = None) -> None:
        """How a step must end; without a verdict, any."""
        told = (step.exit_code, step.outcome, verdict and step.verdict)
        self.must(told == (exit_code, outcome, verdict), f"{step.title} ends so", line(step))

    def serves(self, release: str | None, service: str | None = None) -> None:
        """The release that must run now."""
        found = looks.running(self.host, service or self.service)
        self.must(found == release, f"release {release} serves after {self.steps[-1].title}", found)

    # Steps

    def deploy(self, title: str, service: str | None = None, **settings: Any) -> Step:
        """Declare `settings` for the service from now on, and roll out as an operator does."""
        name = service or self.service
        self.services[name] = {**self.services.get(name, {}), **settings}
        env = self.environment()
        locked = control.pyinfra_vllm("lock", control.INVENTORY, env=env)
        assert locked.returncode == 0, locked.stdout + locked.stderr
        return self._step(title, name, "deploy.py", env)

    def install(self, title: str) -> None:
        """The first rollout to the empty host; without it the story can't go on."""
        step = self.deploy(title)
        assert (step.exit_code, step.outcome) == (0, "committed"), step.screen[-40:]

    def deploy_beside_load(self, title: str, port: int, **settings: Any) -> tuple[Step, dict[str, Any]]:
        """Roll out while somebody asks the server at `port`, one request after another.

        The second value: tokens per second, longest answer and failures before and meanwhile.
        """
        load = Load(self.host, port, "chat")
        load.begin()
        try:
            time.sleep(QUIET_S)
            begun = time.monotonic()
            step = self.deploy(title, **settings)
            ended = time.monotonic()
        finally:
            load.end()
        return step, {"before": load.told(begun - QUIET_S + 3, begun), "meanwhile": load.told(begun, ended)}

    def deploy_beside_clients(self, title: str, **settings: Any) -> tuple[Step, Beside]:
        """Roll out while ten clients a second ask through the front."""
        clients = Clients(self.host, self.services[self.service]["port"], "chat")
        card, memory = GpuMemory(self.host), HostMemory()
        for watch in (clients, card, memory):
            watch.begin()
        try:
            step = self.deploy(title, **settings)
            time.sleep(QUIET_S)
        finally:
            for watch in (clients, card, memory):
                watch.end()
        return step, Beside(clients, card, memory)

    def go_back(self, title: str) -> Step:
        return self._step(title, self.service, "rollback.py", self.environment())

    def tune(self, title: str, pages: Path) -> tuple[Step, dict[str, Any]]:
        """Tune the service as an operator does. The second value: the command's answer; {} where it gave
        none.
        """
        words = ("tune", control.INVENTORY, "--limit", self.host.name, "--json", "--out", str(pages))
        begun = time.monotonic()
        done = control.pyinfra_vllm(*words, env=self.environment(), timeout=TUNING_S)
        took = time.monotonic() - begun
        step = Step(title, took, self.pulse.silent_s(begun, begun + took), done.returncode)
        step.screen = done.stderr.splitlines()
        step.plain_s = self._plain()
        number = f"{len(self.steps) + 1:02d}"
        (self.place / f"{number}-screen.txt").write_text(done.stdout + done.stderr)
        if (pages / "tuning.html").exists():
            shutil.copy(pages / "tuning.html", self.place / f"{number}-tuning.html")
        return self._add(step), dict(json.loads(done.stdout or "{}"))

    def plain_restart(self, title: str, unit: str = "") -> Step:
        """`systemctl restart` of the release that runs: every other time is compared with this one.

        unit: of that release; left out: the service's, which it is without standby
        """
        begun = time.monotonic()
        self.host.ssh(f"systemctl restart {unit or f'vllm-{self.service}'}", timeout=300)
        self._until_healthy(begun)
        silent = self.pulse.silent_s(begun, time.monotonic())
        return self._add(Step(title, time.monotonic() - begun, silent, 0, plain_s=silent))

    def first_start_by_hand(self, title: str) -> Step:
        """Stop the release that runs, take its compiled kernels away, and start it, as somebody does who
        changes a model by hand. Its files are in memory all the same.
        """
        unit, release = f"vllm-{self.service}", looks.running(self.host, self.service)
        cache = f"{looks.ROOT}/{self.service}/releases/{release}/cache"
        begun = time.monotonic()
        self.host.ssh(
            f"systemctl stop {unit} && find {cache} -mindepth 1 -delete && systemctl start {unit}",
            timeout=300,
        )
        self._until_healthy(begun)
        silent = self.pulse.silent_s(begun, time.monotonic())
        return self._add(Step(title, time.monotonic() - begun, silent, 0))

    def look(self, service: str | None = None) -> None:
        """Look at the serving unit: its exposure, the devices that it can open, its memory as predicted."""
        name = service or self.service
        devices = looks.opened(self.host, name)
        found: dict[str, Any] = {
            "exposure": looks.exposure(self.host, name),
            "devices": devices,
            "kv_cache": looks.kv_cache(self.host, name),
            "memory": looks.memory(self.host, name),
        }
        self.facts[name] = found
        self.keep()
        self.must(found["exposure"] <= EXPOSURE, f"{name}: exposure at most {EXPOSURE}", found["exposure"])
        guarded = looks.devices_are_guarded(self.host, devices)
        self.must(guarded, f"{name}: its unit opens the GPUs and nothing else", devices)
        off = [found["kv_cache"]["off"], *(card["off"] for card in found["memory"])]
        self.must(all(abs(each) <= CLOSE for each in off), f"{name}: memory as predicted", found)

    def environment(self) -> dict[str, str]:
        declared = {
            self.host.name: {"services": {"tiny": None, **self.services}}
        }  # tiny: of group_data/lab.py
        return {"PYINFRA_VLLM_LAB_HOSTS": json.dumps(declared)}

    def _step(self, title: str, service: str, script: str, env: Mapping[str, str]) -> Step:
        before = deciding.last(self.host, service).get("tx")
        begun = time.monotonic()
        done = control.pyinfra(script, "-y", "--limit", self.host.name, env=env, timeout=1500)
        took = time.monotonic() - begun
        time.sleep(SETTLE_S)
        step = Step(title, took, self.pulse.silent_s(begun, begun + took), done.returncode)
        step.screen = (done.stdout + done.stderr).splitlines()
        ended = deciding.last(self.host, service)
        if ended.get("tx") != before:
            step.outcome, step.verdict = ended.get("outcome"), ended.get("verdict")
            step.reason = str(ended.get("reason") or "")
        step.plain_s = self._plain()
        (self.place / f"{len(self.steps) + 1:02d}-screen.txt").write_text("\n".join(step.screen) + "\n")
        looks.record(self.host, service, self.place, f"{len(self.steps) + 1:02d}")
        return self._add(step)

    def _plain(self) -> float | None:
        """The newest plain restart of this story; a release that was never restarted so has
        that of another.
        """
        return next((step.plain_s for step in reversed(self.steps) if step.plain_s), None)

    def _until_healthy(self, since: float, timeout: float = 600) -> None:
        """Return when the server, which was seen to be away, answers again."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            heard = [healthy for at, healthy in list(self.pulse.heard) if at > since]
            if False in heard and heard[-1]:
                return
            time.sleep(0.2)
        raise AssertionError(f"{self.service} is not back after {timeout:.0f} s")

    def _add(self, step: Step) -> Step:
        self.steps.append(step)
        say(f"{self.name}: {line(step)}")
        self.keep()
        return step

    # What is kept

    def keep(self) -> None:
        rows = [{**asdict(step), "times": step.times, "screen": None} for step in self.steps]
        document = {
            "story": self.name,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": looks.machine(self.host),
            "product": looks.product(),
            "services": self.services,
            "steps": rows,
            "facts": self.facts,
            "wrong": self.wrong,
            "ended": self.ended,
        }
        (PLACE / f"{self.name}.json").write_text(json.dumps(document, indent=1) + "\n")


def line(step: Step) -> str:
    """A row as text."""
    end = ", ".join(word for word in (step.outcome or "no switch", step.verdict or "") if word)
    times = f" ({step.times:.2f} plain restarts)" if step.times is not None else ""
    silent = f"{step.silent_s:.1f} s without service{times}"
    return (
        f"{step.title}: exit {step.exit_code}, {end}, {step.seconds:.0f} s, {silent}. {step.reason[:300]}"
    ).strip()


def service(model: str, port: int = 8000, gpu_list: Sequence[int] = (0,), **settings: Any) -> dict[str, Any]:
    """The declaration of a service in the stories; `settings` win."""
    declared = {
        "model": model,
        "runtime": {"path": str(venvs.path()), "package": venvs.package()},
        "port": port,
        "served_model_name": "chat",
        "gpus": list(gpu_list),
        "max_model_len": 4096,
        "objective": "throughput",
        "environment": ENVIRONMENT,
        "window": [],
        "ready_timeout_s": 600,
        "shutdown_timeout_s": 10,
        "gate": {"budget_s": 30, "quality": False},
    }
    return {**declared, **settings}


@contextmanager
def host(lab: Lab, name: str, count: int, models: Sequence[str]) -> Iterator[Host]:
    """A host with the first `count` of the lab's GPUs and the models on the lab's Hub; it gives the GPUs
    back.
    """
    for model in models:
        if model not in lab.hub.repositories:
            with timed(f"publishing {model}"):
                lab.hub.publish(model, shapes.made(model))
    (added,) = lab.add(name, cards=gpus.mine()[:count], devices=looks.OTHER_DEVICES)
    say(f"{name} has {added.ssh('nvidia-smi -L').stdout.strip()}")
    try:
        yield added
    finally:
        lab.remove(name)
