"""Fine-tuning of a model package on a store's text, for `lmfs learn`.

Owns: what is trained, and the package that comes of it: a difference to the model it began with.
Trained are factors of low rank: every matrix of integers becomes

    clip(base + floor(left @ right / 2^8 + 1/2))

with `left` and `right` of int8 (factors are multiples of 2^-4 of the matrix' units), and the
head's bias, in units of logits. The rounding is done while training as the package's reader
does it (lmfs/models/difference.py), so that what is learned is what the integers do. Embeddings
stay as they are; what they would bring has not been measured.

Text is met in one pass, each batch coded before it is learned from: the sum of the losses is the
prequential code length, what a receiver who trains along would need. One thread, torch's own
threads besides.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lmfs.codecs.threads import thread_count
from lmfs.models import certificate, registry
from lmfs.models.difference import ADD, LEFT, RIGHT, apply_difference, read_arrays
from lmfs.models.package import ModelPackage, write_difference
from lmfs.models.verify import logits_digest

from . import exact_model as em
from .export import compare_engines, model_of, torch_logits
from .graphs import weight_tensors, weights_file

FACTOR_BITS, FACTOR_MAX = 4, 127  # of left and right
BIAS_MAX = 127
ROWS, WINDOW = 4, 512  # pieces a batch, tokens a step
FACTOR_RATE, BIAS_RATE = 0.02, 0.5
WARMUP_STEPS, FALL_FROM = 10, 0.5
COMPARE_EVERY = 4  # batches: one of so many is coded with the model as it was, too


class Adapted(em.Linear):
    """A Linear of which only a difference of low rank is trained."""

    def __init__(self, linear: em.Linear, left: nn.Parameter, rank: int, with_bias: bool) -> None:
        nn.Module.__init__(self)
        self.input_bits = linear.input_bits
        weight, bias, exponent = linear.integers()
        self.register_buffer("base", weight)
        self.register_buffer("base_bias", bias)
        self.register_buffer("exponent", exponent)
        self.left = left  # (inputs, rank)
        self.right = nn.Parameter(torch.zeros(rank, len(bias)))
        self.bias_logits = nn.Parameter(torch.zeros(len(bias))) if with_bias else None

    def integers(self) -> tuple[Tensor, Tensor, Tensor]:
        return rounded(self._whole()), self._bias_units(), self.exponent

    def _whole(self) -> Tensor:
        """The weights in their integer units, not rounded yet."""
        return self.base + (on_grid(self.left) @ on_grid(self.right)).t()

    def _bias_units(self) -> Tensor:
        if self.bias_logits is None:
            return self.base_bias
        return self.base_bias + torch.ldexp(
            self.bias_steps(), self.exponent + self.input_bits - em.LOGIT_BITS
        )

    def bias_steps(self) -> Tensor:
        """What is added to the bias, in units of logits; whole units of the accumulator too."""
        unit = em.LOGIT_BITS - self.input_bits - self.exponent
        step = torch.ldexp(torch.ones_like(self.base_bias), unit.clamp(min=0))
        most = torch.floor(BIAS_MAX / step)
        steps = torch.floor(self.bias_logits.detach() / step + 0.5)
        return torch.minimum(torch.maximum(steps, -most), most) * step

    def parameters_for(self, quantised: bool) -> tuple[Tensor, Tensor]:
        # A product and not ldexp, whose gradient is zero for negative exponents.
        unit = torch.ldexp(torch.ones_like(self.base_bias), -self.exponent)[:, None]
        whole = self._whole()
        bias = torch.ldexp(self._bias_units(), -(self.exponent + self.input_bits))
        if self.bias_logits is not None:
            bias = em.straight_through(self.bias_logits * 2.0**-em.LOGIT_BITS, bias)
        if not quantised:
            return whole * unit, bias
        return em.straight_through(whole, rounded(whole)) * unit, bias


def rounded(whole: Tensor) -> Tensor:
    """Weights as the integers that the package's reader makes of base and factors."""
    return torch.floor(whole.detach() + 0.5).clamp(em.WEIGHT_MIN, em.WEIGHT_MAX)


def factor_steps(factor: Tensor) -> Tensor:
    """A factor as the integers that the package has."""
    return torch.floor(factor.detach() * 2.0**FACTOR_BITS + 0.5).clamp(-FACTOR_MAX, FACTOR_MAX)


def on_grid(factor: Tensor) -> Tensor:
    return em.straight_through(factor, factor_steps(factor) * 2.0**-FACTOR_BITS)


def adapt(model: em.ExactModel, rank: int) -> None:
    """Replace every Linear of the model; the ones that read the same share their `left`."""

    def left(inputs: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(inputs, rank))

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    width, hidden = model.shape.width, model.shape.hidden
    for layer in model.layers:
        gates = left(width)
        for name, factor in (
            ("gate", gates),
            ("candidate", gates),
            ("out_gate", gates),
            ("out", left(width)),
            ("up", left(width)),
            ("down", left(hidden)),
        ):
            setattr(layer, name, Adapted(getattr(layer, name), factor, rank, False))
    model.head = Adapted(model.head, left(width), rank, True)


def rank_for(store_bytes: int) -> int:
    """Of the factors, for so much text: more bytes pay where there is more of it.

    Only 4 has been measured (tools/bench/results/README.md).
    """
    return 2 if store_bytes < 5e6 else 4 if store_bytes < 100e6 else 8


@dataclasses.dataclass(frozen=True)
class Learned:
    """A model that has learned, and what it cost to tell it the text; bits are of all the text.

    before_bits, after_bits: of every fourth batch, coded with the model as it was and, before it
    learned from the batch, with the one that learns
    """

    model: em.ExactModel
    text_bytes: int
    prequential_bits: float
    compared_bytes: int
    before_bits: float
    after_bits: float
    seconds: float


