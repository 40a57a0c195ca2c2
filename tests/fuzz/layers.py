"""All that is attacked, by name."""

from __future__ import annotations

from tests.fuzz.sockets import Sockets
from tests.fuzz.streams import Chunks, Streams
from tests.fuzz.targets import Frames

LAYERS: dict[str, type[Frames] | type[Chunks] | type[Streams] | type[Sockets]] = {
    "frames": Frames,
    "chunks": Chunks,
    "streams": Streams,
    "sockets": Sockets,
}
