"""What a single .lmz holds, as a tree that nobody can change: one file, or a tar's whole tree.

Owns: the index of a tar (read once, through the seekable reader, by tarfile), names, links and
holes in it. Shows the same attributes as lmfs.vfs; knows neither stores nor FUSE. Any number of
threads may call it at once.

Names in a tar come from anywhere: they are taken apart into parts, and one with ".." is left out.
Nothing outside the archive is ever opened by a name in it.
"""

from __future__ import annotations

import bisect
import errno
import logging
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from .errors import FormatError
from .lmz import ChunkCache, LmzReader
from .vfs import DEFAULT_CACHE_BYTES, Attributes, Entry

SUFFIX = ".lmz"
_TAR_SUFFIXES = (".tar.lmz", ".tlmz")
_MAGIC, _MAGIC_OFFSET = b"ustar", 257
_BLOCK_BYTES = 512
_NAME_MAX, _PATH_MAX = 255, 4096
_XATTR = "SCHILY.xattr."
_KINDS = {
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
    b"D": stat.S_IFDIR,  # of an incremental archive
}
_NO_FILES = (b"V", b"M", b"N")  # a label, the rest of a file from another volume, long names
_MAX_HEADER_BYTES = 1 << 20

_log = logging.getLogger(__name__)


@dataclass
class _Node:
    """A file of the tree; `extents` are (offset in it, offset in the archive, bytes), in order."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    inode: int
    size: int = 0
    device: int = 0
    links: int = 1
    target: str = ""
    extents: list[tuple[int, int, int]] = field(default_factory=list)
    children: dict[str, _Node] = field(default_factory=dict)
    xattrs: dict[str, bytes] = field(default_factory=dict)


class Archive:
    """The tree of one .lmz; close it to give everything back."""

    def __init__(
        self,
        path: str,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """
        progress: told how far into the decoded tar its index has come, and the tar's size in bytes
        raises: FormatError, VersionError, DamagedError, UnknownModelError, OSError
        """
        self.path = path
        self.cache = ChunkCache(cache_bytes)
        self._reader = LmzReader(path, cache=self.cache)
        self._count = 0
        self._open: dict[int, _Node] = {}  # by inode number; one that was opened stays
        try:
            self._status = os.stat(path)
            mode = stat.S_IFDIR | 0o555
            self._root = self._node(mode, self._status.st_mtime_ns)
            if _is_tar(path, self._reader):
                self._read_tar(progress)
            else:
                self._add_whole(path)
        except BaseException:
            self._reader.close()
            raise

    def close(self) -> None:
        self._reader.close()

    def statistics(self) -> dict[str, int]:
        """Counts, and sizes in bytes."""
        return {
            "files": self._count,
            "cache_hits": self.cache.hits,
            "cache_misses": self.cache.misses,
            "cache_bytes": self.cache.used_bytes,
            "cache_max_bytes": self.cache.max_bytes,
        }

    def drop_caches(self) -> None:
        """Forget decoded chunks."""
        self.cache.clear()

    # ------------------------------------------------------------------------------- the index

    def _node(self, mode: int, mtime_ns: int, uid: int | None = None, gid: int = 0) -> _Node:
        if uid is None:
            uid, gid = self._status.st_uid, self._status.st_gid
        self._count += 1
        return _Node(mode, uid, gid, mtime_ns, self._count)

    def _add_whole(self, path: str) -> None:
        name = os.path.basename(path).removesuffix(SUFFIX) or "data"
        mode = stat.S_IFREG | stat.S_IMODE(self._status.st_mode) & 0o555
        node = self._node(mode, self._status.st_mtime_ns)
        node.size = self._reader.size
        node.extents = [(0, 0, node.size)]
        self._root.children[name] = node

    def _read_tar(self, progress: Callable[[int, int], None] | None) -> None:
        size, left_out = self._reader.size, 0
        try:
            headers: Any = _Headers(self._reader)
            with tarfile.open(
                fileobj=headers, mode="r:", encoding="utf-8", errors="surrogateescape"
            ) as opened:
                tar: Any = opened
                while (info := tar.next()) is not None:
                    left_out += not self._add_member(info)
                    tar.members = []  # it would keep them all
                    if progress is not None:
                        progress(tar.offset, size)
                end = tar.offset
        except tarfile.TarError as error:
            raise _not_a_tar(self.path, error) from error
        # tarfile ends at what it cannot read; a tar ends with zeros, or without anything.
        if self._reader.pread(_BLOCK_BYTES, end).strip(b"\0"):
            raise _not_a_tar(self.path, f"no header at byte {end}")
        if left_out:
            _log.warning("%s: left out %d names that lead elsewhere", self.path, left_out)

    def _add_member(self, info: tarfile.TarInfo) -> bool:
        """Put a tar's member into the tree; False if its name, or its link's, has no place in it"""
        if info.type in _NO_FILES:
            return True
        parts = _parts(info.name)
        if parts is None or (not parts and not info.isdir()):
            return False
        mtime_ns = _mtime_ns(info)
        if not parts:
            self._describe(self._root, info, stat.S_IFDIR, mtime_ns)
            return True
        parent = self._directory(parts[:-1])
        name = parts[-1]
        if info.islnk():
            target = self._find_parts(_parts(info.linkname))
            if target is None or stat.S_ISDIR(target.mode):
                return False
            self._forget(parent, name)
            target.links += 1
            parent.children[name] = target
            return True
        kind = _KINDS.get(info.type, stat.S_IFREG)
        old = parent.children.get(name)
        if old is not None and kind == stat.S_IFDIR == stat.S_IFMT(old.mode):
            self._describe(old, info, kind, mtime_ns)
            return True
        self._forget(parent, name)
        node = self._node(kind, mtime_ns, info.uid, info.gid)
        self._describe(node, info, kind, mtime_ns)
        parent.children[name] = node
        return True

    def _describe(self, node: _Node, info: tarfile.TarInfo, kind: int, mtime_ns: int) -> None:
        node.mode = kind | stat.S_IMODE(info.mode)
        node.uid, node.gid, node.mtime_ns = info.uid, info.gid, mtime_ns
        for key, value in info.pax_headers.items():
            if key.startswith(_XATTR):
                data = value.encode("utf-8", "surrogateescape")
                node.xattrs[key.removeprefix(_XATTR)] = data
        if kind == stat.S_IFLNK:
            node.target = info.linkname
            node.size = len(os.fsencode(info.linkname))
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            node.device = os.makedev(info.devmajor, info.devminor)
        elif kind == stat.S_IFREG:
            node.size = info.size
            if node.size < 0:
                raise _not_a_tar(self.path, f"nonsense about the size of {info.name!r}")
            at, known = info.offset_data, 0
            stored: Any = info.sparse or [(0, info.size)]
            # What a sparse file stores lies one behind the other.
            for offset, size in stored:
                if not size:  # marks the end, or fills the header
                    continue
                if not known <= offset <= offset + size <= node.size:
                    raise _not_a_tar(self.path, f"nonsense about the size of {info.name!r}")
                known = offset + size
                node.extents.append((offset, at, size))
                at += size
            if at > self._reader.size:
                raise _not_a_tar(self.path, f"ends in the middle of {info.name!r}")

    def _forget(self, parent: _Node, name: str) -> None:
        old = parent.children.pop(name, None)
        if old is not None:
            old.links -= 1

    def _directory(self, parts: list[str]) -> _Node:
        """The directory, with those above it; made where the tar has not named them."""
        node = self._root
        for part in parts:
            child = node.children.get(part)
            if child is None or not stat.S_ISDIR(child.mode):
                child = self._node(stat.S_IFDIR | 0o755, self._status.st_mtime_ns)
                node.children[part] = child
            node = child
        return node

    def _find_parts(self, parts: list[str] | None) -> _Node | None:
        node: _Node | None = self._root
        for part in [""] if parts is None else parts:
            node = None if node is None else node.children.get(part)
        return node

    # ----------------------------------------------------------------------------------- reading

    def _find(self, path: str) -> _Node:
        node = self._find_parts([part for part in path.split("/") if part not in ("", ".")])
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return node

    def attributes(self, path: str | None, handle: int | None = None) -> Attributes:
        """The attributes of a path, or of the file that a handle has open."""
        node = self._find(path) if path is not None else self._open[handle or 0]
        directories = sum(stat.S_ISDIR(child.mode) for child in node.children.values())
        stored = sum(size for _, _, size in node.extents)
        return Attributes(
            mode=node.mode,
            inode=node.inode,
            links=2 + directories if stat.S_ISDIR(node.mode) else node.links,
            uid=node.uid,
            gid=node.gid,
            device=node.device,
            size=node.size,
            blocks=-(-stored // _BLOCK_BYTES),
            atime_ns=node.mtime_ns,
            mtime_ns=node.mtime_ns,
            ctime_ns=node.mtime_ns,
        )

    def list_directory(self, path: str) -> Iterator[Entry]:
        for name, node in self._find(path).children.items():
            yield Entry(name, stat.S_IFMT(node.mode))

    def read_link(self, path: str) -> str:
        return self._find(path).target

    def list_xattrs(self, path: str) -> list[str]:
        return list(self._find(path).xattrs)

    def get_xattr(self, path: str, name: str) -> bytes:
        value = self._find(path).xattrs.get(name)
        if value is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), path)
        return value

    def filesystem(self) -> os.statvfs_result:
        """Full: what is decoded is as many blocks, and none is free."""
        blocks = -(-self._reader.size // _BLOCK_BYTES)
        numbers = (_BLOCK_BYTES, _BLOCK_BYTES, blocks, 0, 0, self._count, 0, 0, os.ST_RDONLY, 255)
        return os.statvfs_result(numbers)

    def open(self, path: str, flags: int) -> int:
        """A handle: the file's inode number. raises: OSError"""
        node = self._find(path)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        self._open[node.inode] = node
        return node.inode

    def read(self, handle: int, size: int, offset: int, path: str | None = None) -> bytes:
        """At most `size` bytes from `offset`; fewer only at the end of the file."""
        del path
        node = self._open[handle]
        stop = min(offset + size, node.size)
        if offset >= stop:
            return b""
        result = bytearray(stop - offset)
        first = bisect.bisect_right(node.extents, offset, key=lambda extent: extent[0])
        for start, at, length in node.extents[max(first - 1, 0) :]:
            if start >= stop:
                break
            begin, end = max(start, offset), min(start + length, stop)
            if begin < end:
                data = self._reader.pread(end - begin, at + begin - start)
                result[begin - offset : end - offset] = data
        return bytes(result)

    def seek(self, handle: int, offset: int, whence: int, path: str | None = None) -> int:
        """lseek(2) for data (SEEK_DATA) or a hole (SEEK_HOLE); the path is not needed."""
        node = self._open[handle]
        if not 0 <= offset < node.size:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        for start, _, length in node.extents:
            if offset < start + length:
                if whence == os.SEEK_DATA:
                    return max(offset, start)
                if offset < start:
                    return offset
                offset = start + length
        if whence == os.SEEK_DATA:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return offset

    def flush(self, handle: int) -> None:
        """Nothing is ever waiting to be written."""

    def sync(self, handle: int, *, data_only: bool = False) -> None:
        """Nor to be made durable."""

    def sync_directory(self, path: str) -> None:
        """Nor here."""

    def release(self, handle: int, path: str | None = None) -> None:
        """Handles cost nothing: a file's is the same for all who read it."""


