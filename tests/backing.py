"""What the tests of store, vfs, mount and command line stand on: texts, stores, mounts."""

from __future__ import annotations

import os
import pathlib
import random
import subprocess
import sys
import threading

from lmfs.codecs.choose import Chooser
from lmfs.store.control import mounts
from lmfs.store.freeze import Outcome, freeze
from lmfs.store.marks import Facts, Marks
from lmfs.store.store import Store
from lmfs.store.walk import sweep_tree
from lmfs.vfs import STATE_XATTR

WORDS = [b"the", b"cold", b"text", b"lies", b"still", b"until", b"somebody", b"reads", b"it"]
CHUNK = 4096


def text(size: int, seed: int = 1) -> bytes:
    """Text that zstd makes smaller and that is nowhere the same."""
    words = random.Random(seed).choices(WORDS, k=size // 3 + 1)
    return b" ".join(words)[:size]


class Backing:
    """A store in a directory, with a file or two."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)
        self.store = Store.create(path)
        self.marks = Marks(self.store)

    def write(self, name: str, data: bytes) -> pathlib.Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def freeze(self, name: str, **options: object) -> Outcome:
        return freeze(self.marks, name, Chooser(None), chunk_size=CHUNK, **options)  # type: ignore[arg-type]

    def write_frozen(self, name: str, data: bytes) -> pathlib.Path:
        """A frozen file; it must be fit to be frozen."""
        path = self.write(name, data)
        outcome = self.freeze(name)
        assert outcome.reason is None, outcome
        return path

    def facts(self, name: str) -> Facts:
        fd = os.open(self.path / name, os.O_RDONLY)
        try:
            return self.marks.facts_of_fd(fd)
        finally:
            os.close(fd)

    def leftovers(self) -> list[str]:
        """Names that are the store's own, but for `.lmfs`."""
        return [p.name for p in self.path.rglob(".lmfs-*")]

    def close(self) -> None:
        self.marks.close()
        self.store.close()


def run_lmfs(*args, **options):
    return subprocess.run(
        [sys.executable, "-m", "lmfs", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def mount(*args):
    done = run_lmfs("mount", *args)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done


def unmount(path):
    """Whatever state it is in."""
    if any(m.mountpoint == str(path) for m in mounts()):
        done = run_lmfs("umount", path)
        if done.returncode:
            subprocess.run(["fusermount3", "-u", "-z", path], check=False)


def state(vfs, path):
    return vfs.get_xattr(path, STATE_XATTR)


def slurp(vfs, path):
    handle = vfs.open(path, os.O_RDONLY)
    try:
        return vfs.read(handle, vfs.attributes(path).size + 10, 0, path)
    finally:
        vfs.release(handle, path)


class SweepsBeside:
    """Sweeps a store at every step of a protocol, in a thread, as another mount would: for some of
    these steps it has to wait for the commit lock.
    """

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._threads: list[threading.Thread] = []
        self.steps: list[str] = []
        self.swept: list[str] = []

    def __call__(self, step: str) -> None:
        self.steps.append(step)
        thread = threading.Thread(target=lambda: self.swept.extend(sweep_tree(self._marks)))
        self._threads.append(thread)
        thread.start()
        thread.join(0.1)

    def finish(self) -> list[str]:
        """What was removed."""
        for thread in self._threads:
            thread.join()
        return self.swept
