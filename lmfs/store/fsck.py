"""Checking a store: its `.lmfs/`, its models, and every file in it. Changes nothing.

Owns: what is looked at, and what each finding says to do; `findings` owns their kinds, and
`lmz.inspect` what can be wrong with a container. Imports lmfs.lmz and lower. One check is for one
thread; the store may be mounted, and files may be frozen, thawed and written meanwhile.

The first pass looks at every file's marks, header, index, trailer and frame heads, and at what
they need. The second, `deep`, decodes every frozen file. A finding about a file that was replaced
while it was looked at is dropped, and the file is looked at again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import LmfsError, ModelError, UnknownModelError, VerifyError
from ..lmz.inspect import Inspection
from ..lmz.shared import file_name, find_text, read_text
from ..models import registry
from ..models.package import base_of, read_card
from .findings import DAMAGE, Finding, Kind
from .freezing import WAY_BACK, freezing_model
from .heal import Verdict, judge
from .marks import FROZEN_MARK, Marks, State
from .parities import wanted_percent
from .parity import BLOCK, prove
from .publish import open_quietly
from .store import DIRECTORY
from .walk import directories, join

_KNOWN_FILES = {"store.json", "inodes"}
_KNOWN_DIRECTORIES = {"models", "primers", "overlays", "parity", "aside"}
_TRIES = 5
_PAUSE_S = 0.05
_RECOVER = "restore it from a backup, or `lmfs repair` saves its whole chunks beside it"
_HEAL = "`lmfs repair` heals it"


Report = Callable[[Finding], None]
Progress = Callable[[int], None]
Look = Callable[[int, str], list[Finding]]


class Check:
    """A check of a store, or of a part of it."""

    def __init__(self, marks: Marks, report: Report) -> None:
        self._marks = marks
        self._store = marks.store
        self._report = report
        self._usable: dict[bytes, bool] = {}
        self._bases: list[
            tuple[str, bytes]
        ] = []  # package, and the id of what it is a difference to
        self._primers: dict[bytes, bool] = {}  # those looked for, and whether they are usable
        self._named: set[str] = set()  # overlays
        self._used: set[str] = set()  # parity
        self._percent: int | None = None  # that frozen files should have
        self.hot_files = 0
        self.frozen: dict[str, int] = {}  # path to decoded bytes, in the order of the walk

    # ---------------------------------------------------------------------------- the store

    def own_directory(self) -> None:
        """Look at `.lmfs/`, its models and its primers. raises: OSError"""
        root = self._store.root_fd
        if stat.S_ISLNK(os.lstat(DIRECTORY, dir_fd=root).st_mode):
            self._find(Kind.STORE, DIRECTORY, "a symlink", "make it a directory again")
        for name, mode in self._own_entries(DIRECTORY):
            path = f"{DIRECTORY}/{name}"
            if name.startswith("store.json.") and name.endswith(".tmp"):
                self._leftover(path)
            elif not _is_own(name, mode):
                self._misplaced(path, mode)
        for name, mode in self._own_entries(self._store.models_path):
            if stat.S_ISREG(mode):
                self._check_model(name)
            else:
                self._misplaced(f"{self._store.models_path}/{name}", mode)
        for path, model in self._bases:
            finding = self._need(path, model)
            if finding is not None:
                self._report(finding)
        self._check_choice()
        try:
            self._percent = wanted_percent(self._store)
        except LmfsError as error:
            self._find(Kind.PARITY_MISSING, f"{DIRECTORY}/store.json", str(error), error.do or "")
        for name, mode in self._own_entries(self._store.primers_path):
            if stat.S_ISREG(mode):
                self._check_primer(name)
            else:
                self._misplaced(f"{self._store.primers_path}/{name}", mode)
        self._check_parity_directory()
        for name in self._marks.overlays.names():
            if not self._marks.overlays.is_name(name):
                path = self._marks.overlays.path(name)
                self._find(Kind.STORE, path, "no overlay", "`lmfs repair` moves it aside")

    def _misplaced(self, path: str, mode: int) -> None:
        what = "a symlink" if stat.S_ISLNK(mode) else "nothing that lmfs made"
        self._find(Kind.STORE, path, what, "`lmfs repair` moves it aside")

    def _own_entries(self, directory: str) -> list[tuple[str, int]]:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        try:
            fd = os.open(directory, flags, dir_fd=self._store.root_fd)
        except OSError as error:
            self._unreadable(directory, error)
            return []
        try:
            names = sorted(os.listdir(fd))
            return [(n, os.stat(n, dir_fd=fd, follow_symlinks=False).st_mode) for n in names]
        finally:
            os.close(fd)

    def _check_model(self, name: str) -> None:
        path = f"{self._store.models_path}/{name}"
        if self._store.temporary_inode(name) is not None:
            self._leftover(path)
            return
        real = Path(self._store.real_path(path))
        try:
            base_id = base_of(read_card(real), real)
            if base_id is not None:
                self._bases.append((path, base_id))
            package = registry.load(real)
            package.tokenizer()
        except UnknownModelError:  # its base is not here: that is reported for all bases
            return
        except (ModelError, OSError, ValueError, KeyError, TypeError) as error:
            problem = str(error)
        else:
            if registry.file_name(package) == name:
                self._usable[package.id] = True
                return
            problem = f"its bytes are those of model {package.id.hex()}"
        do = "copy the package from another store or machine; files that need it cannot be read"
        self._find(Kind.MODEL_DAMAGED, path, problem, do)

    def _check_choice(self) -> None:
        """The model that files are to be frozen with."""
        try:
            freezing_model(self._store)
        except LmfsError as error:
            do = error.do or WAY_BACK
            self._find(Kind.MODEL_MISSING, f"{DIRECTORY}/store.json", str(error), do)

    def _check_primer(self, name: str) -> None:
        """A shared primer: an archive that decodes to the text whose id is its name.

        It is read wholly in every check: what it is lost with is every file that follows it.
        """
        path = f"{self._store.primers_path}/{name}"
        if self._store.temporary_inode(name) is not None:
            self._leftover(path)
            return
        try:
            shared_id = bytes.fromhex(name.removesuffix(".lmz"))
            if name != file_name(shared_id):
                raise ValueError("no name of a shared primer")
            read_text(self._store.primers / name, shared_id, [self._store.models])
            self._primers[shared_id] = True
        except (LmfsError, OSError, ValueError) as error:
            do = "copy it from another copy of the store; files that follow it cannot be read"
            self._find(Kind.PRIMER_DAMAGED, path, str(error), do)

    def _check_parity_directory(self) -> None:
        for name, mode in self._own_entries(self._store.parity_path):
            path = self._marks.parities.path(name)
            if self._store.temporary_inode(name) is not None:
                self._leftover(path)
            elif not (stat.S_ISREG(mode) and self._marks.parities.is_name(name)):
                self._misplaced(path, mode)

    # --------------------------------------------------------------------------- first pass

    def files(self, path: str = ".") -> Iterator[tuple[str, int]]:
        """All regular files from `path` down, with their stored bytes; leftovers are reported."""
        status = os.stat(path, dir_fd=self._store.root_fd, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            yield path, status.st_size
            return
        for directory, entries in directories(self._store, path, self._unreadable):
            self._leftovers(directory)
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    name = join(directory, entry.name)
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        found = os.stat(name, dir_fd=self._store.root_fd, follow_symlinks=False)
                        yield name, found.st_size

    def structure(self, path: str) -> None:
        """Look at one file without decoding it."""
        for finding in self._steadily(path, self._judged(self._structure)):
            self._report(finding)

    def _structure(self, fd: int, path: str) -> list[Finding]:
        facts = self._marks.facts_of_fd(fd)
        self.frozen.pop(path, None)
        if facts.state is State.HOT:
            self.hot_files += 1
            return []
        if facts.state is State.DAMAGED:
            return [Finding(Kind.MARKS, path, facts.problem or "they do not agree", _RECOVER)]
        self.frozen[path] = facts.base_size
        with _inspection(fd) as found:
            problems = [*found.problems, *found.frames()]
            findings = [Finding(Kind.STRUCTURE, path, p.what, _RECOVER, p.offset) for p in problems]
            findings += [f for model in sorted(found.models()) if (f := self._need(path, model))]
            findings += [
                Finding(
                    Kind.PRIMER_MISSING,
                    path,
                    f"needs shared primer {shared_id.hex()}",
                    f"copy {file_name(shared_id)} into the store's .lmfs/primers from a copy of it",
                )
                for shared_id in sorted(found.primers())
                if not self._has_primer(shared_id)
            ]
        if facts.overlay is not None:
            findings += self._check_overlay(fd, path, facts.overlay)
        findings += self._check_parity(fd, path)
        if self._store.xattr_marks and FROZEN_MARK not in os.listxattr(fd):
            do = "nothing; `lmfs repair` sets it again"
            findings.append(Finding(Kind.MARK_MISSING, path, f"no xattr {FROZEN_MARK}", do))
        return findings

    def _check_overlay(self, fd: int, path: str, name: str) -> list[Finding]:
        self._named.add(name)
        try:
            with self._marks.overlays.open(name, fd, lambda size, offset: b"") as overlay:
                overlay.check()
        except LmfsError as error:
            do = error.do or "restore it from a backup"
            return [Finding(Kind.OVERLAY, path, str(error), do)]
        return []

    def unnamed_overlays(self) -> None:
        """Report overlays that no file names, after a look at every file of the store."""
        for name in self._marks.overlays.names():
            if name not in self._named and self._marks.overlays.is_name(name):
                path = self._marks.overlays.path(name)
                do = "nothing; the next mount removes it"
                self._find(Kind.OVERLAY_UNNAMED, path, "an overlay that no file has", do)

    def _check_parity(self, fd: int, path: str) -> list[Finding]:
        """What can be said of a whole file's parity without reading all of it."""
        names = self._marks.parities.of(fd)
        self._used |= names
        for name in sorted(names):
            try:
                with self._marks.parities.open(name) as parity:
                    flaws = parity.flaws
            except (LmfsError, OSError) as error:
                flaws = [str(error)]
            if flaws:
                return [self._parity_damaged(path, name, "; ".join(flaws))]
        if names or self._percent is None:
            return []
        do = "nothing; `lmfs freeze` makes it"
        return [Finding(Kind.PARITY_MISSING, path, "no parity, as the store should have", do)]

    def _parity_damaged(self, path: str, name: str, problem: str) -> Finding:
        problem = f"its parity {self._marks.parities.path(name)}: {problem}"
        do = "`lmfs repair` makes it anew; the file itself is readable"
        return Finding(Kind.PARITY_DAMAGED, path, problem, do)

    def unused_parity(self) -> None:
        """Report parity that no file has, after a look at every file of the store."""
        for name in self._marks.parities.names():
            if name not in self._used:
                path = self._marks.parities.path(name)
                do = "nothing; the next mount removes it"
                self._find(Kind.PARITY_UNUSED, path, "parity that no file has", do)

    def _judged(self, look: Look) -> Look:
        """Says also of damaged files whether they can be healed."""

        def judged(fd: int, path: str) -> list[Finding]:
            try:
                findings = look(fd, path)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                findings = [_unreadable(path, error)]
            if not any(finding.kind in DAMAGE for finding in findings):
                return findings
            verdict = judge(self._marks, fd)
            if verdict is None:
                return findings
            self._used.add(verdict.parity)
            return [_with(verdict, f) if f.kind in DAMAGE else f for f in findings]

        return judged

    def _need(self, path: str, model: bytes) -> Finding | None:
        """What is wrong with the model that a file needs."""
        if model not in self._usable:
            try:
                registry.find(model, [self._store.models])
            except LmfsError as error:
                do = error.do or "copy its package into the store's .lmfs/models"
                return Finding(
                    Kind.MODEL_MISSING, path, f"needs model {model.hex()}", do, None, model
                )
            self._usable[model] = False
        if self._usable[model]:
            return None
        problem = f"needs model {model.hex()}, which is here but not in the store"
        return Finding(
            Kind.MODEL_NOT_KEPT, path, problem, "`lmfs repair` copies it there", None, model
        )

    def _has_primer(self, shared_id: bytes) -> bool:
        if shared_id not in self._primers:
            try:
                find_text(shared_id, self._store.search)
            except LmfsError:
                self._primers[shared_id] = False
            else:
                self._primers[shared_id] = True
        return self._primers[shared_id]

    # -------------------------------------------------------------------------- second pass

    def content(self, path: str, progress: Progress) -> list[Finding]:
        """Decode one file that the first pass found frozen; every damaged chunk of it."""

        def look(fd: int, path: str) -> list[Finding]:
            if self._marks.facts_of_fd(fd).state not in (State.FROZEN, State.PATCHED):
                return []  # thawed meanwhile, which decoded and compared it
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # the disk's bytes, not a copy
            with _inspection(fd) as found:
                if found.problems or not all(map(self._has_primer, found.primers())):
                    return []  # as the first pass said
                try:
                    wrong = list(found.content(self._store.search, progress))
                except UnknownModelError:
                    return []  # as the first pass said
                except LmfsError as error:
                    return [Finding(Kind.CONTENT, path, str(error), error.do or _RECOVER)]
            findings = [Finding(Kind.CONTENT, path, p.what, _RECOVER, p.offset) for p in wrong]
            return findings or self._read_parity(fd, path)

        return self._steadily(path, self._judged(look))

    def _read_parity(self, fd: int, path: str) -> list[Finding]:
        """What is wrong with the parity of a file that is whole, if all of both is read."""
        size = os.fstat(fd).st_size
        for name in sorted(self._marks.parities.of(fd)):
            try:
                with self._marks.parities.open(name) as parity:
                    if not parity.flaws:  # or the first pass said it
                        prove(parity, lambda count, offset: os.pread(fd, count, offset), size)
            except VerifyError as error:
                return [self._parity_damaged(path, name, str(error.got))]
            except (LmfsError, OSError):
                continue  # as the first pass said
        return []

    # --------------------------------------------------------------------------- small parts

    def _steadily(self, path: str, look: Callable[[int, str], list[Finding]]) -> list[Finding]:
        """What is found in a file that is still the same afterwards."""
        findings: list[Finding] = []
        for _ in range(_TRIES):
            try:
                fd = open_quietly(path, self._store.root_fd)
            except FileNotFoundError:
                return []
            except BlockingIOError:  # leased, by who puts the frozen file in its place right now
                time.sleep(_PAUSE_S)
                continue
            except OSError as error:
                return [_unreadable(path, error)]
            try:
                before = os.fstat(fd)
                findings = look(fd, path)
                if not findings or _same(before, self._now(path)):
                    break
            except OSError as error:
                return [_unreadable(path, error)]
            finally:
                os.close(fd)
        return findings

    def _now(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(path, dir_fd=self._store.root_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _leftovers(self, directory: str) -> None:
        try:
            names = sorted(os.listdir(self._store.real_path(directory)))
        except OSError:
            return
        for name in names:
            number = self._store.temporary_inode(name)
            if number is not None:
                self._leftover(join(directory, name), number)

    def _leftover(self, path: str, number: int | None = None) -> None:
        """Report a file of the store's that nobody works on; a user's if it shows another number"""
        try:
            fd = open_quietly(path, self._store.root_fd)
        except OSError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            status = os.fstat(fd)
            is_ours = number is None or not (self._store.xattr_marks and status.st_size)
            if not is_ours:
                is_ours = number in (self._marks.facts_of_fd(fd).inode, status.st_ino)
        except OSError:  # being written
            return
        finally:
            os.close(fd)
        if is_ours:
            do = "nothing; the next mount or freeze removes it, `lmfs repair` moves it aside"
            self._find(Kind.LEFTOVER, path, "left by a freeze or thaw that was interrupted", do)
        else:
            do = "`lmfs repair` gives it a name that is shown"
            self._find(Kind.HIDDEN, path, "a file of yours under a name that is not shown", do)

    def _unreadable(self, path: str, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # removed meanwhile
            self._report(_unreadable(path, error))

    def _find(self, kind: Kind, path: str, problem: str, do: str) -> None:
        self._report(Finding(kind, path, problem, do))


def _with(verdict: Verdict, finding: Finding) -> Finding:
    blocks = f"damaged blocks of {BLOCK} bytes: {verdict.damaged_blocks}"
    if verdict.can_be_healed:
        problem = f"{finding.problem}; {blocks}, which can be healed"
        return replace(finding, problem=problem, do=_HEAL, can_be_healed=True)
    return replace(finding, problem=f"{finding.problem}; {blocks}, more than its parity heals")


def _is_own(name: str, mode: int) -> bool:
    """Whether an entry of `.lmfs/` is of the kind that lmfs makes under this name."""
    if stat.S_ISDIR(mode):
        return name in _KNOWN_DIRECTORIES
    return stat.S_ISREG(mode) and name in _KNOWN_FILES


def _unreadable(path: str, error: OSError) -> Finding:
    do = "check it as the user who owns it, or as root; look into the system's log"
    return Finding(Kind.UNREADABLE, path, error.strerror or str(error), do)


@contextlib.contextmanager
def _inspection(fd: int) -> Iterator[Inspection]:
    with open(fd, "rb", buffering=0, closefd=False) as file, Inspection(file) as found:
        yield found


def _same(before: os.stat_result, now: os.stat_result | None) -> bool:
    return now is not None and all(
        getattr(before, field) == getattr(now, field)
        for field in ("st_dev", "st_ino", "st_size", "st_mtime_ns")
    )
