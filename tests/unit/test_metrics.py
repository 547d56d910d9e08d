"""The metrics of a host: each state, foreign words, the file, and a switch that they can't disturb."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pyinfra_vllm.on_host import __main__ as on_host
from pyinfra_vllm.on_host.inspect.host import Installation
from pyinfra_vllm.on_host.server import hooks, metrics, systemd
from pyinfra_vllm.on_host.state import observe, running
from pyinfra_vllm.on_host.state.transactions import transactions, without_service_s
from pyinfra_vllm.on_host.switch import base, order, transaction
from pyinfra_vllm.operations import program

DOCS = Path(__file__).parents[2] / "docs"
OLD, NEW = "0ddba11c0de5", "4c0ffee4c0de"
LINE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)+)\})? (\S+)')
LABEL = re.compile(r'([a-z]+)="((?:[^"\\]|\\.)*)"')
NAME = re.compile(r"\bpyinfra_vllm_\w+")


def journal(*steps: tuple[int, str, str, dict[str, Any]], tx: str = "one") -> list[dict[str, Any]]:
    """Entries at these seconds after two o'clock."""
    return [
        {
            "at": f"2026-11-21T02:{second // 60:02}:{second % 60:02}.000+00:00",
            "tx": tx,
            "step": step,
            "state": state,
            **fields,
        }
        for second, step, state, fields in steps
    ]


def begin(old: str | None = OLD, purpose: str = "rollout") -> tuple[int, str, str, dict[str, Any]]:
    return 0, "begin", "done", {"from": old, "to": NEW, "purpose": purpose}


def end(second: int, outcome: str, **fields: Any) -> tuple[int, str, str, dict[str, Any]]:
    return second, "end", "done", {"outcome": outcome, "reason": "the password is hunter2", **fields}


ACTIVATED = (10, "activate", "intended", {"from": OLD, "to": NEW})
READY = (100, "ready", "done", {})
COMMITTED = journal(
    begin(), ACTIVATED, READY, (200, "commit", "done", {}), end(300, "committed", verdict="pass")
)


class AHost:
    """A root with one service, as `observe` reads it; systemd's part is said by hand."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.patch = root, patch
        self.service = root / "chat"
        (self.service / "releases" / NEW).mkdir(parents=True)
        self.run(None)
        patch.setattr(observe, "unit_state", lambda unit: {})

    def run(self, release: str | None) -> None:
        self.patch.setattr(running, "release", lambda unit, state: release)

    def has(self, entries: list[dict[str, Any]], current: str | None = NEW) -> None:
        (self.service / "journal.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
        if current:
            (self.service / "current").symlink_to(f"releases/{current}")

    def text(self) -> str:
        return metrics.render(observe.observe(self.root, []), 1000.5)

    def values(self) -> dict[str, float]:
        return {name: value for name, _, value in parsed(self.text())}


def parsed(text: str) -> list[tuple[str, dict[str, str], float]]:
    """Each sample; fails where a line is none of the format's."""
    found = []
    for line in text.removesuffix("\n").split("\n"):
        if not line.startswith("# "):
            match = LINE.fullmatch(line)
            assert match, line
            found.append((match[1], dict(LABEL.findall(match[2] or "")), float(match[3])))
    return found


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AHost:
    return AHost(tmp_path, monkeypatch)


