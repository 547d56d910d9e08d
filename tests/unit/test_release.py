"""A release is named by what it is started from, and its unit holds nothing that systemd would expand."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_syntax import command, directives

from pyinfra_vllm import release, rendering
from pyinfra_vllm.checkpoint import Checkpoint
from pyinfra_vllm.config import Layer, Problems, declare, merge
from pyinfra_vllm.operations.util import planning
from pyinfra_vllm.release import Release
from pyinfra_vllm.tuning.resolution import Resolution

PRINTABLE = st.text(alphabet=st.characters(exclude_categories=("Cc", "Cs")), max_size=60)


def make(**changes: Any) -> Release:
    values: dict[str, Any] = {
        "service": "chat",
        "root": "/srv/pyinfra-vllm",
        "user": "vllm",
        "bind": "127.0.0.1",
        "port": 8000,
        "served_model_name": "org/model",
        "argv": ("/opt/vllm/bin/vllm", "serve", "/srv/x", "--port", "8000"),
        "environment": {"HF_HUB_OFFLINE": "1"},
        "checkpoint": {"repo": "org/model", "revision": "main", "commit": "a" * 40, "directory": "/srv/x"},
        "runtime": {"version": "0.33.0", "path": "/opt/vllm"},
        "stop_limit_s": 60,
    }
    return Release(**{**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"argv": ("/opt/vllm/bin/vllm", "serve", "/srv/x", "--port", "8001")},
        {"environment": {"HF_HUB_OFFLINE": "0"}},
        {"checkpoint": {"repo": "org/model", "revision": "main", "commit": "b" * 40, "directory": "/srv/y"}},
        {"runtime": {"version": "0.32.0", "path": "/opt/vllm"}},
        {"user": "other"},
        {"stop_limit_s": 90},
        {"gpu_count": 1},
    ],
)
def test_the_id_changes_with_what_the_service_is_started_from(changes: dict[str, Any]) -> None:
    assert make(**changes).id != make().id


def test_the_id_stays_when_only_our_own_notes_change() -> None:
    assert make(fit={"fits": True}, kernel=["MarlinLinearKernel"]).id == make().id == make().id


def test_id_renders_the_template_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[str] = []
    render = Release._unit
    monkeypatch.setattr(Release, "_unit", lambda this, name: rendered.append(name) or render(this, name))
    made = make()
    assert made.id == made.id == made.id
    assert len(rendered) == 1


def test_the_files_agree_with_each_other() -> None:
    files = make().files()
    document = json.loads(files["release.json"])
    assert document["id"] == make().id
    assert f"PYINFRA_VLLM_RELEASE={document['id']}" in files["vllm.service"]
    assert files["argv"].splitlines() == document["argv"]
    assert files["env"] == 'HF_HUB_OFFLINE="1"\n'
    assert f"/releases/{document['id']}/env" in files["vllm.service"]


@pytest.mark.parametrize(
    ("bind", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("10.0.0.4", "http://10.0.0.4:8000"),
        ("fd00::4", "http://[fd00::4]:8000"),
    ],
)
def test_the_host_asks_the_address_that_the_server_listens_on(bind: str, url: str) -> None:
    assert json.loads(make(bind=bind).files()["release.json"])["url"] == url


@given(PRINTABLE)
def test_a_word_of_a_unit_file_comes_back_as_it_was(text: str) -> None:
    """Undone by systemd's own rules (systemd.service(5), COMMAND LINES), written out here a second time."""
    word = rendering.quoted(text)
    assert word[0] == word[-1] == '"' and "\n" not in word
    plain, body = "", iter(word[1:-1])
    for character in body:
        if character == "\\":
            plain += next(body)
        elif character in "%$":
            assert next(body) == character
            plain += character
        else:
            assert character != '"'
            plain += character
    assert plain == text


@given(st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,9}", fullmatch=True), PRINTABLE, max_size=4))
def test_an_environment_file_comes_back_as_it_was(environment: dict[str, str]) -> None:
    read = {}
    for line in rendering.environment_file(environment).splitlines(keepends=True):
        name, _, value = line.rstrip("\n").partition("=")
        plain, body = "", iter(value[1:-1])
        for character in body:
            plain += next(body) if character == "\\" else character
        read[name] = plain
    assert read == environment


def test_the_difference_names_flags_with_their_values() -> None:
    old = ["serve", "/a", "--port", "8000", "--enforce-eager"]
    new = ["serve", "/b", "--port", "8000", "--max-num-seqs", "8"]
    assert release.difference(old, new) == ["- /a", "- --enforce-eager", "+ /b", "+ --max-num-seqs 8"]


