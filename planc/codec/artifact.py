"""The ``.planc`` file: a plan, the data of its constants, and its state if it has any, as one checked whole.

A header, then three sections (plan bytes, constants, state). A SHA-256 covers everything: it finds damage, it
does not say who wrote the file. Tensors are in safetensors form; nothing in a file is ever run or imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from itertools import pairwise

import safetensors
import safetensors.torch
import torch

from planc.codec.plan import decode, encode
from planc.errors import DecodeError, PlanError, VersionError
from planc.ir import DimExpr, Graph, TensorType, type_of
from planc.ir.constants import digest
from planc.ir.dims import evaluate, solve
from planc.limits import Limits

MAGIC = b"\x8aplanc\r\n"
"""Not text, and altered by whatever alters line ends: such damage shows in the first bytes."""
VERSION = 1
_HEADER = struct.Struct("<8sIQQQ")  # magic, version, the sections' lengths
_CHECKSUM_BYTES = 32
_START = _HEADER.size + _CHECKSUM_BYTES
_STATE_PREFIX = "state:"  # no path can then meet a key that safetensors reserves

Contents = tuple[Graph, dict[str, torch.Tensor], dict[str, torch.Tensor]]


def dumps(
    graph: Graph, constants: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor] | None = None
) -> bytes:
    """The bytes of an artifact.

    Args:
        graph: the plan.
        constants: the data of every constant of the plan and its subplans, by digest.
        state: the data of its state inputs by path; some or all may be missing.

    Raises:
        PlanError: a constant is missing or is not what its digest names, or state does not fit the plan.
    """
    state = state or {}
    for problem in _problems(graph, constants, state):
        raise PlanError(f"cannot save plan {graph.name!r}: {problem}")
    sections = (
        encode(graph),
        _pack(constants),
        _pack({_STATE_PREFIX + path: tensor for path, tensor in state.items()}),
    )
    header = _HEADER.pack(MAGIC, VERSION, *(len(section) for section in sections))
    return b"".join((header, _checksum(header, *sections), *sections))


def loads(data: bytes, limits: Limits | None = None) -> Contents:
    """The plan, its constants by digest and its state by path, from the bytes of an artifact.

    Args:
        data: what `dumps` returned, or what a file holds.
        limits: how large the plan may be; the defaults where not given.

    Raises:
        DecodeError: the bytes are damaged, cut short, or no artifact.
        VersionError: they are one of a version that this library does not read.
        PlanError: they hold a plan that is not valid, or is larger than the limits allow.
    """
    plan, constants_bytes, state_bytes = _sections(data)
    graph = decode(plan, limits)
    constants = _unpack("constants", constants_bytes)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in _unpack("state", state_bytes).items():
        if not name.startswith(_STATE_PREFIX):
            raise DecodeError(f"state: expected names that begin with {_STATE_PREFIX!r}, got {name!r:.80}")
        state[name.removeprefix(_STATE_PREFIX)] = tensor
    for problem in _problems(graph, constants, state):
        raise DecodeError(f"plan {graph.name!r}: {problem}")
    return graph, constants, state


def save(
    path: str | os.PathLike[str],
    graph: Graph,
    constants: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor] | None = None,
) -> int:
    """Write an artifact whole or not at all, and return its size in bytes. See `dumps` for the arguments.

    Raises:
        PlanError: the tensors do not fit the plan.
        OSError: the file cannot be written (a full disk, say); what was at ``path`` before is still there.
    """
    data = dumps(graph, constants, state)
    target = os.fspath(path)
    # Beside its target, since a rename is atomic within one file system only.
    temporary = f"{target}.{secrets.token_hex(6)}.tmp"
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"cannot write the {len(data)} bytes of the artifact ({reason})"
        raise OSError(error.errno, message, target) from error
    _sync_folder(os.path.dirname(target) or ".")
    return len(data)


def load(path: str | os.PathLike[str], limits: Limits | None = None) -> Contents:
    """Read an artifact from a file. See `loads`.

    Raises:
        OSError: the file cannot be read.
        DecodeError: it is damaged, cut short, or no artifact; the message names it.
        PlanError: it holds a plan that is not valid, or is larger than the limits allow.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        return loads(data, limits)
    except VersionError as error:
        raise VersionError(f"{os.fspath(path)}: {error}") from error
    except DecodeError as error:
        raise DecodeError(f"{os.fspath(path)}: {error}") from error


