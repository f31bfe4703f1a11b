"""`lmz`, `unlmz` and `lmzcat`: the filter, with gzip's habits.

Owns: its options, messages and exit codes, and when an input may be deleted. argparse rather than
typer, and nothing heavy imported before it is needed: a filter is started often.

    0  all done      1  an error      2  a warning: something was left as it was
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

import lmfs
from lmfs.cli import OutputError, finish_output, message
from lmfs.errors import LmfsError, UsageError, VerifyError
from lmfs.store.new_file import NewFile

if TYPE_CHECKING:
    from lmfs.codecs.choose import Chooser

SUFFIX = ".lmz"
_PIECE_BYTES = 1 << 20
_MAX_THREADS = 256
_OK, _ERROR, _WARNING = 0, 1, 2

_EPILOG = """\
With no FILE, or when FILE is -, reads standard input and writes standard output.
Archives with tar:  tar -I lmz -cf docs.tar.lmz docs/    tar -I lmz -xf docs.tar.lmz
Exit status: 0 if all went well, 1 after an error, 2 after a warning.
"""


class _Warning(Exception):
    """Something is left as it was, on purpose."""


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Compress or decompress FILEs with a language model "
        "(by default, compress FILE to FILE.lmz and delete FILE).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE")
    add("-z", "--compress", action="store_true", help="compress (the default)")
    add("-d", "--decompress", "--uncompress", action="store_true", help="decompress")
    add("-c", "--stdout", "--to-stdout", action="store_true", help="write to standard output")
    add("-k", "--keep", action="store_true", help="do not delete input files")
    add("-f", "--force", action="store_true", help="overwrite; accept links and terminals")
    add("-t", "--test", action="store_true", help="decode everything and check it; write nothing")
    add("-l", "--list", action="store_true", help="list sizes, ratio and codecs")
    add("-q", "--quiet", action="count", default=0, help="no warnings; twice: no errors either")
    add("-v", "--verbose", action="store_true", help="say what was done")
    for level in range(1, 10):
        text = "to -9: quicker or smaller; -1 and -2 zstd, to -4 no model, 6 the default"
        add(
            f"-{level}",
            dest="level",
            action="store_const",
            const=level,
            help=text if level == 1 else argparse.SUPPRESS,
        )
    add("-T", "--threads", type=_threads, metavar="N", help="code with N threads; 0: all cores")
    add("--chunk-size", type=_size, metavar="N[K|M]", help="bytes that are coded together")
    add(
        "--primer",
        type=_size,
        metavar="N[K|M]",
        help="what chunks follow of their file's beginning: smaller from 1M on, but whoever reads "
        "one then waits for that to be decoded, 1 to 20 s a megabyte; by default 0.3 s at most",
    )
    add("--no-model", action="store_true", help="zstd only: fast, and larger")
    add("-V", "--version", action="store_true", help="print the version")
    return parser


def _size(text: str) -> int:
    scale = {"K": 1024, "M": 1024 * 1024}.get(text[-1:].upper(), 1)
    return int(text if scale == 1 else text[:-1]) * scale


def _threads(text: str) -> int:
    count = int(text)
    if not 0 <= count <= _MAX_THREADS:
        raise ValueError
    return count


def main(argv: list[str] | None = None) -> int:
    """The console scripts' entry; returns the exit code."""
    program = Path(sys.argv[0]).stem if argv is None else "lmz"
    return run(program, sys.argv[1:] if argv is None else argv)


def run(program: str, arguments: list[str]) -> int:
    """Do what `program` with these arguments is asked; never raises an error."""
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        status = _run(program, arguments)
        finish_output()
        return status
    except KeyboardInterrupt:
        return _die_of(signal.SIGINT)
    except _Terminated:
        return _die_of(signal.SIGTERM)
    except BrokenPipeError:
        return _die_of(signal.SIGPIPE)
    except OSError as error:  # of what it prints
        print(f"{program}: {message(error)}", file=sys.stderr)
        return _ERROR
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run(program: str, arguments: list[str]) -> int:
    try:
        options = _parser(program).parse_args(arguments)
    except SystemExit as leaving:
        return _OK if not leaving.code else _ERROR
    if options.version:
        print(f"{program} (lmfs) {lmfs.__version__}")
        return _OK
    if program == "lmzcat":
        options.decompress = options.stdout = True
    elif program == "unlmz":
        options.decompress = True
    if options.threads is not None:
        from lmfs.codecs.threads import limit_threads

        limit_threads(options.threads or len(os.sched_getaffinity(0)))
    return _Filter(program, options).run()


