"""Passes: valid IR in, valid IR out, the same meaning. One file a pass, one line each in `pipeline`."""

from planc.passes.base import Pass, PassResult
from planc.passes.batch_norm import FoldBatchNorm
from planc.passes.canonicalise import Canonicalise
from planc.passes.cse import CommonSubexpressions
from planc.passes.dce import DeadCode
from planc.passes.elementwise import FuseElementwise
from planc.passes.fold import FoldConstants
from planc.passes.fusions import Fuse, Group
from planc.passes.hoist import Hoist
from planc.passes.pipeline import OPTIONAL, PASSES, PassRecord, PipelineResult, Watch, named, run_pipeline
from planc.passes.simplify import Simplify

__all__ = [
    "OPTIONAL",
    "PASSES",
    "Canonicalise",
    "CommonSubexpressions",
    "DeadCode",
    "FoldBatchNorm",
    "FoldConstants",
    "Fuse",
    "FuseElementwise",
    "Group",
    "Hoist",
    "Pass",
    "PassRecord",
    "PassResult",
    "PipelineResult",
    "Simplify",
    "Watch",
    "named",
    "run_pipeline",
]
