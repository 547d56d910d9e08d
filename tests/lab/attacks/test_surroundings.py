"""Surroundings of root's programs and of the unit.

A login's limits, umask and language, systemd's defaults, D-Bus, names, signals.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pyinfra_vllm.operations.util.archive import archive, program_name

from .people import MALLORY, PLACE, ROOT, SERVICE, UNIT, Attacked, sources

pytestmark = pytest.mark.full

BASHRC = "/home/ops/.bashrc"  # what a colleague left there; Debian's bash reads it for each command over SSH
LOGINS = {
    "everybody may write": ("umask 0", "umask", "0000"),
    "nobody may read": ("umask 0777", "umask", "0777"),
    "files of 4 kB": ("ulimit -f 4", "ulimit -f", "4"),
    "eight open files": ("ulimit -n 8", "ulimit -n", "8"),
    "no memory": ("ulimit -v 20000", "ulimit -v", "20000"),
    "bytes for letters": ("export LC_ALL=tr_TR.ISO-8859-9", "echo $LC_ALL", "tr_TR.ISO-8859-9"),
}


@pytest.fixture
def untouched_login(serving: Attacked) -> Iterator[Attacked]:
    serving.sh(f"test -e {BASHRC}.kept || cp -p {BASHRC} {BASHRC}.kept 2>/dev/null || touch {BASHRC}.kept")
    yield serving
    serving.sh(f"mv -f {BASHRC}.kept {BASHRC}")


@pytest.mark.parametrize("name", LOGINS)
def test_a_logins_limits_umask_and_language_leave_nothing_half_done(
    untouched_login: Attacked, name: str
) -> None:
    """It is rolled out, or refused while the old one serves; no file is half there or open to others."""
    target, (line, ask, said) = untouched_login, LOGINS[name]
    old = target.status()["current"]
    if "LC_ALL" in line:
        target.sh("localedef -i tr_TR -f ISO-8859-9 tr_TR.ISO-8859-9 2>/dev/null", check=False)
    target.sh(f"rm {ROOT}/bin/on-host.pyz {ROOT}/bin/on-host-*.pyz")
    target.host.ssh(f"cat > {BASHRC}", stdin=f"{line}\n")
    assert target.host.ssh(ask, user="ops", check=False).stdout.strip().splitlines()[-1:] == [said]
    done = target.deploy("b", LIGHT_NOTHING=f"Ü {name}")
    target.sh(f"rm {BASHRC}")
    if done.returncode:
        target.deployed("a")  # whatever there was in its way, it left nothing
    found = target.status()
    assert found["running"] == found["current"], found
    assert done.returncode or found["current"] != old
    assert target.sources(f"{ROOT}/bin/{program_name()}") == sources(archive())
    assert target.sh(f"find {ROOT} /run/pyinfra-vllm ! -type l -perm /022") == ""
    last = json.loads(target.sh(f'grep \'"step": *"end"\' {SERVICE}/journal.jsonl | tail -n 1'))
    assert last["outcome"] in ("committed", "rolled_back", "refused")


DEFAULTS = "/etc/systemd/system.conf.d/attack.conf"


@pytest.mark.parametrize("limit", ["DefaultLimitFSIZE=64K", "DefaultLimitNOFILE=32", "DefaultLimitNPROC=4"])
def test_systemds_default_limits_leave_the_old_or_the_new_release_serving(
    serving: Attacked, limit: str
) -> None:
    old = serving.status()["current"]
    serving.sh(
        f"mkdir -p {DEFAULTS.rpartition('/')[0]}; printf '[Manager]\\n{limit}\\n' > {DEFAULTS};"
        " systemctl daemon-reexec"
    )
    try:
        done = serving.deploy("b", LIGHT_NOTHING=limit)
    finally:
        serving.sh(f"rm {DEFAULTS}; systemctl daemon-reexec")
    serving.sh(f"python3 -I {ROOT}/bin/on-host.pyz recover tiny")
    found = serving.status()
    assert found["running"] == found["current"] and (found["current"] == old) == bool(done.returncode), (
        done.stderr[-3000:]
    )


# Asked by another user of the host: systemd, D-Bus, the kernel, the folders that root's programs look into.
ASKS = f"""
names="org.freedesktop.systemd1 org.freedesktop.login1 org.freedesktop.hostname1 org.freedesktop.PolicyKit1 com.github.pyinfra_vllm"
for name in $names; do
    busctl --system call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus RequestName su $name 4 && echo "GOT the name $name"
done
manager="busctl --system call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager"
for unit in {UNIT} pyinfra-vllm-switch-tiny.service pyinfra-vllm-recover@tiny.service pyinfra-vllm-recover-due.timer; do
    $manager StopUnit ss $unit replace && echo "GOT $unit stopped"
    $manager KillUnit ssi $unit all 9 && echo "GOT $unit killed"
    $manager StartTransientUnit 'ssa(sv)a(sa(sv))' $unit fail 1 Description s taken 0 && echo "GOT $unit"
done
$manager Reload && echo "GOT a reload"
$manager SetEnvironment as 1 PYTHONPATH={PLACE} && echo "GOT an environment"
for pid in $(systemctl show -P MainPID {UNIT}) $(pgrep -u root); do
    kill -STOP $pid && echo "GOT $pid stopped"
    cat /proc/$pid/environ > /dev/null && echo "GOT the environment of $pid"
    cat /proc/$pid/mem > /dev/null && echo "GOT the memory of $pid"
    ls /proc/$pid/fd/ > /dev/null && echo "GOT the descriptors of $pid"
done
for folder in /run /run/systemd /run/systemd/system /run/systemd/transient /run/systemd/units /run/pyinfra-vllm /run/credentials \
    /etc/systemd/system /etc/systemd/system.conf.d /usr/local/bin /usr/local/lib/python3*/dist-packages /var/lib/systemd; do
    test -d $folder && touch $folder/mallory && echo "GOT a file in $folder"
    ln -s /etc/passwd $folder/mallory.link && echo "GOT a link in $folder"
done
for file in {ROOT}/bin/on-host.pyz {SERVICE}/current/release.json {SERVICE}/journal.jsonl /etc/shadow; do
    ln $file {PLACE}/hard-$$ && echo "GOT a hard link to $file" && rm -f {PLACE}/hard-$$
done
echo done
"""  # noqa: E501


def test_another_user_gets_nothing_of_systemd_d_bus_processes_and_names(serving: Attacked) -> None:
    before = serving.main_pid()
    script = serving.put("asks.sh", ASKS)
    told = serving.sh(f"runuser -u {MALLORY} -- bash {script} 2>/dev/null")
    assert told.splitlines()[-1] == "done"
    assert [line for line in told.splitlines() if line.startswith("GOT")] == []
    assert serving.main_pid() == before
    serving.deployed("b")


def test_a_unit_of_a_name_that_we_will_take_is_no_users(serving: Attacked) -> None:
    """A user's own systemd may have units of our names; the host's own tells of ours alone."""
    place = f"/home/{MALLORY}/.config/systemd/user"
    serving.sh(
        f"mkdir -p {place} && cp /etc/systemd/system/{UNIT} {place}/"
        f" && cp {place}/{UNIT} {place}/pyinfra-vllm-switch-tiny.service"
    )
    try:
        serving.deployed("b")
        assert serving.sh(f"systemctl show -P FragmentPath {UNIT}").startswith(
            (SERVICE, "/etc/systemd/system/")
        )
    finally:
        serving.sh(f"rm -r /home/{MALLORY}/.config")
