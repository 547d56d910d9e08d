"""Following a switch from the control machine: what a lost connection does to what the operator is told."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from paramiko import SSHException
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.connectors import util
from seen import document
from seen import switched as a_switch

from pyinfra_vllm import pyinfra_command
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.on_host.gate.verdict import Row, Verdict
from pyinfra_vllm.on_host.switch.order import Order
from pyinfra_vllm.operations.util import remote, summary, switching, unit
from pyinfra_vllm.operations.util.switching import Switching
from pyinfra_vllm.rollout import story
from pyinfra_vllm.rollout.orders import Prepared
from pyinfra_vllm.rollout.progress import PROGRESS

ORDER = Order(service="chat", release="a" * 12, operator="ann")
ENDED = {
    "tx": "t",
    "entries": [],
    "progress": [],
    "step": None,
    "active": False,
    "end": {"outcome": "committed", "reason": "no worse"},
}


@dataclass
class FarHost:
    """Answers the host program's verbs; what is an exception is raised.

    It can be reached again at the third attempt.
    """

    answers: dict[str, list[Any]]
    connected: bool = True
    attempts: int = 0
    asked: list[str] = field(default_factory=list)
    name: str = "gpu1"
    print_prefix: str = ""
    current_op_global_arguments: dict[str, Any] = field(default_factory=lambda: {"_sudo": True})

    def run_shell_command(self, command: StringCommand, **options: Any) -> tuple[bool, SimpleNamespace]:
        assert self.connected, "a client that did not connect has no transport to send anything through"
        words = command.get_raw_value().split()
        self.asked += words
        verb = next((word for word in words if word in self.answers), None)
        if verb is None:
            return True, SimpleNamespace(stdout="", stderr="")
        given = self.answers[verb]
        answer = given.pop(0) if len(given) > 1 else given[0]
        if isinstance(answer, Exception):
            raise answer
        return True, SimpleNamespace(stdout=json.dumps(answer), stderr="")

    def disconnect(self) -> None:
        self.attempts += 1
        self.connected = False

    def connect(self, **options: Any) -> None:
        if self.attempts < 3:
            raise ConnectError("no route to host")
        self.connected = True


def switched(monkeypatch: pytest.MonkeyPatch, **answers: list[Any]) -> tuple[FarHost, Any]:
    monkeypatch.setattr(unit, "POLL_S", 0.0)
    monkeypatch.setattr(switching, "POLL_S", 0.0)
    host = FarHost({"status": [[document()]], "reported": [{}], **answers})
    fake: Any = host
    return host, Switching(fake, "/srv/x", Prepared(ORDER)).run()


def test_long_network_outage_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = [TimeoutError("no answer in 30 s"), SSHException("SSH session not active"), ENDED]
    host, outcome = switched(monkeypatch, follow=lost)
    assert (outcome.status, outcome.message) == ("committed", "no worse")
    assert host.attempts == 4


def test_a_host_that_stays_away_ends_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit, "LOST_CONTACT_S", -1.0)
    _, outcome = switched(monkeypatch, follow=[TimeoutError("no answer in 30 s")])
    assert outcome.status == "unknown"
    assert "no contact for" in outcome.message and switching.BY_ITSELF in outcome.message


RUNS = {"current": ORDER.release, "running": ORDER.release, "proven": ORDER.release}


@pytest.mark.parametrize(
    ("purpose", "status"),
    [
        ("rollout", "unchanged"),
        ("rollback", "unchanged"),
        ("trial", "committed"),
        ("calibration", "committed"),
    ],
)
def test_what_another_run_has_switched_to_meanwhile_is_not_restarted(purpose: str, status: str) -> None:
    order = dataclasses.replace(ORDER, purpose=purpose)
    host: Any = FarHost({"status": [[document(**RUNS)]], "reported": [{}], "follow": [ENDED]})
    outcome = Switching(host, "/srv/x", Prepared(order)).run()
    assert outcome.status == status
    assert ("systemd-run" in host.asked) == (status != "unchanged")


@pytest.mark.parametrize("under_way", [False, True])
def test_order_that_the_window_defers_is_never_sent_and_a_switch_under_way_is_followed(
    under_way: bool,
) -> None:
    """Every operation sends its orders from here, so none has to ask for itself."""
    seen = going(ORDER.release) if under_way else document()
    host: Any = FarHost({"status": [[seen]], "reported": [{}], "follow": [ENDED]})
    outcome = Switching(host, "/srv/x", Prepared(ORDER, deferred="the window is closed")).run()
    expected = ("committed", "no worse") if under_way else ("deferred", "the window is closed")
    assert (outcome.status, outcome.message) == expected
    assert "systemd-run" not in host.asked


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(switching.logger, "info", said.append)
    return said


def test_a_failed_start_shows_its_cause_first_then_the_traceback_then_the_whole_log(
    monkeypatch: pytest.MonkeyPatch, screen: list[str]
) -> None:
    cause, traceback = "EngineCore: ValueError: no", ["Traceback (most recent call last):", "ValueError: no"]
    end = {"outcome": "rolled_back", "reason": f"vLLM can't start: {cause}", "log": [cause, *traceback]}
    switched(monkeypatch, follow=[{**ENDED, "end": end}])
    assert screen == [
        f"chat: rolled_back: vLLM can't start: {cause}",
        "chat: | Traceback (most recent call last):",
        "chat: | ValueError: no",
        "chat: the whole log of that start: `less /srv/x/chat/evidence/t/service.log` on gpu1",
    ]


def metric(phase: str, name: str, verdict: str, after: float, **more: Any) -> dict[str, Any]:
    known = {"before": 1.0, "ratio": after, "interval": [after - 0.05, after + 0.05], "limit": 1.05}
    return {
        "phase": phase, "name": name, "verdict": verdict, "after": after, "decides": True, **known, **more,
    }  # fmt: skip


ERRORS = metric("", "error_rate", "pass", 0.0, ratio=None, interval=None)
FEWER = metric(
    "c8", "tokens_per_s", "fail", 0.5, limit=0.95, allowed_by="gate.margins.c8.tokens_per_s = 0.55"
)
LONGER = metric("c8", "e2e_s", "fail", 2.0, allowed_by="gate.margins.c8.e2e_s = 1.05")
OPEN = metric("c1", "e2e_s", "inconclusive", 1.04, doubt="the old release itself was slower for a while")
SHOWN = metric("c8", "ttft_s", "fail", 3.0, decides=False)
NOTE = "not calibrated: intervals come from within these runs"
FEWER_TOLD = (
    "c8 tokens_per_s: worse: 1 before, 0.5 after, ratio 0.500 [0.450, 0.550], the limit is 0.950;"
    " gate.margins.c8.tokens_per_s = 0.55 would allow it"
)
LONGER_TOLD = (
    "c8 e2e_s: worse: 1 before, 2 after, ratio 2.000 [1.950, 2.050], the limit is 1.050;"
    " gate.margins.c8.e2e_s = 1.05 would allow it"
)
OPEN_TOLD = (
    "c1 e2e_s: can't tell: 1 before, 1.04 after, ratio 1.040 [0.990, 1.090], the limit is 1.050; the old"
    " release itself was slower for a while"
)


def judged(verdict: str, *metrics: dict[str, Any], reasons: tuple[str, ...] = ()) -> dict[str, Any]:
    """The journal's entry, as on_host/switch/transaction.py writes it."""
    deciding = [
        Row.read(row, "metric").sentence() for row in metrics if row["decides"] and row["verdict"] == verdict
    ]
    return {
        "at": "2026-11-28T00:00:00+00:00", "tx": "t", "step": "judge", "state": "done", "verdict": verdict,
        "metrics": list(metrics), "reasons": [*(reasons or deciding), NOTE],
    }  # fmt: skip


