"""A release is named by what it is started from, and its unit holds nothing that systemd would expand."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_vllm import release
from pyinfra_vllm.checkpoint import Checkpoint
from pyinfra_vllm.config import Layer, Problems, declare, merge
from pyinfra_vllm.operations.util import planning
from pyinfra_vllm.release import Release
from pyinfra_vllm.tuning import Resolution

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
    word = release.quoted(text)
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
    for line in release.environment_file(environment).splitlines(keepends=True):
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
