"""The filter keeps gzip's habits, and tar can use it."""

from __future__ import annotations

import io
import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmfs import lmz
from lmfs.cli import lmz as cli
from lmfs.codecs.choose import Chooser
from lmfs.store.new_file import NewFile

TEXT = b"".join(b"%d bottles of beer on the wall\n" % n for n in range(3000))


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    """A folder with the console scripts, as an installation makes them, without the model."""
    folder = tmp_path_factory.mktemp("bin")
    for name in ("lmz", "unlmz", "lmzcat"):
        script = folder / name
        script.write_text(
            f"#!{sys.executable}\nimport sys\nfrom lmfs.cli.lmz import main\nsys.exit(main())\n"
        )
        script.chmod(0o755)
    return folder


@pytest.fixture
def run(programs, tmp_path):
    """Runs a program in tmp_path; answers status, standard output and standard error."""

    def run(*command: str, stdin: bytes = b"", **options) -> tuple[int, bytes, str]:
        environment = dict(os.environ, PATH=f"{programs}:{os.environ['PATH']}")
        done = subprocess.run(
            command,
            input=None if "stdin_file" in options else stdin,
            stdin=options.pop("stdin_file", None),
            capture_output=True,
            cwd=tmp_path,
            env=environment,
            timeout=60,
            check=False,
            **options,
        )
        stderr = done.stderr.decode()
        assert "Traceback" not in stderr
        return done.returncode, done.stdout, stderr

    return run


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "beer.txt"
    path.write_bytes(TEXT)
    path.chmod(0o640)
    os.utime(path, ns=(10**18, 10**18 + 7))
    return path


def packed(data: bytes) -> bytes:
    return lmz.compress(data, chooser=Chooser(zstd_level=1))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_comes_back(run, file, tmp_path):
    assert run("lmz", "--no-model", "beer.txt") == (0, b"", "")
    assert names(tmp_path) == ["beer.txt.lmz"]
    stat = (tmp_path / "beer.txt.lmz").stat()
    assert (stat.st_mode & 0o777, stat.st_mtime_ns) == (0o640, 10**18 + 7)
    assert stat.st_size < len(TEXT) / 3
    assert run("unlmz", "beer.txt.lmz") == (0, b"", "")
    assert names(tmp_path) == ["beer.txt"]
    assert file.read_bytes() == TEXT
    assert (file.stat().st_mode & 0o777, file.stat().st_mtime_ns) == (0o640, 10**18 + 7)


def test_keep_and_stdout_leave_the_file(run, file, tmp_path):
    assert run("lmz", "--no-model", "-kv", "beer.txt")[2].startswith("beer.txt: ")
    assert names(tmp_path) == ["beer.txt", "beer.txt.lmz"]
    for command in (["lmzcat"], ["lmz", "-dc"], ["unlmz", "-c"]):
        assert run(*command, "beer.txt.lmz") == (0, TEXT, "")
    code, out, _ = run("lmz", "--no-model", "-c", "beer.txt")
    assert (code, lmz.decompress(out)) == (0, TEXT)
    assert names(tmp_path) == ["beer.txt", "beer.txt.lmz"]


def test_pipes(run):
    code, out, errors = run("lmz", "--no-model", stdin=TEXT)
    assert (code, errors) == (0, "")
    assert run("lmz", "-d", stdin=out) == (0, TEXT, "")
    assert run("lmzcat", "-", stdin=out + out) == (0, TEXT + TEXT, "")
    assert run("lmz", "-9", "-d", "-T4", stdin=out) == (0, TEXT, "")
    assert run("lmz", "--no-model", "-1", "--threads", "2", stdin=b"")[0] == 0
    assert run("lmz", "-t", stdin=out) == (0, b"", "")
    assert "OK" in run("lmz", "-tv", stdin=out)[2]


def test_the_model_is_used_unless_it_is_not_wanted(run, data, tmp_path):
    text = (data / "alice29.txt").read_bytes()[2000:3000]
    code, out, errors = run("lmz", stdin=text)
    assert (code, errors) == (0, "")
    with lmz.LmzReader(io.BytesIO(out)) as reader:
        assert "lm" in reader.statistics()
    assert run("lmz", "-d", stdin=out) == (0, text, "")
    without = run("lmz", "--no-model", "--chunk-size", "1K", stdin=text)[1]
    with lmz.LmzReader(io.BytesIO(without)) as reader:
        assert reader.statistics().keys() == {"zstd"}
        assert reader.members[0].header.chunk_size == 1024


