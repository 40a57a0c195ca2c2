"""Settings that do not fit, or would let strangers in, are refused in words that say what to do instead."""

from __future__ import annotations

import io
import json
import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from planc.errors import DataError, InputError
from planc.ir import DType, TensorType
from runtime import TLS, connect
from runtime.channels.address import Address
from runtime.errors import ConnectionLost, CredentialsError, PermissionDenied, StoreLocked
from runtime.identity import Role
from runtime.security.tokens import TokenStore
from runtime.serving import Offered, Serving, Settings, sockets
from runtime.serving.data import Source
from runtime.serving.greeting import Greeting
from runtime.serving.logs import log_to
from tests.cli.conftest import Call, call, folder
from tests.network.serving import authority, certificate, tls

__all__ = ["call", "folder"]

SOMEWHERE = Path("somewhere.pem")


@pytest.fixture
def place(tmp_path: Path) -> dict[str, Any]:
    """Settings of a worker of this test alone."""
    return {"socket": tmp_path / "owner.sock", "listen": ["127.0.0.1:0"]}


def secured(name: str = "bob") -> dict[str, Path]:
    cert, key = certificate(Role.WORKER, name)
    return {"cert": cert, "key": key}


CA = {"client_ca": SOMEWHERE}
PAIR = {"cert": SOMEWHERE, "key": SOMEWHERE}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"listen": ["0.0.0.0:7700"]},
            "--listen 0.0.0.0:7700 is open to other machines, where a worker listens",
        ),
        ({"listen": ["127.0.0.1:0", "[::]:7700"]}, r"--listen \[::\]:7700 is open to other machines"),
        ({"listen": ["example.org:7700"]}, "--listen example.org:7700 is open to other machines"),
        ({"listen": ["0.0.0.0:7700"], **PAIR}, "with TLS a worker wants to know who calls"),
        ({"listen": ["127.0.0.1"]}, "expected host:port, port 0 to 65535"),
        ({"listen": ["127.0.0.1:99999"]}, "expected host:port, port 0 to 65535"),
        ({"listen": ["unix:"]}, "has no path"),
        ({"cert": SOMEWHERE}, "--tls-cert and --tls-key"),
        ({"key": SOMEWHERE}, "--tls-cert and --tls-key"),
        (CA, "--client-ca and --tokens are for TLS"),
        ({"tokens": SOMEWHERE}, "--client-ca and --tokens are for TLS"),
        ({**PAIR, **CA, "tokens": SOMEWHERE}, "either for certificates .* or for tokens"),
        ({"peers": {"bob": "grpc://127.0.0.1:1"}}, "a worker is no peer of its own"),
        ({"peers": {"al": "grpcs://127.0.0.1:1"}}, "--peer al=.*: over TLS both workers show certificates"),
        (
            {"peers": {"al": "127.0.0.1:1"}},
            "the address '127.0.0.1:1' cannot be read: expected grpc://host:port",
        ),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Serving(Settings("bob", **given))


def test_names_that_cannot_be() -> None:
    with pytest.raises(CredentialsError, match="cannot be a name"):
        Serving(Settings("bob/../alice"))
    with pytest.raises(CredentialsError, match="cannot be a name"):
        Serving(Settings("bob", peers={"a b": "grpc://127.0.0.1:1"}))


