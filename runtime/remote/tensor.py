"""`RemoteTensor`: a handle to a tensor at a worker. It knows where, its type, and nothing of its elements."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from planc.errors import InputError
from planc.ir import TensorType
from runtime.remote import ops

if TYPE_CHECKING:
    from runtime.remote.handle import WorkerHandle
    from runtime.remote.pointer import RemotePointer


class RemoteTensor:
    """A tensor that lives at a worker.

    Arithmetic, indexing, ``torch.*``, ``torch.nn.functional.*`` and the methods of ``torch.Tensor`` run there,
    one message an operation, through planc's op table (by PyTorch's own ``__torch_function__`` protocol). Shape
    and dtype are known here, at no message. Nothing fetches its elements but `get` and `copy_here`.

    When the last handle dies, the tensor at the worker is freed, with the next message that goes there.
    """

    def __init__(
        self,
        location: WorkerHandle,
        id: int,
        type: TensorType,
        *,
        requires_grad: bool = False,
        tags: Sequence[str] = (),
        description: str = "",
        owned: bool = True,
    ) -> None:
        self.location = location
        self.tags = tuple(tags)
        self.description = description
        self.type = type
        self.is_leaf = True
        self._requires_grad = requires_grad
        self._id = id
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._hold(owned)

    # -- what is known here -------------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        """The tensor's id at its worker."""
        return self._id

    @property
    def owner(self) -> WorkerHandle:
        """The worker that holds this handle: the caller, "me"."""
        return self.location.owner

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.type.at({}))

    @property
    def dtype(self) -> torch.dtype:
        return self.type.dtype.torch

    @property
    def ndim(self) -> int:
        return self.type.rank

    @property
    def device(self) -> torch.device:
        """Where the tensor is as seen from here: nowhere that has elements."""
        return torch.device("meta")

    @property
    def requires_grad(self) -> bool:
        return self._requires_grad

    @property
    def data(self) -> RemoteTensor:
        """The same values cut from autograd: one message."""
        return self.detach()

    def dim(self) -> int:
        return self.type.rank

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return self.shape.numel()

    nelement = numel

    def is_floating_point(self) -> bool:
        return self.type.dtype.is_floating

    def __len__(self) -> int:
        if not self.type.rank:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    # -- moving -------------------------------------------------------------------------------------------------

    def get(self) -> torch.Tensor:
        """Fetch the tensor; it is gone from the worker then, and this handle with it. One message.

        Raises:
            PermissionDenied: it is private.
            ObjectNotFound: it is gone already.
        """
        tensor = self.location.fetch([self.id], delete=True)[0]
        self._let_go()
        return tensor.requires_grad_(self._requires_grad and self.is_leaf)

    def copy_here(self) -> torch.Tensor:
        """Fetch a copy; the tensor stays at the worker. One message."""
        return self.location.fetch([self.id], delete=False)[0]

    def copy(self) -> RemoteTensor:
        """A second tensor of the same values at the same worker. One message."""
        return self.location.copy_objects([self])[0]

    def move(self, worker: WorkerHandle) -> RemoteTensor:
        """Send the tensor straight to another worker, under the same id; this handle follows. One message.

        Moving to where it is already does nothing, at no message.
        """
        if worker is not self.location:
            self.location.transfer([self], worker)
        return self

    def send(self, worker: WorkerHandle) -> RemotePointer:
        """Give another worker a pointer to this tensor; returns the handle to that pointer. One message."""
        return worker.receive_pointer(self)

    # -- autograd -----------------------------------------------------------------------------------------------

    def backward(self, gradient: torch.Tensor | RemoteTensor | None = None, retain_graph: bool = False) -> None:
        """Add the gradients of this value to the ``.grad`` of the leaves that it came from, there. One message."""
        self.location.backward(self, gradient, retain_graph)

    @property
    def grad(self) -> RemoteTensor | None:
        """The gradient as a remote tensor: one message. None where this needs no gradient, or has none yet."""
        return self.location.gradient(self) if self._requires_grad else None

    def requires_grad_(self, requires_grad: bool = True) -> RemoteTensor:
        """Let it require grad, or no longer. One message."""
        if requires_grad != self._requires_grad:
            self.location.require_grad([self], requires_grad)
            self._requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Forget the gradient. One message."""
        self.location.zero_grad([self])

    # -- operations ---------------------------------------------------------------------------------------------

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return ops.call(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        """The methods of torch.Tensor, run at the worker."""
        if name.startswith("_"):
            raise AttributeError(f"RemoteTensor has no attribute {name!r}")
        method = getattr(torch.Tensor, name, None)
        if not callable(method):
            raise AttributeError(f"RemoteTensor has no attribute {name!r}")
        if name in _FETCHING:
            _refuse(f".{name}()")
        if name in _NOWHERE:
            raise AttributeError(f"RemoteTensor has no method {name!r}: {_NOWHERE[name]}")

        def bound(*args: Any, **kwargs: Any) -> Any:
            return ops.call(method, (self, *args), kwargs)

        return bound

    def __getitem__(self, index: Any) -> Any:
        return ops.call(torch.Tensor.__getitem__, (self, index), {})

    def __bool__(self) -> NoReturn:
        _refuse("bool()")

    def __float__(self) -> NoReturn:
        _refuse("float()")

    def __int__(self) -> NoReturn:
        _refuse("int()")

    def __index__(self) -> NoReturn:
        _refuse("an index")

    def __iter__(self) -> NoReturn:
        _refuse("iteration")

    def __array__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        _refuse("a numpy array")

    def __contains__(self, _item: object) -> NoReturn:
        _refuse("`in`")

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        tags = "".join(f" {tag}" for tag in self.tags)
        grad = " requires_grad" if self._requires_grad else ""
        gone = "" if self._finalizer is None or self._finalizer.alive or not self._owned else " (gone)"
        return f"<RemoteTensor {self.owner.id}:{self.id} -> {self.location.id} {self.type}{grad}{tags}{gone}>"

    # -- the life of the remote value -----------------------------------------------------------------------------

    def _hold(self, owned: bool) -> None:
        self._owned = owned
        if owned:
            self._finalizer = weakref.finalize(self, self.location.release, self._id)
            self._finalizer.atexit = False

    def _let_go(self) -> None:
        """The value is gone, or no longer this handle's: do not free it when the handle dies."""
        if self._finalizer is not None:
            self._finalizer.detach()

    def _rebind(self, location: WorkerHandle, id: int, *, free_old: bool) -> None:
        """Stand for another value from now on (after a move, or an operation in place)."""
        if self._finalizer is not None:
            if free_old:
                self._finalizer()
            else:
                self._finalizer.detach()
        self.location, self._id = location, id
        self._hold(True)