def test_chunks_follow_as_much_as_is_asked_for(run, data):
    log = (data / "dpkg.log").read_bytes()[:150_000]
    sizes = []
    for primer in ("0", "16K", "100K"):
        code, out, errors = run("lmz", "-4", "--primer", primer, stdin=log)
        assert (code, errors) == (0, "")
        assert run("lmz", "-d", stdin=out) == (0, log, "")
        with lmz.LmzReader(io.BytesIO(out)) as reader:
            assert reader.members[0].header.primer_bytes == int(primer.rstrip("K")) << 10
        sizes.append(len(out))
    assert sizes[0] > 1.2 * sizes[1] > 1.25 * sizes[2]


def test_what_is_no_lmz_is_an_error_and_stays(run, file, tmp_path):
    (tmp_path / "fake.lmz").write_bytes(b"plain")
    (tmp_path / "cut.lmz").write_bytes(packed(TEXT)[:-1])
    code, out, errors = run("lmz", "-d", "fake.lmz", "cut.lmz", "absent.lmz")
    assert (code, out) == (1, b"")
    assert "fake.lmz: not an .lmz" in errors
    assert "cut.lmz: the end is missing" in errors
    assert "absent.lmz: No such file" in errors
    assert names(tmp_path) == ["beer.txt", "cut.lmz", "fake.lmz"]
    assert run("lmz", "-t", "cut.lmz")[0] == 1
    assert run("lmz", "-t", "-qq", "cut.lmz") == (1, b"", "")
    assert run("lmz", "-d", stdin=b"")[0] == 1
    assert run("lmz", "-dcf", "beer.txt") == (0, TEXT, "")


def test_warnings(run, file, tmp_path):
    (tmp_path / "x.lmz").write_bytes(packed(b"x"))
    (tmp_path / "beer.txt.lmz").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("beer.txt")
    (tmp_path / "other").write_bytes(b"x")
    os.link(tmp_path / "other", tmp_path / "twin")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    before = names(tmp_path)
    for arguments, message in (
        (["beer.txt"], "already exists"),
        (["x.lmz"], "already has the .lmz suffix"),
        (["-d", "beer.txt"], "unknown suffix"),
        (["link"], "symbolic link"),
        (["twin"], "1 other links"),
        (["folder"], "is a directory"),
        (["fifo"], "not a regular file"),
    ):
        code, _, errors = run("lmz", "--no-model", *arguments)
        assert code == 2, arguments
        assert message in errors
        assert run("lmz", "--no-model", "-q", *arguments) == (2, b"", "")
    assert names(tmp_path) == before
    assert (tmp_path / "beer.txt.lmz").read_bytes() == b"mine"
    assert run("lmz", "--no-model", "-f", "beer.txt", "twin")[0] == 0
    assert run("lmz", "--no-model", "absent", "folder")[0] == 1


def test_bad_arguments(run):
    for arguments in (
        ["--nonsense"],
        ["--chunk-size", "0"],
        ["--chunk-size", "x"],
        ["-T", "x"],
        ["-T", "-1"],
        ["-T", "257"],
        ["--primer", "x"],
        ["--primer", "17M"],
        ["-3", "--primer", "-1"],
        ["--primer", "1M"],  # with zstd alone nothing follows anything
    ):
        code, out, errors = run("lmz", "--no-model", *arguments, stdin=b"abc")
        assert (code, out) == (1, b"")
        assert errors
    assert run("lmz", "--help")[0] == 0
    assert run("lmz", "--version")[:2] == (0, b"lmz (lmfs) 0.1.0\n")


