"""Artifact files: whole or refused, whatever happens to their bytes or to the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import stat
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from planc.codec import dumps, encode, load, loads, save
from planc.codec.artifact import MAGIC
from planc.errors import DecodeError, LimitError, PlanError, VerifyError, VersionError
from planc.ir import DimVar, DType, Graph, Role, TensorType, sym, type_of
from planc.ir.builder import GraphBuilder
from planc.ir.constants import digest
from planc.limits import Limits
from planc.verifier import verify
from tests.codec.samples import CONSTANTS, STATE, large, small

DATA = dumps(small(), CONSTANTS, STATE)


def _equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and digest(a[k]) == digest(b[k]) for k in a
    )


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "step.planc"
    size = save(path, small(), CONSTANTS, STATE)
    graph, constants, state = load(path)
    assert graph == small()
    assert _equal(constants, CONSTANTS)
    assert _equal(state, STATE)
    assert path.read_bytes() == DATA
    assert size == len(DATA)
    assert os.listdir(tmp_path) == ["step.planc"]


ODD = [
    torch.tensor(1.5, dtype=torch.bfloat16),
    torch.tensor([True, False]),
    torch.tensor(7, dtype=torch.uint8),
    torch.empty(0, 3),
    torch.empty(2, 0, dtype=torch.bool),
    torch.arange(6, dtype=torch.float64).reshape(2, 3).t(),
    torch.tensor([float("nan"), -0.0, float("-inf")], dtype=torch.float16),
    torch.arange(10)[::3],
    torch.tensor([-1], dtype=torch.int8),
    torch.ones(3, requires_grad=True),
    torch.ones(1).expand(4),
]


@pytest.mark.parametrize("tensor", ODD, ids=lambda t: str(type_of(t)))
def test_every_kind_of_tensor(tensor: torch.Tensor) -> None:
    type = type_of(tensor)
    assert type is not None
    builder = GraphBuilder("odd")
    builder.input("s", type, Role.BUFFER, "__metadata__")  # a name that safetensors keeps for itself
    builder.output(builder.constant(type, digest(tensor)), "c")
    graph = builder.build()
    verify(graph)
    again, constants, state = loads(dumps(graph, {digest(tensor): tensor}, {"__metadata__": tensor}))
    assert again == graph
    assert _equal(constants, {digest(tensor): tensor.detach()})
    assert _equal(state, {"__metadata__": tensor.detach()})
    got = state["__metadata__"]
    assert got.is_contiguous()
    assert not got.requires_grad
    got.zero_()  # memory of its own, that may be written to


def test_tensors_that_share_memory() -> None:
    builder = GraphBuilder("tied")
    for path in ("a", "b"):
        builder.input(path, TensorType(DType.F32, (4,)), Role.PARAMETER)
    shared = torch.arange(4.0)
    _, _, state = loads(dumps(builder.build(), {}, {"a": shared, "b": shared}))
    assert _equal(state, {"a": shared, "b": shared})


def test_constants_of_subplans_travel_too() -> None:
    inner = small()
    outer = replace(small(), name="outer", constants=(), nodes=(), outputs=(), gives=None, subplans=(inner,))
    _, constants, _ = loads(dumps(outer, CONSTANTS))
    assert _equal(constants, CONSTANTS)
    with pytest.raises(PlanError, match="expected the data of the constant"):
        dumps(outer, {})


def test_state_may_be_partial_or_empty() -> None:
    builder = GraphBuilder("two")
    for path in ("a", "b"):
        builder.input(path, TensorType(DType.F32, (4,)), Role.PARAMETER)
    assert loads(dumps(builder.build(), {}))[2] == {}
    assert list(loads(dumps(builder.build(), {}, {"b": torch.zeros(4)}))[2]) == ["b"]


def test_equal_contents_give_equal_bytes() -> None:
    first, second = torch.ones(2), torch.zeros(2)
    builder = GraphBuilder("order")
    for path in ("a", "b"):
        builder.input(path, TensorType(DType.F32, (2,)), Role.BUFFER)
    graph = builder.build()
    assert dumps(graph, {}, {"a": first, "b": second}) == dumps(graph, {}, {"b": second, "a": first})


# Damage.


def test_every_flipped_byte_is_a_decode_error() -> None:
    for position in range(len(DATA)):
        for mask in (0x01, 0x80):
            changed = bytearray(DATA)
            changed[position] ^= mask
            with pytest.raises(DecodeError):
                loads(bytes(changed))


def test_every_truncation_and_any_surplus_is_a_decode_error() -> None:
    for length in range(len(DATA)):
        with pytest.raises(DecodeError):
            loads(DATA[:length])
    with pytest.raises(DecodeError, match=f"expected {len(DATA)} bytes, got {len(DATA) + 1}"):
        loads(DATA + b"\0")


def test_damage_is_told_with_the_file_and_both_digests(tmp_path: Path) -> None:
    path = tmp_path / "broken.planc"
    path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with pytest.raises(
        DecodeError, match=r"broken\.planc: .* expected SHA-256 [0-9a-f]{64}, got [0-9a-f]{64}"
    ):
        load(path)
    path.write_bytes(b"plan step() {}")
    with pytest.raises(DecodeError, match=r"broken\.planc: not an artifact: expected .* got b'plan ste'"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing.planc")


def test_another_version_says_so(tmp_path: Path) -> None:
    path = tmp_path / "new.planc"
    path.write_bytes(DATA[:8] + (9).to_bytes(4, "little") + DATA[12:])
    with pytest.raises(VersionError, match=r"new\.planc: .*version 9, this library reads version 1"):
        load(path)


# Files made on purpose: the checksum is right, what it covers is not.


def _forged(plan: bytes, constants: bytes, state: bytes) -> bytes:
    header = struct.pack("<8sIQQQ", MAGIC, 1, len(plan), len(constants), len(state))
    return header + hashlib.sha256(header + plan + constants + state).digest() + plan + constants + state


def _tensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    return safetensors.torch.save(dict(tensors))


PLAN = encode(small())
NAME, BIAS = next(iter(CONSTANTS.items()))


def test_a_forged_artifact_of_the_right_parts_is_one() -> None:
    state = {f"state:{path}": tensor for path, tensor in STATE.items()}
    assert loads(_forged(PLAN, _tensors(CONSTANTS), _tensors(state)))[0] == small()


@pytest.mark.parametrize(
    ("constants", "state", "message"),
    [
        (_tensors({}), _tensors({}), "expected the data of the constant"),
        (_tensors({NAME: BIAS + 1}), _tensors({}), "expected data of this digest, got"),
        (_tensors({NAME: BIAS.double()}), _tensors({}), r"expected f32\[3\], got f64\[3\]"),
        (_tensors({NAME: BIAS[:2]}), _tensors({}), r"expected f32\[3\], got f32\[2\]"),
        (
            _tensors({NAME: BIAS, "more": BIAS + 1}),
            _tensors({}),
            "expected no constant but its 1, got 'more'",
        ),
        (_tensors(CONSTANTS), _tensors({"w": BIAS}), "names that begin with 'state:', got 'w'"),
        (
            _tensors(CONSTANTS),
            _tensors({"state:other": BIAS}),
            r"expected state paths .*'fc\.weight'.* got 'other'",
        ),
        (
            _tensors(CONSTANTS),
            _tensors({"state:fc.weight": BIAS}),
            r"'fc\.weight': expected f32\[4, 3\], got f32\[3\]",
        ),
        (_tensors(CONSTANTS), b"", "state: not tensors in safetensors form"),
        (b"\xff" * 8 + b"{}", _tensors({}), "constants: not tensors in safetensors form"),
        (b"\x02\0\0\0\0\0\0\0{}!", _tensors({}), "constants: not tensors in safetensors form"),
    ],
)
def test_parts_that_do_not_belong_together(constants: bytes, state: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        loads(_forged(PLAN, constants, state))


def test_tensors_of_dtypes_that_plans_lack() -> None:
    header = b'{"state:fc.weight":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}'
    section = len(header).to_bytes(8, "little") + header + bytes(8)
    with pytest.raises(DecodeError):
        loads(_forged(PLAN, _tensors(CONSTANTS), section))


def test_the_plan_in_an_artifact_is_verified() -> None:
    graph = small()
    broken = replace(graph, nodes=(replace(graph.nodes[0], op="aten.system"), *graph.nodes[1:]))
    with pytest.raises(VerifyError, match=r"aten\.system"):
        loads(_forged(encode(broken), _tensors(CONSTANTS), _tensors({})))
    with pytest.raises(LimitError, match="at most 10 nodes"):
        loads(dumps(large(20), {}), Limits(nodes=10))


def test_state_of_named_dims_must_agree() -> None:
    n = sym("n")
    builder = GraphBuilder("dims", [DimVar("n", 2, 8), DimVar("b")])
    builder.input("a", TensorType(DType.F32, (n * 2,)), Role.BUFFER)
    builder.input("c", TensorType(DType.F32, (n + 1,)), Role.BUFFER)
    builder.input("e", TensorType(DType.F32, (sym("b") + n,)), Role.BUFFER)
    builder.input("x", TensorType(DType.F32, (sym("b"),)))
    graph: Graph = builder.build()
    verify(graph)
    dumps(graph, {}, {"a": torch.zeros(6), "c": torch.zeros(4), "e": torch.zeros(5)})
    with pytest.raises(PlanError, match=r"state 'c': expected n \+ 1 to be 4 .* got 5"):
        dumps(graph, {}, {"a": torch.zeros(6), "c": torch.zeros(5)})
    with pytest.raises(PlanError, match=r"expected dim n in 2\.\.8, got 9"):
        dumps(graph, {}, {"a": torch.zeros(18)})


def test_saving_checks_as_loading_does() -> None:
    with pytest.raises(PlanError, match="cannot save plan 'step': expected the data of the constant"):
        dumps(small(), {})
    with pytest.raises(PlanError, match="expected data of this digest"):
        dumps(small(), {NAME: BIAS * 2})
    with pytest.raises(PlanError, match=r"'fc\.weight': expected f32\[4, 3\], got f64\[4, 3\]"):
        dumps(small(), CONSTANTS, {"fc.weight": STATE["fc.weight"].double()})


# The disk.


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "step.planc"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))  # writing fails after 200 bytes
    try:
        with pytest.raises(OSError, match=r"cannot write the \d+ bytes of the artifact") as caught:
            save(path, small(), CONSTANTS, STATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["step.planc"]


def test_a_crash_before_the_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "step.planc"
    path.write_bytes(b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(path, small(), CONSTANTS, STATE)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["step.planc"]


def test_errors_of_the_file_system_keep_their_class(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cannot write the"):
        save(tmp_path / "no" / "folder.planc", small(), CONSTANTS)
    with pytest.raises(IsADirectoryError, match="cannot write the"):
        save(tmp_path, small(), CONSTANTS)
    assert os.listdir(tmp_path.parent / tmp_path.name) == []


def test_a_saved_file_has_ordinary_permissions(tmp_path: Path) -> None:
    path, plain = tmp_path / "step.planc", tmp_path / "plain"
    save(path, small(), CONSTANTS)
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
