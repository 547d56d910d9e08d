"""`pyinfra-vllm calibrate INVENTORY`: whom it asks, what it asks for, when it must not, and its
exit codes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from seen import seen

from pyinfra_vllm.asking import Hosts
from pyinfra_vllm.config import Overrides, Service
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.on_host.switch.order import CALIBRATION, Order
from pyinfra_vllm.operations import calibration
from pyinfra_vllm.operations.util.remote import Remote
from pyinfra_vllm.rollout import opening
from pyinfra_vllm.rollout.orders import Prepared
from pyinfra_vllm.rollout.progress import PROGRESS, Outcome

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
NIGHT = datetime(2026, 6, 1, 2, 30, tzinfo=UTC)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two hosts that are this machine, with two services that may be restarted at night."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "group_data").mkdir()
    window = {"cron": "0 2 * * *", "duration": "3h", "timezone": "UTC"}
    service = {
        "model": "acme/tiny",
        "runtime": {"version": "0.33.0"},
        "window": window,
        "gate": {"budget_s": 60},
    }
    services = {
        "chat": {**service, "port": 8000, "gpus": (0,)},
        "code": {**service, "port": 8001, "gpus": (1,)},
    }
    (tmp_path / "group_data/all.py").write_text(f"services = {services!r}\n_sudo_user = 'keeper'\n")
    (tmp_path / "hosts.py").write_text("one = ['@local']\nothers = ['gpu-2.invalid']\n")
    return tmp_path


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[Order]:
    """The orders that hosts would have been given; they say that it is done."""
    given: list[Order] = []

    class Switching:
        def __init__(self, host: Any, root: str, prepared: Prepared) -> None:
            self.host, self.order, self.deferred = host, prepared.order, prepared.deferred

        def run(self) -> Outcome:
            if self.deferred:  # as the real one (test_switching.py)
                return self.outcome("deferred", self.deferred)
            given.append(self.order)
            return self.outcome("calibrated", "5 runs")

        def outcome(self, status: str, message: str) -> Outcome:
            return Outcome(self.host.name, self.order.service, status, message, self.order.release)

    running = [seen(service="chat", current="aaaa"), seen(service="code")]
    monkeypatch.setattr(calibration, "Switching", Switching)
    monkeypatch.setattr(calibration, "fact", lambda host, what, root: running)
    return given


def at(moment: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return moment

    monkeypatch.setattr(opening, "datetime", Clock)


def test_it_asks_one_host_for_runs_of_what_it_serves(
    run: Any, project: Path, orders: list[Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    at(NIGHT, monkeypatch)
    ended = run("calibrate", "hosts.py", "--limit", "@local", "--service", "chat", "--runs", "4", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["status"] == "calibrated"
    (order,) = orders
    assert (order.release, order.purpose, order.runs) == ("aaaa", CALIBRATION, 4)
    assert order.criteria["budget_s"] == 60
    assert (
        order.last_start == datetime(2026, 6, 1, 4, 15, tzinfo=UTC).timestamp()
    )  # 45 minutes before it closes


def test_outside_the_window_it_restarts_nothing_unless_told_to(
    run: Any, project: Path, orders: list[Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    at(NOON, monkeypatch)
    words = ("calibrate", "hosts.py", "--limit", "@local", "--service", "chat")
    ended = run(*words)
    assert (ended.code, orders) == (4, [])
    assert "deferred: nothing was restarted; the window is closed" in ended.out
    assert run(*words, "--now", "--reason", "new fans").code == 0
    (order,) = orders
    assert (order.last_start, order.overrides, order.reason) == (None, ("switch_now",), "new fans")


def test_open_window_whose_last_start_has_passed_defers(
    run: Any, project: Path, orders: list[Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    at(NIGHT.replace(hour=4), monkeypatch)  # open until 5:00, and 45 minutes are needed
    ended = run("calibrate", "hosts.py", "--limit", "@local", "--service", "chat")
    assert (ended.code, orders) == (4, [])
    assert "nothing was restarted; the window is open until 2026-06-01 05:00 UTC, but too late" in ended.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("hosts.py",), "--limit HOST is needed"),
        (("hosts.py", "--limit", "*"), "one host at a time"),
        (("hosts.py", "--limit", "@local"), "chat, code: name one by --service"),
        (("hosts.py", "--limit", "@local", "--service", "chta"), "chat, code: name one by --service"),
        (("hosts.py", "--limit", "nobody"), "matches no host"),
        (("hosts.py", "--limit", "@local", "--runs", "2"), "3<=x<=30"),
        (("nowhere.py", "--limit", "x"), "There is no inventory"),
    ],
)
def test_what_it_can_not_be_asked(
    run: Any, project: Path, orders: list[Order], words: tuple[str, ...], says: str
) -> None:
    ended = run("calibrate", *words)
    assert (ended.code, orders) == (2, [])
    assert says in ended.err


def test_whoever_interrupts_it_hears_that_the_host_goes_on(
    run: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*words: object) -> None:
        PROGRESS.goes_on("@local", "chat")
        raise KeyboardInterrupt

    monkeypatch.setattr("pyinfra_vllm.operations.calibration.calibrate", interrupted)
    ended = run("calibrate", "hosts.py", "--limit", "@local", "--service", "chat")
    PROGRESS.followed("@local", "chat")
    assert ended.code == 130
    assert "@local: chat: the switch goes on on @local; `pyinfra-vllm watch hosts.py` follows it" in ended.err


def test_a_service_that_is_not_there_yet_is_a_failure(
    run: Any, project: Path, orders: list[Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    at(NIGHT, monkeypatch)
    ended = run("calibrate", "hosts.py", "--limit", "@local", "--service", "code")
    assert (ended.code, orders) == (1, [])
    assert "no release here yet" in ended.out


def test_without_an_operation_a_host_is_reached_with_the_privileges_of_its_inventory(project: Path) -> None:
    with Hosts("hosts.py", ["@local"]) as hosts:
        (answer,) = hosts.ask(lambda host: Remote(host).arguments)
    assert answer.value is not None and answer.value["_sudo_user"] == "keeper"


def test_a_host_that_says_no_is_asked_no_further(project: Path, orders: list[Order]) -> None:
    def nothing(host: Any, what: Any, root: str) -> Any:
        raise HostError("its files could not be read")

    service = Service(name="chat", model="o/m", runtime={"version": "0.33.0"}, port=1)
    with Hosts("hosts.py", ["@local"]) as hosts, pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "fact", nothing)
        (answer,) = hosts.ask(lambda host: calibration.calibrate(host, "/x", service, Overrides(), 5), None)
    assert (answer.problem, orders) == ("its files could not be read", [])