def ended(verdict: dict[str, Any], outcome: str, more: str = "") -> list[dict[str, Any]]:
    """The answers of a host that has judged, and then ends."""
    end = {"outcome": outcome, "reason": f"{Verdict.read(verdict, 'verdict').conclusion()}{more}"}
    return [{**ENDED, "entries": [verdict], "active": True, "end": None}, {**ENDED, "end": end}]


def test_a_failed_verdict_has_a_line_for_each_criterion_and_the_outcome_names_them(
    monkeypatch: pytest.MonkeyPatch, screen: list[str]
) -> None:
    verdict = judged("fail", ERRORS, OPEN, FEWER, SHOWN, LONGER)
    _, outcome = switched(monkeypatch, follow=ended(verdict, "rolled_back", "; traffic still stays away"))
    short = "2 criteria failed: c8 tokens_per_s, c8 e2e_s; traffic still stays away"
    assert screen == [
        "chat:   error_rate  1 -> 0          limit 1.05  pass",
        "chat:   c8 ttft_s   1 -> 3  x3.000  informational",
        "chat: verdict: fail: 2 criteria failed",
        f"chat:   {FEWER_TOLD}",
        f"chat:   {LONGER_TOLD}",
        f"chat:   {OPEN_TOLD}",
        f"chat:   {NOTE}",
        f"chat: rolled_back: {short}",
    ]
    assert outcome.message == short


