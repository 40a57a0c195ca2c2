"""Starts Python programs in a moment: a process that has all modules loaded, and forks. `processes` asks it.

``python -m tests.federated.chaos.forking`` reads requests from its standard input, a JSON value a line, and
answers each by a number. When the input ends, so does all that it started, with SIGKILL.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import traceback

import safetensors.torch  # noqa: F401
import torch

# Loaded, and nothing of them used: what is forked has no threads and no connections yet.
import planc.cli  # noqa: F401
import runtime.federated
import runtime.serving.greeting
import runtime.serving.logs
import runtime.serving.process  # noqa: F401


def serve() -> None:
    """Do ``["start", out, module, *args]``: its process id; and ``["wait", pid]``: its exit status."""
    children: set[int] = set()
    try:
        for line in sys.stdin:
            verb, *words = json.loads(line)
            if verb == "start":
                answer = os.fork()
                if not answer:
                    become(*words)
                children.add(answer)
            else:
                answer = os.waitstatus_to_exitcode(os.waitpid(words[0], 0)[1])
                children.discard(words[0])
            print(answer, flush=True)
    finally:
        for pid in children:  # dead or not: who was not waited for keeps its number
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)


def become(out: str, module: str, *args: str) -> None:
    """Be ``python -m module args``, with all that it prints in a file."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.argv = [module, *args]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve()
