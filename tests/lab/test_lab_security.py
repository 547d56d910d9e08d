"""Who can read and do what on a real host: the unit's exposure, planted secrets, file modes, strings that
inject.

The stub of vLLM runs where only the unit matters; that the real vLLM serves under the very same unit is asked
last.
"""

from __future__ import annotations

import json
import random
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab import control, light_runtime, runtime, serving, witness
from lab.machine import Host
from lab.session import Lab
from lab.shell import LabError

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import test_release

MOST_EXPOSED = 20  # tenths: `systemd-analyze security` counts from 0 (nothing is open) to 10
ROOT = "/srv/pyinfra-vllm"
QUESTION = "What is the capital of Japan?"


@dataclass(frozen=True)
class Canaries:
    """Secrets made for one run, by the variables in which an operator hands them over."""

    tokens: Mapping[str, str]

    @classmethod
    def planted(cls) -> Canaries:
        names = ("HF_TOKEN", "CANARY_API_KEY", "CANARY_WEBHOOK")
        return cls({name: f"canary{secrets.token_hex(12)}" for name in names})

    @property
    def environment(self) -> dict[str, str]:
        """Nobody answers at the webhook: what is recorded of its failure must not say where it was."""
        return {**self.tokens, "CANARY_WEBHOOK": f"http://127.0.0.1:9/{self.tokens['CANARY_WEBHOOK']}"}

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "secrets": {"VLLM_API_KEY": "CANARY_API_KEY", "WEBHOOK": "CANARY_WEBHOOK"},
            # A hook gets the secrets, and this one prints them.
            "hooks": {
                "drain": ["/usr/bin/env"],
                "undrain": ["/usr/bin/env"],
                "notify": {"url_env": "WEBHOOK"},
            },
        }

    def found_in(self, text: str) -> list[str]:
        return [name for name, token in self.tokens.items() if token in text]


@pytest.fixture(scope="module")
def canaries() -> Canaries:
    return Canaries.planted()


@pytest.fixture(scope="module")
def guarded(lab: Lab, canaries: Canaries) -> Iterator[Host]:
    """A host whose Hub asks for the token: without it neither `lock` nor a download succeeds."""
    with control.own_lock_file():
        lab.hub.token = canaries.tokens["HF_TOKEN"]
        yield lab.add("guarded", binds={light_runtime.venv(light_runtime.OLD): str(light_runtime.OLD_PATH)})[
            0
        ]
        lab.hub.token = None
        lab.remove("guarded")


@pytest.fixture
def serving_with_secrets(guarded: Host, canaries: Canaries) -> Host:
    """It serves a release, where the tests that bring it there were not chosen."""
    if guarded.ssh(f"test -e {ROOT}/tiny/current", check=False).returncode:
        for done in (ask("lock", canaries=canaries), deploy("-y", canaries=canaries)):
            assert done.returncode == 0, done.stderr[-4000:]
    return guarded


def run(
    *command: str, canaries: Canaries, release: str = "a", **settings: Any
) -> subprocess.CompletedProcess[str]:
    declared = control.declared(release, **{**light_runtime.SETTINGS, **canaries.settings, **settings})
    return control.run(*command, env={**declared, **canaries.environment})


def deploy(*arguments: str, on: str = "guarded", **settings: Any) -> subprocess.CompletedProcess[str]:
    command = ("pyinfra", control.INVENTORY, "deploy.py", "--limit", on, *arguments)
    return run(*command, **settings)


def ask(command: str, *arguments: str, canaries: Canaries) -> subprocess.CompletedProcess[str]:
    return run("pyinfra-vllm", command, control.INVENTORY, *arguments, canaries=canaries)


def exposure(host: Host, unit: str) -> str:
    """Raises LabError with systemd's own table where the unit is more exposed than it may be."""
    return host.ssh(f"systemd-analyze security --no-pager --threshold={MOST_EXPOSED} {unit}").stdout


def test_the_witness_sees_what_a_host_shows(guarded: Host) -> None:
    sleeper = "import time; time.sleep(0.3)"
    with witness.command_lines(["hunter2"]) as seen:
        guarded.ssh(f"python3 -c '{sleeper}' --key $(printf hunter%d 2); echo hunter2 > /var/tmp/note")
    assert f"python3 -c {sleeper} --key hunter2 " in seen
    assert witness.kept(guarded, ["hunter2"]) == ["/var/tmp/note"]


