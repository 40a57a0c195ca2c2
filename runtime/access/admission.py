"""Which right each message asks for, in one table, and the check of it before anything is done.

It looks at the kind of a message and at who sends it; rights on single objects are asked for in
`runtime.call`.
"""

from __future__ import annotations

from collections.abc import Iterable

from runtime.errors import PermissionDenied
from runtime.identity import Identity, Role
from runtime.messages import (
    Apply,
    Approve,
    Backward,
    Body,
    Clear,
    Cohort,
    Copy,
    Deny,
    FetchPlan,
    Free,
    Get,
    Grad,
    Install,
    List,
    OwnerObjects,
    OwnerPlans,
    Pending,
    Plans,
    Put,
    RequireGrad,
    Run,
    Search,
    Status,
    Step,
    Steps,
    Transfer,
    Uninstall,
    ZeroGrad,
)
from runtime.policy import Policy, Right, Rights

RIGHTS: dict[type, Right] = {
    Put: Right.SEND,
    Get: Right.FETCH,
    Copy: Right.USE,
    Free: Right.OWN,
    Search: Right.SEARCH,
    List: Right.SEARCH,
    Clear: Right.OWN,
    Transfer: Right.MOVE,
    Apply: Right.USE,
    Backward: Right.USE,
    Grad: Right.USE,
    ZeroGrad: Right.USE,
    RequireGrad: Right.USE,
    Step: Right.USE,
    Steps: Right.USE,
    Install: Right.RUN,
    Run: Right.RUN,
    Cohort: Right.RUN,
    FetchPlan: Right.RUN,
    Plans: Right.RUN,
    Uninstall: Right.OWN,
    Status: Right.ADMINISTER,
    OwnerObjects: Right.ADMINISTER,
    OwnerPlans: Right.ADMINISTER,
    Pending: Right.ADMINISTER,
    Approve: Right.ADMINISTER,
    Deny: Right.ADMINISTER,
}
"""Message type -> the right that it asks for. A message without one is refused."""

ONE_RIGHT = RIGHTS.keys() - {Transfer, Steps}
"""The messages whose right does not depend on what they say."""

_WORDS = {
    Right.SEARCH: "see listings",
    Right.USE: "run single operations",
    Right.RUN: "install and run plans",
    Right.SEND: "send objects",
    Right.FETCH: "fetch elements",
    Right.MOVE: "have objects sent to other workers",
}


def enter(policy: Policy, identity: Identity, worker: str, *, vouched: bool) -> None:
    """Check that somebody may speak to this worker at all.

    Raises:
        PermissionDenied: they may not.
    """
    name = identity.name
    if identity.role is Role.OWNER:
        return
    if name in policy.denied:
        raise PermissionDenied(f"{name!r} is refused here; ask the owner of worker {worker!r} for the reason")
    if vouched and name == worker:
        # What the worker offers belongs to its own name: nobody else may be called so.
        raise PermissionDenied(f"{name!r} is the name of the worker itself: ask for a certificate of another")
    if identity.role is Role.WORKER and not policy.may_send_to(name):
        known = _listed(policy.peers or ())
        raise PermissionDenied(
            f"worker {name!r} is no peer here: peers are {known}; ask the owner of worker {worker!r}"
        )


def admit(identity: Identity, rights: Rights, worker: str, body: Body) -> Right:
    """The right that a message asks for, if whoever sends it has it.

    Raises:
        PermissionDenied: they have not.
    """
    right = RIGHTS.get(type(body))
    if isinstance(body, Transfer) and body.to == worker:
        right = Right.USE  # it renames or copies, and nothing goes anywhere
    if right is Right.OWN:
        return right
    if right is None or right is Right.ADMINISTER:
        if right is None or identity.role is not Role.OWNER:
            raise PermissionDenied(
                f"only the owner of worker {worker!r} may do this, at its own machine (`planc worker`)"
            )
        return right
    wanted = [right]
    if isinstance(body, Steps) and any(isinstance(part, Run) for part in body.parts):
        wanted.append(Right.RUN)
    for each in wanted:
        if not _has(rights, each):
            raise denied(identity, rights, worker, each)
    return right


def denied(identity: Identity, rights: Rights, worker: str, right: Right) -> PermissionDenied:
    """The error for a right that somebody does not have at all."""
    allowed = [each.value for each in _WORDS if _has(rights, each)]
    return PermissionDenied(
        f"{identity.name!r} may not {_WORDS[right]} here: the policy allows "
        f"{', '.join(allowed) or 'nothing'}; ask the owner of worker {worker!r}"
    )


def _has(rights: Rights, right: Right) -> bool:
    if right is Right.SEND:
        return rights.send
    if right is Right.MOVE:
        return rights.move is None or bool(rights.move)
    return rights.selection(right).anything


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names)) or "none"


__all__ = ["ONE_RIGHT", "RIGHTS", "admit", "denied", "enter"]
