"""The layering: who may import whom, as one table, checked on every import statement of the two packages.

Imports inside functions and under TYPE_CHECKING count too: the dependency direction never turns.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Part of planc (a folder or module directly below it) -> the other parts that it may import. A new part needs
# a line here: that is the moment to think about its place.
BASE = {"errors", "ir", "ops"}
MIDDLE = BASE | {"limits", "verifier"}
BELOW_CAPTURE = MIDDLE | {"text", "codec", "passes", "lower", "cost"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "ir": {"errors"},
    "ops": {"errors", "ir"},
    "limits": {"errors", "ir"},
    "verifier": BASE | {"limits"},
    "text": MIDDLE,
    "codec": MIDDLE,
    "passes": MIDDLE,
    "lower": MIDDLE,
    "cost": MIDDLE | {"lower"},  # peak memory is that of the lowered plan
    "draw": BASE | {"cost", "text"},
    "capture": BELOW_CAPTURE,
    "plans": BELOW_CAPTURE | {"capture", "draw"},
    "diff": BASE | {"cost", "text", "draw", "plans"},
    "api": BELOW_CAPTURE | {"capture", "plans"},
    "__init__": BELOW_CAPTURE | {"capture", "plans", "api"},
    "__main__": {"cli"},
    "cli": BELOW_CAPTURE | {"capture", "draw", "diff", "plans", "api", "__init__"},
}
RUNTIME_MAY_IMPORT = ALLOWED.keys() - {"cli", "__main__"}

# Nothing unpickles: no program and no data travels that way. cloudpickle is for the channels of the
# caller's own trust domain alone.
PICKLES = {"pickle", "_pickle", "marshal", "shelve", "dill", "joblib"}


@dataclass(frozen=True)
class Import:
    """One imported module: dotted name, line, and whether the statement stands inside a function."""

    module: str
    line: int
    in_function: bool


def imports_of(source: str, package: str) -> list[Import]:
    """Every import in a module of ``package``; ``from a import b`` counts as ``a.b``."""
    found: list[Import] = []

    def visit(node: ast.AST, in_function: bool) -> None:
        match node:
            case ast.Import():
                found.extend(Import(alias.name, node.lineno, in_function) for alias in node.names)
            case ast.ImportFrom():
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                found.extend(Import(f"{base}.{alias.name}", node.lineno, in_function) for alias in node.names)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                in_function = True
            case _:
                pass
        for child in ast.iter_child_nodes(node):
            visit(child, in_function)

    visit(ast.parse(source), False)
    return found


def part_of(module: str) -> str:
    """The part of planc of a name: ``ir`` for ``planc.ir.types``, ``__init__`` for ``planc.plan``."""
    part = [*module.split("."), "__init__"][1]
    is_module = (
        part in ALLOWED or (ROOT / "planc" / part).is_dir() or (ROOT / "planc" / f"{part}.py").is_file()
    )
    return part if is_module else "__init__"


def violations(path: Path, source: str) -> list[str]:
    """What the import statements of one file (relative to the root) break, one line each."""
    top, name = path.parts[0], path.parts[1].removesuffix(".py")
    package = ".".join(path.parent.parts)
    out: list[str] = []
    for found in imports_of(source, package):
        target, broken = found.module.split(".")[0], None
        if target in PICKLES:
            broken = "nothing unpickles"
        elif target == "cloudpickle" and top == "planc":
            broken = "planc never pickles"
        elif target == "runtime" and top == "planc":
            if name != "cli":
                broken = "planc never imports runtime"
            elif not found.in_function:
                broken = "planc.cli imports runtime only inside functions"
        elif target == "planc":
            part = part_of(found.module)
            allowed = ALLOWED[name] | {name} if top == "planc" else RUNTIME_MAY_IMPORT
            if part not in allowed:
                broken = (
                    f"{top if top == 'runtime' else f'planc.{name}'} may import {sorted(allowed)} of planc"
                )
        if broken:
            out.append(f"{path}:{found.line}: imports {found.module}: {broken}")
    return out


FILES = sorted(p.relative_to(ROOT) for top in ("planc", "runtime") for p in (ROOT / top).rglob("*.py"))


def test_every_part_of_planc_has_its_place() -> None:
    parts = {path.parts[1].removesuffix(".py") for path in FILES if path.parts[0] == "planc"}
    assert parts <= ALLOWED.keys(), "give the new part its line in ALLOWED"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_keep_the_layering(path: Path) -> None:
    assert violations(path, (ROOT / path).read_text(encoding="utf-8")) == []


def test_the_table_has_no_cycle() -> None:
    """If the table itself turned round, keeping to it would prove nothing."""
    done: set[str] = set()
    while ready := {part for part in ALLOWED.keys() - done if ALLOWED[part] <= done}:
        done |= ready
    assert done == ALLOWED.keys()


@pytest.mark.parametrize(
    ("path", "source", "broken"),
    [
        ("planc/ir/types.py", "from planc.ops import table", "planc.ops.table: planc.ir may import"),
        ("planc/ir/types.py", "from planc import ops", "planc.ops: planc.ir may import"),
        ("planc/ir/types.py", "import planc", "imports planc: planc.ir may import"),
        ("planc/ir/types.py", "from ..ops import table", "planc.ops.table: planc.ir may import"),
        ("planc/text/parser.py", "def f():\n  import planc.capture.trace", ":2: imports planc.capture.trace"),
        ("planc/passes/cse.py", "if TYPE_CHECKING:\n  from planc.cli import main", ":2: imports planc.cli"),
        ("planc/cost.py", "def f():\n  from runtime import Worker", "planc never imports runtime"),
        ("planc/cli.py", "import runtime", "only inside functions"),
        ("planc/codec/bytes.py", "import pickle", "nothing unpickles"),
        ("planc/codec/bytes.py", "import cloudpickle", "planc never pickles"),
        ("runtime/worker.py", "from planc.cli import main", "runtime may import"),
        ("runtime/worker.py", "from pickle import loads", "nothing unpickles"),
    ],
)
def test_a_broken_rule_is_found(path: str, source: str, broken: str) -> None:
    (line,) = violations(Path(path), source)
    assert broken in line


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "planc/ir/types.py",
            "from planc.errors import VerifyError\nfrom planc.ir.dims import Dim\nimport torch",
        ),
        ("planc/ir/plan.py", "from . import types\nfrom .types import Dim"),
        ("planc/lower/plan.py", "from planc.ops.table import OPS\nfrom planc.verifier import verify"),
        ("planc/cli.py", "def demo():\n  from runtime.demo import main"),
        ("planc/cli.py", "import planc\nfrom planc import trace"),
        ("runtime/worker.py", "import planc\nfrom planc.codec import decode\nimport runtime.store"),
        ("runtime/channels/local.py", "import cloudpickle"),
    ],
)
def test_a_kept_rule_is_not_reported(path: str, source: str) -> None:
    assert violations(Path(path), source) == []
