"""Ways to a worker: a channel carries frames there and back and knows nothing of what is in them."""

from runtime.channels.base import Channel, Connection
from runtime.channels.inprocess import InProcessChannel

__all__ = ["Channel", "Connection", "InProcessChannel"]
