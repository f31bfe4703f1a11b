"""Write the golden file of a released model: a container that must decode for ever.

    python -m lmfs_tools.golden tests/data [MODEL] [--level N] [--chunk-size BYTES]

Owns: what is in it. Run once for each released model and coder profile, then never for that one
again.
tests/test_golden.py decodes all golden files.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pathlib

from lmfs.codecs.choose import Chooser
from lmfs.codecs.levels import DEFAULT_LEVEL
from lmfs.lmz import LmzReader, LmzWriter
from lmfs.models import registry
from lmfs.profile import PROFILES, profile_by_number

CHUNK_SIZE = 2048


def content(data: pathlib.Path, chunk_size: int) -> bytes:
    """Prose, a log, bytes that are no text, characters cut by chunk edges, a short end."""
    chunks_of_prose = 6 if chunk_size >= 8192 else 2  # of which the last follow the primer
    prose = (data / "alice29.txt").read_bytes()[5000:][: chunks_of_prose * chunk_size]
    log = (data / "dpkg.log").read_bytes()[:3000]
    noise = b"".join(hashlib.sha256(bytes([k])).digest() for k in range(160))
    return prose + log + noise + "ünïcödé – ".encode() * 40 + b"\x00\xff\xfe end"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("model", nargs="?", default=registry.DEFAULT_MODEL)
    parser.add_argument("--level", type=int, default=DEFAULT_LEVEL, help="each has its profiles")
    parser.add_argument("--log", action="store_true", help="of nothing but a log")
    parser.add_argument(
        "--chunk-size", type=int, default=CHUNK_SIZE, help="8192: strands, a primer"
    )
    args = parser.parse_args()
    model = registry.shipped(args.model)
    level = "" if args.level == DEFAULT_LEVEL else f"-level-{args.level}"
    if args.chunk_size != CHUNK_SIZE:
        level += f"-chunks-{args.chunk_size}"
    data = content(args.data, args.chunk_size)
    if args.log:
        level += "-log"
        data = (args.data / "dpkg.log").read_bytes()[:100_000]
    buffer = io.BytesIO()
    with LmzWriter(
        buffer, chunk_size=args.chunk_size, chooser=Chooser(model, args.level)
    ) as writer:
        writer.write(data)
    with LmzReader(buffer, model_search=[model.path]) as reader:
        codecs = list(reader.statistics())
        (member,) = reader.members
        ids = {coding.profile_id for coding in member.codings} - {None}
    numbers = [number for number in PROFILES if profile_by_number(number).id in ids]
    level += "".join(f"-profile-{number}" for number in numbers)
    path = args.data / "golden" / f"1.0-{args.model}{level}.lmz"
    if path.exists():
        raise SystemExit(f"{path} is there already: golden files are never written anew")
    path.write_bytes(buffer.getvalue())
    about = {
        "content_sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "model": model.id.hex(),
        "store_id": None,
        "codecs": codecs,
    }
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"{path}: {len(data):,} bytes in {path.stat().st_size:,}, {', '.join(codecs)}")


if __name__ == "__main__":
    main()
