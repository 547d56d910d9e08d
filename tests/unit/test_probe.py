"""The probe against a real socket: what it records, how it behaves when the server does not, and its time
limit.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from typing import Any

import pytest
from bench_records import judge
from openai_server import Behaviour, serving

from pyinfra_vllm.on_host.bench import load, phases, probe, prompts
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.plan import Settings
from pyinfra_vllm.on_host.bench.probe import ProbeError
from pyinfra_vllm.on_host.bench.questions import builtin
from pyinfra_vllm.on_host.bench.record import Record, Request
from pyinfra_vllm.on_host.openai.client import Client

QUICK = Settings(
    concurrency=(1, 4), budget_s=1.2, quality=False, rounds=3, output_tokens=16, words={"s": 5, "m": 20}
)

pytestmark = pytest.mark.alone  # it has a time limit against a live server
GRACE_S = 4.0


def measured(settings: Settings = QUICK, **behaviour: Any) -> dict[str, Any]:
    with serving(Behaviour(**behaviour)) as server:
        began = time.monotonic()
        record = measure(Client(server.url, "m"), settings)
        assert time.monotonic() - began < settings.budget_s + GRACE_S
    return record


def measure(client: Client, settings: Settings, like: Any = None, extend: Any = None, **more: Any) -> Any:
    """The record as its JSON has it, measured like another one or longer."""
    known = {key: Record.read(value, key) for key, value in (("like", like), ("extend", extend)) if value}
    return probe.measure(client, settings, **known, **more).as_dict()


def verdict(record: dict[str, Any], before: dict[str, Any] | None = None, **limits: Any) -> dict[str, Any]:
    return judge(before, record, Criteria(concurrency=(1, 4), **limits))


def test_a_record_is_what_the_contract_says() -> None:
    record = measured()
    json.dumps(record, allow_nan=False)
    assert record["schema"] == "pyinfra-vllm/bench/1" and record["model"] == "m"
    assert record["server"] == {"version": "0.32.0", "max_model_len": 4096}
    assert [(phase["name"], phase["concurrency"]) for phase in record["phases"]] == [("c1", 1), ("c4", 4)]
    for phase in record["phases"]:
        assert len(phase["rounds"]) >= 2 and all(item["complete"] for item in phase["rounds"])
        assert all(item["output_tokens"] == record["plan"]["output_tokens"] for item in phase["requests"])
        names = [item["prompt"] for item in phase["requests"]]
        assert (
            len(set(names)) == len(names) == len(phase["rounds"]) * record["plan"]["requests"][phase["name"]]
        )
    assert record["traffic"]["other_share"] < 0.01
    assert verdict(record)["verdict"] == "pass"


def test_tokens_per_second_are_those_of_the_server() -> None:
    record = measured(
        Settings(concurrency=(1,), budget_s=2, quality=False, rounds=2, output_tokens=32), tpot_s=0.002
    )
    summary: Any = phases.summary(Record.read(record, "record"))["c1"]
    rate = summary["tokens_per_s"]
    assert 32 / (0.002 * 32 * 1.5 + 0.01) < rate < 32 / (0.002 * 31 + 0.002)


def prompts_of(record: dict[str, Any], phase: int = 0) -> list[str]:
    return [item["prompt"] for item in record["phases"][phase]["requests"]]


def numbers_of(record: dict[str, Any]) -> list[int]:
    return [item["round"] for item in record["phases"][0]["rounds"]]


def test_both_sides_measure_the_same_prompts_in_as_many_rounds_and_a_doubtful_one_measures_them_again() -> (
    None
):
    # It sleeps for most of each answer, and the margins are what three rounds of a second can tell on shared
    # cores.
    margins = {"throughput_margin": 0.15, "tpot_margin": 0.15, "ttft_margin": 0.15}
    with serving(ttft_s=0.04) as server:
        client = Client(server.url, "m")
        before = measure(client, QUICK)
        after = measure(client, QUICK, like=before)
        assert after["plan"] == before["plan"]
        whole = before["plan"]["rounds"]
        assert [len(phase["rounds"]) for phase in before["phases"]] == [whole, whole]
        assert set(prompts_of(after)) == set(prompts_of(before))
        assert numbers_of(before) == [*range(whole)] and numbers_of(after) == [*reversed(range(whole))]
        more = Settings(**{**vars(QUICK), "budget_s": 6})
        longer = measure(client, more, extend=after, like=before)
        assert [len(phase["rounds"]) for phase in longer["phases"]] == [whole + 1, whole + 1]
        assert numbers_of(longer) == [*numbers_of(after), whole - 1] and longer["plan"] == before["plan"]
        assert longer["spent_s"] > after["spent_s"]
        assert (
            longer["client"]["wall_s"] > after["client"]["wall_s"] and longer["traffic"]["other_share"] < 0.01
        )
        texts = {request["prompt"] for request in server.requests}
        salts = [request["cache_salt"] for request in server.requests if "cache_salt" in request]
    assert set(prompts_of(longer)) == set(prompts_of(before)) and len(prompts_of(longer)) > len(
        prompts_of(before)
    )
    assert verdict(longer, before, **margins)["verdict"] in ("pass", "inconclusive")
    assert len(texts) < len(salts) and len({salt.split("-")[0] for salt in salts}) >= 3


def test_a_baseline_is_measured_further_with_new_prompts_and_the_other_side_measures_them_all() -> None:
    settings = Settings(**{**vars(QUICK), "rounds": 2})
    with serving() as server:
        client = Client(server.url, "m")
        short = measure(client, settings)
        before = measure(
            client, settings, extend=short, deadline=time.monotonic() + 15,
            enough=lambda phases: len(phases[0].rounds) >= 5
        )  # fmt: skip
        after = measure(client, Settings(**{**vars(settings), "budget_s": 20}), like=before)
    assert short["plan"]["rounds"] <= 2 and before["plan"]["rounds"] == 5
    assert [len(phase["rounds"]) for phase in after["phases"]] == [5, 5]
    assert len(set(prompts_of(before))) == len(prompts_of(before)) > len(prompts_of(short))
    assert numbers_of(after) == [4, 3, 2, 1, 0] and set(prompts_of(after)) == set(prompts_of(before))


def test_rounds_in_turns_last_as_long_as_asked_with_every_shape_and_the_same_prompts_for_both() -> None:
    """The baseline's own rounds are longer: as many as are planned fill its budget."""
    with serving(ttft_s=0.02) as server:
        client = Client(server.url, "m")
        like = Record.read(measure(client, replace(QUICK, budget_s=3)), "like")
        ends = time.monotonic() + 20
        one, other = (probe.one_round(client, QUICK, like, 5, 0.0, ends) for _ in "AB")
        longer = probe.one_round(client, QUICK, like, 5, 1.5, ends)
    assert like.plan and like.plan.requests["c4"] > 4
    names = [[item.prompt for phase in found for item in phase.requests] for found in (one, other)]
    assert sorted(names[0]) == sorted(names[1]) and all(item.ok for phase in one for item in phase.requests)
    assert [len(phase.requests) for phase in one] == [2, 4]  # both shapes once, and each stream once
    assert all(len(big.requests) > len(small.requests) for big, small in zip(longer, one, strict=True))


