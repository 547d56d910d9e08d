"""A fleet from files: layers and where they come from, the lock, `--limit`, and pyinfra's own
command line.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from resolving import resolve

from pyinfra_vllm import fleet, inventory, spoken
from pyinfra_vllm.checkpoint import Checkpoint, File, Lock, render
from pyinfra_vllm.config import Fleet, Overrides
from pyinfra_vllm.config.declared import KEYS
from pyinfra_vllm.errors import CheckpointRefused, DeclarationError, LockError

PROJECT = Path(__file__).parents[2]

INVENTORY = """
small = ["gpu-1.invalid", ("gpu-2.invalid", {"root": "/data/models"})]
big = ["gpu-3.invalid"]
"""
ALL = """
services = {"chat": {"model": "acme/tiny-awq", "runtime": {"version": "0.33.0"}, "port": 8000}}
ssh_user = "deploy"
"""


def entry(repo: str, revision: str = "main") -> Checkpoint:
    files = tuple(File(path=path, size=1, sha256="0" * 64) for path in ("config.json", "model.safetensors"))
    return Checkpoint(
        repo=repo, revision=revision, commit="0" * 40, files=files, config={"model_type": "qwen3"}
    )


# An entry under the name of one model that holds another one.
ANOTHER_MODEL = render([entry("acme/other-awq")]).replace("acme/other-awq@main:", "acme/tiny-awq@main:")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with one inventory, as a user would have it, and the directory that
    commands run in.
    """
    monkeypatch.chdir(tmp_path)
    write("inventory/prod.py", INVENTORY)
    write("group_data/all.py", ALL)
    write("config.py", (PROJECT / "config.py").read_text())
    write("deploy.py", "from pyinfra_vllm import fleet\n\nfleet.declared()\n")
    Lock([entry("acme/tiny-awq")]).dump()
    return tmp_path


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(text)


def load(**options: Any) -> fleet.Fleet:
    return fleet.load("inventory/prod.py", **options)


def refusal(**options: Any) -> str:
    with pytest.raises(DeclarationError) as caught:
        load(**options)
    return str(caught.value)


def test_every_host_gets_its_services_and_its_own_root() -> None:
    found = load()
    assert list(found.hosts) == ["gpu-1.invalid", "gpu-2.invalid", "gpu-3.invalid"]
    assert [host.root for host in found.hosts.values()] == [
        "/srv/pyinfra-vllm",
        "/data/models",
        "/srv/pyinfra-vllm",
    ]
    assert found.selected == tuple(found.hosts)
    assert found.checkpoint(found.hosts["gpu-1.invalid"].service("chat")) == entry("acme/tiny-awq")
    assert found.models() == (("acme/tiny-awq", "main"),)
    assert found.waves == 2


def test_the_particular_wins_over_the_general() -> None:
    write("group_data/prod.py", 'services = {"chat": {"port": 8001, "user": "prod", "bind": "10.0.0.1"}}')
    write("group_data/small.py", 'services = {"chat": {"port": 8002, "user": "small"}}')
    write("inventory/prod.py", INVENTORY.replace('{"root"', '{"services": {"chat": {"port": 8003}}, "root"'))
    hosts = load(overrides={"services": {"chat": {"objective": "latency"}}}).hosts
    one, two, three = (host.service("chat") for host in hosts.values())
    assert (one.port, one.user, one.bind) == (8002, "small", "10.0.0.1")
    assert (two.port, two.user, two.bind) == (8003, "small", "10.0.0.1")
    assert (three.port, three.user, three.bind) == (8001, "prod", "10.0.0.1")
    assert {one.objective, two.objective, three.objective} == {"latency"}


def test_a_host_may_do_without_a_service_of_its_group() -> None:
    write("group_data/big.py", 'services = {"chat": None}')
    assert load().hosts["gpu-3.invalid"].services == ()
    assert load(limit=["gpu-1*"]).serving == {"chat": ("gpu-1.invalid", "gpu-2.invalid")}


