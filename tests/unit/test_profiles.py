"""Measured profiles: profiles/*.yaml for every command, and their place among the layers of the resolver."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import resolving
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from resolving import resolve, values
from seen import gpu

from pyinfra_vllm import cli, fleet, inventory
from pyinfra_vllm.catalog import gpus, shapes, table
from pyinfra_vllm.catalog.gpus import Gpu as Card
from pyinfra_vllm.checkpoint import Checkpoint, File, Lock
from pyinfra_vllm.commands.validate import run as examine
from pyinfra_vllm.config import Service
from pyinfra_vllm.config import profiles as files
from pyinfra_vllm.config.layers import normal_flag
from pyinfra_vllm.config.profiles import MeasuredProfile
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.on_host.inspect.gpus import Gpu
from pyinfra_vllm.tuning import devices, measured, request, resolver
from pyinfra_vllm.tuning.resolution import Resolution

MODEL = "Qwen/Qwen3-32B-AWQ"
CONFIG = {**table("models.yaml")["models"]["Qwen/Qwen3-32B"]["config"], "quantization_config": shapes.AWQ}
NAME = "profiles/NVIDIA-H200--Qwen--Qwen3-32B-AWQ--0.25.1.yaml"
GAIN = {
    "phase": "c1", "metric": "tokens_per_s", "before": 79.7, "after": 95.4, "ratio": 1.197,
    "interval": [1.19, 1.205],
}  # fmt: skip
LATENCY: dict[str, Any] = {
    "flags": {"linear-backend": "humming", "max_num_seqs": 128},
    "environment": {"VLLM_LOGGING_LEVEL": "WARNING"},
    "measured": "2026-11-29",
    "max_model_len": 4096,
    "workload": {"input_tokens": 512, "output_tokens": 128, "streams": [1, 8, 64]},
    "gain": GAIN,
    "elsewhere": [{**GAIN, "phase": "max", "ratio": 0.991, "interval": [0.985, 0.997]}],
    "tried": [{"name": "marlin", "ratio": 1.24, "ended": "loses 41 % at 64 streams"}],
}
FILE: dict[str, Any] = {
    "schema": "pyinfra-vllm/profile/1",
    "card": "NVIDIA H200",
    "model": MODEL,
    "runtime": "0.25.1",
    "objectives": {"latency": LATENCY},
}
ASKED = ("--model", MODEL, "--gpu", "NVIDIA H200", "--runtime", "0.25.1", "--max-model-len", "4096")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("inventory", "group_data", "profiles"):
        Path(folder).mkdir()
    Path("inventory/mine.py").write_text("h = ['gpu-1.invalid']\n")
    declare()
    file = File(path="model.safetensors", size=19_300_000_000, sha256="c" * 64)
    Lock([Checkpoint(repo=MODEL, revision="main", commit="a" * 40, files=(file,), config=CONFIG)]).dump()
    return tmp_path


def declare(**changes: Any) -> None:
    chat = {
        "model": MODEL, "runtime": {"version": "0.25.1", "reason": "a test"}, "port": 8000,
        "gpu": "NVIDIA H200", "gpus": [0], "max_model_len": 4096, "objective": "latency", **changes,
    }  # fmt: skip
    Path("group_data/mine.py").write_text(f"services = {{'chat': {chat!r}}}\n")


def write(name: str = NAME, content: Any = None) -> None:
    text = yaml.safe_dump(FILE if content is None else content, sort_keys=False)
    Path(name).write_text(text.replace("'2026-11-29'", "2026-11-29"))


def changed(path: str, value: Any) -> dict[str, Any]:
    """The file's content with another value at a dotted path; ABSENT leaves it out."""
    content = copy.deepcopy(FILE)
    at = content
    *above, last = path.split(".")
    for step in above:
        at = at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return content


