"""Comparing graphs as their bytes do: the types of numbers count, the places of nodes in a text do not."""

from dataclasses import replace

from planc.ir import Graph


def exact(graph: Graph) -> str:
    return repr(_placeless(graph))  # repr tells 1 from 1.0 and 0.0 from -0.0, which == does not


def _placeless(graph: Graph) -> Graph:
    nodes = tuple(replace(node, loc=None) for node in graph.nodes)
    return replace(graph, nodes=nodes, subplans=tuple(_placeless(sub) for sub in graph.subplans))