def test_a_device_that_is_not_there(place: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the device 'cuda:99' cannot be used"):
        Serving(Settings("bob", **place, device="cuda:99"))


def test_a_certificate_of_another(place: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is the certificate of worker alice: worker 'bob' needs its own"):
        Serving(Settings("bob", **place, **secured("alice"), client_ca=authority().folder / "ca.pem"))
    cert, key = certificate(Role.CLIENT, "bob")
    with pytest.raises(InputError, match="is the certificate of client bob"):
        Serving(Settings("bob", **place, cert=cert, key=key, client_ca=authority().folder / "ca.pem"))
    with pytest.raises(CredentialsError, match="no such file"):
        Serving(Settings("bob", **place, **PAIR, **CA))


def test_a_port_that_is_taken(place: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = [f"127.0.0.1:{other.getsockname()[1]}"]
        with pytest.raises(InputError, match=r"cannot listen at grpc://127.0.0.1.* taken"):
            Serving(Settings("bob", **{**place, "listen": listen}))
    assert not place["socket"].exists()  # nothing is left of what was begun


def test_a_socket_and_a_store_that_are_taken(place: dict[str, Any], tmp_path: Path) -> None:
    first = Serving(Settings("bob", **place, store=tmp_path / "store"))
    try:
        with pytest.raises(InputError, match="another worker does"):
            Serving(Settings("bob", **place))
        with pytest.raises(StoreLocked):
            Serving(Settings("bob", socket=tmp_path / "o", listen=["127.0.0.1:0"], store=tmp_path / "store"))
    finally:
        assert first.close()
    Serving(Settings("bob", **place, store=tmp_path / "store")).close()


def test_data_that_cannot_be_read_leaves_nothing_open(place: dict[str, Any], tmp_path: Path) -> None:
    settings = Settings("bob", **place, store=tmp_path / "store", data=[Source("x", tmp_path / "none.npz")])
    with pytest.raises(DataError, match=r"none\.npz is not there"):
        Serving(settings)
    Serving(Settings("bob", **place, store=tmp_path / "store")).close()  # the store is free again


def test_a_folder_for_sockets_that_others_can_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert sockets.default("bob") == tmp_path / "planc" / "bob.sock"
    (tmp_path / "planc").chmod(0o755)
    with pytest.raises(InputError, match="expected a folder that only you can open"):
        sockets.default("bob")
    with pytest.raises(InputError, match="the path of a socket has at most 100 bytes"):
        sockets.check(tmp_path / ("x" * 100))


def test_the_only_worker_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    bob = Serving(Settings("bob", ["127.0.0.1:0"]))
    assert sockets.find() == bob.socket == tmp_path / "planc" / "bob.sock"
    alice = Serving(Settings("alice", ["127.0.0.1:0"]))
    with pytest.raises(InputError, match=r"2 workers run .*alice\.sock, .*bob\.sock"):
        sockets.find()
    bob.close()
    assert sockets.find() == alice.socket
    alice.close()


# -- tokens ---------------------------------------------------------------------------------------------


def test_tokens_let_clients_in(place: dict[str, Any], tmp_path: Path) -> None:
    tokens = TokenStore(tmp_path / "tokens.json")
    token = tokens.add("ann", None).text
    ca = TLS(authority().folder / "ca.pem")
    serving = Serving(Settings("bob", **place, **secured(), tokens=tokens.path))
    try:
        at = str(serving.addresses[0])
        ann = connect(at, tls=ca, token=token, worker="bob")
        assert ann.connection.client == "ann"
        assert ann.send(torch.ones(2)).get().tolist() == [1.0, 1.0]
        for wrong in (token[:-1] + ("a" if token[-1] != "a" else "b"), "planc_0"):
            with pytest.raises(PermissionDenied) as caught:
                connect(at, tls=ca, token=wrong, patience=0.2)
            assert token not in str(caught.value)
        with pytest.raises(PermissionDenied):  # a certificate instead is not asked for, so not believed
            connect(at, tls=tls(Role.CLIENT, "ann"), patience=0.2)
        tokens.revoke("ann")
        with pytest.raises(PermissionDenied):
            connect(at, tls=ca, token=token, patience=0.2)
        ann.close()
    finally:
        serving.close()


def test_a_file_of_tokens_that_is_not_there(place: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match=r"none\.json: no such file"):
        Serving(Settings("bob", **place, **secured(), tokens=tmp_path / "none.json"))


def test_a_worker_of_another_name_is_refused(place: dict[str, Any]) -> None:
    serving = Serving(Settings("bob", **place))
    try:
        with pytest.raises(InputError, match=r"worker 'bob' listens at grpc://.*, not 'alice'"):
            connect(str(serving.addresses[0]), worker="alice")
    finally:
        serving.close()
    with pytest.raises(ConnectionLost, match="no worker answers at"):
        connect(str(Settings("bob").check()[0]).replace("7700", "1"), patience=0.1)


# -- on the command line --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ([], 2, "a worker needs a name, as in `planc worker --id bob --data scans=scans.npz`"),
        (["--id", "a/b"], 2, "'a/b' cannot be a name"),
        (["--id", "bob", "--listen", "0.0.0.0:7700"], 2, "is open to other machines"),
        (["--id", "bob", "--tls-cert", "a.pem"], 2, "--tls-cert and --tls-key"),
        (["--id", "bob", "--data", "scans.npz"], 2, "expected NAME=..., got 'scans.npz'"),
        (["--id", "bob", "--data", "a b=scans.npz"], 2, "'a b' cannot be a name"),
        (["--id", "bob", "--data", "x=a", "--data", "x=b"], 2, "'x' is given twice"),
        (["--id", "bob", "--data", "x=a", "--public", "y"], 2, "no --data is named 'y': there is x"),
        (["--id", "bob", "--tag", "y=#z"], 2, "no --data is named 'y': none is given"),
        (["--id", "bob", "--describe", "y=z"], 2, "no --data is named 'y': none is given"),
        (["--id", "bob", "--peer", "al"], 2, "expected NAME=..., got 'al'"),
        (["--id", "bob", "--data", "x=none.npz"], 8, "none.npz is not there: expected a .safetensors, .npz"),
        (["--id", "bob", "--policy", "none.toml"], 1, "none.toml: the policy file cannot be read"),
        (["--id", "bob", "--device", "cuda:99"], 6, "the device 'cuda:99' cannot be used"),
        (
            ["--socket", "x", "status"],
            2,
            "options go behind the command, as in `planc worker status --socket PATH`",
        ),
        (["--id", "bob", "stauts"], 2, "No such command 'stauts'"),
    ],
)
def test_wrong_use(call: Call, args: Sequence[str], code: int, said: str) -> None:
    result = (
        call("worker", "--listen", "127.0.0.1:0", *args, code=code)
        if code != 2
        else call("worker", *args, code=2)
    )
    assert said in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_a_policy_with_a_mistake(call: Call, folder: Path) -> None:
    (folder / "policy.toml").write_text("[default]\nserach = true\n")
    np.save(folder / "x.npy", np.ones(2))
    result = call("worker", "--id", "bob", "--policy", "policy.toml", "--data", "x=x.npy", code=1)
    assert "policy.toml" in result.stderr
    assert "serach" in result.stderr


# -- what it says ------------------------------------------------------------------------------------------


def said(settings: Settings, *addresses: Address, offered: Sequence[Offered] = ()) -> list[str]:
    return list(Greeting(settings, addresses, offered, Path("/run/user/1000/planc/bob.sock")).lines())


def test_the_page_shows_what_a_worker_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "network.md").read_text(encoding="utf-8")
    section = page.split("\n## Running a worker\n")[1].split("\n## ")[0]
    shown = section.split("```console\n")[1].split("```")[0].splitlines()
    offered = [
        Offered("scans/images", TensorType(DType.F32, (5, 4)), True, ("#scans", "#images")),
        Offered("scans/labels", TensorType(DType.I64, (5,)), True, ("#scans", "#labels")),
        Offered("ages", TensorType(DType.F64, (2,)), False, ("#ages",)),
    ]
    told = said(Settings("bob", store=Path("store")), Address("127.0.0.1", 7700), offered=offered)
    assert shown[1:] == told
    assert max(map(len, told)) <= 80


