"""Write a model package from trained weights, prove it exact, and test it against PyTorch.

    python -m lmfs_tools.export WORK/best.pt VOCAB.json OUT.lmm --name base-1 \
        [--dev FOLDER] [--training "what it was trained on"]

Owns: what goes into a package's card. The package's layout is lmfs.models.package's.
Raises SystemExit if one logit of any lowering or of the native engine differs from the PyTorch
forward.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import pathlib

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from lmfs.engines.native import NativeEngine
from lmfs.engines.ort import OrtEngine
from lmfs.engines.walk import walk
from lmfs.models import certificate
from lmfs.models.package import ModelPackage, write_package
from lmfs.tokenizer import Tokenizer

from . import exact_model as em
from .graphs import (
    LOWERINGS,
    all_graphs,
    model_from_tensors,
    weight_tensors,
    weights_file,
)

GOLDEN_LANES, GOLDEN_STEPS = 4, 96


@torch.no_grad()
def torch_logits(model: em.ExactModel, tokens: np.ndarray) -> np.ndarray:
    """tokens int64 (lanes, time) -> int16 logits (lanes, time, vocab), by PyTorch."""
    n, _ = model(torch.from_numpy(tokens), model.initial_state(len(tokens)), True)
    return (model.logits(n, True) * 2.0**em.LOGIT_BITS).numpy().astype(np.int16)


def golden_tokens(vocab: int) -> np.ndarray:
    """Lanes of a fixed random walk; the last one repeats a token, to reach the clips."""
    random = np.random.Generator(np.random.PCG64(20261123))
    tokens = random.integers(0, vocab, (GOLDEN_LANES, GOLDEN_STEPS))
    tokens[:, 0] = em.START_TOKEN
    tokens[-1, 1:] = tokens[-1, 1]
    return tokens.astype(np.int64)


def golden_file(tokens: np.ndarray, logits: np.ndarray) -> bytes:
    """All tokens, and the logits of every eighth step: enough to notice any difference."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, tokens=tokens, logits=logits[:, ::8], every=np.int64(8))
    return buffer.getvalue()


def export(
    model: em.ExactModel, tokenizer_json: bytes, out: pathlib.Path, card: dict[str, object]
) -> ModelPackage:
    """Write the package, load it again, and compare every lowering with PyTorch."""
    shape = model.shape
    tokenizer = Tokenizer.from_json(tokenizer_json)
    if len(tokenizer) != shape.vocab:
        raise SystemExit(f"export: vocabulary: expected {shape.vocab} tokens, got {len(tokenizer)}")
    graphs = all_graphs(shape)
    weights = weights_file(weight_tensors(model))
    proofs = {name: certificate.prove(graph + weights) for name, graph in graphs.items()}
    tokens = golden_tokens(shape.vocab)
    logits = torch_logits(model, tokens)
    card = {
        **card,
        "architecture": {
            "kind": "gated-recurrence-1",
            "vocab": shape.vocab,
            "width": shape.width,
            "layers": shape.layers,
            "hidden": shape.hidden,
            "hash_rows": shape.hash_rows,
            "start_token": em.START_TOKEN,
        },
        "certificate": {name: proof.summary() for name, proof in proofs.items()},
    }
    write_package(
        out,
        card=card,
        tokenizer=tokenizer_json,
        weights=weights,
        graphs=graphs,
        golden=golden_file(tokens, logits),
    )
    package = ModelPackage.load(out)
    compare_engines(package, tokens, logits)
    return package


def compare_engines(package: ModelPackage, tokens: np.ndarray, logits: np.ndarray) -> None:
    """Raises SystemExit where a lowering or the native engine does not give these logits."""
    for lowering in LOWERINGS:
        engine = OrtEngine(package, lowering_step=lowering, lowering_sequence=lowering)
        _compare(lowering, walk(engine, tokens, stepwise=lowering.startswith("step")), logits)
    _compare("native", walk(NativeEngine(package), tokens, stepwise=True), logits)


def _compare(name: str, got: np.ndarray, wanted: np.ndarray) -> None:
    if not np.array_equal(got, wanted):
        where = np.argwhere(got != wanted)[0].tolist()
        raise SystemExit(f"export: {name}: differs from PyTorch at {where}")


def load_model(path: pathlib.Path) -> em.ExactModel:
    state = torch.load(path, weights_only=True)["model"]
    width = state["embed"].shape[1]
    shape = em.Shape(
        vocab=state["embed"].shape[0],
        width=width,
        layers=len({k.split(".")[1] for k in state if k.startswith("layers.")}),
        hidden=state["layers.0.up.weight"].shape[0],
        hash_rows=state["embed_pair"].shape[0],
    )
    model = em.ExactModel(shape)
    model.load_state_dict(state)
    return model.eval()


def model_of(package: ModelPackage) -> em.ExactModel:
    """A package's model in PyTorch again, with the same logits when quantised."""
    architecture = package.card["architecture"]
    fields = [field.name for field in dataclasses.fields(em.Shape)]
    shape = em.Shape(**{name: architecture[name] for name in fields})
    weights = onnx.ModelProto.FromString(package.weights).graph.initializer
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in weights}
    return model_from_tensors(shape, tensors).eval()


@torch.no_grad()
def mean(model: em.ExactModel, other: em.ExactModel, share: float) -> em.ExactModel:
    """The model with a share of its own weights, the rest of another's (Wortsman et al. 2022)."""
    for own, others in zip(model.parameters(), other.parameters(), strict=True):
        own.lerp_(others, 1 - share)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("vocab", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument(
        "--mean-with",
        type=pathlib.Path,
        metavar="CHECKPOINT",
        help="what the checkpoint was learned on from: the mean of both keeps what either can",
    )
    parser.add_argument("--share", type=float, default=0.7, help="of the checkpoint in that mean")
    parser.add_argument("--name", required=True)
    parser.add_argument("--training", default="", help="one line for the card")
    parser.add_argument("--measured", type=json.loads, default={}, help="JSON: file -> bits a byte")
    args = parser.parse_args()
    model = load_model(args.checkpoint)
    if args.mean_with:
        model = mean(model, load_model(args.mean_with), args.share)
    card = {"name": args.name, "training": args.training, "bits_per_byte": args.measured}
    tokenizer_json = Tokenizer.from_json(args.vocab.read_bytes()).to_json()
    package = export(model, tokenizer_json, args.out, card)
    print(f"{args.out}: model {package.id.hex()}, {package.size_bytes:,} bytes; exact")


if __name__ == "__main__":
    main()
