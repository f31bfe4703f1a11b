"""`lmfs model verify`: recompute a package's certificate and its golden vectors.

Owns: what is checked and how a finding reads. Imports the engines: the native one, and ONNX
Runtime where it is installed. Prints nothing.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import pathlib
import zipfile
import zlib
from collections.abc import Iterator

import blake3
import numpy as np
from numpy.typing import NDArray

from ..engines.native import ARCHITECTURES, NativeEngine
from ..engines.walk import walk
from ..errors import LmfsError, ModelError
from ..native import usable_isas
from ..types import Engine
from . import registry
from .package import PLAIN_ZIP, ModelPackage

MAX_GOLDEN_BYTES = 64 << 20  # inflated
MAX_GOLDEN_TOKENS = 1 << 12


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check: `what` was looked at, whether it holds (None: not checked), what was seen."""

    what: str
    ok: bool | None
    detail: str


@dataclasses.dataclass(frozen=True)
class _Golden:
    """tokens (lanes, time), and the logits of every n-th step."""

    tokens: NDArray[np.int64]
    logits: NDArray[np.int16]
    every: int

    def compare(self, name: str, engine: Engine, *, stepwise: bool) -> Finding:
        got = walk(engine, self.tokens, stepwise=stepwise)[:, :: self.every]
        wrong = int((got != self.logits).sum())
        detail = f"{self.logits.size:,} logits, {wrong:,} differ"
        return Finding(f"golden vectors {name}", wrong == 0, detail)


@dataclasses.dataclass(frozen=True)
class _GoldenDigest:
    """tokens (lanes, time), and the digest of the logits of all steps: a difference has these."""

    tokens: NDArray[np.int64]
    digest: str

    def compare(self, name: str, engine: Engine, *, stepwise: bool) -> Finding:
        got = walk(engine, self.tokens, stepwise=stepwise)
        same = logits_digest(got) == self.digest
        detail = f"{got.size:,} logits, {'none differs' if same else 'some differ'}"
        return Finding(f"golden vectors {name}", same, detail)


def logits_digest(logits: NDArray[np.int16]) -> str:
    """BLAKE3 of logits (lanes, time, vocab), little-endian; 64 hexadecimal digits."""
    return blake3.blake3(np.ascontiguousarray(logits, "<i2").tobytes()).hexdigest()


def verify(path: pathlib.Path | str) -> list[Finding]:
    """Check every engine and lowering; raises ModelError if the package cannot be read at all."""
    package = registry.load(path)
    golden = _golden(package)
    vocab = int(package.card["architecture"]["vocab"])
    size = len(package.tokenizer())
    return [
        Finding("model id", True, package.id.hex()),
        *(Finding("base", True, base.id.hex()) for base in package.together[:-1]),
        Finding("vocabulary", size == vocab, f"{size} tokens, card says {vocab}"),
        *_native(package, golden),
        *_lowerings(package, golden),
    ]


def _native(package: ModelPackage, golden: _Golden | _GoldenDigest) -> Iterator[Finding]:
    kind = package.card["architecture"]["kind"]
    if kind not in ARCHITECTURES:
        yield Finding("native engine", None, f"not checked: it does not know {kind}")
        return
    for isa in usable_isas():
        try:
            engine = NativeEngine(package, isa=isa)
            for name, stepwise in (("step", True), ("sequence", False)):
                yield golden.compare(f"native-{name}-{isa}", engine, stepwise=stepwise)
        except LmfsError as error:
            yield Finding(f"native engine {isa}", False, str(error))


def _lowerings(package: ModelPackage, golden: _Golden | _GoldenDigest) -> Iterator[Finding]:
    if not all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
        names = ", ".join(package.graph_names())
        yield Finding("lowerings", None, f"not checked: {names}: this needs lmfs[cpu]")
        return
    from ..engines.ort import OrtEngine
    from . import certificate

    stated = package.card.get("certificate", {})
    for name in package.graph_names():
        try:
            proof = certificate.prove(package.graph(name)).summary()
            same = stated.get(name) == proof
            detail = f"{proof['tensors']} tensors, widest {proof['widest_bits']} of 24 bits"
            yield Finding(
                f"certificate {name}", same, detail if same else f"{detail}; card differs"
            )
            engine = OrtEngine(package, lowering_step=name, lowering_sequence=name)
            yield golden.compare(name, engine, stepwise=name.startswith("step"))
        except LmfsError as error:
            yield Finding(f"lowering {name}", False, str(error))


def _golden(package: ModelPackage) -> _Golden | _GoldenDigest:
    try:
        data = io.BytesIO(package.golden())
        with zipfile.ZipFile(data) as archive:
            parts = archive.infolist()
        plain = all(part.compress_type in PLAIN_ZIP for part in parts)
        if not plain or sum(part.file_size for part in parts) > MAX_GOLDEN_BYTES:
            raise ValueError("more than can be compared")
        with np.load(data, allow_pickle=False) as arrays:
            if package.base is not None:
                tokens = arrays["tokens"]
                if tokens.ndim != 2 or tokens.size > MAX_GOLDEN_TOKENS:
                    raise ValueError(f"tokens {tokens.shape}")
                return _GoldenDigest(tokens, str(package.card.get("golden")))
            golden = _Golden(arrays["tokens"], arrays["logits"], int(arrays["every"]))
        lanes, time = golden.tokens.shape
        steps, vocab = len(range(0, time, golden.every)), package.card["architecture"]["vocab"]
        if golden.tokens.size > MAX_GOLDEN_TOKENS or golden.logits.shape != (lanes, steps, vocab):
            raise ValueError(f"tokens {golden.tokens.shape}, logits {golden.logits.shape}")
        return golden
    except (
        *(ValueError, KeyError, IndexError, TypeError, OSError, EOFError, MemoryError),
        *(zipfile.BadZipFile, zlib.error, NotImplementedError),
    ) as error:
        raise ModelError("unreadable golden vectors", where=package.path, got=error) from error
