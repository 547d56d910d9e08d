"""The lock file: what it says, what it refuses; and what the real Hub client makes of a server's answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Fault, HubServer, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from pyinfra_vllm import checkpoint, hub, hub_api
from pyinfra_vllm.checkpoint import Checkpoint, File, Lock, parse, render
from pyinfra_vllm.errors import CheckpointRefused, HubError, LockError
from pyinfra_vllm.hub import Hub

REPO = "acme/tiny-awq"
CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 128,
    "layer_types": ["full_attention", "full_attention"],
    "rms_norm_eps": 1e-06,
    "id2label": {"0": "LABEL_0"},
    "quantization_config": {"quant_method": "awq", "bits": 4, "modules_to_not_convert": None},
}


def repository(**changes: bytes | None) -> dict[str, bytes]:
    """A small repository in the usual shape; a change of None leaves a file out (its name with _ for . and
    -).
    """
    files: dict[str, bytes] = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": b"\x08\0\0\0\0\0\0\0{}      " + bytes(1000),
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b'{"model_max_length": 512}',
        "chat_template.jinja": b"{{ messages }}",
        "README.md": b"# Tiny",
        ".gitattributes": b"*.safetensors filter=lfs\n",
    }
    for name, content in changes.items():
        path = next((p for p in files if p.replace(".", "_").replace("-", "_") == name), name)
        if content is None:
            files.pop(path)
        else:
            files[path] = content
    return files


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serving(HubServer(repositories={REPO: repository()})) as running:
        yield running


def ask(server: HubServer, revision: str = "main", **options: Any) -> Checkpoint:
    return Hub(server.endpoint, token="hf_test").checkpoint(REPO, revision, **options)


# --- what the Hub says ---


def test_a_checkpoint_holds_what_serving_needs_and_nothing_else(server: HubServer) -> None:
    found = ask(server)
    assert [file.path for file in found.files] == [
        "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert found.commit == server.commit(REPO)
    weights = next(file for file in found.files if file.path == "model.safetensors")
    assert (weights.size, weights.blob_sha1) == (1016, None)
    assert weights.sha256 is not None
    assert found.weights_bytes == 1016
    assert found.config["quantization_config"]["bits"] == 4
    assert "id2label" not in found.config


def test_only_the_config_files_are_read_and_no_weights(server: HubServer) -> None:
    ask(server)
    assert {request.path for request in server.served} == {"config.json", "tokenizer_config.json"}


def test_weights_are_those_that_the_index_names(server: HubServer) -> None:
    index = {
        "metadata": {"total_size": 8},
        "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"},
    }
    server.repositories[REPO] = repository(
        model_safetensors=None,
        **{
            "model-1.safetensors": b"1" * 10,
            "model-2.safetensors": b"2" * 20,
            "consolidated.safetensors": b"3" * 30,
            "model.safetensors.index.json": json.dumps(index).encode(),
        },
    )
    found = ask(server)
    assert found.weights_bytes == 30
    assert "model.safetensors.index.json" in {file.path for file in found.files}


@pytest.mark.parametrize(
    ("shards", "missing"),
    [
        (("00001-of-00003", "00003-of-00003"), "model-00002-of-00003.safetensors is not there (1 of 3"),
        (("00002-of-00002",), "model-00001-of-00002.safetensors is not there (1 of 2"),
        (("00000-of-00002",), "model-00001-of-00002.safetensors is not there (1 of 2"),
    ],
)
def test_shards_with_a_gap_are_refused(server: HubServer, shards: tuple[str, ...], missing: str) -> None:
    """vllm#34859: without an index vLLM serves what is there without complaint."""
    files = {f"model-{shard}.safetensors": b"1" * 1000 for shard in shards}
    server.repositories[REPO] = repository(model_safetensors=None, **files)
    with pytest.raises(CheckpointRefused, match=re.escape(missing)):
        ask(server)


