"""Plans as bytes: `encode` and `decode` for one plan, `save` and `load` for a file with its tensors."""

from planc.codec.artifact import dumps, load, loads, save
from planc.codec.plan import decode, encode, plan_id

__all__ = ["decode", "dumps", "encode", "load", "loads", "plan_id", "save"]
