"""More training text, from Debian packages: source in many languages, HTML, TeX and the like.

    python -m lmfs_tools.debian_texts WORK      (needs apt-get and dpkg-deb)

downloads PACKAGES into WORK/packages, where they are not there yet, and writes WORK/train/NAME for
each of KINDS: whole files, in an order that only their names decide, up to so many bytes.
No Python and no manual pages: of such there are others, and what is measured on must not be among
what is learned. All of it is free software; nothing of it is shipped.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import pathlib
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

MOST_FILE_BYTES = 300_000
MOST_LINE_BYTES = 400  # on average: longer ones were written by a program


@dataclass(frozen=True)
class Kind:
    """Files of one kind."""

    most_bytes: int
    packages: tuple[str, ...]
    suffixes: tuple[str, ...]


KINDS = {
    "c.txt": Kind(14_000_000, ("linux-source-6.1", "erlang-src"), (".c", ".h")),
    "cpp.txt": Kind(4_000_000, ("libboost1.74-dev",), (".hpp", ".ipp")),
    "java.txt": Kind(6_000_000, ("openjdk-17-source",), (".java",)),
    "go.txt": Kind(5_000_000, ("golang-1.19-src",), (".go",)),
    "rust.txt": Kind(5_000_000, ("rust-src",), (".rs",)),
    "javascript.txt": Kind(6_000_000, ("mediawiki", "libjs-mathjax"), (".js", ".css", ".less")),
    "php.txt": Kind(5_000_000, ("mediawiki",), (".php", ".sql")),
    "ruby.txt": Kind(3_000_000, ("libruby3.1",), (".rb",)),
    "lisp.txt": Kind(6_000_000, ("emacs-el", "sbcl-source"), (".el", ".lisp", ".el.gz")),
    "erlang.txt": Kind(2_000_000, ("erlang-src",), (".erl", ".hrl")),
    "tex.txt": Kind(
        4_000_000, ("texlive-latex-recommended", "texlive-science"), (".sty", ".tex", ".cls")
    ),
    "html.txt": Kind(
        20_000_000,
        (
            *("apache2-doc", "sqlite3-doc", "debian-policy", "developers-reference"),
            *("postgresql-doc-15", "python-django-doc", "qtbase5-doc-html", "libglib2.0-doc"),
        ),
        (".html", ".html.en"),
    ),
    "markdown.txt": Kind(
        8_000_000, ("linux-source-6.1", "rust-src", "mediawiki"), (".rst", ".md", ".txt")
    ),
    "settings.txt": Kind(
        5_000_000,
        ("linux-source-6.1",),
        (".yaml", ".dts", ".dtsi", ".sh", "/Kconfig", "/Makefile"),
    ),
    "languages.json": Kind(4_000_000, ("mediawiki",), (".json",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    args = parser.parse_args()
    packages = args.work / "packages"
    texts = args.work / "train"
    for folder in (packages, texts):
        folder.mkdir(parents=True, exist_ok=True)
    for name, kind in KINDS.items():
        files = [
            file
            for package in kind.packages
            for file in _files(_download(package, packages), kind.suffixes)
        ]
        files.sort(key=lambda file: hashlib.sha256(file[0].encode()).digest())
        text = bytearray()
        for _, data in files:
            if len(text) < kind.most_bytes and _is_wanted(data):
                text += data.rstrip(b"\n") + b"\n\n"
        (texts / name).write_bytes(text)
        print(f"{name}: {len(files):,} files, {len(text):,} bytes", flush=True)


def _download(package: str, folder: pathlib.Path) -> pathlib.Path:
    if not (found := sorted(folder.glob(f"{package}_*.deb"))):
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        found = sorted(folder.glob(f"{package}_*.deb"))
    return found[-1]


def _files(package: pathlib.Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """The name and content of each file of a package, also within its archives."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            yield from _members(tar, suffixes)


def _members(tar: tarfile.TarFile, suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    for member in tar:
        if not member.isfile() or not (file := tar.extractfile(member)):
            continue
        if member.name.endswith(suffixes):
            data = file.read()
            yield member.name, gzip.decompress(data) if member.name.endswith(".gz") else data
        elif member.name.endswith((".tar.xz", ".tar.gz")):
            with tarfile.open(fileobj=file, mode="r|*") as inner:
                yield from _members(inner, suffixes)
        elif member.name.endswith("src.zip"):
            with zipfile.ZipFile(io.BytesIO(file.read())) as archive:
                for name in archive.namelist():
                    if name.endswith(suffixes):
                        yield name, archive.read(name)


def _is_wanted(data: bytes) -> bool:
    if not data or len(data) > MOST_FILE_BYTES or b"\0" in data:
        return False
    return len(data) <= MOST_LINE_BYTES * (data.count(b"\n") + 1)


if __name__ == "__main__":
    main()