def test_a_release_that_was_committed(host: AHost) -> None:
    host.has(COMMITTED)
    host.run(NEW)
    checkpoint = {"repo": "Qwen/Qwen3-14B-AWQ", "commit": "abc"}
    document = {"checkpoint": checkpoint, "runtime": {"version": "0.33.0"}}
    (host.service / "releases" / NEW / "release.json").write_text(json.dumps(document))
    chat = {"service": "chat"}
    of_release = {"release": NEW, "model": "Qwen/Qwen3-14B-AWQ", "commit": "abc", "runtime": "0.33.0"}
    of_switch = {"purpose": "rollout", "outcome": "committed", "verdict": "pass", "from": OLD, "to": NEW}
    began = 1795226400.0
    assert parsed(host.text()) == [
        ("pyinfra_vllm_release_info", {**chat, **of_release}, 1),
        ("pyinfra_vllm_release_since_timestamp_seconds", chat, began + 300),
        ("pyinfra_vllm_release_proven", chat, 1),
        ("pyinfra_vllm_release_differs", chat, 0),
        ("pyinfra_vllm_service_running", chat, 1),
        ("pyinfra_vllm_last_switch_info", {**chat, **of_switch}, 1),
        ("pyinfra_vllm_last_switch_began_timestamp_seconds", chat, began),
        ("pyinfra_vllm_last_switch_ended_timestamp_seconds", chat, began + 300),
        ("pyinfra_vllm_last_switch_without_service_seconds", chat, 90),
        ("pyinfra_vllm_switch_unfinished", chat, 0),
        ("pyinfra_vllm_rejected_releases", chat, 0),
        ("pyinfra_vllm_metrics_written_timestamp_seconds", {}, 1000.5),
    ]
    assert "hunter2" not in host.text(), "a reason is no label"


def test_each_metric_is_introduced_once_and_has_a_unit_that_is_one(host: AHost) -> None:
    host.has(COMMITTED)
    lines = host.text().splitlines()
    assert [line.split()[2] for line in lines if line.startswith("# HELP")] == list(metrics.METRICS)
    assert [line for line in lines if line.startswith("# TYPE")] == [
        f"# TYPE {name} gauge" for name in metrics.METRICS
    ]
    for name in metrics.METRICS:
        assert name.startswith("pyinfra_vllm_") and not name.endswith(("_total", "_ms", "_age"))


def test_a_process_of_another_release_and_none_at_all(host: AHost) -> None:
    host.has(COMMITTED)
    host.run(OLD)
    found = host.values()
    assert (found["pyinfra_vllm_release_differs"], found["pyinfra_vllm_service_running"]) == (1, 1)
    assert found["pyinfra_vllm_release_proven"] == 0
    host.run(None)
    found = host.values()
    assert (found["pyinfra_vllm_release_differs"], found["pyinfra_vllm_service_running"]) == (0, 0)


def test_a_switch_without_an_end(host: AHost) -> None:
    failed = (200, "restore", "failed", {"error": "it does not start"})
    host.has(journal(begin(), ACTIVATED, (100, "restore", "intended", {}), failed), OLD)
    (_, labels, _), *_ = [item for item in parsed(host.text()) if item[0].endswith("_last_switch_info")]
    assert labels["outcome"] == "restore_failed" and labels["verdict"] == ""
    found = host.values()
    assert found["pyinfra_vllm_switch_unfinished"] == 1
    assert not [name for name in found if "ended" in name or "without_service" in name or "since" in name]


def test_a_service_that_was_only_staged_is_not_down(host: AHost) -> None:
    found = host.values()
    assert found["pyinfra_vllm_switch_unfinished"] == 0
    assert not {"pyinfra_vllm_service_running", "pyinfra_vllm_release_info"} & set(found)


def test_rejected_releases_are_counted(host: AHost) -> None:
    (host.service / "rejected.json").write_text(json.dumps({OLD: {"reason": "x"}, NEW: {"reason": "y"}}))
    assert host.values()["pyinfra_vllm_rejected_releases"] == 2


@pytest.mark.parametrize(
    ("entries", "seconds"),
    [
        (COMMITTED, 90),
        (journal(begin(None), ACTIVATED, READY, end(300, "committed")), 0),
        (journal(begin(), end(300, "deferred")), 0),
        (journal(begin(), ACTIVATED, (70, "restore", "intended", {}), (110, "restore", "done", {})), None),
        (
            journal(
                begin(),
                ACTIVATED,
                (70, "restore", "intended", {}),
                (110, "restore", "done", {}),
                end(120, "rolled_back"),
            ),
            100,
        ),
        (
            journal(
                begin(),
                ACTIVATED,
                READY,
                (700, "restore", "intended", {}),
                (760, "restore", "done", {}),
                end(770, "rolled_back"),
            ),
            90 + 60,
        ),
        (journal(begin(), ACTIVATED, end(500, "rolled_back")), 490),
        (journal(begin(purpose="calibration"), end(300, "calibrated")), None),
    ],
    ids=[
        "there",
        "first",
        "untouched",
        "no end",
        "never ready",
        "there and back",
        "full disk",
        "calibration",
    ],
)
def test_seconds_without_service(entries: list[dict[str, Any]], seconds: float | None) -> None:
    (found,) = transactions(entries)
    record = found.as_dict()
    assert metrics.without_service(record) == seconds
    if seconds and (told := without_service_s(found.turns)) is not None:
        assert told == seconds, "the report says another number"


