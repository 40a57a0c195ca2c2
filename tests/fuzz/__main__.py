"""``python -m tests.fuzz [--cases N] [--seed S] [--seconds T] [--layer L]``: attack a worker with bytes.

``--replay FILE`` tries a case again that failed; ``--atheris`` lets coverage guide the bytes (needs atheris).
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import torch

from tests.fuzz.corpus import corpus
from tests.fuzz.layers import LAYERS
from tests.fuzz.mutate import Case
from tests.fuzz.running import Outcome, Run, dump, replay
from tests.fuzz.scene import EVE
from tests.fuzz.targets import Frames, listen_to_faults

_PLACE = struct.Struct("<QQ")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="of each layer (10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each layer at most")
    parser.add_argument("--layer", choices=[*LAYERS], action="append", help="all if none")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="where cases are kept")
    parser.add_argument("--replay", type=Path, metavar="FILE")
    parser.add_argument("--atheris", action="store_true", help="let coverage guide the bytes of frames")
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.replay:
        error = replay(options.replay)
        if error is None:
            print("nothing goes wrong")
            return 0
        traceback.print_exception(error)
        return 1
    if options.atheris:
        return _guided(options.seconds)
    if options.place is None:
        return _supervise(options)
    for layer in options.layer or LAYERS:
        _attack(layer, options)
    return 0


def _attack(layer: str, options: argparse.Namespace) -> None:
    """Run one layer in this process, and print what came of it."""
    # What goes wrong in memory is an error here before it is one of the machine.
    resource.setrlimit(resource.RLIMIT_AS, (48 * 2**30, resource.RLIM_INFINITY))
    with open(options.place, "r+b") as file, mmap.mmap(file.fileno(), _PLACE.size) as area:
        run = Run(
            layer, options.seed, options.failures, lambda block, at: _PLACE.pack_into(area, 0, block, at)
        )
        print(report(layer, run.run(options.cases, options.seconds)), flush=True)


def report(layer: str, out: Outcome) -> str:
    """An outcome as people read it."""
    lines = [
        f"{layer}: {out.cases:,} cases in {out.seconds:.0f} s ({out.cases / max(out.seconds, 1e-9):,.0f}/s), "
        f"slowest {out.slowest:.2f} s, memory {out.peak / 2**20:,.0f} MiB at its peak, "
        f"grown by {out.grown / 2**20:,.0f} MiB, {len(out.problems)} problems",
        "  " + ", ".join(f"{kind} {count:,}" for kind, count in sorted(out.kinds.items())),
    ]
    return "\n".join([*lines, *(f"  {count:,} x {problem}" for problem, count in out.problems.most_common())])


def _supervise(options: argparse.Namespace) -> int:
    """Run each layer in a process of its own: a crash of native code is a failing case like any other."""
    failed = False
    for layer in options.layer or LAYERS:
        with tempfile.NamedTemporaryFile() as place:
            place.write(bytes(_PLACE.size))
            place.flush()
            command = [sys.executable, "-m", "tests.fuzz", "--place", place.name, "--layer", layer]
            command += ["--cases", str(options.cases), "--seed", str(options.seed)]
            command += ["--seconds", str(options.seconds), "--failures", str(options.failures)]
            status = subprocess.run(command, check=False).returncode
            if status:
                block, number = _PLACE.unpack(Path(place.name).read_bytes()[: _PLACE.size])
                _keep_crash(layer, options, block, number, status)
            failed |= bool(status)
    return int(failed or (options.failures.is_dir() and any(options.failures.iterdir())))


def _keep_crash(layer: str, options: argparse.Namespace, block: int, number: int, status: int) -> None:
    """Find the case at which a process died, and write it down."""
    target = LAYERS[layer](corpus(), random.Random(f"{options.seed}:{layer}:{block}"))
    case: Case = target.next()
    for _ in range(number):
        case = target.next()
    target.close()
    problem = f"the process died with status {status}"
    path = options.failures / f"{layer}-{options.seed}-{block}-{number}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump(case, layer, options.seed, block, number, problem))
    print(f"FAILED {problem}\n  python -m tests.fuzz --replay {path}", flush=True)


def _guided(seconds: float) -> int:
    """Let atheris choose the bytes of single frames: with coverage of all that reads them."""
    import atheris  # pyright: ignore[reportMissingImports]

    listen_to_faults()
    target = Frames(corpus(), random.Random(0))

    def one(data: bytes) -> None:
        target.run(Case("guided", EVE, (data,)))

    with tempfile.TemporaryDirectory() as folder:
        for number, frame in enumerate(corpus().frames):
            Path(folder, str(number)).write_bytes(frame)
        limit = [] if seconds == float("inf") else [f"-max_total_time={int(seconds)}"]
        atheris.instrument_all()
        atheris.Setup([sys.argv[0], *limit, "-max_len=8192", "-rss_limit_mb=4096", folder], one)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
