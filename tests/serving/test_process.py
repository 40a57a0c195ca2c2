"""A real `planc worker`: what it says, that clients and its owner reach it, and what it survives."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import planc
from planc.cli import app
from planc.errors import InputError
from runtime import TLS, connect, connect_owner
from runtime.errors import ConnectionLost, PermissionDenied
from runtime.identity import Role
from tests.network.serving import authority, certificate, tls
from tests.serving.helpers import ENVIRONMENT, SLOW, Process, started


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("w")
    np.savez(folder / "scans.npz", images=np.ones((5, 4), np.float32), labels=np.arange(5))
    np.save(folder / "ages.npy", np.array([40.0, 50.0]))
    return folder


@pytest.fixture(scope="module")
def bob(home: Path) -> Generator[Process]:
    cert, key = certificate(Role.WORKER, "bob")
    files = (
        "--tls-cert",
        str(cert),
        "--tls-key",
        str(key),
        "--client-ca",
        str(authority().folder / "ca.pem"),
    )
    data = (
        "--data",
        "scans=scans.npz",
        "--data",
        "ages=ages.npy",
        "--public",
        "ages",
        "--tag",
        "ages=#numbers",
    )
    listen = ("--listen", "127.0.0.1:0", "--listen", "unix:bob.sock")
    with started(home, *listen, *data, *files, "--store", "store", "--describe", "scans=Five") as worker:
        yield worker


def planc_worker(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["worker", *args], prog_name="planc")
    assert result.exit_code == code, result.output
    return result.output


def test_it_says_what_it_offers_and_what_protects_it(bob: Process) -> None:
    ca = authority().folder / "ca.pem"
    address = bob.addresses[0]
    assert bob.greeting == [
        "worker bob is ready",
        f"  listens  {address}",
        f"           this machine only; mutual TLS: certificates of {ca}",
        "  listens  unix:bob.sock",
        "           only you: others of this machine cannot open the socket",
        "  offers   scans/images  f32[5, 4]  private  #scans #images",
        "           scans/labels  i64[5]     private  #scans #labels",
        "           ages          f64[2]     PUBLIC   #ages #numbers",
        "  policy   none (--policy FILE): all may use what is offered and run plans;",
        "           nothing private leaves but results of plans that you approved",
        "  keeps    all in store, also over a crash",
        "  audit    store/audit.jsonl",
        f"  owner    planc worker status --socket {bob.socket}",
        "clients connect with",
        f'  runtime.connect("{address}", worker="bob",',
        '      tls=runtime.TLS("ca.pem", "client-YOU.pem", "client-YOU.key"))',
        '  runtime.connect("unix:bob.sock", client="YOUR_NAME")',
        "Ctrl-C stops it, once what runs has ended",
    ]


def test_its_log_is_json_lines(bob: Process) -> None:
    (ready, *_) = bob.log
    assert (ready["level"], ready["worker"]) == ("info", "bob")
    assert ready["text"] == f"ready at {', '.join(bob.addresses)}"


@pytest.mark.parametrize("over", ["tls", "unix"])
def test_clients_reach_it(bob: Process, home: Path, over: str) -> None:
    address = bob.addresses[0] if over == "tls" else f"unix:{home / 'bob.sock'}"
    worker = connect(
        address, tls=tls(Role.CLIENT, "ann") if over == "tls" else None, client="ann", worker="bob"
    )
    (images,) = worker.search("#scans", "#images")
    assert (images.shape, images.description) == ((5, 4), "Five")
    with pytest.raises(PermissionDenied, match="private"):
        images.copy().get()
    (ages,) = worker.search("#numbers")
    assert (ages + 1).get().tolist() == [41.0, 51.0]
    assert worker.connection.client == "ann"
    worker.close()


def test_others_do_not(bob: Process) -> None:
    ca = TLS(authority().folder / "ca.pem")
    with pytest.raises(ConnectionLost):  # no certificate is shown, so TLS ends it
        connect(bob.addresses[0], tls=ca, token="planc_0", patience=0.2)
    with pytest.raises(ConnectionLost):  # a worker of the same authority, but not the one that was meant
        connect(bob.addresses[0], tls=tls(Role.CLIENT, "ann"), worker="alice", patience=0.2)
    plain = bob.addresses[0].replace("grpcs", "grpc")
    with pytest.raises(ConnectionLost):
        connect(plain, patience=0.2)


def test_its_owner_sees_and_decides(bob: Process, home: Path) -> None:
    socket = ("--socket", str(bob.socket))
    plan = planc.parse("plan total(x: f32[n, 4]) -> f32[4] { return sum(x, dim=[0]) }")
    worker = connect(f"unix:{home / 'bob.sock'}", client="zoe")
    (images,) = worker.search("#images")
    remote = plan.send(worker)
    with pytest.raises(PermissionDenied, match="needs the approval of the owner of worker 'bob'"):
        remote.fetch(images)
    assert planc_worker("status", *socket).startswith("worker bob on cpu")
    assert "private  #scans #images" in planc_worker("objects", *socket)
    assert plan.id in planc_worker("pending", *socket)
    assert plan.id in planc_worker("plans", *socket)
    assert "there is no terminal to ask on" in planc_worker("approve", plan.id, *socket, code=6)
    assert f"approved {plan.id}" in planc_worker("approve", plan.id[:12], *socket, "--runs", "1", "--yes")
    assert remote.fetch(images).tolist() == [5.0] * 4
    with pytest.raises(PermissionDenied):  # one run was approved
        remote.fetch(images)
    assert f"denied {plan.id}" in planc_worker("deny", plan.id, *socket, "--reason", "enough")
    with pytest.raises(PermissionDenied, match="enough"):
        remote.fetch(images)
    log = str(home / "store" / "audit.jsonl")
    assert "unbroken" in planc_worker("audit", log, "--verify")
    assert "left: r f32[4]" in planc_worker("audit", log, "--client", "zoe")
    worker.close()


def test_the_owners_socket_is_found_and_closed_to_others(bob: Process, home: Path) -> None:
    assert bob.socket.stat().st_mode & 0o077 == 0
    assert (home / "bob.sock").stat().st_mode & 0o077 == 0


# -- it ends, and starts again ------------------------------------------------------------------------------


def test_handles_work_on_after_kill_9(home: Path, tmp_path: Path) -> None:
    """The worker is killed and started again: objects are there, and the client has not noticed."""
    args = ("--listen", f"unix:{tmp_path / 'c.sock'}", "--store", str(tmp_path / "store"))
    data = ("--data", f"ages={home / 'ages.npy'}", "--public", "ages")
    with started(tmp_path, *args, *data) as first:
        worker = connect(f"unix:{tmp_path / 'c.sock'}", client="ann", patience=120.0)
        mine = worker.send(torch.arange(100_000.0))
        (ages,) = worker.search("#ages")
        twice = ages * 2
        remote = planc.parse("plan double(x: f64[n]) -> f64[n] { return x + x }").send(worker)
        worker.settle()
        first.kill()
        with started(tmp_path, *args, *data):
            assert mine.copy().get().equal(torch.arange(100_000.0))
            assert twice.copy().get().tolist() == [80.0, 100.0]
            assert remote.fetch(ages).tolist() == [80.0, 100.0]  # the data has the same id again
            worker.close()


def running(worker: Process) -> tuple[ThreadPoolExecutor, Any]:
    """Start a plan of seconds at a worker; returns when it runs."""
    me = connect(worker.addresses[0], client="ann", patience=0.5)
    remote = planc.parse(SLOW).send(me)
    pool = ThreadPoolExecutor(1)
    job = pool.submit(remote.fetch, torch.full((700, 700), 0.5), torch.zeros(150))
    owner = connect_owner(worker.socket)
    while not owner.status().running:
        assert not job.done()
        time.sleep(0.02)
    owner.close()
    return pool, job


def test_what_runs_is_finished(tmp_path: Path) -> None:
    with started(tmp_path, "--listen", "127.0.0.1:0") as worker:
        pool, job = running(worker)
        worker.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        with pytest.raises(ConnectionLost):  # nothing new is begun
            connect(worker.addresses[0], patience=0.1).search("#x")
        assert job.result(120).shape == (700, 700)
        assert worker.process.wait(60) == 0
        assert not worker.socket.exists()
        assert [line["text"] for line in worker.log][-1] == "stopped"
        pool.shutdown()


def test_a_second_signal_stops_it_at_once(tmp_path: Path) -> None:
    with started(tmp_path, "--listen", "127.0.0.1:0") as worker:
        pool, job = running(worker)
        worker.process.send_signal(signal.SIGINT)
        while "finishes what runs" not in worker.log[-1]["text"]:
            time.sleep(0.02)
        worker.process.send_signal(signal.SIGINT)
        assert worker.process.wait(60) == 128 + signal.SIGINT
        with pytest.raises(ConnectionLost):
            job.result(120)
        pool.shutdown()


def test_without_the_network_extra(tmp_path: Path) -> None:
    """Other commands work without it, and this one says what is missing."""
    code = (
        "import sys\n"
        "sys.modules['grpc'] = sys.modules['cryptography'] = None\n"
        "from planc.cli import main\n"
        "sys.argv[1:] = ['worker', '--id', 'bob', '--socket', 's']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=300
    )
    assert done.returncode == 6
    assert done.stderr == (
        "error: listening at grpc://127.0.0.1:7700 needs the extra 'network' (grpc is missing): "
        "pip install 'planc[network]'\n"
    )


def test_nobody_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(InputError, match="no worker of yours runs on this machine"):
        connect_owner()
    assert "no worker of yours runs" in planc_worker("status", code=6)
