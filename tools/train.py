"""Train the exact model: float first, quantisers on for the last part; resumable.

Owns: the recipe. Matrices inside the layers learn by Muon (orthogonalised momentum,
Jordan et al. 2024), everything else by Adam; the learning rate warms up, stays, and
falls linearly to zero over the last part. Each row of a batch is a stream of windows of
one piece of text; the recurrent state is carried from window to window and starts at
zero with each piece, as a decoder starts with each chunk.

    python -m lmfs_tools.corpus CORPUS VOCAB.json WORK    (once)
    python -m lmfs_tools.train WORK --tokens 40e6         (again to resume)
    python -m lmfs_tools.train WORK --start-from X.lmm    (from the weights of a package; its
                                                           dead hidden units begin anew)

Writes WORK/checkpoint.pt every few minutes, WORK/log.jsonl, WORK/best.pt at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import time

import numpy as np
import torch
from torch import Tensor, nn

from lmfs.models.package import ModelPackage

from .corpus import WEIGHTS
from .exact_model import START_TOKEN, ExactModel, Linear, Shape, code_length_nats
from .export import model_of

WINDOW = 1024  # tokens back-propagated through
WINDOWS_PER_PIECE = 6  # about 16 KiB of text between two resets


class Streams:
    """Endless rows of training windows, sources drawn by weight, resets staggered."""

    def __init__(self, folder: pathlib.Path, rows: int, seed: int):
        self.random = np.random.default_rng(seed)
        self.sources = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in WEIGHTS]
        self.weights = np.array(list(WEIGHTS.values())) / sum(WEIGHTS.values())
        self.rows = [self._piece() for _ in range(rows)]
        self.at = [int(k) for k in self.random.integers(0, WINDOWS_PER_PIECE, rows)]

    def _piece(self) -> np.ndarray:
        source = self.sources[self.random.choice(len(self.sources), p=self.weights)]
        length = WINDOW * WINDOWS_PER_PIECE
        start = int(self.random.integers(0, len(source) - length))
        piece = source[start : start + length].astype(np.int64)
        return np.concatenate([[START_TOKEN], piece])

    def next(self) -> tuple[Tensor, Tensor]:
        """tokens int64 (rows, WINDOW + 1) and a bool (rows,): this row starts a new piece."""
        windows, fresh = [], []
        for row in range(len(self.rows)):
            if self.at[row] == WINDOWS_PER_PIECE:
                self.rows[row], self.at[row] = self._piece(), 0
            fresh.append(self.at[row] == 0)
            start = self.at[row] * WINDOW
            windows.append(self.rows[row][start : start + WINDOW + 1])
            self.at[row] += 1
        return torch.from_numpy(np.stack(windows)), torch.tensor(fresh)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by a quintic Newton-Schulz iteration; 2-d parameters only."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(buffer, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.t() if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    if Linear.in_bfloat16:
        x = x.bfloat16()
    for _ in range(steps):
        square = x @ x.t()
        x = a * x + torch.addmm(square, square, square, beta=b, alpha=c) @ x
    return (x.t() if g.shape[0] > g.shape[1] else x).float()


@dataclasses.dataclass
class Settings:
    tokens: float = 40e6  # where the learning rate reaches zero
    decay_from: float = 0.5  # fraction of tokens at which it starts to fall
    quantise_from: float = 0.75  # fraction of tokens at which the quantisers go on
    rows: int = 12
    micro_rows: int = 4  # rows a forward pass: fits the cache
    warmup_steps: int = 20
    lr_matrix: float = 0.04
    lr_embed: float = 0.02
    lr_head: float = 0.006
    lr_vector: float = 0.01
    mlp_share: float = 0.3  # of these rates, for the MLPs: with noisy steps they fall silent
    seed: int = 1


def optimizers(model: ExactModel, s: Settings) -> list[torch.optim.Optimizer]:
    mlp = [
        p for layer in model.layers for part in (layer.up, layer.down) for p in part.parameters()
    ]
    mixing = [p for p in model.layers.parameters() if all(p is not other for other in mlp)]
    matrices, mlp_matrices = ([p for p in these if p.ndim == 2] for these in (mixing, mlp))
    vectors, mlp_vectors = ([p for p in these if p.ndim == 1] for these in (mixing, mlp))
    vectors.append(model.head.bias)
    adam = torch.optim.AdamW(
        [
            {"params": [model.embed, model.embed_pair], "lr": s.lr_embed},
            {"params": [model.head.weight], "lr": s.lr_head},
            {"params": vectors, "lr": s.lr_vector},
            {"params": mlp_vectors, "lr": s.lr_vector * s.mlp_share},
        ],
        betas=(0.9, 0.95),
        eps=1e-10,
        weight_decay=0.0,
        fused=True,
    )
    groups = [
        {"params": matrices, "lr": s.lr_matrix},
        {"params": mlp_matrices, "lr": s.lr_matrix * s.mlp_share},
    ]
    both = [Muon(groups, s.lr_matrix, weight_decay=0.01), adam]
    for optimizer in both:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return both


def rate(seen: float, step: int, s: Settings) -> float:
    """The factor on every peak learning rate."""
    falling = (1 - seen / s.tokens) / (1 - s.decay_from)
    return max(0.0, min(1.0, (step + 1) / s.warmup_steps, falling))


@torch.no_grad()
def revive(model: ExactModel, tokens: Tensor, least: float = 1e-2) -> list[int]:
    """Have hidden units that fire at fewer than `least` of these tokens begin anew; counts.

    A unit below zero everywhere gets no gradient, for good, and the square of one that is always
    close to it is rounded to nothing: firing is what it does in the quantised model. Its new
    weights are random ones, and nothing follows from it at first, so that the model computes what
    it did, almost.
    """
    fired: list[Tensor] = []
    hooks = [
        layer.down.register_forward_pre_hook(lambda _, x: fired.append((x[0] > 0).float()))
        for layer in model.layers
    ]
    model(tokens, model.initial_state(len(tokens)), True)
    for hook in hooks:
        hook.remove()
    counts = []
    for layer, firing in zip(model.layers, fired, strict=True):
        dead = firing.mean((0, 1)) < least
        counts.append(int(dead.sum()))
        fresh_std = 0.7 * layer.up.weight.shape[1] ** -0.5  # as in exact_model.Layer
        layer.up.weight[dead] = torch.randn_like(layer.up.weight[dead]) * fresh_std
        layer.up.bias[dead] = 0
        layer.down.weight[:, dead] = 0
    return counts


@torch.no_grad()
def balance(model: ExactModel) -> int:
    """Bring token shifts back to about one, and the matrices behind them to as much less; counts.

    The same function, but for the quantisers: coefficients are multiples of 1/64, and what they
    give of 1/16. Muon's steps make matrices grow, and the shifts before them give way.
    """
    count = 0
    for layer in model.layers:
        for shift, matrices in (
            (layer.shift_time, (layer.gate, layer.candidate, layer.out_gate)),
            (layer.shift_channel, (layer.up,)),
        ):
            largest = max(float(shift.now.abs().max()), float(shift.past.abs().max()))
            if largest == 0 or 0.5 < largest < 1.9:
                continue
            for coefficients in (shift.now, shift.past):
                coefficients.div_(largest)
            for matrix in matrices:
                matrix.weight.mul_(largest)
            count += 1
    return count


@torch.no_grad()
def widen(model: ExactModel, hash_rows: int) -> None:
    """Give each pair of tokens one of more rows; what it had was that row, modulo the old count."""
    times, rest = divmod(hash_rows, model.shape.hash_rows)
    if times > 1 and rest == 0:
        model.embed_pair = nn.Parameter(model.embed_pair.detach().repeat(times, 1))
        model.shape = dataclasses.replace(model.shape, hash_rows=hash_rows)


@torch.no_grad()
def evaluate(model: ExactModel, folder: pathlib.Path, quantised: bool) -> dict[str, float]:
    """Bits per byte of each prepared dev sample, every chunk from the initial state."""
    result = {}
    for path in sorted(folder.glob("*.npz")):
        sample = np.load(path)
        tokens = torch.from_numpy(sample["tokens"].astype(np.int64))  # (chunks, time), padded
        lengths = torch.from_numpy(sample["lengths"].astype(np.int64))
        nats = 0.0
        for start in range(0, len(tokens), 16):
            piece, length = tokens[start : start + 16], lengths[start : start + 16]
            state = model.initial_state(len(piece))
            inputs = torch.cat([torch.full_like(piece[:, :1], START_TOKEN), piece[:, :-1]], 1)
            for t in range(0, piece.shape[1], WINDOW):
                n, state = model(inputs[:, t : t + WINDOW], state, quantised)
                wanted = piece[:, t : t + WINDOW]
                counted = (torch.arange(t, t + n.shape[1])[None] < length[:, None]).flatten()
                n, wanted = n.flatten(0, 1)[counted][None], wanted.flatten()[counted][None]
                nats += code_length_nats(model, n, wanted, quantised).item()
        result[path.stem] = nats / np.log(2) / int(sample["bytes"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--start-from", type=pathlib.Path, metavar="PACKAGE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="multiply in bfloat16, where a processor does that faster (AVX-512 BF16, AMX)",
    )
    parser.add_argument("--save-every", type=float, default=180, metavar="SECONDS")
    parser.add_argument("--evaluate-every", type=float, default=900, metavar="SECONDS")
    parser.add_argument("--stop-after", type=float, default=1e9, metavar="SECONDS")
    for field in (*dataclasses.fields(Settings), *dataclasses.fields(Shape)):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default
        )
    args = parser.parse_args()
    s = Settings(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Settings)})
    shape = Shape(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Shape)})
    torch.set_num_threads(args.threads)
    torch.manual_seed(s.seed)
    Linear.in_bfloat16 = args.bfloat16
    if args.start_from:
        model = model_of(ModelPackage.load(args.start_from))
        widen(model, shape.hash_rows)
        if model.shape != shape:
            raise SystemExit(f"train: {args.start_from}: expected {shape}, got {model.shape}")
    else:
        model = ExactModel(shape)
    both = optimizers(model, s)
    step, seen = 0, 0
    saved = args.work / "checkpoint.pt"
    if saved.exists():
        checkpoint = torch.load(saved, weights_only=True)
        model.load_state_dict(checkpoint["model"])
        for optimizer, state in zip(both, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, seen = checkpoint["step"], checkpoint["seen"]
        print(f"resumed at step {step}, {seen / 1e6:.1f} M tokens", flush=True)
    streams = Streams(args.work / "tokens", s.rows, s.seed + step)
    if args.start_from and not saved.exists():
        print(f"token shifts brought back to one: {balance(model)}", flush=True)
        print(f"hidden units that never fired: {revive(model, streams.next()[0])}", flush=True)
    states: list = [model.initial_state(s.micro_rows) for _ in range(s.rows // s.micro_rows)]

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "optimizers": [o.state_dict() for o in both],
            "step": step,
            "seen": seen,
        }
        torch.save(state, saved.with_suffix(".tmp"))
        saved.with_suffix(".tmp").replace(saved)

    def report(**what: object) -> None:
        line = json.dumps({"step": step, "seen": seen, **what})
        with (args.work / "log.jsonl").open("a") as log:
            log.write(line + "\n")
        print(line, flush=True)

    began = last_save = last_eval = last_report = time.monotonic()
    seen_before, losses = seen, []
    while seen < s.tokens and time.monotonic() - began < args.stop_after:
        quantised = seen >= s.quantise_from * s.tokens
        factor = rate(seen, step, s)
        tokens, fresh = streams.next()
        total = 0.0
        for k in range(len(states)):
            rows = slice(k * s.micro_rows, (k + 1) * s.micro_rows)
            piece, keep = tokens[rows], ~fresh[rows]
            state = [
                [t * keep.view(-1, *[1] * (t.ndim - 1)).to(t.dtype) for t in layer]
                for layer in states[k]
            ]
            n, states[k] = model(piece[:, :-1], state, quantised)
            loss = code_length_nats(model, n, piece[:, 1:], quantised) / tokens[:, 1:].numel()
            loss.backward()
            total += loss.item()
        for optimizer in both:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        balance(model)
        losses.append(total)
        seen += tokens[:, 1:].numel()
        step += 1
        now = time.monotonic()
        if now - last_report > 20:
            speed = (seen - seen_before) / (now - last_report)
            report(
                loss=round(float(np.mean(losses)), 4),
                tokens_per_s=round(speed),
                rate=round(factor, 4),
                quantised=quantised,
            )
            last_report, seen_before, losses = now, seen, []
        if now - last_save > args.save_every:
            save()
            last_save = now
        if now - last_eval > args.evaluate_every:
            report(dev=evaluate(model, args.work / "dev", quantised))
            last_eval = last_report = time.monotonic()
            seen_before = seen
    save()
    if seen >= s.tokens:
        torch.save({"model": model.state_dict(), "step": step, "seen": seen}, args.work / "best.pt")
        report(dev=evaluate(model, args.work / "dev", False), engine="float")
        report(dev=evaluate(model, args.work / "dev", True), engine="exact")


if __name__ == "__main__":
    main()
