"""The unattended rollout: nothing outside the window, once inside it, and the units that make it tick."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from seen import seen, switched

from pyinfra_vllm.asking import Answer
from pyinfra_vllm.checkpoint import Checkpoint, File, Lock
from pyinfra_vllm.commands.schedule import schedule
from pyinfra_vllm.errors import DeclarationError, RolloutError
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.state.observed import Observed
from pyinfra_vllm.report.looking import Look, Wish
from pyinfra_vllm.schedule import due
from pyinfra_vllm.schedule import tick as ticking
from pyinfra_vllm.schedule.units import cron_line, daily, units

OLD, NEW = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
INVENTORY = """
prod = [("one", {"ssh_hostname": "127.0.0.1", "ssh_port": 1}), ("two", {"ssh_hostname": "127.0.0.1", "ssh_port": 1})]
"""  # noqa: E501
ALL = """
window = {"cron": "0 2 * * *", "duration": "3h", "timezone": "Europe/Berlin"}
services = {"chat": {"model": "acme/tiny-awq", "runtime": {"version": "0.33.0"}, "port": 8000}}
"""
# 02:00 to 05:00 in Berlin in November is 01:00 to 04:00 in UTC; the estimate of a switch is 45 minutes.
NIGHT = datetime(2026, 11, 21, 1, 30, tzinfo=UTC)
DAY = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
LATE = datetime(2026, 11, 21, 3, 30, tzinfo=UTC)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "group_data").mkdir()
    (tmp_path / "group_data/all.py").write_text(ALL)
    (tmp_path / "deploy.py").write_text("")
    (tmp_path / "prod.py").write_text(INVENTORY)
    files = tuple(File(path=path, size=1, sha256="0" * 64) for path in ("config.json", "model.safetensors"))
    config = {"model_type": "qwen3"}
    Lock(
        [Checkpoint(repo="acme/tiny-awq", revision="main", commit="0" * 40, files=files, config=config)]
    ).dump()
    return tmp_path


def observed(**values: Any) -> Observed:
    return seen(**{"current": OLD, "running": OLD, "proven": values.get("current", OLD), **values})


def look(wish: Wish | None = None, **values: Any) -> Look:
    return Look([observed(**values)], {}, (wish or Wish("chat", "acme/tiny-awq", NEW),))


class Fleet:
    """A simulated fleet: its answers, the hosts that were asked, and the runs that were started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, Answer[Look]] = {
            "one": Answer("one", look()),
            "two": Answer("two", look()),
        }
        self.asked = 0
        self.ran: list[Sequence[str]] = []
        self.said: list[str] = []
        self.code = 0
        monkeypatch.setattr(ticking.Hosts, "ask", lambda hosts, question: self._ask(hosts))

    def _ask(self, hosts: ticking.Hosts) -> list[Answer[Look]]:
        self.asked += 1
        return [self.answers[name] for name in hosts.names]

    def tick(self, at: datetime = NIGHT, limit: Sequence[str] = (), dry: bool = False) -> ticking.Tick:
        def run(words: Sequence[str]) -> int:
            self.ran.append(words)
            return self.code

        return ticking.tick(str(Path("prod.py").resolve()), limit, at, self.said.append, run, dry)


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    return Fleet(monkeypatch)


def limits(words: Sequence[str]) -> list[str]:
    return [words[place + 1] for place, word in enumerate(words) if word == "--limit"]


# When


def test_outside_the_window_no_host_is_asked(fleet: Fleet) -> None:
    done = fleet.tick(DAY)
    assert (done.exit_code, fleet.asked, fleet.ran) == (0, 0, [])
    assert "the next opens at 2026-11-22T02:00:00+01:00" in done.said


def test_too_late_for_a_switch_and_its_rollback_is_closed(fleet: Fleet) -> None:
    done = fleet.tick(LATE)
    assert (done.exit_code, fleet.ran, done.said) == (0, [], "nothing is due")
    assert {finding.kind for finding in done.decision.findings} == {due.CLOSED}
    assert "may take 45m (the default)" in done.decision.findings[0].why


