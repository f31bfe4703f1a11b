"""Imports go down the layers only, and `import lmfs` loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lmfs
from lmfs import lmz

ROOT = Path(lmfs.__file__).parent
LAYERS = {
    "errors": 0,
    "types": 0,
    "container": 1,
    "layout": 1,
    "pages": 1,
    "native": 1,
    "profile": 1,
    "tokenizer": 1,
    "zstd_blob": 1,
    "codecs": 2,
    "engines": 2,
    "models": 2,
    "lmz": 3,
    "store": 4,
    "vfs": 4,
    "archive": 4,
    "fuse": 5,
    "cli": 6,
    "__main__": 6,
}
# Who may import what is heavy.
HEAVY = {
    "onnxruntime": ("engines", "models"),
    "onnx": ("engines", "models"),
    "mfusepy": ("fuse",),
    "torch": (),
    "transformers": (),
}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imported(path: Path) -> Iterator[str]:
    """The full names of all modules that a file imports, wherever in it."""
    package = path.relative_to(ROOT.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield name
            if name == "lmfs":
                yield from (f"lmfs.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    """The part of the package that a file belongs to, as LAYERS names it."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    assert room(path) in LAYERS, "a new module: give it a layer"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "lmfs" and len(parts) > 1 and parts[1] in LAYERS:
            assert LAYERS[parts[1]] <= LAYERS[room(path)], f"imports {name}, a layer above"
        if parts[0] in HEAVY:
            assert room(path) in HEAVY[parts[0]], f"imports {name}"
        assert parts[0] not in ("lmfs_plugins", "lmfs_tools", "plugins", "tools"), name


def loaded_by(statement: str) -> set[str]:
    """What is loaded after a statement, in a process of its own."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import lmfs", {*HEAVY, "numpy", "zstandard", "typer", "rich"}),
        ("import lmfs; lmfs.LmfsError", {*HEAVY, "numpy"}),
        (
            "import lmfs; from lmfs.codecs.choose import Chooser\n"
            "lmfs.decompress(lmfs.compress(b'text ' * 999, chooser=Chooser()))",
            {*HEAVY, "typer", "rich", "numpy"},
        ),
        # Coding needs no numpy, with the model or without: it takes longer than a small file does.
        (
            "import lmfs\nlmfs.decompress(lmfs.compress(b'Some text, and more text. ' * 40))\n"
            "from lmfs.codecs.choose import default_chooser\n"
            "lmfs.decompress(lmfs.compress(b'some text' * 999, chooser=default_chooser(3)))",
            {*HEAVY, "typer", "rich", "numpy"},
        ),
        ("import lmfs.cli.lmz", {*HEAVY, "numpy", "zstandard", "typer", "rich"}),
        (  # a filter starts often, and each module that it loads in vain takes a millisecond
            "from lmfs.lmz import stream_decode",
            {"lmfs.lmz.reader", "lmfs.lmz.writer", "lmfs.lmz.recovery", "lmfs.codecs.choose"},
        ),
        ("import lmfs.cli", set(HEAVY)),
        ("import lmfs.store, lmfs.vfs", {*HEAVY, "numpy"}),
        ("from lmfs.cli import status, freeze, thaw, fsck", {*HEAVY, "numpy"}),
    ],
)
def test_nothing_heavy_is_loaded(statement, absent):
    assert loaded_by(statement) & absent == set()


def test_the_public_names():
    assert sorted(lmfs.__all__) == lmfs.__all__ == dir(lmfs)
    for name in lmfs.__all__:
        assert getattr(lmfs, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = lmfs.nonsense
    for name in lmz.__all__:
        assert getattr(lmz, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = lmz.nonsense
