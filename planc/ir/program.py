"""A graph together with the data of its constants: what passes work on. Holds no state and no file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from planc.ir.graph import Graph


@dataclass(frozen=True, slots=True)
class Program:
    """A graph and the tensors that its constants, and those of its subplans, name by digest.

    A constant may be absent: passes then treat it as unknown. Equality is that of the graphs, whose digests
    already say which data they mean.
    """

    graph: Graph
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor], compare=False)

    def pruned(self) -> Program:
        """The program without the data that none of its graphs names."""
        digests = {constant.digest for graph in self.graph.walk() for constant in graph.constants}
        return Program(self.graph, {name: data for name, data in self.constants.items() if name in digests})
