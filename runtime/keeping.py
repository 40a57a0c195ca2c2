"""What makes a request done: it is logged, and durable where the worker is; or it is taken back.

Decides nothing and handles no message. Not thread-safe by itself: the worker has the lock.
"""

from __future__ import annotations

from runtime.access.approvals import Decisions
from runtime.access.standing import Standing
from runtime.audit.entries import REFUSALS, Audit
from runtime.audit.log import AuditLog
from runtime.call import Call, Site
from runtime.durable import DurableStore
from runtime.errors import AuditFailed, WorkerError
from runtime.identity import Identity
from runtime.messages import Request
from runtime.policy import Right
from runtime.replay import Replays

_APPROVALS = "approvals"
"""The kind of the durable records of what the owner decided."""


class Keeping:
    """The log and the durable store of one worker, either of which there may be none.

    Args:
        site: the parts of the worker.
        replays: the replies that it remembers.
        durable: the folder that keeps what it holds; what was kept there is put back at once.
        log: the audit log.

    Raises:
        StorageError: what is in the folder cannot be read, or is not what was written.
    """

    def __init__(
        self, site: Site, replays: Replays, durable: DurableStore | None, log: AuditLog | None
    ) -> None:
        self._site = site
        self._durable = durable
        self._audit = Audit(log) if log is not None else None
        if log is not None and durable is None:  # what cannot be logged is taken back
            site.store.record()
            site.shelf.record()
        if durable is not None:
            durable.attach(site.worker, site.device, site.store, site.shelf, replays)
            self._keep_approvals(durable)

    @property
    def durable(self) -> DurableStore | None:
        return self._durable

    @property
    def logs(self) -> bool:
        """Whether there is a log."""
        return self._audit is not None

    def begin(self, call: Call, request: Request) -> None:
        """Let what leaves be logged before it leaves."""
        if (audit := self._audit) is not None:
            call.logged = True
            call.log_leaving = lambda: audit.leaving(call, request)

    def record(self, call: Call, request: Request, right: Right, result: str, seconds: float) -> None:
        """Charge the client for a request, and log it.

        Raises:
            AuditFailed: it cannot be logged.
        """
        taken = call.taken
        # An operation holds the worker all the time that it takes; a plan only while it computes.
        taken.seconds += seconds if right is Right.USE else call.spent
        if result in REFUSALS:
            taken.refused += 1
        if self._audit is not None:
            self._audit.record(call, request, result, seconds)

    def refused(self, request: Request, standing: Standing, kind: str) -> None:
        """Log somebody who may not ask for anything.

        Raises:
            AuditFailed: it cannot be logged.
        """
        if self._audit is not None:
            self._audit.record(Call(self._site, standing, ()), request, kind, 0.0)

    def decided(self, kind: str, plan_id: str) -> None:
        """Log and keep what the owner decided in this process.

        Raises:
            WorkerError: it cannot be, and is taken back.
        """
        try:
            if self._audit is not None:
                self._audit.decided(kind, self._site.worker, plan_id)
            self.persist()
        except WorkerError:
            self.undo()
            raise

    def persist(self, request: Request | None = None) -> None:
        """Make durable what changed, and the reply to the request that did it.

        Raises:
            StoreFull, StorageError: it cannot be; `undo` takes it back.
        """
        if self._durable is not None:
            self._durable.commit(request)
        elif self._audit is not None:
            self._site.store.settle()
            self._site.shelf.settle()
        if self._site.approvals.changed:
            self._site.approvals.settle()

    def undo(self) -> None:
        """Take back what changed since it was last made durable."""
        self._site.approvals.undo()
        if self._durable is not None:
            self._durable.undo()
        elif self._audit is not None:
            self._site.store.undo()
            self._site.shelf.undo()

    def undone(self, request: Request, identity: Identity, error: WorkerError) -> None:
        """Log that a request that was logged already was taken back."""
        if self._audit is not None and not isinstance(error, AuditFailed):
            self._audit.undone(request, identity)

    def close(self) -> None:
        """Close both."""
        if self._audit is not None:
            self._audit.close()
        if self._durable is not None:
            self._durable.close()

    def _keep_approvals(self, durable: DurableStore) -> None:
        approvals, records = self._site.approvals, durable.records
        approvals.restore(records.items(_APPROVALS, Decisions))

        def keep(plan_id: str, decided: Decisions | None) -> None:
            if decided is None:
                records.delete(_APPROVALS, plan_id)
            else:
                records.put(_APPROVALS, plan_id, decided)

        approvals.keep = keep