def profile(**settings: Any) -> MeasuredProfile:
    """A profile with other settings for its objective."""
    flags = {normal_flag(name): value for name, value in LATENCY["flags"].items()}
    tuned = {**LATENCY, "flags": flags, "measured": date(2026, 11, 29), **settings}
    return MeasuredProfile.model_validate({**FILE, "objectives": {"latency": tuned}})


def asked(*profiles: MeasuredProfile, **given: Any) -> Resolution:
    kept = {"runtime": "0.25.1", "objective": "latency", "max_model_len": 4096, **given}
    return resolve(MODEL, profiles=profiles, **kept)


def ask(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(cli.cli, ["resolve", *ASKED, *arguments, "--json"], standalone_mode=False)
    if done.exception:
        raise done.exception
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def service() -> Service:
    found = fleet.from_inventory(
        inventory.load("inventory/mine.py", {}, ()), inventory.Files("inventory/mine.py", str(Path.cwd()), ())
    )
    return found.hosts["gpu-1.invalid"].service("chat")


def told() -> Gpu:
    return gpu(name="NVIDIA H200", memory_mib=143771, compute_capability="9.0")


# Every command reads the same files


def test_resolve_names_the_file_as_the_source_and_its_gain_as_the_reason() -> None:
    write()
    answer = ask("--objective", "latency")
    (backend,) = [flag for flag in answer["flags"] if flag["flag"] == "--linear-backend"]
    assert backend == {
        "flag": "--linear-backend",
        "value": "humming",
        "reason": "measured 2026-11-29: c1 tokens_per_s 79.7 -> 95.4, 1.197 times [1.190, 1.205]",
        "source": NAME,
    }
    assert answer["measured"].startswith(f"{NAME}, measured 2026-11-29: c1 tokens_per_s")
    assert (answer["kernel"], answer["errors"]) == (["Humming"], [])


def test_profile_stands_in_the_place_of_the_catalog_s_objective() -> None:
    """The catalog disables Machete for `latency` on Hopper; that isn't what was measured here."""
    assert "VLLM_DISABLED_KERNELS" in ask("--objective", "latency")["environment"]
    write()
    environment = ask("--objective", "latency")["environment"]
    assert "VLLM_DISABLED_KERNELS" not in environment
    assert environment["VLLM_LOGGING_LEVEL"] == "WARNING"


def test_host_and_offline_commands_resolve_alike() -> None:
    write()
    assert examine("inventory/mine.py").problems == ()
    locked = Lock.load().get(MODEL, "main")
    on_host = resolver.resolve(request.on_host(service(), locked, [told()], "0.25.1", None))
    offline = ask("--objective", "latency")
    assert on_host.as_dict()["measured"] == offline["measured"]
    assert values(on_host)["--max-num-seqs"] == 128


def test_shown_table_has_the_profile() -> None:
    write()
    done = CliRunner().invoke(cli.cli, ["resolve", *ASKED, "--objective", "latency"], standalone_mode=False)
    assert f"Measured profile: {NAME}, measured 2026-11-29" in " ".join(done.stdout.split())


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("schema", "profile/2", "schema = 'profile/2': must be \"pyinfra-vllm/profile/1\""),
        ("card", None, "card: missing; must be the GPU model as nvidia-smi prints it"),
        ("memory_mib", 0, "memory_mib = 0: must be the card's memory in MiB as nvidia-smi prints it"),
        ("gpus", -1, "gpus = -1: must be the service's GPUs; 0 on a CPU"),
        ("model", "Qwen3", "model = 'Qwen3': must be a repository id"),
        ("runtime", 0.25, "runtime = 0.25: must be the measured vLLM version as text"),
        ("runtimes", "0.25.1", "runtimes = '0.25.1': unknown key; did you mean \"runtime\"?"),
        ("objectives", {}, "objectives = {}: must be a map of latency, throughput or balanced"),
        (
            "objectives",
            {"latencies": LATENCY},
            'objectives.latencies',
        ),
        ("objectives.latency.flags", {"port": 1}, "objectives.latency.flags.--port = 1: "),
        ("objectives.latency.environment", {"HF_TOKEN": "x"}, "HF_TOKEN = (not shown): looks like"),
        ("objectives.latency.measured", "soon", "measured = 'soon': must be the date of the confirmation"),
        ("objectives.latency.gain.ratio", "1.2", "gain.ratio = '1.2': must be after / before"),
        ("objectives.latency.gain.interval", [1.3, 1.4], "gain.interval = [1.3, 1.4]: must be [low"),
        ("objectives.latency.gain.phase", "one", "gain.phase = 'one': must be a phase of the gate"),
        ("objectives.latency.gain", None, "objectives.latency.gain: missing"),
        ("objectives.latency.gian", 1, 'objectives.latency.gian = 1: unknown key; did you mean "gain"?'),
        ("objectives.latency.workload.streams", [], "workload.streams = []: must be a list of how many"),
        ("objectives.latency.tried", [{"name": "x"}], "tried.0.ended: missing; must be text: why"),
        ("objectives.latency.elsewhere", [1], "elsewhere.0 = 1: "),
    ],
)  # fmt: skip
def test_a_slip_in_the_file_is_told_alike_by_every_command(path: str, value: Any, said: str) -> None:
    write(content=changed(path, value))
    with pytest.raises(DeclarationError) as refused:
        ask("--objective", "latency")
    assert f"{NAME}: " in str(refused.value)
    assert said in str(refused.value)
    assert any(said in str(problem) for problem in examine("inventory/mine.py").problems)


