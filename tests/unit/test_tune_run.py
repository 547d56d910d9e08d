"""`pyinfra-vllm tune`: whom it asks, what it prints and writes, its page and its exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from test_space import pruned
from test_tune_command import CHAT, CONFIG, MODEL
from test_tuned import H200, done, journal

from pyinfra_vllm import cli
from pyinfra_vllm.checkpoint import Checkpoint, File, Lock
from pyinfra_vllm.config import profiles as files
from pyinfra_vllm.errors import DeclarationError, HostError
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.operations import tuning
from pyinfra_vllm.operations.tuning import Found
from pyinfra_vllm.report import plots
from pyinfra_vllm.report import tuning as pages
from pyinfra_vllm.report.plots import Place
from pyinfra_vllm.tuning import night
from pyinfra_vllm.tuning.night import Line, Setup
from pyinfra_vllm.tuning.pareto import Slo
from pyinfra_vllm.tuning.search import Done, Trial

EVIL = "\"'><script>alert(1)</script><img src=x>"
SPACE = pruned()
SETUP = Setup("chat", "a" * 12, "latency", Slo(), {"humming": "kernel"}, Criteria().as_dict())
WON = Found(H200, SETUP, SPACE, journal(), None, done(), night.speeds_of(journal()))
NOTHING = Done(None, None, None, "nothing was better than the current configuration")
LATE = "the window closes at 05:00 CET, and a trial takes up to 24 min, its way back included"
WAITS = replace(
    WON, lines=journal()[:2], step=Trial("marlin", 0, 20.0), done=None, status="deferred", why=LATE
)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One host that is this machine, with one service, and another."""
    monkeypatch.chdir(tmp_path)
    Path("group_data").mkdir()
    Path("hosts.py").write_text("one = ['@local']\nothers = ['gpu-2.invalid']\n")
    declare("one", chat=CHAT)
    declare("others", chat=CHAT)
    file = File(path="model.safetensors", size=19_300_000_000, sha256="c" * 64)
    Lock([Checkpoint(repo=MODEL, revision="main", commit="a" * 40, files=(file,), config=CONFIG)]).dump()


def declare(group: str, **services: Any) -> None:
    Path(f"group_data/{group}.py").write_text(f"services = {services!r}\n")


