"""One host under test as the tests reach it: through the kernel, not over SSH, so that a cut cable hides nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import cgroups
from lab.disk import Disk
from lab.machine import Host
from lab.shell import LabError

from pyinfra_vllm.on_host import journal
from pyinfra_vllm.on_host.order import ROLLBACK, Order
from pyinfra_vllm.operations._switching import launch

from .watch import Watch

HERE = Path(__file__).parent
ROOT = "/srv/pyinfra-vllm"
STATE = f"{ROOT}/tiny"
SWITCH = "pyinfra-vllm-switch-tiny.service"
RESUME = "pyinfra-vllm-resume-tiny.service"
OVER = ("inactive", "failed")
HOOK = "usr/local/lib/python3.11/dist-packages"
FOLDER = "var/lib/faults"
GATE = {
    "budget_s": 5.0,
    "concurrency": [1],
    "throughput_margin": 0.9,
    "tpot_margin": None,
    "ttft_margin": None,
    "quality": False,
    "on_inconclusive": "keep",
}
REAL_BUDGET_S = 20.0  # three real servers share two cores: 10 s once ended before a round's first answer


class Late(AssertionError):
    """Something did not happen on a host within its time."""


@dataclass
class Ground:
    """A host that serves one of two good releases and has all releases of the tests staged.

    releases: what a test calls a release -> its id
    voices: release id -> what its checkpoint says to the watch's prompt
    """

    host: Host
    disk: Disk | None = None
    releases: dict[str, str] = field(default_factory=dict)
    voices: dict[str, str] = field(default_factory=dict)
    mounts: list[str] = field(default_factory=list)
    ready_timeout_s: float = 15.0
    real: bool = False  # the real vLLM serves, which takes its time for everything

    def __post_init__(self) -> None:
        self.watch = Watch(self.leader)

    @property
    def gate(self) -> dict[str, Any]:
        return {**GATE, "budget_s": REAL_BUDGET_S} if self.real else GATE

    @property
    def patience(self) -> float:
        """How many times longer than with the stub anything may take."""
        return 10.0 if self.real else 1.0

    # The host's inside

    def leader(self) -> int | None:
        """The host's first process as this machine numbers it; None while its power is off."""
        supervisor = self.host._pid
        if supervisor is None:
            return None
        try:
            children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    def inside(self, *argv: str, stdin: str = "", check: bool = True, timeout: float = 60) -> str:
        """Run a command in all of the host's namespaces; its standard output."""
        done = subprocess.run(
            [*self._enter(), *argv],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
        if check and done.returncode:
            raise LabError(
                f"{self.host.name}: {' '.join(argv)[:200]}: {done.returncode}: {done.stderr[-800:]}"
            )
        return done.stdout

    def _enter(self) -> list[str]:
        """The beginning of a command line whose rest runs in the host."""
        leader = self.leader()
        if leader is None:
            raise LabError(f"{self.host.name} has no power")
        spaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
        return ["nsenter", "--target", str(leader), *spaces, "env", path, "LANG=C.UTF-8"]

    def beside(self, *argv: str) -> int:
        """Start a command in the host that goes on by itself; it says its number on the host first, this is ours."""
        process = subprocess.Popen(
            [*self._enter(), *argv], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return int(child)

    def groups(self) -> list[Path]:
        """The control groups of the switch and of what follows a boot, as this machine sees them."""
        slices = [group / "payload/system.slice" for group in cgroups.find(self.host.name)]
        return [group / unit for group in slices for unit in (SWITCH, RESUME) if (group / unit).is_dir()]

    def look(self) -> dict[str, Any]:
        text = self.inside("python3", "-", stdin=(HERE / "inside/look.py").read_text())
        return dict(json.loads(text))

    def current(self) -> str:
        return (self.outside(STATE) / "current").readlink().name

    def outside(self, path: str) -> Path:
        """Where a file of the host lies on this machine."""
        if self.disk is not None and path.startswith(self.disk.path):
            return self.disk.mount(self.host.place) / path[len(self.disk.path) :].lstrip("/")
        return self.host.root / path.lstrip("/")

    def entries(self) -> list[dict[str, Any]]:
        """The journal as it is now; a line that is being written is left out."""
        return journal.read(self.outside(STATE) / "journal.jsonl")

    # Fault points

    def install_hook(self) -> None:
        target = self.host.root / HOOK
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "inside/fault_points.py", target / "fault_points.py")
        (target / "fault_points.pth").write_text("import fault_points\n")
        (self.host.root / FOLDER).mkdir(parents=True, exist_ok=True)

    def arm(self, point: str, **how: Any) -> None:
        folder = self.host.root / FOLDER
        (folder / "reached").unlink(missing_ok=True)
        (folder / "armed").write_text(json.dumps({"point": point, **how}))

    def disarm(self) -> None:
        (self.host.root / FOLDER / "armed").unlink(missing_ok=True)

    def reached(self, timeout: float = 120) -> int:
        """Wait until a process stands at the armed point; its number on the host. Late where the switch ended before."""
        path = self.host.root / FOLDER / "reached"
        begun = False

        def there() -> bool:
            nonlocal begun
            runs = bool(self.groups())
            if path.exists() and path.read_text():
                return True
            if begun and not runs:
                raise Late(f"{self.host.name} ended its switch before its fault point: {self.entries()[-1]}")
            begun = begun or runs
            return False

        self.until(there, "reach its fault point", timeout * self.patience)
        return int(path.read_text())

    # Switches, as the control machine starts them

    def start(self, release_id: str, **order: Any) -> None:
        launch(self, ROOT, self.order(release_id, **order))  # type: ignore[arg-type]

    def order(self, release_id: str, **order: Any) -> Order:
        values = {
            "operator": "faults@test",
            "criteria": self.gate,
            "ready_timeout_s": self.ready_timeout_s,
            **order,
        }
        return Order(service="tiny", release=release_id, **values)

    def run(self, *words: str, stdin: str | None = None, timeout_s: int | None = None) -> str:
        """What operations._remote.Remote does over SSH."""
        return self.inside(*words, stdin=stdin or "", timeout=timeout_s or 60)

    def write(self, path: str, text: str, mode: str = "600") -> None:
        self.inside("sh", "-c", f"umask 077; cat > {path}", stdin=text)

    def back(self, release_id: str) -> None:
        """Have the release serve by an order that asks only for tokens, to its end."""
        self.start(release_id, purpose=ROLLBACK, reason="the next case")
        self.wait_over()

    def state(self, unit: str = SWITCH) -> str:
        return self.inside("systemctl", "show", "--value", "--property", "ActiveState", unit).strip()

    def wait_over(self, timeout: float = 120) -> None:
        """Wait until the switch's unit, its recovery included, has ended. Its control group is cheaper to ask than systemd."""

        def over() -> bool:
            return not self.groups() and all(self.state(unit) in OVER for unit in (SWITCH, RESUME))

        every = 0.1 if cgroups.hierarchies() else 0.5
        self.until(over, "end its switch", timeout * self.patience, every)

    def reboot(self) -> None:
        """Power cut, and boot, until what the cut interrupted has been ended."""
        self.host.power_cut()
        self.host.start()
        self.until(self._ended, "end what the power cut interrupted", 120 * self.patience)

    def _ended(self) -> bool:
        last = journal.last_transaction(self.outside(STATE) / "journal.jsonl") or []
        return any(entry["step"] == "end" for entry in last)

    def signal(self, number: str, *pids: int) -> None:
        if pids:
            self.inside("kill", f"-{number}", *map(str, pids), check=False)

    def server(self) -> int:
        return int(
            self.inside("systemctl", "show", "--value", "--property", "MainPID", "vllm-tiny").strip() or 0
        )

    # Waiting

    def until(self, reached: Callable[[], Any], what: str, timeout: float, every: float = 0.05) -> None:
        end = time.monotonic() + timeout
        while not reached():
            if time.monotonic() > end:
                raise Late(f"{self.host.name} did not {what} within {timeout:.0f} s")
            time.sleep(every)
