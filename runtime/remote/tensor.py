"""`RemoteTensor`: a handle to a tensor at a worker. It knows where, its type, and nothing of its elements."""

from __future__ import annotations

import html
import itertools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from planc.errors import InputError
from planc.ir import TensorType
from runtime.remote import ops
from runtime.remote.tensor_type import HasType

if TYPE_CHECKING:
    from runtime.remote.handle import WorkerHandle
    from runtime.remote.pointer import RemotePointer


class Changes:
    """How often handles were changed in place, of all: while it stays the same, so do they."""

    count = 0

    @classmethod
    def note(cls) -> None:
        """A handle is another value now, elsewhere, or asks for gradients."""
        cls.count = next(_changes)


_changes = itertools.count(1)


class RemoteTensor(HasType):
    """A tensor that lives at a worker.

    Arithmetic, indexing, ``torch.*``, ``torch.nn.functional.*`` and the methods of ``torch.Tensor`` run
    there, one message an operation, through planc's op table (by PyTorch's own ``__torch_function__``
    protocol). Shape and dtype are known here, at no message. Nothing fetches its elements but `get` and
    `copy_here`.

    Operations in place give the handle a new value. Views do not follow: one refuses to be used when the
    tensor that it views was changed in place. An index (of an index, too) and ``.data`` may be changed in
    place, and write to what they view.

    When the last handle dies, the tensor at the worker is freed, with the next message that goes there.

    Attributes:
        location: the worker.
        tensor_type: dtype and shape.
        is_leaf: whether it is where gradients are collected, as ``torch.Tensor.is_leaf``.
    """

    # Of most handles these are never set: a handle is made for every operation.
    tags: tuple[str, ...] = ()
    description: str = ""
    is_leaf: bool = True
    is_nested = is_sparse = is_quantized = False
    layout = torch.strided
    is_owner = False
    _gone = False
    is_gradient = False
    view_base: tuple[weakref.ref[RemoteTensor], int] | None = None
    view_of: RemoteTensor | None = None
    write_back: ops.WayBack | None = None
    version = 0

    def __init__(
        self,
        location: WorkerHandle,
        id: int,
        type: TensorType,
        *,
        requires_grad: bool = False,
        owned: bool = True,
    ) -> None:
        self.location = location
        self.tensor_type = type
        self._requires_grad = requires_grad
        self._id = id
        self.is_owner = owned

    def __del__(self) -> None:
        if self.is_owner:
            self.location.release(self._id)

    # -- what is known here ----------------------------------------------------------------------------------

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
        return torch.Size(self.tensor_type.at({}))

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor_type.dtype.torch

    @property
    def ndim(self) -> int:
        return self.tensor_type.rank

    @property
    def device(self) -> torch.device:
        """For what is made beside it here, as by ``torch.zeros(3, device=x.device)``: it travels along."""
        return torch.device("cpu")

    @property
    def requires_grad(self) -> bool:
        """Whether gradients are collected for it; setting it is one message."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    @property
    def data(self) -> RemoteTensor:
        """The same values cut from autograd: one message."""
        return self.detach()

    def dim(self) -> int:
        return self.tensor_type.rank

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return self.shape.numel()

    nelement = numel

    def element_size(self) -> int:
        return self.tensor_type.dtype.itemsize

    def is_floating_point(self) -> bool:
        return self.tensor_type.dtype.is_floating

    def __len__(self) -> int:
        if not self.tensor_type.rank:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    # -- moving ----------------------------------------------------------------------------------------------

    def get(self) -> torch.Tensor:
        """Fetch the tensor; it is gone from the worker then, and this handle with it. One message.

        Raises:
            PermissionDenied: it is private.
            ObjectNotFound: it is gone already.
        """
        tensor = self.location.fetch([self.id], delete=True)[0]
        self.let_go()
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

    # -- autograd --------------------------------------------------------------------------------------------

    def backward(
        self, gradient: torch.Tensor | RemoteTensor | None = None, retain_graph: bool = False
    ) -> None:
        """Add the gradients of this value to the ``.grad`` of the leaves that it came from, there.

        One message.
        """
        self.location.backward(self, gradient, retain_graph)

    @property
    def grad(self) -> RemoteTensor | None:
        """The gradient as a remote tensor: one message.

        None where this collects no gradient, or has none yet.

        ``x.grad = None`` forgets it.
        """
        return self.location.gradient(self) if self._requires_grad and self.is_leaf else None

    @grad.setter
    def grad(self, value: None) -> None:
        if value is not None:
            raise InputError("the gradient of a remote tensor can be set to None only; backward() makes it")
        self.zero_grad()

    def requires_grad_(self, requires_grad: bool = True) -> RemoteTensor:
        """Let it require grad, or no longer. One message."""
        if requires_grad != self._requires_grad:
            self.location.require_grad([self], requires_grad)
            self._requires_grad = requires_grad
            Changes.note()
        return self

    def zero_grad(self) -> None:
        """Forget the gradient. One message."""
        self.location.zero_grad([self])

    # -- operations ------------------------------------------------------------------------------------------

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return ops.call(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        """The methods and properties of torch.Tensor, run at the worker."""
        if name.startswith("_"):
            raise AttributeError(f"RemoteTensor has no attribute {name!r}")
        if name in _TRANSPOSED:
            return self.transpose(-1, -2) if name == "mT" else self.permute(*reversed(range(self.ndim)))
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

    def to(self, *args: Any, **kwargs: Any) -> RemoteTensor:
        """As ``torch.Tensor.to``, but for devices: where a worker computes is the worker's to say."""
        options = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking")}
        given = [a for a in args if not isinstance(a, (str, int, torch.device))]
        if not given and not options:
            return self
        return ops.call(torch.Tensor.to, (self, *given), options)

    def type(self, dtype: torch.dtype | None = None) -> Any:
        """As ``torch.Tensor.type``: the name of the type as text, or the tensor in another."""
        return torch.empty((), dtype=self.dtype).type() if dtype is None else self.to(dtype)

    def __getitem__(self, index: Any) -> Any:
        return ops.call(torch.Tensor.__getitem__, (self, index), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        ops.call(torch.Tensor.__setitem__, (self, index, self._filling(value, (1,))), {})

    def fill_(self, value: Any) -> RemoteTensor:
        """Set all elements to a number."""
        return ops.call(torch.Tensor.copy_, (self, self._filling(value, ())), {})

    def zero_(self) -> RemoteTensor:
        """Set all elements to zero."""
        return self.fill_(0)

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

    # -- the handle itself -----------------------------------------------------------------------------------

    def __deepcopy__(self, _memo: dict[int, Any]) -> RemoteTensor:
        return self.copy()

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        raise TypeError(
            "a RemoteTensor is a handle of this process and cannot be pickled or shallow-copied: "
            "get() the tensor, or copy() it at its worker"
        )

    def __repr__(self) -> str:
        return f"<RemoteTensor {self.owner.id}:{self.id} -> {self.location.id} {self._described()}>"

    def _repr_html_(self) -> str:
        cells = (self.location.id, str(self.id), self._described())
        return "<code>RemoteTensor</code> at <b>{}</b>, id {}: <code>{}</code>".format(
            *map(html.escape, cells)
        )

    def _described(self) -> str:
        words = [str(self.tensor_type), *(["requires_grad"] if self._requires_grad else []), *self.tags]
        return " ".join([*words, "(gone)"] if self._gone else words)

    # -- the life of the remote value ------------------------------------------------------------------------

    def _filling(self, value: Any, shape: tuple[int, ...]) -> Any:
        """A number as a tensor of the dtype that it is written into."""
        if not isinstance(value, (bool, int, float)):
            return value
        return torch.full(shape, value, dtype=self.dtype)

    def let_go(self) -> None:
        """The value is gone: do not free it when the handle dies."""
        self.is_owner, self._gone = False, True

    def moved_to(self, location: WorkerHandle) -> None:
        """The value is at another worker now."""
        self.location, self.is_owner = location, True
        Changes.note()

    def become(self, new: RemoteTensor) -> None:
        """Take over another handle's value, in place of the own; a parameter stays one."""
        if self._id != new._id:
            if self.is_owner:
                self.location.release(self._id)
            self._id, self.is_owner = new._id, new.is_owner
            new.is_owner = False
        if not (self._requires_grad and self.is_leaf):
            self._requires_grad, self.is_leaf = new.requires_grad, new.is_leaf
        self.tensor_type = new.tensor_type
        self.version += 1
        Changes.note()

    def check_fresh(self) -> None:
        """Refuse to be used as a view of what is no longer there."""
        if self.view_base is not None:
            base = self.view_base[0]()
            if base is not None and base.version != self.view_base[1]:
                raise InputError(
                    "this is a view of a remote tensor that was changed in place since: take the view again"
                )


_TRANSPOSED = {"T", "mT"}
_FETCHING = {
    "item",
    "tolist",
    "numpy",
    "cpu",
    "cuda",
    "data_ptr",
    "storage",
    "untyped_storage",
    "share_memory_",
}
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


def _operator(name: str, reflected_number: bool) -> Callable[..., Any]:
    function = getattr(torch.Tensor, name)  # one of the names below

    def operator(self: RemoteTensor, *others: Any) -> Any:
        if others and not isinstance(others[0], (int, float, torch.Tensor, HasType)):
            return NotImplemented  # as torch.Tensor: == gives False, + a TypeError
        if reflected_number:
            others = (_as_tensor(self, others[0]),)
        return ops.call(function, (self, *others), {})

    operator.__name__ = name
    return operator


def _as_tensor(x: RemoteTensor, number: Any) -> Any:
    """A number as a tensor that promotes like it, for operators whose op wants a tensor on the left."""
    if isinstance(number, (torch.Tensor, HasType)):
        return number
    example = torch.empty((0,) * x.ndim, dtype=x.dtype)
    return torch.full((), number, dtype=torch.result_type(example, number))


for _name in (
    *("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv", "itruediv"),
    *(
        "floordiv",
        "rfloordiv",
        "ifloordiv",
        "mod",
        "rmod",
        "imod",
        "pow",
        "rpow",
        "ipow",
        "matmul",
        "rmatmul",
    ),
    *("neg", "pos", "abs", "invert", "eq", "ne", "lt", "le", "gt", "ge"),
    *("and", "rand", "iand", "or", "ror", "ior", "xor", "rxor", "ixor"),
    *("lshift", "rlshift", "rshift", "rrshift"),
):
    setattr(RemoteTensor, f"__{_name}__", _operator(f"__{_name}__", _name in ("rfloordiv", "rmod")))


__all__ = ["Changes", "RemoteTensor", "RemoteValueError"]
