"""Shared fixtures, and which tests this machine can run.

tests/test_learning.py and test_training.py need torch: they are collected where torch is
installed, and with --with-train it is an error if torch is not (tools/test gives that in CI).
"""

from __future__ import annotations

import importlib.util
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
from backing import Backing

import lmfs.cli
from lmfs.models.package import ModelPackage
from lmfs.vfs import Vfs

DATA = pathlib.Path(__file__).with_name("data")
HAS_TORCH = importlib.util.find_spec("torch") is not None

collect_ignore = [] if HAS_TORCH else ["test_learning.py", "test_training.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--with-train", action="store_true", help="fail if torch is not installed")
    parser.addoption("--flips", type=int, default=40, help="of bits, in the bit rot test")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--with-train") and not HAS_TORCH:
        raise pytest.UsageError("--with-train: torch is not installed")


@pytest.fixture(scope="session")
def data() -> pathlib.Path:
    """The committed test files."""
    return DATA


@pytest.fixture(scope="session")
def tiny() -> ModelPackage:
    """A very small exact model, so that tests that need one are quick."""
    return ModelPackage.load(DATA / "tiny.lmm")


@pytest.fixture
def backing(tmp_path: pathlib.Path) -> Iterator[Backing]:
    """An empty store."""
    backing = Backing(tmp_path / "b")
    yield backing
    backing.close()


@pytest.fixture
def vfs(backing: Backing) -> Iterator[Vfs]:
    """The tree of that store."""
    vfs = Vfs(backing.store)
    yield vfs
    vfs.close()


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of one megabyte."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in this process: (exit code, output, messages)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lmfs", *map(str, arguments)])
        try:
            lmfs.cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run
