"""Waves within one run: no wave begins before every host of the earlier ones has a good verdict."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from seen import AT, seen, switched
from test_release import make

from pyinfra_vllm.config import Overrides, Rollout, Runtime, Service
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.on_host.switch.order import TRIAL, Order
from pyinfra_vllm.operations import switch
from pyinfra_vllm.operations.util import foreseen, refuse, summary
from pyinfra_vllm.rollout import orders as orders_made
from pyinfra_vllm.rollout import plans
from pyinfra_vllm.rollout.orders import Prepared
from pyinfra_vllm.rollout.progress import (
    COMMITTED,
    DEFERRED,
    HELD,
    TAKEN_BACK,
    TRIED,
    UNCHANGED,
    Outcome,
    Progress,
    Wanted,
)


def wanted(host: str, **observed: Any) -> Wanted:
    service = Service(name="chat", model="org/model", runtime=Runtime(version="0.33.0"), port=8000)
    observed.setdefault("proven", observed.get("current"))
    return Wanted(host, "/srv/pyinfra-vllm", service, make(), seen(**observed), "cpu")


def progress(*hosts: str, **settings: Any) -> Progress:
    made = Progress()
    made.settings = Rollout(**settings)
    for host in hosts:
        made.want(wanted(host))
    return made


def end(made: Progress, host: str, status: str) -> None:
    made.record(Outcome(host, "chat", status, ""))


def test_the_canary_is_alone_and_first() -> None:
    made = progress("c", "a", "b")
    assert made.plan("abc") == (("a",), ("b", "c"))
    assert made.obstacle(1) is None
    assert made.obstacle(2) == (HELD, "an earlier wave has no verdict from a")


def test_a_good_canary_opens_the_next_wave() -> None:
    made = progress("a", "b")
    made.plan("ab")
    end(made, "a", COMMITTED)
    assert made.obstacle(2) is None


@pytest.mark.parametrize(
    "status", ["rolled_back", "failed", "refused", "rejected", "restore_failed", "unknown", HELD]
)
def test_a_canary_that_is_not_good_holds_the_rest(status: str) -> None:
    made = progress("a", "b")
    made.plan("ab")
    end(made, "a", status)
    assert made.obstacle(2) == (HELD, "the rollout stopped at a")


def test_failures_up_to_the_limit_do_not_stop() -> None:
    made = progress("a", "b", "c", canary=0, waves=(1,), max_failures=1)
    assert made.plan("abc") == (("a",), ("b", "c"))
    end(made, "a", "rolled_back")
    assert made.obstacle(2) is None


def test_a_deferred_canary_defers_the_rest_without_failing_them() -> None:
    made = progress("a", "b")
    made.plan("ab")
    end(made, "a", DEFERRED)
    assert made.obstacle(2) == (DEFERRED, "an earlier wave was deferred on a")


def test_hosts_that_run_the_release_or_failed_before_are_in_no_wave() -> None:
    made = progress("a", "b", "c")
    release = make().id
    made.want(wanted("a", current=release, running=release))
    assert made.plan({"a", "b"}) == (("b",),)


def test_a_host_whose_process_was_started_from_another_release_needs_a_switch() -> None:
    release = make().id
    assert not wanted("a", current=release, running="other").runs
    assert not wanted("a", current=release, running=None).runs
    assert not wanted("a", current=release, running=release, proven=None).runs, "it is being judged"
    assert not wanted("a", current=release, running=release, proven="other").runs, (
        "it could not be taken back"
    )
    assert wanted("a", current=release, running=release).runs


def test_the_plan_is_fixed_once_the_first_wave_began() -> None:
    made = progress("a", "b")
    first = made.plan("ab")
    made.want(wanted("b", current=make().id, running=make().id))
    assert made.plan("a") == first


ONE_OF_FOUR = "max_unavailable lets 1 of the 4 hosts of chat be away at a time, and d may be already"


def capped(cap: int | str, *hosts: str, **settings: Any) -> Progress:
    """Four hosts serve chat, of which these were staged."""
    made = progress(*hosts, max_unavailable={"chat": cap}, **settings)
    made.serving = {"chat": ("a", "b", "c", "d")}
    return made


def test_a_host_that_was_not_reached_counts_as_unavailable_from_the_first_wave_on() -> None:
    made = capped("25%", "a", "b", "c")
    assert made.plan("abc", lost="d") == (("a",), ("b",), ("c",))
    assert made.obstacle(1, lost="d") == (HELD, ONE_OF_FOUR)
    for host in "abc":
        made.record(Outcome(host, "chat", HELD, ONE_OF_FOUR))
    assert made.obstacle(3, lost="abcd") == (HELD, ONE_OF_FOUR), "and stays the reason for the rest"
    assert made.stopped() == ONE_OF_FOUR


def test_a_host_that_was_not_reached_leaves_room_for_fewer_at_a_time() -> None:
    made = capped(2, "a", "b", "c", canary=0)
    assert made.plan("abc", lost="d") == (("a",), ("b",), ("c",))
    assert made.obstacle(1, lost="d") is None
    assert capped(2, "a", "b", "c", canary=0).plan("abc") == (("a", "b"), ("c",))


def beside_another(made: Progress, *hosts: str) -> None:
    """The hosts also have a service `embed` that runs what is declared, as its outcome says at once."""
    for host in hosts:
        runs = wanted(host, current=make().id, running=make().id)
        service = runs.service.model_copy(update={"name": "embed", "port": 8001})
        made.want(dataclasses.replace(runs, service=service))
        made.record(Outcome(host, "embed", UNCHANGED, "runs the declared release"))


def test_canary_without_a_verdict_of_one_service_holds_the_rest_whatever_its_other_says() -> None:
    made = progress("a", "b")
    made.plan("ab")
    beside_another(made, "a", "b")
    assert made.obstacle(2, lost="a") == (HELD, "an earlier wave has no verdict from a")
    end(made, "a", COMMITTED)
    assert made.obstacle(2) is None


def test_host_given_up_before_one_of_its_services_switched_counts_as_unavailable() -> None:
    made = capped(1, "a", "b", canary=0)
    beside_another(made, "a", "b")
    assert made.plan("ab", lost="a") == (("a",), ("b",))
    assert made.obstacle(1, lost="d") == (HELD, ONE_OF_FOUR)
    assert made.obstacle(1, lost="b") == (HELD, ONE_OF_FOUR.replace("and d", "and b"))


def test_service_left_alone_since_another_of_its_host_failed_is_a_failure_and_no_missing_verdict() -> None:
    made = capped(1, "a", "b", max_failures=1)
    beside_another(made, "a", "b")
    made.want(
        dataclasses.replace(wanted("a"), service=wanted("a").service.model_copy(update={"name": "code"}))
    )
    made.plan("ab")
    end(made, "a", "rolled_back")
    assert made.obstacle(2, lost="a") is None, "it serves, and one may fail"


def test_host_that_cannot_be_told_that_its_last_end_was_seen_switches_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(*words: str) -> None:
        raise HostError("status 255: Connection reset by peer")

    monkeypatch.setattr(switch, "Remote", lambda host: SimpleNamespace(run=lost))
    here: Any = SimpleNamespace(name="a", print_prefix="")
    assert switch.report(None, here, "/srv/pyinfra-vllm", "chat", "t", "since the last run: committed")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("restore_failed", True),
        ("unknown", True),
        ("failed", True),
        ("rolled_back", False),
        ("refused", False),
    ],
)
def test_a_host_that_may_serve_nothing_any_more_counts_as_unavailable(status: str, expected: bool) -> None:
    made = capped(2, "a", "b", "c", max_failures=1)
    assert made.plan("abc") == (("a",), ("b", "c"))
    end(made, "a", status)
    found = made.obstacle(2, lost="a")  # pyinfra gives up whatever host has failed
    assert (found is not None) == expected
    assert found is None or (found[0] == HELD and "and a may be already" in found[1])


def test_held_hosts_are_not_named_as_what_stopped_the_rollout() -> None:
    made = progress("a", "b", "c", canary=1, waves=(1,))
    made.plan("abc")
    end(made, "a", "rolled_back")
    end(made, "b", HELD)
    assert made.obstacle(3) == (HELD, "the rollout stopped at a")
    assert made.stopped() == "the rollout stopped at a"


def test_a_rollout_that_went_well_was_not_stopped() -> None:
    made = progress("a", "b")
    made.plan("ab")
    end(made, "a", COMMITTED)
    end(made, "b", COMMITTED)
    assert made.stopped() == ""


def test_why_it_stopped_stays_the_first_reason_whatever_going_back_brings() -> None:
    made = progress("a", "b", canary=0)
    made.plan("ab")
    end(made, "a", COMMITTED)
    end(made, "b", "rolled_back")
    first = made.stopped()
    end(made, "a", "restore_failed")
    assert made.stopped() == first == "the rollout stopped at b"


def test_a_pause_is_waited_for_once_by_all_hosts_of_a_wave_and_never_by_the_canary() -> None:
    made = progress("a", "b", "c", pause_s=60)
    assert made.opens(1, 1000.0) == 1000.0
    assert made.opens(2, 1500.0) == 1560.0
    assert made.opens(2, 1555.0) == 1560.0, "the second host of the wave, at --parallel 1"


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[Order]:
    """The orders given to hosts, which do as told."""
    given: list[Order] = []

    class Obeyed:
        def __init__(self, host: Any, root: str, prepared: Prepared) -> None:
            self.host, self.order = host, prepared.order

        def run(self) -> Outcome:
            given.append(self.order)
            return Outcome(self.host.name, self.order.service, COMMITTED, "tokens flow", self.order.release)

    monkeypatch.setattr(switch, "Switching", Obeyed)
    return given


def on_host_a(
    monkeypatch: pytest.MonkeyPatch, made: Progress, executing: bool = True, gone: tuple[str, ...] = ()
) -> None:
    """As in an operation that pyinfra prepares or executes on host a."""
    here = SimpleNamespace(name="a", print_prefix="", noop=lambda text: None)
    running = SimpleNamespace(
        is_executing=executing,
        failed_hosts=[SimpleNamespace(name=name) for name in gone],
        inventory=SimpleNamespace(get_active_hosts=lambda: [here]),
        callback_handlers=[],
        add_callback_handler=lambda handler: None,
    )
    for name, stand_in in (("PROGRESS", made), ("state", running), ("host", here)):
        monkeypatch.setattr(switch, name, stand_in)
    monkeypatch.setattr(refuse, "state", running)
    monkeypatch.setattr(refuse, "host", here)


@pytest.mark.parametrize("executing", [True, False])
def test_an_unchanged_host_takes_one_command_where_its_front_is_lost_and_else_none(
    monkeypatch: pytest.MonkeyPatch, executing: bool
) -> None:
    runs = {"current": make().id, "running": make().id}
    for lost, commands in (
        (False, []),
        (True, ["python3 -I /srv/pyinfra-vllm/bin/on-host.pyz --root /srv/pyinfra-vllm recover chat"]),
    ):
        made = Progress()
        made.want(wanted("a", **runs, front_lost=lost))
        on_host_a(monkeypatch, made, executing)
        yielded = switch.wave._inner(1, Rollout(), {"chat": ("a",)}, Overrides())
        assert [command.get_raw_value() for command in yielded] == commands
        assert made.outcomes["a", "chat"].status == UNCHANGED


def test_a_wave_is_held_beside_a_host_that_pyinfra_gave_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made = progress("a")
    on_host_a(monkeypatch, made, gone=("d",))
    monkeypatch.setattr(switch, "_tell_unseen", lambda root, observed: [])
    rollout = Rollout(max_unavailable={"chat": 1})
    (command,) = switch.wave._inner(1, rollout, {"chat": ("a", "b", "c", "d")}, Overrides())
    assert command.function.__name__ == "_fail" and ONE_OF_FOUR in command.args[0]
    assert made.outcomes["a", "chat"].message == ONE_OF_FOUR


def take_back(monkeypatch: pytest.MonkeyPatch, made: Progress, host: str) -> bool:
    monkeypatch.setattr(switch, "PROGRESS", made)
    overrides = Overrides(operator="ann@desk")
    return switch.take_back(None, SimpleNamespace(name=host), "the rollout stopped at b", overrides)


def test_what_this_run_switched_goes_back_to_what_it_was_before_with_the_reason_on_record(
    monkeypatch: pytest.MonkeyPatch, orders: list[Order]
) -> None:
    made = progress()
    made.want(wanted("a", current="before"))
    end(made, "a", COMMITTED)
    assert take_back(monkeypatch, made, "a")
    (order,) = orders
    assert (order.purpose, order.release, order.operator) == ("rollback", "before", "ann@desk")
    assert order.reason == "rollback_all: the rollout stopped at b" and order.last_start is None
    assert made.outcomes["a", "chat"].status == TAKEN_BACK
    assert take_back(monkeypatch, made, "a") and len(orders) == 1, "a second time nothing is left to do"


@pytest.mark.parametrize("status", [UNCHANGED, "rolled_back", HELD])
def test_what_this_run_did_not_switch_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, orders: list[Order], status: str
) -> None:
    made = progress()
    made.want(wanted("a", current="before"))
    end(made, "a", status)
    assert take_back(monkeypatch, made, "a") and orders == []


def test_a_first_release_has_nothing_to_go_back_to_and_says_so(
    monkeypatch: pytest.MonkeyPatch, orders: list[Order]
) -> None:
    made = progress("a")
    end(made, "a", COMMITTED)
    assert take_back(monkeypatch, made, "a") and orders == []
    assert "first release here" in made.outcomes["a", "chat"].message


@pytest.mark.parametrize(("on_failure", "expected"), [("stop", []), ("rollback_all", ["before"])])
def test_a_host_of_which_one_service_failed_takes_its_others_back_at_once(
    monkeypatch: pytest.MonkeyPatch, orders: list[Order], on_failure: str, expected: list[str]
) -> None:
    made = progress(on_failure=on_failure, max_failures=5)
    made.want(wanted("a", current="before"))
    other = wanted("a").service.model_copy(update={"name": "code"})
    made.want(dataclasses.replace(wanted("a", current="old"), service=other))
    ends = iter([COMMITTED, "rolled_back"])
    monkeypatch.setattr(switch, "PROGRESS", made)
    monkeypatch.setattr(
        switch, "_switch", lambda host, item, overrides: Outcome("a", item.service.name, next(ends), "")
    )
    assert not switch.switch_host(None, SimpleNamespace(name="a"), 1, Overrides())
    assert [order.release for order in orders] == expected
    assert made.outcomes["a", "code"].status == "rolled_back"


def test_a_host_whose_prompts_went_away_since_the_check_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"id": "one", "prompt": "1 + 1 =", "kind": "number", "expect": "2"}))
    item = wanted("a", history=[])
    gate = type(item.service.gate)(quality_prompts=str(own))
    asked = dataclasses.replace(item, service=item.service.model_copy(update={"gate": gate}))
    own.unlink()
    host: Any = SimpleNamespace(name="a")
    ended = switch._switch(host, asked, Overrides())
    assert ended.status == "refused"
    assert f"the prompts in {own} could be read when this run began, and can't now" in ended.message


SLOW = {
    "tx": "t", "began": "2026-11-20T01:00:00+00:00", "ended": "2026-11-20T03:30:00+00:00", "reported": True,
    "purpose": "rollout", "outcome": "committed", "from": "x", "to": "y", "turns": {},
}  # fmt: skip


def never_switches(**observed: Any) -> Wanted:
    """A host on which a switch and its rollback took longer than its window is ever open."""
    window = ({"cron": "0 2 * * *", "duration": "3h", "timezone": "UTC"},)
    item = wanted("a", current="x", history=[SLOW], **observed)
    service = Service(**{**item.service.model_dump(exclude_unset=True), "window": window})
    return dataclasses.replace(item, service=service)


def test_host_whose_record_fits_into_no_opening_is_refused_and_not_deferred_for_ever() -> None:
    host: Any = SimpleNamespace(name="a")
    ended = switch._switch(host, never_switches(), Overrides())
    assert ended.status == "refused" and not ended.good
    assert "everything is staged; its window is never open for longer than 3h" in ended.message
    planned = foreseen.service_plan(never_switches(), Overrides())
    assert planned.action == plans.REFUSED and "never open for longer" in planned.reasons[0]
    assert foreseen.service_plan(never_switches(), Overrides(switch_now=True)).action == plans.INSTALL


def test_switch_that_is_under_way_is_followed_whatever_the_record_says() -> None:
    going = {**SLOW, "tx": "u", "outcome": None, "ended": None, "to": make().id}
    observed = seen(current="x", history=[SLOW, going], lock={"holder": "ann"})
    item = dataclasses.replace(never_switches(), observed=observed)
    assert switch._never(item, Overrides()) == ""
    assert switch._never(never_switches(), Overrides()) != ""
    assert foreseen.service_plan(item, Overrides()).action == plans.INSTALL


def test_brackets_in_what_a_host_said_are_no_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = progress("a")
    made.record(Outcome("a", "chat", "failed", "said [/srv] and [red]"))
    monkeypatch.setattr(summary, "PROGRESS", made)
    state: Any = SimpleNamespace(failed_hosts=())
    summary.print_summary(state)
    assert "said [/srv] and [red]" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("verdict", "good"), [("pass", True), ("fail", False), ("inconclusive", False)])
def test_a_trial_asks_for_one_and_its_host_is_well_only_where_it_passed(
    monkeypatch: pytest.MonkeyPatch, verdict: str, good: bool
) -> None:
    made = progress("a", "b")
    made.plan("ab")
    monkeypatch.setattr(switch, "PROGRESS", made)
    monkeypatch.setattr(switch.compiled, "bring", lambda host, item: None)
    asked: list[Order] = []

    class Follower:
        def __init__(self, host: Any, root: str, prepared: Prepared) -> None:
            asked.append(prepared.order)

        def run(self) -> Outcome:
            return Outcome("a", "chat", TRIED, "its answer", "r", verdict)

    monkeypatch.setattr(switch, "Switching", Follower)
    host = SimpleNamespace(name="a", print_prefix="")
    assert switch.switch_host(None, host, 1, Overrides(trial=True)) is good  # type: ignore[arg-type]
    assert [order.purpose for order in asked] == [TRIAL]
    assert made.switched("a") == []


def test_a_dry_run_says_that_a_trial_goes_back() -> None:
    item = wanted("a", current="old", release={"id": "old", "argv": ["vllm"], "checkpoint": {}})
    assert "would be tried, and release old serve again" in switch.preview(item, Overrides(trial=True))
    rejected = wanted("a", rejected={item.release.id: {"at": "", "reason": "slow"}})
    assert "rejected" in switch.preview(rejected, Overrides())
    assert "not be tried: nothing serves" in switch.preview(rejected, Overrides(trial=True))


def test_a_rollout_s_order_says_how_long_the_old_release_sleeps_on_and_a_trial_s_does_not() -> None:
    for declared, seconds in (({"standby": True, "standby_for": "2h"}, 7200.0), ({"standby": True}, 0.0)):
        values = {**wanted("a").service.model_dump(include={"name", "model", "port"}), **declared}
        service = Service(runtime=Runtime(version="0.33.0"), **values)
        made = orders_made.rollout("/srv", service, "r", Overrides())
        assert made.order.standby_for_s == seconds
        assert orders_made.trial("/srv", service, "r", Overrides()).order.standby_for_s == 0.0


LEFT = {
    "by hand": {"purpose": "rollback", "from": "bad", "to": "good", "outcome": "committed", "kept": True},
    "by its soak": {"from": "good", "to": "bad", "outcome": "rolled_back", "kept": True},
}
GATED = [
    {"from": "bad", "to": "good", "outcome": "committed", "kept": True},
    {"from": "good", "to": "bad", "outcome": "rolled_back"},
]


def rollback_of(
    monkeypatch: pytest.MonkeyPatch, told: list[str], release: str | None = None, **seen_: Any
) -> Any:
    """What rollback.py does on a host whose previous release was rejected."""
    rejected = {"bad": {"at": AT, "reason": "users complain; the queue grows"}}
    status = seen(
        current="good", proven="good", previous="bad", staged=["bad", "good"], rejected=rejected, **seen_
    )
    on_host_a(monkeypatch, progress())
    monkeypatch.setattr(switch.host, "noop", told.append)
    monkeypatch.setattr(switch.summary, "install", lambda state: None)
    monkeypatch.setattr(switch, "_tell_unseen", lambda root, observed: [])
    monkeypatch.setattr(switch, "fact", lambda host, kind, **asked: status)
    return list(switch.back._inner("/srv/pyinfra-vllm", "chat", Overrides(), release=release))


@pytest.mark.parametrize("how", LEFT)
def test_a_rollback_given_twice_does_not_return_to_the_release_that_was_left(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    told: list[str] = []
    history = [switched(**LEFT[how]), switched(purpose="trial", outcome="tried", to="other")]
    assert rollback_of(monkeypatch, told, running="good", history=history) == []
    why = "the previous release bad is the one that was left (users complain)"
    gone_back = f"it has gone back already: it runs release good; {why}"
    assert told == [f"chat: {gone_back}"]
    assert switch.PROGRESS.outcomes["a", "chat"] == Outcome("a", "chat", UNCHANGED, gone_back, "good")

    (refused,) = rollback_of(monkeypatch, told, running=None, history=history)
    assert (
        f"{why}; name what it is to go back to with `--data release=ID`, one of bad, good" in refused.args[0]
    )

    (named,) = rollback_of(monkeypatch, told, "bad", running="good", history=history)
    assert named.args[1].order.release == "bad"


def test_a_previous_release_that_only_the_gate_rejected_is_gone_back_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It served before the current one, of which users complain now."""
    history = [switched(**each) for each in GATED]
    (back,) = rollback_of(monkeypatch, [], running="good", history=history)
    assert back.args[1].order.release == "bad"


@pytest.mark.parametrize("purpose", ["rollout", "trial", "calibration"])
def test_a_closed_window_is_no_order_without_a_limit(purpose: str) -> None:
    """Nothing may begin and nothing be measured on, also where nobody looks at `deferred`."""
    long_ago = {"cron": "0 0 29 2 *", "duration": "1m", "timezone": "UTC"}
    values = wanted("a").service.model_dump(include={"name", "model", "port"})
    shut = Service.model_validate({**values, "runtime": {"version": "0.33.0"}, "window": [long_ago]})
    always = Service.model_validate({**values, "runtime": {"version": "0.33.0"}})
    more: Any = (3,) if purpose == "calibration" else ()
    make_order: Any = getattr(orders_made, purpose)
    made = make_order("/srv", shut, "r", Overrides(), *more)
    assert made.deferred is not None and "the window is closed" in made.deferred
    assert made.order.last_start == made.order.measure_until == 0.0
    for free in (
        make_order("/srv", always, "r", Overrides(), *more),
        make_order("/srv", shut, "r", Overrides(switch_now=True), *more),
    ):
        assert (free.deferred, free.order.last_start, free.order.measure_until) == (None, None, None)
