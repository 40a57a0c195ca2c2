"""A worker as a process of its own: what ``planc worker`` starts.

`settings` is how it is run, `data` reads what it offers, `listening` opens its addresses, `process` runs it,
`greeting` says so to people.
"""

from runtime.serving.process import Offered, Serving
from runtime.serving.settings import Settings

__all__ = ["Offered", "Serving", "Settings"]