def test_messages_name_the_file_that_said_it() -> None:
    write("group_data/all.py", ALL + "gate = {'quality': 3}")
    write("group_data/small.py", 'services = {"chat": {"prot": 8002}}')
    write("inventory/prod.py", INVENTORY.replace("/data/models", "data"))
    write("extra/big.py", 'services = {"chat": {"user": "root"}}')
    told = refusal(group_data=["extra"], overrides={"services": {"chat": {"port": 0}}})
    for line in (
        "group_data/all.py: gate.quality = 3: must be",
        "group_data/small.py: services.chat.prot = 8002: unknown key",
        "inventory/prod.py (host gpu-2.invalid): root = 'data': must be an absolute path",
        "extra/big.py: services.chat.user = 'root': a service never runs as root",
        "--data: services.chat.port = 0: must be a port",
    ):
        assert f"  {line}" in told
    assert told.startswith("The declaration has 5 problems; no host was contacted.")


def test_slips_of_the_pen_beside_our_keys_are_found_and_foreign_keys_left_alone() -> None:
    write("group_data/all.py", ALL.replace("services", "servces") + "database = 1\n_sudo = True\nroute = 1")
    assert 'group_data/all.py: servces: unknown key; did you mean "services"?' in refusal()


def test_what_is_for_one_run_only_may_not_stand_in_a_file() -> None:
    write("group_data/all.py", ALL + "switch_now = True")
    assert "group_data/all.py: switch_now: only for one run: give it as `--data switch_now=...`" in refusal()


@pytest.mark.parametrize("key", ["service", "release"])
def test_a_rollout_does_not_overlook_what_only_a_rollback_takes(key: str) -> None:
    told = refusal(overrides={key: "chat"})
    assert f"--data: {key} = 'chat': only for rollback.py; a rollout takes all that its hosts declare" in told


def test_files_that_python_cannot_run_are_named_with_their_line() -> None:
    write("group_data/small.py", "services = {\n  'chat': \n")
    assert "group_data/small.py, line" in refusal()
    write("group_data/small.py", "import os\n\nport = os.environ['NO_SUCH_VARIABLE']\n")
    assert "group_data/small.py, line 3: KeyError" in refusal()
    with pytest.raises(DeclarationError, match="There is no inventory inventory/pord"):
        fleet.load("inventory/pord.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('prod = [("gpu-1",)]', "A group is a list of names, or of tuples of a name and a map."),
        ('prod = [("gpu-1", 3)]', "A group is a list of names"),
        ('prod = [""]', "A group is a list of names"),
        ("import sys\nsys.exit(0)", "inventory/odd.py, line 2: it ends the program: 0."),
        ('import sys\nsys.exit("no CMDB")', "inventory/odd.py, line 2: it ends the program: no CMDB."),
        ('prod = ["gpu-1"]\0', "inventory/odd.py: source code string cannot contain null bytes."),
        ("prod = []", 'inventory/odd.py has no hosts: list their names, like prod = ["gpu1"].'),
    ],
)
def test_an_inventory_that_lists_no_hosts_is_refused_with_what_it_may_be(text: str, message: str) -> None:
    write("inventory/odd.py", text)
    Path("inventory/prod.py").unlink()
    with pytest.raises(DeclarationError) as refused:
        fleet.load("inventory/odd.py")
    assert message in str(refused.value)


@pytest.mark.thorough
def test_an_inventory_that_ends_the_program_is_no_finished_rollout() -> None:
    write("inventory/prod.py", "import sys\nsys.exit(0)")
    ended = pyinfra("inventory/prod.py", "deploy.py", "--dry")
    assert ended.returncode == 2, ended.stderr
    assert "inventory/prod.py, line 2: it ends the program: 0. No host was contacted." in ended.stderr


