"""Requests in good form that no honest client sends: any op on anything, and sizes beyond all measure."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

from planc.codec import decode, encode
from planc.errors import PlancError
from planc.ir import DimVar, DType, Graph, TensorType, sym
from planc.ir.builder import GraphBuilder
from planc.ir.dims import evaluate
from planc.limits import Limits
from planc.ops import Kind, OpDef, Param, all_ops, node
from tests.fuzz.corpus import Corpus

Data = tuple[list[Any], bytes]
"""The table of the tensors in a frame, and their elements."""
_NOTHING: Data = ([], b"")
_SIZES = [
    0,
    1,
    1,
    2,
    2,
    3,
    3,
    4,
    5,
    7,
    12,
    100,
    5000,
    10**5,
    10**7,
    2**31,
    2**40,
    10**12,
    2**62,
    2**63 - 1,
    -1,
    -3,
]
_SMALL = [-2, -1, 0, 0, 1, 1, 2, 3]
_FLOATS = [0.0, 0.5, 1.0, -1.0, float("nan"), float("inf"), 1e308]
_LIMITS = Limits(total_bytes=2**18, plans=32, depth=6, nodes=1000, ports=500)
_TENSORS = (Kind.TENSOR, Kind.OPT_TENSOR)
_LISTS = (Kind.TENSORS, Kind.OPT_TENSORS)
_F32, _I64 = DType.F32, DType.I64


def attack(rng: random.Random, corpus: Corpus) -> list[tuple[list[Any], Data]]:
    """Bodies of requests, with the tensors that go with them."""
    make = rng.choices([_any_op, _reached, _pointers, _plan, _amplified], [60, 10, 6, 20, 6])[0]
    return make(rng, corpus)


def _any_op(rng: random.Random, corpus: Corpus) -> list[tuple[list[Any], Data]]:
    """Any op of the table on any objects, tensors and attributes; its results are fetched."""
    definition = rng.choice(_OPS)
    table: list[Any] = []
    elements = bytearray()
    operands = [_operand(rng, corpus, param, table, elements) for param in definition.operands]
    attrs = {p.name: _attribute(rng, p) for p in definition.attrs if p.required or rng.random() < 0.5}
    results = [900_000 + rng.randrange(50) for _ in range(_results(rng, definition))]
    body: list[Any] = ["apply", definition.name, operands, attrs, results, rng.random() < 0.7]
    out: list[tuple[list[Any], Data]] = [(body, (table, bytes(elements)))]
    if results and rng.random() < 0.5:
        out.append((["get", results[:1], False], _NOTHING))
    if results and rng.random() < 0.2:
        out.append((["backward", results[0], None, False], _NOTHING))
    return out


def _operand(
    rng: random.Random, corpus: Corpus, param: Param, table: list[Any], elements: bytearray
) -> object:
    if param.kind in _TENSORS:
        if param.kind is Kind.OPT_TENSOR and rng.random() < 0.4:
            return None
        return _tensor(rng, corpus, table, elements)
    if param.kind in _LISTS:
        return [3, [_tensor(rng, corpus, table, elements) for _ in range(rng.choice([0, 1, 1, 2, 3]))]]
    return rng.choice([_tensor(rng, corpus, table, elements), rng.choice(_SMALL), rng.choice(_FLOATS), True])


def _tensor(rng: random.Random, corpus: Corpus, table: list[Any], elements: bytearray) -> list[Any]:
    chance = rng.random()
    if chance < 0.3:
        return [0, rng.choice(corpus.ids)]
    if chance < 0.4:
        return [0, 900_000 + rng.randrange(50)]
    shape = [rng.choice([1, 2, 3, 3, 4]) for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 4, 4, 5]))]
    dtype = rng.choice(["f32", "f32", "f32", "f32", "f64", "i64", "i64", "i32", "bool", "bf16", "f16"])
    count = 1
    for size in shape:
        count *= size
    width = {"f64": 8, "i64": 8, "f32": 4, "i32": 4, "bool": 1}.get(dtype, 2)
    if dtype == "bool":
        data = bytes(rng.randrange(2) for _ in range(count))
    elif dtype in ("i64", "i32"):
        wild = rng.random() < 0.2
        values = [
            rng.choice([-1, 5, 2**31 - 1, -(2**31)]) if wild else rng.choice([0, 1, 2]) for _ in range(count)
        ]
        data = b"".join(value.to_bytes(width, "little", signed=True) for value in values)
    elif rng.random() < 0.1:
        data = rng.randbytes(count * width)  # any number, NaN among them
    else:
        data = bytes(count * width)
    start = -len(elements) % 64
    elements += bytes(start)
    table.append([dtype, shape, len(elements), len(data)])
    elements += data
    return [1, len(table) - 1]


def _attribute(rng: random.Random, param: Param) -> object:
    kind = param.kind
    if kind in (Kind.INTS, Kind.OPT_INTS, Kind.DIMS):
        pool = _SIZES if rng.random() < 0.4 else _SMALL
        return [5, [rng.choice(pool) for _ in range(rng.choice([1, 1, 2, 2, 3, 4]))]]
    if kind is Kind.BOOLS:
        return [5, [rng.random() < 0.5 for _ in range(3)]]
    if kind in (Kind.DTYPE, Kind.OPT_DTYPE):
        return [4, rng.choice(["f32", "f64", "i64", "bool", "bf16"])]
    if kind in (Kind.STR, Kind.OPT_STR):
        return rng.choice(["mean", "sum", "none", "relu", "floor", "trunc", "__class__", "x" * 300])
    if kind is Kind.BOOL:
        return rng.random() < 0.5
    if kind in (Kind.FLOAT, Kind.OPT_FLOAT, Kind.SCALAR, Kind.OPT_SCALAR):
        return rng.choice(_FLOATS)
    return rng.choice(_SIZES if rng.random() < 0.3 else _SMALL)


def _results(rng: random.Random, definition: OpDef) -> int:
    known = _COUNTS.get(definition.name)
    return known if known is not None and rng.random() < 0.9 else rng.choice([1, 1, 2, 3, 4])


def _reached(rng: random.Random, corpus: Corpus) -> list[tuple[list[Any], Data]]:
    """A long way round to the private elements."""
    secret = rng.choice([corpus.ids[-1], corpus.ids[-2], corpus.ids[-3], 14, 15])
    new = 910_000 + rng.randrange(30)
    ways: list[list[Any]] = [
        ["apply", "aten.mul", [[0, secret], rng.choice([1, 1.0, True])], {}, [new], True],
        ["apply", "aten.clone", [[0, secret]], {}, [new], True],
        ["apply", "aten.view", [[0, secret]], {"size": [5, [12]]}, [new], True],
        ["apply", "aten.index_select", [[0, secret], [0, rng.choice(corpus.ids)]], {"dim": 0}, [new], True],
        ["copy", [secret], [new]],
        ["transfer", [secret], rng.choice(["peer", "bob", "eve"]), [new], rng.random() < 0.5],
        ["transfer", [new], rng.choice(["peer", "bob"]), [new + 1], rng.random() < 0.5],
        ["put", [[new, [2, "bob", secret], [], "", False, False, [], "", False]]],
        ["run", hashlib.sha256(corpus.plans[1]).hexdigest(), [[0, secret]], [[1]]],
        ["run", corpus.approved, [[0, secret], [0, secret]], [rng.choice([[1], [0, new]])]],
        ["run", corpus.approved, [[0, new], [0, secret]], [[1]]],
        ["grad", secret, new],
        ["backward", new, [0, secret], False],
        ["require-grad", [secret], True],
        ["search", ["#secret"]],
        ["list"],
        ["plans"],
    ]
    bodies = rng.sample(ways, 3)
    fetch: list[Any] = ["get", [rng.choice([new, secret])], rng.random() < 0.2]
    return [(body, _NOTHING) for body in [*bodies, fetch]]


def _pointers(rng: random.Random, _corpus: Corpus) -> list[tuple[list[Any], Data]]:
    """Pointers that point at themselves, at each other, and at nothing."""
    a, b = 920_000 + rng.randrange(5), 920_010 + rng.randrange(5)
    put = [[x, [2, "bob", y], [], "", False, False, [], "", False] for x, y in ((a, b), (b, a))]
    use: list[list[Any]] = [
        ["get", [a, b, a], rng.random() < 0.3],
        ["copy", [a], [b + 20]],
        ["transfer", [a, b], rng.choice(["bob", "peer"]), [b, a], rng.random() < 0.5],
        ["apply", "aten.add", [[0, a], [0, b]], {}, [b + 30], True],
        ["backward", a, [0, b], False],
        ["free", [a, a, b]],
        ["list"],
    ]
    return [(body, _NOTHING) for body in [["put", put], *rng.sample(use, 3)]]


def _amplified(rng: random.Random, corpus: Corpus) -> list[tuple[list[Any], Data]]:
    """Few bytes that ask for many: the same thing again and again, or a view of one element."""
    new, count = 930_000 + rng.randrange(20), rng.choice([10, 1000, 20_000])
    size = rng.choice([1000, 10**6, 10**9, 10**12])
    ways: list[list[list[Any]]] = [
        [["get", [rng.choice(corpus.ids)] * count, False]],
        [["apply", "aten.expand", [[0, 1]], {"size": [5, [size, 3]]}, [new], False], ["get", [new], False]],
        [
            ["apply", "aten.expand", [[0, 1]], {"size": [5, [size, 3]]}, [new], True],
            ["copy", [new], [new + 50]],
        ],
        [
            ["apply", "aten.expand", [[0, 2]], {"size": [5, [size, 3]]}, [new], True],
            ["apply", "aten.sum", [[0, new]], {}, [new + 50], True],
            ["backward", new + 50, None, False],
            ["transfer", [new], "peer", [new], True],
        ],
        [["apply", "aten.cat", [[3, [[0, 1000]] * count]], {}, [new], True]],
        [["apply", "aten.stack", [[3, [[0, 1000]] * count]], {}, [new], True]],
        [["apply", "aten.repeat", [[0, 1000]], {"repeats": [5, [size, 1]]}, [new], True]],
        [["copy", [1000] * min(count, 1000), list(range(new, new + min(count, 1000)))]],
        [["free", [rng.choice(corpus.ids)] * count]],
        [
            [
                "put",
                [[new, [2, "x" * 256, 1], ["#" + "t" * 255] * 64, "d" * 4096, False, False, [], "", False]],
            ]
        ],
    ]
    return [(body, _NOTHING) for body in rng.choice(ways)]


def _plan(rng: random.Random, _corpus: Corpus) -> list[tuple[list[Any], Data]]:
    """A plan in good form that would take terabytes, years, or very many nodes; installed and run."""
    try:
        graph = rng.choice(_PLANS)(rng)
        data = encode(graph)
    except PlancError:  # its own library does not make it: nothing to send
        return [(["plans"], _NOTHING)]
    name = hashlib.sha256(data).hexdigest()
    install: list[Any] = ["install", name, data, {}, [], ""]
    count = rng.choice([1, 2, 50])
    one: Data = ([["f32", [count], 0, 4 * count]], bytes(4 * count))
    runs: list[Any] = ["run", name, [[1, 0]], [[1]]]
    return [(install, _NOTHING), (runs, one), (["uninstall", [name]], _NOTHING)]


class _Builder(GraphBuilder):
    def op(self, name: str, *operands: Any, **attrs: Any) -> Any:
        made = node(name, operands, attrs, self.next_index, subplans=tuple(self.subplans))
        return self.add(made)[0]


def _full(rng: random.Random) -> Graph:
    b, _ = _begin(rng)
    sizes = [rng.choice([1, 10, 10**4, 10**6, 10**9, 2**40]) for _ in range(rng.choice([1, 2, 3]))]
    return _end(b, b.op("aten.full", size=sizes, fill_value=1.0, dtype=_F32))


def _doubling(rng: random.Random) -> Graph:
    b, x = _begin(rng)
    for _ in range(rng.choice([3, 20, 40])):
        x = b.op("aten.cat", (x, x))
    return _end(b, x)


def _outer(rng: random.Random) -> Graph:
    b, x = _begin(rng)
    wide = b.op("aten.expand", x, size=(rng.choice([10, 1000, 10**6]), sym("n")))
    for _ in range(rng.choice([1, 3])):
        wide = b.op("aten.mm", b.op("aten.t", wide), wide)
    return _end(b, b.op("aten.sum", wide))


def _many(rng: random.Random) -> Graph:
    b, x = _begin(rng)
    for _ in range(rng.choice([10, 400, 600, 1100])):
        x = b.op("aten.add", x, 1)
    return _end(b, x)


def _deep(rng: random.Random) -> Graph:
    """Loops in loops: the trips multiply."""
    trips = rng.choice([2, 10, 1000, 2**31, 2**62])
    inner = _Builder("inner")
    state = inner.input("state", TensorType(_F32, ()))
    inner.output(inner.op("aten.add", state, 1), "out")
    graph = inner.build()
    for level in range(rng.choice([1, 3, 5, 8])):
        outer = _Builder(f"level{level}")
        state = outer.input("state", TensorType(_F32, ()))
        index = outer.subplan(graph)
        outer.output(outer.op("scan", (state,), (), (), body=index, trips=trips), "out")
        graph = outer.build()
    b, x = _begin(rng)
    index = b.subplan(graph)
    return _end(b, b.op("call", (b.op("aten.sum", x),), plan=index))


def _drawn(rng: random.Random) -> Graph:
    b, x = _begin(rng)
    key = b.op("aten.to", b.op("aten.sum", x), dtype=_I64)
    size = rng.choice([5, 10**5, 10**9, 10**12])
    return _end(b, b.op("random.randn", key, size=(size,), dtype=_F32))


def _pieces(rng: random.Random) -> Graph:
    b, x = _begin(rng)
    wide = b.op("aten.expand", x, size=(rng.choice([3, 500, 10**6, 2**40]), sym("n")))
    return _end(b, b.op(rng.choice(["aten.unbind", "aten.sum", "aten.clone", "aten.argmax"]), wide))


def _begin(rng: random.Random) -> tuple[_Builder, Any]:
    b = _Builder("attack", [DimVar("n", rng.choice([0, 1]), rng.choice([50, 2**31 - 1]))])
    return b, b.input("x", TensorType(_F32, (sym("n"),)))


def _end(b: _Builder, value: Any) -> Graph:
    b.output(value, "y")
    return b.build()


_PLANS: list[Callable[[random.Random], Graph]] = [_full, _doubling, _outer, _many, _deep, _drawn, _pieces]
_OPS = [op for op in all_ops() if op.name not in ("call", "scan")]
_COUNTS = {
    "aten.max_dim": 2,
    "aten.min_dim": 2,
    "aten.topk": 2,
    "aten.sort": 2,
    "aten.var_mean": 2,
    "aten.unbind": 2,
    "aten.split": 2,
    "aten.convolution_backward": 3,
    "aten.native_layer_norm": 3,
    "aten.native_group_norm": 3,
    "aten.batch_norm": 5,
}


def run_of(rng: random.Random, data: bytes, name: str) -> tuple[list[Any], list[Any], bytes] | None:
    """A run of a plan with tensors that fit it; None where the bytes are no plan, or it takes much."""
    try:
        graph = decode(data, _LIMITS)
    except PlancError:
        return None
    sizes = {var.name: min(max(rng.choice([0, 1, 2, 3, 5, 50]), var.lo), var.hi) for var in graph.dims}
    table: list[Any] = []
    elements = bytearray()
    inputs: list[Any] = []
    for port in graph.inputs:
        type = port.value.type
        try:
            shape = list(type.at(sizes))
            nbytes = evaluate(type.nbytes, sizes)
        except (PlancError, KeyError, ZeroDivisionError):
            return None
        if nbytes > 2**16 or any(size < 0 for size in shape):
            return None
        elements += bytes(-len(elements) % 64)
        table.append([type.dtype.value, shape, len(elements), nbytes])
        elements += bytes(nbytes)
        inputs.append([1, len(inputs)])
    results = [rng.choice([[1], [1], [2], [0, 940_000 + i]]) for i in range(len(graph.results()))]
    updates = [[1] for _ in graph.updates()]
    return ["run", name, inputs, results, updates, rng.random() < 0.3], table, bytes(elements)
