"""What is said on a stream: chunks there and back, and nothing else."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planc.errors import DecodeError, LimitError
from runtime.channels.grpc import chunks
from runtime.channels.grpc.chunks import BATCH, CHUNK, Kind
from runtime.channels.grpc.inbox import Inbox
from runtime.channels.streams.memory import Room
from runtime.messages import Put, PutItem, Request, Slot
from runtime.wire import Pieces, decode, encode, encode_pieces

KEY = b"k" * 16


@given(
    st.lists(
        st.tuples(st.sampled_from(Kind), st.binary(min_size=16, max_size=16), st.binary(max_size=300)),
        max_size=8,
    )
)
def test_chunks_are_read_as_they_were_written(written: list[tuple[Kind, bytes, bytes]]) -> None:
    message = b"".join(chunks.write(kind, key, len(data) + 7, 7, 3, data) for kind, key, data in written)
    read = [(c.kind, c.key, c.total - 7, c.offset, c.have, bytes(c.data)) for c in chunks.read(message)]
    assert read == [(kind, key, len(data), 7, 3, data) for kind, key, data in written]


@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_anything_else_is_a_decode_error(data: bytes, total: int) -> None:
    good = chunks.write(Kind.DATA, KEY, 3, 0, 0, b"abc")
    for message in (data, good + data, good[:-1], good[: len(good) // 2]):
        try:
            for chunk in chunks.read(message):
                assert chunk.offset + len(chunk.data) <= chunk.total
        except DecodeError:
            pass
    with pytest.raises(DecodeError):
        list(chunks.read(good[:-1]))


@pytest.mark.parametrize("kind", [0, 4, 255])
def test_a_kind_that_is_not_there_is_refused(kind: int) -> None:
    message = bytearray(chunks.write(Kind.DATA, KEY, 0, 0))
    message[0] = kind
    with pytest.raises(DecodeError, match=f"got {kind}"):
        list(chunks.read(bytes(message)))


@pytest.mark.parametrize("start", [0, 1, CHUNK - 1, CHUNK, CHUNK + 5, 2 * CHUNK + 77, 10**9])
def test_a_frame_is_split_from_anywhere(start: int) -> None:
    whole = bytes(torch.randint(0, 256, (2 * CHUNK + 77,), dtype=torch.uint8).numpy())
    cut = [0, 10, 11, CHUNK + 3, len(whole)]
    parts = Pieces([memoryview(whole)[a:b] for a, b in itertools.pairwise(cut)])
    for frame in (bytearray(whole), parts):
        at = min(start, len(whole))
        for offset, data in chunks.split(frame, start):
            assert offset == at
            assert len(data) <= CHUNK
            assert bytes(data) == whole[at : at + len(data)]
            at += len(data)
        assert at == len(whole)


def test_small_messages_travel_together() -> None:
    small, large = b"s" * 1000, b"l" * (BATCH + 1)
    packed = list(chunks.pack([small, small, large, small, b"", small]))
    assert packed == [small * 2, large, small, small]
    assert all(len(m) <= BATCH for m in chunks.pack([small] * 500))


def test_pieces_are_the_frame_without_a_copy() -> None:
    tensors = [
        torch.randn(300, 400),
        torch.randn(5, 4).t(),
        torch.tensor(True),
        torch.empty(0, 3),
        torch.randn(7).to(torch.bfloat16),
    ]
    request = Request("me", 1, 1, 0, (), Put(tuple(PutItem(i + 1, Slot(i)) for i in range(len(tensors)))))
    pieces = encode_pieces(request, tensors)
    assert pieces.join() == encode(request, tensors)
    assert len(pieces) == len(pieces.join())
    _, read = decode(pieces.join())
    assert all(torch.equal(a, b) for a, b in zip(read, tensors, strict=True))
    address = tensors[0].data_ptr()
    assert any(
        torch.frombuffer(part, dtype=torch.uint8).data_ptr() == address
        for part in pieces.parts
        if part.nbytes > 99_999
    )
    empty = Request("me", 1, 1, 0, (), Put(()))
    assert encode_pieces(empty).join() == encode(empty)


# -- the inbox -----------------------------------------------------------------------------------------------


def _chunk(total: int, offset: int, data: bytes, key: bytes = KEY) -> chunks.Chunk:
    (chunk,) = chunks.read(chunks.write(Kind.DATA, key, total, offset, 0, data))
    return chunk


def test_a_frame_is_put_together() -> None:
    inbox = Inbox(Room(1000, 2000))
    assert inbox.take("ann", _chunk(6, 0, b"abc")) is None
    assert inbox.have("ann", KEY) == 3
    assert inbox.have("ben", KEY) == 0  # nobody sees another's
    assert inbox.take("ann", _chunk(6, 0, b"abc")) is None  # again, after a break
    whole = inbox.take("ann", _chunk(6, 2, b"cdef"))
    assert whole is not None
    assert bytes(whole) == b"abcdef"
    assert inbox.have("ann", KEY) == 0


def test_limits_hold_before_anything_is_allocated() -> None:
    inbox = Inbox(Room(2**40, 2**41))
    with pytest.raises(LimitError, match=str(2**40)):
        inbox.take("ann", _chunk(2**40 + 1, 0, b"x"))
    inbox = Inbox(Room(1000, 1500, client_frames=2))
    inbox.take("ann", _chunk(1000, 0, b"x", b"1" * 16))
    with pytest.raises(LimitError, match="1500"):
        inbox.take("ann", _chunk(501, 0, b"x", b"2" * 16))
    inbox.take("ann", _chunk(400, 0, b"x", b"3" * 16))
    with pytest.raises(LimitError, match="2 frames"):
        inbox.take("ann", _chunk(10, 0, b"x", b"4" * 16))
    assert inbox.take("ann", _chunk(501, 1, b"x", b"2" * 16)) is None  # the rest of what was refused
    inbox.take("ben", _chunk(1000, 0, b"x"))  # another client has room of its own


def test_a_frame_that_changes_or_has_gaps_is_forgotten() -> None:
    inbox = Inbox(Room(1000, 2000))
    for bad in (_chunk(7, 3, b"d"), _chunk(6, 4, b"e")):
        inbox.take("ann", _chunk(6, 0, b"abc"))
        with pytest.raises(DecodeError):
            inbox.take("ann", bad)
        assert inbox.have("ann", KEY) == 0


def test_who_announces_much_and_sends_nothing_is_forgotten_and_took_no_memory() -> None:
    now = 0.0
    inbox = Inbox(Room(2**34, 2**36), patience=10, clock=lambda: now)
    inbox.take("ann", _chunk(2**33, 0, b"x"))  # 8 GiB announced
    now = 9
    inbox.sweep()
    assert inbox.have("ann", KEY) == 1
    now = 20
    inbox.sweep()
    assert inbox.have("ann", KEY) == 0
