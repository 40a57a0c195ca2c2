"""Suite "network": workers in processes of their own, beside bare streams that carry as many bytes.

A bare stream, over gRPC (`Bare`) or a plain unix socket (`BareSocket`), is served by the same process; it
keeps what comes until all of it is there, and does nothing else. The baseline is gRPC's.
"""

from __future__ import annotations

import json
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

import planc
from benchmarks.harness import Result, compare
from benchmarks.steps import eager
from benchmarks.workloads import CNN, LINEAR, MLP_ADAM, MLP_SGD, TRANSFORMER, Workload
from runtime import FederatedAveraging, FederatedDataset, WorkerHandle, connect, count_messages
from runtime.channels.address import Address
from runtime.channels.grpc import callers, chunks
from runtime.channels.grpc.server import GrpcListening
from runtime.channels.streams.memory import allocate
from runtime.channels.unix.callers import by_their_word
from runtime.channels.unix.server import UnixListening
from runtime.connecting import TLS
from runtime.identity import Identity, Role
from runtime.security.authority import Authority
from runtime.security.credentials import channel_credentials, pinning_options, server_credentials
from runtime.security.tls import grpc
from runtime.worker import Worker

_OPTIONS = [("grpc.max_receive_message_length", 2**22), ("grpc.max_send_message_length", 2**22)]
UNIX = "unix socket"
_BATCHES = 14
"""Steps in the work of a round: about 5 ms."""


def run(quick: bool = False) -> Iterator[Result]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="planc-bench-")))
        authority = Authority.create(folder / "ca", "bench", 2)
        own = _tls(authority, Role.CLIENT, "me")
        bob = stack.enter_context(_process(folder, authority, "bob"))
        ann = stack.enter_context(_process(folder, authority, "ann"))
        for way, tls in ((UNIX, None), ("mutual TLS, loopback", own)):
            at = "tls" if tls else "unix"
            worker = connect(bob.addresses[at], tls=tls, worker="bob")
            bare: dict[str, Bare | BareSocket] = {"bare gRPC stream": Bare(bob.addresses[f"bare-{at}"], tls)}
            if tls is None:
                bare["bare unix socket"] = BareSocket(bob.addresses["socket"])
            for each in (worker, *bare.values()):
                stack.callback(each.close)
            yield _plan_call(way, worker, bare, quick)
            yield _operations(way, worker, bare["bare gRPC stream"], quick)
            yield from _transfers(way, worker, bare, bob.pid, quick)
            for work in (MLP_SGD,) if quick else (LINEAR, MLP_SGD, MLP_ADAM, CNN, TRANSFORMER):
                yield _step(way, worker, work, quick)
        workers = [connect(process.addresses["tls"], tls=own) for process in (ann, bob)]
        for worker in workers:
            stack.callback(worker.close)
        yield _round(workers, quick)


# -- what is measured ----------------------------------------------------------------------------------------


def _plan_call(way: str, worker: WorkerHandle, bare: Bares, quick: bool) -> Result:
    plan = planc.parse("plan same(x: f32[]) -> f32[] { return x }")
    remote, x = worker.receive_plan(plan), torch.tensor(1.0)
    with count_messages() as sent:
        remote.fetch(x)
    with count_messages() as sent:
        remote.fetch(x)
    return compare(
        "network",
        f"an empty plan call, {way}",
        {
            **_exchanges(bare, sent.bytes_out, sent.bytes_in),
            "plan call": lambda: remote.fetch(x),
        },
        rounds=5 if quick else 25,
        note=f"round trip: {sent.bytes_out} bytes there, {sent.bytes_in} back",
        target="<= 1.5x",
    )


def _operations(way: str, worker: WorkerHandle, bare: Bare | BareSocket, quick: bool) -> Result:
    x = worker.send(torch.ones(4))

    def many() -> None:
        for _ in range(64):
            x.add(1.0)
        worker.settle()

    def waiting() -> None:
        for _ in range(64):
            x.add(1.0)
            worker.settle()

    exchange = bare.exchange(128, 64)

    def bare_many() -> None:
        for _ in range(64):
            exchange()

    return compare(
        "network",
        f"64 operations, {way}",
        {"bare gRPC stream": bare_many, "each waited for": waiting, "pipelined": many},
        rounds=3 if quick else 11,
        note="times are of all 64",
    )


