"""lmfs keeps cold text small and still open.

The public interface is what `__all__` names. Importing this package is cheap: each name loads
its module when it is first asked for, and no name here loads an inference engine or FUSE.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmfs.errors import (
        BusyError,
        DamagedError,
        EngineError,
        FormatError,
        LmfsError,
        ModelError,
        MountError,
        StoreError,
        UnknownModelError,
        UsageError,
        VerifyError,
        VersionError,
    )
    from lmfs.lmz import LmzReader, LmzWriter, compress, decompress, open, recover

    __version__: str

__all__ = [
    "BusyError",
    "DamagedError",
    "EngineError",
    "FormatError",
    "LmfsError",
    "LmzReader",
    "LmzWriter",
    "ModelError",
    "MountError",
    "StoreError",
    "UnknownModelError",
    "UsageError",
    "VerifyError",
    "VersionError",
    "__version__",
    "compress",
    "decompress",
    "open",
    "recover",
]

_IN_LMZ = frozenset({"LmzReader", "LmzWriter", "compress", "decompress", "open", "recover"})


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lmfs' has no attribute {name!r}")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("lmfs")
    return getattr(importlib.import_module("lmfs.lmz" if name in _IN_LMZ else "lmfs.errors"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