def test_no_secret_shows_anywhere_but_in_the_file_that_is_for_it(
    guarded: Host, canaries: Canaries, tmp_path: Path
) -> None:
    broken: dict[str, Any] = {
        "environment": {"VLLM_CPU_KVCACHE_SPACE": "1", "LIGHT_CRASH_AFTER_S": "0.5", "LIGHT_START_S": "9"}
    }
    indiscreet: dict[str, Any] = {"hooks": {"notify": ["/bin/sh", "-c", "env; env >&2; exit 1"]}}
    with witness.command_lines(list(canaries.tokens.values())) as seen:
        runs = {
            "lock": ask("lock", canaries=canaries),
            "dry": deploy("--dry", "--debug", canaries=canaries),
            "deploy": deploy("-y", "--debug", "-vvv", canaries=canaries),
            "failing": deploy("-y", "--debug", "-vvv", canaries=canaries, **broken, **indiscreet),
            "status": ask("status", "--json", canaries=canaries),
            "history": ask("history", "--json", canaries=canaries),
            "report": ask("report", "--out", str(tmp_path), "--json", canaries=canaries),
        }
    for name, done in runs.items():
        assert done.returncode == (name == "failing"), f"{name}: {done.stderr[-4000:]}"
    assert [name for name, done in runs.items() if canaries.found_in(done.stdout + done.stderr)] == []
    assert seen == set()
    assert canaries.found_in((tmp_path / "index.html").read_text()) == []
    assert canaries.found_in(witness.told(guarded)) == []
    meant = guarded.ssh(f"ls {ROOT}/tiny/releases/*/secrets.env").stdout.split()
    assert len(meant) == 2, "one of each release"
    assert witness.kept(guarded, list(canaries.tokens.values())) == meant
    assert "committed" in runs["deploy"].stderr and "rolled_back" in runs["failing"].stderr


def test_the_secret_reaches_the_server_and_nobody_else_can_read_it(guarded: Host, canaries: Canaries) -> None:
    with pytest.raises(LabError, match="401"):
        serving.ask(guarded, [QUESTION])
    assert serving.ask(guarded, [QUESTION], api_key=canaries.tokens["CANARY_API_KEY"])
    environ = guarded.ssh("tr '\\0' '\\n' < /proc/$(systemctl show -P MainPID vllm-tiny)/environ").stdout
    assert f"VLLM_API_KEY={canaries.tokens['CANARY_API_KEY']}" in environ.splitlines()
    assert canaries.tokens["HF_TOKEN"] not in environ
    for user in ("vllm", "nobody"):
        done = guarded.ssh(
            f"setpriv --reuid={user} --clear-groups cat {ROOT}/tiny/current/secrets.env", check=False
        )
        assert done.returncode and "Permission denied" in done.stderr


@pytest.mark.full
@pytest.mark.usefixtures("serving_with_secrets")
def test_a_new_key_is_a_new_release_measured_against_the_old_one(guarded: Host, canaries: Canaries) -> None:
    old, new = canaries.tokens["CANARY_API_KEY"], f"canary{secrets.token_hex(12)}"
    rotated = Canaries({**canaries.tokens, "CANARY_API_KEY": new})
    dry = deploy("--dry", canaries=rotated)
    assert "secrets: another value of VLLM_API_KEY or WEBHOOK" in dry.stdout + dry.stderr
    done = deploy("-y", canaries=rotated)
    assert done.returncode == 0 and "committed" in done.stderr, done.stderr[-4000:]
    last = "tail -n 200 /srv/pyinfra-vllm/tiny/journal.jsonl | grep measure-before | tail -n 1"
    assert '"baseline"' not in guarded.ssh(last).stdout, "the old release was asked with the new key"
    assert rotated.found_in(dry.stdout + dry.stderr + done.stdout + done.stderr) == []
    assert serving.ask(guarded, [QUESTION], api_key=new)
    with pytest.raises(LabError, match="401"):
        serving.ask(guarded, [QUESTION], api_key=old)
    assert (
        guarded.ssh("ls /run/pyinfra-vllm/*switch*.json /run/pyinfra-vllm/stage-*", check=False).stdout == ""
    )


