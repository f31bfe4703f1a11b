"""A walk through tokens: what an engine must give, in two ways, to be compared.

Owns: that loop. Apart from the engines because it loads numpy, which coding does without.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..types import Engine


def walk(engine: Engine, tokens: NDArray[np.int64], *, stepwise: bool) -> NDArray[np.int16]:
    """Logits (lanes, time, vocab) from the start, step by step or in two long windows."""
    state = engine.start(len(tokens), sequence=not stepwise)
    if not stepwise:
        first, second = np.array_split(tokens, 2, axis=1)
        logits, state = engine.sequence(state, first)
        return np.concatenate([logits, engine.sequence(state, second)[0]], 1)
    steps = []
    for column in tokens.T:
        logits, state = engine.step(state, np.ascontiguousarray(column))
        steps.append(logits.copy())
    return np.stack(steps, 1)
