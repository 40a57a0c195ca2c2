"""Watching a federated run: callbacks that show, write down or draw its events. They decide nothing."""

from runtime.federated.watch.board import TensorBoard
from runtime.federated.watch.lines import JsonLines, read_lines
from runtime.federated.watch.progress import Progress
from runtime.federated.watch.report import Report, render

__all__ = ["JsonLines", "Progress", "Report", "TensorBoard", "read_lines", "render"]
