"""Proof that an ONNX graph computes the same integers on every machine.

Owns: the rules. A value is described by an interval and a grid: it lies in [low, high] and
is an integer multiple of 2^-grid (arrays over the last axis, or scalars). `prove` walks
the graph with its real weights and shows for every tensor

- float32: |value| * 2^grid <= 2^24, every partial sum of a product or reduction included,
  so that float32 arithmetic is exact in any order;
- integers: the interval fits the type; products of uint8 x int8 have weights in [-64, 63],
  so that the saturating instruction of processors without VNNI cannot saturate;
- every operator is one of those below: none whose last bit a library may choose.

Plain intervals are too weak where terms are correlated; two lemmas are recognised by shape:

- convex: h + i * (c - h) with 0 <= i <= 1 lies between h and c;
- share: x * (K div max(sum|x|, w)) is at most K, since |x| <= sum|x|.

State inputs NAME with an output NAME.next start at zero; the walk is repeated with the
hull of what they become until nothing grows (induction over time).

Imports onnx; only engines and tools import this module. Functions are pure.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from ..errors import ModelError
from .bounds import Array, Bound, between, of_constant

EXACT_BITS = 24
MAX_ROUNDS = 12
MAX_WORK = 1 << 32  # numbers looked at in all rounds
MAX_KEPT = 1 << 24  # numbers that the bounds of one round have
WEIGHT_RANGE = (-64, 63)

_INTEGER_RANGE = {
    TensorProto.INT8: (-(2**7), 2**7 - 1),
    TensorProto.UINT8: (0, 2**8 - 1),
    TensorProto.INT16: (-(2**15), 2**15 - 1),
    TensorProto.INT32: (-(2**31), 2**31 - 1),
    TensorProto.INT64: (-(2**53), 2**53 - 1),  # what the walk's float64 bounds can tell apart
}


@dataclasses.dataclass(frozen=True)
class Proof:
    """What was shown: the widest float tensor, how many tensors, and the lemmas used."""

    tensors: int
    operators: tuple[str, ...]
    widest_bits: float
    widest_tensor: str
    lemmas: dict[str, int]

    def summary(self) -> dict[str, object]:
        return {
            "tensors": self.tensors,
            "operators": list(self.operators),
            "widest_bits": round(self.widest_bits, 3),
            "widest_tensor": self.widest_tensor,
            "lemmas": self.lemmas,
        }


def prove(model_bytes: bytes) -> Proof:
    """Prove the graph exact; raises ModelError naming the tensor where that fails."""
    try:
        return _prove(model_bytes)
    except DecodeError as error:
        raise ModelError("not an ONNX model", got=error) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError("a graph that makes no sense", got=error) from error


def _prove(model_bytes: bytes) -> Proof:
    model = onnx.ModelProto.FromString(model_bytes)
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            raise ModelError("custom operators in a model", expected="none", got=opset.domain)
    if len(model.functions):
        raise ModelError("functions in a model", expected="none", got=len(model.functions))
    return _Walk(model.graph).run()


class _Budget:
    """What a proof may cost."""

    def __init__(self) -> None:
        self._left = MAX_WORK

    def spend(self, numbers: int) -> None:
        self._left -= numbers
        if self._left < 0:
            raise ModelError("a graph too large to be proved", expected=f"{MAX_WORK:,} steps")


class _Walk:
    """One abstract run of one graph; `values` maps tensor names to bounds."""

    def __init__(self, graph: onnx.GraphProto, outer: _Walk | None = None) -> None:
        self.graph = graph
        self.budget: _Budget = outer.budget if outer else _Budget()
        self.is_inner = outer is not None
        self.values: dict[str, Bound] = dict(outer.values) if outer else {}
        self.lemmas: dict[str, int] = {"convex": 0, "share": 0}
        self.widest = (-np.inf, "")
        self.checked = 0
        self.producer = {name: node for node in graph.node for name in node.output}
        for tensor in graph.initializer:
            self.values[tensor.name] = of_constant(tensor)

    def run(self) -> Proof:
        stateful = {o.name.removesuffix(".next") for o in self.graph.output}
        sizes = self._vocabulary_size()
        inputs: dict[str, Bound] = {}
        for value in self.graph.input:
            kind = value.type.tensor_type
            dims = kind.shape.dim
            channels = dims[-1].dim_value if len(dims) > 1 else None
            high = 0.0 if value.name in stateful else float(sizes - 1)
            inputs[value.name] = between(0.0, high, 0, kind.elem_type, channels or None)
        for _ in range(MAX_ROUNDS):
            self.step(inputs)
            grown = False
            for name in inputs:
                after = self.values.get(f"{name}.next")
                if after is not None and not inputs[name].covers(after):
                    inputs[name] = inputs[name].hull(after)
                    grown = True
            if not grown:
                return self._proof()
        raise ModelError("a state that grows without bound", got=f"{MAX_ROUNDS} rounds")

    def _vocabulary_size(self) -> int:
        for node in self.graph.node:
            if node.op_type == "Gather" and "tokens" in node.input:
                table = self.values.get(node.input[0])
                if table is not None and table.constant is not None:
                    return int(table.constant.shape[0])
        raise ModelError("a model without an embedding of its tokens")

    def _proof(self) -> Proof:
        operators = {node.op_type for node in self.graph.node}
        for node in self.graph.node:
            for attribute in node.attribute:
                operators |= {inner.op_type for inner in attribute.g.node}
        return Proof(
            self.checked,
            tuple(sorted(operators)),
            float(self.widest[0]),
            self.widest[1],
            self.lemmas,
        )

    def step(self, inputs: dict[str, Bound]) -> None:
        self.values.update(inputs)
        self.lemmas = dict.fromkeys(self.lemmas, 0)
        self.checked = 0
        kept = 0
        for node in self.graph.node:
            rule = _RULES.get(node.op_type)
            if rule is None or node.domain not in ("", "ai.onnx"):
                raise ModelError(
                    "operator that is not exact everywhere", where=node.name or node.output[0],
                    expected="one of " + ", ".join(sorted(_RULES)), got=node.op_type,
                )  # fmt: skip
            try:
                arguments = [self.values[name] for name in node.input]
            except KeyError as error:
                raise ModelError("tensor without a producer", where=str(error)) from error
            for name, bound in zip(node.output, rule(self, node, arguments), strict=True):
                self.check(name, bound)
                self.values[name] = bound
                kept += 1 + bound.low.size
            if kept > MAX_KEPT:
                raise ModelError("a graph too large to be proved", where=node.name)
        self.budget.spend(kept)

    def check(self, name: str, bound: Bound) -> None:
        """Raise ModelError unless every value of the bound is exact in its type."""
        self.checked += 1
        if bound.dtype == TensorProto.FLOAT:
            with np.errstate(divide="ignore"):
                bits = float(np.max(np.log2(bound.largest) + bound.grid))
            if bits > self.widest[0]:
                self.widest = (bits, name)
            if not bits <= EXACT_BITS:
                raise ModelError(
                    "float32 tensor that may round", where=name,
                    expected=f"at most {EXACT_BITS} bits", got=f"{bits:.2f}",
                )  # fmt: skip
            return
        if bound.dtype not in _INTEGER_RANGE:
            raise ModelError("tensor of a type that is not exact", where=name, got=bound.dtype)
        low, high = _INTEGER_RANGE[bound.dtype]
        if np.any(bound.grid > 0) or np.any(bound.low < low) or np.any(bound.high > high):
            raise ModelError(
                "integer tensor out of its type's range", where=name, expected=f"[{low}, {high}]",
                got=f"[{np.min(bound.low):.0f}, {np.max(bound.high):.0f}]",
            )  # fmt: skip

    def node_of(self, name: str, op_type: str) -> onnx.NodeProto | None:
        node = self.producer.get(name)
        return node if node is not None and node.op_type == op_type else None


_Rule = Callable[[_Walk, onnx.NodeProto, Sequence[Bound]], Sequence[Bound]]


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def _channels(*bounds: Bound) -> int | None:
    known = {b.channels for b in bounds if b.channels not in (None, 1)}
    return known.pop() if len(known) == 1 else None


def _result(low: Array, high: Array, grid: Array, like: Bound, *others: Bound) -> list[Bound]:
    return [Bound(low, high, grid, like.dtype, _channels(like, *others))]


def _add(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    x, y = args
    grid = np.maximum(x.grid, y.grid)
    convex = _convex(walk, node)
    if convex is not None:
        walk.lemmas["convex"] += 1
        h, c = convex
        return _result(np.minimum(h.low, c.low), np.maximum(h.high, c.high), grid, x, y)
    return _result(x.low + y.low, x.high + y.high, grid, x, y)


def _convex(walk: _Walk, node: onnx.NodeProto) -> tuple[Bound, Bound] | None:
    """(h, c) where the node is  h + i * (c - h)  with i in [0, 1]."""
    h_name, scaled = node.input
    product = walk.node_of(scaled, "Mul")
    if product is None:
        return None
    i, difference = walk.values[product.input[0]], walk.node_of(product.input[1], "Sub")
    if difference is None or difference.input[1] != h_name:
        return None
    if np.any(i.low < 0) or np.any(i.high > 1):
        return None
    return walk.values[h_name], walk.values[difference.input[0]]


def _sub(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    x, y = args
    return _result(x.low - y.high, x.high - y.low, np.maximum(x.grid, y.grid), x, y)


def _mul(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    x, y = args
    products = [x.low * y.low, x.low * y.high, x.high * y.low, x.high * y.high]
    low = functools.reduce(np.minimum, products)
    high = functools.reduce(np.maximum, products)
    limit = _share(walk, node)
    if limit is not None:
        walk.lemmas["share"] += 1
        low, high = np.maximum(low, -limit), np.minimum(high, limit)
    return _result(low, high, x.grid + y.grid, x, y)


def _share(walk: _Walk, node: onnx.NodeProto) -> float | None:
    """K * unit where the node is  x * (unit * float(K div int(max(sum|x|, w))))."""
    factor = walk.node_of(node.input[1], "Mul")
    cast = factor and walk.node_of(factor.input[0], "Cast")
    share = cast and walk.node_of(cast.input[0], "Div")
    whole = share and walk.node_of(share.input[1], "Cast")
    most = whole and walk.node_of(whole.input[0], "Max")
    total = most and walk.node_of(most.input[0], "ReduceSum")
    absolute = total and walk.node_of(total.input[0], "Abs")
    if not (factor and share and absolute) or absolute.input[0] != node.input[0]:
        return None
    unit, numerator = walk.values[factor.input[1]].constant, walk.values[share.input[0]].constant
    if unit is None or numerator is None or unit.size != 1 or numerator.size != 1:
        return None
    return abs(float(unit.item())) * abs(float(numerator.item()))


def _div(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    x, y = args
    if x.dtype != TensorProto.INT32 or np.any(x.low < 0) or np.any(y.low < 1):
        raise ModelError(
            "division", where=node.output[0], expected="int32, not negative, by at least 1"
        )
    return _result(np.trunc(x.low / y.high), np.trunc(x.high / y.low), np.zeros(()), x, y)


def _mod(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    x, y = args
    if x.dtype != TensorProto.INT64 or np.any(x.low < 0) or np.any(y.low < 1):
        raise ModelError(
            "remainder", where=node.output[0], expected="int64, not negative, by at least 1"
        )
    return _result(np.zeros(()), y.high - 1, np.zeros(()), x, y)


def _abs(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    (x,) = args
    low = np.where((x.low <= 0) & (x.high >= 0), 0.0, np.minimum(abs(x.low), abs(x.high)))
    return _result(low, x.largest, x.grid, x)


def _floor(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    (x,) = args
    return _result(np.floor(x.low), np.floor(x.high), np.minimum(x.grid, 0), x)


def _max(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    x, y = args
    grid = np.maximum(x.grid, y.grid)
    return _result(np.maximum(x.low, y.low), np.maximum(x.high, y.high), grid, x, y)


def _clip(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    x, low, high = args
    grid = np.maximum(x.grid, np.maximum(low.grid, high.grid))
    return _result(np.clip(x.low, low.low, high.high), np.clip(x.high, low.low, high.high), grid, x)


def _cast(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    (x,) = args
    to = _attribute(node, "to", 0)
    constant = None
    if x.constant is not None:
        constant = x.constant.astype(onnx.helper.tensor_dtype_to_np_dtype(to))
    return [dataclasses.replace(x, dtype=to, constant=constant)]


def _matmul(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    x, weight = args[:2]
    low, high, dtype = x.low, x.high, x.dtype
    if node.op_type == "MatMulInteger":
        if x.dtype != TensorProto.UINT8 or weight.dtype != TensorProto.INT8 or len(args) != 3:
            raise ModelError("integer product", where=node.output[0], expected="uint8 x int8")
        zero = args[2].constant
        if zero is None or zero.size != 1:
            raise ModelError("integer product", where=node.output[0], expected="one zero point")
        low, high, dtype = low - zero.item(), high - zero.item(), TensorProto.INT32
    if weight.constant is None or weight.constant.ndim != 2 or np.any(weight.grid > 0):
        raise ModelError("product", where=node.output[0], expected="an integer matrix of weights")
    walk.budget.spend(weight.constant.size)
    w = weight.constant.astype(np.float64)
    if w.min() < WEIGHT_RANGE[0] or w.max() > WEIGHT_RANGE[1]:
        raise ModelError("weights out of range", where=node.input[1], expected=WEIGHT_RANGE)
    low, high = (np.broadcast_to(v, w.shape[0]) for v in (low, high))
    grid = np.max(x.grid)
    # every partial sum, in any order, is within the sum of the absolute values
    reach = np.abs(w).T @ np.maximum(np.abs(low), np.abs(high))
    walk.check(f"{node.output[0]} (partial sums)", between(-reach, reach, grid, dtype, w.shape[1]))
    positive, negative = np.maximum(w, 0).T, np.minimum(w, 0).T
    total_low, total_high = (
        positive @ low + negative @ high,
        positive @ high + negative @ low,
    )
    return [between(total_low, total_high, grid, dtype, w.shape[1])]


def _reduce_sum(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    x, axes = args
    if axes.constant is None or axes.constant.tolist() != [-1] or x.channels is None:
        raise ModelError("sum", where=node.output[0], expected="the last axis, of known size")
    low, high = (float(np.sum(np.broadcast_to(v, x.channels))) for v in (x.low, x.high))
    reach = float(np.sum(np.broadcast_to(x.largest, x.channels)))
    grid = np.max(x.grid)
    walk.check(f"{node.output[0]} (partial sums)", between(-reach, reach, grid, x.dtype, None))
    return [between(low, high, grid, x.dtype, None)]


def _gather(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    data, index = args
    if _attribute(node, "axis", 0) != 0:  # one time step of a sequence
        return [dataclasses.replace(data, constant=None)]
    if data.constant is None or np.any(index.low < 0) or np.any(index.high >= len(data.constant)):
        raise ModelError(
            "row out of a table", where=node.output[0],
            expected="a constant table that has every row asked for",
        )  # fmt: skip
    return [dataclasses.replace(data, constant=None)]


def _same(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    """Shape operations: the values of the first argument, or fewer of them."""
    return [dataclasses.replace(args[0], constant=None)]


def _concat(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    if _attribute(node, "axis", 0) != 1:
        raise ModelError("concatenation", where=node.output[0], expected="along time")
    result = args[0]
    for other in args[1:]:
        result = result.hull(other)
    return [result]


def _split(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    x, sizes = args
    if sizes.constant is None or x.channels is None or _attribute(node, "axis", 0) != -1:
        raise ModelError("split", where=node.output[0], expected="the last axis, constant sizes")
    edges = np.cumsum(sizes.constant)[:-1]
    parts = [np.split(np.broadcast_to(v, x.channels), edges) for v in (x.low, x.high, x.grid)]
    return [
        Bound(low, high, grid, x.dtype, int(size))
        for low, high, grid, size in zip(*parts, sizes.constant, strict=True)
    ]


def _scan(walk: _Walk, node: onnx.NodeProto, args: Sequence[Bound]) -> list[Bound]:
    body = _attribute(node, "body", None)
    if walk.is_inner:
        raise ModelError("a recurrence in a recurrence", where=node.output[0])
    streams = _attribute(node, "num_scan_inputs", 0)
    names = [value.name for value in body.input]
    carried = len(names) - streams
    state = list(args[:carried])
    inner = _Walk(body, walk)
    for _ in range(MAX_ROUNDS):
        inner.step(dict(zip(names, [*state, *args[carried:]], strict=True)))
        after = [inner.values[value.name] for value in body.output]
        if all(a.covers(b) for a, b in zip(state, after[:carried], strict=True)):
            for lemma, count in inner.lemmas.items():
                walk.lemmas[lemma] += count
            walk.widest = max(walk.widest, inner.widest)
            walk.checked += inner.checked
            return after
        state = [a.hull(b) for a, b in zip(state, after[:carried], strict=True)]
    raise ModelError("a recurrence that grows without bound", where=node.output[0])


_RULES: dict[str, _Rule] = {
    "Abs": _abs,
    "Add": _add,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Div": _div,
    "Floor": _floor,
    "Gather": _gather,
    "Identity": _same,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "Max": _max,
    "Mod": _mod,
    "Mul": _mul,
    "ReduceSum": _reduce_sum,
    "Scan": _scan,
    "Slice": _same,
    "Split": _split,
    "Sub": _sub,
    "Unsqueeze": _same,
}