OLD_VLLM: dict[str, Any] = {
    "runtime": {"path": str(light_runtime.OLD_PATH), "package": "vllm-cpu", "reason": "a test"}
}
FACTORS = "cache_key_factors.json"


def factors(host: Host) -> list[str]:
    return host.ssh(
        f"find {ROOT}/tiny/cache {ROOT}/tiny/releases/*/cache -name {FACTORS}", check=False
    ).stdout.split()


@pytest.mark.full
@pytest.mark.usefixtures("serving_with_secrets")
def test_a_vllm_that_writes_its_key_to_the_disk_is_not_given_it(guarded: Host, canaries: Canaries) -> None:
    """The stub calls itself 0.25.1 and writes what 0.25.1 writes.

    What an earlier release wrote goes, by root's hand, and nothing else.
    """
    key, keys = canaries.tokens["CANARY_API_KEY"], list(canaries.tokens.values())
    as_service = f"cd {ROOT}/tiny/current/cache && setpriv --reuid=vllm --regid=vllm --clear-groups sh -c"
    place = "vllm/torch_compile_cache/old/rank_0_0/backbone"
    guarded.ssh(f"mkdir -p /srv/victim && touch /srv/victim/{FACTORS} /srv/victim/precious")
    guarded.ssh(
        f"{as_service} 'mkdir -p {place} && cat > {place}/{FACTORS}'", stdin=f'{{"VLLM_API_KEY": "{key}"}}'
    )
    guarded.ssh(f"{as_service} 'ln -s /srv/victim vllm/link && ln -s /srv/victim/precious vllm/{FACTORS}'")
    assert len(witness.kept(guarded, keys)) > len(
        guarded.ssh(f"ls {ROOT}/tiny/releases/*/secrets.env").stdout.split()
    )

    done = deploy("-y", canaries=canaries, **OLD_VLLM)
    assert done.returncode == 0 and "committed" in done.stderr, done.stderr[-4000:]
    assert canaries.found_in(done.stdout + done.stderr) == []
    (written,) = factors(guarded)
    assert "VLLM_NO_USAGE_STATS" in guarded.ssh(f"cat {written}").stdout, "the stub wrote nothing"
    meant = guarded.ssh(f"ls {ROOT}/tiny/releases/*/secrets.env").stdout.split()
    assert witness.kept(guarded, keys) == meant
    assert guarded.ssh("ls /srv/victim").stdout.split() == [FACTORS, "precious"]

    environ = guarded.ssh("tr '\\0' '\\n' < /proc/$(systemctl show -P MainPID vllm-tiny)/environ").stdout
    assert not [line for line in environ.splitlines() if line.startswith("VLLM_API_KEY=")]
    assert serving.ask(guarded, [QUESTION], api_key=key)
    with pytest.raises(LabError, match="401"):
        serving.ask(guarded, [QUESTION])
    with pytest.raises(LabError, match="401"):
        serving.ask(guarded, [QUESTION], api_key=f"{key}x")
    assert canaries.found_in(witness.told(guarded)) == []


def test_only_root_can_change_what_is_served(guarded: Host) -> None:
    secret = f"{ROOT}/tiny/current/secrets.env"
    assert guarded.ssh(f"stat -c '%a %U %n' {secret} {ROOT}/tiny/current/cache").stdout.split() == [
        "600", "root", secret, "700", "vllm", f"{ROOT}/tiny/current/cache",
    ]  # fmt: skip
    writable = f"find {ROOT} /run/pyinfra-vllm /etc/systemd/system ! -type l -perm /022 -o -perm /6000"
    assert guarded.ssh(writable).stdout == ""
    foreign_files = f"find {ROOT} -path '{ROOT}/tiny/releases/*/cache' -prune -o ! -user root -print"
    assert guarded.ssh(foreign_files).stdout == ""
    assert guarded.ssh("getent passwd vllm").stdout.strip().endswith(":/nonexistent:/usr/sbin/nologin")


