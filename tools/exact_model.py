"""The language model in PyTorch, with the very integers that the exported graph computes.

Owns: the architecture and its quantisers. Everything is a float32 tensor in real units,
on power-of-two grids; with `quantised=True` every value is an integer multiple of its
grid and every partial sum stays below 2^24 grid units, so float32 arithmetic is exact
and equals the exported integer graph bit for bit (tests/test_training.py says so).
With `quantised=False` only the clips remain: the same function, smooth enough to train.

One layer is a gated linear recurrence with token shift, then a relu-squared MLP:

    n  = x / mean|x|                          normalisation by the mean of absolute values
    s  = a * n[t] + b * n[t-1]                token shift
    u, c, g = W s                             gate, candidate, output gate
    h[t] = h[t-1] + u^2 * (c - h[t-1])        the recurrence, u clipped to [0, 1]
    x += O (h * g)
    x += V relu(U shift(norm(x)))^2

Grids (bits after the binary point) and clips are the constants below; FORMAT of the
package and the proof of the bounds: lmfs/models/certificate.py.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import pathlib
import subprocess
import tempfile

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EMBED_BITS = 5  # embeddings, int8
RESIDUAL_BITS, RESIDUAL_MAX = 7, 2**15 - 1
NORM_BITS, NORM_MAX = 4, 127  # normalised activations
NORM_NUMERATOR = 2**23  # K of  x * (K div sum|x|)
SHIFT_BITS, SHIFT_MAX = 6, 127  # token shift coefficients
GATE_BITS, GATE_MAX = 5, 32  # u in [0, 1]
STATE_BITS, STATE_MAX = 12, 2**13 - 1  # c and h
OUT_GATE_BITS, OUT_GATE_MAX = 5, 127  # g
MIXED_BITS, MIXED_MAX = 6, 127  # h * g
HIDDEN_BITS, HIDDEN_MAX = 6, 181  # before squaring
SQUARE_BITS, SQUARE_MAX = 4, 127  # after squaring
LOGIT_BITS, LOGIT_MAX = 6, 2**15 - 1  # 1/64 nat
WEIGHT_MIN, WEIGHT_MAX = -64, 63  # 7 bits, one power-of-two scale a row
START_TOKEN = 0  # what the model is fed before the first token of a chunk
HASH_MULTIPLIERS = (4093, 1031)  # of the previous token and of the token


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes that make a model; everything else is fixed by the architecture."""

    vocab: int = 2048
    width: int = 256
    layers: int = 4
    hidden: int = 512
    hash_rows: int = 8192


class _Clip(torch.autograd.Function):
    """Clip, then round half up to the grid; gradients pass where they point inwards."""

    @staticmethod
    def forward(ctx, x: Tensor, bits: int, low: int, high: int, quantised: bool) -> Tensor:
        x, scale = x.contiguous(), 2.0**bits
        y = torch.empty_like(x)
        ctx.save_for_backward(x)
        ctx.bounds = [ctypes.c_float(low / scale), ctypes.c_float(high / scale)]
        _kernels().clip_forward(
            *_pointers(x, y), _count(x), ctypes.c_float(scale), *ctx.bounds, int(quantised)
        )
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        (x,) = ctx.saved_tensors
        dy = dy.contiguous()
        dx = torch.empty_like(x)
        _kernels().clip_backward(*_pointers(x, dy, dx), _count(x), *ctx.bounds)
        return dx, None, None, None, None


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(t.data_ptr()) for t in tensors]


def _count(tensor: Tensor) -> ctypes.c_ssize_t:
    return ctypes.c_ssize_t(tensor.numel())


