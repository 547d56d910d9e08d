"""Anything declared, locked, journalled or listed by a Hub: an answer or one of our own errors, never a
traceback, and never a path outside of the root or a line of a unit that nobody wrote.

Over 10,000 generated inputs, which take the better part of a minute.
"""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import unit_syntax
import yaml
from bench_records import graded, phase, record
from huggingface_hub.hf_api import ModelInfo
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from seen import gpu, seen
from simulated import NEW, OLD, SimulatedHost

from pyinfra_vllm.answers import observed
from pyinfra_vllm.asking import Answer
from pyinfra_vllm.catalog import table
from pyinfra_vllm.checkpoint import Checkpoint, File, parse, render
from pyinfra_vllm.commands import compare
from pyinfra_vllm.config import Layer, Problems, declare, merge
from pyinfra_vllm.errors import CheckpointRefused, HostError, HubError, LockError, RolloutError
from pyinfra_vllm.hub import Hub
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.record import Record
from pyinfra_vllm.on_host.gate import gate
from pyinfra_vllm.on_host.gate.verdict import Verdict
from pyinfra_vllm.on_host.server import hooks
from pyinfra_vllm.on_host.staging import fetch
from pyinfra_vllm.on_host.state import durable, follow, journal, manifest, observe, recall
from pyinfra_vllm.on_host.state.observed import Observed
from pyinfra_vllm.on_host.state.paths import ServicePaths
from pyinfra_vllm.on_host.state.status import RUN
from pyinfra_vllm.on_host.state.values import RecordError
from pyinfra_vllm.on_host.switch.unfinished import Unfinished
from pyinfra_vllm.operations import checkpoint as operation
from pyinfra_vllm.operations.util import planning
from pyinfra_vllm.report import history, page, status
from pyinfra_vllm.report.looking import Look
from pyinfra_vllm.tuning import request as requests
from pyinfra_vllm.tuning.preflight import preflight
from pyinfra_vllm.tuning.resolution import Resolution
from pyinfra_vllm.tuning.resolver import resolve

# in one process, which counts its inputs at the end
pytestmark = [pytest.mark.thorough, pytest.mark.xdist_group("fuzz")]

INPUTS = {
    "configs": 1500, "declarations": 1500, "strings": 1500, "lock files": 1000, "requests": 1500,
    "Hub listings": 3000, "journals": 2000, "recoveries": 1500, "records": 1500,
}  # fmt: skip
TRIED: Counter[str] = Counter()
ROOT = "/srv/pyinfra-vllm"


def many(kind: str) -> settings:
    return settings(
        max_examples=INPUTS[kind],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# What means something to a unit file, a shell, an environment file, YAML, a path or a terminal.
NASTY = st.sampled_from(
    ["", " ", "\n", "\r\n", "\0", "\x1b[2J", "%n", "%%", "$HOME", "${HOME}", "$(id)", "`id`", ";", "\\;",
    "\\", "\\x41",
     "'", '"', "#", "a=b", "-", "+", "@", "..", "../..", "/etc/passwd", "~", "a/../../b",
     "\nExecStart=/bin/sh", "[Install]",
     "\u2028", "\u202e", "\ufeff", "\ufffe", "\ud800", "\U0010ffff", "é", "x" * 500, "&a", "*a",
     "!!python/name:os.system", "<<"]
)  # fmt: skip
TEXT = st.lists(NASTY | st.text(string.ascii_letters + string.digits + "._/-", max_size=6), max_size=4).map(
    "".join
)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 70000)
    | st.floats()
    | TEXT
    | st.text(max_size=6)
)
JUNK = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)


@st.composite
def broken(draw: st.DrawFn, whole: Any, junk: st.SearchStrategy[Any] = JUNK) -> Any:
    """A valid document with junk in one to three of its places."""
    document = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        _spoil(draw, document, junk)
    return document


def _spoil(draw: st.DrawFn, at: Any, junk: st.SearchStrategy[Any]) -> None:
    keys = list(at) if isinstance(at, dict) else list(range(len(at)))
    if not keys:
        return
    key = draw(st.sampled_from(keys))
    if isinstance(at[key], (dict, list)) and at[key] and draw(st.integers(0, 3)):
        _spoil(draw, at[key], junk)
    elif isinstance(at, dict) and not draw(st.integers(0, 3)):
        at[draw(TEXT)] = at.pop(key)
    else:
        at[key] = draw(junk)


