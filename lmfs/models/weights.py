"""The arrays of a package's `weights.onnx`, read and replaced without the onnx package.

Owns: as much of protobuf and of ONNX's ModelProto as a file of initializers needs. Whatever
else stands in such a file is refused: it would be hashed into the model id and not be used.
Functions are pure. Arrays are memoryviews, for numpy takes longer to load than they do: those of
bytes look at what they were read from, those of floats are aligned copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ..errors import ModelError

# Field numbers of ModelProto, GraphProto, TensorProto (onnx.proto).
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_TENSOR_FLOAT, _TENSOR_INT8 = 1, 3  # tensor types
_FLOAT: Literal["f"] = "f"  # as memoryviews name them
_INT8: Literal["b"] = "b"
_NAMES = {"f": "float32", "b": "int8"}
_VARINT, _BYTES = 0, 2  # wire types
_MAX_DIMENSION = 1 << 31
_MAX_DIMENSIONS = 8
_MAX_TENSORS = 1 << 16


def read_weights(data: bytes) -> dict[str, memoryview[Any]]:
    """Every initializer by its name, int8 or float32; raises ModelError."""
    tensors: dict[str, memoryview[Any]] = {}
    for name, raw, kind, shape in _tensors(memoryview(data)):
        # Cast to floats is only what is aligned.
        tensors[name] = (raw if kind == _INT8 else memoryview(bytes(raw))).cast(kind, shape)
    return tensors


def replace_weights(data: bytes, new: Mapping[str, Any]) -> bytes:
    """The same file with other numbers in some tensors; all else, to the byte, as it was.

    new: contiguous buffers (NumPy arrays) of the tensors' own types and shapes
    raises: ModelError where a tensor is not there, or is of another type or shape
    """
    copy = bytearray(data)
    left = dict(new)
    for name, raw, kind, shape in _tensors(memoryview(copy)):
        if name not in left:
            continue
        numbers = memoryview(left.pop(name))
        if numbers.format != kind or numbers.shape != tuple(shape):
            raise ModelError(
                "tensor",
                where=name,
                expected=f"{_NAMES[kind]} {tuple(shape)}",
                got=f"{_NAMES.get(numbers.format, numbers.format)} {numbers.shape}",
            )
        raw[:] = numbers.tobytes()
    if left:
        raise ModelError("no such tensor", got=", ".join(sorted(left)))
    return bytes(copy)


def _tensors(data: memoryview) -> Iterator[tuple[str, memoryview, Literal["b", "f"], list[int]]]:
    """Name, raw bytes, type (as memoryviews name it) and shape of each."""
    names: set[str] = set()
    for graph in _messages(data, _MODEL_GRAPH):
        for message in _messages(graph, _GRAPH_INITIALIZER):
            tensor = _tensor(message)
            if tensor[0] in names:
                raise ModelError("two tensors of one name", where=tensor[0])
            if len(names) == _MAX_TENSORS:
                raise ModelError("too many tensors", expected=f"at most {_MAX_TENSORS:,}")
            names.add(tensor[0])
            yield tensor


def _tensor(message: memoryview) -> tuple[str, memoryview, Literal["b", "f"], list[int]]:
    shape: list[int] = []
    kind, name, raw = 0, "", None
    for field, value in _fields(message):
        if field == _TENSOR_DIMS:
            shape += [value] if isinstance(value, int) else _packed(value[: 10 * _MAX_DIMENSIONS])
            del shape[_MAX_DIMENSIONS + 1 :]  # it is refused
        elif field == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif field == _TENSOR_NAME and isinstance(value, memoryview):
            name = bytes(value).decode("utf-8", "replace")
        elif field == _TENSOR_RAW and isinstance(value, memoryview):
            raw = value
        else:
            raise ModelError("unexpected field of a tensor", where=name or None, got=field)
    if kind not in (_TENSOR_FLOAT, _TENSOR_INT8) or raw is None:
        raise ModelError("tensor", where=name, expected="raw int8 or float32", got=f"type {kind}")
    if len(shape) > _MAX_DIMENSIONS or not all(0 < n < _MAX_DIMENSION for n in shape):
        raise ModelError("tensor", where=name, expected="a shape", got=shape[:_MAX_DIMENSIONS])
    size = (4 if kind == _TENSOR_FLOAT else 1) * math.prod(shape)
    if size != len(raw):
        raise ModelError("tensor", where=name, expected=f"{size} bytes", got=len(raw))
    return name, raw, _INT8 if kind == _TENSOR_INT8 else _FLOAT, shape


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The submessages in field `wanted`; there must be no other."""
    for field, value in _fields(message):
        if field != wanted or isinstance(value, int):
            raise ModelError("unexpected field in a file of weights", got=field)
        yield value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value, at = _varint(message, at)
        if key & 7 == _VARINT:
            yield key >> 3, value
        elif key & 7 == _BYTES and value <= len(message) - at:
            yield key >> 3, message[at : at + value]
            at += value
        else:
            raise ModelError("damaged weights", got=f"field {key >> 3} at byte {at}")


def _packed(values: memoryview) -> list[int]:
    numbers, at = [], 0
    while at < len(values):
        number, at = _varint(values, at)
        numbers.append(number)
    return numbers


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ModelError("damaged weights", expected="a number", got="the end of the data")
