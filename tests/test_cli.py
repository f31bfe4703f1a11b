"""The command line: what it prints, what it exits with, and that it never shows a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from backing import CHUNK, text

import lmfs.cli
from lmfs.cli.app import COMMANDS
from lmfs.cli.mount import parse_options
from lmfs.codecs.choose import Chooser
from lmfs.errors import UsageError
from lmfs.lmz import compress
from lmfs.store import copying
from lmfs.store.marks import State

DATA = text(20 * CHUNK + 5)


class TestHelp:
    def test_version(self, run):
        code, out, _ = run("--version")
        assert code == 0
        assert out.startswith("lmfs 0.")

    def test_help_teaches(self, run):
        code, out, _ = run("--help")
        assert code == 0
        for word in (*COMMANDS, "A first round", "Exit codes"):
            assert word in out

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_has_help(self, run, command):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert f"lmfs {command}" in out

    def test_without_arguments(self, run):
        code, out, err = run()
        assert code in (0, 2)
        assert "freeze" in out + err

    def test_an_unknown_command(self, run):
        code, _, err = run("nonsense")
        assert code == 2
        assert "nonsense" in err

    @pytest.mark.parametrize("buffered", ["", "1"])
    @pytest.mark.parametrize("command", ["--version", "--help", "model list"])
    def test_an_output_that_takes_nothing(self, command, buffered):
        """As tests/test_cli_lmz.py has it."""
        for target, expected in (
            (">/dev/full", "lmfs: No space left on device\n"),
            ("| true; exit ${PIPESTATUS[0]}", ""),
        ):
            done = subprocess.run(
                ["bash", "-c", f"{sys.executable} -m lmfs {command} {target}"],
                env=os.environ | {"PYTHONUNBUFFERED": buffered},
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            assert done.returncode == 1
            assert done.stderr.replace("standard output: ", "") == expected

    def test_as_a_module(self):
        done = subprocess.run(
            [sys.executable, "-m", "lmfs", "--version"], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("lmfs ")


class TestFreezeAndThaw:
    def test_a_directory(self, run, backing):
        backing.write("a", DATA)
        backing.write("d/b", DATA)
        backing.write("d/small", b"x")
        code, out, err = run("freeze", "--no-model", backing.path)
        assert (code, err) == (0, "")
        assert "froze 2 files:" in out
        assert "left 1: takes one block already" in out
        assert f"lmfs mount {backing.path}" in out
        assert backing.facts("d/b").state is State.FROZEN
        code, out, err = run("thaw", "-v", backing.path / "d")
        assert (code, err) == (0, "")
        assert "thawed 1 file:" in out
        assert f"{backing.path}/d/b: thawed," in out
        assert "lmfs mount" not in out
        assert (backing.path / "d" / "b").read_bytes() == DATA
        assert backing.facts("a").state is State.FROZEN

    def test_a_directory_becomes_a_store(self, run, tmp_path):
        (tmp_path / "f").write_bytes(DATA)
        code, out, _ = run("freeze", "--no-model", "--chunk-size", 8192, tmp_path / "f")
        assert code == 0
        assert "froze 1 file:" in out
        assert (tmp_path / ".lmfs").is_dir()
        code, out, _ = run("status", "--json", tmp_path)
        codecs = json.loads(out)["codecs"].values()
        assert sum(share["chunks"] for share in codecs) == -(-len(DATA) // 8192)

    def test_a_named_file_that_is_left_alone_says_why(self, run, backing):
        path = backing.write("f", b"x")
        code, out, _ = run("freeze", "--no-model", path)
        assert code == 0
        assert f"{path}: left as it is: takes one block already" in out

    def test_thawing_outside_a_store(self, run, tmp_path):
        (tmp_path / "f").write_bytes(DATA)
        code, _, err = run("thaw", tmp_path / "f")
        assert code == 3
        assert "not in a store" in err
        assert not (tmp_path / ".lmfs").exists()

    def test_one_error_does_not_stop_the_others(self, run, backing, tmp_path):
        damaged = backing.write_frozen("a", DATA)
        os.truncate(damaged, 5000)
        backing.write_frozen("b", DATA)
        code, out, err = run("thaw", tmp_path / "nothing", backing.path)
        assert code == 1  # of the first error
        assert "No such file" in err
        assert f"{backing.path}/a" in err
        assert "thawed 1 file" in out
        assert run("thaw", backing.path)[0] == 5

    def test_a_wrong_chunk_size(self, run, backing):
        path = backing.write("f", DATA)
        code, _, err = run("freeze", "--no-model", "--chunk-size", 0, path)
        assert code == 2
        assert "chunk size" in err
        assert path.read_bytes() == DATA
        assert backing.leftovers() == []

    def test_leftovers_are_swept(self, run, backing):
        backing.write("d/" + backing.store.new_temporary_name(1), b"")
        backing.write("d/f", DATA)
        assert run("freeze", "--no-model", backing.path / "d" / "f")[0] == 0
        assert backing.leftovers() == []


class TestCp:
    def test_a_directory(self, run, backing, tmp_path):
        os.utime(backing.write("d/hot", b"hot"), (5, 6))
        frozen = backing.write_frozen("d/e/frozen", DATA)
        os.chmod(frozen, 0o640)
        os.setxattr(frozen, "user.kept", b"1")
        backing.write("elsewhere", b"x")
        before = {p.name: p.read_bytes() for p in backing.path.rglob("*") if p.is_file()}
        code, out, err = run("cp", backing.path / "d", tmp_path / "out")
        assert (code, err) == (0, "")
        assert "copied 2 files:" in out
        copies = tmp_path / "out"
        assert {str(p.relative_to(copies)) for p in copies.rglob("*")} == {"hot", "e", "e/frozen"}
        copy = copies / "e" / "frozen"
        assert (copy.read_bytes(), (copies / "hot").read_bytes()) == (DATA, b"hot")
        assert copy.stat().st_mode & 0o7777 == 0o640
        assert copy.stat().st_mtime_ns == frozen.stat().st_mtime_ns
        assert (copies / "hot").stat().st_mtime == 6
        assert os.listxattr(copy) == ["user.kept"]
        # Nothing of the store has changed; and into a directory that exists.
        assert before == {p.name: p.read_bytes() for p in backing.path.rglob("*") if p.is_file()}
        (tmp_path / "more").mkdir()
        code, _, _ = run("cp", backing.path / "d", backing.path / "elsewhere", tmp_path / "more")
        assert code == 0
        assert (tmp_path / "more" / "d" / "e" / "frozen").read_bytes() == DATA
        assert (tmp_path / "more" / "elsewhere").read_bytes() == b"x"

    def test_one_file_by_another_name(self, run, backing, tmp_path):
        code, out, _ = run("cp", "-v", backing.write_frozen("a", DATA), tmp_path / "copy")
        assert code == 0
        assert "copied," in out
        assert (tmp_path / "copy").read_bytes() == DATA

    def test_nothing_is_overwritten(self, run, backing, tmp_path):
        path = backing.write_frozen("a", DATA)
        (tmp_path / "dir").mkdir()
        (tmp_path / "dir" / "a").write_bytes(b"mine")
        code, _, err = run("cp", path, tmp_path / "dir")
        assert code == 2
        assert "file exists" in err
        assert (tmp_path / "dir" / "a").read_bytes() == b"mine"
        assert [p.name for p in (tmp_path / "dir").iterdir()] == ["a"]
        assert run("cp", path, path, tmp_path / "none")[0] == 2  # several, and no directory

    def test_a_name_that_is_taken_meanwhile(self, run, backing, tmp_path, monkeypatch):
        path, real = backing.write_frozen("a", DATA), os.link

        def late(source, target):
            (tmp_path / "copy").write_bytes(b"mine")
            real(source, target)

        monkeypatch.setattr(os, "link", late)
        assert run("cp", path, tmp_path / "copy")[0] == 2
        assert (tmp_path / "copy").read_bytes() == b"mine"
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".copy.")]

    def test_a_damaged_file_has_no_copy(self, run, backing, tmp_path):
        path = backing.write_frozen("a", DATA)
        blob = bytearray(path.read_bytes())
        blob[len(blob) // 2] ^= 1
        path.write_bytes(blob)
        backing.write("h", b"hot")
        code, _, err = run("cp", backing.path, tmp_path / "out")
        assert code == 5
        assert "a" in err
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["h"]

    def test_what_is_not_read_back_has_no_copy(self, run, backing, tmp_path, monkeypatch):
        monkeypatch.setattr(copying, "digest_of", lambda fd: b"other")
        code, _, err = run("cp", backing.write_frozen("a", DATA), tmp_path / "copy")
        assert code == 11
        assert "there is no copy" in err
        assert not [p for p in tmp_path.iterdir() if "copy" in p.name]


class TestStatus:
    def test_the_account(self, run, backing):
        backing.write_frozen("a", DATA)
        backing.write("h", b"hot")
        package = backing.path / "m"
        package.write_bytes(bytes(1000))
        backing.store.pin_model(b"\1" * 16, package)
        package.unlink()
        code, out, _ = run("status", backing.path)
        assert code == 0
        assert "zstd" in out
        assert "hot: 1 file, 3 bytes" in out
        assert "models: 1, 1.0 kB" in out
        code, out, _ = run("status", "--json", backing.path)
        account = json.loads(out)
        stored = (backing.path / "a").stat()
        assert account["frozen_files"] == 1
        assert account["frozen_before"] == len(DATA)
        assert account["frozen_after"] == stored.st_size
        assert account["frozen_on_disk"] == stored.st_blocks * 512
        assert sum(share["before"] for share in account["codecs"].values()) == len(DATA)
        assert 0 < stored.st_size - sum(s["after"] for s in account["codecs"].values()) < 500
        assert account["models"] == {"01" * 16: 1000}
        assert account["break_even_bytes"] is None

    def test_damage(self, run, backing):
        os.truncate(backing.write_frozen("a", DATA), 6000)
        stored_path = backing.write_frozen("b", DATA)
        stored = bytearray(stored_path.read_bytes())
        stored[20] ^= 1
        stored_path.write_bytes(stored)
        code, out, _ = run("status", backing.path)
        assert code == 5
        assert "damaged: a: no whole trailer" in out
        assert "damaged: b: header" in out

    def test_outside(self, run, tmp_path):
        code, _, err = run("status", tmp_path)
        assert code == 3
        assert "not in a store" in err


def test_break_even():
    from lmfs.store.account import Account, CodecShare

    account = Account(models={b"m": 1000}, codecs={"lm": CodecShare(1, 1, 100, 20)})
    assert account.break_even_bytes() == 1250
    account.codecs["lm"].after = 100
    assert account.break_even_bytes() is None


class TestRecover:
    def test_a_cut_off_archive(self, run, tmp_path):
        source, target = tmp_path / "a.lmz", tmp_path / "out"
        source.write_bytes(compress(DATA, chunk_size=CHUNK, chooser=Chooser(None)))
        os.truncate(source, source.stat().st_size // 2)
        code, out, err = run("recover", source, "-o", target)
        assert code == 5
        got = target.read_bytes()
        assert len(got) >= 5 * CHUNK
        assert DATA.startswith(got)
        assert "saved" in out
        assert "lost" in err

    def test_a_frozen_file_with_a_bad_chunk(self, run, backing, tmp_path):
        path = backing.write_frozen("f", DATA)
        stored = bytearray(path.read_bytes())
        stored[len(stored) // 2] ^= 1
        path.write_bytes(stored)
        target = tmp_path / "out"
        code, _, err = run("recover", path, "-o", target)
        assert code == 5
        assert "lost: 4,096 bytes" in err
        got = target.read_bytes()
        assert len(got) == len(DATA)
        differ = [
            i for i in range(0, len(DATA), CHUNK) if got[i : i + CHUNK] != DATA[i : i + CHUNK]
        ]
        assert len(differ) == 1

    def test_a_whole_file(self, run, tmp_path):
        source, target = tmp_path / "a.lmz", tmp_path / "out"
        source.write_bytes(compress(DATA, chooser=Chooser(None)))
        assert run("recover", source, "-o", target)[0] == 0
        assert target.read_bytes() == DATA

    def test_nothing_is_overwritten(self, run, tmp_path):
        source, target = tmp_path / "a.lmz", tmp_path / "out"
        source.write_bytes(compress(DATA, chooser=Chooser(None)))
        target.write_bytes(b"mine")
        code, _, err = run("recover", source, "-o", target)
        assert code == 2
        assert "file exists" in err
        assert target.read_bytes() == b"mine"

    def test_not_an_lmz(self, run, tmp_path):
        (tmp_path / "a").write_bytes(DATA)
        code, _, _ = run("recover", tmp_path / "a", "-o", tmp_path / "out")
        assert code == 3
        assert not (tmp_path / "out").exists()


class TestModel:
    def test_verify(self, run, tiny):
        code, out, _ = run("model", "verify", tiny.path)
        assert code == 0
        assert tiny.id.hex() in out
        assert "golden vectors" in out

    def test_verify_something_else(self, run, tmp_path):
        (tmp_path / "m.lmm").write_bytes(b"not a zip")
        code, _, err = run("model", "verify", tmp_path / "m.lmm")
        assert code == 7
        assert "not a model package" in err


class TestTop:
    """The one place where errors become messages."""

    def fails_with(self, monkeypatch, error):
        def fail(**_):
            raise error

        monkeypatch.setattr("lmfs.cli.app.app", fail)

    def test_an_interrupt(self, run, monkeypatch):
        self.fails_with(monkeypatch, KeyboardInterrupt())
        assert run() == (130, "", "")

    def test_an_error_of_the_system(self, run, monkeypatch):
        self.fails_with(monkeypatch, OSError(28, "No space left on device", "/a"))
        assert run() == (1, "", "lmfs: /a: No space left on device\n")

    def test_a_bug(self, monkeypatch, capsys):
        self.fails_with(monkeypatch, ZeroDivisionError("oh"))
        with pytest.raises(SystemExit) as end:
            lmfs.cli.main()
        assert end.value.code == 70
        said = capsys.readouterr().err
        assert "this is a bug" in said
        assert "Traceback" not in said


class TestMountOptions:
    def test_options(self):
        given = "rw,ro,cachesize=8,threads=1,allow_other,nofail,x-systemd.automount,noexec"
        assert parse_options(given) == {
            "ro": True,
            "cachesize": "8",
            "threads": "1",
            "allow_other": True,
            "noexec": True,
        }
        assert parse_options("") == {}

    @pytest.mark.parametrize(
        "option",
        [
            "nonsense",
            "cachesize",
            "cachesize=x",
            "ro=1",
            "fsname=x",
            "threads=0",
            "threads",
            "threads=257",
        ],
    )
    def test_unknown_options(self, option):
        with pytest.raises(UsageError, match="mount option"):
            parse_options(option)