def test_a_pointer_in_place_of_weights_is_refused(server: HubServer) -> None:
    server.listing_changes = {"model.safetensors": {"size": 134, "lfs": None, "blobId": "a" * 40}}
    with pytest.raises(CheckpointRefused, match="has 134 bytes: a pointer to weights"):
        ask(server)


def test_all_shards_are_locked_without_an_index(server: HubServer) -> None:
    files = {f"model-0000{number}-of-00002.safetensors": b"1" * 1000 for number in (1, 2)}
    server.repositories[REPO] = repository(model_safetensors=None, **files)
    assert ask(server).weights_bytes == 2000


def test_consolidated_weights_are_kept_for_the_loader_that_reads_nothing_else(server: HubServer) -> None:
    """vllm#19953."""
    server.repositories[REPO] = repository(**{"consolidated.safetensors": b"3" * 900, "params.json": b"{}"})
    assert {file.path for file in ask(server).files if "safetensors" in file.path} == {"model.safetensors"}
    kept = ask(server, consolidated=True)
    paths = {file.path for file in kept.files}
    assert {"consolidated.safetensors", "params.json"} <= paths
    assert "model.safetensors" not in paths
    server.repositories[REPO] = repository()
    with pytest.raises(CheckpointRefused, match="load-format: mistral"):
        ask(server, consolidated=True)


def test_an_index_that_names_a_missing_shard_is_refused(server: HubServer) -> None:
    index = json.dumps({"weight_map": {"a": "../../etc/passwd"}}).encode()
    server.repositories[REPO]["model.safetensors.index.json"] = index
    with pytest.raises(CheckpointRefused, match=r"names '\.\./\.\./etc/passwd'"):
        ask(server)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_safetensors": None, "pytorch_model.bin": b"x"}, "only as pickles .pytorch_model.bin."),
        ({"model_safetensors": None}, "no weights in safetensors"),
        ({"config_json": None}, "has no config.json"),
        ({"config_json": b"{"}, "is not JSON"),
        ({"config_json": b"[" * 100_000}, "is not JSON"),
        ({"config_json": b"[]"}, "not a JSON object"),
        ({"config_json": b'{"auto_map": {"AutoModel": "x.Y"}}'}, "config.json names code of its own"),
        (
            {"tokenizer_config_json": b'{"auto_map": {"T": "x.Y"}}'},
            "tokenizer_config.json names code of its own",
        ),
        (
            {"processor_config.json": b'{"auto_map": {"AutoProcessor": "x.Y"}}'},
            "processor_config.json names code of its own",
        ),
        (
            {"preprocessor_config.json": b'{"auto_map": {"AutoImageProcessor": "x.Y"}}'},
            "preprocessor_config.json names code of its own",
        ),
        (
            {"video_preprocessor_config.json": b'{"auto_map": {"AutoVideoProcessor": "x.Y"}}'},
            "video_preprocessor_config.json names code of its own",
        ),
    ],
)
def test_what_must_not_be_served_is_refused(
    server: HubServer, changes: dict[str, bytes | None], complaint: str
) -> None:
    server.repositories[REPO] = repository(**changes)
    with pytest.raises(CheckpointRefused, match=complaint):
        ask(server)


def test_declared_code_is_kept(server: HubServer) -> None:
    server.repositories[REPO] = repository(config_json=b'{"auto_map": {"M": "m.M"}}', **{"m.py": b"M = 1"})
    assert "m.py" in {file.path for file in ask(server, allow_code=True).files}


@pytest.mark.parametrize(
    "path", ["../evil.json", "/etc/passwd", "a\\..\\b", "C:evil", "a/../../b", "a\0b", "a//b", "./a", "n\nn"]
)
def test_a_name_that_could_leave_the_directory_refuses_the_repository(server: HubServer, path: str) -> None:
    server.extra_listing = [{"rfilename": path, "size": 1, "blobId": "0" * 40}]
    with pytest.raises(CheckpointRefused, match="lists a file named"):
        ask(server)


