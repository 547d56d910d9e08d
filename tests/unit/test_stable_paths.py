"""With `stable_paths` a server sees its checkpoint at a path that changes only with files that shape the
compiled graph; without, nothing of a release is other than before the key was there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seen import seen
from test_planning import gpu, planned
from unit_syntax import command, directives

from pyinfra_vllm import release as releases
from pyinfra_vllm.checkpoint import SHAPES_THE_GRAPH, Checkpoint, File
from pyinfra_vllm.config import Layer, Overrides, Problems, Service, declare, merge
from pyinfra_vllm.on_host.server.release import Release as Staged
from pyinfra_vllm.on_host.staging import rehearsal
from pyinfra_vllm.operations import switch
from pyinfra_vllm.operations.util import foreseen, planning
from pyinfra_vllm.release import STABLE_PATH, Release
from pyinfra_vllm.report.changes import changes
from pyinfra_vllm.rollout.progress import Wanted
from pyinfra_vllm.tuning.resolution import Resolution

ROOT = "/srv/pyinfra-vllm"
CONFIG, WEIGHTS = {"config.json": "c" * 40}, {"model.safetensors": "0" * 64}


def checkpoint(commit: str = "a", **files: str) -> Checkpoint:
    """A locked checkpoint: its files' hashes by name, of 64 digits (sha256) or 40 (git's)."""
    locked = tuple(
        File(path=path, size=1, **{"sha256" if len(digest) == 64 else "blob_sha1": digest})
        for path, digest in sorted({**CONFIG, **WEIGHTS, **files}.items())
    )
    return Checkpoint(repo="org/model", revision="main", commit=commit * 40, files=locked)


def service(stable: bool = True) -> Service:
    chat = {"model": "org/model", "runtime": {"version": "0.33.0"}, "port": 8000, "stable_paths": stable}
    declared = declare("gpu-1", merge([Layer("f", {"services": {"chat": chat}})]), Problems())
    assert declared is not None
    return declared.services[0]


def made(locked: Checkpoint, stable: bool = True, **options: Any) -> Release:
    return planning._release(ROOT, service(stable), locked, Resolution(), "0.33.0", [], {}, **options)


def mounts(release: Release) -> list[str]:
    unit = release.files()["vllm.service"]
    return [value for _, key, value in directives(unit) if key == "BindReadOnlyPaths"]


@pytest.mark.parametrize("standby", [False, True])
def test_two_commits_that_differ_in_weights_alone_have_one_command_line_and_two_ids(standby: bool) -> None:
    old, new = (
        made(checkpoint(commit, **{"model.safetensors": commit * 64}), can_sleep=standby) for commit in "ab"
    )
    assert old.argv == new.argv and old.argv[2] == f"{STABLE_PATH}{checkpoint().graph}"
    assert old.id != new.id
    for release, commit in ((old, "a"), (new, "b")):
        directory = f"{ROOT}/checkpoints/org--model/{commit * 40}"
        assert mounts(release) == [f"{directory}:{release.argv[2]}"]
        document = json.loads(release.files()["release.json"])
        assert document["checkpoint"]["directory"] == directory
        start = dict((key, value) for _, key, value in directives(release.files()["vllm.service"]))[
            "ExecStart"
        ]
        assert command(start) == document["argv"]


def test_without_the_key_the_unit_and_the_id_are_as_if_the_template_had_no_such_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = made(checkpoint(), stable=False)
    assert plain.argv[2] == plain.checkpoint["directory"] and mounts(plain) == []
    before = re.sub(
        r"\{% if stable_path %\}\n.*?\{% endif %\}\n", "", releases.template_text(), flags=re.DOTALL
    )
    assert "stable_path" not in before and before != releases.template_text()
    monkeypatch.setattr(releases, "template_text", lambda: before)
    earlier = made(checkpoint(), stable=False)
    assert (earlier.id, earlier.files()) == (plain.id, plain.files())


@pytest.mark.parametrize(
    "path", [*sorted(SHAPES_THE_GRAPH), "text/config.json", "modeling.py", "code/model.py"]
)
def test_a_file_that_shapes_the_graph_makes_another_path(path: str) -> None:
    assert checkpoint(**{path: "1" * 40}).graph != checkpoint(**{path: "2" * 40}).graph != checkpoint().graph


names = st.sampled_from(
    [
        "config.json",
        "params.json",
        "a.py",
        "model-2.safetensors",
        "tokenizer.json",
        "vocab.txt",
        "my.config.json",
    ]
)
hashes = st.text("0123456789abcdef", min_size=40, max_size=40)


@given(st.dictionaries(names, hashes), st.dictionaries(names, hashes))
def test_two_checkpoints_share_a_path_exactly_if_the_files_that_shape_the_graph_are_equal(
    one: dict[str, str], other: dict[str, str]
) -> None:
    def shaping(files: dict[str, str]) -> dict[str, str]:
        found = {**CONFIG, **files}
        return {path: found[path] for path in found if path in ("config.json", "params.json", "a.py")}

    assert (checkpoint(**one).graph == checkpoint(**other).graph) == (shaping(one) == shaping(other))


def test_a_checkpoint_without_any_such_file_shares_its_path_with_no_other() -> None:
    one, other = (
        Checkpoint(
            repo="o/m", revision="main", commit="a" * 40, files=(File(path="w.gguf", size=1, sha256=s * 64),)
        )
        for s in "12"
    )
    assert one.graph != other.graph


def test_the_question_to_vllm_sees_the_checkpoint_at_the_same_path() -> None:
    release = made(checkpoint())
    files, run = release.files(), Path("/run/pyinfra-vllm")
    staged = Staged(json.loads(files["release.json"]))
    question = rehearsal.unit_text(files["vllm.service"], staged, run / "p.py", run / "answer", run / "env")
    assert f"BindReadOnlyPaths={mounts(release)[0]}\n" in question
    assert f'"serve" "{release.stable_path}"' in question


def wanted(old: Release, new: Release) -> Wanted:
    observed = seen(release=json.loads(old.files()["release.json"]), current=old.id)
    return Wanted("gpu-1", ROOT, service(), new, observed, "cpu")


def test_plan_dry_run_and_report_tell_that_the_checkpoint_changed() -> None:
    old, new = (made(checkpoint(commit)) for commit in "ab")
    item, before, after = wanted(old, new), f"org/model@{'a' * 12}", f"org/model@{'b' * 12}"
    told = foreseen.service_plan(item, Overrides())
    assert told.model == (before, after) and told.flags == {}
    assert f"; checkpoint: {before} -> {after};" in switch.preview(item, Overrides())
    staged: list[Any] = [json.loads(release.files()["release.json"]) for release in (old, new)]
    (change,) = changes(*staged)
    assert (change.name, change.before, change.after) == (
        "model",
        before.replace("@", " at "),
        after.replace("@", " at "),
    )


def test_a_dry_run_tells_of_no_checkpoint_where_it_stays() -> None:
    item = wanted(made(checkpoint(), stable=False), made(checkpoint()))
    assert "checkpoint:" not in switch.preview(item, Overrides())


def test_a_template_of_an_earlier_version_is_refused_before_anything_is_staged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "template_text", lambda: "ExecStart={{ argv }}")
    planned([gpu()])
    with pytest.raises(planning.Refused, match="does not mount the checkpoint there"):
        planned([gpu()], stable_paths=True)