def fine_tune(
    base: ModelPackage,
    texts: Iterable[bytes],
    total_bytes: int,
    *,
    seconds: float,
    rank: int,
    seed: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Learned:
    """Learn from the texts, in order and once, until they or the time are over.

    total_bytes: of the texts, about
    progress: called with the share of the work that is done
    """
    torch.set_num_threads(thread_count())
    torch.manual_seed(seed)
    vocabulary = base.tokenizer().vocabulary
    as_it_was, model = model_of(base), model_of(base)
    adapt(model, rank)
    optimizer = _optimizer(model)
    began, step, batches = time.monotonic(), 0, 0
    text_bytes = compared_bytes = 0
    whole_nats = before_nats = after_nats = 0.0
    texts = iter(texts)

    def done() -> float:
        return max((time.monotonic() - began) / seconds, text_bytes / max(1, total_bytes))

    while (share := done()) < 1 and (rows := list(itertools.islice(texts, ROWS))):
        tokens = [np.asarray(vocabulary.tokenize(row)).astype(np.int64) for row in rows]
        nats = 0.0
        for loss, count in _losses(model, tokens):
            (loss / count).backward()
            nats += loss.item()
            factor = min(1.0, (step + 1) / WARMUP_STEPS, (1 - share) / (1 - FALL_FROM))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
        size = sum(map(len, rows))
        if batches % COMPARE_EVERY == 0:
            with torch.no_grad():
                before_nats += sum(loss.item() for loss, _ in _losses(as_it_was, tokens))
            after_nats += nats
            compared_bytes += size
        whole_nats += nats
        text_bytes += size
        batches += 1
        if progress is not None:
            progress(min(1.0, done()))
    bits = 1 / math.log(2)
    return Learned(
        model, text_bytes, whole_nats * bits, compared_bytes, before_nats * bits,
        after_nats * bits, time.monotonic() - began,
    )  # fmt: skip


def _optimizer(model: em.ExactModel) -> torch.optim.Optimizer:
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if "bias" not in n], "lr": FACTOR_RATE},
        {"params": [p for n, p in named if "bias" in n], "lr": BIAS_RATE},
    ]
    optimizer = torch.optim.AdamW(
        groups, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0, fused=True
    )
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    return optimizer


def _losses(model: em.ExactModel, rows: Sequence[np.ndarray]) -> Iterable[tuple[Tensor, int]]:
    """Code length in nats and number of tokens, window by window; rows begin as chunks do."""
    length = max(map(len, rows))
    tokens = np.zeros((len(rows), length), np.int64)
    inputs = np.full((len(rows), length), em.START_TOKEN, np.int64)
    counted = np.zeros((len(rows), length), bool)
    for k, row in enumerate(rows):
        tokens[k, : len(row)], counted[k, : len(row)] = row, True
        inputs[k, 1 : len(row)] = row[:-1]
    state = model.initial_state(len(rows))
    for at in range(0, length, WINDOW):
        window = slice(at, at + WINDOW)
        mask = torch.from_numpy(counted[:, window]).flatten()
        n, state = model(torch.from_numpy(inputs[:, window]), state, True)
        n = n.flatten(0, 1)[mask][None]
        wanted = torch.from_numpy(tokens[:, window]).flatten()[mask][None]
        yield em.code_length_nats(model, n, wanted, True), int(mask.sum())


def difference_tensors(model: em.ExactModel) -> dict[str, np.ndarray]:
    """What `weights.diff` says, by name: int8; factors whose product is zero are left out."""
    tensors: dict[str, np.ndarray] = {}

    def factors(name: str, parts: Sequence[Adapted]) -> None:
        right = np.concatenate([factor_steps(part.right).numpy() for part in parts], 1)
        if right.any():
            left = factor_steps(parts[0].left).numpy()
            tensors[name + LEFT] = left.astype(np.int8)
            tensors[name + RIGHT] = np.ascontiguousarray(right).astype(np.int8)

    for k, layer in enumerate(model.layers):
        factors(f"layer{k}.in.weight", [layer.gate, layer.candidate, layer.out_gate])
        for name in ("out", "up", "down"):
            factors(f"layer{k}.{name}.weight", [getattr(layer, name)])
    factors("head.weight", [model.head])
    tensors["head.bias" + ADD] = model.head.bias_steps().numpy().astype(np.int8)
    return tensors


def export_difference(
    base: ModelPackage, model: em.ExactModel, out: pathlib.Path, card: dict[str, object]
) -> ModelPackage:
    """Write the package, prove it exact, load it again, and compare every engine with PyTorch.

    The base must be found from `out`: beside it, or where lmfs.models.registry looks.
    raises: ModelError if it is not exact, SystemExit if an engine gives other logits
    """
    difference = weights_file(difference_tensors(model))
    weights = apply_difference(base.weights, difference)
    graphs = {name: base.graph(name).removesuffix(base.weights) for name in base.graph_names()}
    proofs = {name: certificate.prove(graph + weights) for name, graph in graphs.items()}
    with np.load(io.BytesIO(base.golden())) as golden:
        tokens = golden["tokens"]
    logits = torch_logits(model, tokens)
    card = {
        **card,
        "architecture": base.card["architecture"],
        "certificate": {name: proof.summary() for name, proof in proofs.items()},
        "golden": logits_digest(logits),
    }
    write_difference(out, card=card, base=base, difference=difference)
    package = registry.load(out)
    for name, tensor in weight_tensors(model).items():
        if not np.array_equal(read_arrays(package.weights)[name], tensor):
            raise SystemExit(f"learn: {name}: the package differs from what was learned")
    compare_engines(package, tokens, logits)
    return package