@pytest.mark.parametrize("reason", [None, "read in ticket 7"])
def test_code_of_the_checkpoint_runs_only_with_a_reason_which_is_recorded(reason: str | None) -> None:
    chat = {"model": "org/model", "runtime": {"version": "0.33.0"}, "port": 8000, "allow_code": reason}
    declared = declare("gpu-1", merge([Layer("f", {"services": {"chat": chat}})]), Problems())
    assert declared is not None
    locked = Checkpoint(repo="org/model", revision="main", commit="a" * 40, files=())
    made = planning._release("/srv/x", declared.services[0], locked, Resolution(), "0.33.0", [], {})
    assert ("--trust-remote-code" in made.argv) == bool(reason)
    assert json.loads(made.files()["release.json"])["allow_code"] == reason


def test_a_release_can_be_copied_with_changes() -> None:
    assert dataclasses.replace(make(), port=9).port == 9


def standing_by(**changes: Any) -> Release:
    argv = ("/opt/vllm/bin/vllm", "serve", "/srv/x", *release.OBEY_ROOT)
    return make(standby=True, argv=argv, **changes)


def test_a_release_with_standby_has_sockets_of_its_own_and_the_units_of_its_front() -> None:
    made = standing_by()
    files, folder = made.files(), f"/run/vllm-chat/{made.id}"
    document = json.loads(files["release.json"])
    assert document["sockets"] == folder and document["argv"][-2:] == ["--uds", f"{folder}/api.sock"]
    assert files["argv"].splitlines() == document["argv"]
    told = [(key, value) for _, key, value in directives(files["vllm.service"])]
    start = dict(told)["ExecStart"]
    assert command(start) == document["argv"]
    assert ("RuntimeDirectory", f"vllm-chat/{made.id}") in told and ("RuntimeDirectoryMode", "0700") in told
    assert ("Environment", f'"PYINFRA_VLLM_CONTROL={folder}/control.sock"') in told
    assert ("Environment", f'"PYTHONPATH=/srv/pyinfra-vllm/chat/releases/{made.id}"') in told
    assert not any(key == "UnsetEnvironment" for key, _ in told)
    (written,) = [value for key, value in told if key == "ExecStartPre" and "/started" in value]
    assert f"/started vllm-chat.{made.id}.service {made.id}" in written
    assert "class Standby" in files["pyinfra_vllm_standby.py"]
    assert "ListenStream=127.0.0.1:8000" in files["front.socket"]
    assert "/run/vllm-chat/awake" in files["front.service"]


def test_the_id_covers_standby_its_module_and_its_front(monkeypatch: pytest.MonkeyPatch) -> None:
    before = standing_by().id
    assert before != make(argv=standing_by().argv).id
    assert standing_by(port=9000).id != before, "the port is in the front alone"
    monkeypatch.setattr(release.inspect, "getsource", lambda module: "another text")
    assert standing_by().id != before


def test_without_standby_no_file_and_no_line_tells_of_it() -> None:
    files = make().files()
    assert set(files) == {"release.json", "vllm.service", "argv", "env"}
    assert "RuntimeDirectory" not in files["vllm.service"] and "standby" not in files["vllm.service"]


def test_the_path_of_a_release_s_own_socket_is_no_difference() -> None:
    old, new = (["serve", "--uds", f"/run/vllm-chat/{name}/api.sock"] for name in "ab")
    assert release.difference(old, new) == [] and release.changed_flags(old, new) == {}


def test_with_standby_the_key_is_asked_for_before_a_request_may_wait() -> None:
    """The middleware that vLLM is told of last is asked first."""
    chat = {
        "model": "org/model",
        "runtime": {"version": "0.33.0"},
        "port": 8000,
        "secrets": {"VLLM_API_KEY": "CHAT_KEY"},
    }
    declared = declare("gpu-1", merge([Layer("f", {"services": {"chat": chat}})]), Problems())
    assert declared is not None
    locked = Checkpoint(repo="org/model", revision="main", commit="a" * 40, files=())
    values = {"VLLM_API_KEY": "secret"}
    plain, standby = (
        planning._release("/srv/x", declared.services[0], locked, Resolution(), "0.33.0", [], values, on)
        for on in (False, True)
    )
    assert not plain.key_is_asked_for and "--port" in plain.argv and "--enable-sleep-mode" not in plain.argv
    assert standby.key_is_asked_for and "--port" not in standby.argv and "--host" not in standby.argv
    words = [*release.OBEY_ROOT, *release.ASK_FOR_KEY, "--enable-sleep-mode"]
    assert list(standby.argv[-len(words) :]) == words
    assert 'PYINFRA_VLLM_API_KEY="secret"' in standby.files()["secrets.env"]
