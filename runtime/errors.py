"""What can go wrong at, or on the way to, a worker; and the table that carries it over a wire.

    WorkerError                 anything below; ``worker`` is the worker's id, where it is known
    +-- ObjectNotFound          no such object, or not yours: one error that does not say which
    +-- ObjectExists            an id that is taken
    +-- PermissionDenied        the worker's policy does not allow this
    |   +-- ApprovalNeeded      the worker's owner has to approve the plan first; it waits for them
    +-- QuotaExceeded           the client would take more than the policy lets it
    +-- PlanNotFound            the plan is not installed
    +-- WrongWorker             a value of one worker was used at another; names both
    +-- StoreFull               the worker's limit of bytes or plans would be exceeded
    |   +-- DiskFull            the disk of a worker with a durable store is full: nothing was changed
    +-- StorageError            a durable store cannot be opened, read or written
    |   +-- StoreLocked         another process has it open
    |   +-- StoreDamaged        something in it is not what was written
    +-- ReplayError             a request id came again after its reply was given up
    +-- ConnectionLost          no reply came; DeadlineExceeded: none in time
    +-- RequestSkipped          a request that this one was sent behind failed
    +-- CredentialsError        a certificate, key or token is missing, not valid, or refused
    +-- AuditFailed             the worker cannot write its audit log, so nothing leaves it
    +-- PolicyError             a policy file is not one; says file, line and key
    +-- InternalError           a fault of the worker itself; its own log has the details
    +-- RemoteExecutionError    (also an ExecutionError) an op failed; says which node of which plan
    +-- RemoteInputError, RemoteTypeCheckError, RemoteVerifyError, RemoteLimitError, RemotePlanError,
        RemoteDecodeError, RemoteVersionError
                                (also planc's error of that name) a worker refused what it was sent
    RoundFailed                 too few clients' work came in a federated round; says who and why. Never sent

No text here ever holds the elements of a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

from planc.errors import (
    DecodeError,
    ExecutionError,
    InputError,
    LimitError,
    PlancError,
    PlanError,
    TypeCheckError,
    VerifyError,
    VersionError,
)
from runtime.messages import Failure


class WorkerError(PlancError):
    """Anything that went wrong at, or on the way to, a worker.

    Attributes:
        message: what went wrong, without the worker's name.
        worker: the worker's id, or "" before a worker is involved.
        plan_id: the plan that ran, or "".
        node: the index of the failing node in the plan, or -1. A plan's lines are not sent to workers: the
            caller's own copy of the plan has the line of this node.
        op: the failing op, or "".
    """

    def __init__(
        self, message: str, *, worker: str = "", plan_id: str = "", node: int = -1, op: str = ""
    ) -> None:
        Exception.__init__(self, f"worker {worker!r}: {message}" if worker else message)
        self.message = message
        self.worker = worker
        self.plan_id = plan_id
        self.node = node
        self.op = op


class ObjectNotFound(WorkerError):
    """There is no such object, or it is not the client's: the text is the same, so nothing can be probed."""


class ObjectExists(WorkerError):
    """An object of this id is there already."""


class PermissionDenied(WorkerError):
    """The worker's policy does not allow this. The text says what it does allow, and whom to ask."""


class ApprovalNeeded(PermissionDenied):
    """A plan needs the approval of the worker's owner: ``plan_id`` is what they are asked to approve."""


class QuotaExceeded(WorkerError):
    """The client would take more bytes, time, plans or runs than the worker's policy lets it."""


class PlanNotFound(WorkerError):
    """The plan is not installed at this worker."""


class WrongWorker(WorkerError):
    """A value that lives at one worker was used at another. The text names both."""


class StoreFull(WorkerError):
    """The worker's limit of bytes or plans would be exceeded."""


class DiskFull(StoreFull):
    """The disk under the worker's durable store is full: what was asked for did not happen."""


class StorageError(WorkerError):
    """A worker's durable store cannot be opened, read or written."""


class StoreLocked(StorageError):
    """Another process has this durable store open."""


class StoreDamaged(StorageError):
    """A durable store holds something that is not what was written, or lacks something that was."""


class ReplayError(WorkerError):
    """A request came again when the worker no longer had its reply; it was not applied twice."""


class ConnectionLost(WorkerError):
    """No reply came: whether the request was applied is not known."""


class CredentialsError(WorkerError):
    """A certificate, key or token is missing, not valid, or refused. No key or token is in the text."""


class DeadlineExceeded(ConnectionLost):
    """No reply came in time."""