def test_a_host_that_is_known_to_be_quick_is_not_too_late(fleet: Fleet) -> None:
    times = {"began": "2026-11-20T01:00:00+00:00", "ended": "2026-11-20T01:10:00+00:00"}
    quick = switched(**times, purpose="rollout", outcome="committed", to="y", **{"from": "x"})
    fleet.answers["two"] = Answer("two", look(history=[quick]))
    fleet.tick(LATE)
    assert limits(fleet.ran[0]) == ["two"]


def slow_record() -> dict[str, Any]:
    """A switch and its rollback took so long here that no opening of three hours has room for them."""
    times = {"began": "2026-11-20T01:00:00+00:00", "ended": "2026-11-20T03:30:00+00:00"}
    return switched(**times, purpose="rollout", outcome="committed", to="y", **{"from": "x"})


def test_host_whose_record_fits_into_no_opening_is_told_and_shows_in_the_exit_code(fleet: Fleet) -> None:
    fleet.answers["two"] = Answer("two", look(history=[slow_record()]))
    done = fleet.tick()
    assert limits(fleet.ran[0]) == ["one"] and done.exit_code == 1
    assert [finding.kind for finding in done.decision.findings] == [due.DUE, due.NEVER]
    (told,) = [line for line in fleet.said if line.startswith("two chat: never: ")]
    assert "its window is never open for longer than 3h" in told
    assert "measured here in 1 switch" in told and "switch_now=true" in told
    fleet.answers["two"] = Answer("two", look(current=NEW, running=NEW, history=[slow_record()]))
    assert fleet.tick().exit_code == 0, "it needs no switch"


def test_inside_the_window_what_is_due_is_rolled_out_by_a_named_operator(fleet: Fleet) -> None:
    done = fleet.tick()
    (words,) = fleet.ran
    assert Path(words[0]).name == "pyinfra" and words[2:4] == ["deploy.py", "-y"]
    assert limits(words) == ["one", "two"]
    assert f"operator=schedule@{os.uname().nodename}" in words
    assert done.exit_code == 0


def test_the_exit_code_of_pyinfra_is_kept(fleet: Fleet) -> None:
    fleet.code = 1
    assert fleet.tick().exit_code == 1


def test_a_dry_tick_runs_nothing(fleet: Fleet) -> None:
    done = fleet.tick(dry=True)
    assert fleet.ran == [] and done.ran and done.said == "due: one, two"


def test_a_limit_is_kept(fleet: Fleet) -> None:
    fleet.tick(limit=["two"])
    assert limits(fleet.ran[0]) == ["two"]


# For whom


def rejected(**values: Any) -> dict[str, Any]:
    return {"rejected": {NEW: {"at": "", "reason": "worse", **values}}}


def tried(release: str, began: str, outcome: str) -> dict[str, Any]:
    return {"history": [switched(to=release, began=began, outcome=outcome)]}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"current": NEW, "running": NEW}, due.RUNS),
        ({"current": NEW, "running": OLD}, due.DUE),
        ({"lock": {"holder": "alice"}}, due.BUSY),
        (rejected(), due.REJECTED),
        (rejected(criteria=Criteria().as_dict()), due.REJECTED),
        (
            rejected(criteria=Criteria(soak_s=1).as_dict()),
            due.DUE,
        ),
        (
            tried(NEW, "2026-11-21T01:05:00+00:00", "rolled_back"),
            due.TRIED,
        ),
        (
            tried(NEW, "2026-11-20T01:05:00+00:00", "rolled_back"),
            due.DUE,
        ),
        (
            tried(OLD, "2026-11-21T01:05:00+00:00", "rolled_back"),
            due.DUE,
        ),
        (
            tried(NEW, "2026-11-21T01:05:00+00:00", "interrupted"),
            due.DUE,
        ),
        ({}, due.DUE),
    ],
)
def test_what_a_service_needs(fleet: Fleet, values: dict[str, Any], kind: str) -> None:
    fleet.answers["one"] = Answer("one", look(**values))
    done = fleet.tick(limit=["one"])
    assert [finding.kind for finding in done.decision.findings] == [kind]
    assert bool(fleet.ran) == (kind == due.DUE)


