"""Frames: round trips for every dtype and layout; any damage is a typed error or a readable frame."""

import contextlib
import struct
import warnings

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planc.errors import DecodeError, InputError, LimitError, PlancError, VersionError
from planc.ir import DType
from runtime.messages import Apply, Done, Get, Numbers, Put, PutItem, Reply, Request, Slot, Values
from runtime.wire import WireLimits, decode, encode

REQUEST = Request("me", 7, 3, 2, (5, 6), Get((1, 2), True))


def tensors_of_every_kind() -> list[torch.Tensor]:
    base = torch.arange(24).reshape(2, 3, 4)
    out = [base.to(dtype.torch) for dtype in DType]
    out += [torch.tensor(7.5), torch.tensor(True), torch.empty(0), torch.empty(3, 0, 2, dtype=torch.bool)]
    out += [base.float().transpose(0, 2), base.float()[:, ::2], torch.ones(1).expand(5), base[1, 2]]
    out += [torch.randn(3, requires_grad=True), torch.nn.Parameter(torch.randn(2, 2)).bfloat16()]
    out += [torch.tensor([float("nan"), float("inf"), -0.0])]
    return out


def test_every_kind_of_tensor_comes_back_as_it_was() -> None:
    tensors = tensors_of_every_kind()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        message, back = decode(encode(REQUEST, tensors))
    assert message == REQUEST
    for before, after in zip(tensors, back, strict=True):
        assert (after.dtype, after.shape) == (before.dtype, before.shape)
        assert torch.equal(after.nan_to_num(7), before.detach().nan_to_num(7))
        assert not after.requires_grad


def test_tensors_share_the_frame_and_start_at_multiples_of_64() -> None:
    frame = encode(REQUEST, [torch.ones(3), torch.zeros(2, dtype=torch.bool), torch.ones(2)])
    _, (a, b, c) = decode(frame)
    a[0] = 9.0
    assert decode(frame)[1][0][0] == 9.0
    starts = [t.data_ptr() for t in (a, b, c)]
    assert (starts[1] - starts[0], starts[2] - starts[1]) == (64, 64)
    assert len(frame) - struct.unpack_from("<I", frame, 8)[0] < 24 + 64 + 128 + 8


def test_a_read_only_frame_is_copied_without_a_warning() -> None:
    frame = bytes(encode(REQUEST, [torch.ones(3)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, (tensor,) = decode(frame)
    tensor[0] = 5.0
    assert decode(frame)[1][0].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2).to_sparse(), "dense"),
        (torch.ones(2, device="meta"), "meta"),
    ],
)
def test_what_plans_do_not_have_is_not_sent(tensor: torch.Tensor, text: str) -> None:
    with pytest.raises(InputError, match=text):
        encode(REQUEST, [tensor])


def small() -> bytes:
    body = Put((PutItem(1, Slot(0), ("#x",)), PutItem(2, Slot(1), private=True)))
    return bytes(encode(Request("me", 1, 1, 0, (), body), [torch.ones(3), torch.tensor([True, False])]))


def test_a_frame_cut_anywhere_or_too_long_is_an_error() -> None:
    frame = small()
    for length in range(len(frame)):
        with pytest.raises(DecodeError):
            decode(frame[:length])
    with pytest.raises(DecodeError):
        decode(frame + b"\0")


def test_any_flipped_bit_is_a_typed_error_or_another_readable_frame() -> None:
    frame = small()
    header = struct.unpack_from("<I", frame, 8)[0]
    refused = kept = 0
    for position in range(len(frame)):
        for bit in range(8):
            bad = bytearray(frame)
            bad[position] ^= 1 << bit
            try:
                decode(bad)
            except (DecodeError, LimitError):
                refused += 1
            else:  # only the elements and the fields of the message can mean something else
                assert position >= 24
                kept += position < 24 + header
    assert refused > 4 * (24 + header)
    assert kept > 0


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_a_typed_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120), st.binary(max_size=80))
def test_random_headers_in_a_sound_frame_are_a_typed_error(header: bytes, data: bytes) -> None:
    with pytest.raises(PlancError):
        decode(framed(header, data))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_frames_are_a_typed_error_or_a_frame(data: st.DataObject) -> None:
    frame = bytearray(small())
    for _ in range(data.draw(st.integers(1, 8))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError, LimitError):
        decode(frame)


