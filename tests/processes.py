"""Starting real Python processes from tests, in the state that a person's shell would start them in."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any


def start(code: str, *args: str, **options: Any) -> subprocess.Popen[str]:
    """A process that runs ``code``, its output piped.

    A test run may itself have been started with SIGINT ignored (in the background of a script), and children
    inherit that; an interrupt must reach this one all the same.
    """
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_interruptible,
        **options,
    )


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
