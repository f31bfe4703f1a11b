"""Bits per byte of files: the model alone, lmfs as it stores them, and the usual suspects.

    python -m lmfs_tools.bench.ratio [--bytes N] [--chunk N] [--json OUT] FILE...

Owns: the ratio table of README. "model" codes every chunk with the lm codec, "lmfs" is a
whole .lmz: the best codec for each chunk, container and index included. Both count coded
bytes, not estimates; "coder" is how far the coded bytes are above the model's own code
length (the sum of -log2 p). The model shipped with lmfs is not in these figures; the last
line says what it adds.
"""

from __future__ import annotations

import argparse
import json
import lzma
import pathlib
import time

import zstandard
from rich.console import Console
from rich.progress import track
from rich.table import Table

import lmfs
from lmfs.codecs.choose import Chooser
from lmfs.codecs.lm import ENCODE_LANES, LmCodec
from lmfs.models import registry
from lmfs.models.package import ModelPackage


def chunks_of(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def model_alone(codec: LmCodec, chunks: list[bytes]) -> tuple[int, float]:
    """Coded bytes and ideal bits of all chunks."""
    coded, ideal = 0, 0.0
    for start in range(0, len(chunks), ENCODE_LANES):
        for encoder in codec.encoders(chunks[start : start + ENCODE_LANES]):
            ideal += encoder.ideal_bits
            coded += len(encoder.finish())
    return coded, ideal


def measure(
    path: pathlib.Path, limit: int, chunk_size: int, codec: LmCodec, chooser: Chooser
) -> dict[str, object]:
    with path.open("rb") as file:
        data = file.read(limit)
    chunks = chunks_of(data, chunk_size)
    began = time.perf_counter()
    coded, ideal = model_alone(codec, chunks)
    seconds = time.perf_counter() - began
    zstd = zstandard.ZstdCompressor(level=19).compress
    bits = 8 / len(data)
    return {
        "file": path.name,
        "bytes": len(data),
        "model": coded * bits,
        "lmfs": len(lmfs.compress(data, chunk_size=chunk_size, chooser=chooser)) * bits,
        "zstd@": sum(len(zstd(chunk)) for chunk in chunks) * bits,
        "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) * bits,
        "coder_percent": (coded * 8 / ideal - 1) * 100,
        "coder_bytes_a_chunk": (coded - ideal / 8) / len(chunks),
        "encode_bytes_per_s": len(data) / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--bytes", type=int, default=1_000_000, help="of each file, from its start")
    parser.add_argument("--chunk", type=int, default=16384)
    parser.add_argument("--model", type=pathlib.Path, help="a package; default: the shipped one")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    console = Console()
    package = ModelPackage.load(args.model) if args.model else registry.shipped()
    codec, chooser = LmCodec(package), Chooser(package)
    rows = []
    for path in track(args.files, description="Measuring", console=console):
        rows.append(measure(path, args.bytes, args.chunk, codec, chooser))
        if args.json:
            args.json.write_text(json.dumps({"model": package.id.hex(), "rows": rows}, indent=1))
    table = Table(title=f"bits per byte, first {args.bytes:,} bytes, {args.chunk >> 10} KiB chunks")
    names = (
        "file",
        "bytes",
        "model",
        "lmfs",
        f"zstd -19 @{args.chunk >> 10}K",
        "xz -9e",
        "coder %",
    )
    for column in names:
        table.add_column(column, justify="left" if column == "file" else "right")
    for row in rows:
        figures = [f"{row[key]:.3f}" for key in ("model", "lmfs", "zstd@", "xz")]
        table.add_row(row["file"], f"{row['bytes']:,}", *figures, f"{row['coder_percent']:+.3f}")
    console.print(table)
    console.print(
        f"model {package.name} ({package.id.hex()}): {package.size_bytes:,} bytes, once for all"
    )


if __name__ == "__main__":
    main()
