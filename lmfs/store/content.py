"""What a file of a store holds, frozen, patched or hot: reading it, and writing all of it out.

Owns: which bytes those are, and that they are as they were frozen. Imports lmfs.lmz and lower. Any
thread may call it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import blake3

from ..errors import BusyError, DamagedError
from ..lmz import ChunkCache, LmzReader
from .marks import Facts, Marks, State
from .publish import Source

Progress = Callable[[int], None]  # told how many bytes were done since it was told last
Pread = Callable[[int, int], bytes]  # so many bytes, from an offset

_READ_BYTES = 1 << 20


def open_frozen(
    fd: int, marks: Marks, *, cache: ChunkCache | None = None, heal: bool = True
) -> LmzReader:
    """A reader of the frozen file that is open as `fd`, which it does not need any longer.

    heal: read what is damaged with the file's parity, if it has any
    raises: FormatError, VersionError, DamagedError
    """
    with open(fd, "rb", buffering=0, closefd=False) as file:
        return LmzReader(
            file,
            store_id=marks.store.id,
            model_search=marks.store.search,
            cache=cache,
            heal=marks.parities.heal_reading if heal else None,
        )


@contextlib.contextmanager
def open_content(marks: Marks, source: Source, facts: Facts) -> Iterator[tuple[Pread, bool]]:
    """How the source is read as it is shown, and whether it has holes."""
    if facts.state is State.HOT:
        yield lambda size, offset: os.pread(source.fd, size, offset), _has_hole(source)
        return
    with open_frozen(source.fd, marks) as reader:
        if facts.overlay is None:
            yield reader.pread, False
            return
        with marks.overlays.open(facts.overlay, source.fd, reader.pread) as overlay:
            yield overlay.pread, overlay.has_hole()


def blocks(pread: Pread) -> Iterator[bytes]:
    """All of it, in order."""
    offset = 0
    while block := pread(_READ_BYTES, offset):
        yield block
        offset += len(block)


def write_content(
    marks: Marks, source: Source, facts: Facts, target: int, size: int, progress: Progress | None
) -> bytes:
    """Write the first `size` bytes as they are shown; their digest.

    raises: DamagedError, UnknownModelError, OSError; BusyError if the source is cut meanwhile
    """
    hasher = blake3.blake3()
    if not size:
        return hasher.digest()
    done = 0
    with open_content(marks, source, facts) as (pread, _), open(os.dup(target), "wb") as file:
        for block in blocks(lambda count, offset: pread(min(count, size - offset), offset)):
            hasher.update(block)
            if block.count(0) == len(block):
                file.seek(len(block), os.SEEK_CUR)  # leaves a hole, as the file may have had
            else:
                file.write(block)
            done += len(block)
            if progress is not None:
                progress(len(block))
        file.truncate(size)
    if done != size:
        raise BusyError(
            "file is in use",
            where=source.store.shown_path(source.path),
            got="somebody who cut it while it was read",
            do="try again later",
        )
    if size == facts.base_size and facts.overlay is None:
        _compare_whole(marks, source, hasher.digest())
    return hasher.digest()


def _compare_whole(marks: Marks, source: Source, digest: bytes) -> None:
    with open_frozen(source.fd, marks) as reader:
        expected = reader.members[0].content_hash
    if digest != expected:
        raise DamagedError(
            "the whole is not what was frozen, though every chunk is",
            where=source.store.shown_path(source.path),
            expected=f"content {expected.hex()[:16]}",
            got=digest.hex()[:16],
            do="restore it from a backup",
        )


def digest_of(fd: int) -> bytes:
    """That of all bytes of an open file, as `write_content` gives it."""
    hasher = blake3.blake3()
    for block in blocks(lambda size, offset: os.pread(fd, size, offset)):
        hasher.update(block)
    return hasher.digest()


def _has_hole(source: Source) -> bool:
    try:
        return os.lseek(source.fd, 0, os.SEEK_HOLE) < source.status.st_size
    except OSError:  # a filesystem that cannot tell keeps no holes
        return False
