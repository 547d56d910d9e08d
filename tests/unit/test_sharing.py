"""Who shares a checkpoint with whom, and what the control machine says to each host."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_vllm.checkpoint import Checkpoint, File, Lock
from pyinfra_vllm.config import Declared, Fleet
from pyinfra_vllm.config.models import Runtime, Service
from pyinfra_vllm.config.rollout import Sources, Swarm
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.on_host.inspect.checkpoints import Stored
from pyinfra_vllm.on_host.staging import pieces
from pyinfra_vllm.operations import checkpoint as checkpoints
from pyinfra_vllm.operations import share
from pyinfra_vllm.rollout.sharing import Member, Part, Sharing

TOTAL = 10 * pieces.SMALLEST_PIECE + 5
ROOT = "/srv/pyinfra-vllm"


def member(number: int, *, has: bool = False) -> Member:
    return Member(f"h{number}", f"10.0.0.{number}", 6881, has)


def sharing(*members: Member, from_hub: int = 3, total: int = TOTAL) -> Sharing:
    made = Sharing(total, from_hub)
    for one in members:
        assert made.join(one) == ""
        made.can(one.host, "/usr/bin/python3")
    return made


def hashes(made: Sharing, part: Part) -> str:
    begin, end = part
    return "ab" * 20 * pieces.count(end - begin, made.piece)


@given(
    has=st.lists(st.booleans(), max_size=20),
    able=st.lists(st.booleans(), min_size=20, max_size=20),
    from_hub=st.integers(1, 16),
    total=st.integers(1, 1 << 34),
    data=st.data(),
)
def test_sources_are_few_and_bring_everything_once(
    has: list[bool], able: list[bool], from_hub: int, total: int, data: st.DataObject
) -> None:
    made = Sharing(total, from_hub)
    for number, one in enumerate(has):
        made.join(member(number + 1, has=one))
        if able[number]:
            made.can(f"h{number + 1}", "python3")
    members = {one.host: one for one in made.able}
    lacks = [one for one in members.values() if not one.has]
    if len(members) < 2 or not lacks:
        assert made.sources == {} and made.hashes == ""
        return
    assert 1 <= len(made.sources) <= from_hub
    assert set(made.sources) <= set(members)
    if len(lacks) < len(members):
        assert all(members[host].has for host in made.sources), "nothing comes from the Hub"
    ends = [0, *(end for _, end in made.sources.values())]
    assert [begin for begin, _ in made.sources.values()] == ends[:-1] and ends[-1] == total
    assert not any(made.takes_part(host) for host in members)
    failing = set(data.draw(st.lists(st.sampled_from(sorted(made.sources)))))
    for host, part in made.sources.items():
        assert host in failing or made.bring(part, hashes(made, part))
    assert len(made.substitutes) == min(len(failing), len(members) - len(failing))
    assert not failing & set(made.substitutes)
    for part in made.substitutes.values():
        assert made.bring(part, hashes(made, part))
    if made.missing:
        assert made.hashes == "" and not any(made.takes_part(host) for host in members)
        return
    assert len(made.hashes) == 40 * pieces.count(total, made.piece)
    assert all(made.takes_part(host) for host in members)
    for host in members:
        others = {one.address for one in members.values() if one.host != host}
        assert {address for address, _ in made.peers(host)} == others


def test_two_hosts_of_one_address_do_not_share() -> None:
    made = sharing(member(1))
    twin = Member("h2", "10.0.0.1", 6881, False)
    assert made.join(twin) == "h1 has the same address, 10.0.0.1"
    assert made.join(member(1)) == "", "the same host again"


@pytest.mark.parametrize("nonsense", ["", "ab" * 20, "zz" * 20 * 11])
def test_invalid_hashes_are_refused(nonsense: str) -> None:
    made = sharing(member(1), member(2), from_hub=1)
    part = made.sources["h1"]
    assert not made.bring(part, nonsense)
    assert made.missing == (part,) and made.hashes == ""


class Units:
    """In the place of units on hosts: what each was told, and how it ends."""

    def __init__(self) -> None:
        self.told_to: list[tuple[str, dict[str, Any], dict[str, str], tuple[str, ...]]] = []
        self.fails: dict[str, str] = {}
        self.sharing: Sharing | None = None

    def __call__(self, host: Any, name: str, what: str, properties: tuple[str, ...] = ()) -> Any:
        def begin(root: str, verb: str, asks: dict[str, Any], **secret: str) -> None:
            assert (root, verb) == (ROOT, "fetch")
            self.told_to.append((host.name, asks, secret, properties))

        def follow() -> str:
            if host.name in self.fails:
                raise HostError(self.fails[host.name])
            return ""

        def run(*words: Any, **secret: str) -> str:
            begin(*words, **secret)
            part = words[2].get("part")
            if part and self.sharing:
                unit.told = {"pieces": hashes(self.sharing, (part["begin"], part["end"]))}
            return follow()

        unit = SimpleNamespace(begin=begin, follow=follow, run=run, told={})
        return unit


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> Units:
    made = Units()
    monkeypatch.setattr(share, "Unit", made)
    monkeypatch.setattr(checkpoints, "Unit", made)
    monkeypatch.setattr(checkpoints, "COMPLETED", set())
    monkeypatch.setattr(share, "COMPLETED", checkpoints.COMPLETED)
    for module in (share, checkpoints):
        monkeypatch.setattr(module, "token", lambda: "hf_secret")
    return made


def host(name: str) -> Any:
    return SimpleNamespace(name=name, print_prefix=f"[{name}] ", data={})


ASKS: dict[str, Any] = {
    "repo": "acme/tiny-awq",
    "commit": "0" * 40,
    "key": "tiny",
    "python": "/venv/bin/python",
    "files": [],
}


def carry_out(made: Sharing, names: list[str]) -> None:
    """The operations, each on all hosts before the next one begins."""
    for step in (share._fetch_part, share._fetch_part_again, share._begin, share._follow):
        for name in names:
            done = step(None, host(name), made, ROOT, ASKS)  # type: ignore[arg-type]
            assert done is True, "no host fails for it"


def test_few_get_the_token_and_all_are_told_of_each_other(units: Units) -> None:
    made = units.sharing = sharing(*(member(number) for number in range(1, 6)), from_hub=2)
    carry_out(made, ["h1", "h2", "h3", "h4", "h5"])
    parts = [(name, asks["part"], secret) for name, asks, secret, _ in units.told_to if "part" in asks]
    assert [(name, secret) for name, _, secret in parts] == [
        ("h1", {"hub_token": "hf_secret"}),
        ("h2", {"hub_token": "hf_secret"}),
    ]
    assert parts[0][1]["end"] == parts[1][1]["begin"] and parts[1][1]["end"] == TOTAL
    shared = [item for item in units.told_to if "swarm" in item[1]]
    assert [name for name, *_ in shared] == ["h1", "h2", "h3", "h4", "h5"]
    for name, asks, secret, properties in shared:
        assert secret == {}
        assert asks["swarm"]["hashes"] == made.hashes
        assert len(asks["swarm"]["peers"]) == 4
        assert "IPAddressDeny=any" in properties
        assert f"RuntimeMaxSec={3600 + TOTAL // (256 << 10)}" in properties, "whatever happens there"
        allowed = next(line for line in properties if line.startswith("IPAddressAllow="))
        assert sorted(allowed.removeprefix("IPAddressAllow=").split()) == [f"10.0.0.{n}" for n in range(1, 6)]
        assert name not in str(asks)
    assert checkpoints.fetch(None, host("h3"), ROOT, ASKS) is True  # type: ignore[arg-type]
    assert len(units.told_to) == 2 + 5, "who has it all asks no Hub, and gets no token"


def test_hosts_that_have_it_are_the_sources_and_get_no_token(units: Units) -> None:
    made = units.sharing = sharing(member(1), member(2, has=True), member(3))
    carry_out(made, ["h1", "h2", "h3"])
    ((name, _, secret),) = [(name, asks, secret) for name, asks, secret, _ in units.told_to if "part" in asks]
    assert (name, secret) == ("h2", {})


def test_part_of_a_source_that_fails_is_fetched_by_another(
    units: Units, caplog: pytest.LogCaptureFixture
) -> None:
    made = units.sharing = sharing(member(1), member(2), member(3), from_hub=2)
    units.fails["h1"] = "the disk is full"
    with caplog.at_level("INFO"):
        carry_out(made, ["h1", "h2", "h3"])
    fetched = [(name, asks["part"]["begin"]) for name, asks, *_ in units.told_to if "part" in asks]
    assert fetched == [("h1", 0), ("h2", made.sources["h2"][0]), ("h2", 0)]
    assert [name for name, asks, *_ in units.told_to if "swarm" in asks] == ["h1", "h2", "h3"]
    assert "has not its part of acme/tiny-awq at 000000000000: the disk is full" in caplog.text


def test_part_that_nobody_can_fetch_leaves_all_to_the_hub(
    units: Units, caplog: pytest.LogCaptureFixture
) -> None:
    made = units.sharing = sharing(member(1), member(2), member(3), from_hub=1)
    units.fails = {"h1": "the disk is full", "h2": "the Hub is away"}
    with caplog.at_level("INFO"):
        carry_out(made, ["h1", "h2", "h3"])
    assert not [item for item in units.told_to if "swarm" in item[1]]
    assert "is not shared: a part of it could not be fetched on any host" in caplog.text
    units.fails.clear()
    assert checkpoints.fetch(None, host("h3"), ROOT, ASKS) is True  # type: ignore[arg-type]
    assert units.told_to[-1][2] == {"hub_token": "hf_secret"}


def test_host_that_gets_not_all_asks_the_hub(units: Units, caplog: pytest.LogCaptureFixture) -> None:
    made = units.sharing = sharing(member(1, has=True), member(2))
    units.fails["h2"] = "not all of it came"
    with caplog.at_level("INFO"):
        carry_out(made, ["h1", "h2"])
    assert "is not complete: not all of it came. The Hub is asked for the rest." in caplog.text
    assert {("h1", "tiny")} == checkpoints.COMPLETED


def test_nobody_is_asked_where_all_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Sharing(TOTAL, 3)
    made.join(member(1, has=True))
    made.join(member(2, has=True))
    monkeypatch.setattr(share, "Remote", None)
    for name in ("h1", "h2"):
        assert share._ask(None, host(name), made, ROOT, ASKS)  # type: ignore[arg-type]
    assert made.sources == {}


@pytest.mark.parametrize(
    "told, said", [({"python": None}, "has libtorrent"), (HostError("away"), "does not share acme/x: away")]
)
def test_host_without_libtorrent_is_said(
    told: Any, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def json(*words: Any, **options: Any) -> Any:
        if isinstance(told, Exception):
            raise told
        return told

    monkeypatch.setattr(share, "Remote", lambda host: SimpleNamespace(json=json))
    made = Sharing(TOTAL, 3)
    made.join(member(1))
    with caplog.at_level("INFO"):
        assert share._ask(None, host("h1"), made, ROOT, {**ASKS, "repo": "acme/x"})  # type: ignore[arg-type]
    assert said in caplog.text
    assert made.able == ()


@pytest.mark.parametrize(
    "name, declared, expected",
    [
        ("10.1.2.3", None, ("10.1.2.3", "")),
        ("127.0.0.1", None, ("", "127.0.0.1 is 127.0.0.1 here; declare sources.swarm.address")),
        ("127.0.0.1", "10.9.9.9", ("10.9.9.9", "")),
        ("gpu-1.invalid", None, ("", "the address of gpu-1.invalid is not known here; declare")),
    ],
)
def test_address_is_that_of_ssh_or_the_declared_one(
    name: str, declared: str | None, expected: tuple[str, str]
) -> None:
    found, problem = share._address(host(name), Swarm(address=declared))
    assert found == expected[0]
    assert problem.startswith(expected[1]) and bool(problem) == bool(expected[1])


def locked(repo: str, revision: str = "main", commit: str = "1" * 40) -> Checkpoint:
    files = (File(path="model.safetensors", size=TOTAL, sha256="0" * 64),)
    return Checkpoint(repo=repo, revision=revision, commit=commit, files=files)


def service(name: str, model: str, revision: str = "main") -> Service:
    vllm = Runtime(version="0.33.0")
    return Service(name=name, model=model, revision=revision, runtime=vllm, port=8000)


def test_all_have_joined_before_anybody_asks_who_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `-y` a host is prepared and its commands run while others aren't prepared yet."""
    hosts = {
        name: Declared(name, (service("chat", "a/chat"),), sources=Sources(swarm=Swarm(address=address)))
        for name, address in (("h1", "10.0.0.1"), ("h2", "10.0.0.2"))
    }
    chat = locked("a/chat")
    fleet = Fleet(hosts, lock=Lock([chat]))
    files = {file.path: [file.sha256 or ""] for file in chat.files}
    stored = Stored(chat.directory(hosts["h1"].root), chat.name, chat.commit, "complete", [], 1, [], files)
    here = {"h1": [stored], "h2": []}
    monkeypatch.setattr(share, "_sharings", {})
    monkeypatch.setattr(share, "state", SimpleNamespace(is_executing=True))
    monkeypatch.setattr(share, "asked", lambda host, *_, **__: here[host.name])
    monkeypatch.setattr(
        share, "Remote", lambda host: SimpleNamespace(json=lambda *_, **__: {"python": "/usr/bin/python3"})
    )
    (join, _), (ask, _), *_ = share.STEPS
    for step in (join, ask):
        for name in hosts:
            monkeypatch.setattr(share, "host", host(name))
            for command in step._inner(fleet, chat):
                command.function(None, host(name), *command.args)
    (made,) = share._sharings.values()
    assert [member.host for member in made.able] == ["h1", "h2"] and made.worthwhile


