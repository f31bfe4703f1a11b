"""The control socket of a mount: hands the backing directory to commands of the same user.

Owns: where sockets lie, the messages, and /proc/self/mountinfo. Imports the store and lower. The
server answers from threads of its own; the rest may be called from any thread.

A directory mounted over itself has no path left to its backing tree: a descriptor, opened before
the mount, is the only way in, and this socket hands it over (SCM_RIGHTS). Sockets are named by
the mount's device number, which mountinfo tells everybody and nobody can choose.

Messages are JSON, one a packet. {"do": "open"} is answered with {"path": ..., "mountpoint": ...,
"freezing": the mount's Wishes} and the descriptor; other requests by who serves the mount, with a
reply or {"error": message, "exit_code": number}. The connection lives as long as the mount: its end
tells that the mount ended.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import socket
import stat
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import LmfsError, MountError, StoreError, UsageError
from .freezing import NO_WISHES, Wishes
from .store import Store

Handler = Callable[[dict[str, Any]], dict[str, Any]]

_log = logging.getLogger(__name__)
_MESSAGE_BYTES = 1 << 16
_CREDENTIALS = struct.Struct("iII")
_TIMEOUT_S = 10.0
_FILESYSTEM_TYPE = "fuse.lmfs"
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo, as far as we care; `inner` is the part of the tree that is shown."""

    device: str
    inner: str
    mountpoint: str
    filesystem_type: str
    options: str

    @property
    def is_lmfs(self) -> bool:
        return self.filesystem_type == _FILESYSTEM_TYPE


def mounts() -> list[Mount]:
    """All mounts that this process sees, in the order they were made."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            fields, kind = before.split(" "), after.split(" ")
            inner, mountpoint = (
                _ESCAPE.sub(lambda m: chr(int(m[1], 8)), field) for field in fields[3:5]
            )
            found.append(Mount(fields[2], inner, mountpoint, kind[0], kind[2].strip()))
    return found


def mount_of(path: str) -> Mount | None:
    """The mount that an absolute path, without symlinks, leads into."""
    best: Mount | None = None
    for mount in mounts():
        prefix = mount.mountpoint.rstrip("/") + "/"
        inside = path == mount.mountpoint or path.startswith(prefix)
        # Of two with the same mountpoint the later one covers the earlier one.
        if inside and (best is None or len(mount.mountpoint) >= len(best.mountpoint)):
            best = mount
    return best


def runtime_directory(uid: int) -> str:
    """Where a user's sockets lie."""
    if uid == 0:
        return "/run/lmfs"
    if uid == os.geteuid() and (own := os.environ.get("XDG_RUNTIME_DIR")):
        return os.path.join(own, "lmfs")
    return f"/run/user/{uid}/lmfs"


