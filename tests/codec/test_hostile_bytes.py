"""Bytes from a stranger: out comes a typed error or a valid plan, soon and in little memory."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planc.codec import decode, encode, plan_id, wire
from planc.errors import DecodeError, LimitError, PlanError, VerifyError
from planc.limits import Limits
from planc.verifier import verify
from tests.codec.samples import large, small
from tests.strategies import graphs

SMALL = encode(small())


def survives(data: bytes) -> None:
    """Decode bytes: an error of ours comes out, or the one plan that they stand for."""
    message = ""
    try:
        graph = decode(data)
    except (DecodeError, PlanError) as error:
        message = str(error)
    else:
        verify(graph)
        assert encode(graph) == data
    # An op whose inference fails in a way that it does not foresee is a bug, though decoding contains it.
    assert "could not be inferred" not in message


@pytest.mark.parametrize("mask", [0x01, 0x10, 0x80, 0xFF])
def test_every_flipped_byte_of_a_plan(mask: int) -> None:
    original = plan_id(small())
    for position in range(len(SMALL)):
        changed = bytearray(SMALL)
        changed[position] ^= mask
        survives(bytes(changed))
        try:
            graph = decode(changed)
        except (DecodeError, PlanError):
            continue
        assert plan_id(graph) != original, f"byte {position} is not part of the plan's meaning"


def test_flipped_bytes_of_a_large_plan() -> None:
    data = encode(large(200))
    choose = random.Random(5)
    for _ in range(150):
        changed = bytearray(data)
        changed[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
        survives(bytes(changed))


def test_every_truncation_is_a_decode_error() -> None:
    for length in range(len(SMALL)):
        with pytest.raises(DecodeError):
            decode(SMALL[:length])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    survives(data)
    for version in wire.VERSIONS:
        survives(msgspec.msgpack.encode([wire.MAGIC, version, msgspec.Raw(data)]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_real_bytes_cut_and_pasted(data: st.DataObject) -> None:
    real = encode(data.draw(graphs(max_nodes=5)))
    for _ in range(data.draw(st.integers(1, 3))):
        start, end = sorted((data.draw(st.integers(0, len(real))), data.draw(st.integers(0, len(real)))))
        at = data.draw(st.integers(0, len(real)))
        piece = data.draw(st.one_of(st.just(real[start:end]), st.just(b""), st.binary(max_size=9)))
        real = real[:at] + piece + real[at + data.draw(st.integers(0, 9)) :]
    survives(real)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_real_plans_with_another_value_somewhere(data: st.DataObject) -> None:
    document = msgspec.msgpack.decode(encode(data.draw(graphs(max_nodes=5))))
    for _ in range(data.draw(st.integers(1, 3))):
        places = list(_places(document))
        parent, index = places[data.draw(st.integers(0, len(places) - 1))]
        other, there = places[data.draw(st.integers(0, len(places) - 1))]
        value: Any = data.draw(_json)
        # A value of another place fits more often than one at random; its bytes, so that no cycle arises.
        copied = msgspec.msgpack.decode(msgspec.msgpack.encode(other[there]))
        parent[index] = data.draw(st.sampled_from([value, copied]))
    survives(msgspec.msgpack.encode(document))


def _places(item: Any) -> Any:
    for index, inner in enumerate(item):
        yield item, index
        if isinstance(inner, list):
            yield from _places(inner)


# Bombs.


def _plan(change: Callable[[list[Any]], None]) -> bytes:
    magic, version, body = msgspec.msgpack.decode(SMALL)
    change(body)
    return msgspec.msgpack.encode([magic, version, body])


def _nest(leaf: Any, wrap: Callable[[Any], Any], times: int) -> msgspec.Raw:
    # From the inside out, since msgspec itself does not write what nests so deeply.
    raw = msgspec.Raw(msgspec.msgpack.encode(leaf))
    for _ in range(times):
        raw = msgspec.Raw(msgspec.msgpack.encode(wrap(raw)))
    return raw


def _deep_plans(body: list[Any], times: int) -> None:
    inner = body[6][0]
    body[6] = [_nest(inner, lambda sub: [*inner[:6], [sub], *inner[7:]], times)]


def _deep_dim(body: list[Any], times: int) -> None:
    body[2][0][3][1][0] = _nest([1, [[["b"], 1]]], lambda dim: [1, [[[[0, dim, 2]], 1]]], times)


def _deep_tree(body: list[Any], times: int) -> None:
    body[7] = _nest([6], lambda tree: [8, "list", [tree]], times)


@pytest.mark.parametrize("nested", [_deep_plans, _deep_dim, _deep_tree])
def test_nesting_is_bounded(nested: Callable[[list[Any], int], None]) -> None:
    with pytest.raises(LimitError, match="at most"):
        decode(_plan(lambda body: nested(body, 40)))
    with pytest.raises(DecodeError, match="nests too deeply"):
        decode(_plan(lambda body: nested(body, 2000)))


@pytest.mark.parametrize("array", [b"\x91", b"\x93\xaaplanc.plan\x01"], ids=["anything", "bodies"])
def test_endless_arrays(array: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(array * 100_000)


@pytest.mark.parametrize("header", [b"\xdd", b"\xdb", b"\xc6", b"\xdf", b"\xc9"], ids=lambda b: b.hex())
def test_huge_lengths_allocate_nothing(header: bytes) -> None:
    """A length of 4 GiB at every place of a plan where a value begins."""
    document = msgspec.msgpack.decode(SMALL)
    tracemalloc.start()
    for parent, index in list(_places(document)):
        kept = parent[index]
        parent[index] = msgspec.Raw(header + b"\xff\xff\xff\xff")
        with pytest.raises(DecodeError):
            decode(msgspec.msgpack.encode(document))
        parent[index] = kept
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def _powers(body: list[Any]) -> None:
    """x: f32[s^8, s^8, ...] with s a sum of many names: its number of elements has millions of terms."""
    names = [f"d{i}" for i in range(12)]
    body[1] = [[name, 1, 9] for name in names] + body[1]
    total = [1, [[[name], 1] for name in names]]
    body[2] = [[f"i{k}", "arg", f"i{k}", ["f32", [[1, [[[name], 1]]]]]] for k, name in enumerate(names)]
    body[2] += [["x", "arg", "x", ["f32", [total] * 8]]]


def _pieces(op: str, attr: list[Any]) -> Callable[[list[Any]], None]:
    def change(body: list[Any]) -> None:
        body[2][0][3] = ["f32", [2**62, 4]]
        body[4] = [[op, [[4, 0]], attr, [["f32", [1, 4]]]]]
        body[1], body[5], body[6], body[7], body[8] = [], [], [], None, None

    return change


def _many_plans(body: list[Any]) -> None:
    inner = body[6][0]
    body[6] = [_nest(inner, lambda sub: [*inner[:6], [sub, sub, sub], *inner[7:]], 6)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_powers, "terms in the product of its dims"),
        (_pieces("aten.unbind", []), "pieces"),
        (_pieces("aten.split", [["split_size", 1]]), "pieces"),
        (_many_plans, "at most 256 plans in all"),
    ],
    ids=["powers", "unbind", "split", "many plans"],
)
def test_bombs_are_refused_soon(change: Callable[[list[Any]], None], message: str) -> None:
    data = _plan(change)
    started = time.process_time()
    with pytest.raises(PlanError, match=message):
        decode(data)
    assert time.process_time() - started < 2


def test_not_a_number_is_refused() -> None:
    def change(body: list[Any]) -> None:
        body[4][2][2][0][1] = float("nan")

    with pytest.raises(VerifyError, match=r"'p'.*nan"):
        decode(_plan(change))


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(DecodeError, match="utf-8"):
        decode(SMALL.replace(b"step", b"st\xffp", 1))


def test_limits_hold_in_decoding() -> None:
    with pytest.raises(LimitError, match="at most 5 nodes in all are allowed, got 6"):
        decode(SMALL, Limits(nodes=5))
