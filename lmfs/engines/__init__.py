"""What runs a model: one module an engine, all with the same bits (lmfs.types.Engine).

Owns: which engine this process uses, one a model; loading it costs nothing until one is made.

    LMFS_ENGINE=native  compiled code on the processor: the default where it knows the model's
                        architecture; elsewhere ort is
    LMFS_ENGINE=ort      ONNX Runtime on the processor
    LMFS_ENGINE=cuda     ONNX Runtime on a GPU
    LMFS_THREADS=N       threads of an engine; as many as this process has processors if unset
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from ..models.package import ModelPackage
from ..types import Engine

ENGINE_VARIABLE, THREADS_VARIABLE = "LMFS_ENGINE", "LMFS_THREADS"
ENGINES = ("native", "ort", "cuda")
MAX_THREADS = 256

_engines: dict[bytes, Any] = {}
_lock = threading.Lock()


def engine_for(package: ModelPackage) -> Any:
    """The engine of this process for a model, made at first use; raises EngineError, ModelError."""
    with _lock:
        if package.id not in _engines:
            _engines[package.id] = _make(package)
        return _engines[package.id]


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


def _make(package: ModelPackage) -> Any:
    from . import native

    known = package.card["architecture"]["kind"] in native.ARCHITECTURES
    name = os.environ.get(ENGINE_VARIABLE) or ("native" if known else "ort")
    if name not in ENGINES:
        raise EngineError(
            "unknown engine", where=ENGINE_VARIABLE, expected=" or ".join(ENGINES), got=name
        )
    threads = _threads()
    if name == "native":
        return native.NativeEngine(package, threads=threads)
    from . import ort  # loads onnxruntime: only where it must run

    providers = ort.cuda_providers() if name == "cuda" else [ort.CPU]
    return ort.OrtEngine(package, providers=providers, threads=threads)


def _threads() -> int:
    text = os.environ.get(THREADS_VARIABLE) or str(len(os.sched_getaffinity(0)))
    if not text.isdecimal() or not 1 <= int(text) <= MAX_THREADS:
        raise EngineError(
            "number of threads", where=THREADS_VARIABLE, expected=f"1 to {MAX_THREADS}", got=text
        )
    return int(text)