def test_a_side_that_is_known_precisely_enough_stops_and_the_plan_says_what_was_measured() -> None:
    settings = Settings(**{**vars(QUICK), "budget_s": 5, "rounds": 50})
    with serving() as server:
        record = measure(Client(server.url, "m"), settings, enough=lambda phases: len(phases[1].rounds) == 4)
    assert record["plan"]["rounds"] == 4 and not any(phase.get("cut") for phase in record["phases"])
    assert record["spent_s"] < 4


def test_a_slow_server_s_saturated_phase_is_seen_in_enough_whole_rounds() -> None:
    """A batch of 48 is so slow here that a third of the time would hold no three of them."""
    settings = Settings(concurrency=(1, 8, 48), budget_s=6, quality=False, words={"s": 5, "m": 20, "l": 60})
    record = measured(settings, ttft_s=0.05, tpot_s=0.005)
    whole = [sum(item["complete"] for item in phase["rounds"]) for phase in record["phases"]]
    assert min(whole) >= 3 and not any(phase.get("cut") for phase in record["phases"])
    assert record["plan"]["requests"]["c1"] >= 3 and record["plan"]["requests"]["c48"] >= 48
    assert all(item["ok"] for phase in record["phases"] for item in phase["requests"])


def test_a_slower_server_fails_within_the_budget() -> None:
    settings = Settings(
        concurrency=(1, 4), budget_s=2, quality=False, rounds=4, output_tokens=16, words={"s": 5}
    )
    with serving(tpot_s=0.002) as server:
        before = measure(Client(server.url, "m"), settings)
        server.behaviour.tpot_s = 0.005
        after = measure(Client(server.url, "m"), settings, like=before)
    found = verdict(after, before)
    assert found["verdict"] == "fail", found["reasons"]


