"""Every pass on plans written as text: what comes out, and what the pass says that it did.

A file under ``golden/<pass>/`` is a plan, a line ``# == after: <notes>``, lines ``# == missed: ...`` of what
the pass nearly did, and the plan that comes out.
``PLANC_UPDATE_GOLDEN=1 pytest tests/passes`` rewrites everything below that line; read the difference.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from planc.ir.program import Program
from planc.passes import OPTIONAL, PASSES, PassResult, run_pipeline
from planc.text import parse, show
from planc.verifier import verify

FOLDER = Path(__file__).parent / "golden"
FILES = sorted(FOLDER.rglob("*.plan"))
MARK = re.compile(r"^# == after: .*\n", re.MULTILINE)


def run(name: str, program: Program) -> PassResult:
    if name == "pipeline":
        done = run_pipeline(program)
        notes = [f"{r.name} {r.nodes_before} -> {r.nodes_after}" for r in done.by_pass()]
        return PassResult(done.program, done.modified, tuple(notes))
    (chosen,) = (step for step in (*PASSES, *OPTIONAL) if step.name == name)
    return chosen.apply(program)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_golden(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    mark = MARK.search(text)
    before = text[: mark.start()] if mark else text.rstrip("\n") + "\n\n"
    module = parse(before, file=path.name)
    program = Program(module.main, module.constants)
    verify(program.graph)
    done = run(path.parent.name, program)
    after = show(done.program.graph, done.program.constants).rstrip("\n")
    missed = "".join(f"# == missed: {reason}\n" for reason in done.missed)
    got = f"{before}# == after: {'; '.join(done.notes) or 'nothing'}\n{missed}{after}\n"
    if os.environ.get("PLANC_UPDATE_GOLDEN"):
        path.write_text(got, encoding="utf-8")
    else:
        assert got == text
    verify(done.program.graph)
    assert done.modified == (after != show(program.graph, program.constants).rstrip("\n"))
    again = run(path.parent.name, done.program)
    assert not again.modified, "a pass finishes its work in one go"
    assert again.program is done.program or path.parent.name == "pipeline"


def test_every_pass_has_golden_files() -> None:
    assert {step.name for step in (*PASSES, *OPTIONAL)} | {"pipeline"} == {path.parent.name for path in FILES}