def _transfers(way: str, worker: WorkerHandle, bare: Bares, pid: int, quick: bool) -> Iterator[Result]:
    nbytes = 2**26 if quick else 10**9
    x = torch.ones(nbytes // 4)
    own, there = Peak("self"), Peak(str(pid))
    own.reset()
    there.reset()
    remote = worker.send(x)
    up = own.grown(), there.grown() - nbytes
    own.reset()
    there.reset()
    back = worker.fetch([remote.id], delete=False)
    down = own.grown() - nbytes, there.grown()
    assert torch.equal(back[0], x)
    del back, remote

    def send() -> None:
        worker.send(x)
        worker.settle()

    kept = worker.send(x)
    size = f"{nbytes / 1e9:.2g} GB"
    for direction, extra, bytes_out, bytes_in, contender in (
        ("there", up, nbytes, 0, send),
        ("back", down, 0, nbytes, lambda: worker.fetch([kept.id], delete=False)),
    ):
        yield compare(
            "network",
            f"a tensor of {size} {direction}, {way}",
            {**_exchanges(bare, bytes_out, bytes_in), "tensor": contender},
            rounds=2 if quick else 5,
            seconds=0.0,
            warmup=2,  # memory that a virtual machine touches for the first time is far slower than any copy
            note=f"memory beyond the tensor itself: {extra[0] / 2**20:.0f} MiB here, "
            f"{extra[1] / 2**20:.0f} MiB there (at most 64 wanted)",
            target="<= 1.43x",
        )


def _exchanges(bare: Bares, out: int, back: int) -> dict[str, Callable[[], None]]:
    return {name: each.exchange(out, back) for name, each in bare.items()}


def _step(way: str, worker: WorkerHandle, work: Workload, quick: bool) -> Result:
    module, optimizer, (x, y) = work.start()
    remote = planc.train_step(module, work.loss, optimizer, x, y).send(worker)
    rx, ry = worker.send(x), worker.send(y)
    return compare(
        "network",
        f"a step of {work.name}, {way}",
        {"local eager PyTorch": eager(work), "plan at the worker": lambda: remote(rx, ry)},
        rounds=5 if quick else 15,
        note="data and state stay there; the reply is waited for",
        target="<= 2x" if work is MLP_SGD and way == UNIX else "",
    )


def _round(workers: list[WorkerHandle], quick: bool) -> Result:
    module, optimizer, _ = MLP_SGD.start()
    step = planc.train_step(module, MLP_SGD.loss, optimizer, *MLP_SGD.batch(MLP_SGD.size))
    plan = planc.epoch(step, batch_size=MLP_SGD.size, shuffle=False)
    data = [MLP_SGD.batch(MLP_SGD.size * _BATCHES) for _ in workers]
    shards = {w: w.send_all(list(pair)) for w, pair in zip(workers, data, strict=True)}
    training = FederatedAveraging(plan, FederatedDataset(shards))
    return compare(
        "network",
        "a round at two workers, mutual TLS",
        {"the work of one worker, here": lambda: plan(*data[0]), "round": training.round},
        rounds=5 if quick else 25,
        note=f"{_BATCHES} batches of {MLP_SGD.name} a worker; at most 50 ms are wanted; both workers and the "
        "caller share this machine's cores",
    )


# -- the other side ------------------------------------------------------------------------------------------


class Peak:
    """The largest resident size of a process since a moment (Linux)."""

    def __init__(self, pid: str) -> None:
        self._path = Path("/proc") / pid
        self._base = 0

    def reset(self) -> None:
        """Begin anew."""
        (self._path / "clear_refs").write_text("5")
        self._base = self._read("VmRSS")

    def grown(self) -> int:
        """Bytes by which the process was larger at most than at the beginning."""
        return self._read("VmHWM") - self._base

    def _read(self, name: str) -> int:
        text = (self._path / "status").read_text()
        line = next(line for line in text.splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024


class Bare:
    """A client of a bare stream: so many bytes there, so many back, in messages of a chunk."""

    def __init__(self, address: str, tls: TLS | None) -> None:
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        if tls is None:
            self._channel = grpc.insecure_channel(address, _OPTIONS)
        else:
            assert tls.cert is not None
            assert tls.key is not None
            made = channel_credentials(Path(tls.ca), Path(tls.cert), Path(tls.key))
            self._channel = grpc.secure_channel(address, made, [*_OPTIONS, *pinning_options("bob")])
        self._call = self._channel.stream_stream("/bare/Stream")(iter(self._queue.get, None))

    def exchange(self, out: int, back: int) -> Callable[[], None]:
        """One exchange: the first message says how much comes, and how much is to come back."""
        size = chunks.CHUNK
        head = out.to_bytes(8, "little") + back.to_bytes(8, "little")
        parts = [bytes(min(size, out - at)) for at in range(0, out, size)]
        parts = [head + parts[0][16:], *parts[1:]] if out >= 16 else [head]

        def run() -> None:
            for part in parts:
                self._queue.put(part)
            left, kept = max(back, 1), list[bytes]()
            while left > 0:
                kept.append(next(self._call))
                left -= len(kept[-1])

        return run

    def close(self) -> None:
        self._queue.put(None)
        self._channel.close()


class BareSocket:
    """The same over a plain unix socket: what comes lies in memory that is taken for it once."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)

    def exchange(self, out: int, back: int) -> Callable[[], None]:
        """One exchange: the head says how much comes, and how much is to come back."""
        body = bytes(max(out, 16) - 16)
        head = len(body).to_bytes(8, "little") + back.to_bytes(8, "little")

        def run() -> None:
            self._socket.sendmsg([head])
            self._socket.sendall(body)
            _kept(self._socket, max(back, 1))

        return run

    def close(self) -> None:
        self._socket.close()


Bares = Mapping[str, Bare | BareSocket]
"""Bare streams by name; the first is the baseline."""


def _kept(sock: socket.socket, nbytes: int) -> memoryview:
    """So many bytes, or fewer where the socket ends."""
    memory, have = memoryview(allocate(nbytes)), 0
    while have < nbytes and (count := sock.recv_into(memory[have:])):
        have += count
    return memory[:have]


def _serve_sockets(door: socket.socket) -> None:
    def serve(sock: socket.socket) -> None:
        whole = memoryview(bytes(2**20))
        with sock, suppress(ConnectionError):
            while head := _kept(sock, 16):
                left, back = (int.from_bytes(head[at : at + 8], "little") for at in (0, 8))
                kept = _kept(sock, left)
                assert len(kept) == left
                back = max(back, 1)
                while back > 0:
                    sock.sendall(whole[:back])
                    back -= len(whole)

    while True:
        threading.Thread(target=serve, args=(door.accept()[0],), daemon=True).start()


def _bare(messages: Iterator[bytes], _context: Any) -> Generator[bytes]:
    for message in messages:
        left, kept = int.from_bytes(message[:8], "little") - len(message), [message]
        back = max(int.from_bytes(message[8:16], "little"), 1)
        while left > 0:
            kept.append(next(messages))
            left -= len(kept[-1])
        whole = bytes(min(back, chunks.CHUNK))
        while back > 0:
            yield whole if back >= len(whole) else whole[:back]
            back -= len(whole)


class _Process:
    def __init__(self, pid: int, addresses: Mapping[str, str]) -> None:
        self.pid, self.addresses = pid, addresses


@contextmanager
def _process(folder: Path, authority: Authority, name: str) -> Generator[_Process]:
    tls = _tls(authority, Role.WORKER, name)
    command = [
        sys.executable,
        "-m",
        "benchmarks.network",
        name,
        str(folder),
        *map(str, (tls.ca, tls.cert, tls.key)),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        try:
            yield _Process(child.pid, json.loads(child.stdout.readline()))
        finally:
            child.stdin.close()  # what it waits for
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()


def _tls(authority: Authority, role: Role, name: str) -> TLS:
    issued = authority.issue(Identity(name, role))
    return TLS(authority.folder / "ca.pem", issued.certificate, issued.key)


def _serve(name: str, folder: Path, ca: Path, cert: Path, key: Path) -> None:
    """Serve a worker and bare streams, over unix sockets and over TLS, until standard input ends."""
    torch.set_num_threads(1)
    worker = Worker(name)
    made = partial(server_credentials, cert, key, ca)
    unix = UnixListening(worker, Address(path=str(folder / name)), by_their_word)
    secure = GrpcListening(worker, Address("127.0.0.1", 0), callers.by_certificate, made())
    bare = grpc.server(ThreadPoolExecutor(8), options=_OPTIONS)
    handler = grpc.stream_stream_rpc_method_handler(_bare)
    bare.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", {"Stream": handler}),))
    path = f"unix:{folder / name}-bare"
    bare.add_insecure_port(path)
    port = bare.add_secure_port("127.0.0.1:0", made())
    bare.start()
    door = socket.socket(socket.AF_UNIX)
    door.bind(str(folder / f"{name}-socket"))
    door.listen()
    threading.Thread(target=_serve_sockets, args=(door,), daemon=True).start()
    addresses = {"socket": door.getsockname(), "unix": str(unix.address), "tls": str(secure.address)}
    addresses |= {"bare-unix": path, "bare-tls": f"127.0.0.1:{port}"}
    print(json.dumps(addresses), flush=True)
    sys.stdin.read()
    bare.stop(0)
    unix.close(0.0)
    secure.close(0.0)


if __name__ == "__main__":
    _serve(sys.argv[1], *map(Path, sys.argv[2:6]))
