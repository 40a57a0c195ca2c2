"""Whether a run needs an approval, has one, and what its results are then. It runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.access.approvals import Approval, Bound
from runtime.call import Call
from runtime.policy import Needs, Secrecy, derive, derive_approved


@dataclass(frozen=True, slots=True)
class Clearance:
    """What a run may do.

    Attributes:
        secrecy: that of its results.
        releases: whether results are more public than what they come from.
        approval: what it uses up when it runs, if it has to have one.
    """

    secrecy: Secrecy
    releases: bool
    approval: Approval | None


def clear(
    call: Call, plan_id: str, name: str, bound: Sequence[Bound], leaves: Sequence[str], *, returns: bool
) -> Clearance:
    """What a run on these inputs may do.

    Args:
        call: the request.
        plan_id: the plan.
        name: its name, for errors.
        bound: its inputs.
        leaves: the paths of the results that it keeps or returns, for the owner to see.
        returns: whether results go back to the client at once.

    Raises:
        ApprovalNeeded: the plan has to be approved first; it is noted as waiting.
        PermissionDenied: the owner denied the plan, or no approval could help.
    """
    approvals, policy = call.site.approvals, call.site.policy
    others = [b for b in bound if b.stored is not None and not call.owns(b.stored)]
    sources = [b.secrecy for b in bound]
    kept, released = derive(sources), derive_approved(sources)
    if others or kept.private:
        approvals.require_not_denied(plan_id)
    always = call.rights.needs is Needs.ALWAYS and bool(others)
    approval = approvals.find(plan_id, call.client, bound)
    if approval is None:
        wanted = returns and not policy.may_have(call.client, kept)
        helps = policy.may_have(call.client, released) and call.rights.needs is not Needs.NEVER
        if always or (wanted and helps):
            asked = {
                b.path: str(b.id)
                for b in bound
                if b.stored is not None and (b in others or b.secrecy.private)
            }
            raise approvals.ask(plan_id, name, call.client, asked, leaves)
        released = kept
    if returns:
        call.require_having(call.client, released, f"the result of plan {name!r} on private inputs")
    uses = always or released != kept
    return Clearance(released, released != kept, approval if uses else None)


__all__ = ["Clearance", "clear"]