def test_as_many_threads_as_are_asked_for():
    """In a process of its own: how many of lmfs's threads have coded."""
    code = (
        "import io, sys, threading\n"
        "from lmfs.cli.lmz import run\n"
        "sys.stdin = io.TextIOWrapper(io.BytesIO(b'text ' * 100_000))\n"
        "sys.stdout = io.TextIOWrapper(io.BytesIO())\n"
        "assert run('lmz', ['--no-model', '--chunk-size', '4K', *sys.argv[1:]]) == 0\n"
        "names = [thread.name for thread in threading.enumerate()]\n"
        "print(sum(name.startswith('lmfs-codec') for name in names), file=sys.stderr)\n"
    )
    cores = len(os.sched_getaffinity(0))
    for arguments, threads in (["-T3"], 3), (["-T", "1"], 1), (["--threads=0"], cores), ([], cores):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stderr == f"{threads}\n", arguments


def test_listing(run, tmp_path):
    noise = random.Random(1).randbytes(20000)
    for name, data in (("a.lmz", TEXT), ("b.lmz", noise), ("c.lmz", b"")):
        (tmp_path / name).write_bytes(packed(data))
    code, out, errors = run("lmz", "-l", "a.lmz", "b.lmz", "c.lmz")
    assert (code, errors) == (0, "")
    rows = [line.split() for line in out.decode().splitlines()]
    assert rows[0] == ["compressed", "uncompressed", "ratio", "codecs", "name"]
    assert rows[1][1::2] == [str(len(TEXT)), "zstd", "a.lmz"]
    assert rows[2][1:] == ["20000", "0.99", "raw", "100%", "b.lmz"]
    assert rows[3][1:] == ["0", "0.00", "-", "c.lmz"]
    assert rows[4][1] == str(len(TEXT) + 20000)
    with open(tmp_path / "a.lmz", "rb") as file:
        assert b"(standard input)" in run("lmz", "-l", stdin_file=file)[1]
    assert run("lmz", "-l", stdin=packed(b"x"))[0] == 1


