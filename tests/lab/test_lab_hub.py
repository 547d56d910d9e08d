"""The lab's Hub speaks to the real huggingface_hub client, and fails in the ways it is told to.

Needs no root.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from lab.hub import Fault, Hub

REPOSITORY = "lab/model"
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
FILES = {"config.json": b'{"model_type": "qwen3"}', "model.safetensors": WEIGHTS, "sub/note.txt": b"hello"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    served = Hub("127.0.0.1")
    served.start()
    served.publish(REPOSITORY, FILES)
    yield served
    served.stop()


def fetch(hub: Hub, place: Path, token: str | bool = False) -> Path:
    """Everything of the repository, into a directory, as `hf download --local-dir` does."""
    return Path(snapshot_download(REPOSITORY, endpoint=hub.url, local_dir=place, token=token, max_workers=1))


def test_a_snapshot_arrives_whole(hub: Hub, tmp_path: Path) -> None:
    place = fetch(hub, tmp_path / "model")
    assert {name: (place / name).read_bytes() for name in FILES} == FILES


def test_model_info_names_sizes_and_hashes(hub: Hub) -> None:
    info = HfApi(hub.url).model_info(REPOSITORY, files_metadata=True, token=False)
    assert info.siblings is not None and info.sha is not None and len(info.sha) == 40
    found = {file.rfilename: file for file in info.siblings}
    weights, config = found["model.safetensors"], found["config.json"]
    assert weights.lfs is not None and weights.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert weights.size == len(WEIGHTS)
    blob = b"blob %d\0" % len(FILES["config.json"]) + FILES["config.json"]
    assert config.lfs is None and config.blob_id == hashlib.sha1(blob).hexdigest()


def test_the_tree_lists_every_file(hub: Hub) -> None:
    listed = HfApi(hub.url).list_repo_tree(REPOSITORY, recursive=True, token=False)
    assert {entry.path for entry in listed} == set(FILES)


def test_branches_and_commits_are_revisions(hub: Hub) -> None:
    first = HfApi(hub.url).model_info(REPOSITORY, token=False).sha
    second = hub.publish(REPOSITORY, {"config.json": b"{}"})
    assert first is not None and second != first
    assert HfApi(hub.url).model_info(REPOSITORY, token=False).sha == second
    assert HfApi(hub.url).model_info(REPOSITORY, revision=first, token=False).sha == first
    assert hub.publish(REPOSITORY, FILES, branch="again") == first  # the same content is the same commit


@pytest.mark.parametrize(
    ("repository", "revision", "file", "error"),
    [
        ("lab/none", "main", "config.json", RepositoryNotFoundError),
        (REPOSITORY, "none", "config.json", RevisionNotFoundError),
        (REPOSITORY, "main", "none.json", EntryNotFoundError),
    ],
)
def test_what_is_not_there_has_its_own_error(
    hub: Hub, tmp_path: Path, repository: str, revision: str, file: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        hf_hub_download(
            repository, file, revision=revision, endpoint=hub.url, local_dir=tmp_path, token=False
        )


def test_a_token_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(hub.url).model_info(REPOSITORY, token=False)
    assert fetch(hub, tmp_path / "model", token="hf_secret").exists()


def test_a_dropped_connection_is_resumed_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    """The client keeps what it got in whole chunks, of 10 MiB each."""
    weights, chunk = WEIGHTS * 32, constants.DOWNLOAD_CHUNK_SIZE
    hub.publish(REPOSITORY, {"model.safetensors": weights})
    with hub.failing(Fault("*.safetensors", drop_after=2 * chunk + 300_000, times=1)):
        place = fetch(hub, tmp_path / "model")
    assert (place / "model.safetensors").read_bytes() == weights
    bodies = [
        request for request in hub.requests if request.method == "GET" and request.path.startswith("/cdn")
    ]
    assert [request.range for request in bodies] == [None, f"bytes={2 * chunk}-"]
    assert [request.sent for request in bodies] == [2 * chunk + 300_000, len(weights) - 2 * chunk]


def test_a_flipped_byte_arrives_flipped(hub: Hub, tmp_path: Path) -> None:
    with hub.failing(Fault("*.safetensors", flip_at=1000)):
        place = fetch(hub, tmp_path / "model")
    arrived = (place / "model.safetensors").read_bytes()
    assert [index for index, byte in enumerate(arrived) if byte != WEIGHTS[index]] == [1000]


def test_a_truncated_file_is_noticed_by_the_client(hub: Hub, tmp_path: Path) -> None:
    with hub.failing(Fault("*.safetensors", truncate_to=1000)), pytest.raises(OSError, match="onsistency"):
        fetch(hub, tmp_path / "model")


def test_an_error_status_reaches_the_client(hub: Hub, tmp_path: Path) -> None:
    with hub.failing(Fault("config.json", status=403)), pytest.raises(HfHubHTTPError, match="403"):
        fetch(hub, tmp_path / "model")


def test_a_slow_drip_takes_its_time(hub: Hub, tmp_path: Path) -> None:
    hub.publish(REPOSITORY, {"model.safetensors": WEIGHTS[:40_000]})
    with hub.failing(Fault("*.safetensors", bytes_per_s=100_000)):
        place = fetch(hub, tmp_path / "model")
    assert (place / "model.safetensors").stat().st_size == 40_000


def test_it_goes_away_and_comes_back_on_the_same_port(hub: Hub) -> None:
    url = hub.url
    hub.stop()
    with pytest.raises(httpx2.ConnectError):
        HfApi(url).model_info(REPOSITORY, token=False, timeout=2)
    hub.start()
    assert HfApi(url).model_info(REPOSITORY, token=False).id == REPOSITORY


def test_a_published_directory_is_served(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "config.json").write_text("{}")
    hub.publish("lab/other", tmp_path)
    assert HfApi(hub.url).list_repo_files("lab/other", token=False) == ["deep/config.json"]
