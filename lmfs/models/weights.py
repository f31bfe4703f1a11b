"""The arrays of a package's `weights.onnx`, read and replaced without the onnx package.

Owns: as much of protobuf and of ONNX's ModelProto as a file of initializers needs. Whatever
else stands in such a file is refused: it would be hashed into the model id and not be used.
Functions are pure; arrays are views of the bytes where their alignment allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError

# Field numbers of ModelProto, GraphProto, TensorProto (onnx.proto).
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_TYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 3: np.dtype("i1")}
_VARINT, _BYTES = 0, 2  # wire types
_MAX_DIMENSION = 1 << 31


def read_weights(data: bytes) -> dict[str, NDArray[Any]]:
    """Every initializer by its name, int8 or float32; raises ModelError."""
    tensors: dict[str, NDArray[Any]] = {}
    for name, raw, dtype, shape in _tensors(memoryview(data)):
        array = np.frombuffer(raw, dtype).reshape(shape)
        tensors[name] = array if array.flags.aligned else array.copy()
    return tensors


def replace_weights(data: bytes, new: Mapping[str, NDArray[Any]]) -> bytes:
    """The same file with other numbers in some tensors; all else, to the byte, as it was.

    raises: ModelError where a tensor is not there, or is of another type or shape
    """
    copy = bytearray(data)
    left = dict(new)
    for name, raw, dtype, shape in _tensors(memoryview(copy)):
        array = left.pop(name, None)
        if array is None:
            continue
        if array.dtype != dtype or list(array.shape) != shape:
            raise ModelError(
                "tensor",
                where=name,
                expected=f"{dtype} {shape}",
                got=f"{array.dtype} {array.shape}",
            )
        raw[:] = array.tobytes()
    if left:
        raise ModelError("no such tensor", got=", ".join(sorted(left)))
    return bytes(copy)


def _tensors(
    data: memoryview,
) -> Iterator[tuple[str, memoryview, np.dtype[Any], list[int]]]:
    """Name, raw bytes, type and shape of each."""
    names = set()
    for graph in _messages(data, _MODEL_GRAPH):
        for message in _messages(graph, _GRAPH_INITIALIZER):
            tensor = _tensor(message)
            if tensor[0] in names:
                raise ModelError("two tensors of one name", where=tensor[0])
            names.add(tensor[0])
            yield tensor


def _tensor(message: memoryview) -> tuple[str, memoryview, np.dtype[Any], list[int]]:
    shape: list[int] = []
    kind, name, raw = 0, "", None
    for field, value in _fields(message):
        if field == _TENSOR_DIMS:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif field == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif field == _TENSOR_NAME and isinstance(value, memoryview):
            name = bytes(value).decode("utf-8", "replace")
        elif field == _TENSOR_RAW and isinstance(value, memoryview):
            raw = value
        else:
            raise ModelError("unexpected field of a tensor", where=name or None, got=field)
    if kind not in _TYPES or raw is None:
        raise ModelError("tensor", where=name, expected="raw int8 or float32", got=f"type {kind}")
    dtype = _TYPES[kind]
    size = dtype.itemsize
    for length in shape:
        size *= min(length, _MAX_DIMENSION)
    if size != len(raw):
        raise ModelError("tensor", where=name, expected=f"{size} bytes", got=len(raw))
    return name, raw, dtype, shape


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
