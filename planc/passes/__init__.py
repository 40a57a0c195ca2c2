"""Passes: valid IR in, valid IR out, the same meaning. One file a pass, one line each in `pipeline`."""

from planc.passes.base import Pass, PassResult
from planc.passes.canonicalise import Canonicalise
from planc.passes.cse import CommonSubexpressions
from planc.passes.dce import DeadCode
from planc.passes.fold import FoldConstants
from planc.passes.pipeline import PASSES, PassRecord, PipelineResult, run_pipeline

__all__ = [
    "PASSES",
    "Canonicalise",
    "CommonSubexpressions",
    "DeadCode",
    "FoldConstants",
    "Pass",
    "PassRecord",
    "PassResult",
    "PipelineResult",
    "run_pipeline",
]