def test_a_terminal_gets_no_binary(programs):
    ours, theirs = pty.openpty()
    try:
        for arguments, message in (
            (["--no-model"], b"not written to a terminal"),
            (["-d"], b"not read from a terminal"),
        ):
            done = subprocess.run(
                [programs / "lmz", *arguments],
                stdin=theirs if "-d" in arguments else subprocess.DEVNULL,
                stdout=theirs,
                stderr=subprocess.PIPE,
                timeout=60,
                check=False,
            )
            assert done.returncode == 1
            assert message in done.stderr
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_original_and_nothing_else(programs, tmp_path, number):
    path = tmp_path / "noise"
    path.write_bytes(random.Random(1).randbytes(1 << 20) * 30)
    process = subprocess.Popen(
        [programs / "lmz", "--no-model", path],
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A shell that runs the tests in the background has SIGINT ignored, which is inherited.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while len(names(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -number
    assert errors == b""
    assert names(tmp_path) == ["noise"]


def test_a_reader_that_stops_is_no_error(run, tmp_path):
    (tmp_path / "x.lmz").write_bytes(packed(TEXT * 30))
    code, out, errors = run("bash", "-c", "lmzcat x.lmz | head -c 10; echo ${PIPESTATUS[0]}")
    assert (code, errors) == (0, "")
    assert out == TEXT[:10] + b"141\n"


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize(
    "command",
    ["lmz --no-model -c beer.txt", "lmzcat x.lmz", "lmz -l x.lmz", "lmz -V", "lmz --help"],
)
def test_an_output_that_takes_nothing(run, file, tmp_path, monkeypatch, command, buffered):
    """Python would try once more when it exits, complain in its own words, and answer with 120."""
    (tmp_path / "x.lmz").write_bytes(packed(TEXT[:100]))
    # Unbuffered, argparse itself keeps quiet about its help.
    monkeypatch.setenv("PYTHONUNBUFFERED", "" if "--help" in command else buffered)
    code, _, errors = run("bash", "-c", f"{command} > /dev/full")
    assert (code, errors.count("\n")) == (1, 1)
    assert errors.startswith(command.split()[0])
    assert errors.endswith(": No space left on device\n")


@pytest.mark.parametrize("command", ["lmz -c beer.txt >&-", "lmzcat x.lmz >&-"])
def test_an_output_that_is_closed(run, file, tmp_path, command):
    (tmp_path / "x.lmz").write_bytes(packed(TEXT[:100]))
    expected = f"{command.split()[0]}: standard output: Bad file descriptor\n"
    assert run("bash", "-c", command) == (1, b"", expected)


@pytest.mark.parametrize("command", ["lmz", "lmz -t", "lmz -l"])
def test_an_input_that_is_closed(run, command):
    expected = "lmz: (standard input): Bad file descriptor\n"
    assert run("bash", "-c", f"{command} <&-")[::2] == (1, expected)


def test_who_only_tests_needs_no_output(run, tmp_path):
    (tmp_path / "x.lmz").write_bytes(packed(TEXT))
    assert run("bash", "-c", "lmz -t x.lmz >&-") == (0, b"", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_does_not_wait_for_a_reader_that_does_not_read(programs, tmp_path, number):
    """Not even for what Python has buffered, where chunks are small."""
    whole = lmz.compress(TEXT * 3, chunk_size=1000, chooser=Chooser(zstd_level=1))
    (tmp_path / "x.lmz").write_bytes(whole)
    environment = dict(os.environ, PYTHONUNBUFFERED="")
    process = subprocess.Popen(
        [programs / "lmzcat", tmp_path / "x.lmz"],
        stdout=subprocess.PIPE,
        env=environment,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # as above
    )
    with process:
        deadline = time.monotonic() + 30
        while "pipe_write" not in Path(f"/proc/{process.pid}/wchan").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        try:
            assert process.wait(10) == -number
        finally:
            process.kill()


def test_what_was_read_before_an_error_is_written(run, tmp_path, monkeypatch):
    whole = lmz.compress(TEXT, chunk_size=1000, chooser=Chooser(zstd_level=1))
    (tmp_path / "x.lmz").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setenv("PYTHONUNBUFFERED", "")
    code, out, errors = run("lmzcat", "x.lmz")
    assert (code, errors.count("\n")) == (1, 1)
    assert len(out) > 1000
    assert TEXT.startswith(out)


def test_a_full_disk_leaves_the_original(run, file, tmp_path):
    code, _, errors = run("bash", "-c", "ulimit -f 1; trap '' XFSZ; lmz --no-model beer.txt")
    assert code == 1
    assert "File too large" in errors
    assert names(tmp_path) == ["beer.txt"]


def test_an_input_is_not_deleted_unless_its_replacement_decodes(
    file, tmp_path, monkeypatch, capsys
):
    """A disk that changes a byte behind our back, in what will be the only copy."""
    right = NewFile.reopen

    def reopen(self):
        written = right(self)
        with open(written.name, "r+b") as disk:
            disk.seek(200)
            byte = disk.read(1)
            disk.seek(200)
            disk.write(bytes([byte[0] ^ 1]))
        return written

    before = file.read_bytes()
    monkeypatch.setattr(NewFile, "reopen", reopen)
    assert cli.run("lmz", ["--no-model", str(file)]) == 1
    assert "does not decode" in capsys.readouterr().err
    assert names(tmp_path) == [file.name]
    assert file.read_bytes() == before


def test_tar(run, tmp_path):
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    for i in range(20):
        (tree / "deep" / f"{i}.txt").write_bytes(TEXT[: i * 1000])
    (tree / "noise").write_bytes(random.Random(2).randbytes(50000))
    assert run("tar", "-I", "lmz --no-model -9", "-cf", "tree.tar.lmz", "tree") == (0, b"", "")
    assert lmz.LmzReader(tmp_path / "tree.tar.lmz").size > 200000
    listed = run("tar", "-I", "lmz", "-tf", "tree.tar.lmz")
    assert listed[0] == 0
    assert b"tree/deep/19.txt\n" in listed[1]
    os.rename(tree, tmp_path / "original")
    assert run("tar", "-I", "lmz --no-model -9", "-xf", "tree.tar.lmz") == (0, b"", "")
    assert run("diff", "-r", "tree", "original") == (0, b"", "")
    whole = (tmp_path / "tree.tar.lmz").read_bytes()
    (tmp_path / "tree.tar.lmz").write_bytes(whole[:30000])
    code, _, errors = run("tar", "-I", "lmz", "-xf", "tree.tar.lmz")
    assert code == 2
    assert "lmfs recover" in errors