# --- declarations ---

DECLARED = {
    "root": ROOT,
    "window": [{"cron": "0 2 * * *", "duration": "3h", "timezone": "UTC", "except": ["2026-12-24"]}],
    "gate": {"budget_s": 60, "throughput_margin": 0.1},
    "rollout": {"canary": 1, "waves": [2, "25%"], "max_failures": 0, "max_unavailable": {"chat": 1}},
    "defaults": {"user": "vllm", "runtime": {"version": "0.33.0", "packages": ["x==1"], "index": "https://example.net/simple"}},
    "services": {
        "chat": {
            "model": "acme/tiny-awq", "revision": "main", "served_model_name": "chat", "port": 8000,
            "bind": "127.0.0.1",
            "gpus": [], "objective": "latency", "max_model_len": 2048,
            "flags": {"max-num-seqs": 4, "gpu-memory-utilization": 0.9,
            "override-generation-config": {"a": 1}},
            "variants": ["prefix_caching", {"batched_graphs": {"max_num_seqs": 8}}, {"ngram": 2}],
            "environment": {"VLLM_LOGGING_LEVEL": "INFO"}, "secrets": {"VLLM_API_KEY": "KEY"},
            "switch_estimate": "45m",
        },
    },
}  # fmt: skip
CONFIG = {
    "model_type": "qwen3", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32, "vocab_size": 512, "max_position_embeddings": 4096, "torch_dtype": "float16",
    "intermediate_size": 256,
    "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True,
    "version": "gemm"},
}  # fmt: skip
LOCKED = Checkpoint(
    repo="acme/tiny-awq",
    revision="main",
    commit="a" * 40,
    files=(
        File(path="config.json", size=10, blob_sha1="b" * 40),
        File(path="model.safetensors", size=1000, sha256="c" * 64),
    ),
    config=CONFIG,
)
SERVICE = declare("h", merge([Layer("f", DECLARED)]), Problems()).services[0]
VARIANTS = list(table("variants.yaml"))
# The directives of a unit that nobody has tampered with, less those whose value is the declaration's.
KEYS = [(section, key) for section, key, _ in unit_syntax.directives(
    planning._release(ROOT, declare("h", merge([Layer("f", DECLARED)]), Problems()).services[0], LOCKED,
                       Resolution(), "0.33.0", [], {"VLLM_API_KEY": "x"}).files()["vllm.service"]
)]  # fmt: skip
NO_SECRETS = list(KEYS)
NO_SECRETS.remove(("Service", "EnvironmentFile"))


@many("declarations")
@example({**DECLARED, "services": {"chat": {**DECLARED["services"]["chat"], "gpus": None}}})
@given(broken(DECLARED))
def test_a_declaration_is_told_wrong_in_lines_or_rendered_as_it_was_meant(values: Any) -> None:
    TRIED["declarations"] += 1
    problems = Problems()
    found = declare("gpu-1", merge([Layer("group_data/all.py", values)]), problems)
    assert (found is None) == bool(problems.found)
    assert all("\n" not in str(problem) and str(problem).isprintable() for problem in problems.found)
    for service in found.services if found else ():
        assert_rendered_as_declared(found.root, service)


@many("strings")
@given(TEXT, TEXT, TEXT, TEXT)
def test_a_string_is_refused_or_arrives_as_it_was(served: str, flag: str, value: str, inner: str) -> None:
    TRIED["strings"] += 1
    chat = {
        **DECLARED["services"]["chat"],
        "served_model_name": served,
        "flags": {"chat-template": flag, "override-generation-config": {"stop": [inner]}},
        "environment": {"VLLM_NASTY": value},
    }
    found = declare(
        "gpu-1",
        merge([Layer("group_data/all.py", {"services": {"chat": chat}, "defaults": DECLARED["defaults"]})]),
        Problems(),
    )
    for service in found.services if found else ():
        argv = assert_rendered_as_declared(found.root, service)
        assert argv[argv.index("--served-model-name") + 1] == served or not served
        assert argv[argv.index("--chat-template") + 1] == flag


