"""The model package: one file that holds a model in everything but the program.

Owns: the package's layout, its limits, and the model id. A package (`.lmm`) is a zip of

    card.json            name, architecture, training, measured bits per byte, certificate
    tokenizer.json       the vocabulary, see lmfs.tokenizer
    weights.onnx.zst     a ModelProto with nothing but initializers (int8, float32), in a Zstandard
                         frame; or weights.onnx, itself: deflate takes four times as long
    graph/NAME.onnx      lowerings: ModelProtos without those initializers
    golden.npz           token walks and the logits they must give

`graph + weights` joined as bytes is a whole ONNX model: protobuf merges joined messages.

A *difference* is a package of

    card.json            as above, and `base`: the id of a whole package of the same architecture
    weights.diff         what becomes of the base's weights, see lmfs.models.difference

whose tokenizer, graphs and golden tokens are the base's. It must lie beside its base.

The model id is what files name: 16 bytes of BLAKE3 over architecture, tokenizer and
weights, those that a difference makes included: so a wrong base gives another id. Cards, graphs
and golden vectors may be written anew without changing it, since every graph must give the same
logits. Models are data: no code is run from a package.

A package is kept as the bytes of its file, and its parts are inflated when they are asked for:
who codes with the vocabulary alone never inflates weights. The id of a package that lmfs ships is
known by the hash of the whole file, which proves as much as hashing the parts does.

Imports neither onnx nor onnxruntime. Objects are immutable and may be shared by threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import blake3
import zstandard

from ..errors import ModelError
from ..tokenizer import Tokenizer

SUFFIX = ".lmm"
PACKED = ".zst"  # behind the name of what is a Zstandard frame
CARD, TOKENIZER, WEIGHTS, GOLDEN = "card.json", "tokenizer.json", "weights.onnx", "golden.npz"
DIFFERENCE = "weights.diff"
ARCHITECTURES = ("gated-recurrence-1",)
# What a package may make its reader hold: others are refused before anything is inflated.
MAX_BYTES = {
    CARD: 1 << 20, TOKENIZER: 4 << 20, WEIGHTS: 64 << 20, DIFFERENCE: 64 << 20, GOLDEN: 16 << 20
}  # fmt: skip
MAX_GRAPH_BYTES = 1 << 20
MAX_PACKAGE_BYTES = 96 << 20
PLAIN_ZIP = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
MAX_DIRECTORY_BYTES = 1 << 16  # of the zip: what names its parts
ID_BYTES = 16
_ID_CONTEXT = "lmfs 2026 model id"
# The BLAKE3 of packages that were shipped, and their models' ids (tests/test_models.py).
_BASE_1 = "f82c8d4ccf526fa895518f238a750c7a0909b7a4497823fc08b92fa9a66f45a4"
_BASE_2 = "d13e248de56dd73c7e38867f7c9b53e860a82f30b75a19f7298548aded071e68"
_BASE_3 = "560266e04c5226f839a580debce161261d9e585852f9df8048c35f7cec7f0051"
_BASE_4 = "b2dc3e77ab0c53a5a6b3f5d125f578a78ab355689158d4732028dc1a03d89488"
_BASE_5 = "54ed83d50202385fd986b19827333ae3527cf5f90fedf19e0c02b1d9c919e966"
_BASE_6 = "0d5bae33ef8343f3da8d896e665e579756a5c295c2f0756d82eee900b2753df0"
_BASE_7 = "e0b57b30b7c662274f3aef916f676ef06fde97a5094f82772679d72fb80f9431"
_BASE_8 = "3b84fe26ba6a20bc2214c2c63fa044aa5cf4d064aa4c75df9330c41ada7ca2aa"
SHIPPED = {
    _BASE_1: "bfe60cc616a406118fce070e4234dbcf",
    _BASE_2: "e2909defcf3efba48f8e600fdc4e4d86",
    _BASE_3: "9a8dcf6e94236c218d01cdbf36e84b79",
    _BASE_4: "2dfd4837e2c77268282a36dbd00be6e1",
    _BASE_5: "b867f45cabad2deba3451b2f8ab8443a",
    _BASE_6: "95b1cd9e4659347ac819314d6251694a",
    _BASE_7: "035080980a02683b7516c473abd72109",
    _BASE_8: "f3bfdb501a782784941559a52342398f",
}
_END_BYTES = 22 + (1 << 16)  # a zip's last record, which a comment may follow
_NO_ZIP = (
    zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, ValueError,
    struct.error, OSError,  # of offsets before the beginning
)  # fmt: skip
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip does not depend on when it was written


@dataclasses.dataclass(frozen=True)
class ModelPackage:
    """A model package read from `path`; `id` is 16 bytes, `stored` the file's.

    `base` is what a difference is one to.
    """

    id: bytes
    path: pathlib.Path
    card: Mapping[str, Any]
    tokenizer_json: bytes = dataclasses.field(repr=False)
    stored: bytes = dataclasses.field(repr=False)
    base: ModelPackage | None = None

    @classmethod
    def load(
        cls, path: pathlib.Path | str, find_base: Callable[[bytes], ModelPackage] | None = None
    ) -> ModelPackage:
        """Read a package and make sure of its id.

        find_base: gives the package that a difference is one to (lmfs.models.registry.load has it)
        raises: ModelError, OSError, and what `find_base` raises
        """
        path = pathlib.Path(path)
        stored = _stored(path)
        known = SHIPPED.get(blake3.blake3(stored).hexdigest())
        with _reading(stored, path) as archive:
            card = _card(archive, path)
            base_id = base_of(card, path)
            tokenizer_json = b"" if base_id else _member(archive, TOKENIZER, path)
        base = None
        if base_id is not None:
            if find_base is None:
                raise ModelError("a difference to another model, not a whole one", where=path)
            base = find_base(base_id)
            if base.base is not None or base.card["architecture"] != card["architecture"]:
                raise ModelError(
                    "a difference to a model that it cannot be one to", where=path,
                    expected="a whole model of the same architecture", got=base.path,
                )  # fmt: skip
            tokenizer_json = base.tokenizer_json
        package = cls(b"", path, card, tokenizer_json, stored, base)
        if known is not None:
            id = bytes.fromhex(known)
        else:
            id = model_id(card["architecture"], tokenizer_json, package.weights)
        return dataclasses.replace(package, id=id)

    @property
    def size_bytes(self) -> int:
        """Of the package's file."""
        return len(self.stored)

    @property
    def weights(self) -> bytes:
        """What stands in `weights.onnx`, or what a difference makes of it; raises ModelError.

        Inflated anew each time.
        """
        if self.base is None:
            with _reading(self.stored, self.path) as archive:
                return _weights(archive, self.path)
        from .difference import apply_difference

        return apply_difference(self.base.weights, self._part(DIFFERENCE))

    @property
    def together(self) -> tuple[ModelPackage, ...]:
        """The packages without which this one is of no use, itself the last."""
        return (self,) if self.base is None else (self.base, self)

    @property
    def name(self) -> str:
        return str(self.card.get("name", self.id.hex()))

    @property
    def start_token(self) -> int:
        """What the model is fed before the first token of a chunk."""
        return int(self.card["architecture"]["start_token"])

    def tokenizer(self) -> Tokenizer:
        """One for all who ask: it never changes, and building it takes a while."""
        return self._tokenizer

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_json(self.tokenizer_json)

    def graph(self, name: str) -> bytes:
        """A whole ONNX model: the lowering `name` with the weights in it."""
        return self.together[0]._part(f"graph/{name}.onnx") + self.weights

    def graph_names(self) -> list[str]:
        whole = self.together[0]
        with _reading(whole.stored, whole.path) as archive:
            names = [n for n in archive.namelist() if n.startswith("graph/")]
        return sorted(n.removeprefix("graph/").removesuffix(".onnx") for n in names)

    def golden(self) -> bytes:
        """Golden tokens, and logits that are the base's if this is a difference."""
        return self.together[0]._part(GOLDEN)

    def _part(self, name: str) -> bytes:
        with _reading(self.stored, self.path) as archive:
            return _member(archive, name, self.path)


