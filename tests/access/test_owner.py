"""The owner's handle and commands: what they show, what they ask, and that nobody else gets through."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from planc.cli import failures, worker_owner
from planc.errors import DecodeError
from runtime.audit.log import AuditLog
from runtime.channels import Connection
from runtime.errors import ApprovalNeeded, PermissionDenied, PlanNotFound
from runtime.messages import Keep, OwnerObjects, OwnerPlans, Pending, PendingFound, Return, Run
from runtime.owner import OwnerHandle, owner_of
from runtime.worker import Worker
from tests.access.helpers import connect
from tests.runtime.helpers import adding, constant_sum, handles, identity, install, new_id, put

SECRET = 31337.5
Call = Callable[..., Any]


@pytest.fixture
def bob(tmp_path: Path) -> Worker:
    return Worker("bob", audit=AuditLog(tmp_path / "audit.jsonl"))


@pytest.fixture
def me(bob: Worker) -> Connection:
    return connect(bob)


@pytest.fixture
def patients(bob: Worker) -> int:
    return bob.add(
        torch.full((3,), SECRET), tags=("#patients",), description="ward 3", private=True, name="patients"
    )


@pytest.fixture
def call(bob: Worker, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call ``planc worker`` with these arguments, as the owner of bob."""

    @contextmanager
    def owner(_socket: Path | None) -> Iterator[OwnerHandle]:
        yield owner_of(bob)

    monkeypatch.setattr(worker_owner, "_owner", owner)
    import typer

    app = typer.Typer(cls=failures.Commands, pretty_exceptions_enable=False)
    app.add_typer(worker_owner.app)

    @app.callback()
    def planc() -> None:
        pass

    def run(*args: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["worker", *args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run


def ask(me: Connection, plan: str, *ids: int) -> None:
    with pytest.raises(ApprovalNeeded):
        me.call(Run(plan, handles(*ids), (Return(),) * len(ids)))


def test_status(bob: Worker, me: Connection, patients: int, call: Call) -> None:
    put(me, torch.ones(3))
    ask(me, install(me, identity()), patients)
    status = owner_of(bob).status()
    assert (status.worker, status.device, status.objects, status.bytes) == ("bob", "cpu", 2, 24)
    assert (status.plans, status.running, status.pending) == (1, 0, 1)
    assert 0 <= status.uptime < 60
    (ann,) = status.clients
    assert (ann.name, ann.sessions, ann.requests, ann.refused, ann.running) == ("ann", 1, 3, 1, 0)
    assert ann.bytes == 12 + status.plan_bytes
    shown = call("status").stdout
    assert "worker bob on cpu" in shown
    assert "1 plan waiting for a decision" in shown
    assert "1 session" in shown
    found = json.loads(call("status", "--json").stdout)
    assert found["clients"][0]["name"] == "ann"
    assert found["audit"] == {"line": status.audit[0], "hash": status.audit[1]}  # type: ignore[index]


def test_objects_of_everybody_without_their_elements(
    bob: Worker, me: Connection, patients: int, call: Call
) -> None:
    mine = put(me, torch.full((2, 2), SECRET))
    shown = {each.id: each for each in owner_of(bob).objects()}
    assert shown.keys() == {patients, mine}
    assert (shown[patients].owner, shown[patients].private, shown[patients].bytes) == ("bob", True, 12)
    assert (shown[mine].owner, shown[mine].shape, shown[mine].private) == ("ann", (2, 2), False)
    for output in (call("objects").stdout, call("objects", "--json").stdout):
        assert "31337" not in output
        assert "f32[2, 2]" in output
        assert "#patients" in output
    assert json.loads(call("objects", "--json").stdout)[0]["type"]


def test_plans_of_everybody_and_what_was_decided(bob: Worker, me: Connection, call: Call) -> None:
    plan = install(me, identity(), tags=("#p",))
    install(connect(bob, "cas"), identity())
    owner = owner_of(bob)
    owner.approve(plan, clients=("ann",), inputs={"x": ("#patients",)}, runs=3)
    owner.deny("f" * 64, "never")
    found = {each.plan_id: each for each in owner.plans()}
    assert (found[plan].clients, found[plan].name, found[plan].denied) == (("ann", "cas"), "identity", None)
    assert found["f" * 64].denied == "never"
    shown = call("plans").stdout
    assert "approved for ann, on x = #patients, 3 runs" in shown
    assert "denied: never" in shown
    listed = json.loads(call("plans", "--json").stdout)
    assert listed[0]["approvals"] == [
        {"clients": ["ann"], "inputs": {"x": ["#patients"]}, "runs": 3, "expires": None}
    ]


def test_pending_plans_come_whole(bob: Worker, me: Connection, patients: int, call: Call) -> None:
    assert "no plan is waiting" in call("pending").stdout
    constant = torch.arange(3.0)
    plan = install(me, constant_sum(constant), constant, description="a sum")
    ask(me, plan, patients)
    (waiting,) = owner_of(bob).pending()
    assert waiting.plan.id == plan
    assert waiting.plan.constants.keys() == {next(iter(waiting.plan.constants))}
    assert waiting.asked[0].inputs == {"x": str(patients)}
    shown = call("pending").stdout
    assert plan in shown
    assert "asked for by ann" in shown
    assert json.loads(call("pending", "--json").stdout)[0]["text"] == waiting.plan.text


def test_approve_shows_all_of_it_and_approves_what_was_asked(
    bob: Worker, me: Connection, patients: int, call: Call
) -> None:
    plan = install(me, identity())
    ask(me, plan, patients)
    shown = call("approve", plan[:8], "--yes", "--runs", "1").stdout
    (waiting,) = [each for each in owner_of(bob).plans() if each.plan_id == plan]
    assert waiting.approvals[0].clients == ("ann",)
    assert waiting.approvals[0].inputs == {"x": (str(patients),)}
    for part in (
        f"id   {plan}",
        "plan identity(x: f32[n])",
        "FLOPs",
        "what would leave",
        "y  f32[n]",
        "asked for by ann, on",
        f"x: private f32[3] of bob, object {patients} #patients",
        f"approve for ann, on x = {patients}, 1 run",
        f"approved {plan}",
    ):
        assert part in shown, part
    assert "31337" not in shown
    eve = connect(bob, "eve")
    with pytest.raises(PermissionDenied):
        eve.call(Run(plan, handles(patients), (Return(),)))
    me.call(Run(plan, handles(patients), (Return(),)))
    with pytest.raises(PermissionDenied):
        me.call(Run(plan, handles(patients), (Return(),)))


def test_each_client_that_asked_gets_its_own_data(
    bob: Worker, me: Connection, patients: int, call: Call
) -> None:
    other = bob.add(torch.ones(3), tags=("#other",), private=True)
    plan = install(me, identity())
    ask(me, plan, patients)
    ask(connect(bob, "cas"), plan, other)
    call("approve", plan, "--yes")
    me.call(Run(plan, handles(patients), (Return(),)))
    with pytest.raises(PermissionDenied):
        me.call(Run(plan, handles(other), (Return(),)))


def test_it_says_what_the_client_chooses(bob: Worker, me: Connection, patients: int, call: Call) -> None:
    plan = install(me, adding())
    ask(me, plan, patients, put(me, torch.ones(3)))
    shown = call("approve", plan, "--yes").stdout
    assert "the client chooses what stands at\n  y  f32[n]" in shown


def test_nothing_is_approved_without_an_answer(
    bob: Worker, me: Connection, patients: int, call: Call
) -> None:
    plan = install(me, identity())
    ask(me, plan, patients)
    result = call("approve", plan, code=6)
    assert "no terminal to ask on" in result.stderr
    assert "what would leave" in result.stdout  # it was shown before
    call("approve", plan, "--json", code=6)
    assert not bob._site.approvals.of(plan).approved


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_on_a_terminal_it_asks(
    bob: Worker,
    me: Connection,
    patients: int,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    code: int,
) -> None:
    plan = install(me, identity())
    ask(me, plan, patients)
    asked: list[str] = []

    def confirm(question: str) -> bool:
        asked.append(question)
        return answer == "y"

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(worker_owner, "typer", _With(worker_owner.typer, confirm=confirm))
    monkeypatch.setattr(worker_owner, "sys", _With(worker_owner.sys, stdin=Terminal()))
    call("approve", plan, code=code)
    assert asked == [f"approve plan {plan}?"]
    assert bool(bob._site.approvals.of(plan).approved) == (code == 0)


class _With:
    """A module with some of its names replaced."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def test_wider_approvals_have_to_be_said(bob: Worker, me: Connection, patients: int, call: Call) -> None:
    plan = install(me, identity())
    assert "say whom it is for" in call("approve", plan, "--yes", code=6).stderr
    assert "say on which data" in call("approve", plan, "--client", "ann", "--yes", code=6).stderr
    assert "say on which data" in call("approve", plan, "--any-client", "--yes", code=6).stderr
    assert "exclude" in call("approve", plan, "--any-client", "--client", "x", "--yes", code=6).stderr
    assert "exclude" in call("approve", plan, "--any-data", "--input", "x=1", "--yes", code=6).stderr
    assert "PATH=TAG_OR_ID" in call("approve", plan, "--client", "a", "--input", "x", "--yes", code=6).stderr
    assert "no input 'z'" in call("approve", plan, "--any-client", "--input", "z=#a", "--yes", code=6).stderr
    assert "10 min" in call("approve", plan, "--any-client", "--any-data", "--expires", "soon", code=6).stderr
    assert not bob._site.approvals.of(plan).approved
    shown = call(
        *("approve", plan, "--client", "ann", "--client", "cas", "--input", "x=#patients", "--input", "x=#b"),
        *("--expires", "2 d", "--yes", "--json"),
    ).stdout
    (approval,) = json.loads(shown)["approved"]
    assert approval["clients"] == ["ann", "cas"]
    assert approval["inputs"] == {"x": ["#patients", "#b"]}
    assert approval["expires"] > 0
    assert "any private originals" in call("approve", plan, "--any-client", "--any-data", "--yes").stdout


def test_ids_have_to_be_clear(bob: Worker, me: Connection, call: Call) -> None:
    plan = install(me, identity())
    assert "at least 8" in call("approve", plan[:7], "--yes", code=6).stderr
    assert "no plan here" in call("approve", "0" * 64, "--yes", code=6).stderr
    assert "no plan here" in call("deny", "0" * 64, code=6).stderr


def test_deny(bob: Worker, me: Connection, patients: int, call: Call) -> None:
    plan = install(me, identity())
    ask(me, plan, patients)
    assert plan in call("deny", plan[:10], "--reason", "too much").stdout
    with pytest.raises(PermissionDenied, match="too much"):
        me.call(Run(plan, handles(patients), (Keep(new_id()),)))
    assert json.loads(call("deny", plan, "--json").stdout) == {"id": plan, "denied": ""}


def test_words_of_clients_cannot_move_the_cursor_or_look_like_others(
    bob: Worker, patients: int, call: Call
) -> None:
    me = connect(bob, "an\u0438\x1b[2J")
    put(me, torch.ones(1), tags=("#\x1b[1A\n",), description="\r")
    plan = install(me, identity(), description="\x1b]0;owned\x07")
    ask(me, plan, patients)
    for command in (("status",), ("objects",), ("plans",), ("pending",), ("approve", plan, "--yes")):
        shown = call(*command).stdout
        assert shown.isascii()
        assert all(c.isprintable() or c == "\n" for c in shown)


def test_the_handle_reads_only_what_the_id_names(bob: Worker, me: Connection, patients: int) -> None:
    """A worker that was broken into must not show one plan and have another approved."""
    plan = install(me, identity())
    ask(me, plan, patients)
    handle = owner_of(bob)
    assert handle.plan(plan).id == plan
    with pytest.raises(PlanNotFound):
        handle.plan("0" * 64)
    real = handle._connection.call

    def lying(body: Any, tensors: Any = ()) -> Any:
        answer, back = real(body, tensors)
        if isinstance(answer, PendingFound):
            items = tuple(type(item)("0" * 64, item.plan, {}, "", item.asked) for item in answer.items)
            return PendingFound(items), back
        return answer, back

    handle._connection.call = lying  # type: ignore[method-assign]
    with pytest.raises(DecodeError, match=f"the worker sent plan {plan} for 0000"):
        handle.pending()


def test_audit_prints_filters_and_checks(
    bob: Worker, me: Connection, patients: int, call: Call, tmp_path: Path
) -> None:
    file = str(tmp_path / "audit.jsonl")
    put(me, torch.ones(3))
    ask(me, install(me, identity()), patients)
    put(connect(bob, "cas"), torch.ones(3))
    shown = call("audit", file).stdout.splitlines()
    assert len(shown) == 4
    assert "private #patients of bob" in shown[2]
    assert shown[2].endswith("approval-needed")
    assert len(call("audit", file, "--client", "cas").stdout.splitlines()) == 1
    assert len(call("audit", file, "--since", "1 h").stdout.splitlines()) == 4
    assert call("audit", file, "--since", "2999-01-01").stdout == ""
    assert "--since" in call("audit", file, "--since", "yesterday", code=6).stderr
    assert json.loads(call("audit", file, "--json").stdout.splitlines()[0])["who"] == "ann"
    good = call("audit", file, "--verify").stdout
    assert "4 lines, unbroken" in good
    number, hash = owner_of(bob).status().audit  # type: ignore[misc]
    call("audit", file, "--verify", "--witness", f"{number}:{hash}")
    call("audit", file, "--verify", "--witness", f"{number}:{'0' * 64}", code=1)
    call("audit", file, "--verify", "--witness", "x", code=6)
    call("audit", file, "--witness", "x", code=2)
    call("audit", str(tmp_path / "none"), code=8)
    lines = Path(file).read_bytes().splitlines(keepends=True)
    Path(file).write_bytes(b"".join([lines[0], *lines[2:]]))
    found = json.loads(call("audit", file, "--verify", "--json", code=1).stdout)
    assert not found["good"]
    assert "problem: " in call("audit", file, "--verify", code=1).stdout


@pytest.mark.parametrize(
    "body", [OwnerObjects(), OwnerPlans(), Pending()], ids=lambda body: type(body).__name__
)
def test_nobody_else_sees_it(me: Connection, body: Any) -> None:
    with pytest.raises(PermissionDenied, match="only the owner"):
        me.call(body)