LOST = "the old release served when the switch began and was down when it was to be measured"


@pytest.mark.parametrize(
    ("verdict", "lines", "reason"),
    [
        (
            judged("inconclusive", OPEN),
            ["verdict: inconclusive: 1 criterion undecided", f"  {OPEN_TOLD}"],
            "1 criterion undecided: c1 e2e_s",
        ),
        (judged("inconclusive", reasons=(LOST,)), [f"verdict: inconclusive: {LOST}"], LOST),
        (
            judged("pass", reasons=("3 criteria passed",)),
            ["verdict: pass: 3 criteria passed"],
            "3 criteria passed",
        ),
    ],
)
def test_a_verdict_begins_with_what_decided_it(
    monkeypatch: pytest.MonkeyPatch, screen: list[str], verdict: dict[str, Any], lines: list[str], reason: str
) -> None:
    switched(monkeypatch, follow=ended(verdict, "rolled_back"))
    told = [*lines, f"  {NOTE}", f"rolled_back: {reason}"]
    assert screen == [f"chat: {line}" for line in told]


def test_a_reason_that_no_criterion_gave_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    judging, over = ended(judged("fail", FEWER), "rolled_back")
    over["end"]["reason"] = "it stopped generating tokens after the measurement"
    _, outcome = switched(monkeypatch, follow=[judging, over])
    assert outcome.message == "it stopped generating tokens after the measurement"


def test_a_damaged_verdict_leaves_the_reason_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    judging, over = ended(judged("fail", FEWER), "rolled_back")
    judging["entries"][0]["metrics"] = [{**FEWER, "interval": 1}]
    _, outcome = switched(monkeypatch, follow=[judging, over])
    assert outcome.message == FEWER_TOLD


