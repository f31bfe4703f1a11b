"""Bits per byte of files: the model alone, lmfs as it stores them, and the usual suspects.

    python -m lmfs_tools.bench.ratio [--bytes N] [--chunk N] [--json OUT] FILE...

Owns: the ratio table of README. "model" codes every chunk with the lm codec, "lmfs" is a
whole .lmz: the best codec for each chunk, container and index included. Both count coded
bytes, not estimates; "coder" is how far the coded bytes of a few chunks are above their
own code length (the sum of -log2 p). zstd19@ works on the same chunks, xz and zpaq on the
whole. The model shipped with lmfs is not in these figures; the last line says what it adds.
"""

from __future__ import annotations

import argparse
import io
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
from lmfs.codecs.lm import LmCodec
from lmfs.container import CodecId
from lmfs.models import registry
from lmfs.models.package import ModelPackage

CODER_SAMPLE_CHUNKS = 4
COLUMNS = ("model", "lmfs", "zstd19@", "xz9e", "zpaq5")


def chunks_of(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def as_stored(data: bytes, chunk_size: int, codec: LmCodec) -> tuple[int, int]:
    """Bytes of the whole .lmz, and of all chunks as the model alone codes them."""
    container = lmfs.compress(data, chunk_size=chunk_size, chooser=Chooser(codec.package))
    with lmfs.LmzReader(io.BytesIO(container), model_search=[codec.package.path]) as reader:
        (member,) = reader.members
    with_model = [coding.codec is CodecId.LM for coding in member.codings]
    alone, others = 0, []
    layout = member.layout
    for chunk, coding, size in zip(
        chunks_of(data, chunk_size), layout.codings, layout.coded_sizes, strict=True
    ):
        if with_model[coding]:
            alone += int(size)
        else:
            others.append(chunk)
    return len(container), alone + sum(map(len, codec.encode(others)))


def coder_overhead(chunks: list[bytes], codec: LmCodec) -> tuple[int, float]:
    """Coded bytes of a few chunks, and the bits that their probabilities ask for."""
    sample = chunks[:CODER_SAMPLE_CHUNKS]
    ideal = sum(encoder.ideal_bits for encoder in codec.encoders(sample))
    return sum(map(len, codec.encode(sample))), ideal


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


def measure(path: pathlib.Path, limit: int, chunk_size: int, codec: LmCodec) -> dict[str, object]:
    """One file: bits per byte of each column, and the coder's overhead."""
    with path.open("rb") as file:
        data = file.read(limit)
    chunks = chunks_of(data, chunk_size)
    stored, alone = as_stored(data, chunk_size, codec)
    coded, ideal = coder_overhead(chunks, codec)
    zstd = zstandard.ZstdCompressor(level=19).compress
    sizes = {
        "model": alone,
        "lmfs": stored,
        "zstd19@": sum(len(zstd(chunk)) for chunk in chunks),
        "xz9e": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        "zpaq5": zpaq(data),
    }
    figures = {name: size and round(size * 8 / len(data), 4) for name, size in sizes.items()}
    return {
        "file": path.name,
        "bytes": len(data),
        **figures,
        "coder_percent": round((coded * 8 / ideal - 1) * 100, 4),
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
    codec = LmCodec(package)
    rows = []
    for path in track(args.files, description="Measuring", console=console):
        rows.append(measure(path, args.bytes, args.chunk, codec))
        if args.json:
            result = {
                "model": package.id.hex(),
                "model_bytes": package.size_bytes,
                "first_bytes": args.bytes,
                "chunk_bytes": args.chunk,
                "rows": rows,
            }
            args.json.write_text(json.dumps(result, indent=1) + "\n")
    table = Table(title=f"bits per byte, first {args.bytes:,} bytes, {args.chunk >> 10} KiB chunks")
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