@pytest.mark.parametrize("text", ["- 1\n", "", "schema: {", "\x00"])
def test_what_is_no_map_is_told(text: str) -> None:
    Path(NAME).write_text(text)
    with pytest.raises(DeclarationError, match="correct"):
        files.own()


def test_objective_that_stands_twice_is_told() -> None:
    """As two branches leave it that were merged by hand: one of the two measurements would be lost."""
    write()
    text = Path(NAME).read_text()
    _, begins, latency = text.partition("  latency:\n")
    Path(NAME).write_text(text + begins + latency)
    line = len(text.splitlines()) + 1
    with pytest.raises(DeclarationError, match=f"can't be read: .*'latency' a second time, line {line}"):
        files.own()
    Path(NAME).write_text("defaults: &same {model: x}\n<<: *same\n")
    with pytest.raises(DeclarationError, match="model = 'x': must be a repository"):
        files.own()


def test_the_file_is_named_by_what_it_is_valid_for() -> None:
    write("profiles/fast.yaml")
    with pytest.raises(DeclarationError, match=f"profiles/fast.yaml: must be named {NAME}"):
        files.own()
    two = MeasuredProfile.model_validate({**profile().model_dump(by_alias=True), "gpus": 2})
    assert two.file == "profiles/2x-NVIDIA-H200--Qwen--Qwen3-32B-AWQ--0.25.1.yaml"


def test_wrong_flags_in_the_file_are_errors_that_name_it() -> None:
    answer = asked(profile(flags={"--linear-bakend": "humming"}))
    assert answer.errors == (
        f"{profile().file}: flags: vLLM 0.25.1 doesn't have --linear-bakend; did you mean --linear-backend?",
    )
    assert not asked(profile(flags={"--max-num-seqs": 2.5})).understood


def test_a_service_has_no_profiles_of_its_own() -> None:
    declare(profiles=[1])
    (problem,) = examine("inventory/mine.py").problems
    assert (problem.key, problem.source) == ("services.chat.profiles", "group_data/mine.py")
    assert "measured profiles are files in profiles/" in problem.fix


def test_a_profile_of_a_model_that_nobody_serves_is_told() -> None:
    write()
    assert examine("inventory/mine.py").warnings == ()
    write("profiles/NVIDIA-H200--Qwen--Qwen3-8B-AWQ--0.25.1.yaml", changed("model", "Qwen/Qwen3-8B-AWQ"))
    (warning,) = examine("inventory/mine.py").warnings
    assert "is not used: no service serves Qwen/Qwen3-8B-AWQ" in warning


