"""A service that one host can't serve is refused before anything is staged, and on that host alone."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import seen

from pyinfra_vllm.catalog import shapes, table
from pyinfra_vllm.checkpoint import Checkpoint, File
from pyinfra_vllm.config import Runtime, Service
from pyinfra_vllm.errors import HostError, RolloutError
from pyinfra_vllm.facts.gpu import Gpus
from pyinfra_vllm.facts.runtime import Runtime as RuntimeFact
from pyinfra_vllm.on_host.inspect.gpus import Found, Gpu, Process
from pyinfra_vllm.on_host.inspect.runtime import Installed
from pyinfra_vllm.operations import preflight
from pyinfra_vllm.operations import release as releases
from pyinfra_vllm.operations.util import planning
from pyinfra_vllm.operations.util.planning import plan
from pyinfra_vllm.release import same_but_for_values
from pyinfra_vllm.rollout.progress import Wanted
from pyinfra_vllm.tuning import request
from pyinfra_vllm.tuning.resolver import resolve

sys.path.insert(0, str(Path(__file__).parents[1]))
import nvidia_smi

ROOT = "/srv/pyinfra-vllm"
CONFIG = {
    **table("models.yaml")["models"]["Qwen/Qwen3-32B"]["config"],
    "quantization_config": shapes.AWQ,
    "torch_dtype": "float16",
}
SIZE = 19_300_000_000


def gpu(index: int = 0, **changes: Any) -> Gpu:
    return seen.gpu(index, **{"uuid": nvidia_smi.uuid(index), **changes})


class Host:
    """As much of a pyinfra host as planning asks: its facts."""

    name = print_prefix = "gpu-1"

    def __init__(self, gpus: list[Gpu], runtime: Installed | None = None, problem: str | None = None) -> None:
        self.gpus, self.runtime = Found(tuple(gpus), problem), runtime

    def get_fact(self, fact: Any, **asked: Any) -> Any:
        return {Gpus: self.gpus, RuntimeFact: self.runtime}.get(fact, seen.seen())


def locked(config: Any = None, size: int = SIZE) -> Checkpoint:
    file = File(path="model.safetensors", size=size, sha256="c" * 64)
    return Checkpoint(
        repo="acme/32b-awq", revision="main", commit="a" * 40, files=(file,), config=config or CONFIG
    )


def service(**settings: Any) -> Service:
    known = {"name": "chat", "model": "acme/32b-awq", "port": 8000, "max_model_len": 4096}
    return Service(**{"runtime": Runtime(version="0.33.0"), **known, **settings})


def planned(cards: list[Gpu], config: Any = None, size: int = SIZE, **settings: Any) -> Wanted:
    return plan(Host(cards), ROOT, service(**settings), locked(config, size))  # type: ignore[arg-type]


def test_two_cards_of_a_host_are_two_tensor_parallel_ranks() -> None:
    found = planned([gpu(0), gpu(1)], max_model_len=32768)
    argv = list(found.release.argv)
    assert argv[argv.index("--tensor-parallel-size") + 1] == "2"
    assert found.release.fit["kv_bytes_per_token"] == 131072
    assert (found.gpu, found.release.kernel) == ("NVIDIA GeForce RTX 4090", ("Marlin",))


def test_one_of_two_cards_is_one_rank() -> None:
    assert "--tensor-parallel-size" not in planned([gpu(0), gpu(1)], gpus=(1,)).release.argv


def instance(number: int = 0, card: int = 0, **changes: Any) -> Gpu:
    uuid = nvidia_smi.uuid(number, "MIG")
    told = {"index": None, "uuid": uuid, "card": card, "instance": "3g.40gb", "number": number}
    return replace(H100, **{**told, "memory_mib": 40448, **changes})


H100 = gpu(0, name="NVIDIA H100 80GB HBM3", memory_mib=81559, compute_capability="9.0")
SPLIT = replace(H100, split=True)
STRANGER = Process(4711, "jupyter.service", 900, "python3")


@pytest.mark.parametrize(
    ("version", "declared", "visible"),
    [
        ("0.33.0", (1,), "1"),
        ("0.33.0", (1, 0), "1,0"),
        ("0.33.0", (nvidia_smi.uuid(1),), nvidia_smi.uuid(1)),
        # an older vLLM ends at a UUID, so it gets the index that the UUID has on this host
        ("0.23.0", (nvidia_smi.uuid(1),), "1"),
        ("0.24.0", (nvidia_smi.uuid(1),), nvidia_smi.uuid(1)),
    ],
)
def test_a_unit_names_its_cards_so_that_none_other_can_be_meant(
    version: str, declared: tuple[Any, ...], visible: str
) -> None:
    runtime = Runtime(version=version, reason="a test")
    found = planned([gpu(0), gpu(1)], gpus=declared, runtime=runtime).release
    assert found.environment["CUDA_VISIBLE_DEVICES"] == visible
    assert found.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert (found.gpus, found.gpu_count) == (declared, len(declared))


def test_a_unit_that_has_every_card_names_none() -> None:
    assert "CUDA_VISIBLE_DEVICES" not in planned([gpu(0), gpu(1)]).release.environment


def test_a_mig_instance_is_named_by_its_uuid_and_has_its_own_memory() -> None:
    found = planned([SPLIT, instance(0), instance(1)], gpus=(nvidia_smi.uuid(0, "MIG"),)).release
    assert found.environment["CUDA_VISIBLE_DEVICES"] == nvidia_smi.uuid(0, "MIG")
    assert (
        found.fit["memory_bytes"] < 41 << 30
        if "memory_bytes" in found.fit
        else found.fit["kv_tokens"] < 100_000
    )
    assert found.gpu_count == 1


def test_a_mig_instance_is_another_kind_of_card_than_the_whole_one() -> None:
    """So a canary on the one does not speak for the other (rollout/waves.py)."""
    assert planned([H100]).gpu == "NVIDIA H100 80GB HBM3"
    for declared in (None, "NVIDIA H100 80GB HBM3", "H100", "NVIDIA H100 80GB HBM3 MIG 3g.40gb"):
        found = planned([SPLIT, instance(0)], gpus=(nvidia_smi.uuid(0, "MIG"),), gpu=declared)
        assert found.gpu == "NVIDIA H100 80GB HBM3 MIG 3g.40gb"


def test_each_service_looks_at_its_own_cards_only() -> None:
    cards = [gpu(0, processes=[STRANGER]), gpu(1)]
    assert planned(cards, gpus=(1,)).release.gpu_count == 1
    split = [replace(SPLIT, processes=(STRANGER,)), instance(0, processes=(STRANGER,)), instance(1)]
    assert planned(split, gpus=(nvidia_smi.uuid(1, "MIG"),)).release.gpu_count == 1


def test_a_service_may_have_several_names_of_which_the_first_is_its_own() -> None:
    """production-stack#453."""
    release = planned([gpu(0)], served_model_name=["chat", "gpt-4o"]).release
    at = release.argv.index("--served-model-name")
    assert release.argv[at + 1 : at + 4] == ("chat", "gpt-4o", "--host")
    assert release.served_model_name == "chat"