class ControlServer:
    """Answers on the socket of one mount until it is closed."""

    def __init__(
        self,
        device: int,
        store: Store | None,
        mountpoint: str,
        handle: Handler | None = None,
        wishes: Wishes = NO_WISHES,
    ) -> None:
        """
        device: st_dev of the mount
        store: what is mounted, if it is a store
        wishes: handed over with the store
        handle: answers a request other than "open"; from several threads; raises LmfsError, OSError
        raises: OSError
        """
        self._store = store
        self._handle = handle
        self._mountpoint = mountpoint
        self._wishes = wishes
        directory = runtime_directory(os.geteuid())
        os.makedirs(directory, mode=0o700, exist_ok=True)
        _check_own(directory)
        self._path = os.path.join(directory, f"{os.major(device)}:{os.minor(device)}.sock")
        # The number was free for our mount, so whose socket this was is gone.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.bind(self._path)
            os.chmod(self._path, 0o600)
            self._socket.listen()
        except BaseException:
            self._socket.close()
            raise
        threading.Thread(target=self._accept, name="lmfs-control", daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError, RecursionError):
            if not _may_ask(connection):
                return
            while request := connection.recv(_MESSAGE_BYTES):
                asked = json.loads(request)
                if not isinstance(asked, dict):
                    return
                if asked.get("do") != "open" or self._store is None:
                    connection.send(json.dumps(self._reply(asked)).encode())
                    continue
                reply = {
                    "path": self._store.path,
                    "mountpoint": self._mountpoint,
                    "freezing": self._wishes.as_dict(),
                }
                socket.send_fds(connection, [json.dumps(reply).encode()], [self._store.root_fd])

    def _reply(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            if asked.get("do") == "open":
                raise StoreError(
                    "this mount shows an archive, not a store",
                    where=self._mountpoint,
                    do="copy files out of it to freeze them",
                )
            if self._handle is None:
                raise UsageError("request", got=asked.get("do"), do="update lmfs, or mount again")
            return self._handle(asked)
        except LmfsError as error:
            return {"error": str(error), "exit_code": error.exit_code}
        except Exception as error:
            if not isinstance(error, OSError):
                _log.exception("control request %r", asked.get("do"))
            return {"error": f"{type(error).__name__}: {error}", "exit_code": LmfsError.exit_code}


def _may_ask(connection: socket.socket) -> bool:
    return _peer(connection) in (0, os.geteuid())


def _peer(connection: socket.socket) -> int:
    """The user at the other end."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])


def _check_own(directory: str) -> None:
    """Refuse a directory where somebody else could put a socket in the place of ours."""
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "somebody else may write to it", directory)


def _raise_error(reply: dict[str, Any]) -> None:
    if "error" in reply:
        refused = LmfsError(str(reply["error"]))
        code = reply.get("exit_code")
        refused.exit_code = code if isinstance(code, int) else LmfsError.exit_code
        raise refused


class Control:
    """A connection to the process that serves a mount."""

    def __init__(self, mount: Mount) -> None:
        """raises: MountError if nobody who would answer us serves it"""
        self.mount = mount
        self.wishes = NO_WISHES  # of the mount, once its store is opened
        owner = re.search(r"(?:^|,)user_id=(\d+)", mount.options)
        uid = int(owner[1]) if owner else os.geteuid()
        path = os.path.join(runtime_directory(uid), f"{mount.device}.sock")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_TIMEOUT_S)
        try:
            self._socket.connect(path)
            if _peer(self._socket) not in (0, uid):
                raise PermissionError(errno.EPERM, "somebody else answers")
        except OSError as error:
            self._socket.close()
            raise MountError(
                "cannot reach the process that serves this mount",
                where=mount.mountpoint,
                got=f"{path}: {error.strerror or error}",
                do="run this as the user who mounted it, or as root; or unmount it and work on "
                "the backing directory",
            ) from error

    def open_store(self) -> Store:
        """The mounted store, on a descriptor of our own.

        raises: MountError, FormatError; UsageError for wishes of a newer lmfs
        """
        try:
            self._socket.send(json.dumps({"do": "open"}).encode())
            data, fds, _, _ = socket.recv_fds(self._socket, _MESSAGE_BYTES, 1)
            reply = dict(json.loads(data))
            path = str(reply["path"]) if len(fds) == 1 else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._no_answer(error) from error
        _raise_error(reply)
        if path is None:
            raise self._no_answer("refused")
        try:
            self.wishes = Wishes.read(reply.get("freezing"))
            return Store.open_fd(fds[0], path)
        except BaseException:
            os.close(fds[0])
            raise

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """What the process answers to a request, however long it takes.

        raises: LmfsError with the process's words and exit code, MountError if it does not answer
        """
        self._socket.settimeout(None)
        try:
            self._socket.send(json.dumps({"do": do, **arguments}).encode())
            reply = json.loads(self._socket.recv(_MESSAGE_BYTES) or b"null")
        except (OSError, ValueError, RecursionError) as error:
            raise self._no_answer(error) from error
        if not isinstance(reply, dict):
            raise self._no_answer("nothing")
        _raise_error(reply)
        return reply

    def wait_for_end(self, seconds: float) -> bool:
        """True once the process has given everything back, False if it has not by then."""
        self._socket.settimeout(seconds)
        try:
            return not self._socket.recv(_MESSAGE_BYTES)
        except TimeoutError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _no_answer(self, got: object) -> MountError:
        return MountError(
            "the process that serves this mount gives no answer",
            where=self.mount.mountpoint,
            got=got,
            do="unmount it and mount it again",
        )
