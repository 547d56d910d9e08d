"""A plan as JSON and as lines: nothing lost, nothing twice, and few lines for what forty hosts share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pyinfra_vllm.rollout import plans
from pyinfra_vllm.rollout.plans import HostPlan, ServicePlan, exit_code, host_names, lines

GOLDEN = Path(__file__).parents[1] / "fixtures/screens"
OLD_DRIVER = "GPU 0: driver 535.104.05 is too old for vLLM 0.33.0 (CUDA 13.0): install driver 580 or newer"
MISSPELT = "flags: vLLM 0.33.0 doesn't have --max-num-seq; did you mean --max-num-seqs?"
IN_USE = (
    "GPU 0 is in use by python3 (process {}, 900 MiB, unit jupyter.service): stop it, or declare other gpus"
)
MEMORY = {
    "weights_bytes": 19_300_000_000,
    "kv_bytes_per_token": 131072,
    "kv_tokens": 62144,
    "max_concurrency": 7.6,
    "fits": True,
}
SWITCH = ServicePlan(
    service="chat",
    action=plans.SWITCH,
    old="8d1f00d5eed5",
    new="4c0ffee4c0de",
    flags={
        "--max-num-seqs": ("8", "16"),
        "--enable-chunked-prefill": (None, True),
        "--kv-cache-dtype": ("fp8", None),
    },
    environment={"VLLM_USE_FLASHINFER_SAMPLER": (None, "0")},
    secrets=("+ VLLM_API_KEY",),
    model=("Qwen/Qwen3-14B-AWQ@31c69efc2946", "Qwen/Qwen3-32B-AWQ@b3b2a16c6b06"),
    runtime=("0.32.0", "0.33.0"),
    download_bytes=19_300_000_000,
    installs="vllm 0.33.0",
    window="the window is open until 2026-11-29 05:00 CET; last start 2026-11-29 04:15 CET",
    memory=MEMORY,
)
DEFERRED = dataclasses.replace(
    SWITCH,
    action=plans.DEFERRED,
    window="the window is closed: outside every window; next opening 2026-11-29 02:00 CET",
)
FIRST = dataclasses.replace(
    SWITCH, action=plans.INSTALL, old=None, model=(None, SWITCH.model[1]), runtime=(None, "0.33.0")
)
UNCHANGED = ServicePlan("chat", plans.UNCHANGED, "4c0ffee4c0de", "4c0ffee4c0de")


def refused(*reasons: str) -> ServicePlan:
    return ServicePlan("chat", plans.REFUSED, reasons=reasons)


def fleet() -> list[HostPlan]:
    """Every kind of end, on hosts of several names."""
    slow = ("runtime.path: 100% of the Python files of /opt/vllm have no byte code",)
    return [
        *(HostPlan(f"gpu-{number:02d}.example.net", (DEFERRED,)) for number in range(1, 9)),
        HostPlan("gpu-09.example.net", (dataclasses.replace(DEFERRED, old="0ddba1100000", warnings=slow),)),
        HostPlan("gpu-10.example.net", (UNCHANGED,)),
        HostPlan("gpu-11.example.net", (SWITCH,)),
        *(
            HostPlan(f"box-{letter}", (refused(IN_USE.format(4700 + number)),))
            for number, letter in enumerate("abc")
        ),
        HostPlan("box-old", (refused(OLD_DRIVER, MISSPELT), ServicePlan("embed", plans.UNCHANGED))),
        HostPlan("down.example.net", (refused(),), ("not reached: timed out",)),
        HostPlan("new.example.net", (FIRST,)),
        HostPlan("spare.example.net"),
    ]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_plan_of_a_fleet_at_every_width(width: int) -> None:
    made = "\n".join(lines(fleet(), width)) + "\n"
    file = GOLDEN / f"plan-{width}.txt"
    if not file.exists():
        file.write_text(made)
        pytest.fail(f"{file} was missing: it was written, look at it")
    assert made == file.read_text()


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost(width: int) -> None:
    made = lines(fleet(), width)
    assert max(map(len, made)) <= width
    words = " ".join(" ".join(made).split())
    for sentence in (OLD_DRIVER, MISSPELT, SWITCH.window, DEFERRED.window, "process 4700", SWITCH.model[1]):
        assert str(sentence) in words
    for flag in ("--max-num-seqs 8 -> 16", "+ --enable-chunked-prefill", "- --kv-cache-dtype fp8"):
        assert flag in words


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("others", [0, 10], ids=["the whole fleet", "beside healthy hosts"])
@pytest.mark.parametrize("name", ["gpu-{:02d}", "{:x}.rack.example.net"], ids=["in a row", "in no order"])
def test_forty_hosts_with_the_same_two_mistakes_take_at_most_twenty_lines(
    width: int, others: int, name: str
) -> None:
    bad = [HostPlan(name.format(number * 7 % 41), (refused(OLD_DRIVER, MISSPELT),)) for number in range(40)]
    made = lines([*bad, *(HostPlan(f"good-{number}", (UNCHANGED,)) for number in range(others))], width)
    assert len(made) <= 20
    assert sum("too old" in line for line in made) == 1
    assert made[0].startswith(f"{40 + others} hosts, {40 + others} services: 40 refused")


def test_numbers_alone_make_no_two_entries_and_the_example_is_named() -> None:
    made = lines([HostPlan(f"h{number}", (refused(IN_USE.format(number)),)) for number in range(3)], 200)
    assert [line for line in made if "in use" in line] == [
        f"  {IN_USE.format(0)} (the numbers are those of h0)"
    ]


def test_hosts_that_differ_in_anything_but_the_release_they_leave_have_blocks_of_their_own() -> None:
    left = dataclasses.replace(SWITCH, old="0ddba1100000")
    other = dataclasses.replace(SWITCH, download_bytes=1)
    made = lines([HostPlan("a", (SWITCH,)), HostPlan("b", (left,)), HostPlan("c", (other,))], 200)
    assert "  chat on a, b" in made and "  chat on c" in made
    assert "    release   8d1f00d5eed5, 0ddba1100000 -> 4c0ffee4c0de" in made


@pytest.mark.parametrize(
    ("hosts", "named"),
    [
        (["gpu-09", "gpu-10", "gpu-11", "x"], ["gpu-09 to gpu-11", "x"]),
        (["gpu-1", "gpu-2"], ["gpu-1", "gpu-2"]),
        (["gpu-1", "gpu-3", "gpu-4"], ["gpu-1", "gpu-3", "gpu-4"]),
        (["10.0.0.8", "10.0.0.9", "10.0.0.10"], ["10.0.0.8 to 10.0.0.10"]),
    ],
)
def test_hosts_in_a_row_are_named_by_their_ends(hosts: list[str], named: list[str]) -> None:
    assert [text for text, _ in host_names(hosts)] == named
    assert sum(count for _, count in host_names(hosts)) == len(hosts)
    assert [text for text, _ in host_names(hosts, hosts)] == (
        [f"all {len(hosts)} hosts"] if len(hosts) > 2 else named
    )


def test_the_json_is_the_contract_of_the_design() -> None:
    (host,) = plans.as_json([HostPlan("gpu-1", (SWITCH,))])["hosts"]
    (service,) = host["services"]
    wanted: dict[str, Any] = {
        "service": "chat",
        "action": "switch",
        "from": "8d1f00d5eed5",
        "to": "4c0ffee4c0de",
        "download_bytes": 19_300_000_000,
        "window": SWITCH.window,
        "reasons": [],
    }
    assert {key: service[key] for key in wanted} == wanted
    assert service["changes"]["flags"]["--max-num-seqs"] == ["8", "16"]
    assert service["changes"]["flags"]["--enable-chunked-prefill"] == [None, True]
    assert service["changes"]["model"] == list(SWITCH.model)
    assert service["changes"]["runtime"] == ["0.32.0", "0.33.0"]
    (host,) = plans.as_json([HostPlan("gpu-1", (refused("b"),), ("a",))])["hosts"]
    assert host["services"][0]["reasons"] == ["a", "b"], "a program that reads services must see it, too"


@pytest.mark.parametrize(
    ("plan", "code"),
    [
        (HostPlan("a", (UNCHANGED,)), 0),
        (HostPlan("a", (DEFERRED,)), 0),
        (HostPlan("a"), 0),
        (HostPlan("a", (refused("no"),)), 1),
        (HostPlan("a", (), ("not reached",)), 1),
    ],
)
def test_the_exit_code_says_whether_anything_is_refused(plan: HostPlan, code: int) -> None:
    assert exit_code([HostPlan("b", (SWITCH,)), plan]) == code


def test_whatever_a_host_said_is_printable() -> None:
    made = lines([HostPlan("a", (refused("evil \x1b[2J\u202e"),))], 80)
    assert "\x1b" not in "".join(made) and "\u202e" not in "".join(made)


def test_what_fits_tightly_says_so() -> None:
    assert "tightly" not in plans.memory({**MEMORY, "tight": False, "reserve_bytes": 2**31})
    tight = plans.memory({**MEMORY, "tight": True, "reserve_bytes": 3 * 2**28})
    assert tight.endswith("requests of full length at a time); fits tightly, 0.75 GiB in reserve")