def assert_rendered_as_declared(root: str, service: Any) -> list[str]:
    """The unit and its environment say what was declared and nothing else; returns what the server is started
    with.
    """
    resolution = resolve(requests.on_host(service, LOCKED, [], "0.33.0", None))
    secrets = dict.fromkeys(service.secrets, 'a "$secret`\\')
    made = planning._release(root, service, LOCKED, resolution, "0.33.0", [], secrets)
    files = {name: text.encode().decode() for name, text in made.files().items()}
    lines = unit_syntax.directives(files["vllm.service"])
    assert [(section, key) for section, key, _ in lines] == (KEYS if secrets else NO_SECRETS)
    assert unit_syntax.environment(files.get("secrets.env", "")) == secrets
    told = {key: value for _, key, value in lines}
    assert unit_syntax.command(told["ExecStart"]) == list(made.argv)
    assert told["User"] == service.user != "root"
    assert unit_syntax.environment(files["env"]) == dict(made.environment)
    assert set(service.environment.items()) <= set(made.environment.items())
    assert made.directory.startswith(f"{root}/") and ".." not in made.directory.split("/")
    assert told["BindPaths"] == f"-{made.directory}/releases/{made.id}/cache:{made.directory}/cache"
    return unit_syntax.command(told["ExecStart"])


CARD = {"name": "NVIDIA H200", "memory_mib": 143771, "driver": "580.1", "compute_capability": "9.0"}
HYBRID = {
    **CONFIG, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4,
    "mtp_num_hidden_layers": 1,
    "num_experts": 8, "moe_intermediate_size": 64, "kv_lora_rank": 0, "full_attention_interval": 2,
}  # fmt: skip
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 10**400, 0.5, 2**31, True])


@many("configs")
@example({**HYBRID, "num_hidden_layers": 1}, CARD, 0, "fp8_kv_cache")  # no layer with attention is left
@given(
    broken(HYBRID, JUNK | NUMBERS), broken(CARD, JUNK | NUMBERS), JUNK | NUMBERS, st.sampled_from(VARIANTS)
)
def test_a_checkpoint_and_a_card_are_refused_or_answered(
    config: Any, card: Any, value: Any, variant: str
) -> None:
    """Any words of a Hub and a driver, and any variant's value: an answer or a sentence, and arguments that
    mean something.
    """
    TRIED["configs"] += 1
    service = SERVICE.model_copy(update={"variants": ({variant: value},), "flags": {"--max-num-seqs": value}})
    assert isinstance(preflight([gpu(**card_of(card))], service, "0.33.0"), list)
    try:
        locked = replace(LOCKED, config=config)
        found = resolve(requests.on_host(service, locked, [gpu(**CARD)], "0.33.0", None))
    except RolloutError as error:
        assert "\n" not in str(error)
        return
    assert json.dumps(found.as_dict(), allow_nan=False)
    assert found.understood or found.errors


def card_of(told: dict[str, Any]) -> dict[str, Any]:
    """As `facts.gpu` reads it: texts, and whole numbers where it makes them."""
    texts = {key: str(told.get(key)) for key in ("name", "driver", "compute_capability")}
    memory = told.get("memory_mib")
    return {**texts, "memory_mib": memory if isinstance(memory, int) and memory >= 0 else None}


# --- lock files ---

TEXT_OF_LOCK = render([LOCKED])


@st.composite
def lock_texts(draw: st.DrawFn) -> str:
    """A lock file whose text was edited, or whose content was."""
    if draw(st.booleans()):
        document = draw(broken(yaml.safe_load(TEXT_OF_LOCK)))
        return yaml.safe_dump(document, allow_unicode=draw(st.booleans()))
    at, cut = draw(st.integers(0, len(TEXT_OF_LOCK))), draw(st.integers(0, 60))
    return TEXT_OF_LOCK[:at] + draw(TEXT | st.text(max_size=20)) + TEXT_OF_LOCK[at + cut :]


def locked_as(path: str) -> str:
    """A lock file that is whole but for the name of one of its files."""
    return TEXT_OF_LOCK.replace("model.safetensors", json.dumps(path))


@many("lock files")
@given(lock_texts())
@example("checkpoints:\n  ? 'a\n\n    b'\n  : null\nschema: pyinfra-vllm/checkpoints/1\n")
@example(locked_as("\ud800"))
@example(locked_as("model\udfff.safetensors"))
@example(locked_as("\u202esrotcesefas.ledom"))
@example(locked_as("-rf.safetensors"))
@example(TEXT_OF_LOCK.replace("acme/tiny-awq@main", r'"\uD800"'))
def test_a_lock_file_is_refused_or_names_nothing_outside(text: str) -> None:
    TRIED["lock files"] += 1
    try:
        entries = parse(text, "checkpoints.lock.yaml")
    except LockError as error:
        assert str(error).isprintable()
        return
    for entry in entries:
        assert_inside(entry)


