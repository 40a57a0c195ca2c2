"""Runs cases in blocks, watches time, memory and imports, and keeps the cases that failed. Makes none."""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from runtime.identity import Identity, Role
from tests.fuzz.corpus import corpus
from tests.fuzz.layers import LAYERS
from tests.fuzz.mutate import Case
from tests.fuzz.scene import Escaped
from tests.fuzz.targets import Target, listen_to_faults

BLOCK = 5000
"""Cases with one worker: enough for it to fill up, few enough to run again."""
_SECONDS = 2.0
"""Of computing, for one case at most."""
_HANG = 60.0
"""Seconds after which a case hangs: these machines are shared."""
_MEMORY = 700 * 2**20
"""Bytes that the process may grow by."""
_LAZY = ("torch", "numpy", "planc", "runtime", "msgspec", "sympy", "mpmath", "grpc", "encodings", "_")
"""Packages that load parts of themselves when they are first needed. Nothing else is imported by a case."""


@dataclass
class Outcome:
    """What came of a run."""

    cases: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    peak: int = 0
    grown: int = 0
    kinds: Counter[str] = field(default_factory=Counter[str])
    failures: list[Path] = field(default_factory=list[Path])
    problems: Counter[str] = field(default_factory=Counter[str])


class Run:
    """Cases of one layer, block by block.

    Args:
        layer: a name of `LAYERS`.
        seed: of all random numbers.
        folder: where failing cases are kept.
        place: told the block and number of every case before it is tried, for when the process dies.
    """

    def __init__(
        self, layer: str, seed: int, folder: Path, place: Callable[[int, int], None] = lambda _b, _n: None
    ) -> None:
        listen_to_faults()
        self._layer, self._seed, self._folder, self._place = layer, seed, folder, place
        self._outcome = Outcome()
        self._current: tuple[float, int, int, Case] | None = None
        self._modules: frozenset[str] = frozenset()
        self._base = 0
        threading.Thread(target=self._watch, name="fuzz-watch", daemon=True).start()

    def run(self, cases: int, seconds: float = float("inf"), most: int = 20, first: int = 0) -> Outcome:
        """Try cases; stop after so many, after so long, or at so many different failures."""
        out, start = self._outcome, time.monotonic()
        corpus()
        block = first
        while out.cases < cases and time.monotonic() - start < seconds and len(out.problems) < most:
            self._block(block, min(BLOCK, cases - out.cases), start + seconds)
            block += 1
        out.seconds = time.monotonic() - start
        out.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._current = None
        return out

    def again(self, block: int, number: int) -> None:
        """Try one case once more, with all that came before it in its block."""
        target = self.target(block)
        try:
            for at in range(number + 1):
                case = target.next()
                if at == number:
                    target.run(case)
                    return
                try:
                    target.run(case)
                except Exception:  # one that failed too is not the one that is looked for
                    continue
        finally:
            target.close()

    def target(self, block: int) -> Target:
        """What is attacked, as it is at the beginning of a block."""
        return LAYERS[self._layer](corpus(), random.Random(f"{self._seed}:{self._layer}:{block}"))

    def _block(self, block: int, cases: int, until: float) -> None:
        out, target = self._outcome, self.target(block)
        try:
            for number in range(cases):
                case = target.next()
                self._place(block, number)
                self._try(target, case, block, number)
                if out.cases % 500 == 0:
                    self._look(case, block, number)
                    if time.monotonic() > until:
                        break
        finally:
            target.close()

    def _try(self, target: Target, case: Case, block: int, number: int) -> None:
        out = self._outcome
        self._current = (time.monotonic(), block, number, case)
        began = time.thread_time()
        try:
            target.run(case)
        except Exception as error:
            self.keep(case, block, number, error)
        spent = time.thread_time() - began
        out.cases += 1
        out.kinds[case.kind] += 1
        out.slowest = max(out.slowest, spent)
        if spent > _SECONDS:
            self.keep(case, block, number, Escaped(f"a {case.kind} case took {spent:.1f} s of computing"))

    def _look(self, case: Case, block: int, number: int) -> None:
        """Look at what grows slowly: imported modules and memory."""
        out, now = self._outcome, frozenset(sys.modules)
        if self._modules:
            new = {name for name in now - self._modules if not name.startswith(_LAZY)}
            if new:
                self.keep(case, block, number, Escaped(f"modules were imported: {sorted(new)}"))
        self._modules = now
        size = _resident()
        self._base = self._base or size
        out.grown = max(out.grown, size - self._base)
        if size - self._base > _MEMORY:
            self.keep(case, block, number, Escaped(f"the process has grown by {size - self._base} bytes"))
            self._base = size

    def keep(self, case: Case, block: int, number: int, error: BaseException) -> None:
        """Write a failing case down, if it is the first of its like."""
        cause = error.__cause__ or error
        frames = traceback.extract_tb(cause.__traceback__)
        at = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "no place"
        problem = f"{type(cause).__name__} at {at}: {str(cause)[:160]}"
        like = (
            f"{type(cause).__name__} at {at}"
            if error.__cause__ or not isinstance(error, Escaped)
            else problem
        )
        self._outcome.problems[like] += 1
        if self._outcome.problems[like] > 1:
            return
        path = self._folder / f"{self._layer}-{self._seed}-{block}-{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump(case, self._layer, self._seed, block, number, problem))
        self._outcome.failures.append(path)
        print(f"FAILED {problem}\n  python -m tests.fuzz --replay {path}", flush=True)

    def _watch(self) -> None:
        while True:
            time.sleep(1.0)
            current = self._current
            if current is not None and time.monotonic() - current[0] > _HANG:
                self.keep(current[3], current[1], current[2], Escaped("the case hangs"))
                os._exit(3)


def dump(case: Case, layer: str, seed: int, block: int, number: int, problem: str) -> str:
    """A case as a file that can be replayed."""
    return json.dumps(
        {
            "layer": layer,
            "seed": seed,
            "block": block,
            "number": number,
            "problem": problem,
            "kind": case.kind,
            "identity": [case.identity.name, case.identity.role.value],
            "frames": [frame.hex() for frame in case.frames],
        },
        indent=1,
    )


def replay(path: Path) -> BaseException | None:
    """What goes wrong with a case that was kept: alone, or after the cases before it; None if nothing."""
    kept = json.loads(path.read_text())
    run = Run(kept["layer"], kept["seed"], path.parent)
    name, role = kept["identity"]
    frames = tuple(bytes.fromhex(frame) for frame in kept["frames"])
    target = run.target(kept["block"])
    try:
        target.run(Case(kept["kind"], Identity(name, Role(role)), frames))
    except Exception as error:
        return error
    finally:
        target.close()
    try:
        run.again(kept["block"], kept["number"])
    except Exception as error:
        return error
    return None


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