def test_nccl_is_told_what_the_operator_declares() -> None:
    asked = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
    release = planned([gpu(0), gpu(1)], environment=asked).release
    assert asked.items() <= release.environment.items()
    assert 'NCCL_NVLS_ENABLE="0"\n' in release.files()["env"]


@pytest.mark.parametrize(("compiled", "warned"), [(0.02, True), (0.89, True), (0.95, False), (1.0, False)])
def test_a_venv_without_byte_code_is_told_with_what_it_costs(compiled: float, warned: bool) -> None:
    found = seen.installed("0.33.0", compiled=compiled)
    kept = service(runtime=Runtime(path="/opt/vllm"))
    said = plan(Host([gpu()], found), ROOT, kept, locked()).warnings  # type: ignore[arg-type]
    told = [line for line in said if "have no byte code" in line]
    assert bool(told) == warned
    assert all(
        "about 5 s more at each start" in line and "compileall -q -j 0 /opt/vllm/lib" in line for line in told
    )


KEY = {"VLLM_API_KEY": "canary"}
ASKED = {"secrets": {"VLLM_API_KEY": "CHAT_API_KEY"}}


def with_key(version: str, **settings: Any) -> Wanted:
    runtime = Runtime(version=version, reason="a test")
    declared = service(runtime=runtime, **{**ASKED, **settings})
    return plan(Host([gpu()]), ROOT, declared, locked(), KEY)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["0.12.0", "0.25.1", "0.28.0"])