def assert_inside(entry: Checkpoint) -> None:
    """Files that a host would be asked to fetch stay in the checkpoint's own directory, as the host itself
    reads it.
    """
    directory = Path(entry.directory(ROOT))
    assert directory.parent.parent == Path(ROOT, "checkpoints") and ".." not in directory.parts
    asked = operation.request(ROOT, "/opt/vllm", entry)
    for file in asked["files"]:
        assert manifest.unsafe(file["path"]) is None
        assert (directory / file["path"]).resolve().is_relative_to(directory)


# --- what a host is asked to fetch ---

REQUEST = {
    **operation.request(ROOT, "/opt/vllm", LOCKED), "verify": False, "run": "/run/pyinfra-vllm",
    "stall_s": 60.0, "attempts": 2, "shared": "/mnt/models",
    "part": {"begin": 0, "end": 1 << 20, "piece": 1 << 18},
    "swarm": {"python": "/usr/bin/python3", "piece": 1 << 18, "hashes": "ab" * 20, "address": "10.0.0.1",
              "port": 6881, "peers": [["10.0.0.2", 6881]], "bytes_per_s": None},
}  # fmt: skip


@many("requests")
@given(content=broken(REQUEST))
@example(content={**REQUEST, "files": [{**REQUEST["files"][0], "path": "\ud800"}]})
@example(content={**REQUEST, "swarm": {**REQUEST["swarm"], "\n": 1}})
def test_a_request_is_refused_or_stays_inside(service: ServicePaths, content: Any) -> None:
    TRIED["requests"] += 1
    path = service.root / "request.json"
    path.write_text(json.dumps(content))
    try:
        request = fetch.read_request(path)
    except fetch.FetchError as error:
        assert "\n" not in str(error)
        return
    place = request.root / "checkpoints"
    assert request.root.is_absolute() and ".." not in request.directory.parts
    assert request.directory.parent.parent == request.partial.parent.parent == place
    assert all(manifest.unsafe(file.path) is None for file in request.files)
    assert request.lock.parent == request.status.parent == Path(content.get("run", RUN))


# --- what a Hub lists ---

LISTING = {
    "id": "acme/tiny-awq",
    "sha": "a" * 40,
    "siblings": [
        {"rfilename": "config.json", "size": 2, "blobId": "b" * 40},
        {"rfilename": "model.safetensors", "size": 1000, "blobId": "d" * 40, "lfs": {"sha256": "c" * 64,
        "size": 1000, "pointerSize": 9}},
        {"rfilename": "tokenizer.json", "size": 2, "blobId": "e" * 40},
        {"rfilename": "modeling.py", "size": 5, "blobId": "f" * 40},
    ],
}  # fmt: skip


class Telling(Hub):
    """A Hub that answers what it is told to: the real client's own reading of it, without a network."""

    def __init__(self, listing: Any, config: Any) -> None:
        super().__init__("http://127.0.0.1:9", token=None)
        self.listing, self.config = listing, config

    def _info(self, repo: str, revision: str) -> ModelInfo:
        return ModelInfo(**self.listing)

    def _json(self, repo: str, commit: str, file: File) -> dict[str, Any]:
        return dict(self.config) if isinstance(self.config, dict) else {}


def listed_as(path: str) -> dict[str, Any]:
    return {**LISTING, "siblings": [*LISTING["siblings"], {**LISTING["siblings"][1], "rfilename": path}]}


@many("Hub listings")
@given(broken(LISTING), broken({**CONFIG, "auto_map": {}}), st.booleans())
@example(listed_as("\ud800"), CONFIG, False)
@example(listed_as("model\udfff.safetensors"), CONFIG, False)
@example(listed_as("\u202esrotcesefas.ledom"), CONFIG, False)
@example(listed_as("a\u2028b.safetensors"), CONFIG, False)
@example(listed_as("-rf.safetensors"), CONFIG, False)
def test_a_hub_is_refused_or_lists_nothing_outside(listing: Any, config: Any, allow_code: bool) -> None:
    TRIED["Hub listings"] += 1
    try:
        found = Telling(listing, config).checkpoint("acme/tiny-awq", allow_code=allow_code)
    except (HubError, CheckpointRefused) as error:
        assert "\n" not in str(error)
        return
    assert_inside(found)
    assert allow_code or not any(file.path.endswith(".py") for file in found.files)
    assert parse(render([found])) == (found,)