def test_on_a_terminal_every_line_of_a_verdict_fits(
    monkeypatch: pytest.MonkeyPatch, screen: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(switching.SCREEN, "interactive", True)
    switched(monkeypatch, follow=ended(judged("fail", FEWER, LONGER), "rolled_back"))
    assert all(line.startswith("chat: ") and len(line) <= 76 for line in screen)  # pyinfra's log indents by 4
    words = " ".join(" ".join(line.removeprefix("chat: ").split()) for line in screen)
    assert f"{FEWER_TOLD} {LONGER_TOLD}" in words


def test_an_outage_is_told_once(monkeypatch: pytest.MonkeyPatch, screen: list[str]) -> None:
    lost = TimeoutError("no answer in 30 s")
    switched(monkeypatch, follow=[lost, lost, lost, {**ENDED, "active": True, "end": None}, lost, ENDED])
    assert len([line for line in screen if "reconnecting" in line]) == 2


def test_the_step_that_is_under_way_is_shown_with_its_times_and_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(switching.SCREEN, "_show", lambda host, working: shown.append(str(working)))
    ready = {"name": "ready", "elapsed_s": 61.0, "limit_s": 240}
    measuring = {"name": "measure-after", "elapsed_s": 2.0, "limit_s": None}
    news = {**ENDED, "active": True, "end": None}
    far = ["2026-11-28T00:00:00+00:00 ~ after: c1 round 1 of 9", "2026-11-28T00:00:01+00:00 news"]
    switched(
        monkeypatch,
        follow=[
            {**news, "step": ready},
            {**news, "step": measuring, "progress": far},
            {**news, "step": measuring},
            {**news, "step": ready},
            ENDED,
        ],
    )
    assert shown == [
        "chat: wait for tokens: 1:01 of 4:00",
        "chat: measure the new release: 0:02, after: c1 round 1 of 9",
        "chat: measure the new release: 0:02, after: c1 round 1 of 9",
        "chat: wait for tokens: 1:01 of 4:00",
    ]


def test_how_far_a_step_is_is_no_news() -> None:
    assert story.tell([], ["2026-11-28T00:00:00+00:00 ~ c1 round 1", "2026-11-28T00:00:01+00:00 news"]) == [
        "news"
    ]


def test_an_outcome_that_was_seen_is_not_lost_with_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    _, outcome = switched(monkeypatch, follow=[ENDED], reported=[EOFError()])
    assert outcome.status == "committed"


def test_a_connection_lost_before_the_switch_was_followed_says_that_the_host_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, outcome = switched(monkeypatch, status=[SSHException("SSH session not active")])
    assert outcome.status == "unknown"
    assert (
        "SSH session not active" in outcome.message
        and "Nothing was touched unless the switch had begun" in outcome.message
    )


def going(release: str) -> dict[str, Any]:
    newest = a_switch(tx="t", to=release, purpose="rollout", kept=False)
    return document(lock={"holder": "bob"}, history=[a_switch(tx="s"), newest])


def test_a_switch_that_is_under_way_is_followed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rollout, started again while the first is unjudged: neither unchanged nor begun twice."""
    launched: list[Order] = []
    monkeypatch.setattr(switching, "launch", lambda remote, root, order: launched.append(order))
    _, outcome = switched(monkeypatch, status=[[going(ORDER.release)]], follow=[ENDED])
    assert outcome.status == "committed" and launched == []


def test_a_switch_to_another_release_is_refused_with_who_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _, outcome = switched(monkeypatch, status=[[going("b" * 12)]], follow=[ENDED])
    assert outcome.status == "refused" and "bob has held it" in outcome.message


def test_a_rollback_that_fails_is_told_at_once_while_the_host_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing = {**ENDED, "end": None, "active": True, "failing": "the port is taken"}
    _, outcome = switched(monkeypatch, follow=[failing])
    assert outcome.status == "restore_failed" and "the port is taken" in outcome.message
    assert "goes on trying by itself" in outcome.message


def test_between_a_switch_and_its_recovery_nothing_is_active_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pause = {**ENDED, "end": None, "failing": None}
    _, outcome = switched(monkeypatch, follow=[pause, pause, ENDED])
    assert outcome.status == "committed"


def test_whoever_ends_the_run_hears_that_the_host_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*words: object) -> None:
        pyinfra_command.end_run(2, None)

    monkeypatch.setattr(Switching, "_watch", interrupted)
    with pytest.raises(SystemExit) as ended:
        switched(monkeypatch, follow=[ENDED])
    assert ended.value.code == 1
    assert (
        "gpu1: chat: the switch goes on on gpu1; `pyinfra-vllm watch` follows it" in capsys.readouterr().err
    )
    (row,) = summary.rows(SimpleNamespace(failed_hosts=[]))  # type: ignore[arg-type]
    assert row.status == "under way"
    PROGRESS.followed("gpu1", "chat")


def test_sudo_that_asks_for_a_password_in_the_middle_is_an_error_and_no_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(util, "getpass", lambda prompt: pytest.fail("it would wait for ever"))
    remote.never_ask()
    with pytest.raises(HostError, match="sudo asks for a password"):
        util.getpass("password: ")
