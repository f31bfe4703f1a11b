"""The model package: one file that holds a model in everything but the program.

Owns: the package's layout, its limits, and the model id. A package (`.lmm`) is a zip of

    card.json            name, architecture, training, measured bits per byte, certificate
    tokenizer.json       the vocabulary, see lmfs.tokenizer
    weights.onnx         a ModelProto with nothing but initializers (int8, float32)
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

Imports neither onnx nor onnxruntime. Objects are immutable and may be shared by threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import blake3

from ..errors import ModelError
from ..tokenizer import Tokenizer
from .difference import apply_difference

SUFFIX = ".lmm"
CARD, TOKENIZER, WEIGHTS, GOLDEN = "card.json", "tokenizer.json", "weights.onnx", "golden.npz"
DIFFERENCE = "weights.diff"
ARCHITECTURES = ("gated-recurrence-1",)
MAX_MEMBER_BYTES = 1 << 30
ID_BYTES = 16
_ID_CONTEXT = "lmfs 2026 model id"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip does not depend on when it was written


@dataclasses.dataclass(frozen=True)
class ModelPackage:
    """A model package read from `path`; `id` is 16 bytes, `base` what a difference is one to."""

    id: bytes
    path: pathlib.Path
    size_bytes: int
    card: Mapping[str, Any]
    tokenizer_json: bytes = dataclasses.field(repr=False)
    weights: bytes = dataclasses.field(repr=False)
    base: ModelPackage | None = None

    @classmethod
    def load(
        cls, path: pathlib.Path | str, find_base: Callable[[bytes], ModelPackage] | None = None
    ) -> ModelPackage:
        """Read the parts that every use needs.

        find_base: gives the package that a difference is one to (lmfs.models.registry.load has it)
        raises: ModelError, OSError, and what `find_base` raises
        """
        path = pathlib.Path(path)
        base = None
        with _reading(path) as archive:
            card = _card(archive, path)
            base_id = base_of(card, path)
            if base_id is None:
                tokenizer_json = _member(archive, TOKENIZER, path)
                weights = _member(archive, WEIGHTS, path)
            else:
                difference = _member(archive, DIFFERENCE, path)
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
            weights = apply_difference(base.weights, difference)
        return cls(
            id=model_id(card["architecture"], tokenizer_json, weights),
            path=path,
            size_bytes=path.stat().st_size,
            card=card,
            tokenizer_json=tokenizer_json,
            weights=weights,
            base=base,
        )

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
        path = self.together[0].path
        with _reading(path) as archive:
            return _member(archive, f"graph/{name}.onnx", path) + self.weights

    def graph_names(self) -> list[str]:
        if self.base is not None:
            return self.base.graph_names()
        with _reading(self.path) as archive:
            names = [n for n in archive.namelist() if n.startswith("graph/")]
        return sorted(n.removeprefix("graph/").removesuffix(".onnx") for n in names)

    def golden(self) -> bytes:
        """Golden tokens, and logits that are the base's if this is a difference."""
        if self.base is not None:
            return self.base.golden()
        with _reading(self.path) as archive:
            return _member(archive, GOLDEN, self.path)


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
        WEIGHTS: weights,
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
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    os.replace(temporary, path)


def read_card(path: pathlib.Path) -> dict[str, Any]:
    """A package's card alone; raises ModelError, OSError."""
    with _reading(path) as archive:
        return _card(archive, path)


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


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as error:
        raise ModelError("not a model package", where=path, got=error) from error


def _member(archive: zipfile.ZipFile, name: str, path: pathlib.Path) -> bytes:
    try:
        size = archive.getinfo(name).file_size
    except KeyError:
        raise ModelError("model package without a part", where=path, expected=name) from None
    if size > MAX_MEMBER_BYTES:
        raise ModelError(
            "model package with too large a part",
            where=f"{path}: {name}",
            expected=f"at most {MAX_MEMBER_BYTES:,} bytes",
            got=f"{size:,}",
        )
    return _inflate(archive, name, path)


def _inflate(archive: zipfile.ZipFile, name: str, path: pathlib.Path) -> bytes:
    try:
        return archive.read(name)
    except (zlib.error, RuntimeError) as error:
        raise ModelError("damaged model package", where=f"{path}: {name}", got=error) from error


def _card(archive: zipfile.ZipFile, path: pathlib.Path) -> dict[str, Any]:
    try:
        card = json.loads(_member(archive, CARD, path))
        architecture = card["architecture"]
        kind, start = architecture["kind"], architecture["start_token"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError("unreadable model card", where=path, got=error) from error
    if kind not in ARCHITECTURES or not isinstance(start, int):
        raise ModelError(
            "unknown model architecture", where=path, expected=" or ".join(ARCHITECTURES), got=kind
        )
    return dict(card)
