"""`lmfs model verify`: recompute a package's certificate and its golden vectors.

Owns: what is checked and how a finding reads. Imports the engine. Prints nothing.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
import zipfile

import numpy as np
from numpy.typing import NDArray

from ..engines.ort import OrtEngine
from ..errors import LmfsError, ModelError
from . import certificate
from .package import ModelPackage


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check: `what` was looked at, whether it holds, and what was seen."""

    what: str
    ok: bool
    detail: str


def verify(path: pathlib.Path | str) -> list[Finding]:
    """Check every lowering of the package; raises ModelError if it cannot be read at all."""
    package = ModelPackage.load(path)
    findings = [Finding("model id", True, package.id.hex())]
    tokens, logits, every = _golden(package)
    vocab = int(package.card["architecture"]["vocab"])
    size = len(package.tokenizer())
    findings.append(Finding("vocabulary", size == vocab, f"{size} tokens, card says {vocab}"))
    stated = package.card.get("certificate", {})
    for name in package.graph_names():
        try:
            proof = certificate.prove(package.graph(name)).summary()
            same = stated.get(name) == proof
            detail = f"{proof['tensors']} tensors, widest {proof['widest_bits']} of 24 bits"
            findings.append(
                Finding(f"certificate {name}", same, detail if same else f"{detail}; card differs")
            )
            engine = OrtEngine(package, lowering_step=name, lowering_sequence=name)
            got = engine.walk(tokens, stepwise=name.startswith("step"))[:, ::every]
            wrong = int((got != logits).sum())
            detail = f"{logits.size:,} logits, {wrong:,} differ"
            findings.append(Finding(f"golden vectors {name}", wrong == 0, detail))
        except LmfsError as error:
            findings.append(Finding(f"lowering {name}", False, str(error)))
    return findings


def _golden(package: ModelPackage) -> tuple[NDArray[np.int64], NDArray[np.int16], int]:
    """Tokens (lanes, time), the logits of every n-th step, and n."""
    try:
        with np.load(io.BytesIO(package.golden()), allow_pickle=False) as golden:
            return golden["tokens"], golden["logits"], int(golden["every"])
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ModelError("unreadable golden vectors", where=package.path, got=error) from error