# Validity


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"runtime": "0.26.0"}, "it was measured with vLLM 0.25.1, and this is 0.26.0"),
        ({"gpu": "NVIDIA H100 80GB HBM3"}, "measured with 1 x NVIDIA H200, and this is 1 x H100 SXM5 80 GB;"),
        ({"gpu_count": 2}, "measured with 1 x NVIDIA H200, and this is 2 x H200;"),
    ],
)
def test_profile_of_another_runtime_or_card_is_not_used_and_that_is_said(
    given: dict[str, Any], said: str
) -> None:
    found, without = asked(profile(), **given), asked(**given)
    assert found.flags == without.flags and found.environment == without.environment
    (warning,) = set(found.warnings) - set(without.warnings)
    assert said in warning and warning.startswith(f"{NAME} is not used: ")


def card_of(name: str, memory_mib: int, compute_capability: str, **changes: Any) -> Card:
    """The card as the resolver knows it from a host's own answer."""
    seen = gpu(name=name, memory_mib=memory_mib, compute_capability=compute_capability)
    return devices.card(replace(seen, **changes))


def measured_on(card: str, memory_mib: int | None = None) -> MeasuredProfile:
    told = {**profile().model_dump(by_alias=True), "card": card, "memory_mib": memory_mib}
    return MeasuredProfile.model_validate(told)


H100 = card_of("NVIDIA H100 80GB HBM3", 81559, "9.0")
SLICE = card_of("NVIDIA H100 80GB HBM3", 40448, "9.0", instance="3g.40gb", number=0)
WHOLE_SLICE = card_of("NVIDIA H100 80GB HBM3", 81007, "9.0", instance="7g.80gb", number=0)
RTX_4090 = card_of("NVIDIA GeForce RTX 4090", 24564, "8.9")
RTX_4090_48 = card_of("NVIDIA GeForce RTX 4090", 49140, "8.9")
TI_8 = card_of("NVIDIA GeForce RTX 5060 Ti", 8151, "12.0")
TI_16 = card_of("NVIDIA GeForce RTX 5060 Ti", 16311, "12.0")
RTX_3080 = card_of("NVIDIA GeForce RTX 3080", 10240, "8.6")
RTX_3080_12 = card_of("NVIDIA GeForce RTX 3080", 12288, "8.6")
NEW = card_of("NVIDIA Acme A1", 49152, "8.9")
NEW_24 = card_of("NVIDIA Acme A1", 24576, "8.9")
ALIKE = (H100, SLICE, WHOLE_SLICE, RTX_4090, RTX_4090_48, TI_8, TI_16, RTX_3080, RTX_3080_12, NEW, NEW_24)


def used(card: Card, *profiles: MeasuredProfile) -> tuple[str | None, str]:
    """The file that is used on a card, and what is said of the others."""
    question = resolving.asked(
        MODEL, card, "0.25.1", objective="latency", max_model_len=1024, profiles=profiles
    )
    found, told = measured.valid(question)
    return found.file if found else None, " ".join(told)


@pytest.mark.parametrize("card", ALIKE, ids=lambda card: card.title)
def test_what_a_card_is_called_is_valid_for_it_and_for_none_that_prints_the_same_name(card: Card) -> None:
    made = measured_on(card.title, card.memory_mib)
    assert [each.title for each in ALIKE if used(each, made)[0]] == [card.title]


def test_each_kind_of_card_has_a_file_of_its_own() -> None:
    assert len({measured_on(card.title).file for card in ALIKE}) == len(ALIKE)