def test_the_unit_is_exposed_as_little_as_promised(guarded: Host) -> None:
    assert "exposure level for vllm-tiny.service" in exposure(guarded, "vllm-tiny.service")
    gpu = test_release.make(argv=("/bin/true",), gpu_count=1).files()["vllm.service"]
    guarded.ssh("mkdir -p /tmp/units && cat > /tmp/units/vllm-gpu.service", stdin=gpu)
    assert "vllm-gpu.service" in exposure(guarded, "--offline=yes /tmp/units/vllm-gpu.service")


DUMP = (
    f"import os; os.chdir('{ROOT}/nasty/cache'); "
    "import json, os, pathlib, sys, time; told = json.dumps([sys.argv[1:], dict(os.environ)]); "
    "pathlib.Path('part').write_text(told); os.rename('part', 'told.json'); time.sleep(600)"
)
NASTY = (
    "", " ", ";", "\\;", "%n", "%%", "$HOME", "${HOME}", "$$", "-", "+", "'", '"', "\\", "\\x41", "\\n",
    "`id`", "$(id)", "#", "a=b",
    "[Service]", "ExecStart=/bin/false", "é", "\u2028", "\ufeff", "x" * 2000,
)  # fmt: skip


def nasty_strings(count: int) -> list[str]:
    chance = random.Random(20261121)
    parts = [part for part in NASTY if len(part) < 30]
    return [*NASTY, *("".join(chance.choices(parts, k=chance.randint(2, 6))) for _ in range(count))]


def test_systemd_itself_hands_over_every_string_as_it_was(guarded: Host) -> None:
    """The release's own unit, started by the real systemd, on 400 strings that mean something to a unit file
    or a shell.
    """
    strings = nasty_strings(400)
    environment = {f"NASTY_{number}": text for number, text in enumerate(strings)}
    argv = ("/usr/bin/python3", "-c", DUMP, *strings)
    made = test_release.make(service="nasty", argv=argv, environment=environment)
    files = made.files()
    place = f"{ROOT}/nasty"
    told = f"{place}/releases/{made.id}/cache/told.json"
    payload = json.dumps({"id": made.id, "user": "vllm", "files": files})
    guarded.ssh(f"mkdir -p {place} && cat > {place}/payload.json", stdin=payload)
    guarded.ssh(f"python3 {ROOT}/bin/on-host.pyz stage nasty {place}/payload.json")
    guarded.ssh(
        f"cp {place}/releases/{made.id}/vllm.service /run/systemd/system/nasty.service; systemctl"
        " daemon-reload"
    )
    try:
        guarded.ssh("systemctl start nasty")
        wait = f"for _ in $(seq 100); do test -s {told} && break; sleep 0.1; done; cat {told}"
        words, environ = json.loads(guarded.ssh(wait).stdout)
    finally:
        guarded.ssh(
            f"systemctl stop nasty; rm -rf /run/systemd/system/nasty.service {place}; systemctl daemon-reload"
        )
    assert words == strings
    assert {name: environ.get(name) for name in environment} == environment


@pytest.mark.full
@pytest.mark.usefixtures("serving_with_secrets")
@pytest.mark.timeout(600)
def test_the_real_vllm_serves_under_the_very_same_unit(lab: Lab, guarded: Host, canaries: Canaries) -> None:
    real = {"path": str(runtime.PATH), "package": "vllm-cpu"}
    (proven,) = lab.add("proven")
    try:
        done = deploy("-y", on="proven", canaries=canaries, runtime=real, ready_timeout_s=240)
        assert done.returncode == 0, done.stderr
        assert hardening(proven) == hardening(guarded)
        assert "exposure level for vllm-tiny.service" in exposure(proven, "vllm-tiny.service")
        assert serving.share_right(proven, api_key=canaries.tokens["CANARY_API_KEY"]) > 0.9
        assert canaries.found_in(witness.told(proven)) == []
    finally:
        lab.remove("proven")


def hardening(host: Host) -> list[str]:
    """The unit from its first line of hardening on; each release binds a cache of its own."""
    unit = host.ssh("systemctl cat vllm-tiny").stdout
    return re.sub(r"releases/[0-9a-f]+/", "", unit[unit.index("NoNewPrivileges=") :]).splitlines()