@functools.cache
def _kernels() -> ctypes.CDLL:
    source = pathlib.Path(__file__).with_name("kernels.c")
    target = pathlib.Path(tempfile.mkdtemp(prefix="lmfs-kernels-")) / "kernels.so"
    flags = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-ffp-contract=off"]
    flags += ["-fno-trapping-math"]
    subprocess.run(["cc", *flags, "-shared", "-fPIC", str(source), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def clip(x: Tensor, bits: int, low: int, high: int, quantised: bool) -> Tensor:
    return _Clip.apply(x, bits, low, high, quantised)


def row_exponent(weight: Tensor) -> Tensor:
    """The exponent e of each row so that round(w * 2^e) just fits 7 bits; int32 (rows,)."""
    largest = weight.detach().abs().amax(1).clamp(min=2.0**-20)
    return torch.frexp(WEIGHT_MAX / largest)[1] - 1


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(integers in [-64, 63] as float32, exponents int32) with w ~ integer * 2^-exponent."""
    exponent = row_exponent(weight)
    scaled = torch.ldexp(weight.detach(), exponent[:, None])
    return torch.floor(scaled + 0.5).clamp(WEIGHT_MIN, WEIGHT_MAX), exponent


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, quantised: Tensor) -> Tensor:
        return quantised.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


def straight_through(value: Tensor, quantised: Tensor) -> Tensor:
    """`quantised` going forward, to the last bit; the identity going back."""
    return _StraightThrough.apply(value, quantised)


class _Product(torch.autograd.Function):
    """x W^T + b; in bfloat16 but for the sums, where processors multiply that much faster.

    Going forward it is exact when quantised; gradients need not be.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, quantised: bool) -> Tensor:
        rows = x.flatten(0, -2)
        half_rows, half_weight = rows.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(half_rows, half_weight)
        ctx.shape = x.shape
        if quantised:
            y = torch.addmm(bias, rows, weight.t())
        else:
            y = (half_rows @ half_weight.t()).float().add_(bias)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, dy: Tensor):
        half_rows, half_weight = ctx.saved_tensors
        dy = dy.flatten(0, -2)
        half = dy.bfloat16()
        dx = (half @ half_weight).float().view(ctx.shape)
        return dx, (half.t() @ half_rows).float(), dy.sum(0), None