@pytest.mark.parametrize("size", [-1, 2**62, True, "12", None])
def test_an_impossible_size_is_refused(server: HubServer, size: object) -> None:
    server.listing_changes = {"tokenizer.json": {"size": size}}
    with pytest.raises(CheckpointRefused, match="impossible size"):
        ask(server)


def test_a_file_without_a_hash_is_refused(server: HubServer) -> None:
    server.listing_changes = {"tokenizer.json": {"blobId": None}}
    with pytest.raises(HubError, match=r"no content hash for acme/tiny-awq/tokenizer\.json"):
        ask(server)


@pytest.mark.parametrize("fault", [Fault(endless=True), Fault(content=b'{"model_type": "other"}')])
def test_other_content_than_listed_is_an_error(server: HubServer, fault: Fault) -> None:
    server.faults["config.json"] = fault
    with pytest.raises(HubError, match=r"config\.json"):
        ask(server)


def test_an_endless_body_is_cut_off(server: HubServer) -> None:
    server.faults["config.json"] = Fault(endless=True)
    with pytest.raises(HubError, match="sends more"):
        ask(server)
    assert server.sent("config.json") < 2**24


def test_a_listing_without_end_is_cut_off(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_api, "LARGEST_ANSWER_BYTES", 2**20)
    server.endless_answer = True
    with pytest.raises(HubError, match="sends more about acme/tiny-awq than it can have to say"):
        ask(server)
    assert server.sent("") < 2**23


def test_an_unknown_revision_and_repository_are_told_apart(server: HubServer) -> None:
    with pytest.raises(HubError, match="no such revision"):
        ask(server, "v9")
    with pytest.raises(HubError, match="is not on"):
        Hub(server.endpoint).checkpoint("acme/other")


def test_an_unreachable_hub_says_what_stayed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match=r"could not be asked about acme/tiny-awq.*lock file is as it was"):
        Hub("http://127.0.0.1:9").checkpoint(REPO)


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "../b", "a/..", "a--b/c", "a/b c", "a/b\n"])
def test_a_repository_name_that_can_not_be_a_directory_is_refused(repo: str) -> None:
    with pytest.raises(CheckpointRefused):
        Hub("http://127.0.0.1:9").checkpoint(repo)


def test_a_token_never_shows(server: HubServer) -> None:
    assert "hf_test" not in repr(Hub(server.endpoint, token="hf_test"))


# --- the lock file ---


def entry(**changes: Any) -> Checkpoint:
    values = {
        "repo": REPO,
        "revision": "main",
        "commit": "a" * 40,
        "files": (
            File(path="config.json", size=10, blob_sha1="b" * 40),
            File(path="model.safetensors", size=1000, sha256="c" * 64),
        ),
        "config": hub.facts_of(CONFIG),
    }
    return Checkpoint(**(values | changes))


def test_directory_is_the_agreed_one() -> None:
    assert entry().directory("/srv/x/") == f"/srv/x/checkpoints/acme--tiny-awq/{'a' * 40}"


def test_the_lock_file_reads_well() -> None:
    text = render([entry()])
    assert text.startswith("# Which files each declared model means")
    assert f"    model.safetensors: {{size: 1000, sha256: {'c' * 64}}}\n" in text
    assert "layer_types: [full_attention, full_attention]" in text


def test_a_lock_survives_the_disk(tmp_path: Path) -> None:
    lock = Lock([entry(), entry(repo="acme/b")])
    lock.dump(tmp_path / "x.yaml")
    again = Lock.load(tmp_path / "x.yaml")
    assert again == lock
    assert again.get(REPO).total_bytes == 1010
    again.dump()
    assert (tmp_path / "x.yaml").read_text() == render(lock.entries)


def test_a_missing_entry_names_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LockError, match=r"no entry for acme/x at revision 'main'.*Run `pyinfra-vllm lock`"):
        Lock([entry()]).get("acme/x")
    with pytest.raises(LockError, match=r"\(it has main of this model\)"):
        Lock([entry()]).get(REPO, "v2")
    with pytest.raises(LockError, match="is not there"):
        Lock.load(tmp_path / "none.yaml")


