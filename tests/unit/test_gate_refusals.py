"""Records and criteria that can't be judged by: each is refused, and what is wrong with it named."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
from bench_records import judge, phase, record

from pyinfra_vllm.on_host.bench.criteria import Criteria, CriteriaError
from pyinfra_vllm.on_host.state.values import RecordError

GOOD: dict[str, Any] = record(phase(1), phase(8))


MISSING = object()


def broken(path: list[Any], value: Any = MISSING) -> dict[str, Any]:
    damaged = copy.deepcopy(GOOD)
    place: Any = damaged
    for key in path[:-1]:
        place = place[key]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return damaged


REQUEST = ["phases", 1, "requests", 3]


@pytest.mark.parametrize(
    ("damaged", "named"),
    [
        ([], "after: not a benchmark record but list"),
        (broken(["schema"]), "after.schema is missing"),
        (broken(["schema"], "other/1"), "after.schema is 'other/1'"),
        (broken(["model"]), "after.model is missing"),
        (broken(["phases"]), "after.phases is missing"),
        (broken(["phases"], []), "after.phases is empty"),
        (broken(["phases", 0, "requests"], []), "after.phases[0] (c1).requests is empty"),
        (broken(["phases", 0, "duration_s"]), "after.phases[0] (c1).duration_s is missing"),
        (broken(["phases", 0, "duration_s"], 0), "after.phases[0] (c1).duration_s is 0"),
        (broken(["phases", 1, "name"], "c1"), "after.phases[1].name: 'c1' is there twice"),
        (broken([*REQUEST, "prompt"]), "after.phases[1] (c8).requests[3].prompt is missing"),
        (broken([*REQUEST, "ok"], "yes"), "after.phases[1] (c8).requests[3].ok must be true or false"),
        (broken([*REQUEST, "ttft_s"]), "after.phases[1] (c8).requests[3].ttft_s is missing"),
        (broken([*REQUEST, "ttft_s"], math.nan), "after.phases[1] (c8).requests[3].ttft_s is nan"),
        (broken([*REQUEST, "e2e_s"], math.inf), "after.phases[1] (c8).requests[3].e2e_s is inf"),
        (broken([*REQUEST, "e2e_s"], 0.001), "e2e_s is 0.001, less than its ttft_s"),
        (broken([*REQUEST, "e2e_s"], "1.2"), "e2e_s must be a number, not '1.2'"),
        (broken([*REQUEST, "output_tokens"], 0), "output_tokens is 0: an answer with zero tokens is not ok"),
        (
            broken([*REQUEST, "input_tokens"], 9),
            "mismatched prompts: 'p003' has 256 input tokens before and 9 after",
        ),
        (broken(["phases", 1]), "phase 'c8' is in the before record and not in the after record"),
        (broken(["quality"], [{"prompt": "q1"}]), "after.quality[0].passed is missing"),
    ],
)
def test_what_is_wrong_with_a_record_is_named(damaged: Any, named: str) -> None:
    with pytest.raises(RecordError) as error:
        judge(GOOD, damaged)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["traffic"], 3, "after.traffic must be a mapping, not 3"),
        (["traffic"], {"other_share": "x"}, "after.traffic.other_share must be a number, not 'x'"),
        (["traffic"], {"other_share": 1.5}, "after.traffic.other_share must be a share from 0 to 1"),
        (["client"], None, "after.client must be a mapping, not None"),
        (["client"], {"late_mean_s": [0.1]}, "after.client.late_mean_s must be a number"),
        (["warm_up"], 4, "after.warm_up must be a mapping, not 4"),
        (["warm_up"], {"requests": "9"}, "after.warm_up.requests must be a number"),
        (["warm_up"], {"errors": [7]}, "after.warm_up.errors[0] must be a mapping"),
        (["warm_up"], {"errors": [{"kind": ["a"]}]}, "after.warm_up.errors[0].kind must be text"),
        (["server"], "0.32", "after.server must be a mapping"),
        (["plan"], {"words": {}}, "after.plan.words is empty"),
        (["plan"], {"rounds": 0}, "after.plan.rounds must be a whole number of at least 1, not 0"),
        (["likelihood"], [{"text": "a"}], "after.likelihood[0].bits_per_byte is missing"),
        (["likelihood"], {"a": 1}, "after.likelihood must be a list"),
        (["spent_s"], "long", "after.spent_s must be a number"),
        (["model"], 7, "after.model must be text"),
        (["model"], "\ud800", "after.model must be text, not '\\ud800'"),
        (["phases", 0, "name"], "c1\nc2", "name must be text on one line, not 'c1\\nc2'"),
        (["evaluations"], {"a\nb": {"value": 1}}, "a name in after.evaluations must be text on one line"),
        (["quality"], [{"prompt": "q", "passed": True, "sane": "yes"}], "after.quality[0].sane must be true"),
        (["quality"], [{"prompt": "q", "passed": True, "error": 5}], "after.quality[0].error must be text"),
        ([*REQUEST, "round"], [1], "(c8).requests[3].round must be a number"),
        ([*REQUEST, "ttft_s"], 10**400, "requests[3].ttft_s is 1000"),
        (["phases", 0, "rounds"], 5, "(c1).rounds must be a list"),
        (["phases", 0, "rounds"], [{"round": 0}], "(c1).rounds[0].duration_s is missing"),
        (
            ["phases", 0, "rounds"],
            [{"round": 0, "duration_s": 0, "output_tokens": 5, "complete": True}],
            "(c1).rounds[0].duration_s is 0: a round takes time",
        ),
    ],
)
def test_a_known_key_of_the_wrong_type_is_named(path: list[Any], value: Any, said: str) -> None:
    with pytest.raises(RecordError) as error:
        judge(GOOD, broken(path, value))
    assert said in str(error.value) and len(str(error.value)) < 300


def test_mismatched_prompts_are_named_on_both_sides() -> None:
    after = copy.deepcopy(GOOD)
    after["phases"][0]["requests"][0]["prompt"] = "other"
    with pytest.raises(RecordError, match="mismatched prompts: 'p000' only before, 'other' only after"):
        judge(GOOD, after)


def test_unknown_keys_are_ignored() -> None:
    after = copy.deepcopy(GOOD)
    after["flavour"] = after["phases"][0]["colour"] = after["phases"][0]["requests"][0]["taste"] = "new"
    assert judge(GOOD, after)["verdict"] == "pass"


# Criteria


def test_criteria_come_back_from_their_own_values() -> None:
    criteria = Criteria(concurrency=(1, 32), min_tokens_per_s={"c32": 900.0}, quality_prompts="/q.jsonl")
    assert Criteria.from_dict(json.loads(json.dumps(criteria.as_dict()))) == criteria


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"budget": 3}, "unknown gate setting 'budget': did you mean 'budget_s'?"),
        ({"quality": 1}, "quality = 1 can't be used: allowed is true or false"),
        ({"concurrency": [0]}, "concurrency = (0,) can't be used"),
        ({"concurrency": [8, 8]}, "each number once"),
        ({"concurrency": [1, 1025]}, "whole numbers from 1 to 1024"),
        ({"prompt_tokens": 300}, "prompt_tokens = 300 can't be used: allowed is a list of whole numbers"),
        ({"prompt_tokens": []}, "one to 8 whole numbers of at least 1, or null"),
        ({"prompt_tokens": [300, 0]}, "one to 8 whole numbers of at least 1, or null"),
        ({"prompt_tokens": [300] * 9}, "one to 8 whole numbers of at least 1, or null"),
        ({"answer_tokens": 1}, "answer_tokens = 1 can't be used: allowed is a whole number of at least 2"),
        ({"min_tokens_per_s": 50}, "a mapping of names to numbers, such as {c1: 50}"),
        ({"min_tokens_per_s": {"c9": 1}}, "one of the phases c1, c8"),
        ({"throughput_margin": 5}, "a share from 0 up to 1 (0.05 is 5 %)"),
        ({"on_inconclusive": "maybe"}, "allowed is rollback or keep"),
        ({"budget_s": math.nan}, "a number"),
        ({"soak_s": -1}, "seconds from 0 to 604800"),
        ({"soak_max_errors": -1}, "a whole number of at least 0"),
        ({"min_evaluation": {1: 5}}, "a mapping of names to numbers"),
        ({"max_ttft_s": {"c1": 10**400}}, "a mapping of names to numbers"),
        ([], "must be a mapping"),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(values: Any, said: str) -> None:
    with pytest.raises(CriteriaError) as error:
        Criteria.from_dict(values)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"soak_s": math.inf},
        {"budget_s": math.inf},
        {"soak_stall_s": math.nan},
        {"max_gpu_memory_mib": -1},
        {"min_tokens_per_s": {"c1": math.inf}},
        {"max_evaluation_drop": {"a/b": math.nan}},
    ],
)
def test_a_limit_that_nothing_can_meet_or_miss_is_refused_however_it_came(values: Any) -> None:
    with pytest.raises(CriteriaError):
        Criteria(**values)