def test_keys_of_a_host_that_are_no_names_are_left_alone() -> None:
    write("inventory/odd.py", 'small = [("gpu-1.invalid", {1: 2})]')
    assert list(fleet.load("inventory/odd.py").hosts) == ["gpu-1.invalid"]


def test_group_data_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeclarationError, match="--group-data typo is neither a folder nor a Python file"):
        load(group_data=["typo"])
    write("more/small.py", "keep = []")
    assert load(group_data=["more", "more/small.py"]).hosts


def test_a_limit_takes_hosts_globs_and_groups_and_must_match() -> None:
    assert load(limit=["big", "gpu-1*"]).selected == ("gpu-1.invalid", "gpu-3.invalid")
    assert load(exclude=["small"]).selected == ("gpu-3.invalid",)
    assert "--limit: 'biig' matches no host or group" in refusal(limit=["biig"])
    assert "--exclude: leaves none of the hosts gpu-3.invalid" in refusal(limit=["big"], exclude=["gpu-3*"])


def test_secrets_of_this_runs_hosts_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    write("group_data/big.py", 'services = {"chat": {"secrets": {"VLLM_API_KEY": "CHAT_KEY"}}}')
    monkeypatch.delenv("CHAT_KEY", raising=False)
    line = (
        "group_data/big.py: services.chat.secrets.VLLM_API_KEY: the environment variable CHAT_KEY is not set"
    )
    assert line in refusal()
    assert load(limit=["small"]).selected
    assert load(need_lock=False).hosts
    monkeypatch.setenv("CHAT_KEY", "")
    assert line in refusal()
    monkeypatch.setenv("CHAT_KEY", "x")
    assert load().warnings == ()


@pytest.mark.parametrize(
    "character", ["\n", "\r", "\t", "\x0b", "\x85", "\u2028", "\u2029", "\ufffe", "\udcff"]
)
def test_a_secret_that_no_line_can_hold_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, character: str
) -> None:
    write("group_data/big.py", 'services = {"chat": {"secrets": {"VLLM_API_KEY": "CHAT_KEY"}}}')
    monkeypatch.setenv("CHAT_KEY", f"hunter2{character}INJECTED=1")
    told = refusal()
    assert (
        "services.chat.secrets.VLLM_API_KEY: the environment variable CHAT_KEY has a value that must not"
        in told
    )
    assert "hunter2" not in told and "INJECTED" not in told
    assert load(limit=["small"]).selected


def test_a_key_that_no_header_can_hold_is_refused_and_another_secret_may_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHAT_KEY", "hunter2€")
    write("group_data/big.py", 'services = {"chat": {"secrets": {"VLLM_API_KEY": "CHAT_KEY"}}}')
    assert "the environment variable CHAT_KEY has a value that must be ASCII" in refusal()
    write("group_data/big.py", 'services = {"chat": {"secrets": {"WORDS": "CHAT_KEY"}}}')
    assert load().warnings == ()


def test_every_declared_model_must_be_locked() -> None:
    write("group_data/big.py", 'services = {"chat": {"model": "acme/other-awq"}}')
    write("group_data/small.py", 'services = {"chat": {"revision": "v2"}}')
    with pytest.raises(LockError) as caught:
        load()
    assert "acme/other-awq" in str(caught.value) and "'v2'" in str(caught.value)
    assert "pyinfra-vllm lock" in str(caught.value)
    Path("checkpoints.lock.yaml").unlink()
    with pytest.raises(LockError, match="pyinfra-vllm lock"):
        load()
    assert load(need_lock=False).models() == (("acme/other-awq", "main"), ("acme/tiny-awq", "v2"))


def test_an_inventory_without_hosts_and_a_fleet_without_services_are_noticed() -> None:
    write("group_data/all.py", "")
    assert "is this the project's directory?" in load().warnings[0]
    write("inventory/none.py", "hosts = []\n")
    with pytest.raises(DeclarationError, match="has no hosts"):
        fleet.load("inventory/none.py")