# --- journals ---

ENTRIES = [
    {"at": "2026-11-21T02:00:00.000+00:00", "tx": "t1", "step": "begin", "state": "done", "from": "a" * 12,
    "to": "b" * 12,
     "purpose": "rollout", "operator": "ann", "reason": "", "overrides": ["switch_now"]},
    {"at": "2026-11-21T02:01:00.000+00:00", "tx": "t1", "step": "activate", "state": "intended",
    "from": "a" * 12, "to": "b" * 12},
    {"at": "2026-11-21T02:02:00.000+00:00", "tx": "t1", "step": "kernel", "state": "done",
    "verdict": "pass", "kernels": ["Marlin"]},
    {"at": "2026-11-21T02:03:00.000+00:00", "tx": "t1", "step": "commit", "state": "done",
    "release": "b" * 12},
    {"at": "2026-11-21T02:03:01.000+00:00", "tx": "t1", "step": "end", "state": "done",
    "outcome": "committed", "verdict": "pass",
     "reason": "no worse", "log": ["one", "two"]},
]  # fmt: skip


@st.composite
def journals(draw: st.DrawFn) -> bytes:
    entries = draw(broken(ENTRIES))
    lines = [
        draw(st.binary(max_size=30)) if not draw(st.integers(0, 9)) else json.dumps(each).encode()
        for each in entries
    ]
    text = b"\n".join(lines) + b"\n"
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServicePaths]:
    paths = ServicePaths(tmp_path_factory.mktemp("host"), "chat")
    paths.releases.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observe, "unit_state", lambda unit: {"ActiveState": "active", "MainPID": "0"})
        patch.setattr(follow, "_active", lambda unit: False)
        yield paths


def _observed(service: ServicePaths) -> list[Observed]:
    """The fact's value; a text that no terminal takes is an error of the host."""
    told = observe.observe(service.root, [])
    try:
        return observed(told)
    except HostError:
        return [seen(service=one["service"]) for one in told]


@many("journals")
@given(content=journals())
def test_a_journal_is_read_and_shown_as_far_as_it_makes_sense(service: ServicePaths, content: bytes) -> None:
    TRIED["journals"] += 1
    service.journal.write_bytes(content)
    before = sorted(service.root.rglob("*"))
    entries = journal.read(service.journal)
    assert all(isinstance(entry[key], str) for entry in entries for key in ("at", "tx", "step", "state"))
    follow.follow(service, None, follow.Position(), "vllm-chat.service")
    told = {each["service"]: each for each in recall.recall(service.root, 50, 10**6, [])}
    answer = Answer("gpu-1", Look(_observed(service), told))
    assert len(status.rows([answer])) == 1
    assert len(history.switches([answer])) == len(told["chat"]["transactions"])
    assert len(page.shown_switches([answer])) == len(told["chat"]["transactions"])
    assert sorted(service.root.rglob("*")) == before


# --- journals that a recovery acts on ---


def entry(step: str, state: str, **fields: Any) -> dict[str, Any]:
    return {"at": "2026-11-21T02:05:00.000+00:00", "tx": "t1", "step": step, "state": state, **fields}


# How a transaction goes; a recovery meets it cut off anywhere.
SWITCHED = [
    ENTRIES[0], entry("notify", "done", event="begin"), entry("drain", "intended"), entry("drain", "done"),
    ENTRIES[1], entry("activate", "done"),
    entry("ready", "intended", release=NEW), *ENTRIES[2:4], entry("restore", "intended", release=OLD),
    entry("end", "failed"),
]  # fmt: skip
CALIBRATED = [
    {**ENTRIES[0], "purpose": "calibration"}, entry("drain", "intended"), entry("restart", "intended",
    release=OLD),
    entry("restart", "done"), entry("measure-run", "done", run=1, of=3),
]  # fmt: skip


@st.composite
def unfinished(draw: st.DrawFn) -> bytes:
    story = draw(st.sampled_from([SWITCHED, CALIBRATED]))
    left = story[: draw(st.integers(1, len(story)))]
    entries = draw(broken(left)) if draw(st.booleans()) else left
    return as_lines(*entries)