def test_where_everything_runs_nothing_is_run(fleet: Fleet) -> None:
    for name in fleet.answers:
        fleet.answers[name] = Answer(name, look(current=NEW, running=NEW))
    done = fleet.tick()
    assert (done.exit_code, done.said, fleet.ran) == (0, "nothing is due", [])


def test_after_a_rejection_the_rest_is_left_alone(fleet: Fleet) -> None:
    fleet.answers["one"] = Answer("one", look(rejected={NEW: {"at": "", "reason": "worse"}}))
    done = fleet.tick()
    assert (done.exit_code, done.said, fleet.ran) == (0, "the rollout stopped at one", [])


def test_as_many_failures_as_were_allowed_do_not_stop_the_rest(fleet: Fleet) -> None:
    Path("group_data/all.py").write_text(ALL + "rollout = {'max_failures': 1}\n")
    fleet.answers["one"] = Answer("one", look(rejected={NEW: {"at": "", "reason": "worse"}}))
    assert limits((fleet.tick(), fleet.ran[0])[1]) == ["two"]


def test_a_host_that_is_down_does_not_stop_the_others_and_shows_in_the_exit_code(fleet: Fleet) -> None:
    fleet.answers["one"] = Answer("one", problem="not reached: timed out")
    done = fleet.tick()
    assert limits(fleet.ran[0]) == ["two"] and done.exit_code == 1
    assert fleet.said[0] == "one chat: unknown: not reached: timed out"


def test_a_service_that_cannot_be_planned_is_told(fleet: Fleet) -> None:
    for name in fleet.answers:
        fleet.answers[name] = Answer(name, look(Wish("chat", "acme/tiny-awq", None, "no GPU fits")))
    done = fleet.tick()
    assert done.exit_code == 1 and fleet.ran == [] and "no GPU fits" in fleet.said[0]


def test_without_a_window_a_release_is_tried_once_a_day(fleet: Fleet) -> None:
    Path("group_data/all.py").write_text(ALL.replace("window = {", "unused = {"))
    began = (DAY - timedelta(hours=2)).isoformat()
    history = [switched(to=NEW, began=began, outcome="rolled_back")]
    fleet.answers["one"] = Answer("one", look(history=history))
    assert fleet.tick(DAY, ["one"]).decision.findings[0].kind == due.TRIED
    assert fleet.tick(DAY + timedelta(days=1), ["one"]).decision.findings[0].kind == due.DUE


# Alone, and only where it can work


def test_two_ticks_never_overlap(fleet: Fleet) -> None:
    path = ticking._lock_file(str(Path("prod.py").resolve()))
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = fleet.tick()
    assert (done.exit_code, fleet.asked) == (0, 0) and "another run" in done.said
    assert fleet.tick().ran


