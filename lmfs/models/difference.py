"""A model's weights as a difference to another model's.

Owns: what a package's `weights.diff` means. It is a file of initializers as `weights.onnx` is, and
says of some of the base's tensors what they become; FORMAT.md, "Differences", is its
specification. Integer arithmetic, the same everywhere. Functions are pure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from .weights import read_weights, replace_weights

ADD, LEFT, RIGHT = ".add", ".left", ".right"
SHIFT = 8  # left @ right is in units of 2^-SHIFT of the matrix' own
LOW, HIGH = -64, 63  # what the weights of exact models may be
MAX_RANK = 256


def apply_difference(base: bytes, difference: bytes) -> bytes:
    """The weights file that `difference` makes of `base`; raises ModelError."""
    old, said = read_arrays(base), read_arrays(difference)
    new: dict[str, NDArray[Any]] = {}
    for name in sorted(said):
        tensor, _, what = name.rpartition(".")
        if tensor not in old or f".{what}" not in (ADD, LEFT, RIGHT):
            raise ModelError("a difference to nothing", where=name)
        if said[name].dtype != np.int8:
            raise ModelError("a difference", where=name, expected="int8", got=said[name].dtype)
        if f".{what}" == ADD:
            new[tensor] = _added(tensor, old[tensor], said[name])
        else:
            left, right = (said.get(tensor + part) for part in (LEFT, RIGHT))
            if left is None or right is None:
                raise ModelError("one factor without the other", where=name)
            new[tensor] = _turned(tensor, old[tensor], left, right)
    return replace_weights(base, new)


def read_arrays(weights: bytes) -> dict[str, NDArray[Any]]:
    """`read_weights`, as arrays."""
    return {name: np.asarray(view) for name, view in read_weights(weights).items()}


def _added(name: str, old: NDArray[Any], add: NDArray[Any]) -> NDArray[Any]:
    if old.dtype != np.float32 or add.shape != old.shape:
        raise ModelError("a sum", where=name, expected=f"{old.shape}", got=f"{add.shape}")
    return old + add.astype(np.float32)


def _turned(name: str, old: NDArray[Any], left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    shapes = (left.shape, right.shape)
    rank = left.shape[-1] if left.ndim == 2 else 0
    if old.dtype != np.int8 or not 1 <= rank <= MAX_RANK:
        raise ModelError("factors", where=name, expected="int8, a rank", got=f"rank {rank}")
    if shapes != ((*old.shape[:1], rank), (rank, *old.shape[1:])):
        raise ModelError("factors", where=name, expected=f"of {old.shape}", got=f"{shapes}")
    # Sums stay below MAX_RANK * 2^14 = 2^22: float32 has them exactly, and quickly.
    product = (left.astype(np.float32) @ right.astype(np.float32)).astype(np.int32)
    change = (product + (1 << (SHIFT - 1))) >> SHIFT
    new: NDArray[np.int8] = np.clip(old + change, LOW, HIGH).astype(np.int8)
    return new