def test_what_more_than_one_host_of_the_run_may_share() -> None:
    on, off = Sources(swarm=Swarm()), Sources()
    chat, same = service("chat", "a/chat"), service("other", "a/chat", "v1")
    alone, code = service("alone", "a/alone"), service("code", "a/code")
    hosts = {
        "h1": Declared("h1", (chat, alone), sources=on),
        "h2": Declared("h2", (same,), sources=on),
        "h3": Declared("h3", (code,), sources=on),
        "h4": Declared("h4", (code,), sources=off),
    }
    chats = [locked("a/chat"), locked("a/chat", "v1")]
    lock = Lock([*chats, locked("a/alone", commit="2" * 40), locked("a/code", commit="3" * 40)])
    fleet = Fleet(hosts, lock=lock)
    assert [item.repo for item in fleet.shared] == ["a/chat"], "one commit, whatever it is called"
    assert fleet.served_by("h2", fleet.shared[0]) == same
    assert fleet.served_by("h3", fleet.shared[0]) is None
    assert Fleet(hosts, lock=lock, selected=("h1", "h3", "h4")).shared == ()
    assert hosts["h1"].users == ("vllm", "vllm-peer") and hosts["h4"].users == ("vllm",)


def test_shared_is_not_verified_where_every_byte_is_to_be_read(units: Units) -> None:
    """A host that had it before the run has shared it by its manifest alone."""
    checkpoints.COMPLETED.add(("h1", "tiny"))
    for verify in (False, True):
        assert checkpoints.fetch(None, host("h1"), ROOT, {**ASKS, "verify": verify})  # type: ignore[arg-type]
    assert [asks["verify"] for _, asks, _, _ in units.told_to] == [True]
