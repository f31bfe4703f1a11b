"""Bits per byte of files: lmfs as it stores them, its model alone, and the usual suspects.

    python -m lmfs_tools.bench.ratio [--json OUT] [--bytes N] FILE...

Owns: the ratio table of tools/bench/results. "lmfs" is a whole .lmz at the default level and
chunk size, "-9 64K" one at the strongest level with chunks of 64 KiB: container and index
included. zstd19@ works on chunks like the former's, xz and zpaq on the whole. "model" is the model
alone, no mixer and no primer, over the first MB. All are coded bytes, not estimates; "coder" is
how far the coded bytes of a few chunks are above their own code length (the sum of -log2 p). The
model shipped with lmfs is not in these figures; the last line says what it adds.
"""

from __future__ import annotations

import argparse
import json
import lzma
import pathlib
import shutil
import subprocess
import tempfile

import zstandard
from rich.console import Console
from rich.progress import track
from rich.table import Table

import lmfs
from lmfs.codecs.choose import Chooser
from lmfs.codecs.levels import DEFAULT_LEVEL
from lmfs.codecs.lm import LmCodec
from lmfs.container import DEFAULT_CHUNK_SIZE
from lmfs.models import registry
from lmfs.models.package import ModelPackage

CODER_SAMPLE_CHUNKS = 4
MODEL_BYTES = 1_000_000
COLUMNS = ("lmfs", "-9 64K", "zstd19@", "xz9e", "zpaq5", "model")


def chunks_of(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def coder_overhead(chunks: list[bytes], codec: LmCodec) -> tuple[int, float]:
    """Coded bytes of a few chunks, and the bits that their probabilities ask for."""
    sample = chunks[:CODER_SAMPLE_CHUNKS]
    return sum(map(len, codec.encode(sample))), sum(codec.ideal_bits(sample))


def zpaq(data: bytes) -> int | None:
    """The size that `zpaq -m5` makes of it, where zpaq is installed."""
    if shutil.which("zpaq") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, archive = pathlib.Path(folder, "data"), pathlib.Path(folder, "a.zpaq")
        source.write_bytes(data)
        command = ["zpaq", "a", archive, source, "-m5", "-t1"]
        subprocess.run(command, check=True, capture_output=True)
        return archive.stat().st_size


def measure(path: pathlib.Path, limit: int | None, package: ModelPackage) -> dict[str, object]:
    """One file: bits per byte of each column, and the coder's overhead."""
    with path.open("rb") as file:
        data = file.read(limit)
    chunks = chunks_of(data, DEFAULT_CHUNK_SIZE)
    zstd = zstandard.ZstdCompressor(level=19).compress
    sizes = {
        "lmfs": len(lmfs.compress(data, chooser=Chooser(package))),
        "-9 64K": len(lmfs.compress(data, chunk_size=64 << 10, chooser=Chooser(package, 9))),
        "zstd19@": sum(len(zstd(chunk)) for chunk in chunks),
        "xz9e": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        "zpaq5": zpaq(data),
    }
    figures = {name: size and round(size * 8 / len(data), 4) for name, size in sizes.items()}
    codec = LmCodec(package)
    first = data[:MODEL_BYTES]
    alone = sum(map(len, codec.encode(chunks_of(first, DEFAULT_CHUNK_SIZE))))
    coded, ideal = coder_overhead(chunks, codec)
    return {
        "file": path.name,
        "bytes": len(data),
        **figures,
        "model": round(alone * 8 / len(first), 4),
        "coder_percent": round((coded * 8 / ideal - 1) * 100, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--bytes", type=int, help="of each file, from its start; default: all")
    parser.add_argument("--model", type=pathlib.Path, help="a package; default: the shipped one")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    console = Console()
    package = ModelPackage.load(args.model) if args.model else registry.shipped()
    rows = []
    for path in track(args.files, description="Measuring", console=console):
        rows.append(measure(path, args.bytes, package))
        if args.json:
            result = {
                "model": package.id.hex(),
                "model_bytes": package.size_bytes,
                "level": DEFAULT_LEVEL,
                "chunk_bytes": DEFAULT_CHUNK_SIZE,
                "rows": rows,
            }
            args.json.write_text(json.dumps(result, indent=1) + "\n")
    table = Table(title="bits per byte")
    for column in ("file", "bytes", *COLUMNS, "coder %"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for row in rows:
        figures = [f"{row[name]:.3f}" if row[name] else "-" for name in COLUMNS]
        table.add_row(row["file"], f"{row['bytes']:,}", *figures, f"{row['coder_percent']:+.3f}")
    console.print(table)
    console.print(
        f"model {package.name} ({package.id.hex()}): {package.size_bytes:,} bytes, once for all"
    )


if __name__ == "__main__":
    main()
