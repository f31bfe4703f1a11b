"""Write the golden files: containers of this format version that must decode for ever.

    python -m lmfs_tools.golden tests/data

Owns: what is in them. Run once for each released model and format version, then never for
these again: existing files are kept. tests/test_golden.py decodes them all.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pathlib

from lmfs.codecs.choose import Chooser
from lmfs.lmz import LmzWriter
from lmfs.models import registry
from lmfs.models.package import ModelPackage

STORE_ID = bytes(range(16))


def content(data: pathlib.Path, text_bytes: int) -> bytes:
    """Prose, a log, bytes that are no text, characters cut by chunk edges, a short end."""
    prose = (data / "alice29.txt").read_bytes()[5000 : 5000 + text_bytes]
    log = (data / "dpkg.log").read_bytes()[:3000]
    noise = b"".join(hashlib.sha256(bytes([k])).digest() for k in range(256))
    return prose + log + noise + "ünïcödé – ".encode() * 40 + b"\x00\xff\xfe end"


def container(data: bytes, model: ModelPackage, chunk_size: int, store_id: bytes | None) -> bytes:
    buffer = io.BytesIO()
    with LmzWriter(
        buffer, chunk_size=chunk_size, chooser=Chooser(model), store_id=store_id
    ) as writer:
        writer.write(data)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=pathlib.Path)
    args = parser.parse_args()
    folder = args.data / "golden"
    folder.mkdir(exist_ok=True)
    base, tiny = registry.shipped(), ModelPackage.load(args.data / "tiny.lmm")
    wanted = {
        "1.0-tiny": (tiny, 12000, 2048, None),
        "1.0-tiny-frozen": (tiny, 6000, 4096, STORE_ID),
        f"1.0-{base.name}": (base, 4000, 2048, None),
    }
    for name, (model, text_bytes, chunk_size, store_id) in wanted.items():
        path = folder / f"{name}.lmz"
        if path.exists():
            print(f"{path}: kept")
            continue
        data = content(args.data, text_bytes)
        path.write_bytes(container(data, model, chunk_size, store_id))
        about = {
            "content_sha256": hashlib.sha256(data).hexdigest(),
            "size": len(data),
            "model": model.id.hex(),
            "store_id": store_id.hex() if store_id else None,
        }
        path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
        print(f"{path}: {len(data):,} bytes in {path.stat().st_size:,}")


if __name__ == "__main__":
    main()
