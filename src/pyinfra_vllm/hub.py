"""Makes a checked `Checkpoint` of what the Hub says of a repository, and refuses what must not be served.

Names, sizes and hashes are checked before they are written to the lock file. No weights are downloaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pyinfra_vllm import checkpoint, hub_endpoint
from pyinfra_vllm.checkpoint import Checkpoint, File
from pyinfra_vllm.errors import CheckpointRefused, HubError, one_line
from pyinfra_vllm.hub_api import HubApi
from pyinfra_vllm.on_host.state import manifest

LARGEST_METADATA_BYTES = 64 * 1024**2  # tokenizers of 250,000 entries are about 35 MB
LARGEST_LISTING = 20_000  # entries; repositories with many quantizations have a few thousand

INDEX = "model.safetensors.index.json"
MODELOPT = "hf_quant_config.json"  # of modelopt up to 0.29
OLD_QUANTIZATION = ("quantize_config.json", "quant_config.json")  # of AutoGPTQ and AutoAWQ in 2023
MLX = "quantization"  # the key of mlx-lm's packed weights
ADAPTER = "adapter_config.json"  # of PEFT: weights that change those of a base model
# Beside config.json: transformers imports the modules of their `auto_map`, too.
NAME_CODE = (
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")

# Files at the top of a repository that vLLM and transformers read beside the weights; the rest is left out.
_NEEDED = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template|"
    r"preprocessor_config|processor_config|video_preprocessor_config|quantization_config|quant_config|quantize_config|"
    r"hf_quant_config|params|tekken|sentence_bert_config|modules|config_sentence_transformers)\.json|"
    r"merges\.txt|vocab\.txt|[^/]*\.(jinja|model|tiktoken)|additional_chat_templates/[^/]*\.jinja"
)

# Keys of config.json that say nothing about memory or speed and may be long.
_LEFT_OUT = frozenset({"id2label", "label2id", "task_specific_params", "_name_or_path", "auto_map"})
_DEEPEST = 5  # quantization_config.config_groups.group_0.weights.group_size has 5 levels
_LONGEST_LIST = 512  # layer_types has one word a layer
_OF_LAYERS = "block_configs"  # one map a layer: the KV heads of Nemotron-NAS

_SHARD = re.compile(r"(.+)-(\d{4,6})-of-(\d{4,6})\.safetensors")
MOST_SHARDS = 4096
LARGEST_POINTER_BYTES = 512  # a Git LFS pointer has about 130


class Hub:
    """One Hub: the endpoint from HF_ENDPOINT, the token from HF_TOKEN or where `hf auth login` keeps it."""

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self.endpoint = endpoint.rstrip("/") if endpoint else hub_endpoint.endpoint()
        self._api = HubApi(self.endpoint, token)

    def __repr__(self) -> str:
        return f"Hub({self.endpoint!r})"

    def checkpoint(
        self, repo: str, revision: str = "main", *, allow_code: bool = False, consolidated: bool = False
    ) -> Checkpoint:
        """The checkpoint that `repo` at `revision` means now.

        + allow_code: keep the repository's Python files and accept `auto_map` (declared with a reason)
        + consolidated: the weights in Mistral's own form, which `load-format: mistral` loads and nothing else

        Raises CheckpointRefused for a repository that must not be served, HubError for a failure of the Hub.
        """
        for value, reason in (
            (repo, checkpoint.refuse_repository(repo)),
            (revision, checkpoint.refuse_revision(revision)),
        ):
            if reason:
                raise CheckpointRefused(f"{value!r} {reason}. Nothing was written.")
        commit, listing = self._listing(repo, revision)
        self._refuse_adapter(repo, commit, listing)
        _refuse_pickles(repo, listing)
        files = self._needed(repo, commit, listing, allow_code, consolidated)
        config = self._api.json(repo, commit, _named(repo, files, "config.json"))
        config = self._with_quantization(repo, commit, files, config)
        if not allow_code:
            self._refuse_code(repo, commit, files, config)
        found = Checkpoint(repo=repo, revision=revision, commit=commit, files=files, config=facts_of(config))
        if reason := checkpoint.refuse_files(found.files):
            raise CheckpointRefused(f"{repo} {reason}. Nothing was written.")
        return found

    def _listing(self, repo: str, revision: str) -> tuple[str, tuple[File, ...]]:
        """The commit and every file of the repository whose name, size and hash can be used."""
        info = self._api.info(repo, revision)
        commit, siblings = str(info.sha), info.siblings or []
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise HubError(f"{self.endpoint} names no commit for {repo}@{revision} (found {commit[:60]!r})")
        if re.fullmatch(r"[0-9a-f]{40}", revision) and commit != revision:
            raise HubError(
                f"{self.endpoint} answers commit {commit} where {repo} at {revision} was asked for"
            )
        if len(siblings) > LARGEST_LISTING:
            raise HubError(
                f"{self.endpoint} lists {len(siblings)} files in {repo}: more than {LARGEST_LISTING}"
            )
        files = tuple(_file(repo, sibling) for sibling in siblings)
        if len({file.path for file in files}) != len(files):
            raise HubError(f"{self.endpoint} lists a file of {repo} twice")
        return commit, tuple(file for file in files if not manifest.unsafe(file.path))

    def _needed(
        self, repo: str, commit: str, listing: tuple[File, ...], allow_code: bool, consolidated: bool
    ) -> tuple[File, ...]:
        """The weights that vLLM would load, and the files beside them that serving needs."""
        weights = {file.path: file for file in _weights(listing) if not _of_adapter(file)}
        index = next((file for file in listing if file.path == INDEX), None)
        if consolidated:
            index = None
            weights = {path: file for path, file in weights.items() if path.startswith("consolidated")}
            if not weights:
                raise CheckpointRefused(
                    f"{repo} holds no consolidated*.safetensors, and flags: {{load-format: mistral}} loads"
                    " nothing else. Nothing was written. Take the flag out."
                )
        elif index is not None:
            weights = _indexed(repo, weights, self._api.json(repo, commit, index))
        elif any(path.startswith("model") for path in weights):
            # Mistral's repositories hold the same weights a second time as consolidated*.safetensors.
            weights = {path: file for path, file in weights.items() if not path.startswith("consolidated")}
        if not weights:
            raise CheckpointRefused(f"{repo} holds no weights in safetensors. Nothing was written.")
        _refuse_gaps(repo, weights)
        _refuse_two_sets(repo, weights)
        _refuse_pointers(repo, weights.values())
        beside = [file for file in listing if _NEEDED.fullmatch(file.path) or file is index]
        if allow_code:
            beside += [file for file in listing if file.path.endswith(".py")]
        for file in beside:
            if file.size > LARGEST_METADATA_BYTES:
                raise CheckpointRefused(f"{repo}: {file.path} has {file.size} bytes, too many for what it is")
        return tuple(sorted([*weights.values(), *beside], key=lambda file: file.path))

    def _refuse_adapter(self, repo: str, commit: str, listing: tuple[File, ...]) -> None:
        """Refuse an adapter: it has only changes to the weights of another model."""
        about = next((file for file in listing if file.path == ADAPTER), None)
        whole = [file for file in listing if file.path.startswith("pytorch_model")]
        if about is None or whole or not all(map(_of_adapter, _weights(listing))):
            return
        base = self._api.json(repo, commit, about).get("base_model_name_or_path")
        named = f" ({one_line(base)})" if isinstance(base, str) and base else ""
        raise CheckpointRefused(
            f"{repo} is an adapter: it has {ADAPTER} and no weights but the adapter's, which change those of"
            f" a base model{named} and can't be served without them. Nothing was written. Declare the base"
            " model as `model`, put the adapter on the host, and name it in flags: {enable-lora: true,"
            " lora-modules: [NAME=/absolute/path]}; or take a repository with the merged weights."
        )

    def _with_quantization(
        self, repo: str, commit: str, files: tuple[File, ...], config: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """The config.json with the quantization that vLLM reads from a file beside it (modelopt's); of any
        other such file it reads nothing without a flag, and ends where weights are packed.
        """
        text = config.get("text_config")
        parts = (config, text) if isinstance(text, Mapping) else (config,)
        if any(part.get(key) for part in parts for key in ("quantization_config", "compression_config")):
            return config
        beside = {file.path: file for file in files}
        if isinstance(config.get(MLX), Mapping):
            raise CheckpointRefused(
                f"{repo}: config.json says `{MLX}`, and no quantization_config: it is packed for MLX (Apple),"
                " and vLLM would take its weights for not quantized, and end. Nothing was written. Take its"
                " AWQ, GPTQ or compressed-tensors repository."
            )
        if MODELOPT in beside:
            return {**config, "quantization_config": self._api.json(repo, commit, beside[MODELOPT])}
        if alone := next((name for name in OLD_QUANTIZATION if name in beside), None):
            raise CheckpointRefused(
                f"{repo}: {alone} says how the weights are quantized, and config.json does not: vLLM reads"
                " only the second, would take them for not quantized, and end. Nothing was written. Take a"
                " repository whose config.json has a quantization_config."
            )
        return config

    def _refuse_code(
        self, repo: str, commit: str, files: tuple[File, ...], config: Mapping[str, Any]
    ) -> None:
        """Refuse a repository whose configuration names Python code of its own."""
        configurations = {"config.json": config}
        for file in files:
            if file.path in NAME_CODE:
                configurations[file.path] = self._api.json(repo, commit, file)
        for path, content in configurations.items():
            if content.get("auto_map"):
                raise CheckpointRefused(
                    f"{repo}: {path} names code of its own (auto_map), which runs only with"
                    " trust_remote_code. Nothing was written. Use a repository at which config.json alone"
                    " says what the model is, or read the code and declare why it may run: `allow_code`."
                )


def _file(repo: str, sibling: Any) -> File:
    """One line of the Hub's listing. A name that can't be used anywhere refuses the whole repository."""
    path = sibling.rfilename
    reason = manifest.unsafe(path) if isinstance(path, str) else "is not text"
    if reason and not reason.startswith(("has a hidden", "is a name this")):
        raise CheckpointRefused(
            f"{repo} lists a file named {str(path)[:80]!r}, which {reason}. Nothing was written."
        )
    size, sha256 = sibling.size, sibling.lfs.sha256 if sibling.lfs else None
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= checkpoint.MOST_BYTES:
        raise CheckpointRefused(
            f"{repo} lists {path} with an impossible size, {size!r}. Nothing was written."
        )
    if sha256 is not None and re.fullmatch(r"[0-9a-f]{64}", str(sha256)):
        return File(path=path, size=size, sha256=sha256)
    if sha256 is None and re.fullmatch(r"[0-9a-f]{40}", str(sibling.blob_id)):
        return File(path=path, size=size, blob_sha1=sibling.blob_id)
    raise HubError(f"The Hub states no content hash for {repo}/{path}. The lock file is as it was.")


def _named(repo: str, files: tuple[File, ...], path: str) -> File:
    for file in files:
        if file.path == path:
            return file
    raise CheckpointRefused(f"{repo} has no {path}, without which it can't be served. Nothing was written.")


def _refuse_pickles(repo: str, listing: tuple[File, ...]) -> None:
    """Refuse a repository whose only weights are pickles, which run code when they are loaded."""
    pickles = [file.path for file in listing if file.path.endswith(PICKLES)]
    if pickles and not any(file.path.endswith(".safetensors") for file in listing):
        raise CheckpointRefused(
            f"{repo} holds its weights only as pickles ({pickles[0]}), which can run code when loaded. "
            f"Nothing was written. Use a repository with safetensors, or convert it."
        )


def _weights(listing: Iterable[File]) -> list[File]:
    """The files at the top of a repository that hold tensors."""
    return [file for file in listing if re.fullmatch(r"[^/]+\.safetensors", file.path)]


def _of_adapter(file: File) -> bool:
    """Whether a file holds an adapter's tensors, which no loader of whole models takes."""
    return file.path.startswith("adapter_")


def _refuse_gaps(repo: str, weights: Mapping[str, File]) -> None:
    """Refuse incomplete numbered shards: vLLM loads those that are there, and serves garbage."""
    found: dict[tuple[str, int], set[int]] = {}
    for path in weights:
        shard = _SHARD.fullmatch(path)
        if shard:
            found.setdefault((shard[1], int(shard[3])), set()).add(int(shard[2]))
    for (stem, count), numbers in found.items():
        first = 0 if 0 in numbers else 1
        missing = [
            number for number in range(first, first + min(count, MOST_SHARDS)) if number not in numbers
        ]
        if missing:
            raise CheckpointRefused(
                f"{repo}: {stem}-{missing[0]:05}-of-{count:05}.safetensors is not there ({len(missing)} of"
                f" {count} shards are missing), and vLLM would serve without it. Nothing was written. Upload"
                " it again, or take another repository."
            )


def _refuse_two_sets(repo: str, weights: Mapping[str, File]) -> None:
    """Refuse the same weights in two sets that no index tells apart: vLLM loads both, one over the other."""
    sets: dict[str, set[str]] = {}
    for path in weights:
        shard = _SHARD.fullmatch(path)
        stem, count = (shard[1], shard[3]) if shard else (path.removesuffix(".safetensors"), "one file")
        sets.setdefault(stem, set()).add(count)
    for stem, counts in sets.items():
        if len(counts) > 1:
            raise CheckpointRefused(
                f"{repo} holds {stem} in {len(counts)} sets ({', '.join(sorted(counts))}) and no {INDEX} that"
                " says which is served: vLLM would load both, one over the other. Nothing was written. Take"
                " one of them out of the repository, or take another."
            )


def _refuse_pointers(repo: str, weights: Iterable[File]) -> None:
    """Refuse Git LFS pointers that were uploaded in place of weights."""
    for file in weights:
        if file.sha256 is None and file.size < LARGEST_POINTER_BYTES:
            raise CheckpointRefused(
                f"{repo}: {file.path} has {file.size} bytes: a pointer to weights, and not the weights."
                " Nothing was written. Upload it with Git LFS, or take another repository."
            )


def _indexed(repo: str, weights: Mapping[str, File], index: Mapping[str, Any]) -> dict[str, File]:
    """The weight files that the index names: vLLM loads those and no others."""
    mapping = index.get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointRefused(f"{repo}: {INDEX} has no weight_map. Nothing was written.")
    named = {str(path) for path in mapping.values()}
    if missing := sorted(named - weights.keys()):
        raise CheckpointRefused(
            f"{repo}: {INDEX} names {missing[0]!r}, which is not there. Nothing was written."
        )
    return {path: weights[path] for path in named}


def facts_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of config.json for memory fit and tuning, without long texts and label tables."""
    return {key: value for key, value in _facts(config, 1).items() if value != {}}


def _facts(config: Mapping[str, Any], depth: int) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if key in _LEFT_OUT or not _is_short(key):
            continue
        if isinstance(value, dict) and depth < _DEEPEST:
            kept[key] = _facts(value, depth + 1)
        elif key == _OF_LAYERS and isinstance(value, list) and len(value) <= _LONGEST_LIST:
            kept[key] = [_facts(item, depth + 1) for item in value if isinstance(item, dict)]
        elif _is_plain(value) or (
            isinstance(value, list) and len(value) <= _LONGEST_LIST and all(_is_plain(item) for item in value)
        ):
            kept[key] = value
    return kept


def _is_plain(value: object) -> bool:
    if isinstance(value, float):
        # NaN is not even equal to itself: the lock file would never be up to date.
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int) or _is_short(value)


def _is_short(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 200 and value.isprintable()