def test_a_vllm_that_writes_its_key_to_the_disk_does_not_get_it(version: str) -> None:
    """UnsetEnvironment= takes it away; a module in the release's folder asks for it
    (tests/unit/test_api_key.py).
    """
    release = with_key(version).release
    files, argv = release.files(), list(release.argv)
    assert argv[argv.index("--middleware") + 1] == "pyinfra_vllm_api_key.ApiKey"
    assert "UnsetEnvironment=VLLM_API_KEY\n" in files["vllm.service"]
    folder = f"{ROOT}/chat/releases/{release.id}"
    assert f'Environment="PYTHONPATH={folder}"\n' in files["vllm.service"]
    assert files["secrets.env"] == 'PYINFRA_VLLM_API_KEY="canary"\nVLLM_API_KEY="canary"\n'
    assert "class ApiKey" in files["pyinfra_vllm_api_key.py"]
    assert [name for name, text in files.items() if "canary" in text] == ["secrets.env"]


@pytest.mark.parametrize("version", ["0.11.0", "0.29.0", "0.33.0"])
def test_a_vllm_that_does_not_asks_for_the_key_itself(version: str) -> None:
    files = with_key(version).release.files()
    assert "pyinfra_vllm_api_key.py" not in files and "UnsetEnvironment" not in files["vllm.service"]
    assert files["secrets.env"] == 'VLLM_API_KEY="canary"\n'


def test_who_does_not_have_the_key_works_out_the_same_release_but_for_it() -> None:
    blind = plan(
        Host([gpu()]),  # type: ignore[arg-type]
        ROOT,
        service(runtime=Runtime(version="0.25.1", reason="a test"), **ASKED),
        locked(),
        {"VLLM_API_KEY": ""},
    )
    staged = json.loads(with_key("0.25.1").release.files()["release.json"])
    assert same_but_for_values(staged, blind.release)


def test_a_python_path_of_the_operator_s_stays() -> None:
    files = with_key("0.25.1", environment={"PYTHONPATH": "/opt/$mine 100%", "A": "1"}).release.files()
    assert ':/opt/$mine 100%%"\n' in files["vllm.service"]
    assert "PYTHONPATH" not in files["env"] and 'A="1"' in files["env"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"environment": {"VLLM_USE_RUST_FRONTEND": "1"}}, "nobody would ask for the key"),
        (
            {"secrets": {"VLLM_OTHER": "OTHER"}},
            "secrets: VLLM_OTHER: vLLM 0.25.1 writes it in clear text below its cache",
        ),
    ],
)
def test_what_would_undo_that_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(HostError, match=message):
        with_key("0.25.1", **settings)