class Linear(nn.Module):
    """A matrix product whose operands are integers of at most 8 bits when quantised."""

    in_bfloat16 = False  # of all of them, while training

    def __init__(self, inputs: int, outputs: int, input_bits: int, std: float):
        super().__init__()
        self.input_bits = input_bits
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * std)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def integers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights and bias as integers in float32 (bias in accumulator units), row exponents."""
        weight, exponent = quantise_rows(self.weight)
        unit = exponent + self.input_bits
        bias = torch.floor(torch.ldexp(self.bias.detach(), unit) + 0.5)
        return weight, bias, exponent

    def parameters_for(self, quantised: bool) -> tuple[Tensor, Tensor]:
        if not quantised:
            return self.weight, self.bias
        weight, bias, exponent = self.integers()
        return (
            straight_through(self.weight, torch.ldexp(weight, -exponent[:, None])),
            straight_through(self.bias, torch.ldexp(bias, -(exponent + self.input_bits))),
        )

    def forward(self, x: Tensor, quantised: bool) -> Tensor:
        weight, bias = self.parameters_for(quantised)
        if Linear.in_bfloat16 and torch.is_grad_enabled():
            return _Product.apply(x, weight, bias, quantised)
        return F.linear(x, weight, bias)


def norm(x: Tensor, quantised: bool) -> Tensor:
    """x over the mean of its absolute values, on the normalised grid."""
    width = x.shape[-1]
    if not quantised:
        mean = x.abs().mean(-1, keepdim=True).clamp(min=2.0**-RESIDUAL_BITS)
        return clip(x / mean, NORM_BITS, -NORM_MAX, NORM_MAX, False)
    total = x.detach().abs().sum(-1, keepdim=True).mul(2.0**RESIDUAL_BITS).clamp(min=width)
    reciprocal = torch.floor(NORM_NUMERATOR / total.double()).float()
    # x * reciprocal is at most K; the result is on the grid after this multiplication
    exact = x.detach() * 2.0**RESIDUAL_BITS * reciprocal * (width / NORM_NUMERATOR)
    mean = x.abs().mean(-1, keepdim=True).clamp(min=2.0**-RESIDUAL_BITS)
    return clip(straight_through(x / mean, exact), NORM_BITS, -NORM_MAX, NORM_MAX, True)


class TokenShift(nn.Module):
    """a * n[t] + b * n[t-1], one pair of coefficients a channel."""

    def __init__(self, width: int):
        super().__init__()
        past = torch.linspace(0.0, 0.6, width)[torch.randperm(width)]
        self.now = nn.Parameter(1.0 - past)
        self.past = nn.Parameter(past)

    def coefficients(self, quantised: bool) -> tuple[Tensor, Tensor]:
        return (
            clip(self.now, SHIFT_BITS, -SHIFT_MAX, SHIFT_MAX, quantised),
            clip(self.past, SHIFT_BITS, -SHIFT_MAX, SHIFT_MAX, quantised),
        )

    def forward(self, n: Tensor, before: Tensor, quantised: bool) -> Tensor:
        now, past = self.coefficients(quantised)
        previous = torch.cat([before[:, None], n[:, :-1]], 1)
        return clip(now * n + past * previous, NORM_BITS, -NORM_MAX, NORM_MAX, quantised)


class _Square(torch.autograd.Function):
    """z * z; where z was clipped to zero, gradients still pass a little, or it would never rise."""

    LEAK = 0.001

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z * z

    @staticmethod
    def backward(ctx, dy: Tensor):
        (z,) = ctx.saved_tensors
        return dy * z.mul(2).add_(_Square.LEAK)


class _Scan(torch.autograd.Function):
    """The recurrence over time, in C (tools/kernels.c)."""

    @staticmethod
    def forward(ctx, u: Tensor, c: Tensor, h0: Tensor, quantised: bool) -> Tensor:
        u, c, h0 = u.contiguous(), c.contiguous(), h0.contiguous()
        h = torch.empty_like(u)
        batch, time, channels = u.shape
        _kernels().scan_forward(*_pointers(u, c, h0, h), batch, time, channels, int(quantised))
        ctx.save_for_backward(u, c, h0, h)
        return h

    @staticmethod
    def backward(ctx, dh: Tensor):
        u, c, h0, h = ctx.saved_tensors
        dh = dh.contiguous()
        du, dc = torch.empty_like(u), torch.empty_like(c)
        batch, time, channels = u.shape
        _kernels().scan_backward(*_pointers(u, c, h0, h, dh, du, dc), batch, time, channels)
        return du, dc, None, None


class Layer(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        width, hidden = shape.width, shape.hidden
        std = width**-0.5
        self.shift_time = TokenShift(width)
        self.gate = Linear(width, width, NORM_BITS, 0.1 * std)
        self.candidate = Linear(width, width, NORM_BITS, 0.5 * std)
        self.out_gate = Linear(width, width, NORM_BITS, 0.5 * std)
        self.out = Linear(width, width, MIXED_BITS, 0.3 * std)
        self.shift_channel = TokenShift(width)
        self.up = Linear(width, hidden, NORM_BITS, 0.7 * std)
        self.down = Linear(hidden, width, SQUARE_BITS, 0.3 * hidden**-0.5)
        with torch.no_grad():  # time constants from 2 to 500 tokens
            self.gate.bias.copy_(torch.logspace(-0.15, -1.35, width)[torch.randperm(width)])

    def forward(
        self, x: Tensor, state: list[Tensor], quantised: bool
    ) -> tuple[Tensor, list[Tensor]]:
        q = quantised
        n = norm(x, q)
        s = self.shift_time(n, state[0], q)
        u = clip(self.gate(s, q), GATE_BITS, 0, GATE_MAX, q)
        c = clip(self.candidate(s, q), STATE_BITS, -STATE_MAX, STATE_MAX, q)
        g = clip(self.out_gate(s, q), OUT_GATE_BITS, -OUT_GATE_MAX, OUT_GATE_MAX, q)
        h = _Scan.apply(u, c, state[1], q)
        y = clip(h * g, MIXED_BITS, -MIXED_MAX, MIXED_MAX, q)
        x = _add_residual(x, self.out(y, q), q)
        n2 = norm(x, q)
        s2 = self.shift_channel(n2, state[2], q)
        z = clip(self.up(s2, q), HIDDEN_BITS, 0, HIDDEN_MAX, q)
        r = clip(_Square.apply(z), SQUARE_BITS, 0, SQUARE_MAX, q)
        x = _add_residual(x, self.down(r, q), q)
        return x, [n[:, -1].detach(), h[:, -1].detach(), n2[:, -1].detach()]


def _add_residual(x: Tensor, update: Tensor, quantised: bool) -> Tensor:
    if not quantised:
        return x + update
    scale = 2.0**RESIDUAL_BITS
    on_grid = straight_through(update, torch.floor(update * scale + 0.5) / scale)
    return (x + on_grid).clamp(-RESIDUAL_MAX / scale, RESIDUAL_MAX / scale)


class ExactModel(nn.Module):
    """Tokens to the normalised last activation; `head` turns that into logits."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embed = nn.Parameter(torch.randn(shape.vocab, shape.width) * 0.7)
        self.embed_pair = nn.Parameter(torch.randn(shape.hash_rows, shape.width) * 0.1)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.head = Linear(shape.width, shape.vocab, NORM_BITS, 0.5 * shape.width**-0.5)

    def initial_state(self, batch: int) -> list[list[Tensor]]:
        """Zeros: (batch, width) three times a layer, and START_TOKEN as the token before."""
        zero = torch.zeros(batch, self.shape.width)
        state = [[zero, zero, zero] for _ in self.layers]
        return [*state, [torch.zeros(batch, dtype=torch.long)]]

    def embeddings(self, quantised: bool) -> tuple[Tensor, Tensor]:
        return (
            clip(self.embed, EMBED_BITS, -127, 127, quantised),
            clip(self.embed_pair, EMBED_BITS, -127, 127, quantised),
        )

    def forward(
        self, tokens: Tensor, state: list[list[Tensor]], quantised: bool = False
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """tokens: int64 (batch, time). Returns float32 (batch, time, width) and the state."""
        before = torch.cat([state[-1][0][:, None], tokens[:, :-1]], 1)
        past, now = HASH_MULTIPLIERS
        pair = (before * past + tokens * now) % self.shape.hash_rows
        embed, embed_pair = self.embeddings(quantised)
        x = F.embedding(tokens, embed) + F.embedding(pair, embed_pair)
        after = []
        for layer, layer_state in zip(self.layers, state, strict=False):
            x, layer_state = layer(x, layer_state, quantised)
            after.append(layer_state)
        return norm(x, quantised), [*after, [tokens[:, -1]]]

    def logits(self, n: Tensor, quantised: bool = False) -> Tensor:
        """float32 (..., vocab) in nats; multiples of 1/64 when quantised."""
        return clip(self.head(n, quantised), LOGIT_BITS, -LOGIT_MAX, LOGIT_MAX, quantised)


class _HeadLoss(torch.autograd.Function):
    """Sum of the code lengths in nats, in slices of rows so that the logits stay in cache."""

    SLICE = 1024

    @staticmethod
    def forward(ctx, n: Tensor, weight: Tensor, bias: Tensor, target: Tensor, quantised: bool):
        dn, dw, db = torch.empty_like(n), torch.zeros_like(weight), torch.zeros_like(bias)
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, n.shape[0], _HeadLoss.SLICE):
            piece = n[start : start + _HeadLoss.SLICE]
            wanted = target[start : start + _HeadLoss.SLICE, None]
            logits = torch.addmm(bias, piece, weight.t())
            if quantised:
                logits = logits.mul_(2.0**LOGIT_BITS).add_(0.5).floor_().mul_(2.0**-LOGIT_BITS)
            logp = torch.log_softmax(logits, 1)
            total -= logp.gather(1, wanted).double().sum()
            p = logp.exp_()
            p.scatter_add_(1, wanted, torch.full_like(p[:, :1], -1.0).expand(wanted.shape))
            db += p.sum(0)
            if Linear.in_bfloat16:
                half = p.bfloat16()
                dn[start : start + _HeadLoss.SLICE] = half @ weight.bfloat16()
                dw += half.t() @ piece.bfloat16()
            else:
                torch.mm(p, weight, out=dn[start : start + _HeadLoss.SLICE])
                dw.addmm_(p.t(), piece)
        ctx.save_for_backward(dn, dw, db)
        return total.float()

    @staticmethod
    def backward(ctx, grad: Tensor):
        dn, dw, db = ctx.saved_tensors
        return dn * grad, dw * grad, db * grad, None, None


def code_length_nats(model: ExactModel, n: Tensor, target: Tensor, quantised: bool) -> Tensor:
    """Sum over all positions of -log p(target); n (batch, time, width), target (batch, time)."""
    weight, bias = model.head.parameters_for(quantised)
    return _HeadLoss.apply(n.flatten(0, 1), weight, bias, target.flatten(), quantised)
