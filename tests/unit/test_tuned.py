"""The profile that a tuning writes: its evidence, and that it is read back as what was tried."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from resolving import asked, resolve
from seen import gpu
from test_space import CARDS, MODELS, pruned

from pyinfra_vllm import tuned
from pyinfra_vllm.catalog import gpus, shapes
from pyinfra_vllm.config import profiles as files
from pyinfra_vllm.config.problems import Problems
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.inspect.gpus import Gpu
from pyinfra_vllm.tuning import devices, night, resolver, search, space
from pyinfra_vllm.tuning.measured import Settings
from pyinfra_vllm.tuning.night import Line, Setup
from pyinfra_vllm.tuning.pareto import Slo, Speed
from pyinfra_vllm.tuning.search import Done

H200 = tuned.Place("NVIDIA H200", 1, "Qwen/Qwen3-32B-AWQ", "0.25.1+cu129", "latency", 4096)
H100 = gpu(1, name="NVIDIA H100 80GB HBM3", memory_mib=81559, compute_capability="9.0")
H100_NVL = gpu(0, name="NVIDIA H100 NVL", memory_mib=95830, compute_capability="9.0")
FOUND = Settings({"--linear-backend": "humming", "--max-num-seqs": None}, {"A": "1"}, "about", "source")
GROUPS = {"humming": "kernel", "marlin": "kernel", "fp8": "kv_cache", "ngram": "speculation"}
AT = "2026-11-30T03:12:00+00:00"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sides(first: float, most: float) -> dict[str, Any]:
    """One stream gains `first`, 64 gain `most`."""
    before = [Speed("c1", 1, 0.057, 0.012, 80.0), Speed("c64", 64, 1.8, 0.03, 1593.0)]
    after = [
        Speed("c1", 1, 0.055, 0.012 / first, 80.0 * first),
        Speed("c64", 64, 2.2, None, 1593.0 * most),
    ]
    return {key: [each.as_dict() for each in side] for key, side in (("before", before), ("after", after))}


def journal() -> list[Line]:
    setup = Setup("chat", "a" * 12, "latency", Slo(), GROUPS, Criteria().as_dict())
    looks: list[Line] = [
        {"trial": "humming", "rung": 0, "ratio": 1.3, **sides(1.3, 0.99)},
        {"trial": "marlin", "rung": 0, "ratio": 1.17, **sides(1.17, 0.6)},
        {"trial": "fp8", "rung": 0, "ratio": 0.97, **sides(0.97, 1.0)},
        {"trial": "ngram", "rung": 0, "failed": "did not start: out of memory"},
        {"trial": "humming", "rung": 1, "ratio": 1.21, **sides(1.21, 0.99)},
        {"trial": "marlin", "rung": 1, "failed": "c64 is worse", "seen": 1.16, **sides(1.16, 0.6)},
    ]
    more = {"workload": {"input_tokens": 512, "output_tokens": 128, "streams": [1, 64]}, "at": AT}
    pairs = [
        {"pair": "humming", "number": n, "ratio": ratio, **sides(ratio, 0.989 + n / 1000), **more}
        for n, ratio in enumerate((1.19, 1.20, 1.195, 1.205))
    ]
    return [setup.header(None, 0, AT), *looks, *pairs]


def done() -> Done:
    logs = [math.log(line["ratio"]) for line in journal() if "pair" in line]
    return search.verdict("humming", logs)


def read_back() -> list[files.MeasuredProfile]:
    problems = Problems()
    found = files.layer(problems)
    problems.raise_if_any()
    return list(found.values.get(files.KEY, ()))


def test_written_profile_is_read_back_whole() -> None:
    made = tuned.proven(H200, FOUND, journal(), done())
    path = files.keep(made)
    assert str(path) == "profiles/NVIDIA-H200--Qwen--Qwen3-32B-AWQ--0.25.1.yaml"
    (found,) = read_back()
    assert found == made
    assert [each.name for each in Path("profiles").iterdir()] == [path.name]


def test_its_evidence_is_that_of_the_pairs_alone() -> None:
    made = tuned.proven(H200, FOUND, journal(), done()).objectives["latency"]
    ended = done()
    assert made.gain.ratio == round(ended.ratio or 0, 4) == 1.1975
    assert (made.gain.phase, made.gain.metric, made.gain.before) == ("c1", "tokens_per_s", 80.0)
    assert ended.interval and made.gain.interval[0] <= ended.interval[0] < ended.interval[1]
    assert ended.interval[1] <= made.gain.interval[1]
    costs = {(each.phase, each.metric): each.ratio for each in made.elsewhere}
    assert costs[("c64", "tokens_per_s")] == pytest.approx(0.9905, abs=1e-4)
    assert costs[("c64", "ttft_s")] == pytest.approx(2.2 / 1.8, abs=1e-4)
    assert ("c64", "tpot_s") not in costs, "no answer of it had two tokens"
    assert made.measured == date(2026, 11, 30)
    assert made.workload.streams == (1, 64)


def test_what_lost_is_told_with_its_figures() -> None:
    made = tuned.proven(H200, FOUND, journal(), done()).objectives["latency"]
    assert [(each.name, each.ratio, each.ended) for each in made.tried] == [
        ("fp8", 0.97, "no better than the current configuration"),
        ("marlin", 1.16, "c64 is worse"),
        ("ngram", None, "did not start: out of memory"),
    ]


def test_other_objectives_of_the_file_stay() -> None:
    files.keep(tuned.proven(H200, FOUND, journal(), done()))
    (before,) = read_back()
    balanced = before.model_copy(update={"objectives": {"balanced": before.objectives["latency"]}})
    files.keep(balanced)
    (found,) = read_back()
    assert set(found.objectives) == {"latency", "balanced"}


def test_flag_that_is_taken_out_is_written_as_null() -> None:
    path = files.keep(tuned.proven(H200, FOUND, journal(), done()))
    flags = yaml.safe_load(path.read_text())["objectives"]["latency"]["flags"]
    assert flags == {"linear-backend": "humming", "max-num-seqs": None}


def test_search_without_a_winner_has_no_profile() -> None:
    with pytest.raises(ValueError, match="nothing was better"):
        tuned.proven(H200, FOUND, journal(), Done(None, None, None, "nothing was better"))


def test_folder_that_can_t_be_written_is_said() -> None:
    Path("profiles").write_text("")
    with pytest.raises(DeclarationError, match="can't be written"):
        files.keep(tuned.proven(H200, FOUND, journal(), done()))


@pytest.mark.parametrize(
    "rows",
    [
        [gpu(name="NVIDIA GeForce RTX 5060 Ti", memory_mib=16311, compute_capability="12.0")],
        [gpu(name="NVIDIA GeForce RTX 4090", memory_mib=49140)],
        [replace(H100, instance="3g.40gb", memory_mib=40448)],
        [H100_NVL, H100],
    ],
    ids=lambda rows: " and ".join(row.name for row in rows),
)
def test_each_candidate_is_used_on_the_host_it_was_tried_on(rows: list[Gpu]) -> None:
    given: dict[str, Any] = {"gpu_count": len(rows), "objective": "latency", "max_model_len": 2048}
    question = asked("Qwen/Qwen3-8B-AWQ", devices.smallest(rows), "0.33.0", **given)
    found = space.pruned(question)
    assert found.candidates
    for candidate in found.candidates:
        made = tuned.unproven(tuned.Place.of(question), found.settings(candidate))
        again = resolver.resolve(replace(question, profiles=(made,)))
        assert sorted(again.argv()) == sorted(candidate.resolution.argv()), candidate.name
        assert again.environment == candidate.resolution.environment, candidate.name


def test_cpu_is_called_as_it_is_declared() -> None:
    question = asked("Qwen/Qwen3-8B-AWQ", gpus.CPU, "0.33.0", gpu_count=0)
    made = tuned.unproven(tuned.Place.of(question), FOUND)
    assert (made.card, made.memory_mib, made.file) == (
        "cpu", None, "profiles/cpu--Qwen--Qwen3-8B-AWQ--0.33.0.yaml",
    )  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("gpu", CARDS)
def test_each_candidate_is_resolved_from_its_profile_as_it_was_tried(gpu: str) -> None:
    """So the release that was measured is, but for its name, the one that the committed file rolls out."""
    head = "/srv/heads/eagle3"
    seen = 0
    for model in MODELS:
        for objective in ("latency", "throughput"):
            found = pruned(model, gpu, "0.33.0", objective, draft_head=head)
            card, shape = gpus.find(gpu), shapes.find(model)
            assert shape is not None
            count = 0 if gpu == "cpu" else 1
            title = "cpu" if gpu == "cpu" else card.title
            place = tuned.Place(title, count, shape.name, "0.33.0", objective, 4096)
            for candidate in found.candidates:
                made = tuned.unproven(place, found.settings(candidate))
                again = resolve(
                    model=shape, gpu=card, gpu_count=count, runtime="0.33.0", objective=objective,
                    max_model_len=4096, profiles=(made,),
                )  # fmt: skip
                assert sorted(again.argv()) == sorted(candidate.resolution.argv()), candidate.name
                assert again.environment == candidate.resolution.environment, candidate.name
                seen += 1
    assert seen > 5


@given(st.lists(st.floats(0.5, 2.0), min_size=3, max_size=9))
def test_intervals_hold_their_ratio_whatever_was_measured(gains: list[float]) -> None:
    pairs = [
        ([Speed("c1", 1, 0.05, 0.01, 80.0)], [Speed("c1", 1, 0.05 / gain, 0.01, 80.0 * gain)])
        for gain in gains
    ]
    for each in tuned.comparisons(pairs):
        assert each.interval[0] <= each.ratio <= each.interval[1]
        json.dumps(each.model_dump(mode="json"))


def test_damaged_pair_is_said() -> None:
    lines = [*journal(), {"pair": "humming", "number": 9, "ratio": 1.2, "before": [{}], "after": []}]
    with pytest.raises(night.Damaged, match="a pair of humming"):
        tuned.proven(H200, FOUND, lines, done())
