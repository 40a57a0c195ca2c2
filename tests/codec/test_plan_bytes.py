"""Plans to bytes and back: the same plan, one form of bytes for each, everything else refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings

from planc.codec import decode, encode, plan_id, wire
from planc.errors import DecodeError, LimitError, PlanError, VerifyError, VersionError
from planc.ir import Attribute, DimExpr, DimVar, DType, Graph, Operand, Scalar, TensorType, Value, sym
from planc.ir.builder import GraphBuilder
from planc.ir.graph import Location
from planc.ir.structure import Fixed, Sequence
from planc.limits import Limits
from planc.ops.schema import same
from planc.verifier import verify
from tests.codec.samples import add, large, small
from tests.strategies import graphs

_decoder = msgspec.msgpack.Decoder()


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_decode_gives_back_the_plan(graph: Graph) -> None:
    verify(graph)
    data = encode(graph)
    again = decode(data)
    assert again == graph
    # Equality of dataclasses has 1 == 1.0 == True and 0.0 == -0.0; the text of a plan has not.
    assert repr(again) == repr(graph)
    assert encode(again) == data


def _one(op: str, *operands: Operand, **attrs: Attribute) -> Graph:
    builder = GraphBuilder("one", [DimVar("b")])
    x = builder.input("x", TensorType(DType.F32, (sym("b"), 2)))
    results = add(builder, op, x, *operands, **attrs)
    builder.output(results[0], "y")
    return builder.build()


@pytest.mark.parametrize(
    "value",
    [
        1,
        1.0,
        True,
        0,
        0.0,
        -0.0,
        False,
        2**63 - 1,
        -(2**63),
        float("inf"),
        5e-324,
        sym("b") * 2 - 1,
        sym("b") // 2,
    ],
    ids=repr,
)
def test_numbers_keep_value_and_type(value: Scalar | DimExpr) -> None:
    as_operand = decode(encode(_one("aten.mul", value))).nodes[0].operands[1]
    assert not isinstance(as_operand, Value)
    assert same(as_operand, value)


@pytest.mark.parametrize("value", [2, 2.0, True, -0.0, float("inf"), sym("b")], ids=repr)
def test_attributes_keep_value_and_type(value: Attribute) -> None:
    stored = decode(encode(_one("aten.leaky_relu", negative_slope=value))).nodes[0].attr("negative_slope")
    assert same(stored, value)


def test_equal_numbers_of_different_types_make_different_plans() -> None:
    ids = {plan_id(_one("aten.mul", value)) for value in (1, 1.0, True)}
    assert len(ids) == 3
    assert plan_id(_one("aten.mul", 0.0)) != plan_id(_one("aten.mul", -0.0))


def test_id_is_the_digest_of_the_bytes_and_ignores_locations() -> None:
    graph = small()
    located = replace(graph, nodes=tuple(replace(n, loc=Location("f.py", 3, "x")) for n in graph.nodes))
    assert plan_id(located) == plan_id(graph) == hashlib.sha256(encode(graph)).hexdigest()


def test_id_is_the_same_in_another_process() -> None:
    code = "from tests.codec.samples import small; from planc.codec import plan_id; print(plan_id(small()))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == plan_id(small())


def test_version_1_bytes_never_change() -> None:
    """A change here changes the id of every plan ever approved: it needs a new version of the format."""
    assert plan_id(small()) == _SMALL_ID


_SMALL_ID = "b498a68c6eb3c4044d72e5ab5b36a423730cf0be8de6838525ac75c17f215c11"


def test_integers_beyond_64_bits_are_refused() -> None:
    for value in (2**63, -(2**63) - 1, 2**70):
        with pytest.raises(LimitError, match="64 bits"):
            encode(_one("aten.mul", value))
        with pytest.raises(LimitError, match="64-bit"):
            verify(_one("aten.mul", value))


def test_text_that_is_not_unicode_is_refused() -> None:
    graph = replace(small(), takes=Sequence("tuple", (Fixed("\ud800"),)))
    with pytest.raises(PlanError, match="Unicode"):
        encode(graph)


# Forms that mean the plan but are not its canonical bytes.


def _rewritten(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) >= 1
    return data.replace(old, new, 1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x02", b"\xcc\x02"),  # an integer in two bytes
        (b"\xa4step", b"\xd9\x04step"),  # a text with a long length
        (b"\x95", b"\xdc\x00\x05"),  # an array with a long length
        (b"\xcb\x3f\xe0" + bytes(6), b"\xca\x3f\x00\x00\x00"),  # 0.5 as a 32-bit float
    ],
    ids=["integer", "text", "array", "float"],
)
def test_other_forms_of_the_same_plan_are_refused(old: bytes, new: bytes) -> None:
    data = _rewritten(encode(small()), old, new)
    assert _decoder.decode(data) == _decoder.decode(encode(small()))
    with pytest.raises(DecodeError, match="canonical"):
        decode(data)


def test_surplus_and_missing_entries_are_refused() -> None:
    document = _decoder.decode(encode(small()))
    magic, version, body = document
    for changed in ([*body, None], body[:-1]):
        with pytest.raises(DecodeError, match="length"):
            decode(msgspec.msgpack.encode([magic, version, changed]))
    with pytest.raises(DecodeError, match="canonical"):
        decode(msgspec.msgpack.encode([magic, version, body, 0]))
    with pytest.raises(DecodeError, match="trailing"):
        decode(encode(small()) + b"\x00")


def test_default_attributes_are_refused() -> None:
    magic, version, body = _decoder.decode(encode(small()))
    body[4][1][2] = [["alpha", 1]]
    with pytest.raises(VerifyError, match=r"node 1 .*expected the attributes .* \[\], got \['alpha'\]"):
        decode(msgspec.msgpack.encode([magic, version, body]))


# Versions and limits.


@pytest.mark.parametrize("version", [0, 3, 2**32])
def test_other_versions_say_so(version: int) -> None:
    # Whatever the body has become in that version.
    data = msgspec.msgpack.encode([wire.MAGIC, version, {"new": "form"}])
    with pytest.raises(VersionError, match=f"version {version} of the format, this library reads up to 2"):
        decode(data)


def test_other_data_says_so() -> None:
    with pytest.raises(DecodeError, match=r"expected 'planc\.plan' in front, got 'a\.file'"):
        decode(msgspec.msgpack.encode(["a.file", 1, []]))


def test_size_is_limited_before_anything_is_read() -> None:
    data = encode(large(10))
    assert decode(data, Limits(total_bytes=len(data))) == large(10)
    with pytest.raises(LimitError, match=f"at most {len(data) - 1} bytes is allowed, got {len(data)}"):
        decode(data, Limits(total_bytes=len(data) - 1))


def test_any_buffer_can_be_decoded() -> None:
    data = encode(small())
    assert decode(bytearray(data)) == decode(memoryview(data)) == small()