def test_unknown_gpus_are_no_host_without_gpus() -> None:
    host = Host([], problem="`nvidia-smi -L` did not answer within 60 s")
    with pytest.raises(
        HostError, match=r"its GPUs are unknown: .* did not answer within 60 s. Repair the driver"
    ):
        plan(host, ROOT, service(), locked())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gpus", "settings", "message"),
    [
        ([gpu(0)], {"gpus": (2,)}, f"gpus: 2 not there; this host has 0 ({nvidia_smi.uuid(0)})"),
        (
            [SPLIT, instance(0)],
            {"gpus": (nvidia_smi.uuid(9),)},
            (
                f"gpus: {nvidia_smi.uuid(9)} not there; this host has 0 ({nvidia_smi.uuid(0)}),"
                f" {nvidia_smi.uuid(0, 'MIG')}"
            ),
        ),
        (
            [SPLIT, instance(0)],
            {"gpus": (0,)},
            f"can't be used whole: declare one of its instances, {nvidia_smi.uuid(0, 'MIG')}",
        ),
        (
            [SPLIT],
            {},
            "is split by MIG and can't be used whole: declare one of its instances, of which it has none",
        ),
        (
            [SPLIT, instance(0)],
            {"gpus": (nvidia_smi.uuid(0, "MIG"),), "runtime": Runtime(version="0.23.0", reason="a test")},
            "vLLM 0.23.0 can't be given a MIG instance, which has no index: use runtime 0.24 or newer",
        ),
        (
            [SPLIT, instance(0, memory_mib=None)],
            {"gpus": (nvidia_smi.uuid(0, "MIG"),)},
            "doesn't tell the memory of MIG instance",
        ),
        (
            [gpu(0), gpu(1, processes=[STRANGER])],
            {"gpus": (1,)},
            (
                "GPU 1 (NVIDIA GeForce RTX 4090) is in use by python3 (process 4711, 900 MiB, unit"
                " jupyter.service)"
            ),
        ),
        (
            [SPLIT, instance(0, processes=[STRANGER])],
            {"gpus": (nvidia_smi.uuid(0, "MIG"),)},
            (
                f"MIG instance 3g.40gb {nvidia_smi.uuid(0, 'MIG')} of GPU 0 (NVIDIA H100 80GB HBM3) is in"
                " use by python3"
            ),
        ),
        ([gpu(0)], {"max_model_len": 32768}, "What would make it fit: max_model_len: "),
        ([gpu(0), gpu(1)], {"size": 70_000_000_000}, "doesn't fit on 2 x GeForce RTX 4090"),
        ([gpu(0), gpu(1), gpu(2)], {}, "3 GPUs can't share the 64 attention heads of acme/32b-awq: use 1, 2"),
        ([gpu(0), gpu(1)], {"flags": {"--max-num-sqes": 8}}, "did you mean --max-num-seqs?"),
        ([gpu(0), gpu(1)], {"flags": {"--swap-space": 8}}, "is gone from vLLM 0.33.0"),
        ([gpu(0, driver="[N/A]")], {}, "nvidia-smi names no driver version ([N/A])"),
        ([gpu(0)], {"config": {**CONFIG, "num_hidden_layers": None}}, "has no `num_hidden_layers`"),
        ([gpu(0)], {"config": {**CONFIG, "num_attention_heads": 0}}, "has no `num_attention_heads`"),
        (
            [gpu(0)],
            {"config": {**CONFIG, "intermediate_size": [1, 2]}},
            "`intermediate_size` in its config.json",
        ),
        ([gpu(0)], {"config": {**CONFIG, "hidden_size": 10**400}}, "`hidden_size` in its config.json"),
        ([gpu(0)], {"config": {**CONFIG, "quantization_config": "awq"}}, "is no map"),
        ([gpu(0)], {"config": {"text_config": "qwen"}}, "`text_config` in its config.json is no map"),
        ([gpu(0)], {"gpu": "NVIDIA A10"}, "NVIDIA A10 is declared"),
        ([gpu(0)], {"variants": [{"batched_graphs": "many"}]}, "batched_graphs: max_num_seqs must be"),
    ],
)
def test_what_cannot_be_served_is_this_host_s_own_failure(
    gpus: list[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(HostError) as refused:
        planned(gpus, **settings)
    assert message in str(refused.value)
    assert str(refused.value).endswith("Nothing was staged or touched for it.")


@pytest.mark.parametrize(
    "card",
    [
        {"name": "NVIDIA A10", "memory_mib": 23028, "compute_capability": "8.6"},
        {"name": "NVIDIA RTX A6000", "memory_mib": 49140, "compute_capability": "8.6"},
        {"name": "NVIDIA GeForce RTX 4090", "memory_mib": 49140, "compute_capability": "8.9"},
    ],
)
def test_a_card_outside_the_catalog_may_be_declared_by_its_own_name(card: dict[str, Any]) -> None:
    for declared in (card["name"], card["name"].removeprefix("NVIDIA ").lower()):
        assert planned([gpu(**card)], gpu=declared, max_model_len=2048).gpu == card["name"]


@pytest.mark.parametrize("error", [ValueError, TypeError, ZeroDivisionError, OverflowError, AttributeError])
def test_unexpected_exception_is_a_problem_of_that_host(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> None:
        raise error("out of thin air")

    monkeypatch.setattr(planning, "resolve", fails)
    with pytest.raises(HostError, match=f"{error.__name__}: out of thin air"):
        planned([gpu()])


@pytest.mark.parametrize("operation", [preflight.passed, releases.staged])
def test_operations_refuse_one_host_and_go_on(operation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pyinfra runs the generator for each host: an exception there would end the run for all of them."""
    module = preflight if operation is preflight.passed else releases
    monkeypatch.setattr(module, "host", Host([gpu(0), gpu(1), gpu(2)]))
    monkeypatch.setattr(module, "refuse", lambda text: SimpleNamespace(text=text))
    (refused,) = operation._inner(ROOT, service(), locked())
    assert "64 attention heads" in refused.text


def test_an_installed_runtime_of_no_known_version_is_this_host_s_failure() -> None:
    host = Host([gpu()], seen.installed("0.25.l", flags=["--max-model-len"]))
    with pytest.raises(HostError, match="is not a version number"):
        plan(host, ROOT, service(), locked())  # type: ignore[arg-type]


def test_an_answer_for_a_service_is_the_resolver_s() -> None:
    """Errors are an answer, not an exception, and whatever is raised is one of ours."""
    for config, error in (({}, RolloutError), ({"hidden_size": "wide"}, RolloutError)):
        with pytest.raises(error):
            locked_so = locked({**CONFIG, **config} if config else {"a": 1})
            request.on_host(service(), locked_so, [gpu()], "0.33.0", None)
    found = resolve(request.on_host(service(), locked(), [gpu(0), gpu(1), gpu(2)], "0.33.0", None))
    assert found.fit is None and "3 GPUs" in str(found.errors)


def test_a_release_can_sleep_only_where_that_is_declared_and_can_be_had() -> None:
    asked = planned([gpu(0), gpu(1)], standby=True)
    assert (asked.standby, asked.release.standby) == ("", True)
    assert "--enable-sleep-mode" in asked.release.argv and "--port" not in asked.release.argv
    assert any("tried it on one GPU with one model" in warning for warning in asked.warnings)
    plain = planned([gpu(0), gpu(1)])
    assert (plain.standby, plain.release.standby) == (None, False)
    assert not any("standby" in warning for warning in plain.warnings)


@pytest.mark.parametrize(
    ("settings", "because"),
    [
        ({"flags": {"--api-server-count": 2}}, "--api-server-count 2 has several processes"),
        ({"gpu_sharing_reason": "both are small"}, "gpu_sharing_reason: a wake needs memory"),
    ],
)
def test_where_standby_cant_be_had_the_release_is_the_usual_one(
    settings: dict[str, Any], because: str
) -> None:
    asked = planned([gpu(0), gpu(1)], standby=True, **settings)
    assert str(asked.standby).startswith(because)
    assert asked.release == planned([gpu(0), gpu(1)], **settings).release
    assert any(warning.startswith(f"standby: no, because {because}") for warning in asked.warnings)
