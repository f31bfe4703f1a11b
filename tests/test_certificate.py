"""The proof accepts what is exact and names what is not."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lmfs.errors import ModelError
from lmfs.models import certificate
from lmfs.models.package import ModelPackage

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model(nodes, constants, *, state=None, domain="") -> bytes:
    """A graph from `tokens` (lanes,) through an embedding `x` to the output of the last node."""
    table = {"table": np.array([[-4, 4], [3, -1]], np.int8), **constants}
    embed = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["x"], to=FLOAT),
    ]
    inputs = [helper.make_tensor_value_info("tokens", INT64, ["lanes"])]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, ["lanes", 2])]
    if state:
        inputs.append(helper.make_tensor_value_info(state, FLOAT, ["lanes", 2]))
        outputs.append(helper.make_tensor_value_info(f"{state}.next", FLOAT, ["lanes", 2]))
    graph = helper.make_graph(
        embed + nodes,
        "test",
        inputs,
        outputs,
        [numpy_helper.from_array(np.asarray(v), k) for k, v in table.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets).SerializeToString()


def f(value):
    return np.float32(value)


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs.split(), [output], **attributes)


def test_product_within_24_bits_is_proved():
    weight = np.full((2, 2), 63, np.float32)
    proof = certificate.prove(model([node("MatMul", "x w", "y")], {"w": weight}))
    assert proof.widest_bits == pytest.approx(np.log2(63 * (4 + 4)))


@pytest.mark.parametrize(
    ("nodes", "constants", "complaint"),
    [
        ([node("Softmax", "x", "y")], {}, "not exact everywhere"),
        ([node("Sigmoid", "x", "y")], {}, "not exact everywhere"),
        ([node("Div", "x k", "y")], {"k": f(3)}, "division"),
        ([node("Mul", "x k", "y")], {"k": f(0.1)}, "may round"),
        ([node("Mul", "x k", "y")], {"k": f(2.0**23)}, "division|product|.*"),
        ([node("MatMul", "x w", "y")], {"w": np.full((2, 2), 64, np.float32)}, "out of range"),
        ([node("MatMul", "x w", "y")], {"w": np.full((2, 2), 0.5, np.float32)}, "integer matrix"),
        ([node("Add", "x k", "y")], {"k": f(2.0**-24)}, "may round"),
        ([node("Add", "x k", "y")], {"k": f("nan")}, "not a number"),
        ([node("Gather", "t tokens", "y")], {"t": np.zeros((1, 2), np.float32)}, "row out of"),
        ([node("Cast", "x", "y", to=TensorProto.FLOAT16)], {}, "not exact"),
        ([node("Add", "x nowhere", "y")], {}, "without a producer"),
    ],
)
def test_inexact_graphs_are_refused(nodes, constants, complaint):
    if nodes[0].op_type == "Mul" and constants["k"] == f(2.0**23):
        nodes = [*nodes, node("Add", "y h", "z")]  # 2^25 beside a half: 26 bits
        constants = {**constants, "h": f(0.5)}
        complaint = "may round"
    with pytest.raises(ModelError, match=complaint):
        certificate.prove(model(nodes, constants))


def test_long_product_that_overflows_is_refused():
    big = [node("Mul", "x k", "b"), node("MatMul", "b w", "y")]
    constants = {"k": f(2.0**16), "w": np.full((2, 2), 63, np.float32)}
    proof = certificate.prove(model(big, constants))  # a power of two changes no bit
    assert proof.widest_bits < 10
    big.insert(1, node("Add", "b one", "c"))
    big[2] = node("MatMul", "c w", "y")
    with pytest.raises(ModelError, match="partial sums"):
        certificate.prove(model(big, {**constants, "one": f(1)}))


def test_integer_product_needs_small_weights():
    nodes = [
        node("Add", "x z", "p"),
        node("Cast", "p", "q", to=TensorProto.UINT8),
        node("MatMulInteger", "q w zero", "y"),
    ]
    constants = {"z": f(128), "zero": np.uint8(128), "w": np.full((2, 2), -64, np.int8)}
    assert certificate.prove(model(nodes, constants)).tensors
    with pytest.raises(ModelError, match="out of range"):
        certificate.prove(model(nodes, {**constants, "w": np.full((2, 2), 64, np.int8)}))


def test_state_that_grows_is_refused_and_one_that_is_clipped_is_proved():
    grows = [node("Add", "x h", "h.next")]
    with pytest.raises(ModelError, match="grows"):
        certificate.prove(model(grows, {}, state="h"))
    clipped = [node("Add", "x h", "s"), node("Clip", "s lo hi", "h.next")]
    constants = {"lo": f(-8), "hi": f(8)}
    assert certificate.prove(model(clipped, constants, state="h")).widest_bits < 8


def test_convex_combination_is_bounded_by_its_ends():
    """h + i (c - h) with 4,096 steps of i: intervals alone say 3 * 2^23, the lemma 2^23."""
    nodes = [
        node("Mul", "x k", "big"),
        node("Clip", "big lo hi", "c"),
        node("Abs", "x", "a"),
        node("Mul", "a unit", "i"),
        node("Sub", "c h", "d"),
        node("Mul", "i d", "m"),
        node("Add", "h m", "s"),
        node("Floor", "s", "h.next"),
    ]
    constants = {"k": f(4095), "lo": f(-8000), "hi": f(8000), "unit": f(2.0**-10)}
    proof = certificate.prove(model(nodes, constants, state="h"))
    assert proof.lemmas["convex"] == 1
    nodes[4] = node("Sub", "h c", "d")  # h + i (h - c) is not between the two
    with pytest.raises(ModelError):
        certificate.prove(model(nodes, constants, state="h"))


def test_external_tensors_and_custom_operators_are_refused():
    with pytest.raises(ModelError, match="custom"):
        certificate.prove(model([node("Abs", "x", "y")], {}, domain="com.example"))
    whole = model([node("Abs", "x", "y")], {})

    proto = onnx.ModelProto.FromString(whole)
    tensor = proto.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    with pytest.raises(ModelError, match="outside"):
        certificate.prove(proto.SerializeToString())
    with pytest.raises(ModelError, match="not an ONNX model"):
        certificate.prove(b"\xff\xff\xff")


def test_tiny_package_is_proved_for_every_lowering(tiny: ModelPackage):
    for name in tiny.graph_names():
        proof = certificate.prove(tiny.graph(name))
        assert proof.summary() == tiny.card["certificate"][name]
        assert proof.widest_bits <= certificate.EXACT_BITS
    began = time.perf_counter()
    certificate.prove(tiny.graph("step-uint8"))
    assert time.perf_counter() - began < 5  # a loader can afford it