def model_id(architecture: Mapping[str, Any], tokenizer_json: bytes, weights: bytes) -> bytes:
    """BLAKE3 of the three, each preceded by its length (u64, little-endian); 16 bytes."""
    described = json.dumps(architecture, sort_keys=True, separators=(",", ":")).encode()
    hasher = blake3.blake3(derive_key_context=_ID_CONTEXT)
    for part in (described, tokenizer_json, weights):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest(ID_BYTES)


def write_package(
    path: pathlib.Path,
    *,
    card: Mapping[str, Any],
    tokenizer: bytes,
    weights: bytes,
    graphs: Mapping[str, bytes],
    golden: bytes,
) -> None:
    """Write a package; the file appears whole or not at all."""
    members = {
        TOKENIZER: tokenizer,
        WEIGHTS + PACKED: zstandard.ZstdCompressor(level=3).compress(weights),
        **{f"graph/{name}.onnx": graph for name, graph in sorted(graphs.items())},
        GOLDEN: golden,
    }
    _write(path, card, members)


def write_difference(
    path: pathlib.Path, *, card: Mapping[str, Any], base: ModelPackage, difference: bytes
) -> None:
    """Write a difference to `base`; the file appears whole or not at all."""
    _write(path, {**card, "base": base.id.hex()}, {DIFFERENCE: difference})