class _Terminated(BaseException):
    """SIGTERM, as an exception: temporaries are removed on its way out."""


def _terminate(number: int, frame: object) -> NoReturn:
    raise _Terminated


def _die_of(number: signal.Signals) -> int:
    """End as a program ends that knows nothing of the signal, so that shells see it."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number


class _Filter:
    """One run over all its files."""

    def __init__(self, program: str, options: argparse.Namespace) -> None:
        self._program = program
        self._options = options
        self._status = _OK
        self._chooser: Chooser | None = None
        self._rows: list[tuple[int, int, str, str]] = []

    def run(self) -> int:
        for name in self._options.files or ["-"]:
            try:
                self._one(name)
            except BrokenPipeError:
                raise
            except _Warning as warning:
                self._say(f"{_shown(name)}: {warning}", _WARNING)
            except OutputError as error:
                self._say(message(error), _ERROR)
            except OSError as error:
                self._say(f"{_shown(name)}: {error.strerror or error}", _ERROR)
            except LmfsError as error:
                self._say(f"{_shown(name)}: {error}", _ERROR)
            except Exception as error:
                self._say(f"{_shown(name)}: {type(error).__name__}: {error}", _ERROR)
        if self._options.list:
            self._print_table()
        return self._status

    def _say(self, message: str, status: int) -> None:
        # An error outranks a warning, whichever came last.
        self._status = _ERROR if _ERROR in (status, self._status) else status
        if self._options.quiet < (1 if status == _WARNING else 2):
            print(f"{self._program}: {message}", file=sys.stderr)

    def _one(self, name: str) -> None:
        options = self._options
        if options.list:
            self._list(name)
        elif name == "-":
            self._pipe(_standard_input(), name)
        elif options.test or options.stdout:
            with open(name, "rb") as file:
                self._pipe(file, name)
        else:
            self._replace(Path(name))

    def _pipe(self, source: BinaryIO, name: str) -> None:
        """Standard input, or a file, to standard output, or to nothing if it is only tested."""
        options = self._options
        decoding = options.decompress or options.test
        if sys.stdout is None and not options.test:
            raise OutputError(errno.EBADF, os.strerror(errno.EBADF), "standard output")
        if not options.force:
            if decoding and source.isatty():
                raise UsageError("compressed data is not read from a terminal", do="use -f to")
            if not decoding and sys.stdout.isatty():
                raise UsageError("compressed data is not written to a terminal", do="use -f to")
        if options.test:
            for _ in _decoded(source, name):
                pass
            self._report(f"{_shown(name)}: OK")
            return
        out = sys.stdout.buffer
        try:
            if decoding:
                pieces = _decoded_or_copied if options.force and options.stdout else _decoded
                for piece in pieces(source, name):
                    out.write(piece)
            else:
                self._compress(source, out, lambda count: None)
        except OSError:
            finish_output()  # says so if that was what failed
            raise
        finish_output()

    def _compress(self, source: BinaryIO, out: BinaryIO, progress: Callable[[int], None]) -> bytes:
        """Returns the hash of what was read, made here and not by the writer."""
        chooser = self._choose()
        from blake3 import blake3

        from lmfs.container import DEFAULT_CHUNK_SIZE
        from lmfs.lmz import LmzWriter

        content = blake3()
        size = self._options.chunk_size
        size = DEFAULT_CHUNK_SIZE if size is None else size
        with LmzWriter(out, chooser=chooser, chunk_size=size, progress=progress) as writer:
            while piece := source.read(_PIECE_BYTES):
                content.update(piece)
                writer.write(piece)
        return content.digest()

    def _choose(self) -> Chooser:
        if self._chooser is None:
            self._chooser = self._new_chooser()
        return self._chooser

    def _new_chooser(self) -> Chooser:
        from lmfs.codecs.choose import Chooser, default_chooser
        from lmfs.codecs.levels import DEFAULT_LEVEL, LEVELS
        from lmfs.container import MAX_PRIMER_BYTES

        level, primer = self._options.level or DEFAULT_LEVEL, self._options.primer
        if primer is not None:
            if not 0 <= primer <= MAX_PRIMER_BYTES:
                raise UsageError("--primer", expected=f"0 to {MAX_PRIMER_BYTES} bytes", got=primer)
            if self._options.no_model or not LEVELS[level].mixer:
                raise UsageError("--primer", expected="a level from 3 on", got="zstd alone")
        if self._options.no_model:
            return Chooser()
        if LEVELS[level].model:
            from lmfs.engines import make_ahead
            from lmfs.models import registry

            make_ahead(registry.shipped)  # beside all else that is to be loaded
        return default_chooser(level, primer_bytes=primer)

    def _replace(self, path: Path) -> None:
        """A file by its compressed or decompressed self."""
        options = self._options
        target = self._target(path)
        with open(path, "rb", opener=_open_regular if options.force else _open_no_link) as source:
            before = os.fstat(source.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise _Warning("not a regular file -- ignored")
            if before.st_nlink > 1 and not options.force and not options.keep:
                raise _Warning(f"has {before.st_nlink - 1} other links -- unchanged")
            overwrite = options.force
            if os.path.lexists(target) and not overwrite:
                overwrite = self._may_overwrite(target)
                if not overwrite:
                    raise _Warning(_exists(target))
            try:
                with NewFile(target, overwrite=overwrite) as new:
                    self._fill(new, source, before, path)
            except FileExistsError:
                raise _Warning(_exists(target)) from None
        after = target.stat().st_size
        done = "created" if options.keep else "replaced with"
        if not options.keep:
            path.unlink()
        small, large = sorted((after, before.st_size))
        percent = f"{100 * small / large:.1f}%" if large else "-"
        self._report(f"{path}: {percent} -- {done} {target}")

    def _fill(self, new: NewFile, source: BinaryIO, before: os.stat_result, path: Path) -> None:
        """Write what is to replace a file, whose status was that before it was read."""
        options = self._options
        with _Progress(path.name, before.st_size, options.verbose) as progress:
            if options.decompress:
                at = 0
                for piece in _decoded(source, str(path)):
                    new.file.write(piece)
                    progress(source.tell() - at)
                    at = source.tell()
            else:
                expected = self._compress(source, new.file, progress)
                if not options.keep:
                    _verify(new.reopen(), expected, str(path))
        now = os.fstat(source.fileno())
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise LmfsError("the file changed while it was read", do="try again")
        new.file.flush()  # what is written later changes the times
        _copy_status(before, new.fileno())

    def _target(self, path: Path) -> Path:
        if not self._options.decompress:
            if path.suffix == SUFFIX and not self._options.force:
                raise _Warning(f"already has the {SUFFIX} suffix -- unchanged")
            return path.with_name(path.name + SUFFIX)
        if path.suffix != SUFFIX:
            raise _Warning("unknown suffix -- ignored")
        return path.with_name(path.name[: -len(SUFFIX)])

    def _may_overwrite(self, target: Path) -> bool:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        print(f"{self._program}: {target} already exists; overwrite (y or n)? ", end="", flush=True)
        return sys.stdin.readline().strip().lower().startswith("y")

    def _report(self, message: str) -> None:
        if self._options.verbose:
            print(message, file=sys.stderr)

    def _list(self, name: str) -> None:
        from lmfs.lmz import LmzReader

        source = _standard_input() if name == "-" else name
        if not isinstance(source, str) and not source.seekable():
            raise UsageError("a pipe cannot be listed", do="give the file's name")
        with LmzReader(source) as reader:
            codecs = reader.statistics()
            shares = [
                f"{codec} {100 * s.bytes_before / reader.size:.0f}%" for codec, s in codecs.items()
            ]
            self._rows.append(
                (reader.stored_bytes, reader.size, " ".join(shares) or "-", _shown(name))
            )

    def _print_table(self) -> None:
        rows = list(self._rows)
        if len(rows) > 1:
            rows.append((sum(r[0] for r in rows), sum(r[1] for r in rows), "", "(totals)"))
        table = [("compressed", "uncompressed", "ratio", "codecs", "name")]
        for stored, size, codecs, name in rows:
            ratio = f"{size / stored:.2f}" if stored else "-"
            table.append((str(stored), str(size), ratio, codecs, name))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table if not self._options.quiet else table[1:]:
            numbers = [cell.rjust(width) for cell, width in zip(row[:3], widths, strict=False)]
            print("  ".join([*numbers, row[3].ljust(widths[3]), row[4]]))


def _verify(written: BinaryIO, expected: bytes, name: str) -> None:
    """Decode what is to replace a file that will be deleted, and compare.

    raises: VerifyError
    """
    from lmfs.lmz import LmzReader

    try:
        with written, LmzReader(written) as reader:
            reader.verify()
            got = [member.content_hash for member in reader.members]
    except LmfsError as error:
        raise VerifyError("does not decode", where=name, got=error, do="report this") from error
    if got != [expected]:
        raise VerifyError("does not decode to the file", where=name, do="check the disk")


def _exists(target: Path) -> str:
    return f"{target} already exists; not overwritten"


def _standard_input() -> BinaryIO:
    if sys.stdin is None:  # closed by who started this
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return sys.stdin.buffer


def _shown(name: str) -> str:
    return "(standard input)" if name == "-" else name


def _decoded(source: BinaryIO, name: str) -> Iterator[bytes]:
    _make_engine_ahead(source)
    from lmfs.lmz import stream_decode

    return stream_decode(source, name=_shown(name))


def _make_engine_ahead(source: BinaryIO) -> None:
    """Begin with the engine that a container's header asks for, beside all else to be loaded."""
    from lmfs.container import HEADER_PREFIX, CodecId, header_length, parse_header

    beginning = source.peek() if isinstance(source, io.BufferedReader) else b""
    try:
        header = parse_header(beginning[: header_length(beginning[: HEADER_PREFIX.size])])
    except LmfsError:
        return  # whoever reads on will tell
    models = {coding.model_id for coding in header.codings if coding.codec is CodecId.LM}
    if len(models) == 1 and (model_id := models.pop()) is not None:
        from lmfs.engines import make_ahead
        from lmfs.models import registry

        make_ahead(lambda: registry.find(model_id))


