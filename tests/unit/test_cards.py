"""The operator's own cards: cards.yaml for every command, and a card on the command line of `resolve`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from seen import gpu

from pyinfra_vllm import cli, fleet, inventory
from pyinfra_vllm.catalog import gpus, shapes, table
from pyinfra_vllm.checkpoint import Checkpoint, File, Lock
from pyinfra_vllm.commands.validate import run as examine
from pyinfra_vllm.config import Service
from pyinfra_vllm.config import cards as own_cards
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.on_host.inspect.gpus import Gpu
from pyinfra_vllm.tuning import request
from pyinfra_vllm.tuning.preflight import preflight
from pyinfra_vllm.tuning.resolver import resolve

MODEL = "Qwen/Qwen3-32B-AWQ"
CONFIG = {**table("models.yaml")["models"]["Qwen/Qwen3-32B"]["config"], "quantization_config": shapes.AWQ}
SERVICE: dict[str, Any] = {
    "model": MODEL,
    "runtime": {"version": "0.33.0"},
    "port": 8000,
    "gpu": "NVIDIA Acme A1",
    "gpus": [0],
    "max_model_len": 8192,
}
CARD = "cards:\n  NVIDIA Acme A1: {memory: %s, compute_capability: 8.9, bandwidth_gb_s: 900}\n"
ASKED = ("--model", MODEL, "--runtime", "0.33.0", "--max-model-len", "8192")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("inventory", "group_data"):
        Path(folder).mkdir()
    Path("inventory/mine.py").write_text("h = ['gpu-1.invalid']\n")
    declare()
    file = File(path="model.safetensors", size=19_300_000_000, sha256="c" * 64)
    Lock([Checkpoint(repo=MODEL, revision="main", commit="a" * 40, files=(file,), config=CONFIG)]).dump()
    return tmp_path


def declare(**settings: Any) -> None:
    Path("group_data/mine.py").write_text(f"services = {{'chat': { ({**SERVICE, **settings})!r}}}\n")


def describe(memory: str = "48GiB") -> None:
    Path("cards.yaml").write_text(CARD % memory)


def service() -> Service:
    files = inventory.Files("inventory/mine.py", str(Path.cwd()), ())
    found = fleet.from_inventory(inventory.load("inventory/mine.py", {}, ()), files)
    return found.hosts["gpu-1.invalid"].service("chat")


def told(name: str = "NVIDIA Acme A1", index: int = 0, **changes: Any) -> Gpu:
    return gpu(index, **{"name": name, "memory_mib": 49152, **changes})


def ask(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(cli.cli, ["resolve", *ASKED, *arguments, "--json"], standalone_mode=False)
    if done.exception:
        raise done.exception
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# On the command line


def test_a_card_on_the_command_line_is_nearly_the_one_that_has_its_numbers() -> None:
    """An L40S has 46068 MiB, of which CUDA reports 44.43 GiB (gpus.yaml); the usual share is 44.31."""
    described = ask("--gpu-memory", "46068MiB", "--compute-capability", "8.9")
    known = ask("--gpu", "L40S")
    assert described["kernel"] == known["kernel"] == ["Marlin"]
    assert described["fit"]["kv_tokens"] == pytest.approx(known["fit"]["kv_tokens"], rel=0.05)
    named = ask("--gpu", "Acme A1", "--gpu-memory", "46068MiB", "--compute-capability", "8.9")
    assert named["fit"] == described["fit"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Say --gpu NAME, or --gpu-memory and --compute-capability"),
        (("--gpu-memory", "48GiB"), "describe a card together: say both"),
        (("--compute-capability", "8.9", "--gpu", "L40S"), "describe a card together: say both"),
        (("--gpu-memory", "48GB", "--compute-capability", "8.9"), "--gpu-memory 48GB: must be the memory"),
        (("--gpu-memory", "0GiB", "--compute-capability", "8.9"), "--gpu-memory 0GiB: must be the memory"),
        (
            ("--gpu-memory", "48GiB", "--compute-capability", "89"),
            "--compute-capability 89: must be a compute capability that is known here, as `nvidia-smi",
        ),
        (("--gpu-memory", "48GiB", "--compute-capability", "cpu"), "one of 6.0, 6.1, 7.0, 7.5"),
        (("--gpu", "cpu", "--gpu-memory", "48GiB", "--compute-capability", "8.9"), "--gpu cpu: leave out"),
        (("--gpu", "MI300X", "--gpu-memory", "192GiB", "--compute-capability", "9.0"), "not NVIDIA's"),
    ],
)
def test_invalid_card_description_is_refused(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        ask(*arguments)
    assert said in str(refused.value)


def test_a_card_that_is_too_old_is_refused_however_it_is_described() -> None:
    assert "Pascal" in str(ask("--gpu-memory", "24GiB", "--compute-capability", "6.1")["errors"])


@pytest.mark.parametrize(
    ("board", "capability", "names"),
    [("Thor", "11.0", ("NVIDIA Thor", "Jetson AGX Thor")), ("Orin", "8.7", ("Orin (nvgpu)", "orin"))],
)
def test_jetson_boards_are_known_and_refused(board: str, capability: str, names: tuple[str, ...]) -> None:
    """Their nvidia-smi prints 8.7 and 11.0: the answer is why they aren't served, not that this can't be."""
    (error,) = ask("--gpu-memory", "122GiB", "--compute-capability", capability)["errors"]
    assert f"(Jetson {board})" in error
    for name in names:
        with pytest.raises(DeclarationError, match=rf"{capability} \(Jetson {board}\)"):
            ask("--gpu", name)


# In cards.yaml


def test_every_command_knows_the_operator_s_own_card() -> None:
    with pytest.raises(DeclarationError, match=r"describe the card in cards\.yaml"):
        ask("--gpu", "Acme A1")
    (problem,) = examine("inventory/mine.py").problems
    assert "not in the catalog" in problem.fix
    describe()
    answer = ask("--gpu", "Acme A1")
    assert answer["errors"] == []
    assert examine("inventory/mine.py").problems == ()
    chat = service()
    assert preflight([told()], chat, "0.33.0") == []
    locked = Lock.load().get(MODEL, "main")
    on_host = resolve(request.on_host(chat, locked, [told()], "0.33.0", None))
    assert on_host.fit and not on_host.errors
    assert on_host.fit.requested_bytes == pytest.approx(48 * 0.985 * gpus.GIB * 0.92)
    assert on_host.as_dict()["fit"]["kv_tokens"] == answer["fit"]["kv_tokens"]


def test_a_card_too_small_is_refused_by_validate() -> None:
    describe("20GiB")
    (problem,) = examine("inventory/mine.py").problems
    assert "doesn't fit on 1 x NVIDIA Acme A1" in problem.fix


def test_the_host_s_own_memory_counts() -> None:
    """A card of the same name with 1 GiB less, and another one with half of it."""
    describe()
    (card,) = service().own_cards
    less = gpus.find("NVIDIA Acme A1", "8.9", 49152 - 1024, (card,))
    assert (less.memory_mib, less.bandwidth_gb_s) == (48128, 900)
    assert less.usable_bytes == card.usable_bytes - gpus.GIB
    other = gpus.find("NVIDIA Acme A1", "8.9", 24576, (card,))
    assert (other.memory_mib, other.bandwidth_gb_s) == (24576, None)


def test_the_file_wins_over_the_catalog() -> None:
    Path("cards.yaml").write_text("cards: {H200: {memory: 20GiB, compute_capability: '9.0'}}\n")
    assert "doesn't fit" in str(ask("--gpu", "NVIDIA H200")["errors"])


def test_a_bandwidth_lets_unlike_cards_serve_together() -> None:
    """An L40S has 864 GB/s."""
    mixed = [told(), told("NVIDIA L40S", 1, memory_mib=46068)]
    declare(gpus=[0, 1], gpu=None)
    assert "can't serve one model together" in str(preflight(mixed, service(), "0.33.0"))
    describe()
    assert preflight(mixed, service(), "0.33.0") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CARD % "48GB", "cards.yaml: cards.NVIDIA Acme A1.memory = '48GB': must be the memory"),
        (CARD % 48, "cards.yaml: cards.NVIDIA Acme A1.memory = 48: must be the memory"),
        (
            "cards: {A1: {memory: 48GiB, compute_capability: 8.8}}",
            "cards.yaml: cards.A1.compute_capability = 8.8: must be a compute capability that is known here",
        ),
        ("cards: {A1: {memory: 48GiB}}", "cards.yaml: cards.A1.compute_capability: missing"),
        (
            "cards: {A1: {memory: 48GiB, compute_capability: 8.9, bandwidth_gb_s: fast}}",
            "cards.yaml: cards.A1.bandwidth_gb_s = 'fast': must be GB/s",
        ),
        (
            "cards: {A1: {memory: 48GiB, compute_capability: 8.9, bandwith_gb_s: 1}}",
            'cards.yaml: cards.A1.bandwith_gb_s = 1: unknown key; did you mean "bandwidth_gb_s"?',
        ),
        ("cards: [A1]", "cards.yaml: cards = ['A1']: must be a map of GPU names"),
        ("card: {}", 'cards.yaml: card: unknown key; did you mean "cards"?'),
        ("- A1", "cards.yaml: must be a map with the key cards"),
        ("cards: {", "cards.yaml: can't be read"),
    ],
)
def test_a_slip_in_the_file_is_told_alike_by_every_command(text: str, said: str) -> None:
    Path("cards.yaml").write_text(text)
    with pytest.raises(DeclarationError) as refused:
        ask("--gpu", "A1")
    assert said in str(refused.value)
    declare(gpu=None)
    assert any(said in str(problem) for problem in examine("inventory/mine.py").problems)


def test_a_service_has_no_cards_of_its_own() -> None:
    declare(cards={"A1": {"memory": "48GiB", "compute_capability": "8.9"}})
    (problem,) = examine("inventory/mine.py").problems
    assert (problem.key, problem.source) == ("services.chat.cards", "group_data/mine.py")
    assert "describe cards in cards.yaml" in problem.fix


def test_no_file_and_an_empty_one_are_no_cards() -> None:
    assert own_cards.own() == ()
    Path("cards.yaml").write_text("# nothing yet\n")
    assert own_cards.own() == ()
