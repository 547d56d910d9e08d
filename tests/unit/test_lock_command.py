"""`pyinfra-vllm lock`, from an inventory on disk to the lock file, against a Hub."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hub_server import HubServer, serving

from pyinfra_vllm import cli, fit, hub_endpoint
from pyinfra_vllm.catalog import shapes
from pyinfra_vllm.checkpoint import LOCK_FILE, Checkpoint, File, Lock
from pyinfra_vllm.commands.lock import doubtful_size
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.on_host.state import durable

REPO = "acme/tiny-awq"
FIELD = Path(__file__).parents[1] / "fixtures/field/models.json"
INVENTORY = """\
services = {"chat": {"model": "acme/tiny-awq", "port": 8000, "runtime": {"version": "0.32.0"}}}
fleet = [("gpu1.example", {"services": services}), ("gpu2.example", {"services": services})]
"""


def repository() -> dict[str, bytes]:
    return {
        "config.json": b'{"model_type": "qwen3"}',
        "model.safetensors": bytes(100),
        "tokenizer.json": b"{}",
    }


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A project in an empty directory, and the Hub that its model lives on."""
    monkeypatch.chdir(tmp_path)
    Path("inventory").mkdir()
    Path("inventory/prod.py").write_text(INVENTORY)
    with serving(HubServer(repositories={REPO: repository()})) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


class WholeCommand(click.Command):
    """`pyinfra-vllm lock` with its error messages and exit codes, for click's runner."""

    def main(self, args: Any = (), **_: Any) -> Any:
        cli.main(["lock", *args])


def run(*arguments: str) -> Result:
    return CliRunner().invoke(WholeCommand("lock"), arguments)


def test_a_repository_without_a_tokenizer_is_said(server: HubServer) -> None:
    assert "tokenizer" not in run().stderr
    server.repositories[REPO].pop("tokenizer.json")
    assert "acme/tiny-awq@main has no tokenizer files" in run().stderr


def test_mistral_s_own_form_is_locked_where_its_loader_is_declared(server: HubServer) -> None:
    mistral = INVENTORY.replace('"port": 8000', '"port": 8000, "flags": {"load-format": "mistral"}')
    Path("inventory/prod.py").write_text(mistral)
    refused = run()
    assert refused.exit_code and "loads nothing else" in refused.output
    server.repositories[REPO] = {**repository(), "consolidated.safetensors": bytes(90)}
    assert run().exit_code == 0
    assert {file.path for file in Lock.load(LOCK_FILE).get(REPO).files} >= {"consolidated.safetensors"}


ADAPTER = {"adapter_config.json": b'{"base_model_name_or_path": "Qwen/Qwen3-14B", "peft_type": "LORA"}'}


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_is_no_model(server: HubServer, weights: str) -> None:
    """As PEFT's save_pretrained writes one; `config.json` is often uploaded beside it."""
    beside = {"config.json": b"{}", "optimizer.pt": bytes(9)}
    server.repositories[REPO] = {**ADAPTER, **beside, weights: bytes(90)}
    refused = run()
    assert refused.exit_code == 2
    told = " ".join(refused.output.split())
    assert "acme/tiny-awq is an adapter: it has adapter_config.json" in told
    assert "a base model (Qwen/Qwen3-14B) and can't be served without them" in told
    assert not LOCK_FILE.exists()


def test_an_adapter_beside_whole_weights_is_left_out(server: HubServer) -> None:
    server.repositories[REPO] = {**repository(), **ADAPTER, "adapter_model.safetensors": bytes(90)}
    assert run().exit_code == 0
    (entry,) = Lock.load(LOCK_FILE).entries
    assert {file.path for file in entry.files} == {"config.json", "model.safetensors", "tokenizer.json"}


def locked(size: int, **changes: Any) -> Checkpoint:
    """Qwen3-0.6B by its config.json: 596 million parameters; its repository has 752 million, because the head
    that is tied to the embedding is written out.
    """
    config = {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", **changes,
    }  # fmt: skip
    file = File(path="model.safetensors", size=size, sha256="c" * 64)
    return Checkpoint(repo="a/b", revision="main", commit="a" * 40, files=(file,), config=config)