def framed(header: bytes, data: bytes = b"") -> bytearray:
    start = (24 + len(header) + 63) // 64 * 64
    frame = bytearray(start) + data
    struct.pack_into("<7sBIIQ", frame, 0, b"\x8bplancw", 1, len(header), 0, len(frame))
    frame[24 : 24 + len(header)] = header
    return frame


def table(*entries: object) -> bytearray:
    """A frame whose table is as given, with 128 bytes of data."""
    return framed(msgspec.msgpack.encode([["reply", 1, ["done"]], entries]), bytes(128))


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([["f32", [2**40], 0, 2**42]], "announced by its tensors"),
        ([["f32", [2**62, 4], 0, 0]], "bytes, not the 0"),
        ([["f32", [3], 0, 16]], "has 12 bytes, not the 16"),
        ([["f32", [16], 64, 64]], "expected it at 0"),
        ([["f32", [16], 0, 64], ["f32", [16], 0, 64]], "expected it at 64"),
        ([["f32", [0, 2**62, 2**62], 0, 0]], "too large"),
        ([["f32", [-1], 0, 4]], "not a message"),
        ([["c64", [16], 0, 128]], "not a message"),
        ([["f32", [16], 0, 64]], "announced by its tensors"),
        ([["f32", [32], 0, 128, 1]], "not a message"),
        ([["f32", [1] * 100, 0, 4]], "at most 16 dims"),
        ([["f32", [2**63], 0, 4]], "not a message"),
        ([["f32", [True], 0, 4]], "not a message"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(entries: list[object], text: str) -> None:
    with pytest.raises(PlancError, match=text):
        decode(table(*entries))


def test_a_table_that_fits_is_read() -> None:
    assert decode(table(["f32", [32], 0, 128]))[0] == Reply(1, Done())


def test_padding_that_is_not_zero_and_bools_that_are_neither_are_refused() -> None:
    frame = encode(REQUEST, [torch.tensor([True])])
    frame[-1] = 2
    with pytest.raises(DecodeError, match="0 or 1"):
        decode(frame)
    frame = encode(REQUEST, [torch.ones(1), torch.ones(1)])
    frame[-10] = 1
    with pytest.raises(DecodeError, match="padding"):
        decode(frame)


def test_versions_and_limits() -> None:
    frame = bytearray(small())
    frame[7] = 2
    with pytest.raises(VersionError, match="version 2"):
        decode(frame)
    for limits in (
        WireLimits(frame_bytes=50),
        WireLimits(header_bytes=8),
        WireLimits(tensors=1),
        WireLimits(rank=0),
    ):
        with pytest.raises(LimitError):
            decode(small(), limits)


def test_deeply_nested_and_huge_announced_lengths_cost_nothing() -> None:
    for header in (b"\x91" * 100_000, b"\x92\x93\xa7request\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"):
        with pytest.raises(DecodeError):
            decode(framed(header))


def test_ids_out_of_range_are_refused() -> None:
    for id in (0, -1, 2**63):
        with pytest.raises((DecodeError, InputError)):
            decode(encode(Request("me", 1, 1, 0, (), Get((id,)))))


def test_numbers_keep_their_type() -> None:
    body = Apply(
        "op", (1, 1.0, True, None, -0.0), {"a": 1, "b": 1.0, "c": False, "d": Numbers((1, 2.0, True))}, ()
    )
    message, _ = decode(encode(Request("me", 1, 1, 0, (), body)))
    assert isinstance(message, Request)
    assert repr(message.body) == repr(body)


def test_a_reply_goes_both_ways() -> None:
    assert decode(encode(Reply(9, Values((Slot(0),))), [torch.ones(1)]))[0] == Reply(9, Values((Slot(0),)))