def _write(path: pathlib.Path, card: Mapping[str, Any], members: Mapping[str, bytes]) -> None:
    members = {CARD: json.dumps(card, indent=1, sort_keys=True).encode() + b"\n", **members}
    temporary = path.with_name(f".{path.name}.tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            if not name.endswith(PACKED):
                entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    os.replace(temporary, path)


def read_card(path: pathlib.Path) -> dict[str, Any]:
    """A package's card alone; raises ModelError, OSError."""
    with _reading(_stored(path), path) as archive:
        return _card(archive, path)


def _stored(path: pathlib.Path) -> bytes:
    # A FIFO would be waited for.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ModelError("not a model package", where=path, expected="a regular file")
        stored = file.read(MAX_PACKAGE_BYTES + 1)
    if len(stored) > MAX_PACKAGE_BYTES:
        raise ModelError(
            "too large a model package", where=path, expected=f"{MAX_PACKAGE_BYTES:,} at most"
        )
    return stored


def base_of(card: Mapping[str, Any], path: pathlib.Path) -> bytes | None:
    """The id of the base that a card names; None for a whole model. raises: ModelError"""
    if "base" not in card:
        return None
    try:
        base_id = bytes.fromhex(card["base"])
    except (ValueError, TypeError):
        base_id = b""
    if len(base_id) != ID_BYTES:
        raise ModelError("unreadable model card", where=f"{path}: base", got=card["base"])
    return base_id


class _Zip(zipfile.ZipFile):
    """A zip in memory. A part is inflated at once: ZipFile.read takes half as long again."""

    def __init__(self, stored: bytes) -> None:
        super().__init__(io.BytesIO(stored))
        self._stored = stored

    def part(self, info: zipfile.ZipInfo) -> bytes:
        """raises: zipfile.BadZipFile, zlib.error, RuntimeError and what else `open` does"""
        self.open(info).close()  # it looks at what stands before the bytes
        before = struct.unpack_from("<HH", self._stored, info.header_offset + 26)
        at = info.header_offset + 30 + sum(before)
        data: bytes | memoryview = memoryview(self._stored)[at : at + info.compress_size]
        if info.compress_type == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, info.file_size + 1)
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise zipfile.BadZipFile(f"another length or CRC-32 of {info.filename}")
        return bytes(data)


@contextlib.contextmanager
def _reading(stored: bytes, path: pathlib.Path) -> Any:
    try:
        _check_directory(stored)
        with _Zip(stored) as archive:
            names = archive.namelist()
            if len(set(names)) != len(names):
                raise zipfile.BadZipFile("two parts of one name")
            yield archive
    except _NO_ZIP as error:
        raise ModelError("not a model package", where=path, got=error) from error


def _check_directory(stored: bytes) -> None:
    """Refuse a zip whose directory, which is read as a whole, is too large for a package."""
    tail = stored[-_END_BYTES:]
    at = tail.rfind(b"PK\5\6")
    is_large = tail[max(0, at - 20) : at].startswith(b"PK\6\7")
    if at < 0 or len(tail) < at + 22 or is_large:
        raise zipfile.BadZipFile("no end of a small zip")
    if int.from_bytes(tail[at + 12 : at + 16], "little") > MAX_DIRECTORY_BYTES:
        raise zipfile.BadZipFile("too many parts")


def _weights(archive: _Zip, path: pathlib.Path) -> bytes:
    """The part WEIGHTS, in either of its forms."""
    names = archive.namelist()
    if WEIGHTS + PACKED not in names:
        return _member(archive, WEIGHTS, path)
    if WEIGHTS in names:
        raise ModelError("not a model package", where=path, got="weights in two parts")
    frame = _member(archive, WEIGHTS + PACKED, path)
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= MAX_BYTES[WEIGHTS]:
            raise ModelError(
                "model package with too large a part",
                where=f"{path}: {WEIGHTS + PACKED}",
                expected=f"a Zstandard frame that says so, of at most {MAX_BYTES[WEIGHTS]:,} bytes",
                got="no number" if size < 0 else f"{size:,}",
            )
        unpack = zstandard.ZstdDecompressor(max_window_size=MAX_BYTES[WEIGHTS])
        return unpack.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        where = f"{path}: {WEIGHTS + PACKED}"
        raise ModelError("damaged model package", where=where, got=error) from error


def _member(archive: _Zip, name: str, path: pathlib.Path) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise ModelError("model package without a part", where=path, expected=name) from None
    most = MAX_BYTES.get(name.removesuffix(PACKED), MAX_GRAPH_BYTES)
    if info.file_size > most:
        raise ModelError(
            "model package with too large a part",
            where=f"{path}: {name}",
            expected=f"at most {most:,} bytes",
            got=f"{info.file_size:,}",
        )
    # The others may ask for gigabytes to inflate with.
    if info.compress_type not in PLAIN_ZIP:
        raise ModelError(
            "damaged model package", where=f"{path}: {name}", expected="stored or deflated"
        )
    try:
        return archive.part(info)
    except (zlib.error, RuntimeError, UnicodeDecodeError) as error:
        raise ModelError("damaged model package", where=f"{path}: {name}", got=error) from error


def _card(archive: _Zip, path: pathlib.Path) -> dict[str, Any]:
    try:
        card = json.loads(_member(archive, CARD, path))
        architecture = card["architecture"]
        kind, start = architecture["kind"], architecture["start_token"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError("unreadable model card", where=path, got=error) from error
    if kind not in ARCHITECTURES or not isinstance(start, int):
        raise ModelError(
            "unknown model architecture", where=path, expected=" or ".join(ARCHITECTURES), got=kind
        )
    return dict(card)