def test_without_a_salt_each_run_begins_its_prompts_with_other_digits_of_the_same_length() -> None:
    with serving(refuses=("cache_salt",)) as server:
        measure(Client(server.url, "m"), QUICK)
        texts = [request["prompt"] for request in server.requests if request["prompt"].count("\n") == 1]
    assert len({text.splitlines()[0] for text in texts}) == 1
    assert len(prompts.nonce("a")) == len(prompts.nonce("b")) and prompts.nonce("a") != prompts.nonce("b")


def test_a_short_context_shortens_the_prompts() -> None:
    record = measured(Settings(concurrency=(1,), budget_s=1, quality=False, rounds=2), max_model_len=256)
    most = max(item["input_tokens"] for item in record["phases"][0]["requests"])
    assert most + record["plan"]["output_tokens"] <= 256


@pytest.mark.parametrize("refuses", [(), ("cache_salt",)])
def test_prompts_and_answers_have_the_declared_lengths(refuses: tuple[str, ...]) -> None:
    """The server counts a word as a token, and what it refuses salts for has twelve digits more."""
    gate = Criteria(concurrency=(1,), budget_s=5, prompt_tokens=(40, 300), answer_tokens=24, quality=False)
    settings = replace(Settings.from_criteria(gate), budget_s=1, rounds=2)
    record = measured(settings, refuses=refuses, max_model_len=400)
    digits = 12 if refuses else 0
    requests = record["phases"][0]["requests"]
    assert {item["input_tokens"] - digits for item in requests} == {40, 300}
    assert {item["output_tokens"] for item in requests} == {24}


def test_others_on_the_server_are_noticed() -> None:
    with serving() as server:
        client = Client(server.url, "m")

        def busy(line: str) -> None:
            server.prompt_tokens += 5000

        record = measure(client, QUICK, progress=busy)
    assert record["traffic"]["other_share"] > 0.2


# Servers that misbehave


@pytest.mark.parametrize(
    ("behaviour", "expected", "said"),
    [
        ({"wedged": True}, "fail", "timeout"),
        ({"trickles": True}, "fail", "timeout"),
        ({"garbage": True}, "fail", "garbage"),
        ({"status": 429}, "fail", "http_429"),
        ({"status": 500}, "fail", "http_500"),
        ({"drop_every": 50}, "fail", "dropped"),
        ({"fail_every": 20}, "fail", "http_500"),
        ({"usage": False}, "inconclusive", "no_usage"),
    ],
)
def test_each_misbehaviour_has_its_verdict_and_reason(
    behaviour: dict[str, Any], expected: str, said: str
) -> None:
    found = verdict(measured(**behaviour))
    assert found["verdict"] == expected
    assert said in found["reasons"][0]


def test_a_server_that_stops_answering_midway_fails() -> None:
    with serving() as server:
        client = Client(server.url, "m")

        def stop(line: str) -> None:
            server.behaviour.wedged = "round 1" in line or server.behaviour.wedged

        began = time.monotonic()
        record = measure(client, QUICK, progress=stop)
        assert time.monotonic() - began < QUICK.budget_s + GRACE_S
    assert verdict(record)["verdict"] == "fail"


