"""A store and its mount in a folder: `store/` is the backing directory, `mount/` where it is shown.

Owns: mounting, unmounting and checking for the other tools. One thread an object.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from lmfs.store.control import Control, mount_of
from lmfs.store.fsck import Check, Finding
from lmfs.store.marks import Marks
from lmfs.store.store import Store


class Difference(Exception):
    """lmfs did what it must not do; the message says what, and where."""


class Mounted:
    """A mount served by a process of its own, `lmfs mount -f`; its messages go to `log`."""

    def __init__(self, folder: pathlib.Path, options: str = "") -> None:
        folder = folder.resolve()
        self.backing, self.point = folder / "store", folder / "mount"
        self.log = folder / "mount.log"
        self._options = options
        self._server: subprocess.Popen[str] | None = None
        self.backing.mkdir(parents=True, exist_ok=True)
        self.point.mkdir(exist_ok=True)

    @property
    def pid(self) -> int:
        assert self._server is not None
        return self._server.pid

    def mount(self) -> None:
        """raises: Difference if the mount does not come up"""
        options = ["-o", self._options] if self._options else []
        with self.log.open("a") as log:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "lmfs", "mount", "-f", *options, self.backing, self.point],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._server.stdout is not None
        if not self._server.stdout.readline():
            raise Difference(f"the mount did not come up: {self.log.read_text()[-2000:]}")

    def unmount(self) -> None:
        """raises: Difference if it is busy, met a bug, or its process ends badly"""
        bugs = self.ask("stats")["bugs"]
        done = subprocess.run(
            ["fusermount3", "-u", self.point], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Difference(f"cannot unmount: {done.stderr}")
        assert self._server is not None
        status = self._server.wait(60)
        assert self._server.stdout is not None
        self._server.stdout.close()
        self._server = None
        if bugs or status:
            raise Difference(f"{bugs} bugs, status {status}: {self.log.read_text()[-4000:]}")

    def crash(self) -> None:
        """Kill the mount's process, and take away what it leaves."""
        assert self._server is not None
        self._server.kill()
        self.give_up()

    def give_up(self) -> None:
        """End the mount whatever state it is in."""
        if self._server is not None:
            subprocess.run(["fusermount3", "-u", "-z", self.point], check=False)
            self._server.kill()
            self._server.wait()
            assert self._server.stdout is not None
            self._server.stdout.close()
            self._server = None

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        """A request of `lmfs ctl`."""
        mount = mount_of(str(self.point))
        if mount is None or not mount.is_lmfs:
            raise Difference(f"{self.point} is not mounted")
        with Control(mount) as control:
            return control.ask(do, **arguments)

    def memory_kb(self) -> int:
        """The resident memory of the mount's process."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        (found,) = re.findall(r"^VmRSS:\s+(\d+) kB", status, re.M)
        return int(found)

    def __enter__(self) -> Mounted:
        self.mount()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.unmount()
        finally:
            self.give_up()


@contextlib.contextmanager
def opened(backing: pathlib.Path) -> Iterator[Marks]:
    """The store of a backing directory, from outside of the mount."""
    with Store.create(backing) as store:
        marks = Marks(store)
        try:
            yield marks
        finally:
            marks.close()


def check(marks: Marks, *, deep: bool = True) -> list[Finding]:
    """What `lmfs fsck` finds."""
    found: list[Finding] = []
    checker = Check(marks, found.append)
    checker.own_directory()
    for path, _ in checker.files():
        checker.structure(path)
    if deep:
        for path in checker.frozen:
            found += checker.content(path, lambda _: None)
    return found


def require_clean(marks: Marks) -> None:
    """raises: Difference if fsck finds anything, a leftover among them"""
    found = check(marks)
    if found:
        raise Difference(f"fsck of {marks.store.path}: {found}")


def leftovers(backing: pathlib.Path) -> list[str]:
    """What lies in a store under the names of temporaries."""
    return sorted(
        os.path.join(directory, name)
        for directory, _, names in os.walk(backing)
        for name in names
        if name.endswith(".tmp") and ".lmfs-" in name
    )
