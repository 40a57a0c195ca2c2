"""`planc certs`: what it prints and writes, and what it says when something is missing."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from planc.cli import app
from planc.cli.certs import EXTRA
from runtime.identity import Identity, Role
from runtime.security.credentials import load_pair
from runtime.security.tokens import TokenStore, check_token


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def planc(*args: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["certs", *args], prog_name="planc")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def dateless(text: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "DATE", text)


def test_from_nothing_to_certificates() -> None:
    assert dateless(planc("init", "--name", "north", "--days", "400").stdout) == (
        "made the authority 'north', valid until DATE\n"
        "  certs/ca.pem  give it to everyone who takes part\n"
        "  certs/ca.key  keep it: whoever has it can make a certificate of any name\n"
    )
    hosts = ("--host", "data.example.org", "--host", "10.0.0.5")
    assert dateless(planc("issue", "worker", "bob", *hosts).stdout) == (
        "issued worker bob, valid until DATE\n"
        "reached at data.example.org, 10.0.0.5\n"
        "give worker bob, and nobody else the key:\n"
        "  certs/worker-bob.pem\n"
        "  certs/worker-bob.key\n"
        "  certs/ca.pem\n"
    )
    assert dateless(planc("issue", "client", "ann", "--days", "5").stdout) == (
        "issued client ann, valid until DATE\n"
        "give client ann, and nobody else the key:\n"
        "  certs/client-ann.pem\n"
        "  certs/client-ann.key\n"
        "  certs/ca.pem\n"
    )
    renewed = planc("issue", "worker", "bob", "--renew").stdout
    assert "renewed worker bob" in renewed
    assert "reached at data.example.org, 10.0.0.5" in renewed
    assert "worker-bob.key" not in renewed
    pair = load_pair(Path("certs/worker-bob.pem"), Path("certs/worker-bob.key"))
    assert pair.identity == Identity("bob", Role.WORKER)


def test_show_says_whose_for_what_and_until_when() -> None:
    planc("init", "--dir", "x/y")
    planc("issue", "worker", "bob", "--dir", "x/y")
    shown = planc("show", "x/y/worker-bob.pem").stdout
    for line in ("name:        bob", "role:        worker", "hosts:       localhost, 127.0.0.1, ::1"):
        assert line in shown.splitlines()
    assert re.search(r"^until:       \d{4}-\d\d-\d\dT", shown, re.MULTILINE)
    assert re.search(r"^now:         valid$", shown, re.MULTILINE)
    found = json.loads(planc("show", "x/y/worker-bob.pem", "--json").stdout)
    assert re.fullmatch(r"[0-9a-f]{64}", found["sha256"])
    assert found["hosts"] == ["localhost", "127.0.0.1", "::1"]
    assert "role:        authority" in planc("show", "x/y/ca.pem").stdout


def test_show_shows_no_key() -> None:
    planc("init")
    result = planc("show", "certs/ca.key", code=1)
    assert result.stdout == ""
    assert result.stderr == (
        "error: certs/ca.key: expected a certificate (PEM or DER), found a private key\n"
    )


def test_a_token_is_printed_once() -> None:
    made = planc("token", "ann")
    token = made.stdout.strip()
    assert made.stdout.count("\n") == 1
    assert token not in made.stderr
    store = TokenStore(Path("certs/tokens.json"))
    assert check_token(store, token) == Identity("ann", Role.CLIENT)
    planc("token", "ann", "--days", "3")
    listed = planc("tokens")
    assert [line.split()[1] for line in listed.stdout.splitlines()] == ["ann", "ann"]
    assert "until revoked" in listed.stdout
    assert token[22:] not in listed.output
    assert planc("revoke-token", "ann", "--id", token[6:22]).stdout == "revoked 1 token of client ann\n"
    assert check_token(store, token) is None
    planc("token", "ann")
    assert planc("revoke-token", "ann").stdout == "revoked 2 tokens of client ann\n"
    assert planc("tokens").stdout == ""


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (
            ["issue", "client", "ann"],
            1,
            "certs/ca.pem: no such file; make an authority with `planc certs init",
        ),
        (["issue", "client", "a/b"], 1, "no such file"),
        (["show", "none.pem"], 1, "none.pem: no such file; expected a certificate"),
        (["tokens"], 1, "certs/tokens.json: no such file"),
        (["revoke-token", "ann"], 1, "certs/tokens.json: no such file"),
        (["token", "a b"], 1, "'a b' cannot be a name"),
        (["init", "--days", "0"], 2, "--days"),
        (["issue", "owner", "me"], 2, "No such command 'owner'"),
    ],
)
def test_mistakes(args: list[str], code: int, text: str) -> None:
    assert text in planc(*args, code=code).stderr


def test_an_authority_is_never_made_twice() -> None:
    planc("init")
    key = Path("certs/ca.key").read_bytes()
    assert "is there already, and is not overwritten" in planc("init", code=1).stderr
    assert Path("certs/ca.key").read_bytes() == key


@pytest.mark.parametrize("args", [["init"], ["issue", "client", "ann"], ["show", "x"], ["token", "ann"]])
def test_without_the_extra_it_says_which_is_missing(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "cryptography" or "runtime.security" in n]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    # Python's own message for a module that is barred has the name; so has the one for a missing module.
    assert planc(*args, code=1).stderr == f"error: {EXTRA}\n"
    assert not Path("certs").exists()


def test_the_other_commands_need_no_network() -> None:
    """Neither planc nor runtime imports what only the network extra brings."""
    program = (
        "import sys, planc.cli, runtime\n"
        "print(sorted({n.split('.')[0] for n in sys.modules} & {'grpc', 'cryptography'}))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "[]\n"


def test_the_page_is_true() -> None:
    """docs/network.md: its commands run in order and print what it says, but for times and keys."""
    page = (Path(__file__).parents[2] / "docs" / "network.md").read_text(encoding="utf-8")
    section = page.split("\n## Certificates and tokens\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```console\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    told = "".join(blocks)
    commands = re.findall(r"^\$ (.*)$", told, re.MULTILINE)
    ran = "".join(f"$ {line}\n{planc(*shlex.split(line)[2:]).output}" for line in commands)
    assert len(commands) == 7
    assert _masked(ran) == _masked(told)


def _masked(text: str) -> str:
    """Without what differs from run to run."""
    text = re.sub(r"planc_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", "TOKEN", dateless(text))
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", "TIME", text)
    return re.sub(r"\b[0-9a-f]{16,}\b", "HEX", text)
