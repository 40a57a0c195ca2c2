"""Workers on a real Ray: what they offer, what is sent, who dies; and suites that hold over every channel.

All in one module: pytest-xdist starts a Ray for each module that needs one.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

import planc
from planc.errors import InputError
from runtime import FederatedAveraging, RemoteTensor, VirtualWorker, count_messages, federate
from runtime.channels.ray import RayCluster, RayWorker, starting
from runtime.channels.ray.starting import Running, Started
from runtime.demo import command
from runtime.demo.mnist import load_directory
from runtime.demo.network import make_network
from runtime.demo.training import Settings, set_up, train
from runtime.errors import ConnectionLost, DeadlineExceeded, ObjectNotFound
from tests.parity.test_tutorial import (  # noqa: F401
    test_t02_send_and_get,
    test_t03_compute_remotely,
    test_t06_a_private_model_cannot_be_fetched,
    test_t11_a_plan_from_a_function,
    test_t12_a_plan_from_a_class,
    test_t13_fewer_messages,
)
from tests.ray.offers import of_no_plan, refuses
from tests.ray.serving import over_ray
from tests.remote.test_autograd import (  # noqa: F401
    test_gradients_are_torchs,
    test_gradients_do_not_cross_workers,
    test_in_place_on_a_value_with_a_history,
)
from tests.remote.test_federated import (  # noqa: F401
    X,
    Y,
    test_a_failed_round_changes_nothing,
    test_a_round_is_one_message_a_worker,
    test_one_worker_is_local_training,
)
from tests.test_mnist import TEST_X, TEST_Y, TRAIN_X, TRAIN_Y, idx_images, idx_labels, write

ROOT = Path(__file__).parents[2]
LARGE = 2**22  # float32: 16 MiB


@pytest.fixture(autouse=True)
def over_every_channel(request: pytest.FixtureRequest) -> Generator[None]:
    """The virtual workers of the suites do their work in the actors; tests of clusters have none."""
    if "cluster" in request.fixturenames:
        yield
        return
    with over_ray(request.getfixturevalue("actors")):
        yield


@planc.plan(args_shape=[(1500, 1500)])
def long(x: torch.Tensor) -> torch.Tensor:
    """Half a second and more, on one thread."""
    for _ in range(8):
        x = (x @ x) * 0.001
    return x


def wait_until_running(worker: RayWorker, messages: int) -> None:
    """Until a worker computes: it has been asked, and answers others meanwhile."""
    while worker.connection.sent < messages:
        time.sleep(0.01)
    time.sleep(0.1)


# -- what is sent ------------------------------------------------------------------------------------------


def test_workers_offer_their_data_and_count_their_messages(cluster: RayCluster) -> None:
    bob, alice = cluster.workers
    with count_messages() as sent:
        (rows,) = bob.search("#rows")
        (labels,) = bob.search("#labels", "#train")
        total = rows.sum(0) * 2
        got = total.get()
    assert torch.equal(got, (torch.arange(6.0).reshape(3, 2) + ord("b")).sum(0) * 2)
    assert torch.equal(labels.copy().get(), torch.tensor([0, 1, 2]))
    assert dict(sent.by_kind) == {"Search": 2, "Apply": 2, "Get": 1}
    assert sent.messages == 5
    assert rows.id != alice.search("#rows")[0].id
    assert len({worker.pid for worker in cluster} | {os.getpid()}) == 3


def test_a_plan_is_installed_once_and_a_call_is_one_message(cluster: RayCluster) -> None:
    bob = cluster["bob"]

    @planc.plan(args_shape=[(-1, 2), (-1, 2)])
    def both(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * 2 + y

    (rows,) = bob.search("#rows")
    with count_messages() as sent:
        remote = both.send(bob)
        one, two = remote(rows, rows), both.send(bob)(rows, torch.ones(3, 2))
    assert dict(sent.by_kind) == {"Install": 1, "Run": 2}
    assert torch.equal(one.get() - two.get(), (torch.arange(6.0).reshape(3, 2) + ord("b")) - 1)


@pytest.mark.parametrize("tensors", [1, 300])
def test_large_frames_arrive_as_they_were_sent(cluster: RayCluster, tensors: int) -> None:
    bob = cluster["bob"]
    sent = list(torch.randn(LARGE).split(LARGE // tensors))
    remotes = bob.send_all(sent)
    for tensor in sent:
        tensor.zero_()  # theirs, once it is sent
    got = bob.fetch([remote.id for remote in remotes], delete=False)
    again = bob.fetch([remote.id for remote in remotes], delete=True)
    for one, two in zip(got, again, strict=True):
        one.add_(1)  # memory of its own, which can be written to
        assert not torch.equal(one, two)
    assert sum(float(one.abs().sum()) for one in again) > 0


def test_values_move_from_worker_to_worker(cluster: RayCluster) -> None:
    bob, alice = cluster.workers
    x = bob.send(torch.arange(LARGE))
    with count_messages() as sent:
        x.move(alice)
        x.move(bob)
    assert (sent.messages, sent.bytes_out < 2000, sent.bytes_in < 2000) == (2, True, True)
    assert x.location is bob
    assert torch.equal(x.get(), torch.arange(LARGE))
    assert [len(worker.objects) for worker in cluster] == [2, 2]  # what they offer


def test_workers_that_send_to_each_other_get_on(cluster: RayCluster) -> None:
    bob, alice = cluster.workers
    values = [[worker.send(torch.full((1000,), float(i))) for i in range(24)] for worker in (bob, alice)]
    ways = [(x, alice) for x in values[0]] + [(x, bob) for x in values[1]]
    threads = [threading.Thread(target=x.move, args=(to,)) for x, to in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for moved, place in zip(values, (alice, bob), strict=True):
        assert [(x.location, float(x.get()[0])) for x in moved] == [(place, float(i)) for i in range(24)]


def test_an_error_of_what_was_not_waited_for_comes_later(cluster: RayCluster) -> None:
    bob = cluster["bob"]
    x = bob.send(torch.ones(2))
    bob.connection.release(x.id)
    gone = x + 1
    behind = gone * 2
    with pytest.raises(ObjectNotFound, match=f"worker 'bob'.*{x.id}"):
        behind.get()
    assert torch.equal((bob.send(torch.ones(2)) + 1).get(), torch.full((2,), 2.0))


def test_every_client_has_its_own(cluster: RayCluster) -> None:
    mine = cluster["bob"].send(torch.ones(2))
    other = cluster["bob"].as_client("ann")
    assert len(other.search("#rows")) == 1
    with pytest.raises(ObjectNotFound):
        other.fetch([mine.id], delete=False)


# -- who dies ----------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_is_lost_and_another_takes_its_place(cluster: RayCluster) -> None:
    bob, alice = cluster["bob"], cluster["alice"]
    remote = long.send(bob)
    assert bob._installed
    started = bob.connection.sent
    running = remote.submit(torch.eye(1500))
    wait_until_running(bob, started + 1)
    assert len(bob.search("#rows")) == 1  # a plan that runs holds up nobody
    assert not running.done()

    os.kill(bob.pid, signal.SIGKILL)
    with pytest.raises(
        ConnectionLost, match=r"worker 'bob': it is gone, and all that it held: .*process has died"
    ):
        running.result()
    assert bob.lost
    assert not bob._installed
    posted = RemoteTensor(bob, 1, planc.ir.TensorType(planc.ir.DType.F32, (2,)), owned=False)
    with pytest.raises(ConnectionLost, match=r"RayCluster\.replace"):
        (posted + 1).get()
    x = alice.send(torch.ones(2))
    with pytest.raises(ConnectionLost, match="'bob'"):
        x.move(bob)

    new = cluster.replace(bob)
    assert cluster["bob"] is new
    assert (new.id, new.lost, new.pid != bob.pid) == ("bob", "", True)
    assert [len(new.objects), len(new.search("#rows"))] == [2, 1]
    with pytest.raises(ConnectionLost, match="worker 'bob'"):
        bob.search("#rows")
    with count_messages() as sent:
        long.send(new)
    assert dict(sent.by_kind) == {"Install": 1}
    x.move(new)
    assert torch.equal(x.get(), torch.ones(2))
    back = new.send(torch.zeros(3))
    back.move(alice)
    assert torch.equal(back.get(), torch.zeros(3))


def test_a_worker_that_hangs_is_given_up_at_the_deadline(cluster: RayCluster) -> None:
    alice = cluster["alice"]
    patient = RayWorker("alice", Running(alice.actor, Started(alice.pid, alice.host)), "me", 0.5)
    os.kill(alice.pid, signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineExceeded, match=r"worker 'alice': no reply came within 0\.5 s"):
            patient.search("#rows")
    finally:
        os.kill(alice.pid, signal.SIGCONT)
    assert len(alice.search("#rows")) == 1
    assert alice.lost == ""
    patient.close()
    with pytest.raises(ConnectionLost, match="closed"):
        patient.search("#rows")


# -- what cannot be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            refuses,
            r"worker 'bob' could not start: FileNotFoundError: no images for bob \(offers.py, line",
        ),
        (of_no_plan, "worker 'bob' could not start: .*complex64"),
        (threading.Lock().acquire_lock, r"data= cannot be sent to the workers \(TypeError"),
    ],
)
def test_data_that_cannot_be_had_is_said(
    cluster: RayCluster, data: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "make", lambda options: cluster["bob"].actor)  # an actor takes seconds
    monkeypatch.setattr(starting, "kill", lambda actors: None)
    with pytest.raises(InputError, match=said):
        RayCluster(workers=["bob"], resources={"CPU": 0.1}, data=data)
    assert ray.is_initialized()  # others use it


def test_more_than_there_is(cluster: RayCluster) -> None:
    with pytest.raises(
        InputError, match="3 workers with CPU 1000 each do not fit this machine, which has CPU"
    ):
        RayCluster(workers=3, resources={"CPU": 1000})
    there = ray.cluster_resources()["CPU"]
    with pytest.raises(DeadlineExceeded, match=r"1 of 1 workers on Ray did not start within 0\.5 s: .* free"):
        RayCluster(workers=1, resources={"CPU": there}, patience=0.5)
    with pytest.raises(InputError, match="can have no second one"):
        RayCluster("127.0.0.1:6390")
    with pytest.raises(InputError, match="no worker 'dave' in the cluster"):
        cluster.replace("dave")


# -- the same bits -----------------------------------------------------------------------------------------


def test_rounds_are_those_of_this_process_bit_for_bit(
    cluster: RayCluster,
    epoch: planc.Plan,
) -> None:
    def train(workers: Any) -> dict[str, torch.Tensor]:
        averaging = FederatedAveraging(epoch, federate([X, Y], workers), seed=3)
        for _ in range(3):
            averaging.round()
        return averaging.state_dict()

    here, there = train([VirtualWorker("bob"), VirtualWorker("alice")]), train(cluster.workers[:2])
    assert all(torch.equal(tensor, there[path]) for path, tensor in here.items())


def test_the_demo_trains_the_same_model(
    cluster: RayCluster,
    step: planc.Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = [i % 10 for i in range(20)]
    images = {TRAIN_X: idx_images(20), TRAIN_Y: idx_labels(labels)}
    images |= {TEST_X: idx_images(10), TEST_Y: idx_labels(labels[:10])}
    write(tmp_path / "mnist", images)
    monkeypatch.setattr(command, "capture_step", lambda network: step.with_state(dict(network.state_dict())))
    monkeypatch.setattr(command, "_REPEATS", 1)
    monkeypatch.setattr("runtime.channels.ray.RayCluster", lambda workers: _Lent(cluster.workers[:workers]))
    files = {"report": tmp_path / "report.html", "model_out": tmp_path / "model.pt"}
    assert command.demo(2, 2, 7, tmp_path / "mnist", batch_size=10, engine="ray", **files) == 0
    out = " ".join(capsys.readouterr().out.split())  # however it is wrapped
    assert "20 MNIST images" in out
    assert "at 2 workers on Ray, 10 each" in out
    assert "in this process" not in out

    split = load_directory(tmp_path / "mnist")
    here = set_up(Settings(2, 2, 7, 10), split, step.with_state(dict(make_network(7).state_dict())))
    *_, last = train(here, split, 2)
    model = torch.load(files["model_out"], weights_only=True)
    assert model.keys() == last.model.keys()
    assert all(torch.equal(tensor, model[path]) for path, tensor in last.model.items())


def test_an_engine_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="engine is one of in-process, ray, got 'spark'"):
        command.demo(engine="spark")


class _Lent:
    """A cluster that is lent."""

    def __init__(self, workers: Any) -> None:
        self.workers = workers

    def __enter__(self) -> _Lent:
        return self

    def __exit__(self, *_: object) -> None:
        pass


# -- a cluster that is there already -----------------------------------------------------------------------

HEAD = ["start", "--head", "--block", "--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
STORE = "--object-store-memory=100000000"  # also where shared memory has less: it is in files then
JOINING = """
import sys, torch
from runtime.channels.ray import RayCluster
with RayCluster(sys.argv[1], workers=1, data=lambda worker: {"x": torch.arange(4.0)}) as cluster:
    (worker,) = cluster
    print(float((worker.search("#x")[0] * 2).sum().get()))
    with RayCluster("auto", workers=["other"], resources={"CPU": 50}, patience=0.2) as none:
        pass
"""


def test_an_existing_cluster_is_joined_and_left_running() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                *HEAD,
                STORE,
                f"--port={port}",
                f"--temp-dir={folder}",
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_for(port)
            joined = subprocess.run(
                [sys.executable, "-c", JOINING, f"127.0.0.1:{port}"],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert joined.stdout == "12.0\n", joined.stderr
            assert "CPU 50, and the cluster has CPU 1 free" in joined.stderr
            assert head.poll() is None
            _wait_for(port)
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait()


def _wait_for(port: int) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