def _sections(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Check the header and the checksum, and cut the sections apart."""
    if not data.startswith(MAGIC):
        raise DecodeError(f"not an artifact: expected {MAGIC!r} in front, got {data[: len(MAGIC)]!r}")
    if len(data) < _START:
        raise DecodeError(f"the artifact is cut short: expected at least {_START} bytes, got {len(data)}")
    _, version, *lengths = _HEADER.unpack_from(data)
    if version != VERSION:
        raise VersionError(f"the artifact has version {version}, this library reads version {VERSION}")
    if len(data) != _START + sum(lengths):
        raise DecodeError(f"the artifact is damaged: expected {_START + sum(lengths)} bytes, got {len(data)}")
    ends = [_START + sum(lengths[:i]) for i in range(4)]
    sections = tuple(data[start:end] for start, end in pairwise(ends))
    expected, got = data[_HEADER.size : _START], _checksum(data[: _HEADER.size], *sections)
    if expected != got:
        raise DecodeError(f"the artifact is damaged: expected SHA-256 {expected.hex()}, got {got.hex()}")
    return sections[0], sections[1], sections[2]


def _checksum(*parts: bytes) -> bytes:
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def _pack(tensors: Mapping[str, torch.Tensor]) -> bytes:
    # Copies, since safetensors takes neither views nor two names for one storage (tied weights).
    own = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in sorted(tensors.items())
    }
    return safetensors.torch.save(own)


def _unpack(what: str, data: bytes) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise DecodeError(f"{what}: not tensors in safetensors form: {error}") from None
    except (ValueError, KeyError, RuntimeError, TypeError, OverflowError) as error:
        # Valid for the parser of safetensors, but of a dtype or a size that torch does not have.
        raise DecodeError(f"{what}: tensors that torch cannot hold: {error!r:.200}") from None


def _problems(
    graph: Graph, constants: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    """What is wrong between a plan and its tensors."""
    wanted = {c.digest: c.value.type for inner in graph.walk() for c in inner.constants}
    for name in sorted(constants.keys() - wanted.keys()):
        yield f"expected no constant but its {len(wanted)}, got {name!r:.80}"
    for name, type in wanted.items():
        if name not in constants:
            yield f"expected the data of the constant {name} ({type}), got none"
        elif type_of(constants[name]) != type:
            yield f"constant {name}: expected {type}, got {_show(constants[name])}"
        elif digest(constants[name]) != name:
            yield f"constant {name}: expected data of this digest, got {digest(constants[name])}"
    yield from _state_problems(graph, state)


def _state_problems(graph: Graph, state: Mapping[str, torch.Tensor]) -> Iterator[str]:
    wanted = {port.path: port.value.type for port in graph.state()}
    sizes: list[tuple[str, DimExpr, int]] = []
    for path, tensor in state.items():
        if path not in wanted:
            known = ", ".join(repr(p) for p in list(wanted)[:8]) or "none"
            yield f"expected state paths of the plan ({known}), got {path!r:.80}"
            continue
        type = wanted[path]
        if not _fits(type, tensor):
            yield f"state {path!r}: expected {type}, got {_show(tensor)}"
            continue
        pairs = zip(type.shape, tensor.shape, strict=True)
        sizes += [(path, dim, size) for dim, size in pairs if isinstance(dim, DimExpr)]
    bindings = _solve([(dim, size) for _, dim, size in sizes])
    for var in graph.dims:
        if var.name in bindings and not var.lo <= bindings[var.name] <= var.hi:
            yield f"state: expected dim {var.name} in {var.lo}..{var.hi}, got {bindings[var.name]}"
    for path, dim, size in sizes:
        expected = _value(dim, bindings)
        if expected not in (None, size):
            yield f"state {path!r}: expected {dim} to be {expected} as elsewhere in it, got {size}"


def _fits(type: TensorType, tensor: torch.Tensor) -> bool:
    """Whether a tensor has this dtype, this rank, and these dims where they are ints."""
    if tensor.dtype is not type.dtype.torch or tensor.dim() != type.rank:
        return False
    return all(isinstance(d, DimExpr) or d == size for d, size in zip(type.shape, tensor.shape, strict=True))


def _solve(sizes: list[tuple[DimExpr, int]]) -> dict[str, int]:
    bindings: dict[str, int] = {}
    while True:
        before = len(bindings)
        for dim, size in sizes:
            with contextlib.suppress(ZeroDivisionError):
                found = solve(dim, size, bindings)
                if found is not None:
                    bindings.setdefault(*found)
        if len(bindings) == before:
            return bindings


def _value(dim: DimExpr, bindings: Mapping[str, int]) -> int | None:
    """The size of ``dim``, or None where only the plan's arguments determine it or it has no value."""
    try:
        return evaluate(dim, bindings)
    except (KeyError, ZeroDivisionError):
        return None


def _show(tensor: torch.Tensor) -> str:
    return str(type_of(tensor) or f"{tensor.dtype} of shape {list(tensor.shape)}")


def _sync_folder(folder: str) -> None:
    """Make the rename itself last through a power cut, where the system can (Windows cannot open folders)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