def test_a_release_that_hangs_on_questions_does_not_lose_its_criterion() -> None:
    settings = Settings(**{**vars(QUICK), "budget_s": 2, "quality": True})
    with serving() as server:
        client = Client(server.url, "m")
        before = measure(client, settings)
        server.behaviour.mute = True
        after = measure(client, settings, like=before)
    asked = len(builtin())
    assert before["quality"] and after["quality"] == [] and after["quality_unanswered"] == asked
    (row,) = [item for item in verdict(after, before)["metrics"] if item["name"] == "quality_points"]
    assert (row["verdict"], row["decides"]) == ("inconclusive", True)
    assert verdict(after)["verdict"] == "inconclusive"


def test_a_server_that_is_wedged_from_the_first_round_on_fails_and_every_phase_says_why() -> None:
    with serving() as server:
        before = measure(Client(server.url, "m"), QUICK)

        def wedge(line: str) -> None:
            server.behaviour.wedged = "warm-up pass" in line or server.behaviour.wedged

        after = measure(Client(server.url, "m"), QUICK, progress=wedge, like=before)
    assert all(phase["requests"] and not phase["requests"][0]["ok"] for phase in after["phases"])
    assert after["phases"][1]["requests"][0]["kind"] == "not_asked" and after["phases"][1]["cut"]
    found = verdict(after, before)
    assert found["verdict"] == "fail", found["reasons"]
    assert next(row for row in found["metrics"] if row["name"] == "tokens_per_s")["verdict"] == "fail"


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_failure_before_the_warm_up_is_tried_again_and_counted(number: int) -> None:
    """The requests before the warm-up: which extensions there are, a first token, how fast, how many tokens a
    word has.
    """
    record = measured(fails=(number,))
    assert [item["kind"] for item in record["warm_up"]["errors"]] == ["http_500"]
    assert all(item["ok"] for phase in record["phases"] for item in phase["requests"])
    found = verdict(record)
    assert found["verdict"] == "fail" and "1 http_500" in found["reasons"][0]


def test_server_that_stops_answering_before_the_warm_up_gives_a_record_of_failures() -> None:
    record = measured(fails=tuple(range(3, 100)))
    assert {item["kind"] for phase in record["phases"] for item in phase["requests"]} == {"http_500"}
    assert verdict(record)["verdict"] == "fail"


def test_after_a_baseline_that_was_never_answered_a_plan_of_its_own_is_measured() -> None:
    before = measured(fails=tuple(range(3, 100)))
    assert "plan" not in before
    with serving(Behaviour()) as server:
        after = measure(Client(server.url, "m"), QUICK, like=before)
    found = verdict(after, before)
    assert found["verdict"] == "pass"
    assert any("the release before answered nothing" in reason for reason in found["reasons"])


def test_the_record_says_whether_the_warm_up_became_steady_and_keeps_all_of_its_errors() -> None:
    record = measured(Settings(**{**vars(QUICK), "budget_s": 3.0, "concurrency": (1, 48)}), fail_every=3)
    assert record["warm_up"]["steady"] in (True, False)
    failures = len(record["warm_up"]["errors"])
    assert failures > 20 and abs(failures - record["warm_up"]["requests"] / 3) <= 4


def test_nothing_listening_is_an_error_and_no_record() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(ProbeError, match="nothing was measured"):
        measure(Client(f"http://127.0.0.1:{port}", "m"), QUICK)


def test_a_refused_key_is_an_error_and_no_record() -> None:
    with serving(api_key="sesame") as server, pytest.raises(ProbeError, match="HTTP 401"):
        measure(Client(server.url, "m", api_key="wrong"), QUICK)


def test_prompts_of_a_round_that_was_cut_are_no_traffic_of_others() -> None:
    """A slow server may have read all of them by then, and answered none."""
    run = probe._Run(
        Client("http://127.0.0.1:9", "m"), QUICK, time.monotonic() + 1, print, lambda phases: False
    )
    short, long = (Request("p", ok=True, input_tokens=tokens) for tokens in (40, 700))
    run._know_prompts([short, long, Request("p", ok=False)])
    a, b = (load.Unfinished(name, 0.5) for name in "ab")
    cut = load.Round(1.0, requests=[], unfinished=[a, b], complete=False)
    assert run._input_tokens(cut) == 1400
    answered = load.Round(1.0, requests=[short], unfinished=[b], complete=False)
    assert run._input_tokens(answered) == 740
