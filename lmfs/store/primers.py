"""The shared primers of a store: `.lmfs/primers/`.

Owns: how one gets there, and the proof that it is there. Losing one is losing every file that
follows it: it is written, synced, read back from the disk and decoded before anything may follow
it. `families` owns what is in them. Imports lmfs.lmz and lower. Any thread may call it.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from pathlib import Path

from ..codecs.choose import Chooser
from ..container import HEADER_PREFIX, header_length, parse_header
from ..errors import LmfsError
from ..lmz import LmzWriter
from ..lmz.shared import PIECE_BYTES, file_name, find_text, primer_id, read_text
from ..models.package import ModelPackage
from .freezing import pin
from .publish import open_quietly
from .store import Store

# The text is one chain of chunks that the mixer codes; no model runs, so that it is soon at hand.
_LEVEL = 4


class Primers:
    """The shared primers of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._proved: dict[bytes, tuple[int, ...]] = {}  # and what its file was like then
        self._lock = threading.Lock()

    def prove(self, shared_id: bytes) -> None:
        """Make sure that the store has this text; decodes it if its file is not as it was.

        raises: DamagedError that names it
        """
        path = self._store.primers / file_name(shared_id)
        with self._lock:
            now = _like(path)
            if now is not None and self._proved.get(shared_id) == now:
                return
            find_text(shared_id, self._store.search)
            if now is not None:
                self._proved[shared_id] = now

    def packed(self, text: bytes, package: ModelPackage) -> bytes:
        """The text's file: an archive, each of its chunks following all before it."""
        out = io.BytesIO()
        chooser = Chooser(package, _LEVEL, primer_bytes=len(text))
        with LmzWriter(out, chunk_size=PIECE_BYTES, chooser=chooser) as writer:
            writer.write(text)
        return out.getvalue()

    def keep(self, text: bytes, stored: bytes, package: ModelPackage) -> bytes:
        """Put a text into the store, durably; its id.

        stored: what `packed` made of it
        raises: DamagedError if the disk does not give it back; OSError
        """
        store, shared_id = self._store, primer_id(text)
        with contextlib.suppress(LmfsError):
            self.prove(shared_id)
            return shared_id
        pin(store, package)
        # One that is there under this name is damaged, or `prove` would have found it.
        store.put(
            store.primers_path,
            file_name(shared_id),
            io.BytesIO(stored),
            lambda path: _check(path, shared_id, store.search),
        )
        return shared_id

    def followed_by(self, path: str) -> bytes | None:
        """The shared primer that a frozen file declares; None if none, or if it is no such file."""
        try:
            fd = open_quietly(path, self._store.root_fd)
        except OSError:
            return None
        try:
            prefix = os.pread(fd, HEADER_PREFIX.size, 0)
            header = parse_header(os.pread(fd, header_length(prefix), 0))
        except (LmfsError, OSError):
            return None
        finally:
            os.close(fd)
        return next((c.shared_id for c in header.codings if c.shared_id is not None), None)


def _check(path: Path, shared_id: bytes, search: list[Path]) -> None:
    read_text(path, shared_id, search)


def _like(path: os.PathLike[str]) -> tuple[int, ...] | None:
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