def as_lines(*entries: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in entries)


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedHost:
    host = SimulatedHost(tmp_path, monkeypatch)
    host.install(OLD)
    host.stage(NEW)
    durable.write_json(host.paths.hooks, {"undrain": {"argv": ["/bin/true"]}, "timeout_s": 5})
    monkeypatch.setattr(hooks, "call", lambda *arguments: None)
    return host


@many("recoveries")
@given(
    content=unfinished() | journals(),
    boot=st.booleans(),
    current=st.sampled_from([OLD, NEW]),
    running=st.sampled_from([OLD, NEW, None]),
)
@example(as_lines(ENTRIES[0], entry("activate", "intended")), False, OLD, OLD)
@example(as_lines(ENTRIES[0], entry("activate", "intended", to=NEW)), True, NEW, None)
@example(as_lines(ENTRIES[0], entry("activate", "intended", to=NEW), ENTRIES[3]), False, NEW, NEW)
@example(as_lines(ENTRIES[0], entry("restart", "intended")), False, OLD, None)
@example(as_lines(ENTRIES[0], entry("end", "done")), False, OLD, OLD)
@example(as_lines(ENTRIES[0], entry("notify", "done"), ENTRIES[4]), False, OLD, OLD)
def test_a_recovery_ends_any_journal_or_says_why_it_can_not(
    simulated: SimulatedHost, content: bytes, boot: bool, current: str, running: str | None
) -> None:
    TRIED["recoveries"] += 1
    simulated.paths.journal.write_bytes(content)
    durable.point(simulated.paths.current, simulated.paths.release(current))
    simulated.running = running
    try:
        simulated.recover(boot)
    except Unfinished as error:
        assert str(error).startswith("chat: ")


# Benchmark records


def measured() -> dict[str, Any]:
    """A record with every key that the gate reads."""
    phases = [phase(1, 4), phase(8, 4)]
    for made in phases:
        made["rounds"] = [
            {"round": number, "duration_s": 1.0, "output_tokens": 100, "complete": True} for number in (0, 1)
        ]
        for number, request in enumerate(made["requests"]):
            request["round"] = number % 2
    return record(
        *phases,
        quality=[{**item, "sane": True} for item in graded(3, 4)],
        quality_unanswered=1,
        traffic={"known": True, "other_share": 0.1},
        client={"late_mean_s": 0.01},
        warm_up={"requests": 3, "errors": [{"kind": "timeout", "error": "late"}]},
        plan={"words": {"s": 3}, "output_tokens": 3, "rounds": 2, "requests": {"c1": 1, "c8": 1}},
        spent_s=3.0,
        likelihood=[{"text": "en-1", "bits_per_byte": 0.5}],
        evaluations={"ifeval/acc": {"value": 0.5, "stderr": 0.1}},
    )


def places(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The path to everything in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, *path, key)


NUMBERS = st.sampled_from([0, 1, -1, 10**400, 1e300, 1e-300, float("nan"), float("inf")])
STRICT = Criteria(
    min_evaluation={"ifeval/acc": 0.1},
    max_evaluation_drop={"ifeval/acc": 0.1},
    min_tokens_per_s={"c1": 1},
    max_ttft_s={"c1": 9},
)


@many("records")
@given(st.tuples(st.booleans(), st.sampled_from(list(places(measured()))), st.booleans(), NUMBERS | JUNK))
def test_a_damaged_record_is_named_or_judged(damage: tuple[bool, tuple[Any, ...], bool, Any]) -> None:
    first, path, gone, junk = damage
    pair = [measured(), measured()]
    at: Any = pair[not first]
    for key in path[:-1]:
        at = at[key]
    if gone:
        del at[path[-1]]
    else:
        at[path[-1]] = junk
    try:
        before, after = (
            Record.read(value, name) for value, name in zip(pair, ("before", "after"), strict=True)
        )
        verdict = gate.judge(before, after, STRICT)
    except RecordError as error:
        assert "\n" not in str(error) and str(error).encode()
    else:
        assert json.dumps(verdict.as_dict(), allow_nan=False) and verdict.conclusion()
        assert Verdict.read(verdict.as_dict(), "verdict") == verdict
        assert compare.table(verdict).row_count == len(verdict.metrics)
    TRIED["records"] += 1


def test_fuzzing_covered_enough_cases() -> None:
    if set(TRIED) != set(INPUTS):
        pytest.skip("only some of the inputs were asked for")
    assert sum(TRIED.values()) >= 10_000, TRIED