def test_starts_of_each_side_may_be_given_for_one_run() -> None:
    write("group_data/prod.py", 'services = {"chat": {"gate": {"budget_s": 60}}}')
    gates = [
        host.service("chat").gate.criteria()
        for host in load(overrides=spoken.parse_data(['gate={"restarts": 2}'])).hosts.values()
    ]
    assert {(gate.restarts, gate.budget_s) for gate in gates} == {(2, 60)}


@pytest.mark.thorough
def test_a_run_from_another_directory_prepares_no_host(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There pyinfra finds neither config.py nor group_data/, and `root` would be the default."""
    write("inventory/prod.py", "here = ['@local']\n")
    write(
        "deploy.py",
        f"from pyinfra_vllm import fleet\nfleet.declared()\nopen({str(project / 'went on')!r}, 'w')",
    )
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    ended = pyinfra(str(project / "inventory/prod.py"), str(project / "deploy.py"), "-y")
    assert ended.returncode == 2, ended.stderr
    assert "nothing is declared for any of its hosts; run in the project's directory" in ended.stderr
    assert "Traceback" not in ended.stderr and not (project / "went on").exists()


def test_overrides_are_read_strictly() -> None:
    data = spoken.parse_data(["switch_now=true", "reason=1234", "ssh_user=x", "operator=ann"])
    given = load(overrides=data).overrides
    assert given == Overrides(switch_now=True, reason="1234", operator="ann")
    assert given.used == ("switch_now",)
    assert load().overrides.operator
    assert "--data: verify = 3: must be true or false" in refusal(overrides={"verify": 3})
    assert '--data: swich_now = True: unknown key; did you mean "switch_now"?' in refusal(
        overrides={"swich_now": True}
    )
    with pytest.raises(DeclarationError, match="key=value"):
        spoken.parse_data(["switch_now"])


def test_the_worked_example_is_valid_and_shows_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_API_KEY", "x")
    shutil.rmtree("group_data")
    for path in ("inventory/prod.py", "group_data/prod.py", "group_data/h200.py", "group_data/rtx4090.py"):
        write(path, (PROJECT / path).read_text())
    Lock([entry("Qwen/Qwen3-14B-AWQ"), entry("Qwen/Qwen3-32B-AWQ")]).dump()
    found = load()
    assert found.warnings == ()
    big, small = found.hosts["gpu-01.example.net"], found.hosts["box-01.example.net"]
    assert big.service("chat").model == "Qwen/Qwen3-32B-AWQ"
    assert big.service("chat").gate.min_tokens_per_s == {"c1": 70, "max": 200}
    assert small.service("chat").max_model_len == 8192
    assert found.hosts["gpu-02.example.net"].root == "/data/pyinfra-vllm"
    reference = (PROJECT / "group_data/prod.py").read_text()
    service = big.service("chat")
    assert all(f"\n{key} = " in reference for key in KEYS)
    assert big.sources.swarm is not None
    for model in (
        service,
        service.runtime,
        service.gate,
        service.hooks,
        found.rollout,
        big.sources,
        big.sources.swarm,
    ):
        for key in type(model).model_fields:
            assert key == "name" or f'"{key}"' in reference or f"`{key}`" in reference, (
                f"{key} is not in the configuration reference"
            )


def test_a_checkpoint_with_code_serves_only_where_a_reason_says_so() -> None:
    locked = entry("acme/tiny-awq")
    Lock(
        [dataclasses.replace(locked, files=(*locked.files, File(path="own.py", size=1, sha256="0" * 64)))]
    ).dump()
    with pytest.raises(CheckpointRefused, match=r"gpu-1\.invalid: service chat: .* Declare why it may run"):
        load()
    write("group_data/all.py", ALL.replace('"port"', '"allow_code": "read in ticket 7", "port"'))
    assert load().hosts["gpu-1.invalid"].service("chat").allow_code == "read in ticket 7"


def test_the_worked_example_loads_where_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    assert len(load(need_lock=False).hosts) == 4


def test_the_worked_example_fits_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    for host in load(need_lock=False).hosts.values():
        for service in host.services:
            answer = resolve(
                model=service.model,
                gpu=service.gpu or "",
                runtime=service.runtime.version or "",
                objective=service.objective,
                max_model_len=service.max_model_len,
                flags=service.flags,
            )
            assert answer.fit is not None and answer.fit.fits and not answer.errors, (
                host.host,
                answer.errors,
            )


def pyinfra(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "pyinfra"), *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        (
            {"group_data/small.py": 'services = {"chat": {"prot": 1}}'},
            (),
            'prot = 1: unknown key; did you mean "port"?',
        ),
        ({"checkpoints.lock.yaml": "schema: x\n"}, (), "checkpoints.lock.yaml"),
        ({"checkpoints.lock.yaml": ANOTHER_MODEL}, (), "acme/tiny-awq@main"),
        ({}, ("--limit", "nobody"), "matches no host"),
        ({}, ("--no-wait",), "--no-wait hides failed hosts"),
        ({}, ("--serial",), "--serial takes hosts in another order"),
        ({}, ("--retry", "2"), "--retry would switch a host again"),
    ],
)
def test_pyinfra_ends_with_2_before_it_contacts_a_host(
    files: dict[str, str], arguments: tuple[str, ...], message: str
) -> None:
    for path, text in files.items():
        write(path, text)
    ended = pyinfra("inventory/prod.py", "deploy.py", "-y", *arguments)
    assert ended.returncode == 2, ended.stderr
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr and "Connecting" not in ended.stderr


@pytest.mark.thorough
def test_what_needs_no_declaration_runs_without_a_valid_one() -> None:
    write("group_data/small.py", 'services = {"chat": {"prot": 1}}')
    write("rollback.py", "from pyinfra_vllm import fleet\n\nprint('told', fleet.way_back())\n")
    assert pyinfra("@local", "-y", "exec", "--", "true").returncode == 0
    ended = pyinfra("@local", "-y", "rollback.py", "--data", "operator=ann")
    assert ended.returncode == 0, ended.stderr
    assert "operator='ann'" in ended.stdout


@pytest.mark.thorough
def test_deploy_files_see_the_fleet_that_was_checked() -> None:
    write("inventory/prod.py", 'small = ["@local"]')
    write(
        "deploy.py",
        (
            "from pyinfra import host\nfrom pyinfra_vllm import"
            " fleet\n\nprint(fleet.declared().hosts[host.name])\n"
        ),
    )
    ended = pyinfra("inventory/prod.py", "deploy.py", "-y")
    assert ended.returncode == 0, ended.stderr
    assert "acme/tiny-awq" in ended.stdout


# The way back


@pytest.fixture
def way_back(tmp_path: Path) -> Path:
    """A host that has the services chat and embed, below a root that two group files disagree about."""
    write("rollback.py", (PROJECT / "rollback.py").read_text())
    write("inventory/prod.py", 'small = ["@local"]\nbig = ["gpu-3.invalid"]\n')
    write("group_data/prod.py", f"root = {str(tmp_path / 'elsewhere')!r}\n")
    write("group_data/small.py", f"root = {str(tmp_path / 'here')!r}\nservices = {{'chat': {{'prot': 1}}}}\n")
    for service in ("chat", "embed"):
        (tmp_path / "here" / service / "releases").mkdir(parents=True)
    return tmp_path / "here"


def go_back(*arguments: str) -> subprocess.CompletedProcess[str]:
    return pyinfra("inventory/prod.py", "rollback.py", "-y", *arguments)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (),
            (
                "rollback.py restarts all of its hosts at once, and the inventory has 2: name one with"
                " `--limit HOST`"
            ),
        ),
        (("--exclude", "big"), "name one with `--limit HOST`"),
        (("--limit", "nobody"), "--limit: 'nobody' matches no host or group"),
        (
            ("--limit", "small", "--data", "reson=x"),
            "--data: reson = 'x': unknown key; did you mean \"reason\"?",
        ),
        (("--limit", "small", "--data", "reason"), "--data reason: must be key=value"),
        (("--limit", "small", "--no-wait"), "--no-wait hides failed hosts"),
    ],
)
def test_invalid_rollback_arguments_end_it_before_a_host_is_contacted(
    way_back: Path, arguments: tuple[str, ...], message: str
) -> None:
    ended = go_back(*arguments)
    assert ended.returncode == 2, ended.stderr
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr and "Connecting" not in ended.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("data", [(), ("--data", "service=embed")])
def test_a_host_without_the_wanted_service_fails_and_says_what_it_has(
    way_back: Path, data: tuple[str, ...]
) -> None:
    shutil.rmtree(way_back / "embed")
    if not data:
        shutil.rmtree(way_back)
    ended = go_back("--limit", "small", *data)
    assert ended.returncode == 1, ended.stderr
    has = (
        f"no service embed below {way_back}; it has chat."
        if data
        else f"no service below {way_back}; it has none."
    )
    assert has in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.thorough
def test_a_group_may_be_named_to_take_all_of_it_back(way_back: Path) -> None:
    write("inventory/prod.py", 'small = ["@local"]\n')
    Path("group_data/prod.py").unlink()
    for limit in ((), ("--limit", "prod"), ("--limit", "*")):
        assert "it has chat, embed" in go_back(*limit, "--data", "service=code").stderr


@pytest.mark.thorough
def test_what_was_typed_is_taken_as_it_was_typed(way_back: Path) -> None:
    write("rollback.py", "from pyinfra_vllm import fleet\n\nprint(fleet.way_back())\n")
    for release in ("123456789012", "012345678901", "4711e0000000"):
        data = (f"release={release}", "service=0123", "reason=007", "operator=true")
        ended = go_back("--limit", "small", *(word for item in data for word in ("--data", item)))
        assert ended.returncode == 0, ended.stderr
        for told in (f"release='{release}'", "service='0123'", "reason='007'", "operator='true'"):
            assert told in ended.stdout


def test_the_way_back_and_all_that_look_find_what_a_rollout_made(tmp_path: Path) -> None:
    write("group_data/prod.py", 'root = "/of/the/inventory"\n')
    write("group_data/big.py", 'root = "/of/the/group/"\n')
    declared = load().hosts
    found = {host.name: fleet.root_of(host) for host in inventory.load("inventory/prod.py", {}, ())}
    assert found == {name: host.root for name, host in declared.items()}
    assert list(found.values()) == ["/of/the/inventory", "/data/models", "/of/the/group"]
    write("group_data/big.py", 'root = None\nservices = {"chat": {"prot": 1}}\n')
    roots = [fleet.root_of(host) for host in inventory.load("inventory/prod.py", {"root": "/said"}, ())]
    assert roots == ["/said"] * 3
    (*_, last) = [fleet.root_of(host) for host in inventory.load("inventory/prod.py", {}, ())]
    assert last == "/srv/pyinfra-vllm"


ONE_GROUP = 'h200 = ["gpu-1.invalid"]\n'
SETTINGS = 'services = {"chat": {"max_model_len": %d, "flags": {"max-num-seqs": %d}}}\nssh_user = "%s"\n'


@pytest.mark.parametrize(
    "more",
    [
        pytest.param('spare = ["gpu-9.invalid"]\n', id="a second group"),
        pytest.param('spare = ["gpu-1.invalid"]\n', id="another group of the same host"),
        pytest.param('spare = ["gpu-1.invalid", "gpu-9.invalid"]\n', id="another group with a second host"),
    ],
)
def test_nothing_of_a_host_changes_when_others_come_into_the_inventory(more: str) -> None:
    """A group that happens to hold every host is still a group, and wins over the file of the whole inventory."""  # noqa: E501
    write("group_data/prod.py", SETTINGS % (32768, 64, "inventory"))
    write("group_data/h200.py", SETTINGS % (8192, 8, "group"))
    write("inventory/prod.py", ONE_GROUP)
    alone = load().hosts["gpu-1.invalid"]
    write("inventory/prod.py", ONE_GROUP + more)
    beside = load().hosts["gpu-1.invalid"]
    assert alone == beside
    assert (alone.services[0].max_model_len, alone.services[0].flags) == (8192, {"--max-num-seqs": 8})


def test_a_host_in_one_more_group_changes_no_release() -> None:
    write("group_data/prod.py", SETTINGS % (32768, 64, "inventory"))
    write("group_data/small.py", SETTINGS % (8192, 8, "group"))
    before = load().hosts
    write("inventory/prod.py", INVENTORY + 'rack = ["gpu-3.invalid", "gpu-1.invalid"]\n')
    assert load().hosts == before
    assert [host.services[0].max_model_len for host in before.values()] == [8192, 8192, 32768]


@pytest.mark.parametrize("listed", ["prod", "everything"])
def test_the_inventory_s_own_group_is_the_general_one_wherever_it_is_listed(listed: str) -> None:
    write("group_data/prod.py", SETTINGS % (32768, 64, "inventory"))
    write("group_data/small.py", SETTINGS % (8192, 8, "group"))
    write("inventory/prod.py", f'{INVENTORY}{listed} = ["gpu-1.invalid", "gpu-2.invalid", "gpu-3.invalid"]\n')
    assert [host.services[0].max_model_len for host in load().hosts.values()] == [8192, 8192, 32768]


@pytest.mark.thorough
def test_pyinfra_s_own_settings_follow_the_same_order() -> None:
    """`ssh_user` and the like are read by pyinfra itself, also where its own command line loads the inventory."""  # noqa: E501
    write("group_data/prod.py", 'ssh_user = "inventory"\n')
    write("group_data/small.py", 'ssh_user = "group"\n')
    wanted = {"gpu-1.invalid": "group", "gpu-2.invalid": "group", "gpu-3.invalid": "inventory"}
    loaded = inventory.load("inventory/prod.py", {}, ())
    assert {host.name: host.data.ssh_user for host in loaded} == wanted
    command = [str(Path(sys.executable).parent / "pyinfra"), "--json", "inventory/prod.py", "debug-inventory"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    assert {host["name"]: host["data"]["ssh_user"] for host in json.loads(told.stdout)} == wanted


@pytest.mark.thorough
def test_a_project_without_config_py_has_the_same_order(project: Path) -> None:
    write("group_data/prod.py", SETTINGS % (32768, 64, "inventory"))
    write("group_data/h200.py", SETTINGS % (8192, 8, "group"))
    write("inventory/prod.py", 'h200 = ["@local"]\n')
    write("deploy.py", "from pyinfra_vllm import fleet\n\nprint(fleet.declared().hosts)\n")
    (project / "config.py").unlink()
    command = [str(Path(sys.executable).parent / "pyinfra"), "inventory/prod.py", "deploy.py", "--dry"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    assert "max_model_len=8192" in told.stdout
    for option in ("--no-wait", "--serial"):
        told = subprocess.run([*command, option], capture_output=True, text=True, timeout=60)
        assert told.returncode == 2 and f"Not started: {option}" in told.stderr, told.stderr


def test_deploy_takes_of_a_fleet_only_what_it_has() -> None:
    tree = ast.parse((PROJECT / "deploy.py").read_text())
    asked = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "declared"
    }
    assert asked <= {*dir(Fleet), *Fleet.__dataclass_fields__}
    assert {"waves", "waves_back", "hosts"} <= asked, "else this looks at nothing"