def test_a_timer_and_a_session_share_the_lock(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ticking._lock_file("prod.py")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert ticking._lock_file("prod.py") == path


def test_a_lock_that_can_not_be_written_is_told(
    fleet: Fleet, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "a file").write_text("")
    monkeypatch.setenv("HOME", str(project / "a file"))
    with pytest.raises(DeclarationError, match="can't be written: Not a directory"):
        fleet.tick()
    assert fleet.asked == 0


def test_a_broken_declaration_is_refused_before_any_host(fleet: Fleet) -> None:
    Path("group_data/all.py").write_text(ALL.replace('"port": 8000', '"prot": 8000'))
    with pytest.raises(DeclarationError, match="prot"):
        fleet.tick()
    assert fleet.asked == 0


def test_outside_the_project_it_says_so(fleet: Fleet) -> None:
    Path("deploy.py").unlink()
    with pytest.raises(DeclarationError, match=r"no deploy\.py"):
        fleet.tick()


def test_a_tick_through_the_command_asks_real_hosts(project: Path) -> None:
    (project / "group_data/all.py").write_text(ALL.replace("window = {", "unused = {"))
    done = CliRunner().invoke(schedule, [str(project / "prod.py"), "--tick", "--json"], standalone_mode=False)
    told = json.loads(done.stdout)
    assert done.return_value == told["exit_code"] == 1 and told["ran"] == []
    assert all("not reached" in finding["why"] for finding in told["findings"])


# Units


def test_systemd_accepts_the_units_and_reads_the_words_back(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd here")
    odd = tmp_path / "a b 100%"
    odd.mkdir()
    made = units("inventory/my prod.py", ["/bin/echo", "$HOME", "50%", 'a"b'], odd, account="root")
    paths = [tmp_path / name for name in made.files]
    for path in paths:
        path.write_text(made.files[path.name])
    checked = subprocess.run(
        [analyze, "verify", "--man=no", *paths], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    assert made.name == "pyinfra-vllm-schedule-my-prod"


def test_systemd_accepts_the_daily_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd here")
    made = daily("prod.py", ["/bin/echo", "50%"], tmp_path, "09:00", account="root")
    for name, text in made.files.items():
        (tmp_path / name).write_text(text)
    paths = [tmp_path / name for name in made.files]
    checked = subprocess.run(
        [analyze, "verify", "--man=no", *paths], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_units_say_what_was_asked(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text("HF_TOKEN=hf_private")
    made = units("prod.py", ["/x/pyinfra-vllm"], tmp_path, 10, "deploy", secrets)
    service, timer = made.files.values()
    assert "User=deploy\n" in service and f"EnvironmentFile={secrets}\n" in service
    assert "Type=oneshot" in service and "OnCalendar=*:0/10" in timer
    assert "hf_private" not in service + timer
    own = units("prod.py", ["/x/pyinfra-vllm"], tmp_path)
    assert not own.system and "User=" not in own.files[f"{own.name}.service"]
    assert own.systemctl("enable") == ["systemctl", "--user", "enable"]


def lax(tmp_path: Path, kind: str) -> Path:
    """An environment file that somebody else can decide about, in one way."""
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc/night.env"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a fifo":
        os.mkfifo(path, 0o600)
    elif kind != "missing":
        path.write_text("HF_TOKEN=hf_private")
        path.chmod({"writable": 0o602, "group writable": 0o620, "readable": 0o644}.get(kind, 0o600))
    if kind == "in a writable folder":
        (tmp_path / "etc").chmod(0o777)
    if kind == "of another user":
        os.chown(path, 12345, 0)
    if kind == "in another user's folder":
        os.chown(tmp_path / "etc", 12345, 0)
    if kind == "a link to a writable one":
        path.chmod(0o606)
        (tmp_path / "link").symlink_to(path)
        return tmp_path / "link"
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "it can't be looked at (No such file or directory): make it"),
        ("a folder", "it is no regular file"),
        ("a fifo", "it is no regular file"),
        ("writable", "(mode 0602), and it has secrets: `chmod 600"),
        ("group writable", "(mode 0620)"),
        ("readable", "(mode 0644)"),
        ("in a writable folder", "(mode 0777) and replace it"),
        ("of another user", "it belongs to the user with id 12345"),
        ("in another user's folder", "belongs to the user with id 12345, who could replace it"),
        ("a link to a writable one", "(mode 0606)"),
    ],
)
def test_an_environment_file_that_others_decide_about_is_refused(
    tmp_path: Path, kind: str, says: str
) -> None:
    if "another" in kind and os.geteuid():
        pytest.skip("only root can give a file away")
    path = lax(tmp_path, kind)
    done = CliRunner().invoke(schedule, ["prod.py", "--environment-file", str(path)], standalone_mode=False)
    assert isinstance(done.exception, DeclarationError), done.output
    assert says in str(done.exception) and "No timer was written." in str(done.exception)
    assert "hf_private" not in str(done.exception) + done.output


def test_an_environment_file_of_ones_own_is_named_by_its_real_path(tmp_path: Path) -> None:
    path = lax(tmp_path, "good")
    (tmp_path / "link").symlink_to(path)
    words = ["prod.py", "--environment-file", str(tmp_path / "link")]
    done = CliRunner().invoke(schedule, words, standalone_mode=False, catch_exceptions=False)
    assert f"EnvironmentFile={path}\n" in done.output


def test_ticks_are_evenly_spaced_or_refused(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match="--every 7"):
        units("prod.py", ["x"], tmp_path, 7)
    with pytest.raises(DeclarationError, match="line break"):
        units("prod.py", ["a\nb"], tmp_path)


def test_the_cron_line_is_what_cron_reads(tmp_path: Path) -> None:
    assert cron_line(["/x/y", "a b", "50%"], Path("/srv/it's"), 5) == (
        """*/5 * * * * cd '/srv/it'"'"'s' && /x/y 'a b' 50\\%"""
    )
    assert cron_line(["x"], Path("/"), 60).startswith("0 * * * * ")


def test_the_command_prints_and_writes_nothing(project: Path) -> None:
    done = CliRunner().invoke(schedule, ["prod.py", "--json"], standalone_mode=False)
    told = json.loads(done.stdout)
    assert done.return_value == 0 and told["installed"] is False
    assert [Path(name).suffix for name in told["files"]] == [".service", ".timer"]
    assert not any(Path(name).exists() for name in told["files"])
    plain = CliRunner().invoke(schedule, ["prod.py"], standalone_mode=False).stdout
    assert "schedule" in plain and "--tick" in plain and "crontab" in plain


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that notes how it was called, for units of the user's own systemd."""
    program, log = tmp_path / "bin/systemctl", tmp_path / "calls"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$*" >> {log}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return log


def test_install_writes_the_units_and_starts_the_timer(systemctl: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(schedule, ["prod.py", "--install", "--every", "15"], standalone_mode=False)
    assert done.return_value == 0, done.output
    folder = tmp_path / "config/systemd/user"
    timer, service = sorted(folder.iterdir(), reverse=True)
    assert "*:0/15" in timer.read_text()
    assert f"WorkingDirectory={tmp_path}" in service.read_text() and "--tick" in service.read_text()
    calls = systemctl.read_text().splitlines()
    assert calls == ["--user daemon-reload", "--user enable --now pyinfra-vllm-schedule-prod.timer"]


def test_doctor_gets_a_timer_of_its_own(systemctl: Path, tmp_path: Path) -> None:
    words = ["prod.py", "--install", "--doctor", "09:30", "--limit", "one"]
    done = CliRunner().invoke(schedule, words, standalone_mode=False)
    assert done.return_value == 0, done.output
    folder = tmp_path / "config/systemd/user"
    assert "OnCalendar=*-*-* 09:30:00" in (folder / "pyinfra-vllm-doctor-prod.timer").read_text()
    service = (folder / "pyinfra-vllm-doctor-prod.service").read_text()
    assert '"doctor" "prod.py" "--limit" "one"' in service and "--tick" not in service
    assert "--user enable --now pyinfra-vllm-doctor-prod.timer" in systemctl.read_text().splitlines()


@pytest.mark.parametrize("at", ["9:30", "24:00", "soon", "09:30\nOnBoot=1"])
def test_a_time_of_day_that_is_none_is_refused(systemctl: Path, at: str) -> None:
    done = CliRunner().invoke(schedule, ["prod.py", "--doctor", at], standalone_mode=False)
    assert isinstance(done.exception, DeclarationError) and "must be a time of day like 09:00" in str(
        done.exception
    )


def test_a_systemctl_that_fails_is_told(systemctl: Path, tmp_path: Path) -> None:
    (tmp_path / "bin/systemctl").write_text("#!/bin/sh\necho 'no bus' >&2\nexit 1\n")
    done = CliRunner().invoke(schedule, ["prod.py", "--install"], standalone_mode=False)
    assert isinstance(done.exception, RolloutError) and "no bus" in str(done.exception)
    assert done.exception.exit_code == 1, "the units are written"


def test_the_timer_of_another_project_is_not_replaced(
    systemctl: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = project / "50% other"
    shutil.copytree(project, other, ignore=shutil.ignore_patterns("50% other", "bin"))
    again = CliRunner().invoke(schedule, ["prod.py", "--install"], standalone_mode=False)
    assert again.return_value == 0, "its own is written anew"
    monkeypatch.chdir(other)
    done = CliRunner().invoke(schedule, ["prod.py", "--install"], standalone_mode=False)
    assert isinstance(done.exception, DeclarationError)
    assert f"pyinfra-vllm-schedule-prod.service is of the project in {project}: give" in str(done.exception)
    assert len(systemctl.read_text().splitlines()) == 2
    service = project / "config/systemd/user/pyinfra-vllm-schedule-prod.service"
    assert f"WorkingDirectory={project}\n" in service.read_text()
    service.write_text(service.read_text().replace(str(project), str(project / "moved away")))
    done = CliRunner().invoke(schedule, ["prod.py", "--install"], standalone_mode=False)
    assert done.return_value == 0, "nobody's"
    done = CliRunner().invoke(schedule, ["prod.py", "--install"], standalone_mode=False)
    assert done.return_value == 0, "its own, with a percent sign"


@pytest.mark.parametrize(
    ("inventory", "words", "said"),
    [
        ("prod.py", ["--limit", "nobody"], "'nobody' matches no host"),
        ("broken.py", [], "prot"),
        ("none.py", [], "none.py"),
    ],
)
def test_no_timer_is_made_for_what_can_not_be_rolled_out(
    systemctl: Path, tmp_path: Path, inventory: str, words: list[str], said: str
) -> None:
    (tmp_path / "broken.py").write_text(
        (tmp_path / "prod.py").read_text() + "\nwrong = [('x', {'services': {'chat': {'prot': 1}}})]\n"
    )
    done = CliRunner().invoke(schedule, [inventory, "--install", *words], standalone_mode=False)
    assert isinstance(done.exception, DeclarationError) and said in str(done.exception)
    assert not systemctl.exists() and not (tmp_path / "config").exists()


def test_further_group_data_goes_with_every_tick(project: Path) -> None:
    (project / "more").mkdir()
    (project / "more/all.py").write_text(ALL.replace('"port": 8000', '"prot": 8000'))
    words = ["prod.py", "--group-data", "more"]
    done = CliRunner().invoke(schedule, words, standalone_mode=False)
    assert isinstance(done.exception, DeclarationError) and "prot" in str(done.exception)
    (project / "more/all.py").write_text(ALL)
    told = CliRunner().invoke(schedule, words, standalone_mode=False).stdout
    assert "--group-data more" in told
    assert ticking.command("prod.py", ["a"], ["more"])[3:8] == ["-y", "--limit", "a", "--group-data", "more"]


def test_without_systemctl_it_says_so(
    systemctl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    done = CliRunner().invoke(schedule, ["prod.py", "--install"], standalone_mode=False)
    assert isinstance(done.exception, RolloutError)
    assert "systemctl --user daemon-reload failed: No such file" in str(done.exception)


@pytest.mark.parametrize("folder", ["/proc/nope", "a file"])
def test_units_that_cannot_be_written_are_one_line_and_start_nothing(
    systemctl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / folder))
    done = CliRunner().invoke(schedule, ["prod.py", "--install"], standalone_mode=False)
    assert isinstance(done.exception, DeclarationError) and done.exception.exit_code == 2
    assert "can't be written: " in str(done.exception) and "The timer was not started" in str(done.exception)
    assert not systemctl.exists()


@pytest.mark.parametrize("words", [["--tick", "--install"], ["--dry"]])
def test_options_that_make_no_sense_together_are_refused(words: list[str]) -> None:
    assert CliRunner().invoke(schedule, ["prod.py", *words]).exit_code == 2
