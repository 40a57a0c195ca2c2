"""`RemoteModule`: an nn.Module whose parameters and buffers may live at a worker."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from planc.errors import InputError
from runtime.remote.tensor import RemoteTensor

if TYPE_CHECKING:
    from runtime.remote.handle import WorkerHandle


class RemoteModule:
    """A module that travels: ``send`` puts its tensors at a worker, ``get`` brings them back.

    While it is at a worker, calling it runs its own ``forward`` on remote tensors, one message an operation,
    and ``model.fc1.weight`` is a remote tensor. While it is here, it is the plain module. Sending or fetching
    is one message, and never takes a ``.grad`` along: gradients tell of the data.

    Args:
        module: is copied; the original is left alone.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = copy.deepcopy(module)
        self._skeleton: nn.Module | None = None
        self._places: dict[str, tuple[nn.Module, str]] = {}
        self._location: WorkerHandle | None = None

    @property
    def location(self) -> WorkerHandle | None:
        """The worker where its tensors are, or None if they are here."""
        return self._location

    @property
    def module(self) -> nn.Module:
        """The plain module, while it is here.

        Raises:
            InputError: it is at a worker.
        """
        if self._location is not None:
            raise InputError(f"the module is at {self._location.id!r}: call get() first")
        return self._module

    @property
    def state(self) -> dict[str, RemoteTensor]:
        """Its tensors at the worker, by path: what a plan at the same worker can share."""
        return self._remote

    @property
    def training(self) -> bool:
        """Whether it is in training mode."""
        return self._module.training

    def send(self, worker: WorkerHandle) -> Self:
        """Put parameters and buffers at a worker. One message.

        Raises:
            InputError: it is at another worker already.
        """
        if self._location is worker:
            return self
        if self._location is not None:
            raise InputError(f"the module is at {self._location.id!r}: move() or get() it")
        tensors = _tensors(self._module)
        handles = worker.send_all(list(tensors.values()))
        self._place(worker, dict(zip(tensors, handles, strict=True)))
        return self

    def get(self) -> Self:
        """Bring its tensors back; they are gone from the worker then. One message."""
        if self._location is None:
            return self
        paths = list(self._remote)
        tensors = self._location.fetch([self._remote[path].id for path in paths], delete=True)
        _load(self._module, dict(zip(paths, tensors, strict=True)))
        for handle in self._remote.values():
            handle.let_go()
        self._location, self._skeleton, self._places = None, None, {}
        return self

    def move(self, worker: WorkerHandle) -> Self:
        """Send its tensors straight from their worker to another.

        One message; none if it is there already.
        """
        if self._location is None:
            return self.send(worker)
        if worker is not self._location:
            self._location.transfer(list(self._remote.values()), worker)
            self._location = worker
        return self

    def copy(self) -> RemoteModule:
        """A second module with the same values, where this one is. One message if that is at a worker."""
        twin = RemoteModule(self._module)
        if self._location is not None:
            paths = list(self._remote)
            handles = self._location.copy_objects([self._remote[path] for path in paths])
            twin._place(self._location, dict(zip(paths, handles, strict=True)))
        return twin

    def parameters(self) -> Iterator[Any]:
        """Its parameters: remote tensors while it is at a worker."""
        return (tensor for _, tensor in self.named_parameters())

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        """Its parameters with their paths."""
        remote = self._remote
        for path, parameter in self._module.named_parameters():
            yield path, remote.get(path, parameter)

    def zero_grad(self) -> None:
        """Forget all gradients. One message at most."""
        if self._location is None:
            self._module.zero_grad()
        else:
            self._location.zero_grad([p for p in self.parameters() if p.requires_grad])

    def train(self, mode: bool = True) -> Self:
        """Set training mode, as ``nn.Module.train`` does."""
        for module in (self._module, self._skeleton):
            if module is not None:
                module.train(mode)
        return self

    def eval(self) -> Self:
        """Set evaluation mode."""
        return self.train(False)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by path, copies. One message if they are at a worker, where they stay."""
        plain = copy.deepcopy(self._module)
        if self._location is not None:
            paths = list(self._remote)
            tensors = self._location.fetch([self._remote[path].id for path in paths], delete=False)
            _load(plain, dict(zip(paths, tensors, strict=True)))
        return {name: value.detach().clone() for name, value in plain.state_dict().items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Replace parameters and buffers. One message if they are at a worker."""
        worker = self._location
        self._module.load_state_dict(state)
        if worker is not None:
            tensors = _tensors(self._module)
            self._place(worker, dict(zip(tensors, worker.send_all(list(tensors.values())), strict=True)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass, where the module is."""
        if self._skeleton is None:
            return self._module(*args, **kwargs)
        return self._skeleton(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"RemoteModule has no attribute {name!r}")
        return getattr(self._module if self._skeleton is None else self._skeleton, name)

    def __repr__(self) -> str:
        where = "here" if self._location is None else f"at {self._location.id}"
        return f"<RemoteModule {type(self._module).__name__} {where}>"

    @property
    def _remote(self) -> dict[str, RemoteTensor]:
        """By path, the handles that the module has now: its forward may have put others in their places."""
        return {path: getattr(module, name) for path, (module, name) in self._places.items()}

    def _place(self, worker: WorkerHandle, remote: dict[str, RemoteTensor]) -> None:
        self._location = worker
        self._skeleton, self._places = _with_remote(self._module, remote)


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by path; a tied one once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _own(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a module itself, by attribute; tied ones each time."""
    parameters = module.named_parameters(recurse=False, remove_duplicate=False)
    return [*parameters, *module.named_buffers(recurse=False, remove_duplicate=False)]


def _load(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    own = _tensors(module)
    with torch.no_grad():
        for path, tensor in tensors.items():
            own[path].copy_(tensor)
            own[path].grad = None


def _with_remote(
    module: nn.Module, remote: dict[str, RemoteTensor]
) -> tuple[nn.Module, dict[str, tuple[nn.Module, str]]]:
    """A copy of the module whose tensors are remote ones, as plain attributes; and by path, where each is.

    The copy is our own; neither torch nor the user's module is changed.
    """
    by_identity = {id(tensor): path for path, tensor in _tensors(module).items()}
    memo: dict[int, Any] = {id(tensor): tensor for tensor in _tensors(module).values()}  # they are not used
    skeleton = copy.deepcopy(module, memo)
    places: dict[str, tuple[nn.Module, str]] = {}
    for original, twin in zip(module.modules(), skeleton.modules(), strict=True):
        for name, tensor in _own(original):
            path = by_identity[id(tensor)]
            delattr(twin, name)
            object.__setattr__(twin, name, remote[path])
            places.setdefault(path, (twin, name))
        if isinstance(twin, nn.RNNBase):  # keeps its weights in a list besides
            weights = [getattr(twin, name, None) for name in vars(twin)["_flat_weights_names"]]
            object.__setattr__(twin, "_flat_weights", weights)
    return skeleton, places
