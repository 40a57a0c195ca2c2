"""Errors leave as one message on standard error and a stable exit code, never as a traceback."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from planc import errors
from planc.cli import failures
from tests.cli.conftest import Call
from tests.cli.golden import check
from tests.cli.test_compile import NETS
from tests.processes import start

ROOT = Path(__file__).parents[2]

WRONG = {
    "typo.plan": "plan p(x: f32[b]) {\n  return embeding(x)\n}\n",
    "shapes.plan": "plan p(x: f32[b, 4], y: f32[3, 2]) {\n  return x @ y\n}\n",
    "cut.plan": "plan p(x: f32[b]) {\n  return x\n",
    "bytes.plan": "plan p(x: f32[b]) {\n  # caf\xe9\n  return x\n}\n",
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("command", ["compile", "show", "check", "cost", "run"])
def test_a_wrong_text(call: Call, folder: Path, name: str, command: str) -> None:
    (folder / name).write_text(WRONG[name], encoding="latin-1")
    result = call(command, name, code=3)
    assert result.stdout == ""
    check(f"{name.removesuffix('.plan')}_error.txt", result.stderr)
    assert not list(folder.glob("*.planc"))


def test_any_flipped_byte_of_an_artifact_is_found(call: Call, folder: Path) -> None:
    call("compile", "predict.plan")
    data = (folder / "predict.planc").read_bytes()
    header = range(68)
    for place in (*header, *range(68, len(data), 11), len(data) - 1):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        (folder / "bad.planc").write_bytes(flipped)
        assert call("check", "bad.planc", code=5).stderr.startswith("error: bad.planc: ")


@pytest.mark.parametrize("length", [0, 1, 40, 67, 200])
def test_a_truncated_artifact_is_found(call: Call, folder: Path, length: int) -> None:
    call("compile", "predict.plan")
    data = (folder / "predict.planc").read_bytes()
    (folder / "bad.planc").write_bytes(data[:length])
    assert call("show", "bad.planc", code=5).stderr.startswith("error: bad.planc: ")


def test_an_artifact_by_the_name_of_a_text(call: Call, folder: Path) -> None:
    call("compile", "predict.plan", "-o", "odd.plan")
    assert "odd.plan:1:1: error: the file is an artifact, not text" in call("show", "odd.plan", code=3).stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["compile"], 2, "Missing argument 'SRC'"),
        (["compile", "predict"], 2, "'predict' names no plan: expected FILE.plan, FILE.planc"),
        (["compile", "predict.plan", "--emit", "pdf"], 2, "'pdf'"),
        (["compile", "predict.plan", "--dim", "b"], 2, "expected NAME=SIZE, got 'b'"),
        (["compile", "predict.plan", "--dim", "b=x"], 2, "expected NAME=SIZE, got 'b=x'"),
        (["compile", "predict.plan", "--dim", "b=1", "--dim", "b=2"], 2, "dim b is given twice"),
        (["compile", "predict.plan", "--dim", "b=1", "--batch", "2"], 2, "dim b is given by --dim too"),
        (["compile", "predict.plan", "--emit", "text", "--json"], 2, "needs -o OUT"),
        (["compile", "predict.plan", "--dim", "b=1025"], 6, "dim b is 1025, outside its range 1..1024"),
        (["cost", "predict.plan", "--dim", "n=3"], 6, "has no dim n; its dims: b"),
        (["show", "missing.plan"], 8, "missing.plan: No such file or directory"),
        (["show", "missing.planc"], 8, "missing.planc: No such file or directory"),
        (["compile", "predict.plan", "-o", "no/such/folder.planc"], 8, "folder.planc: cannot write"),
        (["compile", "predict.plan", "--emit", "dot", "-o", "no/a.dot"], 8, "no/a.dot: No such file"),
        (["check", "missing.py:plan"], 7, "cannot import missing.py: there is no such file"),
        (["check", "missing_module:plan"], 7, "No module named 'missing_module'"),
        (["check", "nets.py:parsd"], 7, "nets.py has no 'parsd'; did you mean 'parsed'?"),
        (["check", "nets.py:number"], 7, "nets.py:number is of type int, not a plan; make one with"),
        (["check", "nets.py:Inner"], 7, "nets.py:Inner is a class, not a plan"),
        (["check", "nets.py:unbuilt"], 4, "unbuilt is not built yet"),
        (["check", "broken.py:plan"], 7, "ZeroDivisionError: division by zero\n  at "),
        (["check", "syntax.py:plan"], 7, "syntax.py:1: SyntaxError"),
        (["check", "leaves.py:plan"], 7, "cannot import leaves.py: SystemExit: 3"),
        (["check", "captured.py:plan"], 7, "data-dependent"),
        (["check", "typo.py:plan"], 3, "typo.plan:1:"),
    ],
)
def test_exit_codes(call: Call, folder: Path, args: list[str], code: int, message: str) -> None:
    (folder / "nets.py").write_text(NETS)
    (folder / "broken.py").write_text("plan = 1\n\ndef half():\n    return 1 / 0\n\nhalf()\n")
    (folder / "syntax.py").write_text("def (\n")
    (folder / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "captured.py").write_text(
        "from planc.errors import CaptureError\nraise CaptureError('data-dependent')\n"
    )
    (folder / "typo.py").write_text("import planc\nplan = planc.parse('plan p(', 'typo.plan')\n")
    result = call(*args, code=code)
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_every_error_has_its_code() -> None:
    """The table by example: a class added to the tree gets the code of the class above it."""
    expected = {
        errors.PlancError: 1,
        errors.ParseError: 3,
        errors.ElaborationError: 3,
        errors.PlanError: 4,
        errors.VerifyError: 4,
        errors.LimitError: 4,
        errors.DecodeError: 5,
        errors.VersionError: 5,
        errors.InputError: 6,
        errors.CaptureError: 7,
        errors.UnsupportedOpError: 7,
        errors.DataError: 8,
        FileNotFoundError: 8,
        errors.ExecutionError: 9,
        KeyboardInterrupt: 130,
        ZeroDivisionError: None,
    }
    assert {kind: failures.exit_code(kind.__new__(kind)) for kind in expected} == expected


@pytest.mark.parametrize(
    ("raised", "code"), [(errors.ExecutionError("it broke"), 9), (KeyboardInterrupt(), 130)]
)
def test_errors_of_a_command(raised: BaseException, code: int) -> None:
    commands = typer.Typer(cls=failures.Commands)

    @commands.command()
    def fail() -> None:
        raise raised

    @commands.command()
    def other() -> None: ...

    result = CliRunner().invoke(commands, ["fail"])
    assert (result.exit_code, result.stderr.strip()) == (code, failures.render(raised))


def test_a_bug_keeps_its_traceback() -> None:
    commands = typer.Typer(cls=failures.Commands)

    @commands.command()
    def fail() -> None:
        raise ZeroDivisionError

    @commands.command()
    def other() -> None: ...

    assert isinstance(CliRunner().invoke(commands, ["fail"]).exception, ZeroDivisionError)


def test_help_lists_the_exit_codes(call: Call) -> None:
    shown = call("--help").stdout
    for entry in failures.EXITS:
        assert f"{entry.code:<4} {entry.meaning}" in shown
    assert max(map(len, shown.splitlines())) <= 80


def _process(folder: Path, *args: str) -> subprocess.Popen[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from planc.cli import main; main()"
    return start(code, *args, cwd=folder)


def test_a_real_process_writes_the_artifact(folder: Path) -> None:
    process = _process(folder, "compile", "predict.plan")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    check("compile_predict.txt", out)


def test_a_real_process_reports_an_error(folder: Path) -> None:
    (folder / "typo.plan").write_text(WRONG["typo.plan"])
    process = _process(folder, "check", "typo.plan")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (3, "")
    check("typo_error.txt", err)


def test_a_real_process_is_interrupted(folder: Path) -> None:
    (folder / "slow.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(120)\n")
    process = _process(folder, "check", "slow.py:plan")
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, "interrupted\n")
