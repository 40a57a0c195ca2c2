"""The memory of frames on their way: taken as bytes come, bounded before that, given back."""

from __future__ import annotations

import mmap

import pytest

from planc.errors import DecodeError, LimitError
from runtime.channels.streams.memory import Room, allocate


def test_large_memory_is_taken_as_it_is_written_to() -> None:
    small, large = allocate(10), allocate(2**20)
    assert isinstance(small, bytearray)
    assert isinstance(large, memoryview)
    assert isinstance(large.obj, mmap.mmap)
    assert (len(small), len(large)) == (10, 2**20)


def test_memory_that_the_machine_has_not_got_is_a_limit_error() -> None:
    with pytest.raises(LimitError, match="no room"):
        allocate(2**62)


def test_what_clients_have_begun_is_bounded() -> None:
    room = Room(1000, 1500, client_frames=3)
    for nbytes, error in ((1001, LimitError), (0, DecodeError)):
        with pytest.raises(error):
            room.check(nbytes)
        with pytest.raises(error):
            room.begin("ann", nbytes)
    assert len(room.begin("ann", 1000)) == 1000
    with pytest.raises(LimitError, match="got 1000 and 501 more"):
        room.begin("ann", 501)
    room.begin("ann", 1)
    room.begin("ann", 1)
    with pytest.raises(LimitError, match="3 frames"):
        room.begin("ann", 1)
    room.begin("ben", 1000)  # another has room of its own
    for nbytes in (1000, 1, 1):
        room.end("ann", nbytes)
    assert len(room.begin("ann", 1000)) == 1000


def test_what_could_not_be_had_counts_for_nothing() -> None:
    room = Room(2**63, 2**63)
    with pytest.raises(LimitError, match="no room"):
        room.begin("ann", 2**62)
    assert room.begin("ann", 10)
    room.end("ann", 10)
