"""What each part of the coding brings: bits per byte with and without it.

    python -m lmfs_tools.bench.ablation [--chunks N] [--size BYTES] [--profile N] [--json OUT]
        FILE...

Owns: the ablation table. Some chunks of each file, evenly spread behind the primer: code lengths
(the sum of -log2 p), neither container nor primer counted, of the model alone, the mixer alone,
both, and the two again behind the file's own primer; "primer" is what the primer itself costs.
"+shared" is behind a text as long as the primer, in pieces from the rest of the same file, the
measured chunks left out: what a shared primer brings at best, its own bytes not counted. All in one
strand.

The price of each: microseconds a token, which model and mixer add up to; milliseconds for the
state behind a primer, once a file; and, printed below and in the JSON, the memory of a lane's
mixer and that of the state which all lanes share. (The model's state is small.)
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lmfs import profile as profiles
from lmfs.container import DEFAULT_CHUNK_SIZE
from lmfs.engines import engine_for
from lmfs.models import registry
from lmfs.models.package import ModelPackage
from lmfs.native import Mixer, TokenEncoder

COLUMNS = (
    *("model", "mixer", "mixer+primer", "mixer+shared"),
    *("both", "both+primer", "both+shared", "primer"),
)
WINDOW = 512  # tokens


def spread(data: bytes, primer: int, size: int, count: int) -> list[bytes]:
    """At most `count` whole chunks behind the primer."""
    starts = range(primer, len(data) - size + 1, size)
    picked = [starts[k * len(starts) // count] for k in range(min(count, len(starts)))]
    return [data[start : start + size] for start in picked]


def elsewhere(data: bytes, chunks: list[bytes], size: int) -> bytes:
    """`size` bytes of what is left of a file without these chunks, in pieces spread over it."""
    for chunk in chunks:
        data = data.replace(chunk, b"")
    step = max(1, len(data) * DEFAULT_CHUNK_SIZE // max(1, size))
    pieces = [data[at : at + DEFAULT_CHUNK_SIZE] for at in range(0, len(data), step)]
    return b"".join(pieces)[:size]


def measure(
    data: bytes,
    package: ModelPackage,
    profile: profiles.CoderProfile,
    *,
    primer: int,
    size: int,
    count: int,
) -> dict[str, float]:
    """Bits per byte of each column; microseconds a token of the mixer and of the model."""
    vocabulary, engine = package.tokenizer().vocabulary, engine_for(package)
    assert profile.mixer is not None
    fresh = Mixer(profile.mixer, vocabulary)
    primed = fresh.copy()
    began = time.perf_counter()
    of_primer = primed.prime(data[:primer], DEFAULT_CHUNK_SIZE) / max(1, len(data[:primer]))
    prime_ms = (time.perf_counter() - began) * 1e3
    bits = dict.fromkeys(COLUMNS, 0.0)
    spent = {"mixer_us": 0.0, "model_us": 0.0}
    tokens_seen = 0
    chunks = spread(data, primer, size, count)
    shared = fresh.copy()
    shared.prime(elsewhere(data, chunks, primer), DEFAULT_CHUNK_SIZE)
    for chunk in chunks:
        began = time.perf_counter()
        bits["mixer"] += fresh.branch().prime(chunk, size)
        spent["mixer_us"] += time.perf_counter() - began
        bits["mixer+primer"] += primed.branch().prime(chunk, size)
        bits["mixer+shared"] += shared.branch().prime(chunk, size)
        tokens = vocabulary.tokenize(chunk)
        tokens_seen += len(tokens)
        encoders = {
            "model": TokenEncoder(vocabulary, profile.table),
            "both": TokenEncoder(vocabulary, profile.table, fresh.branch()),
            "both+primer": TokenEncoder(vocabulary, profile.table, primed.branch()),
            "both+shared": TokenEncoder(vocabulary, profile.table, shared.branch()),
        }
        state = engine.start(1, sequence=True)
        inputs = np.concatenate([[package.start_token], tokens[:-1]]).astype(np.int64)
        for at in range(0, len(tokens), WINDOW):
            began = time.perf_counter()
            logits, state = engine.sequence(state, inputs[None, at : at + WINDOW])
            spent["model_us"] += time.perf_counter() - began
            for encoder in encoders.values():
                encoder.push(logits[0], tokens[at : at + WINDOW])
        for name, encoder in encoders.items():
            bits[name] += encoder.ideal_bits
    total = sum(map(len, chunks))
    figures = {name: round(value / max(1, total), 4) for name, value in bits.items()}
    figures["primer"] = round(of_primer, 4)
    figures |= {k: round(v * 1e6 / max(1, tokens_seen), 2) for k, v in spent.items()}
    return figures | {
        "bytes_a_token": round(total / max(1, tokens_seen), 2),
        "prime_ms": round(prime_ms),
    }


def memory(package: ModelPackage, profile: profiles.CoderProfile, data: bytes) -> dict[str, int]:
    """What the mixer of one more lane takes, and the state behind this primer."""
    assert profile.mixer is not None
    primed = Mixer(profile.mixer, package.tokenizer().vocabulary)
    primed.prime(data, DEFAULT_CHUNK_SIZE)
    lane = primed.branch()
    lane.prime(data[:DEFAULT_CHUNK_SIZE], DEFAULT_CHUNK_SIZE)
    return {"mixer_bytes_a_lane": lane.used_bytes, "mixer_bytes_of_primer": primed.used_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--chunks", type=int, default=8, help="of each file")
    parser.add_argument("--size", type=int, default=DEFAULT_CHUNK_SIZE)
    parser.add_argument("--primer", type=int, default=256 << 10)
    parser.add_argument("--profile", type=int, default=9, help="its mixer; 11 is level 9's")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    console = Console()
    package = registry.shipped()
    profile = profiles.profile_by_number(args.profile)
    rows: list[dict[str, object]] = []
    for path in track(args.files, description="Measuring", console=console):
        figures = measure(
            path.read_bytes(),
            package,
            profile,
            primer=args.primer,
            size=args.size,
            count=args.chunks,
        )
        rows.append({"file": path.name, **figures})
    table = Table(
        title=f"bits per byte, {args.size >> 10} KiB chunks, {args.primer >> 10} KiB primer"
    )
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "file" else "right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)
    taken = memory(package, profile, args.files[0].read_bytes()[: args.primer])
    console.print(", ".join(f"{name} {size:,}" for name, size in taken.items()))
    if args.json:
        result = taken | {
            "model": package.id.hex(),
            "profile": profile.id.hex(),
            "chunk_bytes": args.size,
            "primer_bytes": args.primer,
        }
        args.json.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