def _decoded_or_copied(source: BinaryIO, name: str) -> Iterator[bytes]:
    """As `zcat -f`: what is no container passes as it is."""
    from lmfs.container import MAGIC_BYTES, sniff

    peeked = source.peek(MAGIC_BYTES) if hasattr(source, "peek") else b""
    if sniff(peeked) is not None:
        yield from _decoded(source, name)
        return
    while piece := source.read(_PIECE_BYTES):
        yield piece


def _open_regular(path: str, flags: int) -> int:
    if stat.S_ISDIR(os.stat(path).st_mode):
        raise _Warning("is a directory -- ignored")
    # Does not wait for the writer of a FIFO, which is then refused as no regular file.
    return os.open(path, flags | os.O_NONBLOCK)


def _open_no_link(path: str, flags: int) -> int:
    if os.path.islink(path):
        raise _Warning("is a symbolic link -- ignored")
    return _open_regular(path, flags | os.O_NOFOLLOW)


def _copy_status(status: os.stat_result, descriptor: int) -> None:
    """Give an open file another's owner, mode and times."""
    mode = stat.S_IMODE(status.st_mode)
    try:
        os.fchown(descriptor, status.st_uid, status.st_gid)
    except PermissionError:
        # Not the owner's any more: nor may it lend the owner's rights.
        mode &= 0o777
    os.fchmod(descriptor, mode)
    os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))


class _Progress:
    """A line on a terminal about work that takes more than two seconds."""

    def __init__(self, name: str, total: int, wanted: bool) -> None:
        self._name, self._total = name, total
        self._wanted = wanted and sys.stderr.isatty()
        self._done = 0
        self._began = self._shown_at = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __call__(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if not self._wanted or now - self._began < 2 or now - self._shown_at < 0.5:
            return
        self._shown_at = now
        rate = self._done / (now - self._began)
        left = (self._total - self._done) / rate
        print(
            f"\r{self._name}: {self._done / max(1, self._total):.0%}, {rate / 1000:.0f} kB/s, "
            f"{left:.0f} s left \x1b[K",
            end="",
            file=sys.stderr,
            flush=True,
        )

    def __exit__(self, *details: object) -> None:
        if self._shown_at != self._began:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
