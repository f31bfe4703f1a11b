"""The exact model as ONNX graphs: a step graph, its uint8 x int8 lowering, a sequence graph.

Owns: the graph's structure. Every tensor is integer-valued or a multiple of a power of
two; the units stand in the comments. Weights are not in the graphs but in one file of
initializers that every lowering shares: protobuf messages merge when their bytes are
joined, so `graph + weights` is a whole ONNX model (lmfs/models/package.py).

Rules: lmfs/models/certificate.py proves them for the result.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from . import exact_model as em

OPSET = 18
IR_VERSION = 9
HALF = 0.5


def weight_tensors(model: em.ExactModel) -> dict[str, NDArray]:
    """Every initializer, by name: int8 matrices (inputs, outputs), float32 vectors."""
    tensors: dict[str, NDArray] = {}

    def linear(name: str, parts: list[em.Linear], output_bits: list[int]) -> None:
        weights, scales, biases = [], [], []
        for part, bits in zip(parts, output_bits, strict=True):
            weight, bias, exponent = (t.numpy() for t in part.integers())
            scale = np.ldexp(np.float32(1), bits - part.input_bits - exponent)
            weights.append(weight.astype(np.int8))
            scales.append(scale)
            biases.append(bias * scale + np.float32(HALF))
        tensors[f"{name}.weight"] = np.ascontiguousarray(np.concatenate(weights).T)
        tensors[f"{name}.scale"] = np.concatenate(scales).astype(np.float32)
        tensors[f"{name}.bias"] = np.concatenate(biases).astype(np.float32)

    def shift(name: str, part: em.TokenShift) -> None:
        now, past = (t.detach().numpy() for t in part.coefficients(True))
        tensors[f"{name}.now"], tensors[f"{name}.past"] = now, past

    for name, value in zip(("embed", "embed_pair"), model.embeddings(True), strict=True):
        tensors[name] = (value.detach().numpy() * 2.0**em.EMBED_BITS).astype(np.int8)
    for k, layer in enumerate(model.layers):
        shift(f"layer{k}.shift_time", layer.shift_time)
        shift(f"layer{k}.shift_channel", layer.shift_channel)
    for name, parts, bits in _linears(model):
        linear(name, parts, bits)
    return tensors


def model_from_tensors(shape: em.Shape, tensors: dict[str, NDArray]) -> em.ExactModel:
    """The model that `weight_tensors` was given, as near as its integers say: exactly equal when
    quantised, so that training can go on from a package."""
    model = em.ExactModel(shape)

    def real(values: NDArray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values).astype(np.float32))

    def linear(name: str, parts: list[em.Linear], output_bits: list[int]) -> None:
        weight, scale = tensors[f"{name}.weight"].T, tensors[f"{name}.scale"]
        bias = (tensors[f"{name}.bias"] - np.float32(HALF)) / scale
        at = 0
        for part, bits in zip(parts, output_bits, strict=True):
            rows = slice(at, at + len(part.bias))
            unit = np.ldexp(scale[rows], part.input_bits - bits)  # 2^-exponent
            part.weight.copy_(real(weight[rows] * unit[:, None]))
            part.bias.copy_(real(bias[rows] * unit * 2.0**-part.input_bits))
            at = rows.stop

    def shift(name: str, part: em.TokenShift) -> None:
        part.now.copy_(real(tensors[f"{name}.now"]))
        part.past.copy_(real(tensors[f"{name}.past"]))

    with torch.no_grad():
        model.embed.copy_(real(tensors["embed"] * 2.0**-em.EMBED_BITS))
        model.embed_pair.copy_(real(tensors["embed_pair"] * 2.0**-em.EMBED_BITS))
        for k, layer in enumerate(model.layers):
            shift(f"layer{k}.shift_time", layer.shift_time)
            shift(f"layer{k}.shift_channel", layer.shift_channel)
        for name, parts, bits in _linears(model):
            linear(name, parts, bits)
    return model


def _linears(model: em.ExactModel) -> list[tuple[str, list[em.Linear], list[int]]]:
    """Every product of the graphs: its name, the layers it joins, their output grids."""
    joined: list[tuple[str, list[em.Linear], list[int]]] = []
    for k, layer in enumerate(model.layers):
        gates = [layer.gate, layer.candidate, layer.out_gate]
        joined.append((f"layer{k}.in", gates, [em.GATE_BITS, em.STATE_BITS, em.OUT_GATE_BITS]))
        joined.append((f"layer{k}.out", [layer.out], [em.RESIDUAL_BITS]))
        joined.append((f"layer{k}.up", [layer.up], [em.HIDDEN_BITS]))
        joined.append((f"layer{k}.down", [layer.down], [em.RESIDUAL_BITS]))
    joined.append(("head", [model.head], [em.LOGIT_BITS]))
    return joined


def weights_file(tensors: dict[str, NDArray]) -> bytes:
    """The initializers as the bytes of a ModelProto that holds nothing else."""
    model = onnx.ModelProto()
    for name in sorted(tensors):
        model.graph.initializer.append(numpy_helper.from_array(tensors[name], name))
    return model.SerializeToString(deterministic=True)


class Builder:
    """Appends nodes; names them; holds the few scalar constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.count = 0

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        self.count += 1
        names = [f"{op.lower()}_{self.count}" + (f"_{k}" if k else "") for k in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names[0]

    def several(self, op: str, *inputs: str, outputs: int, **attributes: object) -> list[str]:
        self(op, *inputs, outputs=outputs, **attributes)
        return list(self.nodes[-1].output)

    def constant(self, value: object, dtype: type = np.float32) -> str:
        array = np.asarray(value, dtype)
        name = f"const_{array.dtype}_{array.ndim}d_" + "_".join(str(v) for v in array.ravel())
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def rename(self, old: str, new: str) -> str:
        self.nodes.append(helper.make_node("Identity", [old], [new]))
        return new


class GraphWriter:
    """One lowering of one model: `sequence` over (lanes, time), or a step over (lanes,)."""

    def __init__(self, shape: em.Shape, *, sequence: bool, uint8: bool):
        self.shape, self.sequence, self.uint8 = shape, sequence, uint8
        self.b = Builder()
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    # --- pieces -------------------------------------------------------------

    def state(self, name: str, dtype: int, width: int | None) -> str:
        dims: list[str | int] = ["lanes"] if width is None else ["lanes", width]
        self.inputs.append(helper.make_tensor_value_info(name, dtype, dims))
        self.outputs.append(helper.make_tensor_value_info(f"{name}.next", dtype, dims))
        return name

    def floor_clip(self, x: str, low: int, high: int) -> str:
        b = self.b
        return b("Clip", b("Floor", x), b.constant(low), b.constant(high))

    def rounded(self, x: str, low: int, high: int) -> str:
        return self.floor_clip(self.b("Add", x, self.b.constant(HALF)), low, high)

    def linear(self, x: str, name: str, signed: bool) -> str:
        """Integers x (8 bits) -> multiples of 2^-s, one half already added: floor is next."""
        b = self.b
        if self.uint8:
            zero = b.constant(128 if signed else 0, np.uint8)
            if signed:
                x = b("Add", x, b.constant(128.0))
            operand = b("Cast", x, to=TensorProto.UINT8)
            acc = b("MatMulInteger", operand, f"{name}.weight", zero)
            acc = b("Cast", acc, to=TensorProto.FLOAT)
        else:
            acc = b("MatMul", x, b("Cast", f"{name}.weight", to=TensorProto.FLOAT))
        return b("Add", b("Mul", acc, f"{name}.scale"), f"{name}.bias")

    def norm(self, x: str) -> str:
        """x in residual units -> integers in [-127, 127], 16 = the mean of |x|."""
        b, width = self.b, self.shape.width
        total = b("ReduceSum", b("Abs", x), b.constant([-1], np.int64), keepdims=1)
        total = b("Cast", b("Max", total, b.constant(float(width))), to=TensorProto.INT32)
        share = b("Div", b.constant(em.NORM_NUMERATOR, np.int32), total)
        # x * share <= K, in units of the result times K / (width * 2^NORM_BITS)
        unit = width * 2.0**em.NORM_BITS / em.NORM_NUMERATOR
        factor = b("Mul", b("Cast", share, to=TensorProto.FLOAT), b.constant(unit))
        return self.rounded(b("Mul", x, factor), -em.NORM_MAX, em.NORM_MAX)

    def shift(self, n: str, name: str, state: str) -> str:
        """a * n[t] + b * n[t-1]; the state is n of the last token."""
        b = self.b
        before = self.state(state, TensorProto.FLOAT, self.shape.width)
        last = n
        if self.sequence:
            axis = b.constant([1], np.int64)
            head, last = self.all_but_last(n), self.last(n)
            before = b("Concat", b("Unsqueeze", before, axis), head, axis=1)
        b.rename(last, f"{state}.next")
        mixed = b("Add", b("Mul", n, f"{name}.now"), b("Mul", before, f"{name}.past"))
        return self.rounded(mixed, -em.NORM_MAX, em.NORM_MAX)

    def all_but_last(self, x: str) -> str:
        b = self.b
        bounds = [b.constant([v], np.int64) for v in (0, -1, 1)]
        return b("Slice", x, *bounds)

    def last(self, x: str) -> str:
        return self.b("Gather", x, self.b.constant(-1, np.int64), axis=1)

    def recurrence(self, i: str, c: str, state: str) -> str:
        """h + i * (c - h), rounded; i in [0, 1] in steps of 2^-10, c and h integers."""
        b = self.b
        before = self.state(state, TensorProto.FLOAT, self.shape.width)
        if not self.sequence:
            h = b("Floor", b("Add", self._mix(b, before, i, c), b.constant(HALF)))
            return b.rename(h, f"{state}.next")
        body = Builder()
        mixed = self._mix(body, "h", "i", "c")
        h = body("Floor", body("Add", mixed, body.constant(HALF)))
        body.rename(h, "h_next")
        body.rename(h, "h_out")
        dims = ["lanes", self.shape.width]
        value = {
            name: helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
            for name in ("h", "i", "c", "h_next", "h_out")
        }
        graph = helper.make_graph(
            body.nodes,
            "recurrence",
            [value["h"], value["i"], value["c"]],
            [value["h_next"], value["h_out"]],
            list(body.constants.values()),
        )
        final, h = b.several(
            "Scan", before, i, c, outputs=2, body=graph, num_scan_inputs=2,
            scan_input_axes=[1, 1], scan_output_axes=[1],
        )  # fmt: skip
        b.rename(final, f"{state}.next")
        return h

    @staticmethod
    def _mix(b: Builder, h: str, i: str, c: str) -> str:
        return b("Add", h, b("Mul", i, b("Sub", c, h)))

    # --- the model ----------------------------------------------------------

    def embedding(self, tokens: str) -> str:
        """Residual units; the pair of the previous token and this one picks a hashed row."""
        b = self.b
        before = self.state("token", TensorProto.INT64, None)
        last = tokens
        if self.sequence:
            axis = b.constant([1], np.int64)
            first = b("Unsqueeze", before, axis)
            before = b("Concat", first, self.all_but_last(tokens), axis=1)
            last = self.last(tokens)
        b.rename(last, "token.next")
        past, now = em.HASH_MULTIPLIERS
        key = b(
            "Add",
            b("Mul", before, b.constant(past, np.int64)),
            b("Mul", tokens, b.constant(now, np.int64)),
        )
        pair = b("Mod", key, b.constant(self.shape.hash_rows, np.int64))
        one = b("Cast", b("Gather", "embed", tokens), to=TensorProto.FLOAT)
        two = b("Cast", b("Gather", "embed_pair", pair), to=TensorProto.FLOAT)
        unit = 2.0 ** (em.RESIDUAL_BITS - em.EMBED_BITS)
        return b("Mul", b("Add", one, two), b.constant(unit))

    def residual(self, x: str, update: str) -> str:
        b = self.b
        total = b("Add", x, b("Floor", update))
        return b("Clip", total, b.constant(-em.RESIDUAL_MAX), b.constant(em.RESIDUAL_MAX))

    def layer(self, x: str, k: int) -> str:
        b, name = self.b, f"layer{k}"
        s = self.shift(self.norm(x), f"{name}.shift_time", f"{name}.n1")
        z = b("Floor", self.linear(s, f"{name}.in", signed=True))
        sizes = b.constant([self.shape.width] * 3, np.int64)
        gate, candidate, out_gate = b.several("Split", z, sizes, outputs=3, axis=-1)
        u = b("Clip", gate, b.constant(0), b.constant(em.GATE_MAX))
        c = b("Clip", candidate, b.constant(-em.STATE_MAX), b.constant(em.STATE_MAX))
        g = b("Clip", out_gate, b.constant(-em.OUT_GATE_MAX), b.constant(em.OUT_GATE_MAX))
        i = b("Mul", u, b("Mul", u, b.constant(2.0 ** (-2 * em.GATE_BITS))))
        h = self.recurrence(i, c, f"{name}.h")
        down = 2.0 ** (em.MIXED_BITS - em.STATE_BITS - em.OUT_GATE_BITS)
        hg = b("Mul", h, b("Mul", g, b.constant(down)))
        y = self.rounded(hg, -em.MIXED_MAX, em.MIXED_MAX)
        x = self.residual(x, self.linear(y, f"{name}.out", signed=True))
        s = self.shift(self.norm(x), f"{name}.shift_channel", f"{name}.n2")
        z = self.floor_clip(self.linear(s, f"{name}.up", signed=True), 0, em.HIDDEN_MAX)
        down = 2.0 ** (em.SQUARE_BITS - 2 * em.HIDDEN_BITS)
        r = self.rounded(b("Mul", z, b("Mul", z, b.constant(down))), 0, em.SQUARE_MAX)
        return self.residual(x, self.linear(r, f"{name}.down", signed=False))

    def write(self) -> bytes:
        """The graph without its weights, as the bytes of a ModelProto."""
        dims = ["lanes", "time"] if self.sequence else ["lanes"]
        self.inputs.append(helper.make_tensor_value_info("tokens", TensorProto.INT64, dims))
        x = self.embedding("tokens")
        for k in range(self.shape.layers):
            x = self.layer(x, k)
        z = self.linear(self.norm(x), "head", signed=True)
        logits = self.floor_clip(z, -em.LOGIT_MAX, em.LOGIT_MAX)
        self.b.nodes.append(helper.make_node("Cast", [logits], ["logits"], to=TensorProto.INT16))
        out = helper.make_tensor_value_info("logits", TensorProto.INT16, [*dims, self.shape.vocab])
        graph = helper.make_graph(
            self.b.nodes,
            "sequence" if self.sequence else "step",
            self.inputs,
            [out, *self.outputs],
            list(self.b.constants.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        return model.SerializeToString(deterministic=True)


LOWERINGS = {
    "step-float32": {"sequence": False, "uint8": False},
    "step-uint8": {"sequence": False, "uint8": True},
    "sequence-float32": {"sequence": True, "uint8": False},
    "sequence-uint8": {"sequence": True, "uint8": True},
}


def all_graphs(shape: em.Shape) -> dict[str, bytes]:
    return {name: GraphWriter(shape, **flags).write() for name, flags in LOWERINGS.items()}
