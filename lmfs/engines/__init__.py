"""What runs a model: one module an engine, all with the same bits (lmfs.types.Engine).

Owns: which engine this process uses, one a model; loading it costs nothing until one is made.

    LMFS_ENGINE=native  compiled code on the processor: the default where it knows the model's
                        architecture; elsewhere ort is
    LMFS_ENGINE=ort      ONNX Runtime on the processor
    LMFS_ENGINE=cuda     ONNX Runtime on a GPU
    LMFS_THREADS=N       threads (lmfs.codecs.threads)
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ..codecs.threads import thread_count
from ..errors import EngineError
from ..models.package import ModelPackage

ENGINE_VARIABLE = "LMFS_ENGINE"
ENGINES = ("native", "ort", "cuda")

_MOST_ENGINES = 4  # that are kept; files of one store need one or two

_engines: OrderedDict[bytes, Any] = OrderedDict()
_lock = threading.Lock()


def engine_for(package: ModelPackage) -> Any:
    """The engine of this process for a model, made at first use; raises EngineError, ModelError."""
    with _lock:
        if package.id not in _engines:
            _engines[package.id] = _make(package)
        _engines.move_to_end(package.id)
        while len(_engines) > _MOST_ENGINES:
            _engines.popitem(last=False)  # who uses one keeps it
        return _engines[package.id]


def make_ahead(find: Callable[[], ModelPackage]) -> None:
    """Begin to make a model's engine in a thread of its own, for who soon asks `engine_for`.

    find: gives the model. Whatever fails, fails again for who asks, and is theirs to tell.
    """

    def make() -> None:
        with contextlib.suppress(Exception):
            engine_for(find())

    # Waited for at the end: a daemon would be torn out of native code.
    threading.Thread(target=make, name="lmfs-engine").start()


def _make(package: ModelPackage) -> Any:
    from . import native

    known = package.card["architecture"]["kind"] in native.ARCHITECTURES
    name = os.environ.get(ENGINE_VARIABLE) or ("native" if known else "ort")
    if name not in ENGINES:
        raise EngineError(
            "unknown engine", where=ENGINE_VARIABLE, expected=" or ".join(ENGINES), got=name
        )
    threads = thread_count()
    if name == "native":
        return native.NativeEngine(package, threads=threads)
    from . import ort  # loads onnxruntime: only where it must run

    providers = ort.cuda_providers() if name == "cuda" else [ort.CPU]
    return ort.OrtEngine(package, providers=providers, threads=threads)
