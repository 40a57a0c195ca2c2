"""`RemotePointer`: a handle to a pointer that one worker holds to a tensor at another."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from planc.errors import DecodeError
from runtime.messages import Get, Pointer

if TYPE_CHECKING:
    from runtime.remote.handle import WorkerHandle
    from runtime.remote.tensor import RemoteTensor


class RemotePointer:
    """A pointer at ``location`` to ``target``; the data stays where the target is.

    It keeps its target alive. When it dies, the pointer is freed, and the target with it if nothing else
    holds it.
    """

    def __init__(self, location: WorkerHandle, id: int, target: RemoteTensor | RemotePointer) -> None:
        self.location = location
        self.id = id
        self.target = target
        self._finalizer = weakref.finalize(self, location.release, id)
        self._finalizer.atexit = False

    @property
    def owner(self) -> WorkerHandle:
        """The worker that holds this handle: the caller, "me"."""
        return self.location.owner

    def get(self) -> RemoteTensor | RemotePointer:
        """Take the pointer back: returns what it points to. One message."""
        (value,) = self.location.values(Get((self.id,), delete=True))
        if value != Pointer(self.target.location.id, self.target.id):
            raise DecodeError(f"worker {self.location.id!r} returned another pointer than it was given")
        self._finalizer.detach()
        return self.target

    def __repr__(self) -> str:
        return (
            f"<RemotePointer {self.owner.id}:{self.id} -> {self.location.id}:{self.id} -> "
            f"{self.target.location.id}:{self.target.id}>"
        )
