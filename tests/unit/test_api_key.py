"""Who asks clients for the key where vLLM would write it to the disk, and how what it wrote before is taken
away.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_vllm.in_runtime import api_key
from pyinfra_vllm.on_host.server import compile_cache
from pyinfra_vllm.on_host.state import secrets_file
from pyinfra_vllm.rendering import environment_file

KEY = "canary-4c0ffee"


def asked(headers: list[tuple[bytes, bytes]], kind: str = "http", **scope: Any) -> tuple[bool, list[Any]]:
    """Whether the server behind it was reached, and what was sent instead."""
    reached, sent = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def send(message: Any) -> None:
        sent.append(message)

    whole = {"type": kind, "method": "POST", "path": "/v1/completions", "headers": headers, **scope}
    asyncio.run(api_key.ApiKey(app)(whole, receive, send))
    return bool(reached), sent


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(api_key.VARIABLE, KEY)


@pytest.mark.parametrize(
    ("header", "reached"),
    [
        (f"Bearer {KEY}", True),
        (f"bearer {KEY}", True),
        (None, False),
        ("", False),
        (KEY, False),
        (f"Basic {KEY}", False),
        (f"Bearer {KEY}x", False),
        ("Bearer ", False),
        ("Bearer caf\xe9", False),
    ],
)
def test_only_whoever_has_the_key_is_let_through(header: str | None, reached: bool) -> None:
    headers = [(b"host", b"x")]
    if header is not None:
        headers.append((b"Authorization", header.encode("latin-1")))
    let_through, sent = asked(headers)
    assert let_through is reached
    if not reached:
        assert sent[0]["status"] == 401 and json.loads(sent[1]["body"]) == {"error": "Unauthorized"}


@pytest.mark.parametrize(
    ("scope", "reached"),
    [
        ({"path": "/health"}, True),
        ({"path": "/metrics"}, True),
        ({"path": "/v1/models", "method": "GET"}, False),
        ({"path": "/v2/rerank"}, False),
        ({"path": "/inference/v1/generate"}, False),
        ({"path": "/v1/chat/completions", "method": "OPTIONS"}, True),
        ({"path": "/llm/v1/models", "root_path": "/llm"}, False),
        ({"path": "/v1/models", "root_path": "/llm"}, False),
        ({"path": "/llm/health", "root_path": "/llm"}, True),
    ],
)
def test_the_paths_that_vllm_guards_are_guarded(scope: dict[str, Any], reached: bool) -> None:
    assert asked([], **scope)[0] is reached


def test_the_server_s_own_start_is_not_asked() -> None:
    assert asked([], kind="lifespan")[0]


def test_a_websocket_is_closed() -> None:
    assert asked([], kind="websocket", path="/v1/realtime") == (
        False,
        [{"type": "websocket.close", "code": 1008}],
    )


@pytest.mark.parametrize("value", [None, ""])
def test_a_server_without_its_key_does_not_start(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(api_key.VARIABLE)
    if value is not None:
        monkeypatch.setenv(api_key.VARIABLE, value)
    with pytest.raises((KeyError, ValueError), match=api_key.VARIABLE):
        asked([])


def test_the_module_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    module = tmp_path / "pyinfra_vllm_api_key.py"
    module.write_text(Path(api_key.__file__).read_text())
    words = [sys.executable, "-S", "-c", "import pyinfra_vllm_api_key as found; print(found.ApiKey.__name__)"]
    done = subprocess.run(
        words, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "ApiKey\n"


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1))
def test_the_key_is_the_one_that_clients_of_ours_send(value: str) -> None:
    text = environment_file({"VLLM_API_KEY": value, api_key.VARIABLE: value})
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"secrets-{os.getpid()}.env"
    path.write_text(text)
    read = secrets_file.read(path)
    path.unlink()
    assert read["VLLM_API_KEY"] == read[api_key.VARIABLE] == value


# --- what was written before ---


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache as vLLM 0.25 leaves it, and things beside and in it that must not be touched."""
    folder = tmp_path / "cache/vllm/torch_compile_cache/0a1b2c/rank_0_0/backbone"
    folder.mkdir(parents=True)
    (folder / compile_cache.FACTORS).write_text(json.dumps({"env": {"VLLM_API_KEY": KEY}}))
    (folder / "computation_graph.py").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / compile_cache.FACTORS).touch()
    return tmp_path / "cache"


def left(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob(compile_cache.FACTORS))


def test_what_vllm_wrote_is_removed_and_the_cache_stays(cache: Path) -> None:
    assert compile_cache.forget_keys(cache) == []
    assert left(cache) == []
    assert len(list(cache.rglob("computation_graph.py"))) == 1
    assert compile_cache.forget_keys(cache) == [] == compile_cache.forget_keys(cache / "nothing")


def test_no_link_is_followed(cache: Path) -> None:
    outside = cache.parent / "outside"
    (cache / "vllm/torch_compile_cache/link").symlink_to(outside)
    (cache / "vllm/loop").symlink_to(cache)
    (cache / "vllm" / compile_cache.FACTORS).symlink_to(outside / "precious")
    (outside / "precious").touch()
    os.mkfifo(cache / "vllm/fifo")
    os.mkfifo(cache / "vllm/torch_compile_cache" / compile_cache.FACTORS)
    assert compile_cache.forget_keys(cache) == []
    assert left(outside) == [compile_cache.FACTORS] and (outside / "precious").exists()
    assert not (cache / "vllm" / compile_cache.FACTORS).is_symlink()


def test_a_cache_that_is_itself_a_link_is_not_looked_through(cache: Path) -> None:
    (cache / "vllm").rename(cache / "other")
    (cache / "vllm").symlink_to(cache / "other")
    (problem,) = compile_cache.forget_keys(cache)
    assert "cache/vllm: " in problem and left(cache / "other")


def test_deep_or_wide_caches_are_searched_only_in_part(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = cache / "vllm" / "/".join("d" * 200)
    deep.mkdir(parents=True)
    (cache / "vllm/x" / compile_cache.FACTORS / "folder").mkdir(parents=True)
    assert compile_cache.forget_keys(cache) == []
    monkeypatch.setattr(compile_cache, "LIMIT_S", 0.0)
    assert "can be looked through in 0 s" in compile_cache.forget_keys(cache)[0]