class Answering:
    """Stands for the host's side."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.answer: Found | Exception = WON
        answering = self

        class Tuning:
            def __init__(self, host: Any, declared: Any, service: Any, *more: Any) -> None:
                self.about = (host.name, service.name)

            def run(self, anew: bool) -> Found:
                return answering.told("run", *self.about, anew)

            def look(self, anew: bool) -> Found:
                return answering.told("look", *self.about, anew)

        monkeypatch.setattr(tuning, "Tuning", Tuning)

    def told(self, *what: Any) -> Found:
        self.asked.append(what)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Answering:
    return Answering(monkeypatch)


def tune(*words: str, limit: Sequence[str] = ("--limit", "one")) -> tuple[int, str]:
    ran = CliRunner().invoke(cli.cli, ["tune", "hosts.py", *limit, *words], standalone_mode=False)
    if ran.exception:
        raise ran.exception
    return ran.return_value, ran.stdout


def test_a_winner_is_written_and_said(host: Answering) -> None:
    code, said = tune()
    assert code == 0 and host.asked == [("run", "@local", "chat", False)]
    path = "profiles/NVIDIA-H200--Qwen--Qwen3-32B-AWQ--0.25.1.yaml"
    assert f"Written: {path}. Commit it" in said
    assert "Done: humming: 1.197 times the current configuration" in said
    assert "On the Pareto front: " in said
    (found,) = files.own()
    assert found.file == path
    assert found.objectives["latency"].flags == SPACE.settings(SPACE.candidate("humming")).flags


def test_json_has_all_of_it(host: Answering) -> None:
    found = json.loads(tune("--json")[1])
    assert (found["status"], found["winner"], found["next"]) == ("done", "humming", None)
    assert found["ratio"] == pytest.approx(1.1975, abs=1e-3) and len(found["interval"]) == 2
    assert {"humming", "current configuration"} <= {*found["front"]["on"], *found["front"]["behind"]}
    assert found["results"] == night.results(journal())
    assert found["candidates"]["humming"] == "--linear-backend humming"
    assert found["profile"].startswith("profiles/") and found["page"] is None


def test_json_of_a_host_that_could_not_be_asked_has_the_same_keys(host: Answering) -> None:
    whole = json.loads(tune("--json")[1])
    host.answer = HostError("roll that out first")
    found = json.loads(tune("--json")[1])
    assert list(found) == list(whole) and list(found["front"]) == list(whole["front"])
    known = {key: value for key, value in found.items() if key not in ("host", "service", "status", "why")}
    assert not any(known.pop("front").values()) and not any(known.values())
    assert {type(found[key]) for key in ("results", "ruled_out")} == {list}


def test_journal_of_which_no_profile_can_be_made_is_said(host: Answering) -> None:
    damaged = [{**line, "workload": {"input_tokens": "many"}} for line in journal()]
    host.answer = replace(WON, lines=damaged)
    with pytest.raises(DeclarationError, match="makes no profile"):
        tune()


def test_nothing_better_is_done_and_writes_nothing(host: Answering) -> None:
    host.answer = replace(WON, done=NOTHING)
    code, said = tune()
    assert code == 0 and "Done: nothing was better" in said and not Path("profiles").exists()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (WAITS, 4, f"deferred: {LATE}"),
        (replace(WAITS, status="stopped", why="marlin: refused: held"), 1, "stopped: marlin: refused: held"),
        (HostError("roll that out first"), 1, "failed: roll that out first"),
    ],
)
def test_exit_codes(host: Answering, answer: Any, code: int, said: str) -> None:
    host.answer = answer
    assert (tune()[0], said in tune()[1]) == (code, True)
    found = json.loads(tune("--json")[1])
    assert said.startswith(found["status"]) and found["why"] in said
    assert not Path("profiles").exists()


def test_dry_only_looks(host: Answering) -> None:
    host.answer = replace(WAITS, status="", why="")
    code, said = tune("--dry")
    assert code == 0 and host.asked == [("look", "@local", "chat", False)]
    assert "Next: marlin, look 1, 20 seconds" in said and "could begin now" in said
    assert "Would try humming: --linear-backend humming" in said
    assert "Not tried: marlin: comes to the same as the current configuration" in said
    host.answer = WON
    tune("--dry")
    assert not Path("profiles").exists()
    assert json.loads(tune("--dry", "--json")[1])["profile"] is None


def test_anew_reaches_the_host(host: Answering) -> None:
    tune("--anew")
    assert host.asked == [("run", "@local", "chat", True)]


def test_one_service_of_one_host(host: Answering) -> None:
    with pytest.raises(DeclarationError, match=r"hosts\.py means @local, gpu-2\.invalid: one host at a time"):
        tune(limit=())
    declare("one", chat=CHAT, other={**CHAT, "port": 8001, "gpus": [1]})
    with pytest.raises(DeclarationError, match="has chat, other: name one by --service"):
        tune()
    assert host.asked == []
    tune("--service", "other")
    assert host.asked == [("run", "@local", "other", False)]


# The page


def page(found: pages.Tuned) -> str:
    return pages.render(found, datetime(2026, 11, 30, 6, tzinfo=UTC), UTC)


def told(lines: Sequence[Line], end: Done | None, **more: Any) -> pages.Tuned:
    made: dict[str, Any] = {
        "host": "gpu-1", "place": H200, "slo": Slo(), "changes": {"humming": "--linear-backend humming"},
        "ruled_out": SPACE.ruled_out, "lines": lines, "done": end,
    }  # fmt: skip
    return pages.Tuned(**{**made, **more})


def test_page_is_written(host: Answering) -> None:
    code, said = tune("--out", "pages")
    assert code == 0 and "Page: pages/tuning.html" in said
    text = Path("pages/tuning.html").read_text()
    assert "humming is 1.197 times the current configuration" in text
    assert "://" not in text, "it loads nothing"


def test_folder_that_can_t_be_written_is_said(host: Answering) -> None:
    Path("file").write_text("")
    with pytest.raises(DeclarationError, match="--out file/pages can't be written to"):
        tune("--out", "file/pages")
    assert host.asked == []


def test_page_has_what_was_tried_its_proof_and_its_costs() -> None:
    text = page(told(journal(), done()))
    table = re.sub(r"<[^>]+>|\s+", " ", text.partition("<tbody>")[2].partition("</tbody>")[0])
    assert re.search(r"humming +--linear-backend humming +1\.300 +1\.210", table)
    assert "did not start: out of memory" in table and "c64 is worse" in table
    assert "1.190, 1.200, 1.195, 1.205" in text
    costs = text.partition("What it costs elsewhere")[2].partition("</ul>")[0]
    assert "c64 first token" in costs and "c64 tokens/s" in costs and "c1 tokens/s" not in costs
    assert "comes to the same as the current configuration" in text


def test_page_of_a_search_that_goes_on() -> None:
    text = page(told(journal()[:3], None, waits="next is marlin, look 2"))
    assert "The search goes on: next is marlin, look 2" in text
    assert "Proof" not in text and "Pareto front" in text
    assert "Nothing was tried yet" in page(told(journal()[:1], None))


def test_text_of_the_journal_is_escaped() -> None:
    lines = [*journal(), {"trial": EVIL, "rung": 0, "failed": EVIL}]
    text = page(told(lines, done(), changes={EVIL: EVIL}, host=EVIL))
    assert "<script" not in text and "<img" not in text


def test_damaged_result_is_said() -> None:
    with pytest.raises(night.Damaged):
        page(told([*journal(), {"trial": "x", "rung": 0, "ratio": 1.0, "after": [{}]}], done()))


PLACES = st.builds(
    Place, st.text(max_size=8), st.floats(0.001, 100), st.floats(0.1, 1e5),
    st.sampled_from(["on", "behind", "missed", "current"]), st.text(max_size=8),
)  # fmt: skip


@given(st.lists(PLACES, max_size=12), st.none() | st.floats(0.001, 100))
def test_any_places_make_a_picture_that_stays_in_its_frame(places: list[Place], most: float | None) -> None:
    svg = plots.pareto("first token, seconds", "tokens/s", places, most)
    if not places:
        assert svg == ""
        return
    picture = ElementTree.fromstring(svg)
    dots = picture.findall(".//circle")
    assert len(dots) == len(places)
    assert all(plots.LEFT - 1 <= float(dot.get("cx", "-9")) <= plots.WIDTH for dot in dots)
    assert all(0 <= float(dot.get("cy", "-9")) <= plots.PARETO for dot in dots)
    assert bool(picture.findall(".//path[@class='limit']")) == (most is not None)