@pytest.mark.parametrize(
    ("card", "name", "memory_mib"),
    [
        (TI_16, "NVIDIA GeForce RTX 5060 Ti", 16311),
        (RTX_4090_48, "NVIDIA GeForce RTX 4090", 49140),
        (RTX_4090, "NVIDIA GeForce RTX 4090", None),
        (RTX_4090, "NVIDIA GeForce RTX 4090", 24000),  # another driver's figure
        (NEW, "NVIDIA Acme A1", 49152),
        (gpus.CPU, "cpu", None),
    ],
)
def test_card_may_be_named_as_nvidia_smi_prints_it(card: Card, name: str, memory_mib: int | None) -> None:
    assert used(card, measured_on(name, memory_mib))[0]


@pytest.mark.parametrize(
    ("card", "name", "memory_mib", "said"),
    [
        (
            SLICE, "NVIDIA H100 80GB HBM3", None,
            "measured with 1 x NVIDIA H100 80GB HBM3, and this is 1 x NVIDIA H100 80GB HBM3 MIG 3g.40gb;",
        ),
        (
            RTX_4090, "NVIDIA GeForce RTX 4090", 49140,
            "1 x NVIDIA GeForce RTX 4090 with 49140 MiB, and this is 1 x GeForce RTX 4090 with 24564 MiB;",
        ),
        (
            RTX_4090_48, "NVIDIA GeForce RTX 4090", None,
            "with 1 x NVIDIA GeForce RTX 4090 (add `memory_mib: 49140` to it if it was this card), and this",
        ),
        (TI_16, "NVIDIA GeForce RTX 5060 Ti", None, "(add `memory_mib: 16311` to it if it was this card)"),
        (NEW, "NVIDIA Acme A1", None, "(add `memory_mib: 49152` to it if it was this card)"),
    ],
)  # fmt: skip
def test_profile_that_does_not_apply_says_why(
    card: Card, name: str, memory_mib: int | None, said: str
) -> None:
    found, told = used(card, measured_on(name, memory_mib))
    assert found is None and said in told


def test_of_two_files_for_the_same_the_one_measured_last_is_used_and_the_other_is_said() -> None:
    """A card has several names, and a pre-release is another file than its release."""
    older = measured_on("H200")
    newer = profile(measured=date(2026, 11, 30))
    for files_ in ((older, newer), (newer, older)):
        found, told = used(gpus.find("NVIDIA H200"), *files_)
        assert found == newer.file
        assert told.startswith(f"{older.file} is not used: {newer.file} ") and "remove" in told
    ours, theirs = measured_on("H200"), profile()  # of one day: the one that is named as `tune` names it
    assert used(gpus.find("NVIDIA H200"), theirs, ours)[0] == ours.file


def test_file_of_another_memory_is_not_mixed_with_this_one() -> None:
    """A card of the operator's own is named by cards.yaml alone, whatever memory that says."""
    files.keep(measured_on("NVIDIA Acme A1", 24576))
    with pytest.raises(DeclarationError, match="is of a card with 24576 MiB, and this one has 49152 MiB"):
        files.keep(measured_on("NVIDIA Acme A1", 49152))
    assert files.keep(measured_on("NVIDIA Acme A1", 24570))


def test_profile_of_another_model_or_objective_says_nothing() -> None:
    for found in (
        asked(profile(), objective="throughput"),
        resolve("Qwen/Qwen3-8B-AWQ", profiles=[profile()], runtime="0.25.1", objective="latency"),
    ):
        assert found.measured is None
        assert "profiles/" not in str(found.warnings)


def test_profile_of_this_runtime_silences_those_of_older_ones() -> None:
    old = MeasuredProfile.model_validate({**profile().model_dump(by_alias=True), "runtime": "0.24.0"})
    found = asked(old, profile())
    assert (found.measured or "").startswith(NAME)
    assert "0.24.0" not in str(found.warnings)


def test_build_of_the_runtime_does_not_matter() -> None:
    assert asked(profile(), runtime="0.25.1+cu129").measured


# Precedence


