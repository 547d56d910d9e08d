"""Hooks: whatever happens, and whenever the host dies, the load balancer gets its host back and people hear
how it ended.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from simulated import NEW, OLD, Killed, SimulatedHost

from pyinfra_vllm.config.hooks import Hooks
from pyinfra_vllm.on_host.bench import probe
from pyinfra_vllm.on_host.bench.record import Record
from pyinfra_vllm.on_host.gate import soak
from pyinfra_vllm.on_host.server import hooks, systemd
from pyinfra_vllm.on_host.state import secrets_file
from pyinfra_vllm.on_host.switch import recovery
from pyinfra_vllm.on_host.switch.order import ROLLBACK
from pyinfra_vllm.rendering import environment_file

DECLARED = {kind: {"argv": [f"/lb/{kind}"]} for kind in ("drain", "undrain", "notify")}


class Balancer:
    """Stands where hooks are called: a load balancer's state for this host, and all that people were told."""

    def __init__(self, host: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = host
        self.drained = False
        self.events: list[dict[str, Any]] = []
        self.fails: dict[str, int] = {}  # kind -> how many calls fail
        self.drained_at_starts: list[bool] = []
        monkeypatch.setattr(hooks, "call", host._mortal("hook", self._call))
        monkeypatch.setattr(hooks, "PAUSE_S", 0.0)
        start = systemd.start
        monkeypatch.setattr(
            systemd, "start", lambda unit: (self.drained_at_starts.append(self.drained), start(unit))
        )

    def _call(
        self, hook: dict[str, Any], event: dict[str, Any], timeout_s: float, secrets: Path, kind: str
    ) -> None:
        assert hook == DECLARED[kind]
        self.events.append(event)
        if self.fails.get(kind, 0):
            self.fails[kind] -= 1
            raise hooks.HookFailed(f"the {kind} hook failed: status 1: no such server")
        if kind != "notify":
            self.drained = kind == "drain"

    def told(self) -> list[str]:
        return [event["event"] for event in self.events]


def made(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[SimulatedHost, Balancer]:
    host = SimulatedHost(root, monkeypatch)
    host.install(OLD)
    host.stage(NEW)
    return host, Balancer(host, monkeypatch)


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[SimulatedHost, Balancer]:
    return made(tmp_path, monkeypatch)


def test_a_switch_drains_first_and_undrains_when_the_new_release_has_proven_itself(
    both: tuple[SimulatedHost, Balancer],
) -> None:
    host, balancer = both
    assert host.switch(hooks=DECLARED, reason="ticket 7") == "committed"
    assert balancer.told() == ["begin", "drain", "verdict", "undrain", "end"]
    assert not balancer.drained and balancer.drained_at_starts == [True]
    begin, *_, end = balancer.events
    assert begin["schema"] == "pyinfra-vllm/event/1" and end["tx"] == begin["tx"]
    assert (end["from"], end["to"], end["operator"], end["why"]) == (OLD, NEW, "alice", "ticket 7")
    assert (end["outcome"], end["verdict"]) == ("committed", "pass")
    done = [(entry["step"], entry["state"]) for entry in host.journal()]
    assert done.index(("drain", "done")) < done.index(("measure-before", "intended"))
    assert done.index(("commit", "done")) < done.index(("undrain", "done"))
    assert done.count(("notify", "done")) == 3


def test_a_worse_release_is_told_as_a_failure_and_the_old_one_gets_its_traffic_back(
    both: tuple[SimulatedHost, Balancer],
) -> None:
    host, balancer = both
    host.rates[NEW] = 50.0
    assert host.switch(hooks=DECLARED) == "rolled_back"
    assert balancer.told() == ["begin", "drain", "verdict", "undrain", "failed"]
    assert not balancer.drained and balancer.drained_at_starts == [True, True]


def test_the_documented_event_is_the_one_that_is_sent(both: tuple[SimulatedHost, Balancer]) -> None:
    host, balancer = both
    page = Path(__file__).parents[2].joinpath("docs/hooks.md").read_text()
    documented = json.loads(page.partition("```json\n")[2].partition("```")[0])
    host.rates[NEW] = 50.0
    host.switch(hooks=DECLARED)
    sent = balancer.events[-1]
    assert list(sent) == list(documented)
    assert all(isinstance(sent[key], type(documented[key])) for key in sent)
    assert sent["text"].endswith(f": chat: {sent['outcome']}: {sent['reason']}")
    assert all(f"`{event}`" in page for event in balancer.told())


def test_the_documented_examples_can_be_declared_and_run() -> None:
    page = Path(__file__).parents[2].joinpath("docs/hooks.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    shells = [text for kind, text in blocks if kind == "sh"]
    declared = [text for kind, text in blocks if kind == "python" and not text.startswith("#!")]
    programs = [text for kind, text in blocks if kind == "python" and text.startswith("#!")]
    assert (len(shells), len(declared), len(programs)) == (2, 2, 1)
    for text in shells:
        subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    services = ast.literal_eval(declared[0].partition("= ")[2])
    pieces = [services["chat"]["hooks"], ast.literal_eval(f"{{{declared[1]}}}")["hooks"]]
    assert [sorted(Hooks.model_validate(piece).document()) for piece in pieces] == [
        ["drain", "notify", "timeout_s", "undrain"],
        ["drain", "timeout_s", "undrain"],
    ]


def test_a_failing_drain_stops_the_host_before_anything_is_touched(
    both: tuple[SimulatedHost, Balancer],
) -> None:
    host, balancer = both
    balancer.fails["drain"] = 1
    assert host.switch(hooks=DECLARED) == "refused"
    assert host.starts == [] and host.running == OLD
    assert balancer.told() == ["begin", "drain", "undrain", "failed"]
    assert "the drain hook failed: status 1: no such server" in host.journal()[-1]["reason"]


def test_what_was_not_touched_is_undrained_even_where_nothing_served_before(
    both: tuple[SimulatedHost, Balancer],
) -> None:
    host, balancer = both
    host.running = None
    balancer.fails["drain"] = 1
    assert host.switch(hooks=DECLARED) == "refused"
    assert balancer.told() == ["begin", "drain", "undrain", "failed"]


def test_after_the_last_start_nothing_is_drained(both: tuple[SimulatedHost, Balancer]) -> None:
    host, balancer = both
    assert host.switch(hooks=DECLARED, last_start=time.time() - 1) == "deferred"
    assert balancer.told() == ["begin", "end"] and not balancer.drained


def test_switch_deferred_after_its_drain_undrains(
    both: tuple[SimulatedHost, Balancer], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, balancer = both
    now = time.time()
    measure = probe.measure

    def slow(*args: Any, **how: Any) -> Record:
        monkeypatch.setattr(time, "time", lambda: now + 120.0)
        return measure(*args, **how)

    monkeypatch.setattr(probe, "measure", slow)
    assert host.switch(hooks=DECLARED, last_start=now + 60.0) == "deferred"
    assert balancer.told() == ["begin", "drain", "undrain", "end"] and not balancer.drained


def test_a_failing_notify_never_breaks_a_switch_and_is_on_record(
    both: tuple[SimulatedHost, Balancer],
) -> None:
    host, balancer = both
    balancer.fails["notify"] = 99
    assert host.switch(hooks=DECLARED) == "committed"
    failed = [entry for entry in host.journal() if (entry["step"], entry["state"]) == ("notify", "failed")]
    assert [entry["event"] for entry in failed] == ["begin", "verdict", "end"]
    assert "no such server" in failed[0]["error"]


def test_whatever_keeps_a_notify_from_being_called_decides_nothing(
    both: tuple[SimulatedHost, Balancer], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, _ = both

    def out_of_files(*arguments: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(hooks, "call", out_of_files)
    assert host.switch(hooks={"notify": {"argv": ["/lb/notify"]}}) == "committed"
    failed = [entry["error"] for entry in host.journal() if entry["step"] == "notify"]
    assert len(failed) == 3 and "could not be called: [Errno 24] Too many open files" in failed[0]


@pytest.mark.thorough
@pytest.mark.parametrize("rate", [100.0, 50.0], ids=["no worse", "worse"])
def test_a_disk_that_fills_at_any_write_leaves_no_host_drained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    for moment in range(0, 60, 3):
        with monkeypatch.context() as patch:
            host, balancer = made(tmp_path / f"{moment}", patch)
            host.rates[NEW] = rate
            host.calls.clear()
            host.disk_full_at = moment
            with contextlib.suppress(OSError):
                host.switch(hooks=DECLARED)
            host.recover()
            assert not balancer.drained, f"full at {moment}: still drained"
            host.disk_full_at = None
            host.recover()
            assert not balancer.drained, f"full at {moment}, then recovered: drained"


def test_an_undrain_that_fails_is_tried_again_then_and_by_every_later_recovery(
    both: tuple[SimulatedHost, Balancer],
) -> None:
    host, balancer = both
    balancer.fails["undrain"] = 2
    assert host.switch(hooks=DECLARED) == "committed"
    assert not balancer.drained

    balancer.fails["undrain"] = 99
    assert host.switch(OLD, hooks=DECLARED) == "committed"
    assert balancer.drained
    assert "it is still drained: the undrain hook failed" in host.journal()[-1]["reason"]
    balancer.fails.clear()
    host.recover()
    assert not balancer.drained
    calls = len(balancer.events)
    host.recover()
    assert len(balancer.events) == calls, "a second recovery did something"


@pytest.mark.parametrize("serves", [True, False])
def test_an_undrain_that_an_earlier_switch_owes_is_owed_by_the_next_ones_too(
    both: tuple[SimulatedHost, Balancer], serves: bool
) -> None:
    """Also by one that ends before its own drain, which touches nothing; and only once something serves."""
    host, balancer = both
    balancer.fails["undrain"] = 99
    assert host.switch(hooks=DECLARED) == "committed"
    if not serves:
        host.broken.add(NEW)
    for _ in range(2):
        assert host.switch("cccccccccccc", hooks=DECLARED) == "refused"
    assert ("it is still drained" if serves else "it stays drained") in host.journal()[-1]["reason"]
    balancer.fails.clear()
    host.recover()
    assert balancer.drained is not serves
    host.broken.clear()
    assert recovery.insist(host.paths, host.said.append, tries=1)
    assert not balancer.drained


def test_a_service_whose_hooks_were_taken_out_while_it_is_drained_says_that_nobody_undrains_it(
    both: tuple[SimulatedHost, Balancer],
) -> None:
    host, balancer = both
    balancer.fails["undrain"] = 99
    assert host.switch(hooks=DECLARED) == "committed"
    assert host.switch(OLD, hooks={}) == "committed"
    reason = host.journal()[-1]["reason"]
    assert "it is still drained: no undrain hook is declared any more" in reason
    assert recovery.insist(host.paths, host.said.append, tries=1)


def test_where_nothing_serves_the_service_stays_drained_until_something_does(
    both: tuple[SimulatedHost, Balancer],
) -> None:
    host, balancer = both
    host.broken.add(NEW)
    host.dies_when_stopped.add(OLD)
    assert host.switch(hooks=DECLARED) == "restore_failed"
    assert balancer.drained and balancer.told()[-1] == "failed"
    host.recover()
    assert balancer.drained
    host.broken.clear()  # somebody has mended the host
    host.recover()
    assert not balancer.drained


def test_after_a_boot_undrain_waits_for_the_generation_check(
    both: tuple[SimulatedHost, Balancer], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, balancer = both
    host.broken.add(NEW)
    host.dies_when_stopped.add(OLD)
    host.switch(hooks=DECLARED)
    waited = iter([None, None, host.broken.clear])

    def pass_time(seconds: float) -> None:
        assert balancer.drained
        (next(waited) or (lambda: None))()

    monkeypatch.setattr(recovery.time, "sleep", pass_time)
    assert recovery.insist(host.paths, host.said.append)
    assert not balancer.drained and next(waited, None) is None


def test_a_rollback_by_hand_uses_the_hooks_of_the_last_rollout(both: tuple[SimulatedHost, Balancer]) -> None:
    host, balancer = both
    host.switch(hooks=DECLARED)
    balancer.events.clear()
    assert host.switch(OLD, purpose=ROLLBACK) == "committed"
    assert balancer.told() == ["begin", "drain", "undrain", "end"]
    assert balancer.events[0]["purpose"] == "rollback"
    host.switch(NEW, hooks={})
    assert balancer.told() == ["begin", "drain", "undrain", "end"], (
        "hooks that are declared no more are not called"
    )


def test_real_traffic_is_there_when_the_soak_watches_it(
    both: tuple[SimulatedHost, Balancer], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, balancer = both
    drained: list[bool] = []

    def watch(*args: Any, **kwargs: Any) -> soak.Watched:
        drained.append(balancer.drained)
        return soak.Watched("pass", [], 60.0, 100.0, 0.0, 0.0)

    monkeypatch.setattr(soak, "soak", watch)
    assert host.switch(hooks=DECLARED, criteria={"soak_s": 60.0}) == "committed"
    assert drained == [False]


def test_service_without_hooks_has_no_hook_entries(both: tuple[SimulatedHost, Balancer]) -> None:
    host, balancer = both
    assert host.switch(hooks={}) == "committed"
    assert balancer.events == [] and not host.paths.hooks.exists()


@pytest.mark.thorough
@pytest.mark.parametrize("boot", [False, True], ids=["killed", "power cut"])
@pytest.mark.parametrize("rate", [100.0, 50.0], ids=["no worse", "worse"])
def test_death_at_any_call_leaves_no_host_drained_and_no_event_unsent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, boot: bool
) -> None:
    def died(root: Path, patch: pytest.MonkeyPatch, moment: int | None) -> tuple[SimulatedHost, Balancer]:
        host, balancer = made(root, patch)
        host.rates[NEW] = rate
        host.calls.clear()
        host.die_at = moment
        if moment is None:
            host.switch(hooks=DECLARED)
        else:
            with pytest.raises(Killed):
                host.switch(hooks=DECLARED)
        return host, balancer

    with monkeypatch.context() as patch:
        total = len(died(tmp_path / "whole", patch, None)[0].calls)
    for moment in range(int(boot), total, 2):  # kills and power cuts take turns
        with monkeypatch.context() as patch:
            host, balancer = died(tmp_path / f"{moment}", patch, moment)
            host.recover(boot)
            assert not balancer.drained, f"dead at {moment}: still drained"
            assert host.running in (OLD, NEW)
            begun = any(entry["step"] == "begin" for entry in host.journal())
            assert not begun or balancer.told()[-1] in ("end", "failed"), f"dead at {moment}: nobody was told"
            calls = len(balancer.events)
            host.recover()
            assert len(balancer.events) == calls, f"dead at {moment}: a second recovery did something"


# How a hook is called: real processes, a real server


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    path = tmp_path / "secrets.env"
    path.write_text(environment_file({"LB_TOKEN": 'to$ken"1', "WEBHOOK": "http://127.0.0.1:1/hooks/s3cr3t"}))
    return path


def test_secrets_are_read_as_they_were_written(secrets: Path) -> None:
    assert secrets_file.read(secrets)["LB_TOKEN"] == 'to$ken"1'
    assert secrets_file.read(secrets.with_name("none")) == {}


@pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\r"])
def test_a_line_of_secrets_ends_where_systemd_ends_it(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "secrets.env"
    path.write_bytes(environment_file({"A": f"one{separator}B=two", "C": "three"}).encode())
    assert secrets_file.read(path) == {"A": f"one{separator}B=two", "C": "three"}


def test_a_line_that_is_not_utf8_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "secrets.env"
    path.write_bytes(b'A="\xff"\nB="two"\n')
    assert secrets_file.read(path) == {"B": "two"}


def test_of_secrets_that_begin_with_each_other_nothing_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "secrets.env"
    path.write_text(environment_file({"A": "abc", "B": "abcdef", "C": "bc"}))
    with pytest.raises(hooks.HookFailed, match=r"status 1: \(not shown\) \(not shown\)$"):
        hooks.call({"argv": ["/bin/sh", "-c", 'echo "$B $A"; exit 1']}, {}, 30, path, "drain")


def test_a_command_gets_the_event_on_stdin_and_secrets_in_its_environment(
    tmp_path: Path, secrets: Path
) -> None:
    program = "import os, sys; open(sys.argv[1], 'w').write(os.environ['LB_TOKEN'] + sys.stdin.read())"
    argv = [sys.executable, "-c", program, str(tmp_path / "got; echo $HOME")]
    hooks.call({"argv": argv}, {"event": "drain", "service": "chät"}, 30, secrets, "drain")
    got = (tmp_path / "got; echo $HOME").read_text()
    assert got.startswith('to$ken"1') and json.loads(got.removeprefix('to$ken"1')) == {
        "event": "drain",
        "service": "chät",
    }


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["/bin/sh", "-c", "echo no such server >&2; exit 3"], "status 3: no such server"),
        (["/bin/false"], "status 1: it said nothing"),
        (["/no/such/program"], "No such file"),
        (["/bin/sh", "-c", 'echo "refused $LB_TOKEN"; exit 1'], "refused (not shown)"),
    ],
)
def test_a_command_that_fails_says_why_without_its_secrets(secrets: Path, argv: list[str], says: str) -> None:
    with pytest.raises(hooks.HookFailed) as failed:
        hooks.call({"argv": argv}, {}, 30, secrets, "drain")
    assert str(failed.value).startswith("the drain hook failed: ") and says in str(failed.value)


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path, secrets: Path) -> None:
    child = tmp_path / "child"
    script = f"sleep 60 & echo $! > {child}; wait"
    with pytest.raises(hooks.HookFailed, match=r"did not end within 0\.5 s"):
        hooks.call({"argv": ["/bin/sh", "-c", script]}, {}, 0.5, secrets, "notify")
    state = Path(f"/proc/{child.read_text().strip()}/stat")
    end = time.monotonic() + 5  # SIGKILL is sent; the kernel takes its moment
    while not ended(state):
        assert time.monotonic() < end, "what the command had started outlived it"
        time.sleep(0.01)


def ended(state: Path) -> bool:
    """Whether the process of that /proc/PID/stat is gone, or only waits to be collected."""
    try:
        return state.read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Webhook(BaseHTTPRequestHandler):
    """Answers as its path says and keeps what it was sent."""

    got: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((self.path, json.loads(body)))
        self.send_response(int(self.path.rpartition("/")[2]))
        self.send_header("Location", "/200")
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def server() -> Iterator[str]:
    Webhook.got.clear()
    listening = HTTPServer(("127.0.0.1", 0), Webhook)
    threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()


def test_a_url_is_posted_the_event(server: str, secrets: Path) -> None:
    hooks.call({"url": f"{server}/200"}, {"event": "end"}, 30, secrets, "notify")
    assert Webhook.got == [("/200", {"event": "end"})]


@pytest.mark.parametrize("status", [302, 404, 500])
def test_an_answer_that_is_not_a_yes_is_a_failure(server: str, secrets: Path, status: int) -> None:
    with pytest.raises(hooks.HookFailed, match=str(status)):
        hooks.call({"url": f"{server}/{status}"}, {}, 30, secrets, "notify")
    assert len(Webhook.got) == 1, "a redirect is not followed: it would turn the POST into a GET"


def test_a_secret_url_is_taken_from_the_services_secrets_and_never_told(server: str, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets.env"
    secrets.write_text(environment_file({"WEBHOOK": f"{server}/s3cr3t/200"}))
    hooks.call({"url_env": "WEBHOOK"}, {"event": "end"}, 30, secrets, "notify")
    assert Webhook.got == [("/s3cr3t/200", {"event": "end"})]
    secrets.write_text(environment_file({"WEBHOOK": "http://s3cr3t bad"}))
    with pytest.raises(hooks.HookFailed) as failed:
        hooks.call({"url_env": "WEBHOOK"}, {}, 30, secrets, "notify")
    assert "s3cr3t" not in str(failed.value)
    with pytest.raises(hooks.HookFailed, match="not among the service's secrets: GONE"):
        hooks.call({"url_env": "GONE"}, {}, 30, secrets, "notify")


@pytest.mark.thorough
def test_the_documented_program_posts_to_a_slack_compatible_webhook(server: str, tmp_path: Path) -> None:
    """Called as a host calls it: it says how a switch ended, as text that mentions and links nobody."""
    page = Path(__file__).parents[2].joinpath("docs/hooks.md").read_text()
    (text,) = re.findall(r"```python\n(#!.*?)```", page, re.DOTALL)
    program, secrets = tmp_path / "tell", tmp_path / "secrets.env"
    program.write_text(text)
    program.chmod(0o755)
    secrets.write_text(environment_file({"CHAT_WEBHOOK": f"{server}/s3cr3t/200"}))
    event = json.loads(page.partition("```json\n")[2].partition("```")[0])
    for kind in (hooks.BEGIN, hooks.VERDICT, hooks.END, hooks.FAILED):
        told = {**event, "event": kind, "text": "gpu-01: chat: <!channel> & <https://evil.example|ok>"}
        hooks.call({"argv": [str(program)]}, told, 30, secrets, "notify")
    plain = "gpu-01: chat: &lt;!channel&gt; &amp; &lt;https://evil.example|ok&gt;"
    marks = (":white_check_mark:", ":rotating_light:")
    assert Webhook.got == [("/s3cr3t/200", {"text": f"{mark} {plain}"}) for mark in marks]
    secrets.write_text(environment_file({"CHAT_WEBHOOK": f"{server}/s3cr3t/404"}))
    with pytest.raises(hooks.HookFailed, match="404") as failed:
        hooks.call({"argv": [str(program)]}, event, 30, secrets, "notify")
    assert "s3cr3t" not in str(failed.value)