_FETCHING = {"item", "tolist", "numpy", "cpu", "cuda", "data_ptr", "storage", "untyped_storage", "share_memory_"}
_NOWHERE = {
    "to_sparse": "plans have dense tensors only",
    "register_hook": "there are no hooks; gradients are values of their own",
    "retain_grad": "only leaves keep gradients at a worker",
    "set_": "a plan cannot change what a tensor is",
    "resize_": "a plan cannot change what a tensor is",
    "as_strided": "it shows memory that is not the tensor's",
}


def _refuse(what: str) -> NoReturn:
    raise RemoteValueError(
        f"{what} needs the elements of a remote tensor, and nothing fetches them silently: "
        "call .get() (or .copy_here() to leave it there) first"
    )


class RemoteValueError(InputError, TypeError):
    """Something here needs the elements of a remote tensor."""


def _operator(name: str) -> Callable[..., Any]:
    function = getattr(torch.Tensor, name)  # one of the names below

    def operator(self: RemoteTensor, *args: Any) -> Any:
        return ops.call(function, (self, *args), {})

    operator.__name__ = name
    return operator


for _name in (
    *("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv", "itruediv"),
    *("floordiv", "rfloordiv", "mod", "pow", "rpow", "matmul", "rmatmul", "neg", "abs", "invert"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "rand", "or", "ror", "xor", "rxor", "setitem"),
):
    setattr(RemoteTensor, f"__{_name}__", _operator(f"__{_name}__"))


__all__ = ["RemoteTensor", "RemoteValueError"]