def test_declared_flags_and_variables_win_and_the_difference_is_said() -> None:
    found = asked(profile(), flags={"max_num_seqs": 64}, environment={"VLLM_LOGGING_LEVEL": "INFO"})
    assert values(found)["--max-num-seqs"] == 64
    assert found.environment["VLLM_LOGGING_LEVEL"] == "INFO"
    said = [text for text in found.warnings if text.startswith(NAME)]
    assert said == [
        f"{NAME}: --max-num-seqs 128 was measured, and here it is 64 (declared by the operator): its figures"
        " may not hold for that",
        f"{NAME}: VLLM_LOGGING_LEVEL 'WARNING' was measured, and here it is 'INFO' (declared by the"
        " operator): its figures may not hold for that",
    ]


def test_flag_that_the_operator_takes_out_stays_out() -> None:
    found = asked(profile(), flags={"linear-backend": None})
    assert "--linear-backend" not in values(found)
    assert "--linear-backend 'humming' was measured, and is left out here" in str(found.warnings)


def test_two_speculations_are_not_merged() -> None:
    drafts = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 5}
    measured = profile(flags={"--speculative-config": drafts})
    assert values(asked(measured))["--speculative-config"] == drafts
    found = asked(measured, variants=[{"eagle3": {"model": "/srv/head", "tokens": 2}}])
    assert values(found)["--speculative-config"] == {
        "method": "eagle3",
        "model": "/srv/head",
        "num_speculative_tokens": 2,
    }


def test_rule_wins_over_the_file_and_that_is_said() -> None:
    found = asked(profile(flags={"--kv-cache-dtype": "fp8", "--dtype": "half"}))
    assert values(found)["--dtype"] == "bfloat16"
    assert "--dtype 'half' was measured, and here it is 'bfloat16' (FlashAttention 3" in str(found.warnings)


def test_null_takes_a_flag_of_the_catalog_out() -> None:
    flag = "--disable-uvicorn-access-log"
    assert flag in values(asked(profile()))
    assert flag not in values(asked(profile(flags={flag: None})))
    assert flag in values(asked(profile(flags={flag: None}), flags={flag: True}))


def test_another_context_than_the_measured_one_is_said() -> None:
    assert "measured with max_model_len 4096, and here it is 8192" in str(
        asked(profile(), max_model_len=8192).warnings
    )
    assert "max_model_len" not in str(asked(profile()).warnings)


# A profile changes what it says and nothing else


SETTINGS = st.dictionaries(
    st.sampled_from(["--max-num-seqs", "--max-num-batched-tokens", "--performance-mode"]),
    st.none(),
    max_size=3,
).map(
    lambda keys: {
        key: {"--max-num-seqs": 32, "--max-num-batched-tokens": 4096, "--performance-mode": "interactivity"}[
            key
        ]
        for key in keys
    }
)


@settings(max_examples=40, deadline=None)
@given(measured=SETTINGS, own=SETTINGS)
def test_flags_are_the_file_s_and_then_the_operator_s(measured: dict[str, Any], own: dict[str, Any]) -> None:
    """As if the operator had declared what the file says, save for what the operator does declare."""
    own = {key: 16 if key == "--max-num-seqs" else value for key, value in own.items()}
    found = asked(profile(flags=measured, environment={}), flags=own)
    declared = asked(profile(flags={}, environment={}), flags={**measured, **own})
    assert values(found) == values(declared)
    assert found.errors == declared.errors
    for flag in found.flags:
        if flag.flag in measured and flag.flag not in own:
            assert flag.source == NAME


def test_validate_tells_wrong_flags_of_the_file() -> None:
    write(content=changed("objectives.latency.flags", {"linear-bakend": "humming"}))
    (problem,) = examine("inventory/mine.py").problems
    told = "flags: vLLM 0.25.1 doesn't have --linear-bakend; did you mean --linear-backend?"
    assert str(problem) == f"{NAME}: {told}"
