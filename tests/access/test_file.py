"""The policy file: what each key comes to, what is inherited, and every way of writing it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.access.file import load_policy, parse_policy
from runtime.access.units import parse_bytes, parse_seconds
from runtime.errors import PolicyError
from runtime.identity import Identity, Role
from runtime.policy import (
    ALL,
    NETWORK_QUOTA,
    NETWORK_RIGHTS,
    NOTHING,
    Needs,
    Quota,
    Selection,
    network_policy,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "policy.toml"

WHOLE = """
[worker]
peers = ["alice", "secure"]
deny = ["mallory"]

[default]
search = ["#public*"]
use = false
move = false

[default.quota]
bytes = "1 MiB"
seconds = "1 h"

[client.ann]
use = true
run = ["#xrays"]
fetch = false
send = false
move = ["alice"]
approval = "always"
quota = { run_seconds = "90 s", message_bytes = "unlimited", plan_nodes = 10, concurrent_runs = 1, plans = 2 }

[client."bob smith"]
approval = "never"
"""


def test_every_key() -> None:
    policy = parse_policy(WHOLE)
    assert policy.peers == {"alice", "secure"}
    assert policy.denied == {"mallory"}
    default = policy.default
    assert (default.search, default.use, default.run) == (Selection(tags=("#public*",)), NOTHING, ALL)
    assert default.quota.bytes == 2**20
    assert default.quota.seconds == 3600
    assert default.needs is Needs.PRIVATE
    ann = policy.rights(Identity("ann"))
    assert (ann.use, ann.run, ann.fetch, ann.send) == (ALL, Selection(tags=("#xrays",)), NOTHING, False)
    assert (ann.move, ann.needs) == ({"alice"}, Needs.ALWAYS)
    quota = ann.quota
    assert (quota.run_seconds, quota.message_bytes, quota.plan_nodes) == (90, None, 10)
    assert (quota.concurrent_runs, quota.plans) == (1, 2)


def test_a_client_has_what_the_default_says_where_its_section_does_not() -> None:
    policy = parse_policy(WHOLE)
    ann, bob = policy.rights(Identity("ann")), policy.rights(Identity("bob smith"))
    assert ann.search == bob.search == policy.default.search
    assert ann.quota.bytes == 2**20  # of [default.quota], though it has a quota of its own
    assert bob.use == NOTHING
    assert bob.needs is Needs.NEVER
    assert policy.rights(Identity("nobody")) == policy.default


def test_an_empty_file_is_the_policy_of_a_worker_without_one() -> None:
    assert parse_policy("") == network_policy()
    assert network_policy().default == NETWORK_RIGHTS
    assert network_policy().peers == frozenset()
    assert NETWORK_QUOTA.bytes is not None


def test_roles_have_rights_of_their_own() -> None:
    policy = parse_policy("[client.alice]\nsend = false")
    peer = policy.rights(Identity("alice", Role.WORKER))
    assert peer.send
    assert not peer.fetch.anything
    owner = policy.rights(Identity("alice", Role.OWNER))
    assert owner.fetch == ALL
    assert owner.quota.bytes is None


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[default\n", 1, "not TOML"),
        ("[defaults]\n", 1, "defaults: this key is not known: did you mean 'default'?"),
        ("[default]\nserch = true", 2, "default.serch: this key is not known: did you mean 'search'?"),
        ("[client.ann]\nquotas = 1", 2, "client.ann.quotas: this key is not known: did you mean 'quota'?"),
        ("[client.ann.quota]\nbyte = 1", 2, "did you mean 'bytes'?"),
        ("[client.ann.quota]\nzzz = 1", 2, "known are 'bytes', 'seconds'"),
        ("[worker]\npeer = []", 2, "did you mean 'peers'?"),
        ("clients = 1", 1, "did you mean 'client'?"),
        ("client = 1", 1, "client: expected a section [client], got 1"),
        ("\n\n[client]\nann = true", 4, "client.ann: expected a section [client.ann], got true"),
        ("[default]\nsearch = 'yes'", 2, "expected true, false or a list of tags, got 'yes'"),
        ("[default]\nsearch = [1]", 2, "expected tags of 1 to 256 characters, got 1 among them"),
        ("[default]\nuse = ['']", 2, "got '' among them"),
        ("[default]\nsend = ['#x']", 2, "default.send: expected true or false"),
        ("[default]\nmove = 'alice'", 2, "expected a list of names, got 'alice'"),
        ("[default]\nmove = ['alice']", 2, "'alice' must be among worker.peers too"),
        ("[default]\napproval = 'allways'", 2, "'private', 'always', got 'allways': did you mean 'always'?"),
        ("[default]\napproval = true", 2, "got true"),
        ("[worker]\ndeny = 'x'", 2, "worker.deny: expected a list of names"),
        ("[worker]\ndeny = ['x']\n[client.x]\nsend = true", 3, "client.x: a client that worker.deny names"),
        ("[default.quota]\nbytes = 5", 2, "expected a text with a unit such as '2 GiB'"),
        ("[default.quota]\nbytes = '2 GB/s'", 2, "expected bytes such as '2 GiB', got '2 GB/s'"),
        ("[default.quota]\nbytes = '2 Gib'", 2, "the unit 'Gib' is not known (did you mean 'GiB'"),
        ("[default.quota]\nbytes = '2'", 2, "the unit is missing"),
        ("[default.quota]\nseconds = '10 mins'", 2, "(did you mean 'min'"),
        ("[default.quota]\nseconds = 10", 2, "such as '10 min'"),
        ("[default.quota]\nplans = '3'", 2, "expected a whole number, or 'unlimited', got '3'"),
        ("[default.quota]\nplans = true", 2, "got true"),
        ("[default.quota]\nplans = -1", 2, "got -1"),
        ("[default]\nquota = { plans = 1.5 }", 2, "default.quota.plans: expected a whole number"),
        ("default.quota.plans = 1.5", 1, "default.quota.plans"),
    ],
)
def test_what_is_wrong_is_said_with_file_line_and_key(text: str, line: int, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "my.toml")
    message = str(caught.value)
    assert message.startswith("my.toml")
    assert said in message
    assert f"line {line}" in message


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(tmp_path / "none.toml")
    path = tmp_path / "policy.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(PolicyError, match="UTF-8"):
        load_policy(path)
    path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(PolicyError, match="larger"):
        load_policy(path)


def test_amounts() -> None:
    assert parse_bytes("2 GiB") == 2 * 2**30
    assert parse_bytes("0.5kB") == 500
    assert parse_bytes(" 7 B ") == 7
    assert parse_seconds("10 min") == 600
    assert parse_seconds("250ms") == 0.25
    for text in ("", "GiB", "-1 GiB", "1e3 B", "١ B", "999999999999999 TiB", "nan s", "1 GiB 2"):
        with pytest.raises(ValueError, match="expected"):
            parse_bytes(text)


def test_the_example_is_a_policy_and_says_every_key() -> None:
    policy = load_policy(EXAMPLE)
    assert policy.clients
    text = EXAMPLE.read_text(encoding="utf-8")
    for key in (
        *("peers", "deny", "search", "use", "run", "fetch", "send", "move", "approval"),
        *("bytes", "seconds", "run_seconds", "message_bytes", "plan_nodes", "concurrent_runs", "plans"),
    ):
        assert f"\n{key} = " in text, key


def test_the_documented_policy_is_one_and_its_tables_have_every_key() -> None:
    page = (EXAMPLE.parents[1] / "docs" / "network.md").read_text(encoding="utf-8")
    section = page[page.index("\n## Policy\n") : page.index("\n## Approval\n")]
    policy = parse_policy(section[section.index("```toml\n") + 8 :].split("```")[0])
    ann = policy.rights(Identity("ann"))
    assert (ann.use, ann.quota.run_seconds) == (Selection(tags=()), 3600)
    for key in ("search", "use", "run", "fetch", "send", "move", "approval"):
        assert f"\n| `{key}` | " in section
    for quota in Quota.__dataclass_fields__:
        assert f"\n| `{quota}` | " in section


def test_the_example_says_the_defaults() -> None:
    assert load_policy(EXAMPLE).default == NETWORK_RIGHTS


@pytest.mark.parametrize("text", [f"a = {'[' * 100_000}", f"[default.quota]\nbytes = {'1' * 5000}"])
def test_what_python_itself_would_not_read_is_an_error_of_the_file(text: str) -> None:
    with pytest.raises(PolicyError, match="this is not TOML"):
        parse_policy(text)