class RequestSkipped(WorkerError):
    """The request was not applied, because one that was sent just before it, without waiting, failed."""


class AuditFailed(WorkerError):
    """The worker cannot write its audit log, or the log is damaged: nothing leaves unlogged."""


class PolicyError(WorkerError):
    """A policy file cannot be read. The text names the file, the line where it is known, and the key."""


class InternalError(WorkerError):
    """A fault of the worker itself. What it was stays in the worker's own log."""


class RemoteExecutionError(WorkerError, ExecutionError):
    """An op failed at a worker: see ``plan_id``, ``node`` and ``op``."""


class RemotePlanError(WorkerError, PlanError):
    """A worker refused a plan."""


class RemoteTypeCheckError(WorkerError, TypeCheckError):
    """A worker refused an op: an operand or attribute does not fit."""


class RemoteVerifyError(WorkerError, VerifyError):
    """A worker refused a plan that breaks a rule of the IR."""

    where = ""


class RemoteLimitError(WorkerError, LimitError):
    """A worker refused a plan or message for its size."""

    where = ""


class RemoteDecodeError(WorkerError, DecodeError):
    """A worker could not read what it was sent."""


class RemoteVersionError(WorkerError, VersionError):
    """A worker does not read this version of the format."""


class RemoteInputError(WorkerError, InputError):
    """Values do not fit a plan at a worker."""


class RoundFailed(PlancError):
    """A federated round is given up: the model is as it was before it. Raised by the caller, never sent.

    Attributes:
        number: of the round.
        contributions: how many clients' work came.
        needed: how many had to come.
        reasons: by worker id, why clients of it do not count.
    """

    def __init__(
        self,
        message: str,
        *,
        number: int = 0,
        contributions: int = 0,
        needed: int = 0,
        reasons: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.number = number
        self.contributions = contributions
        self.needed = needed
        self.reasons = dict(reasons or {})


_BY_KIND: dict[str, type[WorkerError]] = {
    "worker": WorkerError,
    "object-not-found": ObjectNotFound,
    "object-exists": ObjectExists,
    "permission-denied": PermissionDenied,
    "approval-needed": ApprovalNeeded,
    "quota-exceeded": QuotaExceeded,
    "plan-not-found": PlanNotFound,
    "wrong-worker": WrongWorker,
    "store-full": StoreFull,
    "disk-full": DiskFull,
    "storage": StorageError,
    "store-locked": StoreLocked,
    "store-damaged": StoreDamaged,
    "replay": ReplayError,
    "connection-lost": ConnectionLost,
    "credentials": CredentialsError,
    "deadline": DeadlineExceeded,
    "skipped": RequestSkipped,
    "audit-failed": AuditFailed,
    "policy": PolicyError,
    "internal": InternalError,
    "execution": RemoteExecutionError,
    "plan": RemotePlanError,
    "type-check": RemoteTypeCheckError,
    "verify": RemoteVerifyError,
    "limit": RemoteLimitError,
    "decode": RemoteDecodeError,
    "version": RemoteVersionError,
    "input": RemoteInputError,
}
_PLANC: dict[type[PlancError], str] = {
    PlanError: "plan",
    TypeCheckError: "type-check",
    VerifyError: "verify",
    LimitError: "limit",
    DecodeError: "decode",
    VersionError: "version",
    InputError: "input",
}
_KINDS: dict[type[Exception], str] = {**{cls: kind for kind, cls in _BY_KIND.items()}, **_PLANC}


def to_failure(error: Exception, worker: str) -> Failure:
    """The message that carries an error to the caller.

    The text of an error that is not in the table is left out: nobody vouches for what it holds.
    That goes for `ExecutionError` too, whose text quotes torch.
    """
    kind = next((_KINDS[cls] for cls in type(error).__mro__ if cls in _KINDS), "")
    if not kind:
        return Failure(
            "internal", f"the worker failed ({type(error).__name__}); its log has the details", worker
        )
    if isinstance(error, WorkerError):
        return Failure(kind, error.message, error.worker or worker, error.plan_id, error.node, error.op)
    return Failure(kind, str(error), worker)


def to_error(failure: Failure) -> WorkerError:
    """The exception that a failure stands for; a plain `WorkerError` where its kind is not known here."""
    cls = _BY_KIND.get(failure.kind, WorkerError)
    return cls(
        failure.message, worker=failure.worker, plan_id=failure.plan_id, node=failure.node, op=failure.op
    )