@pytest.mark.parametrize(
    ("size", "changes", "said"),
    [
        (1_192_000_000, {}, ""),
        (1_503_000_000, {}, ""),  # with the head written out, as its repository has it
        (600_000_000, {}, "have 600.0 MB, and those of the model in its config.json have about 1.2 GB"),
        (2_384_000_000, {}, "saved in 32 bits"),
        (2_384_000_000, {"torch_dtype": "float32"}, ""),
        (1_192_000_000, {"torch_dtype": None}, ""),  # which means float32, and isn't true
        (850_000_000, {"quantization_config": shapes.AWQ, "tie_word_embeddings": False}, ""),
        (8_000_000_000, {"quantization_config": shapes.AWQ}, "not quantized as it says"),
        (600_000_000, {"vision_config": {}}, ""),  # a tower's size isn't reckoned
        (600_000_000, {"hidden_size": None}, ""),  # validate names the key
    ],
)
def test_a_size_that_is_not_the_model_s_is_told(size: int, changes: dict[str, Any], said: str) -> None:
    found = doubtful_size(locked(size, **changes))
    assert said in found if said else found == ""


@pytest.mark.parametrize("model", json.loads(FIELD.read_text()), ids=lambda model: model["repo"])
def test_sizes_of_published_checkpoints_are_not_doubted(model: dict[str, Any]) -> None:
    """And half of them is, where the model is one that is reckoned."""
    shape = shapes.from_config(model["repo"], model["config"], model["bytes"])
    entry = locked(model["bytes"])
    published = dataclasses.replace(entry, repo=model["repo"], config=model["config"])
    assert doubtful_size(published) == ""
    half = dataclasses.replace(published, files=locked(model["bytes"] // 2).files)
    reckoned = fit.possible_bytes(shape) and "text_config" not in model["config"]
    assert bool(doubtful_size(half)) == bool(reckoned)


def test_a_doubtful_size_is_told_while_locking(server: HubServer) -> None:
    server.repositories[REPO]["config.json"] = json.dumps(locked(0).config).encode()
    told = run()
    assert told.exit_code == 0
    assert "acme/tiny-awq@main: its weights have 100 B" in told.stderr


def test_the_lock_file_is_written_and_then_up_to_date(server: HubServer) -> None:
    first = run()
    assert first.exit_code == 0, first.output
    assert "added     acme/tiny-awq@main" in first.stdout
    assert "asking" in first.stderr
    assert Lock.load(LOCK_FILE).get(REPO).commit == server.commit(REPO)
    text, stamp = LOCK_FILE.read_text(), LOCK_FILE.stat().st_mtime_ns
    again = run("--json")
    assert json.loads(again.stdout)["unchanged"] == ["acme/tiny-awq@main"]
    assert (LOCK_FILE.read_text(), LOCK_FILE.stat().st_mtime_ns) == (text, stamp)
    assert run("--check").exit_code == 0


def test_check_fails_when_the_file_is_missing_or_stale_and_writes_nothing(server: HubServer) -> None:
    assert run("--check").exit_code == 1
    assert not LOCK_FILE.exists()
    run()
    text = LOCK_FILE.read_text()
    server.repositories[REPO]["model.safetensors"] = bytes(101)
    stale = run("--check", "--json")
    assert stale.exit_code == 1
    assert json.loads(stale.stdout)["changed"] == ["acme/tiny-awq@main"]
    assert LOCK_FILE.read_text() == text
    assert run().exit_code == 0
    assert LOCK_FILE.read_text() != text


def test_entries_that_no_service_declares_stay_until_pruned(server: HubServer) -> None:
    server.repositories["acme/other"] = repository()
    run()
    Path("inventory/other.py").write_text(INVENTORY.replace("tiny-awq", "other"))
    assert "kept, though no service declares it" in run("inventory/other.py").stdout
    assert len(Lock.load(LOCK_FILE).entries) == 2
    assert run("inventory/other.py", "--check", "--prune").exit_code == 1
    run("inventory/other.py", "--prune")
    assert [entry.name for entry in Lock.load(LOCK_FILE).entries] == ["acme/other@main"]


def test_a_hub_that_is_away_leaves_the_file(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    text = LOCK_FILE.read_text()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    result = run()
    assert result.exit_code == 1
    assert "The lock file is as it was" in result.stderr
    assert LOCK_FILE.read_text() == text


@pytest.mark.thorough
@pytest.mark.parametrize("endpoint", ["http://[::1", "nonsense", "ftp://x", "http://h:99999", "http://h h"])
def test_a_hub_that_is_no_url_is_2_and_said_before_its_client_is_imported(
    server: HubServer, endpoint: str
) -> None:
    """In a process of its own: the client reads the variable once, while it is imported."""
    program = [str(Path(sys.executable).parent / "pyinfra-vllm"), "lock"]
    done = subprocess.run(
        program, capture_output=True, text=True, env={**os.environ, "HF_ENDPOINT": endpoint}, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        f"HF_ENDPOINT = {endpoint!r} is not the URL of a Hub" in done.stderr and done.stderr.count("\n") == 1
    )
    assert not LOCK_FILE.exists()


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://ann:hunter2@hub.example",
        "https://hunter2@hub.example/hf",
        "https://ann:hun/hunter2@hub.example",
        "https://hub.example/?token=hunter2",
    ],
)
def test_a_hub_s_url_with_a_password_is_refused_and_not_shown(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stand in plans, in logs and in the hosts' status files."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    for ask in (hub_endpoint.endpoint, hub_endpoint.check):
        with pytest.raises(DeclarationError, match="HF_ENDPOINT") as error:
            ask()
        assert "hunter2" not in str(error.value) and "HF_TOKEN" in str(error.value)


def test_what_a_damaged_hub_s_url_carries_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://ann:hunter2@hub.example:99999")
    with pytest.raises(DeclarationError) as error:
        hub_endpoint.endpoint()
    assert "hunter2" not in str(error.value)


def test_a_lock_file_that_can_not_be_written_is_said(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "write_text", full)
    result = run()
    assert result.exit_code == 2
    assert "checkpoints.lock.yaml can't be written: No space left on device. It is as it was" in result.stderr


def test_one_refused_model_leaves_the_file(server: HubServer) -> None:
    run()
    text = LOCK_FILE.read_text()
    server.repositories[REPO] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    result = run()
    assert (result.exit_code, LOCK_FILE.read_text()) == (2, text)
    assert "only as pickles" in result.stderr


def test_a_damaged_lock_file_is_not_overwritten(server: HubServer) -> None:
    LOCK_FILE.write_text("<<<<<<< HEAD\n")
    result = run()
    assert (result.exit_code, LOCK_FILE.read_text()) == (2, "<<<<<<< HEAD\n")
    assert "or remove it and run `pyinfra-vllm lock`" in result.stderr


def test_a_bad_declaration_is_said_before_the_hub_is_asked(server: HubServer) -> None:
    Path("inventory/broken.py").write_text(INVENTORY.replace('"port"', '"prot"'))
    result = run("inventory/broken.py")
    assert result.exit_code == 2
    assert "prot" in result.stderr
    assert not LOCK_FILE.exists()


CODE = {
    "config.json": b'{"model_type": "own", "auto_map": {"AutoModel": "modeling.Own"}}',
    "modeling.py": b"Own = 1",
}


def allowing_code() -> None:
    Path("inventory/prod.py").write_text(
        INVENTORY.replace('"port"', '"allow_code": "read in ticket 7", "port"', 1)
    )


def test_code_of_the_repository_is_locked_only_with_a_reason(server: HubServer) -> None:
    server.repositories[REPO] = repository() | CODE
    refused = run()
    assert refused.exit_code == 2 and "declare why it may run: `allow_code`" in refused.stderr
    assert not LOCK_FILE.exists()
    allowing_code()
    assert run().exit_code == 0
    assert Lock.load(LOCK_FILE).get(REPO).brings_code


def test_reason_for_code_does_not_allow_pickles(server: HubServer) -> None:
    server.repositories[REPO] = {**repository(), **CODE, "pytorch_model.bin": b"x"}
    del server.repositories[REPO]["model.safetensors"]
    allowing_code()
    refused = run()
    assert refused.exit_code == 2 and "only as pickles" in refused.stderr