FOREIGN = 'a"} 1\nevil_metric{x="\\ \x00\x1b[2J \u2028 \ud800 \u00e9'


def test_foreign_words_stay_inside_their_label(host: AHost) -> None:
    host.has(journal(begin(), end(300, FOREIGN, verdict="v" * 5000)))
    text = host.text()
    labels = next(labels for name, labels, _ in parsed(text) if name == "pyinfra_vllm_last_switch_info")
    assert labels["outcome"].startswith(r"a\"} 1\nevil_metric{x=\"\\ ")
    assert labels["outcome"].endswith("\u00e9") and not re.search("[\x00\x1b\u2028\ud800]", text)
    assert len(labels["verdict"]) == metrics.LONGEST_LABEL
    text.encode("utf-8")


@pytest.mark.parametrize("document", ["[]", '{"checkpoint": [], "runtime": {"version": 3}}', "{", "null"])
def test_a_damaged_document_costs_its_labels_only(host: AHost, document: str) -> None:
    host.has(COMMITTED)
    (host.service / "releases" / NEW / "release.json").write_text(document)
    (host.service / "rejected.json").write_text("7" if document == "[]" else document)
    labels = next(labels for name, labels, _ in parsed(host.text()) if name == "pyinfra_vllm_release_info")
    assert labels["release"] == NEW and labels["model"] == labels["runtime"] == ""


def test_the_file_is_replaced_whole_for_everybody_to_read(tmp_path: Path) -> None:
    path = metrics.write(tmp_path, "one\n")
    before = path.open()
    metrics.write(tmp_path, "two\n")
    with before:
        assert before.read() == "one\n", "a reader keeps what it opened"
    assert path.read_text() == "two\n" and path.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in tmp_path.iterdir()] == ["pyinfra-vllm.prom"]


def test_no_link_of_the_directorys_owner_is_followed(tmp_path: Path) -> None:
    directory, victim = tmp_path / "collector", tmp_path / "shadow"
    directory.mkdir()
    victim.write_text("root's")
    for name in (metrics.FILE, f".{metrics.FILE}.partial"):
        (directory / name).symlink_to(victim)
    path = metrics.write(directory, "mine\n")
    assert victim.read_text() == "root's"
    assert path.read_text() == "mine\n" and not path.is_symlink()


def test_a_link_that_is_laid_between_two_calls_is_not_followed_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shadow").write_text("root's")
    monkeypatch.setattr(Path, "unlink", lambda path: path.symlink_to(tmp_path / "shadow"))
    with pytest.raises(FileExistsError):
        metrics.write(tmp_path, "mine\n")
    assert (tmp_path / "shadow").read_text() == "root's"


def test_what_doctor_found_is_a_file_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics.write(tmp_path, "one\n")
    found = tmp_path / metrics.DOCTORS_FILE
    for failed in (["disk", "chat: rollback files"], []):
        assert metrics.main([str(tmp_path), json.dumps(failed)]) == 0
        (*samples, (name, labels, at)) = parsed(found.read_text())
        assert [labels["check"] for _, labels, _ in samples] == failed
        assert (name, labels) == (metrics.ENDED, {}) and abs(at - time.time()) < 60
    assert (tmp_path / metrics.FILE).read_text() == "one\n"
    assert metrics.main([str(tmp_path / "away"), "[]"]) == 1
    assert str(tmp_path / "away") in capsys.readouterr().err