class _Headers:
    """What tarfile reads: headers only, so that one who lies of its size makes no memory full."""

    def __init__(self, reader: LmzReader) -> None:
        self._reader = reader
        self.seek, self.tell, self.name = reader.seek, reader.tell, reader.name

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._reader.read(size)


def _is_tar(path: str, reader: LmzReader) -> bool:
    if path.endswith(_TAR_SUFFIXES):
        return True
    return reader.pread(len(_MAGIC), _MAGIC_OFFSET) == _MAGIC


def _parts(name: str) -> list[str] | None:
    """The names on the way to a member; None if it leads upwards, or no kernel would take it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or len(name) >= _PATH_MAX:
        return None
    return None if any(len(os.fsencode(part)) > _NAME_MAX for part in parts) else parts


def _mtime_ns(info: tarfile.TarInfo) -> int:
    # As a float it has lost its nanoseconds.
    try:
        return int(Decimal(info.pax_headers.get("mtime", info.mtime)) * 10**9)
    except (InvalidOperation, ValueError, OverflowError):
        return int(info.mtime) * 10**9


def _not_a_tar(path: str, got: object) -> FormatError:
    return FormatError(
        "the tar in it cannot be read",
        where=path,
        got=got,
        do="if it is no tar, give the file another name; if it is cut off, `lmfs recover` it",
    )
