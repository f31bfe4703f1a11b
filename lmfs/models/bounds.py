"""What is known of a tensor's values: an interval and a grid, for each channel.

Owns: that description and how a constant gets one; lmfs.models.certificate computes with
them. Imports onnx. Objects are immutable.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from ..errors import ModelError

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Bound:
    """low <= value <= high, value a multiple of 2^-grid; `channels` is the last axis' size."""

    low: Array
    high: Array
    grid: Array
    dtype: int
    channels: int | None
    constant: NDArray[Any] | None = None

    @property
    def largest(self) -> Array:
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def hull(self, other: Bound) -> Bound:
        return dataclasses.replace(
            self,
            low=np.minimum(self.low, other.low),
            high=np.maximum(self.high, other.high),
            grid=np.maximum(self.grid, other.grid),
            channels=self.channels if self.channels == other.channels else None,
            constant=None,
        )

    def covers(self, other: Bound) -> bool:
        return bool(
            np.all(self.low <= other.low)
            and np.all(self.high >= other.high)
            and np.all(self.grid >= other.grid)
        )


def between(low: object, high: object, grid: object, dtype: int, channels: int | None) -> Bound:
    return Bound(
        np.asarray(low, np.float64),
        np.asarray(high, np.float64),
        np.asarray(grid, np.float64),
        dtype,
        channels,
    )


def of_constant(tensor: onnx.TensorProto) -> Bound:
    if tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data):
        raise ModelError("tensor outside the model's file", where=tensor.name)
    array = numpy_helper.to_array(tensor)
    if array.dtype == np.float32 and not np.all(np.isfinite(array)):
        raise ModelError("weight that is not a number", where=tensor.name)
    if not array.size:
        raise ModelError("empty tensor", where=tensor.name)
    rows = array.reshape(-1, array.shape[-1] if array.ndim else 1)
    low, high = rows.min(0).astype(np.float64), rows.max(0).astype(np.float64)
    integer = np.issubdtype(array.dtype, np.integer)
    grid = np.zeros(low.shape) if integer else _grid(rows.astype(np.float64)).max(0)
    if array.ndim == 0:
        low, high, grid = low[0], high[0], grid[0]
    channels = array.shape[-1] if array.ndim else None
    return Bound(low, high, grid, tensor.data_type, channels, array)


def _grid(values: Array) -> Array:
    """The least g of each value so that value * 2^g is an integer; -64 for zero."""
    mantissa, exponent = np.frexp(values)
    whole = np.abs(np.ldexp(mantissa, 53)).astype(np.int64)
    trailing = np.log2(np.where(whole == 0, 1, whole & -whole).astype(np.float64))
    grid = 53 - exponent - trailing
    return np.where(whole == 0, -64.0, grid)