def test_what_protects_it_is_said_of_each_kind() -> None:
    anywhere = Address("0.0.0.0", 7700, secure=True)
    lines = said(Settings("bob", **PAIR, **CA, policy=Path("p.toml"), peers={"al": "grpc://h:1"}), anywhere)
    assert "           open to other machines; mutual TLS: certificates of somewhere.pem" in lines
    assert '  runtime.connect("grpcs://HOST:7700", worker="bob",' in lines
    assert {"  policy   p.toml", "  peers    al at grpc://h:1", "  audit    no log (--audit FILE)"} <= set(
        lines
    )
    lines = said(Settings("bob", **PAIR, tokens=Path("t.json")), Address("127.0.0.1", 1, secure=True))
    assert "           this machine only; TLS, and a token of t.json" in lines
    assert '      tls=runtime.TLS("ca.pem"), token="planc_...")' in lines
    assert "  offers   nothing yet (--data NAME=PATH)" in lines
    assert "  keeps    nothing: what clients put here is gone when it stops (--store DIR)" in lines


def test_a_log_line_has_no_text_of_an_error() -> None:
    stream = io.StringIO()
    before = list(logging.getLogger().handlers)
    with log_to("bob", "warning", stream):
        logging.getLogger("a").info("not this")
        try:
            raise ValueError("element 17.0")
        except ValueError as error:
            logging.getLogger("a").warning("it %s", "failed", exc_info=error)
    assert logging.getLogger().handlers == before
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["level"], line["worker"], line["logger"], line["text"]) == (
        "warning",
        "bob",
        "a",
        "it failed",
    )
    assert line["error"] == "ValueError"
    assert "17" not in stream.getvalue().replace(line["time"], "").replace(json.dumps(line["at"]), "")
