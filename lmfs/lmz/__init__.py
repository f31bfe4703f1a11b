"""Containers as Python file objects and as bytes.

Owns: reading, writing, streaming and recovering .lmz. Imports the layers below, never a store or
FUSE; each name loads its module when it is first asked for, for `lmz` starts often, and an
inference engine loads only when a chunk needs the model.
"""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from lmfs.container import DEFAULT_CHUNK_SIZE
from lmfs.errors import UsageError

if TYPE_CHECKING:
    from lmfs.codecs.choose import Chooser
    from lmfs.lmz.cache import ChunkCache
    from lmfs.lmz.members import Member
    from lmfs.lmz.reader import CodecStatistics, LmzReader
    from lmfs.lmz.recovery import Hole, Recovered, recover
    from lmfs.lmz.stream import stream_decode
    from lmfs.lmz.writer import LmzWriter

__all__ = [
    "ChunkCache",
    "CodecStatistics",
    "Hole",
    "LmzReader",
    "LmzWriter",
    "Member",
    "Recovered",
    "compress",
    "decompress",
    "open",
    "recover",
    "stream_decode",
]

_MODULES = {
    "ChunkCache": "cache",
    "CodecStatistics": "reader",
    "Hole": "recovery",
    "LmzReader": "reader",
    "LmzWriter": "writer",
    "Member": "members",
    "Recovered": "recovery",
    "recover": "recovery",
    "stream_decode": "stream",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lmfs.lmz' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lmfs.lmz.{_MODULES[name]}"), name)


@overload
def open(
    file: str | os.PathLike[str], mode: Literal["rb"] = "rb", *, model_search: Sequence[Path] = ()
) -> LmzReader: ...


@overload
def open(
    file: str | os.PathLike[str],
    mode: Literal["wb"],
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    chooser: Chooser | None = None,
) -> LmzWriter: ...


def open(
    file: str | os.PathLike[str],
    mode: str = "rb",
    *,
    model_search: Sequence[Path] = (),
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    chooser: Chooser | None = None,
) -> LmzReader | LmzWriter:
    """A binary file object on an .lmz: seekable to read ("rb"), or to write ("wb").

    raises: FormatError, VersionError, DamagedError, OSError; UsageError for another mode
    """
    if mode == "rb":
        from lmfs.lmz.reader import LmzReader

        return LmzReader(file, model_search=model_search)
    if mode == "wb":
        from lmfs.lmz.writer import LmzWriter

        return LmzWriter(file, chunk_size=chunk_size, chooser=chooser)
    raise UsageError("mode", expected="'rb' or 'wb'", got=repr(mode))


def compress(
    data: bytes, *, chunk_size: int = DEFAULT_CHUNK_SIZE, chooser: Chooser | None = None
) -> bytes:
    """`data` as an .lmz; the options are LmzWriter's."""
    from lmfs.lmz.writer import LmzWriter

    out = io.BytesIO()
    with LmzWriter(out, chunk_size=chunk_size, chooser=chooser) as writer:
        writer.write(data)
    return out.getvalue()


def decompress(data: bytes, *, model_search: Sequence[Path] = ()) -> bytes:
    """What an .lmz holds, all members of it, proven whole.

    raises: FormatError, VersionError, DamagedError, UnknownModelError
    """
    from lmfs.lmz.stream import stream_decode

    return b"".join(stream_decode(io.BytesIO(data), model_search=model_search))
