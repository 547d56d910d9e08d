"""The parts of the lab on GPUs that need no GPU to be tested: cards by number, checkpoints, rows, a host's
devices.
"""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gpu import page, pulse, story
from lab import carried, gpus, prerequisites, shapes, venvs
from lab.machine import Host
from lab.session import Lab
from lab.shell import LabError

SMALL = shapes.Shape(hidden=256, inner=512, layers=2, heads=4, kv_heads=2, tied=False)
FUSE = Path("/dev/fuse")


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    for name in ("nvidia0", "nvidia2", "nvidia10", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (tmp_path / name).touch()
    return tmp_path


def test_all_cards_are_the_labs_unless_some_are_chosen(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(gpus.CHOSEN, raising=False)
    assert gpus.mine(dev) == (0, 2, 10)
    monkeypatch.setenv(gpus.CHOSEN, "10,2")
    assert gpus.mine(dev) == (10, 2)
    monkeypatch.setenv(gpus.CHOSEN, "1")
    with pytest.raises(LabError, match=r"no GPU 1 here; this machine has \[0, 2, 10\]"):
        gpus.mine(dev)


def test_a_host_is_given_its_own_cards_and_what_all_cards_need(dev: Path) -> None:
    names = [path.name for path in gpus.devices([2], dev)]
    assert names == ["nvidia2", "nvidiactl", "nvidia-uvm", "nvidia-caps"]
    assert gpus.devices([], dev) == ()


def test_what_is_missing_for_gpus_is_said(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "mine", lambda: ())
    monkeypatch.delenv(venvs.NAMED, raising=False)
    told = "; ".join(gpus.missing())
    assert "no NVIDIA GPU" in told and "PYINFRA_VLLM_LAB_RUNTIME" in told


def test_a_named_runtime_without_vllm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(venvs.NAMED, str(tmp_path))
    with pytest.raises(LabError, match="has no bin/vllm"):
        venvs.named()


def test_carried_packages_are_named_where_one_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(carried.DEBS, str(tmp_path))
    with pytest.raises(LabError, match=r"holds no \.deb files"):
        carried.packages()
    monkeypatch.setattr(carried, "packages", lambda: [tmp_path / "a.deb"])
    monkeypatch.setattr(carried, "programs", lambda: None)
    monkeypatch.setattr(prerequisites, "PROGRAMS", {"no-such-program": "its-package"})
    with pytest.raises(LabError, match=r"lacks no-such-program, .* carry its-package too"):
        prerequisites.ensure()


# Checkpoints with real shapes


def tensors(file: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Name -> type, shape and bytes: read as the format's page says, not as it was written."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    body = data[8 + length :]
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(body)
    return {
        name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("checkpoint") / "small"
    shapes.write(SMALL, place)
    return place


def test_every_tensor_is_in_the_file_that_the_index_names(checkpoint: Path) -> None:
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    found = {name: file.name for file in checkpoint.glob("*.safetensors") for name in tensors(file)}
    assert found == index
    assert len(index) == SMALL.layers * (7 * 3 + 4) + 3


def test_layers_have_the_shapes_of_awq(checkpoint: Path) -> None:
    layer = tensors(checkpoint / "model-001.safetensors")
    prefix = "model.layers.1.mlp.down_proj"
    kind, shape, content = layer[f"{prefix}.qweight"]
    assert (kind, shape, len(content)) == ("I32", [512, 256 // 8], 512 * 32 * 4)
    assert len(set(content)) == 256  # random, not one value over and over
    assert layer[f"{prefix}.qzeros"][:2] == ("I32", [512 // 128, 32])
    assert set(layer[f"{prefix}.qzeros"][2]) == {0x88}
    scale = struct.unpack("<e", layer[f"{prefix}.scales"][2][:2])[0]
    assert 0.5 < scale * 4.6 * 512**0.5 < 2


@pytest.mark.parametrize(
    ("layout", "parts"),
    {
        "float16": {"weight": ("F16", [256, 512])},
        "gptq": {
            "qweight": ("I32", [512 // 8, 256]),
            "qzeros": ("I32", [512 // 128, 256 // 8]),
            "scales": ("F16", [512 // 128, 256]),
            "g_idx": ("I32", [512]),
        },
        "fp8": {"weight": ("F8_E4M3", [256, 512]), "weight_scale": ("F32", [1])},
    }.items(),
)
def test_other_layouts_have_their_own_tensors(
    tmp_path: Path, layout: str, parts: dict[str, tuple[str, list[int]]]
) -> None:
    shapes.write(replace(SMALL, layout=layout, family="llama"), tmp_path / "it")
    layer = tensors(tmp_path / "it/model-001.safetensors")
    prefix = "model.layers.1.mlp.down_proj."
    found = {
        name.removeprefix(prefix): (kind, shape)
        for name, (kind, shape, _) in layer.items()
        if name.startswith(prefix)
    }
    assert found == parts
    assert not any("q_norm" in name for name in layer)
    config = json.loads((tmp_path / "it/config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert ("quantization_config" in config) == (layout != "float16")


def test_a_model_that_drafts_has_a_layer_for_it_and_biases(tmp_path: Path) -> None:
    shapes.write(replace(SMALL, layout="float16", family="mimo"), tmp_path / "it")
    ends = tensors(tmp_path / "it/model-ends.safetensors")
    drafting = {name.removeprefix("model.mtp_layers.0."): shape for name, (_, shape, _) in ends.items()}
    assert drafting["input_proj.weight"] == [256, 2 * 256] and drafting["mlp.up_proj.weight"] == [512, 256]
    norms = {name for name in drafting if name.endswith("layernorm.weight") and "model." not in name}
    assert len(norms) == 5
    layer = tensors(tmp_path / "it/model-001.safetensors")
    assert layer["model.layers.1.self_attn.k_proj.bias"][:2] == ("F16", [2 * 128])
    assert not any("q_norm" in name for name in layer)
    config = json.loads((tmp_path / "it/config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["MiMoForCausalLM"], "qwen3")
    assert config["num_nextn_predict_layers"] == 1


def test_drafts_are_taken_as_right_at_the_rates_that_are_given(tmp_path: Path) -> None:
    folder = Path(page.__file__).parent / "acceptance"
    program = tmp_path / "serve.py"
    program.write_text("import json, sys; print(sys.argv[2])")
    asked = json.dumps({"method": "mtp", "num_speculative_tokens": 2})
    words = (sys.executable, str(program), "--speculative-config", asked)
    environment = {"PYTHONPATH": str(folder), "LAB_ACCEPTANCE": "0.7,0.5,0.3"}
    told = json.loads(subprocess.run(words, env=environment, capture_output=True, check=True).stdout)
    assert told["rejection_sample_method"] == "synthetic" and told["method"] == "mtp"
    assert told["synthetic_acceptance_rates"] == [0.7, 0.5]
    del environment["LAB_ACCEPTANCE"]
    told = subprocess.run(words, env=environment, capture_output=True, check=True, text=True).stdout
    assert told.strip() == asked


def test_numbers_of_eight_bits_are_numbers() -> None:
    drawn = shapes.LAYOUTS["fp8"][0](512, 256, random.Random(0))["weight"].pattern
    assert not set(drawn) & {0x7F, 0xFF}  # e4m3's NaN
    assert len(set(drawn)) == 128


def test_no_two_tokens_are_embedded_alike(checkpoint: Path) -> None:
    _, shape, content = tensors(checkpoint / "model-ends.safetensors")["model.embed_tokens.weight"]
    assert shape == [shapes.VOCABULARY, SMALL.hidden]
    width = SMALL.hidden * 2
    rows = {content[at : at + width] for at in range(0, 20_000 * width, width)}
    assert len(rows) == 20_000


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(LabError, match="Qwen/Qwen3-32B-AWQ"):
        shapes.made("lab/none")


# Rows and the page


def step(**values: object) -> story.Step:
    known = {"title": "B", "seconds": 90.0, "silent_s": 84.0, "exit_code": 1, "plain_s": 70.0}
    return story.Step(**{**known, **values})  # type: ignore[arg-type]


def test_silence_is_told_in_plain_restarts() -> None:
    assert step().times == 1.2
    assert step(plain_s=None).times is None
    text = story.line(step(outcome="rolled_back", verdict="fail", reason="slower"))
    assert text == "B: exit 1, rolled_back, fail, 90 s, 84.0 s without service (1.20 plain restarts). slower"


def test_the_next_commit_of_a_model_differs_in_its_first_layer_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYINFRA_VLLM_LAB_CACHE", str(tmp_path))
    monkeypatch.setitem(shapes.SHAPES, "lab/small", SMALL)
    before, after = shapes.made("lab/small"), shapes.retrained("lab/small")
    assert set(after) == {path.name for path in before.iterdir()}
    changed = [name for name, path in after.items() if path.read_bytes() != (before / name).read_bytes()]
    assert changed == ["model-000.safetensors"]
    sizes = {(before / changed[0]).stat().st_size, after[changed[0]].stat().st_size}
    assert len(sizes) == 1


def test_seconds_without_an_answer_go_from_the_last_one_to_the_next() -> None:
    watched = pulse.Pulse(None, 8000)  # type: ignore[arg-type]  # nobody is asked
    watched.heard = [(1.0, True), (2.0, False), (3.0, False), (4.0, True), (5.0, True), (6.0, False)]
    assert watched.silent_s(0, 5) == 3.0
    assert watched.silent_s(0, 9) == 3.0 + 4.0
    assert watched.silent_s(4, 5) == 0.0


def test_what_the_screen_said_from_some_words_on() -> None:
    told = step(screen=["one", "two words", "three"])
    assert told.said("words") == ["two words", "three"]
    assert told.said("none") == []


def test_the_page_has_a_row_for_each_step_and_the_reason_of_each_way_back() -> None:
    row = {"title": "B", "seconds": 90.0, "silent_s": 84.0, "exit_code": 1, "times": 1.2}
    document = {
        "story": "one-gpu",
        "at": "2026-11-28T06:30:00+00:00",
        "machine": {"gpus": ["NVIDIA H200, 580.159.04, 143771 MiB"], "cpus": 16, "kernel": "6.18"},
        "steps": [{**row, "outcome": "rolled_back", "verdict": "fail", "reason": "c1 slower"}],
        "facts": {
            "chat": {
                "exposure": 1.7,
                "kv_cache": {"measured": 1188432, "predicted": 1178192, "off": -0.0086},
                "memory": [{"gpu": 0, "used": 133633, "predicted": 132269, "off": 0.0103}],
                "devices": {"/dev/fuse": "EPERM"},
            },
        },
    }
    text = page.render([document])
    assert "| B | 1 | rolled_back | fail | 90 s | 84.0 s | 1.20 |" in text
    assert "- **B** went back: c1 slower" in text
    assert "predicted 1,178,192 tokens, the server's own 1,188,432 (-0.9%)" in text
    assert "`chat`: opened from inside the unit: `/dev/fuse` EPERM" in text
    assert "GPU 0: 133,633 MiB in use, 132,269 predicted (+1.0%)" in text
    assert "cut off" not in text and "cut off" in page.render([{**document, "ended": False}])
    assert "no whole run yet" in page.render([])
    assert "Linux 6.18; product `0a1b2c3d4e5f`.\n" in page.render([{**document, "product": "0a1b2c3d4e5f"}])
    # A run of some stories leaves the others' chapters as they are, in the page's own order.
    other = page.render([{**document, "story": "other-models"}])
    both = page.render([document], before=other)
    assert both.count("\n## ") == 3 and both.index(page.TITLES["one-gpu"]) < both.index("outside the catalog")
    assert page.render([{**document, "steps": []}], before=both).count("| B | 1 |") == 1


# A host with a device of this machine


@pytest.fixture(scope="module")
def given(lab: Lab) -> Iterator[Host]:
    (host,) = lab.add("given", devices=[FUSE])
    yield host
    lab.remove("given")


@pytest.mark.skipif(not FUSE.exists(), reason="this machine has no /dev/fuse")
def test_a_host_has_the_device_it_was_given_and_can_make_no_other(given: Host) -> None:
    assert given.ssh("systemctl is-system-running --wait").stdout.strip() == "running"
    given.ssh("test -c /dev/fuse")
    made = given.ssh("mknod /dev/nvidia0 c 195 0", check=False)
    assert made.returncode != 0 and "Operation not permitted" in made.stderr
    seen = given.ssh("systemd-run -q --wait --pipe -p PrivateDevices=yes ls /dev").stdout.split()
    assert "null" in seen and "fuse" not in seen