def edited(old: str, new: str) -> str:
    text = render([entry()])
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (edited(f"{REPO}@main:", "acme/other@main:"), "entry acme/other@main: repo is another model"),
        (edited("repo: acme/tiny-awq", "repo: acme/../x"), "repo must be a repository"),
        (edited("commit: aaaa", "commit: zzzz"), "commit must be 40"),
        (edited("size: 1000", "size: 999"), "total_bytes is not the sum"),
        (edited("size: 1000", "size: true"), "must be a number of bytes"),
        (edited("size: 1000", "size: -1"), "must be a number of bytes"),
        (edited(f"sha256: {'c' * 64}", "sha256: short"), "model.safetensors: sha256 must be 64"),
        (edited("model.safetensors:", "../model.safetensors:"), "a file name has an empty, '.' or '..'"),
        (edited("model.safetensors:", "/model.safetensors:"), "a file name is absolute"),
        (
            edited("model.safetensors:", "config.json/x.safetensors:"),
            "'config.json' as a file and as a folder",
        ),
        (edited("model.safetensors:", "config.json:"), "the key 'config.json' a second time"),
        (edited("model.safetensors:", "manifest.json:"), "keeps for itself"),
        (edited("config.json:", "7:"), "is not text"),
        (edited("revision: main", "revision: main\n    extra: 1"), "exactly the keys"),
        (
            edited("schema: pyinfra-vllm/checkpoints/1", "schema: pyinfra-vllm/checkpoints/9"),
            "schema must be",
        ),
        (edited("    config:", "    config: 3\n    conf:"), "exactly the keys"),
        ("<<<<<<< HEAD\n" + render([entry()]), "is not a lock file"),
        ("a: &a [1]\nb: *a\n", "an alias"),
        ("- 1", "exactly the keys"),
        ("", "exactly the keys"),
        ("? {a: 1}\n: 2\n", "is not a lock file"),
    ],
)
def test_a_bad_lock_file_is_an_error_that_names_the_place(text: str, complaint: str) -> None:
    with pytest.raises(LockError, match=complaint.replace("(", r"\(")) as raised:
        parse(text, "x.lock.yaml")
    assert str(raised.value).startswith("x.lock.yaml")
    assert raised.value.exit_code == 2


def test_a_revision_that_is_a_commit_must_be_the_entrys() -> None:
    text = render([entry(revision="b" * 40)])
    with pytest.raises(LockError, match="another commit than the revision"):
        parse(text)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
configs = st.dictionaries(
    st.text(max_size=8),
    st.recursive(plain, lambda c: st.lists(c) | st.dictionaries(st.text(), c), max_leaves=8),
)


@pytest.mark.thorough
@given(configs)
@settings(max_examples=25)
def test_any_config_survives_the_lock_file(config: dict[str, Any]) -> None:
    made = entry(config=hub.facts_of(config))
    assert parse(render([made])) == (made,)


@pytest.mark.thorough
@given(st.text() | st.from_regex(r"[\[\]{}:,&*!|>%@`'\"#\- \n\ta0]*", fullmatch=True))
@settings(max_examples=500)
def test_no_text_breaks_the_reader(text: str) -> None:
    with pytest.raises(LockError):
        parse(text)


@pytest.mark.thorough
@given(st.data())
@settings(max_examples=300)
def test_no_edit_of_a_lock_file_breaks_the_reader(data: st.DataObject) -> None:
    text = render([entry()])
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 40))
    changed = text[:at] + data.draw(st.text(max_size=20)) + text[at + cut :]
    try:
        entries = parse(changed)
    except LockError:
        return
    for found in entries:
        assert found.directory("/r").startswith("/r/checkpoints/")
        assert not any(checkpoint.manifest.unsafe(file.path) for file in found.files)