def test_the_hosts_command_prints_or_writes(
    host: AHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.has(COMMITTED)
    assert on_host.main(["--root", str(host.root), "metrics"]) == 0
    assert capsys.readouterr().out.startswith("# HELP pyinfra_vllm_release_info ")
    collector = tmp_path / "collector"
    assert on_host.main(["--root", str(host.root), "metrics", "--to", str(collector)]) == 1
    assert str(collector) in capsys.readouterr().err and not collector.exists()
    collector.mkdir()
    assert on_host.main(["--root", str(host.root), "metrics", "--to", str(collector)]) == 0
    assert parsed((collector / metrics.FILE).read_text())


def test_the_unit_writes_them_only_where_they_are_declared(tmp_path: Path) -> None:
    plain, declared = program.units("/srv/x"), program.units("/srv/x", "/var/lib/collector")
    assert {name for name in plain if plain[name] != declared[name]} == {metrics.WRITER}
    command = (
        '/usr/bin/env python3 -I "/srv/x/bin/on-host.pyz" --root "/srv/x" metrics --to "/var/lib/collector"'
    )
    assert declared[metrics.WRITER] == f"{plain[metrics.WRITER]}ExecStopPost=-{command}\n"
    assert not metrics.written_here(tmp_path)
    for texts, wanted in ((plain, False), (declared, True)):
        (tmp_path / metrics.WRITER).write_text(texts[metrics.WRITER])
        assert metrics.written_here(tmp_path) is wanted
    words = shlex.split(command.partition('.pyz" ')[2])
    assert on_host.PARSER.parse_args(words).to == Path("/var/lib/collector")


def test_a_host_gets_other_units_where_the_declaration_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And none where it does not: by what the host says of the units that it has."""
    had = program.units("/srv/x", "/var/lib/collector")
    name = program.program_name()
    told = Installation([3, 11, 2], "x86_64", 252, None, name, "".join(had.values()), "", {})
    monkeypatch.setattr(program, "question", lambda host, root, users: (told, None))
    monkeypatch.setattr(program, "host", SimpleNamespace(noop=lambda words: None))
    install = program.installed._inner
    assert list(install("/srv/x", [], "/var/lib/collector")) == []
    for other in (None, "/var/lib/elsewhere"):
        first, second, *_ = install("/srv/x", [], other)
        assert first.args == (program.units("/srv/x", other),) and second == "systemctl daemon-reload"
    assert "metrics=mine.metrics" in (DOCS.parent / "deploy.py").read_text()


@pytest.mark.parametrize("purpose", [order.ROLLOUT, order.CALIBRATION])
def test_a_failure_to_write_changes_no_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], purpose: str
) -> None:
    """Where systemd refuses, after each kind of transaction."""
    started = []

    def refuse(unit: str) -> None:
        started.append(unit)
        raise systemd.SystemdError("it is hung")

    wanted = order.Order(service="chat", release=NEW, operator="ann", purpose=purpose)
    monkeypatch.setattr(order, "load", lambda path: wanted)
    monkeypatch.setattr(transaction, "switch", lambda wanted, paths: base.COMMITTED)
    monkeypatch.setattr(on_host.calibrating, "calibrate", lambda wanted, paths: "calibrated")
    monkeypatch.setattr(on_host.interruption, "note_in", lambda paths, status: None)
    monkeypatch.setattr(systemd, "start_in_background", refuse)
    monkeypatch.setattr(metrics, "written_here", lambda units: True)
    assert on_host.main(["switch", "order.json"]) == 0
    assert started == [metrics.WRITER] and "it is hung" in capsys.readouterr().err


def test_a_host_that_declares_no_metrics_has_nothing_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "start_in_background", lambda unit: pytest.fail(unit))
    metrics.write_soon(tmp_path)


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"]
    return list(group["rules"])


def test_every_metric_of_the_alerts_is_one_that_is_written() -> None:
    named = {name for rule in rules() for name in NAME.findall(rule["expr"])}
    assert named and named <= {*metrics.METRICS, *metrics.DOCTORS_METRICS}
    assert all(NAME.search(rule["expr"]) for rule in rules())


# Four hosts for four hours: one is well, one has nothing running, one went back, one can't.
SERIES = """
service_running{instance="well"} 1
release_proven{instance="well"} 1
release_differs{instance="well"} 0
switch_unfinished{instance="well"} 0
rejected_releases{instance="well"} 0
last_switch_info{instance="well",outcome="committed"} 1
last_switch_without_service_seconds{instance="well"} 90
last_switch_began_timestamp_seconds{instance="well"} 0
metrics_written_timestamp_seconds{instance="well"} 0+60
doctor_ended_timestamp_seconds{instance="well"} 0
service_running{instance="down"} 0
metrics_written_timestamp_seconds{instance="down"} 0
service_running{instance="back"} 1
release_proven{instance="back"} 0
release_differs{instance="back"} 1
switch_unfinished{instance="back"} 0
rejected_releases{instance="back"} 1
last_switch_info{instance="back",outcome="rolled_back"} 1
last_switch_without_service_seconds{instance="back"} 1200
release_differs{instance="stuck"} 1
switch_unfinished{instance="stuck"} 1
last_switch_info{instance="stuck",outcome="restore_failed"} 1
last_switch_began_timestamp_seconds{instance="stuck"} 0
doctor_check_failed{instance="stuck",check="disk"} 1
doctor_ended_timestamp_seconds{instance="stuck"} -200000
"""
FIRING = {
    0: {
        *(("VllmReleaseWentBack", "back"), ("VllmRollbackFails", "stuck"), ("VllmSwitchTookService", "back")),
        *(("VllmDoctorFoundDefect", "stuck"), ("VllmDoctorNotAsked", "stuck")),
    },
    60: {
        *(("VllmServiceDown", "down"), ("VllmMetricsStale", "down")),
        *(("VllmReleaseRejected", "back"), ("VllmRunsAnotherRelease", "back")),
    },
    240: {("VllmReleaseNotProven", "back"), ("VllmSwitchHasNoEnd", "stuck")},
}


def test_the_alerts_fire_when_they_should_and_no_others(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here")
    series = [
        {"series": f"pyinfra_vllm_{name}".replace("{", '{service="chat",'), "values": f"{value}x300"}
        for name, value in (line.rsplit(" ", 1) for line in SERIES.split("\n") if line)
    ]
    so_far: set[tuple[str, str]] = set()
    asked = []
    for minute, firing in FIRING.items():
        so_far |= firing
        labels = [f'{{alertname="{alert}", instance="{instance}"}}' for alert, instance in so_far]
        asked.append(
            {
                "expr": 'count by (alertname, instance) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": each, "value": 1} for each in labels],
            }
        )
    test = {"interval": "1m", "input_series": series, "promql_expr_test": asked}
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(DOCS / "alerts.yml")], "tests": [test]}))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {alert for alert, _ in so_far} == {rule["alert"] for rule in rules()}


def test_every_alert_names_what_to_do() -> None:
    titles = set(re.findall(r"^## (.+?)\??$", (DOCS / "runbook.md").read_text(), re.M))
    for rule in rules():
        page, _, title = rule["annotations"]["action"].partition("docs/runbook.md, ")
        assert title in titles or page, rule["alert"]


def test_every_metric_and_no_other_is_in_the_documentation() -> None:
    page = (DOCS / "metrics.md").read_text()
    assert set(NAME.findall(page)) == {*metrics.METRICS, *metrics.DOCTORS_METRICS}


def test_the_commands_of_the_documentation_are_the_programs() -> None:
    lines = re.findall(r"^    (python3 .*|journalctl .*)$", (DOCS / "metrics.md").read_text(), re.M)
    asked, logged = sorted(map(shlex.split, lines), key=len, reverse=True)
    assert on_host.PARSER.parse_args(logged[2:] if logged[0] == "python3" else asked[2:]).run
    assert metrics.WRITER in (asked if logged[0] == "python3" else logged)


def test_every_label_of_the_alerts_is_one_that_their_metric_has(host: AHost) -> None:
    host.has(COMMITTED)
    text = host.text() + metrics.render_doctors(["disk"], 1.0)
    labels = {name: {*labels, "instance"} for name, labels, _ in parsed(text)}
    outcomes = {base.COMMITTED, base.ROLLED_BACK, base.RESTORE_FAILED, *hooks.GOOD_ENDS}
    for rule in rules():
        first = NAME.findall(rule["expr"])[0]
        used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        used |= set(re.findall(r"(\w+)=\"", rule["expr"]))
        assert used <= labels[first], rule["alert"]
        assert set(re.findall(r'outcome="(\w+)"', rule["expr"])) <= outcomes
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
